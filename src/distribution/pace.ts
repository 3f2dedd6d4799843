/**
 * When background traffic may go, at one end of it: the average by a {@link TokenBucket}, the peak by an {@link ArrivalWindow}. All bytes here
 * are bytes on the wire (wire-cost.ts).
 */
import { ArrivalWindow } from './arrival-window.ts';
import { TokenBucket, WINDOW_MS, type Rates } from './token-bucket.ts';
import { checkRates } from './wire-cost.ts';

/** So that of the bucket's two bounds only the average matters: it counts grants, not bytes on the wire. */
const NO_PEAK = 1e15;
/** Longest wait that is told, milliseconds: what is outstanding may be seen sooner than what was seen is forgotten. */
const LONGEST_MS = 10;
/** Of the average, how many milliseconds' worth is saved up: what a busy machine or an empty queue held up is made up for, within the peak. */
const SAVED_MS = 1000;

export class Pace {
  readonly #window: ArrivalWindow;
  readonly #bucket: TokenBucket;
  readonly #nowMs: () => number;
  readonly #beginMs: number;
  readonly #share: number;
  #rates: Rates;
  /** Bytes that the bucket gave and that were not used yet. */
  #credit = 0;

  /**
   * @param nowMs a monotonic clock, milliseconds
   * @param share of the peak that this end gives away
   * @throws PagetideError `PT_BAD_ARGUMENT`: see {@link checkRates}
   */
  constructor(rates: Rates, nowMs: () => number, share = 1) {
    this.#rates = checkRates(rates);
    this.#nowMs = nowMs;
    this.#share = share;
    this.#window = new ArrivalWindow(nowMs);
    this.#bucket = new TokenBucket({ average: rates.average, peak: NO_PEAK }, nowMs, SAVED_MS);
    // another thread may have died with bytes on their way
    this.#beginMs = nowMs() + WINDOW_MS;
  }

  get rates(): Rates {
    return this.#rates;
  }

  /** Holds from the next grant on. @throws PagetideError `PT_BAD_ARGUMENT`: see {@link checkRates} */
  setRates(rates: Rates): void {
    this.#rates = checkRates(rates);
    this.#bucket.setRates({ average: rates.average, peak: NO_PEAK });
    this.#credit = Math.min(this.#credit, this.#mostCredit);
  }

  get windowBytes(): number {
    return Math.floor((this.#rates.peak * this.#share * WINDOW_MS) / 1000);
  }

  standBack(): () => void {
    return this.#bucket.standBack();
  }
  get standsBack(): boolean {
    return this.#bucket.standsBack;
  }

  /**
   * Bytes that may cross now, all or none; they count as outstanding then, until {@link came}, {@link acknowledged} or {@link lost}.
   * @returns 0: they may; else milliseconds until it is worth asking again; Infinity: it stands back
   */
  ask(bytes: number): number {
    const now = this.#nowMs();
    if (this.standsBack) return Infinity;
    if (now < this.#beginMs) return this.#beginMs - now;
    // a piece at a time: the bucket may never hold so much at once
    if (this.#credit < bytes) {
      const { bytes: given, againMs } = this.#bucket.take(Math.ceil(bytes - this.#credit));
      this.#credit += given;
      if (this.#credit < bytes) return Math.min(againMs, LONGEST_MS);
    }
    if (!this.#window.grant(bytes, this.windowBytes))
      // time goes on between the two: never 0, which would say that they may
      return Math.min(Math.max(0.5, this.#window.waitMs(bytes, this.windowBytes)), LONGEST_MS);
    this.#credit -= bytes;
    return 0;
  }

  /** So many bytes of what was granted were acknowledged by the other end. @param carried by the connection since the last look, where it is known */
  acknowledged(granted: number, carried = granted): void {
    this.#window.crossed(granted, carried, false);
    this.#giveBack(granted - carried);
  }

  /** What has been asked for has come. @param carried by the connection since the last look, or the most that the `granted` can have been */
  came(granted: number, carried = granted): void {
    this.#window.crossed(granted, carried, true);
    this.#giveBack(granted - carried);
  }

  /** Their connection is gone. */
  lost(granted: number): void {
    this.#window.lost(granted);
  }

  /** Bytes that cross without a grant: they leave less room for others. */
  note(bytes: number): void {
    this.#window.note(bytes);
  }

  /** Less: more crossed than was granted, and the average makes up for it. */
  #giveBack(bytes: number): void {
    this.#credit = Math.min(this.#credit + bytes, Math.max(this.#credit, this.#mostCredit));
  }

  /** A tenth of a second's worth and what the largest request takes; so much may go beyond the bucket's own average, once. */
  get #mostCredit(): number {
    return this.#rates.average / 10 + this.windowBytes / 4;
  }
}
