/**
 * What distribution brought to this host, a row a page:
 *
 *   tag 16 │ domain 4 │ brought 8 │ arrivals at the beginning 4 │ likelihood 4 │ unlisted 8 │ guests 4 │ wire bytes 2 │ served 2 │ class, state
 *
 *            brought                       chosen to leave, or evicted
 *   (none) ─────────► held ──────────────────────────────────────────► (none)
 *                       │                                                 ▲
 *                       ╰── leaves, and never paid ──► remembered ────────╯  after UNPAID_MS, or when there are too many
 *
 * A held page is in the cache, as of the last time that was looked at; the cache may evict it at any moment, so this table is an account and never
 * a reason to install anything. Arrivals are counted a domain, not a page: a page has the domain's count of when it came.
 */
import { toWords, TAG_WORDS } from '../directory/tag-words.ts';
import { neverPaid, PAGE_CLASSES, pageClassOf, type PageClass } from './score.ts';
import { SEGMENT_BITS, SEGMENT_MASK, SEGMENT_ROWS } from './segments.ts';
import { TagRows } from './tag-rows.ts';

/** Bytes of cache that a page takes. */
export const HELD_BYTES = 4096;
/** Pages that never paid are not brought again for so long, in milliseconds: a day. */
export const UNPAID_MS = 24 * 3_600_000;
/** And so many of them at most are remembered. */
export const MOST_UNPAID = 2 ** 18;
const MOST_WIRE = 0xffff;

/** Of a row. */
export const FREE = 0;
export const HELD = 1;
export const UNPAID = 2;

export interface HeldPage {
  /** Number of its domain: `Domain.id`. */
  domain: number;
  /** Guests that have it, all over the cluster. */
  guests: number;
  /** That any guest comes with it, as the plan that brought it took it. */
  likelihood: number;
  /** Bytes on the wire that bringing it took. */
  wireBytes: number;
}

/** A row as it is kept in a file. */
export interface KeptRow extends HeldPage {
  state: typeof HELD | typeof UNPAID;
  /** Milliseconds since it was brought, or found never to have paid. */
  ageMs: number;
  /** Arrivals since it was brought. */
  arrivals: number;
  served: number;
  class: PageClass;
}

interface DomainCount {
  held: number;
  /** Arrivals that a held page could have served. */
  arrivals: number;
}

/** Rows of one segment. */
class Segment {
  readonly state = new Uint8Array(SEGMENT_ROWS);
  readonly domain = new Uint32Array(SEGMENT_ROWS);
  /** Of what was brought: when, on the monotonic clock; of what never paid: when that was found. */
  readonly sinceMs = new Float64Array(SEGMENT_ROWS);
  /** The domain's arrivals then. */
  readonly start = new Int32Array(SEGMENT_ROWS);
  readonly likelihood = new Float32Array(SEGMENT_ROWS);
  /** Since when no directory tells of it; 0: it does. */
  readonly unlistedMs = new Float64Array(SEGMENT_ROWS);
  readonly guests = new Uint32Array(SEGMENT_ROWS);
  readonly wireBytes = new Uint16Array(SEGMENT_ROWS);
  readonly served = new Uint16Array(SEGMENT_ROWS);
  readonly class = new Uint8Array(SEGMENT_ROWS);
  /** 1: a guest that it served is here, and would give it to others. */
  readonly resident = new Uint8Array(SEGMENT_ROWS);
}

export class HeldPages {
  readonly index = new TagRows();
  readonly #segments: Segment[] = [];
  /** Rows that remember what never paid. */
  unpaid = 0;
  /** Grows with each change that is worth keeping. */
  changes = 0;
  readonly #domains = new Map<number, DomainCount>();

