/**
 * The main thread's handle on what serves one guest: a fault worker and a fill worker over one session.
 *
 *   connecting ──ready──► idle ──serve()──► serving ──fill()──► filling ──nothing outstanding──► filled
 *        ╲              ▲  │ ╲                 ╲                    ╲                               │
 *         ╲     round() ╰──╯  ╲                 ╲                    ╲                              │
 *          ╰───────────────────┴─────────────────┴── stop() / guest gone / failure ──► ended ◄─────╯
 *
 * Rounds copy into the guest's files, by a session of their own (`copy`), before it runs here; see fill-service.ts. A guest that is
 * copied whole needs no other: then there is no fault worker, and nothing is ever served.
 */
import { EventEmitter } from 'node:events';
import { MessageChannel, type MessagePort } from 'node:worker_threads';
import { asPagetideError, errorFromJson, PagetideError, type ErrorCode } from '../errors.ts';
import { summarize } from './histogram.ts';
import { native, type FaultSession, type SessionCounts } from './native.ts';
import type { FillRound } from './fill-service.ts';
import { Serving, type DeltaBytes } from './serving.ts';
import type { FromWorker, PagesSpec, ServiceEnd, ServiceTask, ToWorker } from './worker-messages.ts';
import type { Place } from './worker-pools.ts';

export interface GuestServiceOptions {
  /** With the guest's userfaultfd; undefined: it is only copied. One of the two is there. */
  session?: FaultSession | undefined;
  /** Over its memory files; undefined: no rounds come. */
  copy?: FaultSession | undefined;
  place: Place;
  pages: PagesSpec;
  /** Look for the next fault this long before sleeping, microseconds. */
  spinMicros: number;
  fill: { batchFrames: number; window: number; bandwidth: number; deltas?: boolean };
}

export interface GuestServiceEvents {
  /** Nothing is outstanding any more. */
  filled: [];
  /** The guest's process is gone. */
  gone: [];
  /** A page that nobody here installed: the guest must not run on. */
  foreign: [frame: number];
  /** Something is wrong that may mend itself; told for operators. */
  note: [text: string, code?: ErrorCode];
  /** Another host is not asked for pages of this guest any more. */
  leftOut: [url: string, error: PagetideError];
  /** A page of this frame came that is not the one of its tag; told with a `note`. */
  mismatch: [frame: number];
  /** A worker failed for good. */
  failed: [error: PagetideError];
}

export interface ServiceFigures {
  counts: SessionCounts;
  faults: { count: number; p50Us: number; p99Us: number; maxUs: number };
  /** Bytes at the sockets of both page connections, both directions. */
  wireBytes: number;
  /** Page payload as it came, and before compression. */
  pageBytes: number;
  rawBytes: number;
  /** Of these, what was asked for as deltas; undefined: nothing. */
  deltas: DeltaBytes | undefined;
  /** Frames that got content from the source. */
  installed: number;
  /** Frames that got it from the shared-page cache, from guests that run here, and with another frame of the same page. */
  cached: number;
  resident: number;
  repeated: number;
  /** Frames that got it from other hosts than the source. */
  fromPeers: number;
  /** Pages that came and were not those of their tags, of the source and of others. */
  mismatches: number;
  peerMismatches: number;
}

interface Worker {
  port: MessagePort;
  ready: Promise<void>;
  ended: Promise<ServiceEnd>;
}

export class GuestService extends EventEmitter<GuestServiceEvents> {
  readonly serving = new Serving();
  private readonly served: FaultSession | undefined;
  private readonly copy: FaultSession | undefined;
  private readonly place: Place;
  private readonly fault: Worker | undefined;
  private readonly fillWorker: Worker;
  /** The round that is under way. */
  private underWay: { resolve: (copied: boolean) => void; reject: (error: PagetideError) => void } | undefined;
  private stopping = false;
  private isServing = false;

  /** Starts both workers, which connect; nothing is served before {@link serve}. Takes the place over. */
  constructor(options: GuestServiceOptions) {
    super();
    this.served = options.session;
    this.copy = options.copy;
    this.place = options.place;
    if (options.session !== undefined) this.fault = this.start(options, (task) => options.place.runFault(task));
    this.fillWorker = this.start(options, (task) => options.place.runFill(task));
    void this.watch();
  }

  /** Resolves when the source answers on both connections. Rejects when a worker failed before. */
  async ready(): Promise<void> {
    await Promise.all([this.fault?.ready, this.fillWorker.ready]);
  }

  /** The session with the userfaultfd. @throws PagetideError `PT_INTERNAL` where the guest is only copied */
  get session(): FaultSession {
    if (this.served === undefined) throw new PagetideError('PT_INTERNAL', 'there is no userfaultfd');
    return this.served;
  }

  /**
   * One round of copying: what the files lack comes, see {@link FillRound}. One at a time, and none once faults are served.
   * @returns false when it was halted
   * @throws PagetideError why it failed; another may be tried. `PT_CANCELLED` when this was stopped, or its worker has ended
   */
  async round(kind: FillRound): Promise<boolean> {
    if (this.copy === undefined || this.isServing || this.underWay !== undefined)
      throw new PagetideError('PT_INTERNAL', 'no round can be copied now');
    if (this.stopping) throw new PagetideError('PT_CANCELLED', 'the round was ended');
    const round = new Promise<boolean>((resolve, reject) => (this.underWay = { resolve, reject }));
    this.fillWorker.ended.then(
      () => this.endRound()?.reject(new PagetideError('PT_CANCELLED', 'the round was ended')),
      (error: unknown) => this.endRound()?.reject(asPagetideError(error)),
    );
    this.fillWorker.port.postMessage({ do: 'round', kind } satisfies ToWorker);
    return round;
  }

