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
import { TAG_BYTES } from '../pages/tags.ts';
import type { Holders } from '../directory/directory.ts';
import { anyOf } from './importance.ts';
import { SEGMENT_BITS, SEGMENT_MASK, SEGMENT_ROWS } from './segments.ts';
import { TagRows } from './tag-rows.ts';

/** What a plan decided about a row. */
export const SKIP = 0;
export const BRING = 1;
export const KEEP = 2;
export const LEAVE = 3;
/** In the cache without distribution's doing, so not its business. */
export const CACHED = 4;

/** Rows of one segment. */
class Segment {
  /** Since when the tag is known, on the monotonic clock. */
  readonly sinceMs = new Float64Array(SEGMENT_ROWS);
  /** Sum of `logMiss` over its guests. */
  readonly miss = new Float64Array(SEGMENT_ROWS);
  readonly guests = new Uint32Array(SEGMENT_ROWS);
  readonly decision = new Uint8Array(SEGMENT_ROWS);
  readonly held = new Uint8Array(SEGMENT_ROWS);
  readonly unpaid = new Uint8Array(SEGMENT_ROWS);
  /** For holders: number of the first cell; 0 is none. */
  readonly firstCell = new Uint32Array(SEGMENT_ROWS);
}

/** Cells of one segment: a holder of a row each. */
class Cells {
  readonly host = new Uint16Array(SEGMENT_ROWS);
  readonly next = new Uint32Array(SEGMENT_ROWS);
}

export class DomainCandidates {
  readonly index: TagRows;
  readonly #segments: Segment[] = [];
  readonly #cells: Cells[] = [new Cells()];
  #cellCount = 1;
  /** Hosts by number, as cells name them. */
  readonly hosts: string[] = [];
  readonly #numbers = new Map<string, number>();

  /** @param room rows expected */
  constructor(room: number) {
    this.index = new TagRows(room);
  }

  get size(): number {
    return this.index.size;
  }

