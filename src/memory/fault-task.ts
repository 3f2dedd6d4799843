/** A guest's task in the fault pool: opens the session and the page source in this thread, and runs the fault service. */
import { PagetideError } from '../errors.ts';
import { FaultService } from './fault-service.ts';
import { openLocalPages, type LocalPages } from './local-pages.ts';
import { native } from './native.ts';
import { RemoteDemand } from './remote-demand.ts';
import { ServicePort } from './service-port.ts';
import { Serving } from './serving.ts';
import type { ServiceEnd, ServiceTask } from './worker-messages.ts';

/** Ends when the session is stopped or the guest is gone. */
export async function runFaultTask(task: ServiceTask): Promise<ServiceEnd> {
  if (task.session === undefined) throw new PagetideError('PT_INTERNAL', 'nothing is served without a userfaultfd');
  const session = native().openSession(task.session);
  const serving = new Serving(task.serving);
  const port = new ServicePort(task.port);
  const { pages } = task;
  let local: LocalPages | undefined;
  let remote: RemoteDemand | undefined;
  try {
    if (pages.kind === 'peer' || pages.kind === 'by-tag') {
      remote = new RemoteDemand({ pages, pageSize: session.pageSize, serving, port });
      if (!(await port.unlessStopped(remote.connected))) return { end: 'stopped' };
    } else {
      local = openLocalPages(pages, session.pageSize, serving, 'demand');
    }
    const faults = new FaultService({
      session,
      serving,
      local,
      demand: remote?.demand,
      named: remote?.named,
      spinMicros: task.spinMicros,
      onEvent: (event) => {
        port.tell(event.event === 'foreign' ? event : { ...event, error: event.error.toJSON() });
      },
    });
    if (remote !== undefined) remote.faults = faults;
    port.tell({ event: 'ready' });
    if ((await port.next()).do !== 'start') return { end: 'stopped' };
    return { end: await faults.run() };
  } finally {
    remote?.close();
    local?.close();
    session.close();
    port.close();
  }
}
