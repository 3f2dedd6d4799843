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

export class HeldPages {
  readonly index = new TagRows();
  state = new Uint8Array(this.index.capacity);
  domain = new Uint32Array(this.index.capacity);
  /** Of what was brought: when, on the monotonic clock; of what never paid: when that was found. */
  sinceMs = new Float64Array(this.index.capacity);
  /** The domain's arrivals then. */
  start = new Int32Array(this.index.capacity);
  likelihood = new Float32Array(this.index.capacity);
  /** Since when no directory tells of it; 0: it does. */
  unlistedMs = new Float64Array(this.index.capacity);
  guests = new Uint32Array(this.index.capacity);
  wireBytes = new Uint16Array(this.index.capacity);
  served = new Uint16Array(this.index.capacity);
  class = new Uint8Array(this.index.capacity);
  /** 1: a guest that it served is here, and would give it to others. */
  resident = new Uint8Array(this.index.capacity);
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
    return row >= 0 && this.domain[row] === domain ? row : -1;
  }

  isUnpaid(row: number): boolean {
    if (this.state[row] === UNPAID) return true;
    return neverPaid(this.arrivals(this.domain[row]!) - this.start[row]!, this.served[row]!);
  }

  classOf(row: number): PageClass {
    return PAGE_CLASSES[this.class[row]!]!;
  }

  /** The page at word `at` was brought. One that is held already stays as it is; one that was remembered is held anew. */
  add(words: Uint32Array, at: number, page: HeldPage, nowMs: number): void {
    const known = this.index.find(words, at);
    if (known >= 0) {
      if (this.state[known] === HELD) return;
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
    return {
      state: this.state[row] === UNPAID ? UNPAID : HELD,
      domain: this.domain[row]!,
      guests: this.guests[row]!,
      likelihood: this.likelihood[row]!,
      wireBytes: this.wireBytes[row]!,
      ageMs: Math.max(0, nowMs - this.sinceMs[row]!),
      arrivals: this.arrivals(this.domain[row]!) - this.start[row]!,
      served: this.served[row]!,
      class: this.classOf(row),
    };
  }

  /** It served an arriving guest; returns the bytes that saved. */
  serve(row: number): number {
    if (this.served[row]! < 0xffff) this.served[row]!++;
    this.resident[row] = 1;
    this.changes++;
    return this.wireBytes[row]!;
  }

  /** It leaves, or was evicted: no longer held. One that never paid is remembered. */
  leave(row: number, nowMs: number): void {
    if (this.isUnpaid(row) && this.unpaid < MOST_UNPAID) {
      this.#uncount(row);
      this.state[row] = UNPAID;
      this.sinceMs[row] = nowMs;
      this.unpaid++;
      this.changes++;
    } else this.drop(row);
  }

  /** Takes a row out. */
  drop(row: number): void {
    this.#uncount(row);
    this.state[row] = FREE;
    this.index.remove(row);
    this.changes++;
  }

  /** A domain is no more: it counts nothing from now on. Its rows go in pieces. */
  *dropDomain(domain: number): Generator<void, void> {
    this.#domains.delete(domain);
    for (let row = 0; row < this.index.rows; row++) {
      if (row % 4096 === 4095) yield;
      if (this.state[row] !== FREE && this.domain[row] === domain) this.drop(row);
    }
  }

  /** Forgets what never paid long ago; in pieces. */
  *forget(nowMs: number): Generator<void, void> {
    // the more there are the sooner, so that new ones always find room
    const forMs = this.unpaid > MOST_UNPAID / 2 ? UNPAID_MS / 4 : UNPAID_MS;
    for (let row = 0; row < this.index.rows; row++) {
      if (row % 4096 === 4095) yield;
      if (this.state[row] === UNPAID && nowMs - this.sinceMs[row]! >= forMs) this.drop(row);
    }
  }

  #put(words: Uint32Array, at: number, page: KeptRow, nowMs: number): void {
    const row = this.index.add(words, at);
    if (this.index.capacity > this.state.length) this.#grow();
    const count = this.#of(page.domain);
    this.state[row] = page.state;
    this.domain[row] = page.domain;
    this.sinceMs[row] = nowMs - page.ageMs;
    this.start[row] = count.arrivals - page.arrivals;
    this.likelihood[row] = page.likelihood;
    this.unlistedMs[row] = 0;
    this.guests[row] = page.guests;
    this.wireBytes[row] = Math.min(MOST_WIRE, page.wireBytes);
    this.served[row] = page.served;
    this.class[row] = PAGE_CLASSES.indexOf(page.class);
    this.resident[row] = 0;
    if (page.state === HELD) count.held++;
    else this.unpaid++;
    this.changes++;
  }

  #uncount(row: number): void {
    if (this.state[row] === UNPAID) this.unpaid--;
    const count = this.state[row] === HELD ? this.#domains.get(this.domain[row]!) : undefined;
    if (count !== undefined && count.held > 0) count.held--;
  }

  #of(domain: number): DomainCount {
    let count = this.#domains.get(domain);
    if (count === undefined) this.#domains.set(domain, (count = { held: 0, arrivals: 0 }));
    return count;
  }

  #grow(): void {
    const { capacity } = this.index;
    const grown = <T extends { set(from: T): void }>(into: T, from: T): T => {
      into.set(from);
      return into;
    };
    this.state = grown(new Uint8Array(capacity), this.state);
    this.domain = grown(new Uint32Array(capacity), this.domain);
    this.sinceMs = grown(new Float64Array(capacity), this.sinceMs);
    this.start = grown(new Int32Array(capacity), this.start);
    this.likelihood = grown(new Float32Array(capacity), this.likelihood);
    this.unlistedMs = grown(new Float64Array(capacity), this.unlistedMs);
    this.guests = grown(new Uint32Array(capacity), this.guests);
    this.wireBytes = grown(new Uint16Array(capacity), this.wireBytes);
    this.served = grown(new Uint16Array(capacity), this.served);
    this.class = grown(new Uint8Array(capacity), this.class);
    this.resident = grown(new Uint8Array(capacity), this.resident);
  }
}

/** Packed tags as words, and how many there are. */
export function wordsOf(tags: Uint8Array): { words: Uint32Array; count: number } {
  const words = toWords(tags);
  return { words, count: words.length / TAG_WORDS };
}