  /** Held pages, of one domain or of all. */
  count(domain?: number): number {
    if (domain !== undefined) return this.#domains.get(domain)?.held ?? 0;
    let sum = 0;
    for (const { held } of this.#domains.values()) sum += held;
    return sum;
  }

  /** Bytes of cache that held pages take. */
  get bytes(): number {
    return this.count() * HELD_BYTES;
  }

  arrivals(domain: number): number {
    return this.#domains.get(domain)?.arrivals ?? 0;
  }

  /** A guest of the domain arrived. */
  countArrival(domain: number): void {
    this.#of(domain).arrivals++;
    this.changes++;
  }

  /** Row of a tag of the domain; -1: it is neither held nor remembered. */
  find(domain: number, words: Uint32Array, at: number): number {
    const row = this.index.find(words, at);
    return row >= 0 && this.domain(row) === domain ? row : -1;
  }

  /** {@link FREE} and so on. */
  state(row: number): number {
    return this.#segment(row).state[row & SEGMENT_MASK]!;
  }

  /** Number of its domain. */
  domain(row: number): number {
    return this.#segment(row).domain[row & SEGMENT_MASK]!;
  }

  guests(row: number): number {
    return this.#segment(row).guests[row & SEGMENT_MASK]!;
  }

  wireBytes(row: number): number {
    return this.#segment(row).wireBytes[row & SEGMENT_MASK]!;
  }

  /** That any guest comes with it, as the last plan took it. */
  likelihood(row: number): number {
    return this.#segment(row).likelihood[row & SEGMENT_MASK]!;
  }

  sinceMs(row: number): number {
    return this.#segment(row).sinceMs[row & SEGMENT_MASK]!;
  }

  isResident(row: number): boolean {
    return this.#segment(row).resident[row & SEGMENT_MASK] === 1;
  }

  /** The directory tells of it, and so of no guest here: the one that it served has left again. */
  listed(row: number, likelihood: number): void {
    const segment = this.#segment(row);
    const at = row & SEGMENT_MASK;
    segment.unlistedMs[at] = 0;
    segment.resident[at] = 0;
    segment.likelihood[at] = likelihood;
  }

  /** The directory does not tell of it; returns since when, on the monotonic clock. */
  unlisted(row: number, nowMs: number): number {
    const { unlistedMs } = this.#segment(row);
    const at = row & SEGMENT_MASK;
    if (unlistedMs[at] === 0) unlistedMs[at] = Math.max(nowMs, Number.MIN_VALUE);
    return unlistedMs[at]!;
  }

  isUnpaid(row: number): boolean {
    const { state, start, served, domain } = this.#segment(row);
    const at = row & SEGMENT_MASK;
    return state[at] === UNPAID || neverPaid(this.arrivals(domain[at]!) - start[at]!, served[at]!);
  }

  classOf(row: number): PageClass {
    return PAGE_CLASSES[this.#segment(row).class[row & SEGMENT_MASK]!]!;
  }

  /** The page at word `at` was brought. One that is held already stays as it is; one that was remembered is held anew. */
  add(words: Uint32Array, at: number, page: HeldPage, nowMs: number): void {
    const known = this.index.find(words, at);
    if (known >= 0) {
      if (this.state(known) === HELD) return;
      this.drop(known);
    }
    this.#put(
      words,
      at,
      { ...page, state: HELD, ageMs: 0, arrivals: 0, served: 0, class: pageClassOf(page.guests) },
      nowMs,
    );
  }

  /** A row of a file. */
  restore(words: Uint32Array, at: number, row: KeptRow, nowMs: number): void {
    if (this.index.find(words, at) < 0) this.#put(words, at, row, nowMs);
  }

  keptRow(row: number, nowMs: number): KeptRow {
    const segment = this.#segment(row);
    const at = row & SEGMENT_MASK;
    return {
      state: segment.state[at] === UNPAID ? UNPAID : HELD,
      domain: segment.domain[at]!,
      guests: segment.guests[at]!,
      likelihood: segment.likelihood[at]!,
      wireBytes: segment.wireBytes[at]!,
      ageMs: Math.max(0, nowMs - segment.sinceMs[at]!),
      arrivals: this.arrivals(segment.domain[at]!) - segment.start[at]!,
      served: segment.served[at]!,
      class: this.classOf(row),
    };
  }

  /** It served an arriving guest; returns the bytes that saved. */
  serve(row: number): number {
    const { served, resident } = this.#segment(row);
    const at = row & SEGMENT_MASK;
    if (served[at]! < 0xffff) served[at]!++;
    resident[at] = 1;
    this.changes++;
    return this.wireBytes(row);
  }

  /** It leaves, or was evicted: no longer held. One that never paid is remembered. */
  leave(row: number, nowMs: number): void {
    if (this.isUnpaid(row) && this.unpaid < MOST_UNPAID) {
      this.#uncount(row);
      this.#segment(row).state[row & SEGMENT_MASK] = UNPAID;
      this.#segment(row).sinceMs[row & SEGMENT_MASK] = nowMs;
      this.unpaid++;
      this.changes++;
    } else this.drop(row);
  }

  /** Takes a row out. */
  drop(row: number): void {
    this.#uncount(row);
    this.#segment(row).state[row & SEGMENT_MASK] = FREE;
    this.index.remove(row);
    this.changes++;
  }

  /** A domain is no more: it counts nothing from now on. Its rows go in pieces. */
  *dropDomain(domain: number): Generator<void, void> {
    this.#domains.delete(domain);
    for (let row = 0; row < this.index.rows; row++) {
      if (row % 4096 === 4095) yield;
      if (this.state(row) !== FREE && this.domain(row) === domain) this.drop(row);
    }
  }

  /** Forgets what never paid long ago; in pieces. */
  *forget(nowMs: number): Generator<void, void> {
    // the more there are the sooner, so that new ones always find room
    const forMs = this.unpaid > MOST_UNPAID / 2 ? UNPAID_MS / 4 : UNPAID_MS;
    for (let row = 0; row < this.index.rows; row++) {
      if (row % 4096 === 4095) yield;
      if (this.state(row) === UNPAID && nowMs - this.sinceMs(row) >= forMs) this.drop(row);
    }
  }

  #put(words: Uint32Array, word: number, page: KeptRow, nowMs: number): void {
    const row = this.index.add(words, word);
    if (row >>> SEGMENT_BITS === this.#segments.length) this.#segments.push(new Segment());
    const segment = this.#segment(row);
    const at = row & SEGMENT_MASK;
    const count = this.#of(page.domain);
    segment.state[at] = page.state;
    segment.domain[at] = page.domain;
    segment.sinceMs[at] = nowMs - page.ageMs;
    segment.start[at] = count.arrivals - page.arrivals;
    segment.likelihood[at] = page.likelihood;
    segment.unlistedMs[at] = 0;
    segment.guests[at] = page.guests;
    segment.wireBytes[at] = Math.min(MOST_WIRE, page.wireBytes);
    segment.served[at] = page.served;
    segment.class[at] = PAGE_CLASSES.indexOf(page.class);
    segment.resident[at] = 0;
    if (page.state === HELD) count.held++;
    else this.unpaid++;
    this.changes++;
  }

  #uncount(row: number): void {
    if (this.state(row) === UNPAID) this.unpaid--;
    const count = this.state(row) === HELD ? this.#domains.get(this.domain(row)) : undefined;
    if (count !== undefined && count.held > 0) count.held--;
  }

  #of(domain: number): DomainCount {
    let count = this.#domains.get(domain);
    if (count === undefined) this.#domains.set(domain, (count = { held: 0, arrivals: 0 }));
    return count;
  }

  #segment(row: number): Segment {
    return this.#segments[row >>> SEGMENT_BITS]!;
  }
}

/** Packed tags as words, and how many there are. */
export function wordsOf(tags: Uint8Array): { words: Uint32Array; count: number } {
  const words = toWords(tags);
  return { words, count: words.length / TAG_WORDS };
}
