/**
 * Records of one domain: tags that at least two guests hold, or may hold, and how many guests of which host do.
 *
 *   slot    tag 16 bytes │ first cell 4 │ state 1        open addressing, linear probing, at most 3/4 full
 *   cell    host 2, guests 2 │ next cell 4                one a host that holds the tag
 *
 * So 21 bytes a slot and 8 a holding host; some 60 to 76 bytes a record that two hosts hold were measured (docs/distribution.md). State is 0 for an empty slot, else 1 + how many hosts were asked for the tag and have not answered.
 *
 * A slot's home is the top bits of the tag's hash, so hash order is home order whatever the table's size: that is what
 * {@link HolderTable.nextHome} walks by, and why a walk goes on across growth and removal. Slots move when a record is removed or added;
 * a slot number is good until then.
 */
import { malformed, type ByteReader, type ByteWriter } from './bytes.ts';
import { hashTag, TAG_WORDS } from './tag-words.ts';

const FIRST_POWER = 6;
const MOST_POWER = 30;
const SEED = 0x2545f491;
/** Guests of one host that can be counted for one tag. */
export const MOST_GUESTS = 0xffff;

export class HolderTable {
  /** Records. */
  size = 0;
  #power = FIRST_POWER;
  #tags = new Uint32Array(TAG_WORDS << FIRST_POWER);
  #first = new Uint32Array(1 << FIRST_POWER);
  #state = new Uint8Array(1 << FIRST_POWER);
  /** Cell `c` is words 2c and 2c + 1; cell 0 is none. */
  #cells = new Uint32Array(128);
  #cellsUsed = 1;
  #freeCell = 0;

