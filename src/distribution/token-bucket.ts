/**
 * How many bytes may go now, so that two bounds hold on the clock that is given:
 *
 *   average   in any interval of T ms at most average × T / 1000 bytes, and a tenth of a second's worth that was saved up;
 *             (unless told otherwise); since the beginning not even that, as the bucket begins empty
 *   peak      in any closed interval of 100 ms at most peak / 10 bytes
 *
 * A bucket alone can't keep the peak: one that holds b bytes lets b + 100 ms of its rate through. So what went is remembered for 100 ms:
 *
 *   older than 100 ms │◄──────────────── window, 100 ms ────────────────►│ now
 *       forgotten     │  ▪ 8192    ▪ 4096         ▪ 8192                  │ room = peak / 10 − 20480
 *
 * Grants less than {@link SLOT_MS} apart are one slot, that has the time of the last of them: its bytes are forgotten later than they should
 * be, never sooner. That bounds the slots, and costs at most 1% of the peak.
 *
 * Why the peak holds: take any closed window of 100 ms and the last grant in it, at time e. What went before in that window went at e − 100
 * or later, so it was still remembered at e, and was left out of the room, of which the last grant was at most all. The clock is asked here
 * only, and one that goes back is taken to stand still; while it stands nothing is forgotten and nothing is saved up. A jump forward fills
 * the bucket to a tenth of a second's worth at most, whatever its length. It is the given clock's windows that are bounded: a clock that
 * jumps while no time passes can't be told from a process that slept.
 *
 * The bounds are about grants. What a caller holds back after it was granted may meet later grants on the wire; so it is to write what it
 * was granted at once.
 */
import { PagetideError } from '../errors.ts';
import { refill } from '../memory/fill-budget.ts';

/** Length of the window of the peak, in milliseconds. */
export const WINDOW_MS = 100;
/** The lowest average, in bytes a second. Below, a tenth of a second has no room for a piece of use. */
export const LOWEST_RATE = 1000;
/** The largest piece, in bytes, whatever the rates. */
export const LARGEST_PIECE = 65_536;
/** Grants closer than this, in milliseconds, are remembered as one. */
const SLOT_MS = 1;
/** Slots begin 1 ms apart or more, and are forgotten 100 ms after their last grant: 102 at most. */
const SLOTS = 128;
/** Added to each wait, in milliseconds: a window is closed, so its first instant has to be over; and for rounding. */
const MARGIN_MS = 0.001;

/** Bytes a second. */
export interface Rates {
  average: number;
  /** Not below the average. */
  peak: number;
}

export interface Grant {
  /** Bytes that may go now. 0: none. */
  bytes: number;
  /** Milliseconds until it is worth asking again for what was not granted; 0: all was; Infinity: it stands back. */
  againMs: number;
}

/** @param nowMs a monotonic clock in milliseconds, fractions welcome; `savedMs`: how many milliseconds' worth is saved up at most */
export class TokenBucket {
  readonly #nowMs: () => number;
  readonly #savedMs: number;
  #rates: Rates;
  #atMs: number;
  /** Bytes saved up, with their fraction. */
  #left = 0;
  #standing = 0;
  readonly #firstMs = new Float64Array(SLOTS);
  readonly #lastMs = new Float64Array(SLOTS);
  readonly #bytes = new Float64Array(SLOTS);
  /** Index of the oldest slot, and how many there are. */
  #oldest = 0;
  #slots = 0;
  /** Bytes in all slots. */
  #inWindow = 0;

  /** @throws {PagetideError} PT_BAD_ARGUMENT: see {@link setRates} */
  constructor(rates: Rates, nowMs: () => number, savedMs = 100) {
    this.#savedMs = savedMs;
    this.#rates = checkRates(rates);
    this.#nowMs = nowMs;
    this.#atMs = nowMs();
  }

