/**
 * What distribution was worth: bytes that were brought, bytes of those that later served a migration, by domain and class of page; and what
 * follows from that for what is brought next, and for what leaves first.
 *
 *   factor = clamp( (saved + E) / (spent + E), 1 / 4, 4 )
 *
 * Both sums fade with one half-life. E, {@link EVEN_BYTES} of each, is what a domain is believed to have broken even on before anything is
 * known, so a few pages say little. The bounds, and that old losses fade, are why a domain that was given up is tried again: its factor goes
 * back to 1 by itself, as nothing more is spent on it.
 */
import { PagetideError } from '../errors.ts';
import { ascending, orderKey } from './order.ts';

/** Bytes that are taken to have been spent and saved before anything was: 64 MiB. */
export const EVEN_BYTES = 64 * 2 ** 20;
/** The factor is from 1 / this to this. */
export const FACTOR_LIMIT = 4;
/** After so many milliseconds what was counted weighs half: a day. */
export const HALF_LIFE_MS = 24 * 3_600_000;
/** Arrivals of guests of its domain that a page may let pass without use before it is one that never paid. */
export const TRIAL_ARRIVALS = 4;

/** Pages by how many guests had them when they were brought: 2 at most, 3 to 7, or 8 and more. */
export const PAGE_CLASSES = ['pair', 'few', 'many'] as const;
export type PageClass = (typeof PAGE_CLASSES)[number];

/** @param guests that hold the page, all over the cluster */
export function pageClassOf(guests: number): PageClass {
  if (guests < 3) return 'pair';
  return guests < 8 ? 'few' : 'many';
}

/** Bytes, as they have faded. */
export interface Counts {
  /** Brought: bytes on the wire. */
  spentBytes: number;
  /** What was brought served a migration: bytes on the wire that it did not send. */
  savedBytes: number;
}

export interface ScoreRecord extends Counts {
  domain: string;
  class: PageClass;
}

interface Entry extends Counts {
  /** When the sums were faded last, on the clock. */
  atMs: number;
}

/**
 * @param nowMs a monotonic clock in milliseconds; one that goes back is taken to stand still
 * @param halfLifeMs milliseconds
 */
export class Score {
  readonly #nowMs: () => number;
  readonly #halfLifeMs: number;
  readonly #domains = new Map<string, Map<PageClass, Entry>>();

  /** @throws {PagetideError} PT_BAD_ARGUMENT: a half-life that is not above 0 */
  constructor(nowMs: () => number, halfLifeMs = HALF_LIFE_MS) {
    if (!(halfLifeMs > 0)) throw new PagetideError('PT_BAD_ARGUMENT', `no half-life: ${halfLifeMs}`);
    this.#nowMs = nowMs;
    this.#halfLifeMs = halfLifeMs;
  }

  /** @param bytes that bringing pages of the class took on the wire */
  brought(domain: string, pageClass: PageClass, bytes: number): void {
    this.#entry(domain, pageClass).spentBytes += checked(bytes);
  }

  /** @param bytes on the wire that a migration did not send, as pages of the class that had been brought were there */
  served(domain: string, pageClass: PageClass, bytes: number): void {
    this.#entry(domain, pageClass).savedBytes += checked(bytes);
  }

