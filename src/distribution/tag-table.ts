/**
 * The tags that one guest holds, each once, and how many of its frames have it:
 *
 *   entry   tag 16 bytes │ frames 4 │ since 4 │ next 4 │ state 1         reached by a hash over `next`, at most two a chain on average
 *
 *   state              a frame gets it                    told
 *           free ─────────────────────► untold ───────────────────► told
 *            ▲ ▲   the last frame loses it │  ▲ begin again ─────────┤
 *            │ ╰───────────────────────────╯  ╰───────────────────── │ ──╮
 *            │             told                 a frame gets it      ▼   │
 *            ╰────────────────────────────────────────────────────  gone ╯   (gone → told: it was lost and is there again, nothing to tell)
 *
 * *Told* and *gone* are the reported state. An entry's number is the same as long as it isn't free. No object an entry; what isn't used any more is
 * used again, and no memory given back before the guest goes.
 */
import { hashTag, TAG_WORDS } from '../directory/tag-words.ts';

export const EntryState = {
  Free: 0,
  /** Held and told. */
  Told: 1,
  /** Held, to be told. */
  Untold: 2,
  /** Told, and not held any more. */
  Gone: 3,
} as const;
export type EntryState = (typeof EntryState)[keyof typeof EntryState];

const SEED = 0x51ab1e;
const LEAST = 64;

export class TagTable {
  /** Entries in each state but Free. */
  readonly counts = [0, 0, 0, 0];
  /** Entry 0 is none. */
  #used = 1;
  #free = 0;
  #words = new Uint32Array(LEAST * TAG_WORDS);
  #frames = new Uint32Array(LEAST);
  #since = new Uint32Array(LEAST);
  #next = new Uint32Array(LEAST);
  #states = new Uint8Array(LEAST);
  #heads = new Uint32Array(LEAST);

  /** Of memory. */
  get bytes(): number {
    return this.#frames.length * (4 * TAG_WORDS + 13) + this.#heads.byteLength;
  }

  /** Tags held. */
  get held(): number {
    return this.counts[EntryState.Told]! + this.counts[EntryState.Untold]!;
  }

  /** Tags in the reported state. */
  get told(): number {
    return this.counts[EntryState.Told]! + this.counts[EntryState.Gone]!;
  }

  /** Differences between what is held and what is told. */
  get pending(): number {
    return this.counts[EntryState.Untold]! + this.counts[EntryState.Gone]!;
  }

  /** One past the greatest entry. */
  get end(): number {
    return this.#used;
  }

