/**
 * Keeps what crosses a network interface below the peak in every window of 100 ms, although nobody tells when a byte crosses it: only when it
 * was allowed to (granted), and when it surely had (seen: read by who asked for it, or acknowledged to who sent it).
 *
 *   granted ───────────── crosses, some time ───────────── seen ───── 100 ms ─────► forgotten
 *      │◄───────────────────────── counts ────────────────────────────────────────►│
 *
 * A grant of g bytes is given only while what counts, and g, are not above what a window may take.
 *
 * Why no closed window [s, s + 100] has more than that: let B be the bytes that cross in it, and G the last grant that any of them is of. Bytes of G
 * cross in the window, so G was given at s + 100 or before. All other bytes of B were granted before G. At G each of them counted: either it had not been
 * seen yet; or it had, no sooner than it crossed, which was at s or later, so not more than 100 ms before G. So when G was given everything in B
 * counted or was G's own, and that was not above the limit. The delay between grant, crossing and sight may be anything, and differ from byte to byte.
 *
 * The limit is the one at G. So after a change of the peak, a window that bytes granted before it cross keeps to the higher of the two.
 *
 * A grant is for the most that its bytes may be. Where it is known what a connection has really carried, a grant's place is taken, once all of it has
 * crossed, by what was carried since that was last looked at ({@link ArrivalWindow.crossed}). Each byte of the grant is in that, or was in an
 * earlier look: at that time it had crossed, and from then on it counted as seen, beside its grant.
 *
 * Not bytes of a grant, but caused by them, are acknowledgements that TCP delays, until 200 ms after the bytes were read: for one a grant {@link PACKET}
 * bytes count so much longer. A grant whose connection is gone counts for another 100 ms: what was on its way may still come.
 */
import { PACKET } from './wire-cost.ts';
import { WINDOW_MS } from './token-bucket.ts';

/** The longest that Linux delays an acknowledgement, milliseconds. */
const DELAYED_MS = 200;
/** How long bytes may come after the connection has ended here, milliseconds. */
const STRAY_MS = 100;

export class ArrivalWindow {
  readonly #nowMs: () => number;
  #outstanding = 0;
  /** Bytes by the whole millisecond, rounded up, in which they are forgotten. */
  readonly #seen = new Map<number, number>();
  #inWindow = 0;
  #atMs = -Infinity;

  /** @param nowMs a monotonic clock, milliseconds */
  constructor(nowMs: () => number) {
    this.#nowMs = nowMs;
  }

  /** Bytes granted and not seen. */
  get outstanding(): number {
    return this.#outstanding;
  }

  /** Bytes that count now. */
  get counted(): number {
    this.#forget();
    return this.#outstanding + this.#inWindow;
  }

  /** Grants `bytes` if a window may take so much. @param limit bytes of a window */
  grant(bytes: number, limit: number): boolean {
    if (this.counted + bytes > limit) return false;
    this.#outstanding += bytes;
    return true;
  }

  /** Bytes of a grant have crossed by now. @param delayed where their acknowledgement may still be to come */
  seen(bytes: number, delayed: boolean): void {
    this.#outstanding -= bytes;
    this.#remember(bytes, 0);
    if (delayed) this.#remember(PACKET, DELAYED_MS);
  }

  /** All of a grant has crossed by now; `carried`: what its connection has carried since it was last looked at, whatever that was. */
  crossed(granted: number, carried: number, delayed: boolean): void {
    this.#outstanding -= granted;
    this.#remember(carried, 0);
    if (delayed) this.#remember(PACKET, DELAYED_MS);
  }

  /** Milliseconds until `bytes` may be granted, if nothing more is granted or seen; Infinity: not before something is seen. */
  waitMs(bytes: number, limit: number): number {
    let over = this.counted + bytes - limit;
    if (over <= 0) return 0;
    if (this.#outstanding + bytes > limit) return Infinity;
    for (const [until, seen] of [...this.#seen].sort(([a], [b]) => a - b)) {
      over -= seen;
      if (over <= 0) return Math.max(0, until - this.#now());
    }
    return Infinity;
  }

  /** Bytes of a grant that will never cross: there was less to send. */
  spared(bytes: number): void {
    this.#outstanding -= bytes;
  }

  /** Nobody will see any more whether these crossed. */
  lost(bytes: number): void {
    this.#outstanding -= bytes;
    this.#remember(bytes, STRAY_MS);
  }

  /** Bytes that crossed without a grant. */
  note(bytes: number): void {
    this.#remember(bytes, 0);
  }

  #remember(bytes: number, laterMs: number): void {
    if (bytes === 0) return;
    const until = Math.floor(this.#now() + WINDOW_MS + laterMs) + 1;
    this.#seen.set(until, (this.#seen.get(until) ?? 0) + bytes);
    this.#inWindow += bytes;
  }

  #forget(): void {
    const now = this.#now();
    for (const [until, bytes] of this.#seen) {
      if (until > now) continue;
      this.#inWindow -= bytes;
      this.#seen.delete(until);
    }
  }

  /** One that goes back stands still. */
  #now(): number {
    return (this.#atMs = Math.max(this.#atMs, this.#nowMs()));
  }
}