  /** Ends the round that is under way, if there is one: its {@link round} resolves to false. */
  halt(): void {
    if (this.underWay !== undefined) this.fillWorker.port.postMessage({ do: 'halt' } satisfies ToWorker);
  }

  /** From now on the fill asks for so many bytes of pages a second, at most; 0: no limit. */
  limit(bandwidth: number): void {
    this.fillWorker.port.postMessage({ do: 'limit', bandwidth } satisfies ToWorker);
  }

  private endRound(): typeof this.underWay {
    const round = this.underWay;
    this.underWay = undefined;
    return round;
  }

  /** Serves faults from now on. */
  serve(): void {
    if (this.fault === undefined) throw new PagetideError('PT_INTERNAL', 'there is no userfaultfd');
    this.isServing = true;
    this.fault.port.postMessage({ do: 'start' } satisfies ToWorker);
  }

  /** Fills behind the faults from now on; ends in `filled`. */
  fill(): void {
    this.fillWorker.port.postMessage({ do: 'start' } satisfies ToWorker);
  }

  /** Bytes at the sockets of both page connections so far. */
  wireBytes(): number {
    const demand = this.serving.traffic('demand');
    const fill = this.serving.traffic('fill');
    return demand.in + demand.out + fill.in + fill.out;
  }

  figures(): ServiceFigures {
    const { histogram, maxUs } = this.serving;
    const demand = this.serving.traffic('demand');
    const fill = this.serving.traffic('fill');
    return {
      counts: this.table.counts(),
      faults: { ...summarize(histogram, maxUs), maxUs },
      wireBytes: this.wireBytes(),
      pageBytes: demand.pages + fill.pages,
      rawBytes: demand.raw + fill.raw,
      deltas: this.serving.deltas,
      installed: demand.installed + fill.installed,
      cached: this.serving.cached,
      resident: this.serving.resident,
      repeated: this.serving.repeated,
      fromPeers: this.serving.fromPeers,
      mismatches: this.serving.mismatches,
      peerMismatches: this.serving.peerMismatches,
    };
  }

  /** What the page table holds; as it was, once this is stopped. */
  counts(): SessionCounts {
    return this.lastFigures?.counts ?? this.table.counts();
  }

  /** Of which the page table tells what is here: the files until faults are served. */
  get table(): FaultSession {
    const { served, copy } = this;
    return (this.isServing ? (served ?? copy) : (copy ?? served))!; // one of them is there
  }

  /** The figures as they were when it was stopped. */
  lastFigures: ServiceFigures | undefined;
  private stopped: Promise<void> | undefined;

  /** Stops both workers and waits until they have let go. Registered memory stays registered. Idempotent. */
  stop(): Promise<void> {
    return (this.stopped ??= this.end());
  }

  private async end(): Promise<void> {
    this.stopping = true;
    this.served?.stop();
    for (const worker of [this.fault, this.fillWorker]) worker?.port.postMessage({ do: 'stop' } satisfies ToWorker);
    await Promise.allSettled([this.fault?.ended, this.fillWorker.ended]);
    this.lastFigures = this.figures();
    for (const session of [this.served, this.copy]) {
      if (session === undefined) continue;
      native().destroySession(session.id);
      session.close();
    }
    this.place.free();
  }

  private start(options: GuestServiceOptions, run: (task: ServiceTask) => Promise<ServiceEnd>): Worker {
    const { port1, port2 } = new MessageChannel();
    const { session, copy } = options;
    const task: ServiceTask = {
      ...(session === undefined ? {} : { session: session.id }),
      ...(copy === undefined ? {} : { copy: copy.id }),
      serving: this.serving.buffer,
      pages: options.pages,
      port: port2,
      spinMicros: options.spinMicros,
      ...options.fill,
    };
    const ended = run(task).finally(() => port1.close());
    const ready = new Promise<void>((resolve, reject) => {
      port1.on('message', (message: FromWorker) => {
        if (message.event === 'ready') resolve();
        else this.take(message);
      });
      ended.then(
        ({ end }) => reject(new PagetideError('PT_CANCELLED', `it ended (${end}) before it was ready`)),
        reject,
      );
    });
    ready.catch(() => undefined); // told through `failed` too
    return { port: port1, ready, ended };
  }

  private take(message: FromWorker): void {
    switch (message.event) {
      case 'foreign':
        this.emit('foreign', message.frame);
        return;
      case 'trouble':
        this.emit('note', errorFromJson(message.error).message, message.error.code);
        if (message.error.code === 'PT_PAGE_MISMATCH') this.emit('mismatch', message.frame);
        return;
      case 'disconnected':
        this.emit('note', `the connection to the source is being made again: ${message.error.message}`);
        return;
      case 'connected':
        this.emit('note', 'connected to the source');
        return;
      case 'left-out':
        this.emit('leftOut', message.url, errorFromJson(message.error));
        return;
      case 'round':
        if (message.error === undefined) this.endRound()?.resolve(message.copied);
        else this.endRound()?.reject(errorFromJson(message.error));
        return;
      case 'ready':
        return;
    }
  }

  private async watch(): Promise<void> {
    let gone = false;
    const one = async (ended: Promise<ServiceEnd>): Promise<void> => {
      try {
        const { end } = await ended;
        if (this.stopping) return;
        if (end === 'filled') this.emit('filled');
        else if (end === 'gone' && !gone) {
          gone = true;
          this.emit('gone');
        }
      } catch (error) {
        if (!this.stopping) this.emit('failed', asPagetideError(error));
      }
    };
    await Promise.all([this.fault && one(this.fault.ended), one(this.fillWorker.ended)]);
  }
}
