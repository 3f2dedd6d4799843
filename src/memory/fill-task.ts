/**
 * A guest's task in the fill pool: opens the sessions and the page source in this thread, and does what it is told.
 *
 *   connect ─► ready ─┬─► round (over the files) ─┐        start ─► fill behind the faults ─► filled
 *                     └───────────────────────────┴─► …
 *
 * All of it over one connection. Each round, and the fill, is a {@link FillService} of its own: what a page stream still answers to one
 * that has ended is dropped (remote-fill.ts), as the tags it was asked by may have changed since.
 */
import { asPagetideError, PagetideError } from '../errors.ts';
import { FillService, type FillRound } from './fill-service.ts';
import { openLocalPages, type LocalPages } from './local-pages.ts';
import { native, type FaultSession } from './native.ts';
import { RemoteFill } from './remote-fill.ts';
import { ServicePort } from './service-port.ts';
import { Serving } from './serving.ts';
import type { ServiceEnd, ServiceTask } from './worker-messages.ts';

/** Ends when nothing is outstanding after `start`, when told to stop, or when the guest is gone. */
export async function runFillTask(task: ServiceTask): Promise<ServiceEnd> {
  const session = task.session === undefined ? undefined : native().openSession(task.session);
  const copy = task.copy === undefined ? undefined : native().openSession(task.copy);
  const serving = new Serving(task.serving);
  const port = new ServicePort(task.port);
  const { pages } = task;
  let local: LocalPages | undefined;
  let remote: RemoteFill | undefined;
  let bandwidth = task.bandwidth;
  let current: FillService | undefined;
  port.onLimit = (limit) => {
    bandwidth = limit;
    current?.limit(limit);
  };
  const fillOf = (into: FaultSession, round?: FillRound): FillService => {
    const fill = new FillService({
      session: into,
      round,
      serving,
      local,
      named: remote?.named,
      peers: remote?.peers,
      aside: remote?.aside,
      remote: remote?.source,
      batchFrames: task.batchFrames,
      window: task.window,
      bandwidth,
      onTrouble: (frame, error) => port.tell({ event: 'trouble', frame, error: error.toJSON() }),
    });
    remote?.feed(fill, round);
    return fill;
  };
  const run = async (fill: FillService): Promise<ServiceEnd> => {
    current = fill;
    port.onStop = port.onHalt = () => fill.stop();
    if (port.isStopped) fill.stop();
    try {
      return { end: await fill.run() };
    } finally {
      current = undefined;
      port.onStop = port.onHalt = undefined;
      remote?.feed(undefined);
    }
  };
  try {
    const shape = session ?? copy;
    if (shape === undefined) throw new PagetideError('PT_INTERNAL', 'there is nothing to fill');
    if (pages.kind === 'peer' || pages.kind === 'by-tag') {
      remote = new RemoteFill({ pages, session: shape, copy, deltas: task.deltas ?? true, serving, port });
      if (!(await port.unlessStopped(remote.connected))) return { end: 'stopped' };
    } else {
      local = openLocalPages(pages, shape.pageSize, serving, 'fill');
    }
    port.tell({ event: 'ready' });
    for (;;) {
      const command = await port.next();
      if (command.do === 'stop') return { end: 'stopped' };
      if (command.do === 'start') {
        if (session === undefined) throw new PagetideError('PT_INTERNAL', 'nothing is served without a userfaultfd');
        return await run(fillOf(session));
      }
      if (copy === undefined) throw new PagetideError('PT_INTERNAL', 'there are no files to copy to');
      try {
        const { end } = await run(fillOf(copy, command.kind));
        remote?.count();
        port.tell({ event: 'round', copied: end === 'filled' });
      } catch (error) {
        // the round's alone: the next one may fare better
        port.tell({ event: 'round', copied: false, error: asPagetideError(error).toJSON() });
      }
    }
  } finally {
    remote?.close();
    local?.close();
    session?.close();
    copy?.close();
    port.close();
  }
}
