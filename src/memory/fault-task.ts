/** A guest's task in the fault pool: opens the session and the page source in this thread, and runs the fault service. */
import { DemandRouter } from './demand-router.ts';
import { FaultService, type DemandPages } from './fault-service.ts';
import { openLocalPages, type LocalPages } from './local-pages.ts';
import { native } from './native.ts';
import { openNamedPages, type NamedPages } from './named-pages.ts';
import { PeerPages } from './peer-pages.ts';
import { openPeers, type Peers } from './peers.ts';
import { ServicePort } from './service-port.ts';
import { Serving } from './serving.ts';
import type { ServiceEnd, ServiceTask } from './worker-messages.ts';

/** How often faults that wait for a source which is away are asked for elsewhere, milliseconds. */
const REROUTE_MS = 250;

/** Of a guest that has no peers. */
class SourceDemand implements DemandPages {
  private readonly pages: PeerPages;

  constructor(pages: PeerPages) {
    this.pages = pages;
  }
  request(frame: number): boolean {
    return this.pages.requestPage(frame);
  }
  get directFd(): number {
    return this.pages.directFd;
  }
  readDirect(): boolean {
    return this.pages.readDirect();
  }
}

/** Ends when the session is stopped or the guest is gone. */
export async function runFaultTask(task: ServiceTask): Promise<ServiceEnd> {
  const session = native().openSession(task.session);
  const serving = new Serving(task.serving);
  const port = new ServicePort(task.port);
  let local: LocalPages | undefined;
  let peer: PeerPages | undefined;
  let peers: Peers | undefined;
  let router: DemandRouter | undefined;
  let rerouting: NodeJS.Timeout | undefined;
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
    const demandOf = (pages: PeerPages, names: NamedPages | undefined): DemandPages => {
      const others = openPeers(task.pages, session.pageSize, {
        sourceMs: () => undefined, // asked while there is none only
        onLeftOut: (url, error) => port.tell({ event: 'left-out', url, error: error.toJSON() }),
        onChange: () => late.faults?.reroute(),
      });
      if (others === undefined || names === undefined || task.pages.kind !== 'peer') return new SourceDemand(pages);
      peers = others;
      pages.alsoCount(() => others.bytes);
      router = new DemandRouter({
        source: pages,
        peers: others,
        named: names,
        tags: native().arenaView(task.pages.named!.tags),
        serving,
        onPage: (frame, page, offset) => late.faults?.answer(frame, page, offset, false, 'peer'),
        onNobody: (frame) => late.faults?.unheld(frame),
      });
      return router;
    };
    if (task.pages.kind === 'peer') {
      peer = new PeerPages(task.pages, 'demand', serving, port, {
        onPage: (frame, buffer, offset, zero) => late.faults?.answer(frame, buffer, offset, zero),
        onPageError: (frame, error) => late.faults?.refused(frame, error),
        onConnected: () => {
          clearInterval(rerouting);
          late.faults?.connected();
        },
        onDisconnected: () => {
          if (peers === undefined) return;
          peers.start();
          late.faults?.reroute();
          clearInterval(rerouting);
          // peers that come meanwhile, and pages that they get
          rerouting = setInterval(() => late.faults?.reroute(), REROUTE_MS);
        },
      });
      const pages = peer;
      if (task.pages.named !== undefined) named = openNamedPages(task.pages.named, session.pageSize, serving, 'demand');
      demand = demandOf(pages, named);
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
    clearInterval(rerouting);
    router?.close();
    // first, so that its bytes are counted with the others'
    peers?.close();
    peer?.close();
    local?.close();
    session.close();
    port.close();
  }
}
