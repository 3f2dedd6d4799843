/**
 * One domain's pages that this host could hold, as one plan sees them, in packed columns: an entry a row.
 *
 *   directory.lacking ──► row: guests elsewhere, their hosts        one pseudo guest a host, for guests of which nothing is said
 *   guests by name    ──► their own likelihood in place of their host's; a row where nobody else has the page
 *   table before      ──► since when the tag is known
 *   held pages        ──► rows also where the directory doesn't tell of them any more
 *
 * *Stability* is taken from how long this host has seen the tag in the directory's answers without a break, plus SHARED_LIFE_MS: a simplification, as
 * guests may come to hold a page and leave it while another holds it all the time. It is too low after a restart, and never too high by more than what
 * was assumed before.
 */
import { TAG_WORDS, toWords } from '../directory/tag-words.ts';
import { anyOf } from './importance.ts';
import { TagRows } from './tag-rows.ts';

/** Who holds tags, as a directory tells it: number `i` of the arrays is for tag `i`. */
export interface TagHolders {
  hosts: readonly string[];
  guests: Uint32Array;
  first: Uint32Array;
  host: Uint16Array;
  held: Uint16Array;
}

/** What a plan decided about a row. */
export const SKIP = 0;
export const BRING = 1;
export const KEEP = 2;
export const LEAVE = 3;
/** In the cache without distribution's doing, so not its business. */
export const CACHED = 4;

export class DomainCandidates {
  readonly index: TagRows;
  /** Since when the tag is known, on the monotonic clock. */
  sinceMs: Float64Array;
  /** Sum of `logMiss` over its guests. */
  miss: Float64Array;
  guests: Uint32Array;
  /** A decision, from {@link SKIP} on. */
  decision: Uint8Array;
  held: Uint8Array;
  unpaid: Uint8Array;
  /** For holders: number of the first cell; 0 is none. */
  #firstCell: Uint32Array;
  #cellHost = new Uint16Array(1024);
  #cellNext = new Uint32Array(1024);
  #cells = 1;
  /** Hosts by number, as cells name them. */
  readonly hosts: string[] = [];
  readonly #numbers = new Map<string, number>();

  /** @param room rows expected */
  constructor(room: number) {
    this.index = new TagRows(room);
    const { capacity } = this.index;
    this.sinceMs = new Float64Array(capacity);
    this.miss = new Float64Array(capacity);
    this.guests = new Uint32Array(capacity);
    this.decision = new Uint8Array(capacity);
    this.held = new Uint8Array(capacity);
    this.unpaid = new Uint8Array(capacity);
    this.#firstCell = new Uint32Array(capacity);
  }

  get size(): number {
    return this.index.size;
  }

  /** That any guest with it comes here within the horizon. */
  likelihood(row: number): number {
    return anyOf(this.miss[row]!);
  }

  /** The row of a tag, which is made where there is none. `before`: the table of the plan before. */
  row(words: Uint32Array, at: number, nowMs: number, before: DomainCandidates | undefined): number {
    const known = this.index.find(words, at);
    if (known >= 0) return known;
    const row = this.index.add(words, at);
    if (this.index.capacity > this.miss.length) this.#grow();
    const old = before?.index.find(words, at) ?? -1;
    this.sinceMs[row] = old < 0 ? nowMs : before!.sinceMs[old]!;
    return row;
  }

  /** `host` has the page of the row. */
  addHolder(row: number, host: string): void {
    let number = this.#numbers.get(host);
    if (number === undefined) {
      this.#numbers.set(host, (number = this.hosts.length));
      this.hosts.push(host);
    }
    for (let cell = this.#firstCell[row]!; cell !== 0; cell = this.#cellNext[cell]!)
      if (this.#cellHost[cell] === number) return;
    if (this.#cells === this.#cellHost.length) {
      const host = new Uint16Array(2 * this.#cells);
      host.set(this.#cellHost);
      this.#cellHost = host;
      const next = new Uint32Array(2 * this.#cells);
      next.set(this.#cellNext);
      this.#cellNext = next;
    }
    this.#cellHost[this.#cells] = number;
    this.#cellNext[this.#cells] = this.#firstCell[row]!;
    this.#firstCell[row] = this.#cells++;
  }

  /** Calls back with the number of each host that has the page. */
  eachHolder(row: number, callback: (host: number) => void): void {
    for (let cell = this.#firstCell[row]!; cell !== 0; cell = this.#cellNext[cell]!) callback(this.#cellHost[cell]!);
  }

  /**
   * What the directory tells of tags that guests elsewhere hold and none here does.
   *
   * @param missOf by host: `logMiss` of one guest of it
   */
  *addListed(
    tags: Uint8Array,
    holders: TagHolders,
    missOf: (host: string) => number,
    nowMs: number,
    before: DomainCandidates | undefined,
  ): Generator<void, void> {
    const words = toWords(tags);
    const misses = holders.hosts.map(missOf);
    for (let i = 0; i < words.length / TAG_WORDS; i++) {
      if (i % 512 === 511) yield;
      const row = this.row(words, i * TAG_WORDS, nowMs, before);
      // given twice, as it left and came back: the later answer counts
      this.#firstCell[row] = 0;
      this.guests[row] = holders.guests[i]!;
      let sum = 0;
      for (let at = holders.first[i]!; at < holders.first[i + 1]!; at++) {
        const host = holders.host[at]!;
        sum += misses[host]! * holders.held[at]!;
        this.addHolder(row, holders.hosts[host]!);
      }
      this.miss[row] = sum;
    }
  }

  /**
   * A guest's own tags: its likelihood takes the place of its host's share. Calls `alone` with those that have no row: whoever calls finds out
   * whether a guest here has them.
   */
  *addGuest(
    tags: Uint8Array,
    miss: number,
    hostMiss: number,
    alone: (words: Uint32Array, at: number) => void,
  ): Generator<void, void> {
    const words = toWords(tags);
    for (let i = 0; i < words.length / TAG_WORDS; i++) {
      if (i % 512 === 511) yield;
      const at = i * TAG_WORDS;
      const row = this.index.find(words, at);
      if (row < 0) alone(words, at);
      // the host may not have told of it yet: then there is no share to take out, and none below what the guest alone gives
      else this.miss[row] = Math.min(miss, this.miss[row]! - hostMiss + miss);
    }
  }

  /** A page of guests by name that the directory has no record of. */
  addAlone(
    words: Uint32Array,
    at: number,
    host: string,
    miss: number,
    nowMs: number,
    before: DomainCandidates | undefined,
  ): void {
    const row = this.row(words, at, nowMs, before);
    this.guests[row]!++;
    this.miss[row]! += miss;
    this.addHolder(row, host);
  }

  #grow(): void {
    const { capacity } = this.index;
    const grown = <T extends { set(from: T): void }>(into: T, from: T): T => {
      into.set(from);
      return into;
    };
    this.sinceMs = grown(new Float64Array(capacity), this.sinceMs);
    this.miss = grown(new Float64Array(capacity), this.miss);
    this.guests = grown(new Uint32Array(capacity), this.guests);
    this.decision = grown(new Uint8Array(capacity), this.decision);
    this.held = grown(new Uint8Array(capacity), this.held);
    this.unpaid = grown(new Uint8Array(capacity), this.unpaid);
    this.#firstCell = grown(new Uint32Array(capacity), this.#firstCell);
  }
}