  save(to: ByteWriter): void {
    to.u8(this.#power);
    to.u32(this.size);
    to.items(this.#tags);
    to.items(this.#first);
    to.items(this.#state);
    to.u32(this.#freeCell);
    to.words(this.#cells.subarray(0, 2 * this.#cellsUsed));
  }

  /** @throws PagetideError `PT_PROTOCOL` */
  static load(from: ByteReader): HolderTable {
    const table = new HolderTable();
    const power = from.u8();
    if (power < FIRST_POWER || power > MOST_POWER) throw malformed(`a table of 2^${power}`);
    table.#power = power;
    table.size = from.u32();
    table.#tags = from.u32s(TAG_WORDS * 2 ** power);
    table.#first = from.u32s(2 ** power);
    table.#state = new Uint8Array(from.raw(2 ** power));
    table.#freeCell = from.u32();
    const cells = from.words();
    table.#cellsUsed = cells.length / 2;
    let room = table.#cells.length;
    while (room < cells.length) room *= 2;
    table.#cells = new Uint32Array(room);
    table.#cells.set(cells);
    return table;
  }

  get slots(): number {
    return this.#state.length;
  }

  /** Bytes of memory. */
  get bytes(): number {
    return this.#tags.byteLength + this.#first.byteLength + this.#state.byteLength + this.#cells.byteLength;
  }

  /** The slot of the tag at word `at`; -1: no record. Allocates nothing. */
  find(words: Uint32Array, at: number): number {
    const mask = this.slots - 1;
    for (let slot = this.#home(words, at); this.#state[slot] !== 0; slot = (slot + 1) & mask)
      if (this.#isTag(slot, words, at)) return slot;
    return -1;
  }

  /** A record for a tag that has none: held by nobody, `pending` hosts asked. Allocates nothing but to grow. */
  insert(words: Uint32Array, at: number, pending: number): number {
    if ((this.size + 1) * 4 > this.slots * 3) this.#grow();
    const slot = this.#place(words, at);
    this.#first[slot] = 0;
    this.#state[slot] = pending + 1;
    this.size++;
    return slot;
  }

  /** Takes the record out; those behind it move up. */
  remove(slot: number): void {
    for (let cell = this.#first[slot]!; cell !== 0;) {
      const next = this.#cells[2 * cell + 1]!;
      this.#release(cell);
      cell = next;
    }
    const mask = this.slots - 1;
    let hole = slot;
    for (let at = (slot + 1) & mask; this.#state[at] !== 0; at = (at + 1) & mask) {
      // it may go to the hole unless its home lies behind that
      const home = this.#home(this.#tags, at * TAG_WORDS);
      if (((at - home) & mask) < ((at - hole) & mask)) continue;
      this.#tags.copyWithin(hole * TAG_WORDS, at * TAG_WORDS, (at + 1) * TAG_WORDS);
      this.#first[hole] = this.#first[at]!;
      this.#state[hole] = this.#state[at]!;
      hole = at;
    }
    this.#state[hole] = 0;
    this.size--;
  }

  isUsed(slot: number): boolean {
    return this.#state[slot] !== 0;
  }

  pending(slot: number): number {
    return this.#state[slot]! - 1;
  }

  /** One of the hosts that were asked has answered, or is gone. */
  answered(slot: number): void {
    if (this.#state[slot]! > 1) this.#state[slot]!--;
  }

  /** Guests of a host that hold it. */
  guestsOf(slot: number, host: number): number {
    const cell = this.#cellOf(slot, host);
    return cell === 0 ? 0 : this.#cells[2 * cell]! & 0xffff;
  }

  /** Guests of all hosts that hold it. */
  guests(slot: number): number {
    let sum = 0;
    for (let cell = this.#first[slot]!; cell !== 0; cell = this.#cells[2 * cell + 1]!)
      sum += this.#cells[2 * cell]! & 0xffff;
    return sum;
  }

  /** @param guests 0 takes the host out; no more than {@link MOST_GUESTS} are counted */
  setGuests(slot: number, host: number, guests: number): void {
    const cell = this.#cellOf(slot, host);
    if (guests <= 0) {
      if (cell !== 0) this.#unlink(slot, cell);
      return;
    }
    const value = ((host << 16) | Math.min(guests, MOST_GUESTS)) >>> 0;
    if (cell !== 0) this.#cells[2 * cell] = value;
    else {
      const made = this.#takeCell();
      this.#cells[2 * made] = value;
      this.#cells[2 * made + 1] = this.#first[slot]!;
      this.#first[slot] = made;
    }
  }

  /** The first holding host's cell, and the next ones: 0 ends. With {@link hostOf} and {@link countOf}. */
  firstCell(slot: number): number {
    return this.#first[slot]!;
  }
  nextCell(cell: number): number {
    return this.#cells[2 * cell + 1]!;
  }
  hostOf(cell: number): number {
    return this.#cells[2 * cell]! >>> 16;
  }
  countOf(cell: number): number {
    return this.#cells[2 * cell]! & 0xffff;
  }

  /** The words in which slots' tags lie, slot `s` at 4 s. Valid until a record is added. */
  get words(): Uint32Array {
    return this.#tags;
  }

  /** The home of a hash, 0 to 2^32 - 1. */
  homeOf(hash: number): number {
    return Math.floor(hash / 2 ** (32 - this.#power));
  }

  /** The least hash whose home is this one; 2^32 behind the last. */
  hashOf(home: number): number {
    return home * 2 ** (32 - this.#power);
  }

  /** Writes the slots whose home is `home` to `into` from `at` on; returns how many, also where there is no room for all. */
  atHome(home: number, into: Uint32Array, at: number): number {
    const mask = this.slots - 1;
    let found = 0;
    for (let slot = home; this.#state[slot] !== 0; slot = (slot + 1) & mask) {
      if (this.#home(this.#tags, slot * TAG_WORDS) !== home) continue;
      into[at + found] = slot;
      found++;
    }
    return found;
  }

  #home(words: Uint32Array, at: number): number {
    return hashTag(words, at, SEED) >>> (32 - this.#power);
  }

  #isTag(slot: number, words: Uint32Array, at: number): boolean {
    const own = slot * TAG_WORDS;
    const tags = this.#tags;
    return (
      tags[own] === words[at] &&
      tags[own + 1] === words[at + 1] &&
      tags[own + 2] === words[at + 2] &&
      tags[own + 3] === words[at + 3]
    );
  }

  #place(words: Uint32Array, at: number): number {
    const mask = this.slots - 1;
    let slot = this.#home(words, at);
    while (this.#state[slot] !== 0) slot = (slot + 1) & mask;
    for (let i = 0; i < TAG_WORDS; i++) this.#tags[slot * TAG_WORDS + i] = words[at + i]!;
    return slot;
  }

  #grow(): void {
    const tags = this.#tags;
    const first = this.#first;
    const state = this.#state;
    this.#power++;
    this.#tags = new Uint32Array(TAG_WORDS << this.#power);
    this.#first = new Uint32Array(1 << this.#power);
    this.#state = new Uint8Array(1 << this.#power);
    for (let old = 0; old < state.length; old++) {
      if (state[old] === 0) continue;
      const slot = this.#place(tags, old * TAG_WORDS);
      this.#first[slot] = first[old]!;
      this.#state[slot] = state[old]!;
    }
  }

  #cellOf(slot: number, host: number): number {
    let cell = this.#first[slot]!;
    while (cell !== 0 && this.#cells[2 * cell]! >>> 16 !== host) cell = this.#cells[2 * cell + 1]!;
    return cell;
  }

  #unlink(slot: number, cell: number): void {
    const next = this.#cells[2 * cell + 1]!;
    if (this.#first[slot] === cell) this.#first[slot] = next;
    else {
      let before = this.#first[slot]!;
      while (this.#cells[2 * before + 1] !== cell) before = this.#cells[2 * before + 1]!;
      this.#cells[2 * before + 1] = next;
    }
    this.#release(cell);
  }

  #release(cell: number): void {
    this.#cells[2 * cell + 1] = this.#freeCell;
    this.#freeCell = cell;
  }

  #takeCell(): number {
    if (this.#freeCell !== 0) {
      const cell = this.#freeCell;
      this.#freeCell = this.#cells[2 * cell + 1]!;
      return cell;
    }
    if (2 * this.#cellsUsed === this.#cells.length) {
      const larger = new Uint32Array(this.#cells.length * 2);
      larger.set(this.#cells);
      this.#cells = larger;
    }
    return this.#cellsUsed++;
  }
}
