/** A guest's task in the fault pool: opens the session and the page source in this thread, and runs the fault service. */
import { FaultService, type DemandPages } from './fault-service.ts';
import { openLocalPages, type LocalPages } from './local-pages.ts';
import { native } from './native.ts';
import { openNamedPages, type NamedPages } from './named-pages.ts';
import { PeerPages } from './peer-pages.ts';
import { ServicePort } from './service-port.ts';
import { Serving } from './serving.ts';
import type { ServiceEnd, ServiceTask } from './worker-messages.ts';

/** Ends when the session is stopped or the guest is gone. */
export async function runFaultTask(task: ServiceTask): Promise<ServiceEnd> {
  const session = native().openSession(task.session);
  const serving = new Serving(task.serving);
  const port = new ServicePort(task.port);
  let local: LocalPages | undefined;
  let peer: PeerPages | undefined;
  try {
    let demand: DemandPages | undefined;
    let named: NamedPages | undefined;
    const makeService = (): FaultService => {
      return new FaultService({
        session,
        serving,
        local,
        demand,
        named,
        spinMicros: task.spinMicros,
        onEvent: (event) => {
          port.tell(event.event === 'foreign' ? event : { ...event, error: event.error.toJSON() });
        },
      });
    };
    const late: { faults?: FaultService } = {};
    if (task.pages.kind === 'peer') {
      peer = new PeerPages(task.pages, 'demand', serving, port, {
        onPage: (frame, buffer, offset, zero) => late.faults?.answer(frame, buffer, offset, zero),
        onPageError: (frame, error) => late.faults?.refused(frame, error),
        onConnected: () => late.faults?.connected(),
      });
      const pages = peer;
      if (task.pages.named !== undefined) named = openNamedPages(task.pages.named, session.pageSize, serving, 'demand');
      demand = {
        request: (frame) => pages.requestPage(frame),
        get directFd() {
          return pages.directFd;
        },
        readDirect: () => pages.readDirect(),
      };
      if (!(await port.unlessStopped(peer.connected))) return { end: 'stopped' };
    } else {
      local = openLocalPages(task.pages, session.pageSize, serving, 'demand');
    }
    const faults = makeService();
    late.faults = faults;
    port.tell({ event: 'ready' });
    if (!(await port.started)) return { end: 'stopped' };
    return { end: await faults.run() };
  } finally {
    peer?.close();
    local?.close();
    session.close();
    port.close();
  }
}
