/**
 * Numbers for tags: row `n` of the columns that whoever uses it keeps beside it.
 *
 *   shard   top bits of the hash │ slots: row + 1, 0 is empty; hash      open addressing, linear probing, at most 3/4 full
 *   row     tag 16 bytes, in segments                                   rows that were removed are used again
 *
 * There are 1024 shards, that grow each by itself, from the hashes in their slots alone: with a million tags the table never stops for more than
 * a thousand of them, and copies no tag.
 */
import { hashTag, TAG_WORDS } from '../directory/tag-words.ts';
import { SEGMENT_BITS, SEGMENT_MASK, SEGMENT_ROWS } from './segments.ts';

const SHARD_BITS = 10;
const FIRST_SLOTS = 8;
const SEED = 0x51ed270b;
/** A shard without any tag. */
const EMPTY = new Uint32Array(2);

export class TagRows {
  /** Tags that there are. */
  size = 0;
  /** Rows that were ever used: all numbers are below. */
  rows = 0;
  readonly #tags: Uint32Array[] = [];
  readonly #slots: Uint32Array[] = new Array<Uint32Array>(1 << SHARD_BITS).fill(EMPTY);
  readonly #used = new Uint32Array(1 << SHARD_BITS);
  readonly #free: number[] = [];
  readonly #firstSlots: number;

  /** @param room rows expected: shards begin with as many slots as these need */
  constructor(room = 0) {
    const slots = (room / (1 << SHARD_BITS)) * (4 / 3);
    this.#firstSlots = Math.max(FIRST_SLOTS, 2 ** Math.ceil(Math.log2(slots + 1)));
  }

  /** Rows that there is room for, whole segments. Grows with {@link add}. */
  get capacity(): number {
    return this.#tags.length * SEGMENT_ROWS;
  }

  /** Row of the tag at word `at`; -1: it is not there. Allocates nothing. */
  find(words: Uint32Array, at: number): number {
    return this.#find(words, at, hashTag(words, at, SEED));
  }

  /** The same, by a guess: looked at first, as it costs no hashing where it is right. May be any number from 0 on. */
  findNear(guess: number, words: Uint32Array, at: number): number {
    // one that was removed has its tag still
    if (this.#free.length === 0 && guess < this.rows && this.isTag(guess, words, at)) return guess;
    return this.find(words, at);
  }

  /** Row of the tag at word `at`, and whether it was there: ~row where it was given one just now. */
  findOrAdd(words: Uint32Array, at: number): number {
    const hash = hashTag(words, at, SEED);
    const known = this.#find(words, at, hash);
    return known >= 0 ? known : ~this.#add(words, at, hash);
  }

  /** Gives a row to a tag that has none. */
  add(words: Uint32Array, at: number): number {
    return this.#add(words, at, hashTag(words, at, SEED));
  }

  /** Takes the tag of a row out; the row may be another's from then on. */
  remove(row: number): void {
    const hash = hashTag(this.#tags[row >>> SEGMENT_BITS]!, (row & SEGMENT_MASK) * TAG_WORDS, SEED);
    const shard = hash >>> (32 - SHARD_BITS);
    const slots = this.#slots[shard]!;
    const mask = slots.length / 2 - 1;
    let hole = hash & mask;
    while (slots[2 * hole] !== row + 1) hole = (hole + 1) & mask;
    for (let at = (hole + 1) & mask; slots[2 * at] !== 0; at = (at + 1) & mask) {
      const home = slots[2 * at + 1]! & mask;
      // it may go to the hole unless its home lies behind that
      if (((at - home) & mask) < ((at - hole) & mask)) continue;
      slots[2 * hole] = slots[2 * at]!;
      slots[2 * hole + 1] = slots[2 * at + 1]!;
      hole = at;
    }
    slots[2 * hole] = 0;
    this.#used[shard]!--;
    this.size--;
    this.#free.push(row);
  }

  /** Whether the row's tag is the one at word `at`. */
  isTag(row: number, words: Uint32Array, at: number): boolean {
    const tags = this.#tags[row >>> SEGMENT_BITS]!;
    const own = (row & SEGMENT_MASK) * TAG_WORDS;
    for (let word = 0; word < TAG_WORDS; word++) if (tags[own + word] !== words[at + word]) return false;
    return true;
  }

  /** Copies the tag of a row out to word `at`. */
  copy(row: number, into: Uint32Array, at: number): void {
    const tags = this.#tags[row >>> SEGMENT_BITS]!;
    const own = (row & SEGMENT_MASK) * TAG_WORDS;
    for (let word = 0; word < TAG_WORDS; word++) into[at + word] = tags[own + word]!;
  }

  /** The tags of rows, packed. */
  tagsOf(rows: ArrayLike<number>): Uint8Array {
    const words = new Uint32Array(rows.length * TAG_WORDS);
    for (let i = 0; i < rows.length; i++) this.copy(rows[i]!, words, i * TAG_WORDS);
    return new Uint8Array(words.buffer);
  }

  /** A view of the tags of rows from `first` on, up to `most` and to the end of its segment; also of those that were removed. */
  wordsFrom(first: number, most: number): Uint32Array {
    const end = Math.min(this.rows, first + most, ((first >>> SEGMENT_BITS) + 1) * SEGMENT_ROWS);
    const at = (first & SEGMENT_MASK) * TAG_WORDS;
    return this.#tags[first >>> SEGMENT_BITS]!.subarray(at, at + (end - first) * TAG_WORDS);
  }

  #find(words: Uint32Array, at: number, hash: number): number {
    const slots = this.#slots[hash >>> (32 - SHARD_BITS)]!;
    const mask = slots.length / 2 - 1;
    for (let slot = hash & mask; slots[2 * slot] !== 0; slot = (slot + 1) & mask) {
      if (slots[2 * slot + 1] !== hash) continue;
      const row = slots[2 * slot]! - 1;
      if (this.isTag(row, words, at)) return row;
    }
    return -1;
  }

  #add(words: Uint32Array, at: number, hash: number): number {
    const row = this.#free.pop() ?? this.rows++;
    if (row === this.capacity) this.#tags.push(new Uint32Array(SEGMENT_ROWS * TAG_WORDS));
    const tags = this.#tags[row >>> SEGMENT_BITS]!;
    const own = (row & SEGMENT_MASK) * TAG_WORDS;
    for (let word = 0; word < TAG_WORDS; word++) tags[own + word] = words[at + word]!;
    const shard = hash >>> (32 - SHARD_BITS);
    if ((this.#used[shard]! + 1) * 8 > this.#slots[shard]!.length * 3) this.#grow(shard);
    place(this.#slots[shard]!, hash, row + 1);
    this.#used[shard]!++;
    this.size++;
    return row;
  }

  #grow(shard: number): void {
    const old = this.#slots[shard]!;
    const slots = new Uint32Array(Math.max(2 * this.#firstSlots, 2 * old.length));
    for (let slot = 0; slot < old.length; slot += 2) if (old[slot] !== 0) place(slots, old[slot + 1]!, old[slot]!);
    this.#slots[shard] = slots;
  }
}

function place(slots: Uint32Array, hash: number, taken: number): void {
  const mask = slots.length / 2 - 1;
  let slot = hash & mask;
  while (slots[2 * slot] !== 0) slot = (slot + 1) & mask;
  slots[2 * slot] = taken;
  slots[2 * slot + 1] = hash;
}