  /** The entry of the tag at word `at`; 0: none. */
  find(words: Uint32Array, at: number): number {
    let entry = this.#heads[this.#home(words, at)]!;
    while (entry !== 0 && !this.#isTag(entry, words, at)) entry = this.#next[entry]!;
    return entry;
  }

  isTag(entry: number, words: Uint32Array, at: number): boolean {
    return this.#isTag(entry, words, at);
  }

  isTold(entry: number): boolean {
    return (this.#states[entry]! & 1) === 1;
  }

  /** One more frame has the tag at word `at`, unchanged since `since`; returns its entry. */
  hold(words: Uint32Array, at: number, since: number): number {
    const found = this.find(words, at);
    const entry = found !== 0 ? found : this.#insert(words, at);
    if (this.#frames[entry] === 0) this.#since[entry] = since;
    this.#frames[entry]!++;
    const state = this.#states[entry];
    if (state === EntryState.Free) this.#become(entry, EntryState.Untold);
    else if (state === EntryState.Gone) this.#become(entry, EntryState.Told);
    return entry;
  }

  /** One frame less has it. */
  release(entry: number): void {
    if (--this.#frames[entry]! > 0) return;
    if (this.#states[entry] === EntryState.Told) this.#become(entry, EntryState.Gone);
    else this.#remove(entry);
  }

  /** No frame has any. */
  releaseAll(): void {
    for (let entry = 1; entry < this.#used; entry++) {
      if (this.#frames[entry] === 0) continue;
      this.#frames[entry] = 1;
      this.release(entry);
    }
  }

  /** Nothing is told any more. */
  untell(): void {
    for (let entry = 1; entry < this.#used; entry++) {
      if (this.#states[entry] === EntryState.Told) this.#become(entry, EntryState.Untold);
      else if (this.#states[entry] === EntryState.Gone) this.#remove(entry);
    }
  }

  /** Packs up to `most` of the tags in a state, Untold or Gone, which are told with this. */
  tell(state: typeof EntryState.Untold | typeof EntryState.Gone, most: number): Uint8Array {
    const count = Math.min(most, this.counts[state]!);
    const packed = new Uint32Array(count * TAG_WORDS);
    for (let i = 0, entry = 0; i < count; i++) {
      entry = this.#states.indexOf(state, entry + 1);
      this.#copy(entry, packed, i);
      if (state === EntryState.Untold) this.#become(entry, EntryState.Told);
      else this.#remove(entry);
    }
    return new Uint8Array(packed.buffer);
  }

  /** Packs all that are held, and since when each is. */
  heldTags(): { tags: Uint8Array; since: Uint32Array } {
    const packed = new Uint32Array(this.held * TAG_WORDS);
    const since = new Uint32Array(this.held);
    for (let entry = 1, i = 0; entry < this.#used; entry++) {
      if (this.#frames[entry] === 0) continue;
      this.#copy(entry, packed, i);
      since[i++] = this.#since[entry]!;
    }
    return { tags: new Uint8Array(packed.buffer), since };
  }

  #copy(entry: number, into: Uint32Array, index: number): void {
    for (let i = 0; i < TAG_WORDS; i++) into[index * TAG_WORDS + i] = this.#words[entry * TAG_WORDS + i]!;
  }

  #become(entry: number, state: EntryState): void {
    this.counts[this.#states[entry]!]!--;
    this.counts[state]!++;
    this.#states[entry] = state;
  }

  #insert(words: Uint32Array, at: number): number {
    let entry = this.#free;
    if (entry !== 0) this.#free = this.#next[entry]!;
    else {
      if (this.#used === this.#frames.length) this.#grow();
      entry = this.#used++;
    }
    for (let i = 0; i < TAG_WORDS; i++) this.#words[entry * TAG_WORDS + i] = words[at + i]!;
    this.#link(entry);
    return entry;
  }

  #remove(entry: number): void {
    const home = this.#home(this.#words, entry * TAG_WORDS);
    const next = this.#next[entry]!;
    if (this.#heads[home] === entry) this.#heads[home] = next;
    else {
      let before = this.#heads[home]!;
      while (this.#next[before] !== entry) before = this.#next[before]!;
      this.#next[before] = next;
    }
    this.#become(entry, EntryState.Free);
    this.#next[entry] = this.#free;
    this.#free = entry;
  }

  #link(entry: number): void {
    const home = this.#home(this.#words, entry * TAG_WORDS);
    this.#next[entry] = this.#heads[home]!;
    this.#heads[home] = entry;
  }

  #home(words: Uint32Array, at: number): number {
    return hashTag(words, at, SEED) & (this.#heads.length - 1);
  }

  #isTag(entry: number, words: Uint32Array, at: number): boolean {
    const own = entry * TAG_WORDS;
    const tags = this.#words;
    return (
      tags[own] === words[at] &&
      tags[own + 1] === words[at + 1] &&
      tags[own + 2] === words[at + 2] &&
      tags[own + 3] === words[at + 3]
    );
  }

  /** By a quarter, as all of it is memory for the guest's whole life; no entry is free then. */
  #grow(): void {
    const length = Math.ceil(this.#frames.length * 1.25);
    this.#words = grown(this.#words, length * TAG_WORDS);
    this.#frames = grown(this.#frames, length);
    this.#since = grown(this.#since, length);
    this.#next = grown(this.#next, length);
    const states = new Uint8Array(length);
    states.set(this.#states);
    this.#states = states;
    if (length <= 2 * this.#heads.length) return;
    this.#heads = new Uint32Array(2 * this.#heads.length);
    for (let entry = 1; entry < this.#used; entry++) this.#link(entry);
  }
}

function grown(old: Uint32Array, length: number): Uint32Array<ArrayBuffer> {
  const larger = new Uint32Array(length);
  larger.set(old);
  return larger;
}