  /** What to multiply the expected bytes of a page of the class with: 1/4 to 4, 1 where nothing is known. */
  factor(domain: string, pageClass: PageClass): number {
    const entry = this.#domains.get(domain)?.get(pageClass);
    return entry === undefined ? 1 : scoreFactor(this.#fade(entry));
  }

  /** Of all classes of the domain together. */
  totals(domain: string): Counts {
    const sum = { spentBytes: 0, savedBytes: 0 };
    for (const entry of this.#domains.get(domain)?.values() ?? []) {
      this.#fade(entry);
      sum.spentBytes += entry.spentBytes;
      sum.savedBytes += entry.savedBytes;
    }
    return sum;
  }

  /** The domain is no more. */
  forget(domain: string): void {
    this.#domains.delete(domain);
  }

  /** What {@link Score.from} takes, by domain and class in their order, faded to now. It holds no time of the clock. */
  toJSON(): ScoreRecord[] {
    return [...this.#domains.entries()]
      .sort(([a], [b]) => (a < b ? -1 : 1))
      .flatMap(([domain, classes]) =>
        PAGE_CLASSES.flatMap((pageClass) => {
          const entry = classes.get(pageClass);
          if (entry === undefined) return [];
          const { spentBytes, savedBytes } = this.#fade(entry);
          return [{ domain, class: pageClass, spentBytes, savedBytes }];
        }),
      );
  }

  /**
   * A score as {@link toJSON} gave it. What was counted does not fade between the two, as a monotonic clock doesn't outlive the process.
   *
   * @throws {PagetideError} PT_BAD_ARGUMENT: counts that are no numbers of bytes, a class that there is not
   */
  static from(records: readonly ScoreRecord[], nowMs: () => number, halfLifeMs = HALF_LIFE_MS): Score {
    const score = new Score(nowMs, halfLifeMs);
    for (const { domain, class: pageClass, spentBytes, savedBytes } of records) {
      if (!PAGE_CLASSES.includes(pageClass))
        throw new PagetideError('PT_BAD_ARGUMENT', `no class of pages: ${pageClass}`);
      score.brought(domain, pageClass, spentBytes);
      score.served(domain, pageClass, savedBytes);
    }
    return score;
  }

  #entry(domain: string, pageClass: PageClass): Entry {
    let classes = this.#domains.get(domain);
    if (classes === undefined) this.#domains.set(domain, (classes = new Map<PageClass, Entry>()));
    let entry = classes.get(pageClass);
    if (entry === undefined) classes.set(pageClass, (entry = { spentBytes: 0, savedBytes: 0, atMs: this.#nowMs() }));
    return this.#fade(entry);
  }

  #fade(entry: Entry): Entry {
    const now = Math.max(entry.atMs, this.#nowMs());
    const left = 0.5 ** ((now - entry.atMs) / this.#halfLifeMs);
    entry.spentBytes *= left;
    entry.savedBytes *= left;
    entry.atMs = now;
    return entry;
  }
}

/** The factor that follows from counts: 1/4 to 4. */
export function scoreFactor({ spentBytes, savedBytes }: Counts): number {
  const ratio = (savedBytes + EVEN_BYTES) / (spentBytes + EVEN_BYTES);
  return Math.min(FACTOR_LIMIT, Math.max(1 / FACTOR_LIMIT, ratio));
}

/**
 * Whether a page had its chances and served none of them. Time alone makes no page one: where nobody migrates, nothing can pay.
 *
 * @param arrivals of guests of its domain at this host since it was brought, or since a hint began to name the host
 * @param served how many of those it served
 */
export function neverPaid(arrivals: number, served: number): boolean {
  return served === 0 && arrivals >= TRIAL_ARRIVALS;
}

/**
 * The order in which pages leave: those that never paid, then the others, of either the least important first; of equals the first given.
 * An entry a page in both arrays. O(n).
 *
 * @param importance bytes expected to be saved for a byte that it costs
 * @param unpaid 1: the page never paid ({@link neverPaid})
 * @returns indices
 */
export function evictionOrder(importance: Float64Array, unpaid: Uint8Array): Uint32Array {
  const keys = new Uint32Array(importance.length);
  for (let i = 0; i < keys.length; i++) keys[i] = rankKey(importance[i]!, unpaid[i] === 1);
  return ascending(keys);
}

/** Grows with how long a page is to stay: a whole number of 32 bits, for {@link ascending}. */
export function rankKey(importance: number, unpaid: boolean): number {
  return unpaid ? orderKey(importance) : (orderKey(importance) | 0x8000_0000) >>> 0;
}

function checked(bytes: number): number {
  if (!Number.isFinite(bytes) || bytes < 0) throw new PagetideError('PT_BAD_ARGUMENT', `no number of bytes: ${bytes}`);
  return bytes;
}
