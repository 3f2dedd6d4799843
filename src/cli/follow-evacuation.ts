/**
 * Watches an evacuation to its end, over lost connections to the agent.
 *
 *   watching ── Ctrl-C ──► no further guest begins ── Ctrl-C ──► those under way are cancelled ── Ctrl-C ──► detached
 *      │ SIGTERM, SIGHUP: detached; the agent goes on
 *      └── ended ──► how it ended
 */
import type { AgentClient } from '../agent/api/client.ts';
import type { EvacuationInfo } from '../agent/service.ts';
import { asPagetideError, PagetideError } from '../errors.ts';
import type { EvacuationView } from './evacuation-progress.ts';
import { watch } from './follow.ts';

/** Resolves to the evacuation as it ended. @throws PagetideError `PT_CANCELLED` where it is no longer watched */
export async function followEvacuation(
  client: Pick<AgentClient, 'watchEvacuation' | 'stopEvacuation'>,
  started: EvacuationInfo,
  view: EvacuationView,
): Promise<EvacuationInfo> {
  const detach = new AbortController();
  let interrupts = 0;
  const onInterrupt = (): void => {
    interrupts++;
    if (interrupts > 2) {
      detach.abort();
      return;
    }
    view.say(
      interrupts === 1
        ? 'no further guest begins; those under way arrive. Ctrl-C again cancels them'
        : 'asking for the guests under way to be cancelled; Ctrl-C again stops watching',
    );
    client.stopEvacuation(interrupts === 2, detach.signal).then(
      (info) => view.update(info),
      (thrown: unknown) => {
        const { code, message, hint } = asPagetideError(thrown);
        view.say(`not stopped: ${code}: ${message} (${hint})`);
      },
    );
  };
  const onTerminate = (): void => detach.abort();
  process.on('SIGINT', onInterrupt).on('SIGTERM', onTerminate).on('SIGHUP', onTerminate);
  try {
    view.update(started);
    if (started.state === 'ended') return started;
    return await watch({
      open: (signal) => client.watchEvacuation(signal),
      take: (info) => {
        view.update(info);
        return info.state === 'ended';
      },
      say: (line) => view.say(line),
      signal: detach.signal,
      stopped: () =>
        new PagetideError('PT_CANCELLED', 'stopped watching the evacuation; it goes on', {
          hint: '`pagetide evacuate --follow` watches it again.',
        }),
    });
  } finally {
    process.off('SIGINT', onInterrupt).off('SIGTERM', onTerminate).off('SIGHUP', onTerminate);
    view.end();
    detach.abort();
  }
}
