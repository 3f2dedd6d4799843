/** The fill worker's side of pages that lie elsewhere: the fill connection to the source, and the other hosts that may have them. */
import { AsidePages } from './aside-pages.ts';
import { DeltaPages } from './delta-pages.ts';
import type { BatchPages, FillRound, FillService } from './fill-service.ts';
import { DELTA_PAGE } from '../transport/wire.ts';
import type { FaultSession } from './native.ts';
import { openNamedPages, tagsOf, type NamedPages } from './named-pages.ts';
import { PeerFill, type FillSide } from './peer-fill.ts';
import { PeerPages } from './peer-pages.ts';
import { openPeers, type Peers } from './peers.ts';
import type { ServicePort } from './service-port.ts';
import type { Serving } from './serving.ts';
import type { PeerPagesSpec, TaggedPagesSpec } from './worker-messages.ts';

export interface RemoteFillOptions {
  pages: PeerPagesSpec | TaggedPagesSpec;
  session: FaultSession;
  /** Over the guest's memory files, where rounds come; with `deltas`, pages that changed are asked for as such then. */
  copy: FaultSession | undefined;
  deltas: boolean;
  serving: Serving;
  port: ServicePort;
}

/** How often the bytes of peers are counted where there is no source, milliseconds. */
const COUNT_MS = 100;

export class RemoteFill {
  readonly named: NamedPages | undefined;
  /** What the fill service asks the source with. */
  readonly source: BatchPages | undefined;
  /** Makes what it asks the others with; undefined where there are none. */
  readonly peers: ((side: FillSide) => PeerFill) | undefined;
  /** Resolves when the source answers; at once where there is none. Rejects as {@link PeerPages.connected}. */
  readonly connected: Promise<void>;
  /** Gets what comes. */
  #fill: FillService | undefined;
  /** Of it. */
  #round: FillRound | undefined;
  readonly #deltas: DeltaPages | undefined;
  /** What rounds bring too early; undefined where nothing is made of it. */
  readonly aside: AsidePages | undefined;
  readonly #serving: Serving;
  readonly #pages: PeerPages | undefined;
  readonly #peers: Peers | undefined;
  /** Runs of the batches that are asked for, by stream. */
  readonly #asked = new Map<number, Uint32Array>();
  #counting: NodeJS.Timeout | undefined;

  constructor({ pages: spec, session, copy, deltas, serving, port }: RemoteFillOptions) {
    this.#serving = serving;
    if (spec.named !== undefined) this.named = openNamedPages(spec.named, session.pageSize, serving, 'fill');
    const own = spec.named?.own;
    // before there is a connection: its files may be gone
    if (deltas && copy !== undefined && own !== undefined && copy.pageSize === DELTA_PAGE) {
      this.aside = new AsidePages(copy.pageSize);
      this.#deltas = new DeltaPages(own, copy, this.aside, serving);
    }
    const pages = spec.kind === 'peer' ? this.#connect(spec, port) : undefined;
    this.#pages = pages;
    this.connected = pages?.connected ?? Promise.resolve();
    if (pages !== undefined) {
      this.source = {
        request: (runs, whole = false) => {
          const ask = this.#round === undefined || whole ? undefined : this.#deltas?.ask(runs);
          const stream = ask === undefined ? pages.requestBatch(runs) : pages.requestDeltas(ask.request, ask.measure);
          if (stream === 0) return false;
          this.#asked.set(stream, runs);
          return true;
        },
      };
    }
    let peerFill: PeerFill | undefined;
    const peers = openPeers(spec, session.pageSize, {
      sourceMs: () => pages?.roundTripMs,
      onLeftOut: (url, error) => port.tell({ event: 'left-out', url, error: error.toJSON() }),
      onChange: () => peerFill?.changed(),
    });
    this.#peers = peers;
    if (peers === undefined) return;
    if (pages === undefined) this.#counting = setInterval(() => this.#count(), COUNT_MS).unref();
    else pages.alsoCount(() => peers.bytes);
    this.peers = (side) =>
      (peerFill = new PeerFill({
        peers,
        named: this.named!, // there are no peers without
        tags: tagsOf(spec.named!),
        frames: session.frames,
        pageSize: session.pageSize,
        serving,
        side,
        isSourceUp: () => pages?.roundTripMs !== undefined,
      }));
  }

  /**
   * From now on `fill` gets what comes; before it asks for anything. What was asked for by another is nobody's any more: it has given
   * those frames back, and they may have other tags now, or be asked for by the next.
   * @param round where it is one over the memory files
   */
  feed(fill: FillService | undefined, round?: FillRound): void {
    this.#fill = fill;
    this.#round = round;
    if (round !== undefined) this.#deltas?.begin(round);
    this.#asked.clear();
  }

  /** Brings the count of bytes up to date. */
  count(): void {
    if (this.#pages === undefined) this.#count();
    else this.#pages.countNow();
  }

  close(): void {
    clearInterval(this.#counting);
    this.named?.close?.();
    this.#deltas?.close();
    // first, so that its bytes are counted with the others'
    this.#peers?.close();
    this.#pages?.close();
    if (this.#pages === undefined) this.#count();
  }

  #connect(spec: PeerPagesSpec, port: ServicePort): PeerPages {
    const asked = this.#asked;
    return new PeerPages(spec, 'fill', this.#serving, port, {
      onBatch: ({ zero, pages, bodyBytes: wireBytes }, stream) => {
        const runs = asked.get(stream);
        asked.delete(stream);
        if (runs === undefined) return;
        this.#outdated(runs);
        this.#fill?.answer(runs, { runs, zero, pages, wireBytes, from: 'source' });
      },
      onDeltas: (deltas, stream) => {
        const runs = asked.get(stream);
        if (runs === undefined || this.#deltas === undefined) return;
        // throws where they don't fit: that ends the connection, by which what was asked for is missing again
        const made = this.#deltas.make(runs, deltas);
        asked.delete(stream);
        this.#outdated(runs);
        const zero = new Uint8Array((deltas.total + 7) >> 3);
        const batch = { runs, zero, pages: made, wireBytes: deltas.bodyBytes, from: 'source', ofDeltas: true } as const;
        this.#fill?.answer(runs, batch);
      },
      onBatchError: (stream, _runs, error) => {
        const runs = asked.get(stream);
        if (!asked.delete(stream) || runs === undefined) return;
        this.#fill?.refused(runs);
        port.tell({ event: 'trouble', frame: runs[0] ?? 0, error: error.toJSON() });
      },
      onConnected: () => this.#fill?.connected(),
      onDisconnected: () => {
        asked.clear();
        this.#fill?.disconnected();
      },
    });
  }

  /** Newer pages of these frames have come: those that are still too new are set aside again. */
  #outdated(runs: Uint32Array): void {
    if (this.aside === undefined || this.aside.size === 0) return;
    for (let i = 0; i < runs.length; i += 2)
      for (let frame = runs[i]!; frame < runs[i]! + runs[i + 1]!; frame++) this.aside.drop(frame);
  }

  #count(): void {
    const { received, sent } = this.#peers?.bytes ?? { received: 0, sent: 0 };
    this.#serving.setTraffic('fill', received, sent);
  }
}
