/**
 * Background streams at the host that has the pages: all of them together are sent at one pace, after everything else.
 *
 *   request ─► stands back? ─► batch workers, when they are idle ─► finished ─► pace: how much now ─► socket ─► acknowledged: seen
 *                   └──────────────────── wait ────────────────────────────────────┘
 *
 * When written bytes cross the interface is the kernel's business: a full window of the other end holds them up, and lets go of many at once. So
 * the pace counts them until the other end has acknowledged them (src/distribution/arrival-window.ts has the argument).
 */
import type { Socket } from 'node:net';
import { Pace } from '../distribution/pace.ts';
import type { Rates } from '../distribution/token-bucket.ts';
import { Carried, wireCost } from '../distribution/wire-cost.ts';
import { native } from '../memory/native.ts';
import { descriptorOf } from './direct-io.ts';

/** Lower effort, RFC 8622: any other traffic goes first where the network knows it. */
const DSCP_LE = 1;
/** Of the peak, what this end sends; the rest is for requests, which others send when they like. */
const SHARE = 15 / 16;
/** How often it is looked what was acknowledged, milliseconds. */
const LOOK_MS = 2;
/** The smallest piece of use, bytes. */
const LEAST_PIECE = 1024;

/** Marks what a connected TCP socket sends. One that gives no descriptor stays as it is. */
export function markBackground(socket: Socket): void {
  const fd = socket.destroyed ? -1 : descriptorOf(socket);
  if (fd < 0) return;
  try {
    native().setTrafficClass(fd, DSCP_LE);
  } catch {
    // cut just now
  }
}

/** A stream, as its pace sees it. */
export interface PacedStream {
  readonly pacedSocket: Socket;
  /** May ask again. */
  goOn(): void;
}

export class BackgroundPace {
  readonly #pace: Pace;
  /** Bytes on the wire that each stream was granted, and of which it isn't known whether they have crossed. */
  readonly #sent = new Map<PacedStream, number>();
  /** What each stream's connection has carried. */
  readonly #carried = new WeakMap<PacedStream, Carried>();
  readonly #waiting = new Set<PacedStream>();
  #goOn: (() => void) | undefined;
  #timer: NodeJS.Timeout | undefined;

  /** @throws PagetideError `PT_BAD_ARGUMENT`: rates that are none */
  constructor(rates: Rates) {
    this.#pace = new Pace(rates, () => performance.now(), SHARE);
  }

  /** @throws PagetideError `PT_BAD_ARGUMENT` */
  setRates(rates: Rates): void {
    this.#pace.setRates(rates);
    this.#wake();
  }

  /** Whether a migration runs on this host. */
  standBack(stands: boolean): void {
    if (stands) {
      this.#goOn ??= this.#pace.standBack();
      return;
    }
    this.#goOn?.();
    this.#goOn = undefined;
    this.#wake();
  }
  get standsBack(): boolean {
    return this.#goOn !== undefined;
  }

  /** Calls `goOn` of the stream once it is worth asking again. */
  wait(stream: PacedStream): void {
    this.#waiting.add(stream);
    this.#schedule();
  }

  /** How many of `bytes` the stream may write now, and then must; 0: none, and its `goOn` follows. */
  take(stream: PacedStream, bytes: number): number {
    this.#look();
    const piece = Math.min(bytes, Math.max(LEAST_PIECE, Math.floor(this.#pace.windowBytes / 5)));
    const cost = wireCost(piece, 'encrypted' in stream.pacedSocket);
    if (this.#pace.ask(cost) > 0) {
      this.wait(stream);
      return 0;
    }
    this.#sent.set(stream, (this.#sent.get(stream) ?? 0) + cost);
    this.#schedule();
    return piece;
  }

  /** What the stream got or sent without asking: a request, or a sign of life. */
  note(stream: PacedStream, bytes: number): void {
    this.#pace.note(wireCost(bytes, 'encrypted' in stream.pacedSocket));
  }

  /** The stream is gone. */
  gone(stream: PacedStream): void {
    this.#waiting.delete(stream);
    this.#pace.lost(this.#sent.get(stream) ?? 0);
    this.#sent.delete(stream);
  }

  close(): void {
    clearTimeout(this.#timer);
    this.#timer = undefined;
    this.#waiting.clear();
    this.#sent.clear();
  }

  #schedule(): void {
    if (this.#timer !== undefined || (this.#sent.size === 0 && (this.#waiting.size === 0 || this.standsBack))) return;
    this.#timer = setTimeout(() => {
      this.#timer = undefined;
      this.#look();
      if (!this.standsBack) this.#wake();
      this.#schedule();
    }, LOOK_MS);
    this.#timer.unref();
  }

  /** All that wait, in the order in which they began to: who gets something asks again behind the others. */
  #wake(): void {
    const waiting = [...this.#waiting];
    this.#waiting.clear();
    for (const stream of waiting) stream.goOn();
  }

  /**
   * What has been acknowledged is seen. How much is not acknowledged is asked first: what is acknowledged between the two questions counts twice
   * then, never not at all.
   */
  #look(): void {
    for (const [stream, granted] of this.#sent) {
      const { pacedSocket: socket } = stream;
      const fd = socket.destroyed ? -1 : descriptorOf(socket);
      const queued = (fd < 0 ? 0 : Math.max(0, native().unacknowledged(fd))) + socket.writableLength;
      const left = queued === 0 ? 0 : Math.min(granted, wireCost(queued, 'encrypted' in socket));
      if (left === granted) continue;
      this.#pace.acknowledged(granted - left, this.#carriedBy(stream).since(fd));
      if (left === 0) this.#sent.delete(stream);
      else this.#sent.set(stream, left);
    }
  }

  #carriedBy(stream: PacedStream): Carried {
    let carried = this.#carried.get(stream);
    if (carried === undefined) this.#carried.set(stream, (carried = new Carried()));
    return carried;
  }
}
