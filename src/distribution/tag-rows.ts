/**
 * Numbers for tags: row `n` of the columns that whoever uses it keeps beside it.
 *
 *   shard   top bits of the hash │ slots: row + 1, 0 is empty      open addressing, linear probing, at most 3/4 full
 *   row     tag 16 bytes                                           rows that were removed are used again
 *
 * There are 1024 shards, that grow each by itself: with a million tags the table never stops for more than a thousand of them. What grows as
 * a whole is copied only, which takes a few milliseconds then.
 */
import { hashTag, TAG_WORDS } from '../directory/tag-words.ts';

const SHARD_BITS = 10;
const FIRST_SLOTS = 8;
const SEED = 0x51ed270b;

export class TagRows {
  /** Tags that there are. */
  size = 0;
  /** Rows that were ever used: all numbers are below. */
  rows = 0;
  #tags: Uint32Array;
  readonly #slots: Uint32Array[] = [];
  readonly #used = new Uint32Array(1 << SHARD_BITS);
  readonly #free: number[] = [];

  /** @param room rows to have room for at once */
  constructor(room = 1024) {
    this.#tags = new Uint32Array(Math.max(16, room) * TAG_WORDS);
    for (let shard = 0; shard < 1 << SHARD_BITS; shard++) this.#slots.push(new Uint32Array(FIRST_SLOTS));
  }

  /** Rows that there is room for: length of the columns. Grows with {@link add}. */
  get capacity(): number {
    return this.#tags.length / TAG_WORDS;
  }

  /** Row of the tag at word `at`; -1: it is not there. Allocates nothing. */
  find(words: Uint32Array, at: number): number {
    const hash = hashTag(words, at, SEED);
    const slots = this.#slots[hash >>> (32 - SHARD_BITS)]!;
    const mask = slots.length - 1;
    for (let slot = hash & mask; slots[slot] !== 0; slot = (slot + 1) & mask) {
      const row = slots[slot]! - 1;
      if (this.#isTag(row, words, at)) return row;
    }
    return -1;
  }

  /** Gives a row to a tag that has none. */
  add(words: Uint32Array, at: number): number {
    const row = this.#free.pop() ?? this.rows++;
    if (row >= this.capacity) {
      const grown = new Uint32Array(this.#tags.length * 2);
      grown.set(this.#tags);
      this.#tags = grown;
    }
    for (let word = 0; word < TAG_WORDS; word++) this.#tags[row * TAG_WORDS + word] = words[at + word]!;
    const hash = hashTag(words, at, SEED);
    const shard = hash >>> (32 - SHARD_BITS);
    if ((this.#used[shard]! + 1) * 4 > this.#slots[shard]!.length * 3) this.#grow(shard);
    place(this.#slots[shard]!, hash, row);
    this.#used[shard]!++;
    this.size++;
    return row;
  }

  /** Takes the tag of a row out; the row may be another's from then on. */
  remove(row: number): void {
    const hash = this.#hash(row);
    const shard = hash >>> (32 - SHARD_BITS);
    const slots = this.#slots[shard]!;
    const mask = slots.length - 1;
    let hole = hash & mask;
    while (slots[hole] !== row + 1) hole = (hole + 1) & mask;
    for (let at = (hole + 1) & mask; slots[at] !== 0; at = (at + 1) & mask) {
      const home = this.#hash(slots[at]! - 1) & mask;
      // it may go to the hole unless its home lies behind that
      if (((at - home) & mask) < ((at - hole) & mask)) continue;
      slots[hole] = slots[at]!;
      hole = at;
    }
    slots[hole] = 0;
    this.#used[shard]!--;
    this.size--;
    this.#free.push(row);
  }

  /** Copies the tag of a row out to word `at`. */
  copy(row: number, into: Uint32Array, at: number): void {
    for (let word = 0; word < TAG_WORDS; word++) into[at + word] = this.#tags[row * TAG_WORDS + word]!;
  }

  /** The tags of rows, packed. */
  tagsOf(rows: ArrayLike<number>): Uint8Array {
    const words = new Uint32Array(rows.length * TAG_WORDS);
    for (let i = 0; i < rows.length; i++) this.copy(rows[i]!, words, i * TAG_WORDS);
    return new Uint8Array(words.buffer);
  }

  #grow(shard: number): void {
    const old = this.#slots[shard]!;
    const slots = new Uint32Array(old.length * 2);
    for (const taken of old) if (taken !== 0) place(slots, this.#hash(taken - 1), taken - 1);
    this.#slots[shard] = slots;
  }

  #hash(row: number): number {
    return hashTag(this.#tags, row * TAG_WORDS, SEED);
  }

  #isTag(row: number, words: Uint32Array, at: number): boolean {
    const own = row * TAG_WORDS;
    for (let word = 0; word < TAG_WORDS; word++) if (this.#tags[own + word] !== words[at + word]) return false;
    return true;
  }
}

function place(slots: Uint32Array, hash: number, row: number): void {
  const mask = slots.length - 1;
  let slot = hash & mask;
  while (slots[slot] !== 0) slot = (slot + 1) & mask;
  slots[slot] = row + 1;
}
