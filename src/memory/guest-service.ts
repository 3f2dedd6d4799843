/**
 * The main thread's handle on what serves one guest: a fault worker and a fill worker over one session.
 *
 *   connecting ──ready──► idle ──serve()──► serving ──fill()──► filling ──nothing outstanding──► filled
 *        ╲                  ╲                  ╲                    ╲                               │
 *         ╰──────────────────┴──────────────────┴── stop() / guest gone / failure ──► ended ◄───────╯
 */
import { EventEmitter } from 'node:events';
import { MessageChannel, type MessagePort } from 'node:worker_threads';
import { asPagetideError, errorFromJson, PagetideError, type ErrorCode } from '../errors.ts';
import { summarize } from './histogram.ts';
import { native, type FaultSession, type SessionCounts } from './native.ts';
import { Serving } from './serving.ts';
import type { FromWorker, PagesSpec, ServiceEnd, ServiceTask, ToWorker } from './worker-messages.ts';
import type { Place } from './worker-pools.ts';

export interface GuestServiceOptions {
  session: FaultSession;
  place: Place;
  pages: PagesSpec;
  /** Look for the next fault this long before sleeping, microseconds. */
  spinMicros: number;
  fill: { batchFrames: number; window: number; bandwidth: number };
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
  readonly session: FaultSession;
  readonly serving = new Serving();
  private readonly place: Place;
  private readonly fault: Worker;
  private readonly fillWorker: Worker;
  private stopping = false;

  /** Starts both workers, which connect; nothing is served before {@link serve}. Takes the place over. */
  constructor(options: GuestServiceOptions) {
    super();
    this.session = options.session;
    this.place = options.place;
    this.fault = this.start(options, (task) => options.place.runFault(task));
    this.fillWorker = this.start(options, (task) => options.place.runFill(task));
    void this.watch();
  }

  /** Resolves when the source answers on both connections. Rejects when a worker failed before. */
  async ready(): Promise<void> {
    await Promise.all([this.fault.ready, this.fillWorker.ready]);
  }

  /** Serves faults from now on. */
  serve(): void {
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
      counts: this.session.counts(),
      faults: { ...summarize(histogram, maxUs), maxUs },
      wireBytes: this.wireBytes(),
      pageBytes: demand.pages + fill.pages,
      rawBytes: demand.raw + fill.raw,
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
    return this.lastFigures?.counts ?? this.session.counts();
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
    this.session.stop();
    for (const worker of [this.fault, this.fillWorker]) worker.port.postMessage({ do: 'stop' } satisfies ToWorker);
    await Promise.allSettled([this.fault.ended, this.fillWorker.ended]);
    this.lastFigures = this.figures();
    native().destroySession(this.session.id);
    this.session.close();
    this.place.free();
  }

  private start(options: GuestServiceOptions, run: (task: ServiceTask) => Promise<ServiceEnd>): Worker {
    const { port1, port2 } = new MessageChannel();
    const task: ServiceTask = {
      session: options.session.id,
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
    await Promise.all([one(this.fault.ended), one(this.fillWorker.ended)]);
  }
}