  /** That any guest with it comes here within the horizon. */
  likelihood(row: number): number {
    return anyOf(this.#of(row).miss[row & SEGMENT_MASK]!);
  }

  sinceMs(row: number): number {
    return this.#of(row).sinceMs[row & SEGMENT_MASK]!;
  }

  guests(row: number): number {
    return this.#of(row).guests[row & SEGMENT_MASK]!;
  }

  /** A decision, from {@link SKIP} on. */
  decision(row: number): number {
    return this.#of(row).decision[row & SEGMENT_MASK]!;
  }

  decide(row: number, decision: number): void {
    this.#of(row).decision[row & SEGMENT_MASK] = decision;
  }

  isHeld(row: number): boolean {
    return this.#of(row).held[row & SEGMENT_MASK] === 1;
  }

  isUnpaid(row: number): boolean {
    return this.#of(row).unpaid[row & SEGMENT_MASK] === 1;
  }

  setUnpaid(row: number): void {
    this.#of(row).unpaid[row & SEGMENT_MASK] = 1;
  }

  /** This host holds the page of the row. */
  setHeld(row: number, unpaid: boolean): void {
    const segment = this.#of(row);
    segment.held[row & SEGMENT_MASK] = 1;
    segment.unpaid[row & SEGMENT_MASK] = unpaid ? 1 : 0;
  }

  /** What the directory does not tell. @param miss `logMiss` of all its guests */
  setGuests(row: number, guests: number, miss: number): void {
    const segment = this.#of(row);
    segment.guests[row & SEGMENT_MASK] = guests;
    segment.miss[row & SEGMENT_MASK] = miss;
  }

  /** The row of a tag, which is made where there is none. `before`: the table of the plan before. */
  row(words: Uint32Array, at: number, nowMs: number, before: DomainCandidates | undefined): number {
    const found = this.index.findOrAdd(words, at);
    if (found >= 0) return found;
    const row = ~found;
    if (row >>> SEGMENT_BITS === this.#segments.length) this.#segments.push(new Segment());
    // a directory tells in much the same order as the last time
    const old = before?.index.findNear(row, words, at) ?? -1;
    this.#of(row).sinceMs[row & SEGMENT_MASK] = old < 0 ? nowMs : before!.sinceMs(old);
    return row;
  }

  /** Calls back with the number of each host that has the page. */
  eachHolder(row: number, callback: (host: number) => void): void {
    let cell = this.#of(row).firstCell[row & SEGMENT_MASK]!;
    while (cell !== 0) {
      const cells = this.#cells[cell >>> SEGMENT_BITS]!;
      callback(cells.host[cell & SEGMENT_MASK]!);
      cell = cells.next[cell & SEGMENT_MASK]!;
    }
  }

  /**
   * What the directory tells of tags that guests elsewhere hold and none here does.
   *
   * @param missOf by host: `logMiss` of one guest of it
   */
  *addListed(
    tags: Uint8Array,
    holders: Holders,
    missOf: (host: string) => number,
    nowMs: number,
    before: DomainCandidates | undefined,
  ): Generator<void, void> {
    const words = toWords(tags);
    const misses = holders.hosts.map(missOf);
    const numbers = holders.hosts.map((host) => this.#number(host));
    for (let i = 0; i < words.length / TAG_WORDS; i++) {
      if (i % 512 === 511) yield;
      const row = this.row(words, i * TAG_WORDS, nowMs, before);
      // given twice, as it left and came back: the later answer counts
      this.#of(row).firstCell[row & SEGMENT_MASK] = 0;
      let sum = 0;
      for (let at = holders.first[i]!; at < holders.first[i + 1]!; at++) {
        const host = holders.host[at]!;
        sum += misses[host]! * holders.held[at]!;
        this.#addHolder(row, numbers[host]!);
      }
      this.setGuests(row, holders.guests[i]!, sum);
    }
  }

  /**
   * A guest's own tags: its likelihood takes the place of its host's share. Returns those that have no row, as words: whoever calls finds out
   * whether a guest here has them.
   */
  *addGuest(tags: Uint8Array, miss: number, hostMiss: number): Generator<void, Uint32Array<ArrayBuffer>> {
    const alone = new Uint32Array(tags.length / 4);
    let end = 0;
    for (let from = 0; from < tags.length; from += 512 * TAG_BYTES) {
      const words = toWords(tags.subarray(from, from + 512 * TAG_BYTES));
      for (let at = 0; at < words.length; at += TAG_WORDS) {
        const row = this.index.find(words, at);
        if (row < 0) for (let word = 0; word < TAG_WORDS; word++) alone[end++] = words[at + word]!;
        else {
          const { miss: sums } = this.#of(row);
          // the host may not have told of it yet: then there is no share to take out, and none below what the guest alone gives
          sums[row & SEGMENT_MASK] = Math.min(miss, sums[row & SEGMENT_MASK]! - hostMiss + miss);
        }
      }
      yield;
    }
    return alone.subarray(0, end);
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
    this.#of(row).guests[row & SEGMENT_MASK]!++;
    this.#of(row).miss[row & SEGMENT_MASK]! += miss;
    this.#addHolder(row, this.#number(host));
  }

  #of(row: number): Segment {
    return this.#segments[row >>> SEGMENT_BITS]!;
  }

  #number(host: string): number {
    let number = this.#numbers.get(host);
    if (number === undefined) {
      this.#numbers.set(host, (number = this.hosts.length));
      this.hosts.push(host);
    }
    return number;
  }

  #addHolder(row: number, host: number): void {
    const { firstCell } = this.#of(row);
    const first = firstCell[row & SEGMENT_MASK]!;
    for (let cell = first; cell !== 0;) {
      const cells = this.#cells[cell >>> SEGMENT_BITS]!;
      if (cells.host[cell & SEGMENT_MASK] === host) return;
      cell = cells.next[cell & SEGMENT_MASK]!;
    }
    const cell = this.#cellCount++;
    if (cell >>> SEGMENT_BITS === this.#cells.length) this.#cells.push(new Cells());
    const cells = this.#cells[cell >>> SEGMENT_BITS]!;
    cells.host[cell & SEGMENT_MASK] = host;
    cells.next[cell & SEGMENT_MASK] = first;
    firstCell[row & SEGMENT_MASK] = cell;
  }
}