  get rates(): Rates {
    return { ...this.#rates };
  }

  /**
   * Other rates from now on. A window in which both were in force keeps to the higher peak of the two; what was saved up is kept as far as
   * the new average allows.
   *
   * @throws {PagetideError} PT_BAD_ARGUMENT: an average below {@link LOWEST_RATE}, a peak below the average, or no finite number
   */
  setRates(rates: Rates): void {
    const next = checkRates(rates);
    this.#tick();
    this.#rates = next;
    this.#left = refill(this.#left, 0, next.average, this.#savedMs);
  }

  /**
   * Grants nothing, and saves nothing up, until what this returns is called. Several may hold it back at once, it goes on once all have let
   * go; letting go twice is letting go once.
   */
  standBack(): () => void {
    this.#tick();
    this.#standing++;
    let holds = true;
    return () => {
      if (!holds) return;
      // the time that it stood is over before it goes on
      this.#tick();
      holds = false;
      this.#standing--;
    };
  }

  get standsBack(): boolean {
    return this.#standing > 0;
  }

  /** The largest piece at these rates, in bytes: a quarter of what 100 ms may take, half of what is saved up, {@link LARGEST_PIECE}. */
  get pieceBytes(): number {
    const { average, peak } = this.#rates;
    return Math.floor(Math.min(LARGEST_PIECE, peak / 40, average / 20));
  }

  /**
   * Of `bytes` that want to go, as many as may go now: none, or at least a piece (all, where `bytes` is less). So a transfer of any length
   * goes in pieces, and nobody wakes for a few bytes. What is granted counts as gone.
   *
   * @param bytes a whole number, 0 or more
   * @throws {PagetideError} PT_BAD_ARGUMENT: no such number
   */
  take(bytes: number): Grant {
    if (!Number.isSafeInteger(bytes) || bytes < 0)
      throw new PagetideError('PT_BAD_ARGUMENT', `bytes must be a whole number, not ${bytes}`);
    this.#tick();
    if (bytes === 0) return { bytes: 0, againMs: 0 };
    if (this.#standing > 0) return { bytes: 0, againMs: Infinity };
    const piece = this.pieceBytes;
    const may = Math.floor(Math.min(bytes, this.#left, this.#room()));
    const granted = may >= Math.min(bytes, piece) ? may : 0;
    if (granted > 0) this.#grant(granted);
    const rest = bytes - granted;
    return { bytes: granted, againMs: rest === 0 ? 0 : this.#wait(Math.min(rest, piece)) };
  }

  #room(): number {
    return Math.floor((this.#rates.peak * WINDOW_MS) / 1000) - this.#inWindow;
  }

  #grant(bytes: number): void {
    this.#left -= bytes;
    this.#inWindow += bytes;
    const latest = (this.#oldest + this.#slots - 1) % SLOTS;
    if (this.#slots > 0 && this.#atMs - this.#firstMs[latest]! < SLOT_MS) {
      this.#lastMs[latest] = this.#atMs;
      this.#bytes[latest]! += bytes;
      return;
    }
    const slot = (this.#oldest + this.#slots++) % SLOTS;
    this.#firstMs[slot] = this.#lastMs[slot] = this.#atMs;
    this.#bytes[slot] = bytes;
  }

  /** Milliseconds until `bytes` may go, if nobody else takes any. */
  #wait(bytes: number): number {
    let wait = Math.max(0, ((bytes - this.#left) * 1000) / this.#rates.average);
    let room = this.#room();
    for (let i = 0; i < this.#slots && room < bytes; i++) {
      const slot = (this.#oldest + i) % SLOTS;
      room += this.#bytes[slot]!;
      wait = Math.max(wait, this.#lastMs[slot]! + WINDOW_MS - this.#atMs);
    }
    return wait + MARGIN_MS;
  }

  /** To the time now: saves up, and forgets what has left the window. */
  #tick(): void {
    const now = Math.max(this.#atMs, this.#nowMs());
    if (this.#standing === 0) this.#left = refill(this.#left, now - this.#atMs, this.#rates.average, this.#savedMs);
    this.#atMs = now;
    while (this.#slots > 0 && now - this.#lastMs[this.#oldest]! > WINDOW_MS) {
      this.#inWindow -= this.#bytes[this.#oldest]!;
      this.#oldest = (this.#oldest + 1) % SLOTS;
      this.#slots--;
    }
  }
}

/** @throws {PagetideError} PT_BAD_ARGUMENT: see {@link TokenBucket.setRates} */
export function checkRates({ average, peak }: Rates): Rates {
  if (!Number.isFinite(peak) || !(average >= LOWEST_RATE) || !(peak >= average))
    throw new PagetideError(
      'PT_BAD_ARGUMENT',
      `an average of at least ${LOWEST_RATE} bytes a second and a peak not below it, not ${average} and ${peak}`,
    );
  return { average, peak };
}
