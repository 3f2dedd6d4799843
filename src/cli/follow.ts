/**
 * Watches a migration to its end, over restarts of the agent.
 *
 *   watching ── stream ends before the migration ──→ reconnecting ──→ watching
 *      │ Ctrl-C: ask the agent to cancel, watch on
 *      │ Ctrl-C again, or SIGTERM: detach; the migration goes on
 *      └── done | failed | cancelled ──→ report or error
 */
import { setTimeout as wait } from 'node:timers/promises';
import type { AgentClient } from '../agent/api/client.ts';
import { asPagetideError, errorFromJson, PagetideError } from '../errors.ts';
import type { MigrationInfo, MigrationReport, Phase } from '../migration/types.ts';
import type { ProgressView } from './progress.ts';

/** How long an agent may be away before watching is given up, and waits between two tries. Milliseconds. */
const AWAY_MS = 120_000;
const FIRST_RETRY_MS = 100;
const LONGEST_RETRY_MS = 2000;

const ENDED: readonly Phase[] = ['done', 'failed', 'cancelled'];

/** Resolves to the report of migration `started`, rejects with what ended it otherwise. */
export async function followMigration(
  client: AgentClient,
  started: MigrationInfo,
  view: ProgressView,
): Promise<MigrationReport> {
  const detach = new AbortController();
  let interrupts = 0;
  const onInterrupt = () => {
    interrupts++;
    if (interrupts > 1) {
      detach.abort();
      return;
    }
    view.say('asking for the migration to be cancelled; Ctrl-C again stops watching, and lets it go on');
    client.cancel(started.guest, detach.signal).then(
      (info) => view.update(info),
      (thrown: unknown) => {
        const error = asPagetideError(thrown);
        view.say(`not cancelled: ${error.code}: ${error.message} (${error.hint})`);
      },
    );
  };
  const onTerminate = () => detach.abort();
  process.on('SIGINT', onInterrupt);
  process.on('SIGTERM', onTerminate);
  try {
    view.update(started);
    const last = ENDED.includes(started.progress.phase)
      ? started
      : await watch({
          open: (signal) => client.watchMigration(started.id, signal),
          take: (info) => {
            view.update(info);
            return ENDED.includes(info.progress.phase);
          },
          say: (line) => view.say(line),
          signal: detach.signal,
          stopped: () =>
            new PagetideError('PT_CANCELLED', `stopped watching migration ${started.id}; it goes on`, {
              hint: '`pagetide migrations` shows how far it is.',
            }),
        });
    return reportOf(last);
  } finally {
    process.off('SIGINT', onInterrupt);
    process.off('SIGTERM', onTerminate);
    view.end();
    // an answer to the cancel that is still awaited would keep this process alive
    detach.abort();
  }
}

/** What is watched to its end. */
export interface Watched<T> {
  /** Connects, anew each time. */
  open: (signal: AbortSignal) => AsyncIterable<T>;
  /** Gets each item; true: it is the last one. */
  take: (item: T) => boolean;
  say: (line: string) => void;
  /** Ends the watching; nothing else. */
  signal: AbortSignal;
  /** What is thrown then. */
  stopped: () => PagetideError;
}

/** The last item, over restarts of the agent. @throws PagetideError what the agent answers; `PT_PEER_UNREACHABLE` where it stays away */
export async function watch<T>({ open, take, say, signal, stopped }: Watched<T>): Promise<T> {
  let retryMs = FIRST_RETRY_MS;
  let awaySince: number | undefined;
  for (;;) {
    try {
      for await (const item of open(signal)) {
        if (awaySince !== undefined) say('the agent is there again');
        awaySince = undefined;
        retryMs = FIRST_RETRY_MS;
        if (take(item)) return item;
      }
    } catch (thrown) {
      if (!signal.aborted && !passing(thrown)) throw thrown;
    }
    if (signal.aborted) throw stopped();
    const now = performance.now();
    if (awaySince === undefined) say('the connection to the agent is lost; trying again');
    awaySince ??= now;
    if (now - awaySince > AWAY_MS) {
      throw new PagetideError('PT_PEER_UNREACHABLE', `the agent has been away for ${AWAY_MS / 1000} s`, {
        hint: 'Start it again: it takes the migration up where it was. `pagetide migrations` then shows it.',
      });
    }
    // an abort ends the wait; the loop then says so
    await wait(retryMs, undefined, { signal }).catch(() => undefined);
    retryMs = Math.min(retryMs * 2, LONGEST_RETRY_MS);
  }
}

/** Whether it may be over when the agent is back. */
function passing(thrown: unknown): boolean {
  return thrown instanceof PagetideError && thrown.code === 'PT_PEER_UNREACHABLE';
}

function reportOf({ id, progress, report, error }: MigrationInfo): MigrationReport {
  if (progress.phase === 'cancelled') {
    throw error === undefined
      ? new PagetideError('PT_CANCELLED', `migration ${id} was cancelled`)
      : errorFromJson(error);
  }
  if (progress.phase === 'failed' || report === undefined) {
    if (error !== undefined) throw errorFromJson(error);
    throw new PagetideError('PT_INTERNAL', `migration ${id} ${progress.phase} without telling why`);
  }
  return report;
}
