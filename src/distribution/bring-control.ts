/**
 * What the main thread and the distribution worker share in memory: the rates, so that they hold from the next request on; and what was carried.
 *
 *   main thread writes: version (odd: being written), average, peak, standing back     worker writes: received, sent, pages, wrong
 */
import type { Rates } from './token-bucket.ts';
import { checkRates } from './wire-cost.ts';

const VERSION = 0;
const STANDING = 1;
// 64-bit words; the first is the two above
const AVERAGE = 1;
const PEAK = 2;
const RECEIVED = 3;
const SENT = 4;
const PAGES = 5;
const WRONG = 6;
const WORDS = 7;

export class BringControl {
  readonly shared: SharedArrayBuffer;
  readonly #flags: Int32Array;
  readonly #words: Float64Array;

  /** @param shared of the other thread; none: makes it */
  constructor(shared = new SharedArrayBuffer(WORDS * 8)) {
    this.shared = shared;
    this.#flags = new Int32Array(shared, 0, 2);
    this.#words = new Float64Array(shared);
  }

  /** @throws PagetideError `PT_BAD_ARGUMENT` */
  setRates(rates: Rates): void {
    checkRates(rates);
    Atomics.add(this.#flags, VERSION, 1);
    this.#words[AVERAGE] = rates.average;
    this.#words[PEAK] = rates.peak;
    Atomics.add(this.#flags, VERSION, 1);
  }

  /** The rates where they changed since `version`; undefined: they did not, or are just being written. */
  ratesSince(version: number): { version: number; rates: Rates } | undefined {
    const before = Atomics.load(this.#flags, VERSION);
    if (before === version || before % 2 !== 0) return undefined;
    const rates = { average: this.#words[AVERAGE]!, peak: this.#words[PEAK]! };
    return Atomics.load(this.#flags, VERSION) === before ? { version: before, rates } : undefined;
  }

  standBack(by: 1 | -1): void {
    Atomics.add(this.#flags, STANDING, by);
  }
  get standsBack(): boolean {
    return Atomics.load(this.#flags, STANDING) > 0;
  }

  /** By the worker. */
  count(received: number, sent: number): void {
    this.#words[RECEIVED]! += received;
    this.#words[SENT]! += sent;
  }
  countPages(pages: number, wrong: number): void {
    this.#words[PAGES]! += pages;
    this.#words[WRONG]! += wrong;
  }

  get counts(): { bytesReceived: number; bytesSent: number; pages: number; wrongPages: number } {
    const words = this.#words;
    return {
      bytesReceived: words[RECEIVED]!,
      bytesSent: words[SENT]!,
      pages: words[PAGES]!,
      wrongPages: words[WRONG]!,
    };
  }
}
