/** A guest's task in the fill pool: opens the session and the page source in this thread, and runs the fill. */
import { FillService } from './fill-service.ts';
import { openLocalPages, type LocalPages } from './local-pages.ts';
import { native } from './native.ts';
import { RemoteFill } from './remote-fill.ts';
import { ServicePort } from './service-port.ts';
import { Serving } from './serving.ts';
import type { ServiceEnd, ServiceTask } from './worker-messages.ts';

/** Ends when nothing is outstanding, when told to stop, or when the guest is gone. */
export async function runFillTask(task: ServiceTask): Promise<ServiceEnd> {
  const session = native().openSession(task.session);
  const serving = new Serving(task.serving);
  const port = new ServicePort(task.port);
  const { pages } = task;
  let local: LocalPages | undefined;
  let remote: RemoteFill | undefined;
  try {
    if (pages.kind === 'peer' || pages.kind === 'by-tag') {
      remote = new RemoteFill({ pages, session, serving, port });
      if (!(await port.unlessStopped(remote.connected))) return { end: 'stopped' };
    } else {
      local = openLocalPages(pages, session.pageSize, serving, 'fill');
    }
    const fill = new FillService({
      session,
      serving,
      local,
      named: remote?.named,
      peers: remote?.peers,
      remote: remote?.source,
      batchFrames: task.batchFrames,
      window: task.window,
      bandwidth: task.bandwidth,
      onTrouble: (frame, error) => port.tell({ event: 'trouble', frame, error: error.toJSON() }),
    });
    if (remote !== undefined) remote.fill = fill;
    port.onStop = () => fill.stop();
    port.tell({ event: 'ready' });
    if (!(await port.started)) return { end: 'stopped' };
    return { end: await fill.run() };
  } finally {
    remote?.close();
    local?.close();
    session.close();
    port.close();
  }
}
