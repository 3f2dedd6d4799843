/**
 * The fault worker's side of pages that lie elsewhere: the demand connection to the source, and the other hosts that may have
 * them, which are asked while there is none.
 */
import { PagetideError } from '../errors.ts';
import { DemandRouter } from './demand-router.ts';
import type { DemandPages, FaultService } from './fault-service.ts';
import { openNamedPages, tagsOf, type NamedPages } from './named-pages.ts';
import { PeerPages } from './peer-pages.ts';
import { openPeers, type Peers } from './peers.ts';
import type { ServicePort } from './service-port.ts';
import type { Serving } from './serving.ts';
import type { PeerPagesSpec, TaggedPagesSpec } from './worker-messages.ts';

/** How often faults that wait for a source which is away are asked for elsewhere, milliseconds. */
const REROUTE_MS = 250;
/** How often the bytes of peers are counted where there is no source, milliseconds. */
const COUNT_MS = 100;

export interface RemoteDemandOptions {
  pages: PeerPagesSpec | TaggedPagesSpec;
  pageSize: number;
  serving: Serving;
  port: ServicePort;
}

export class RemoteDemand {
  readonly named: NamedPages | undefined;
  readonly demand: DemandPages;
  /** Resolves when the source answers; at once where there is none. Rejects as {@link PeerPages.connected}. */
  readonly connected: Promise<void>;
  /** Gets what comes; to be set before anything is asked for. */
  faults: FaultService | undefined;
  readonly #serving: Serving;
  readonly #source: PeerPages | undefined;
  readonly #peers: Peers | undefined;
  readonly #router: DemandRouter | undefined;
  #rerouting: NodeJS.Timeout | undefined;
  #counting: NodeJS.Timeout | undefined;
  #up: boolean | undefined;

  constructor({ pages, pageSize, serving, port }: RemoteDemandOptions) {
    this.#serving = serving;
    if (pages.named !== undefined) this.named = openNamedPages(pages.named, pageSize, serving, 'demand');
    const peers = openPeers(pages, pageSize, {
      sourceMs: () => undefined, // asked while there is none only
      onLeftOut: (url, error) => port.tell({ event: 'left-out', url, error: error.toJSON() }),
      onChange: () => {
        this.faults?.reroute();
        if (pages.kind === 'by-tag') this.#tell(port);
      },
    });
    this.#peers = peers;
    const source = pages.kind === 'peer' ? this.#connect(pages, port) : undefined;
    this.#source = source;
    this.connected = source?.connected ?? Promise.resolve();
    if (peers === undefined) {
      this.demand = new SourceDemand(source);
      return;
    }
    this.#router = new DemandRouter({
      source,
      peers,
      named: this.named!, // there are no peers without
      tags: tagsOf(pages.named!),
      serving,
      onPage: (frame, page, offset) => this.faults?.answer(frame, page, offset, false, 'peer'),
      onNobody: (frame) => this.faults?.unheld(frame),
    });
    this.demand = this.#router;
    if (source === undefined) {
      this.#counting = setInterval(() => this.#count(), COUNT_MS).unref();
      this.#withoutSource();
    } else {
      source.alsoCount(() => peers.bytes);
    }
  }

  close(): void {
    clearInterval(this.#rerouting);
    clearInterval(this.#counting);
    this.#router?.close();
    this.named?.close?.();
    // first, so that its bytes are counted with the others'
    this.#peers?.close();
    this.#source?.close();
    if (this.#source === undefined) this.#count();
  }

  #connect(pages: PeerPagesSpec, port: ServicePort): PeerPages {
    return new PeerPages(pages, 'demand', this.#serving, port, {
      onPage: (frame, buffer, offset, zero) => this.faults?.answer(frame, buffer, offset, zero),
      onPageError: (frame, error) => this.faults?.refused(frame, error),
      onConnected: () => {
        clearInterval(this.#rerouting);
        this.faults?.connected();
      },
      onDisconnected: () => this.#withoutSource(),
    });
  }

  #withoutSource(): void {
    if (this.#peers === undefined) return;
    this.#peers.start();
    this.faults?.reroute();
    clearInterval(this.#rerouting);
    // peers that come meanwhile, and pages that they get
    this.#rerouting = setInterval(() => this.faults?.reroute(), REROUTE_MS);
  }

  /** Without a source, whether anybody is there at all is what people want to know. */
  #tell(port: ServicePort): void {
    const up = this.#peers?.all.some((peer) => peer.isUp) === true;
    if (up === this.#up) return;
    // the first time is no news
    if (this.#up !== undefined) {
      const error = new PagetideError('PT_PEER_UNREACHABLE', 'no host that may have the pages can be reached');
      port.tell(up ? { event: 'connected' } : { event: 'disconnected', error: error.toJSON() });
    }
    this.#up = up;
  }

  #count(): void {
    const { received, sent } = this.#peers?.bytes ?? { received: 0, sent: 0 };
    this.#serving.setTraffic('demand', received, sent);
  }
}

/** Of a guest that has no peers. */
class SourceDemand implements DemandPages {
  private readonly pages: PeerPages | undefined;

  constructor(pages: PeerPages | undefined) {
    this.pages = pages;
  }
  request(frame: number): boolean {
    return this.pages?.requestPage(frame) ?? false;
  }
  get directFd(): number {
    return this.pages?.directFd ?? -1;
  }
  readDirect(): boolean {
    return this.pages?.readDirect() ?? true;
  }
}
