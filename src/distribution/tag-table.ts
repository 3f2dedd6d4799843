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
 *
 * It grows without a pause: entries by a segment (segments.ts; the first begins small, as most guests are), and the hash linearly (Litwin, 1980): a
 * new entry that makes more than two a chain divides one chain, the next in turn, so no insertion moves more than that chain.
 */
import { hashTag, TAG_WORDS } from '../directory/tag-words.ts';
import { SEGMENT_BITS, SEGMENT_MASK, SEGMENT_ROWS } from './segments.ts';

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

/** Entries of one segment. */
class Segment {
  readonly words: Uint32Array;
  readonly frames: Uint32Array;
  readonly since: Uint32Array;
  readonly next: Uint32Array;
  readonly states: Uint8Array;

  /** @param from a smaller one to begin with */
  constructor(length: number, from?: Segment) {
    this.words = new Uint32Array(length * TAG_WORDS);
    this.frames = new Uint32Array(length);
    this.since = new Uint32Array(length);
    this.next = new Uint32Array(length);
    this.states = new Uint8Array(length);
    if (from === undefined) return;
    this.words.set(from.words);
    this.frames.set(from.frames);
    this.since.set(from.since);
    this.next.set(from.next);
    this.states.set(from.states);
  }
}

export class TagTable {
  /** Entries in each state but Free. */
  readonly counts = [0, 0, 0, 0];
  /** Entry 0 is none. */
  #used = 1;
  #free = 0;
  readonly #segments = [new Segment(LEAST)];
  /** First entries of chains: by the hash below 2 × {@link #level}, or below {@link #level} where that chain isn't there yet. */
  readonly #heads = [new Uint32Array(LEAST)];
  /** A power of two: chains that there were before those were divided whose turn has come. */
  #level = LEAST / 2;
  #chains = LEAST / 2;
  /** Entries that there is room for. */
  #capacity = LEAST;

  /** Of memory. */
  get bytes(): number {
    const heads = this.#heads.reduce((sum, { byteLength }) => sum + byteLength, 0);
    return this.#capacity * (4 * TAG_WORDS + 13) + heads;
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
    let entry = this.#head(this.#chain(words, at));
    while (entry !== 0 && !this.isTag(entry, words, at)) entry = this.#next(entry);
    return entry;
  }

  isTag(entry: number, words: Uint32Array, at: number): boolean {
    const own = (entry & SEGMENT_MASK) * TAG_WORDS;
    const tags = this.#of(entry).words;
    return (
      tags[own] === words[at] &&
      tags[own + 1] === words[at + 1] &&
      tags[own + 2] === words[at + 2] &&
      tags[own + 3] === words[at + 3]
    );
  }

  isTold(entry: number): boolean {
    return (this.#state(entry) & 1) === 1;
  }

  /** One more frame has the tag at word `at`, unchanged since `since`; returns its entry. */
  hold(words: Uint32Array, at: number, since: number): number {
    const found = this.find(words, at);
    const entry = found !== 0 ? found : this.#insert(words, at);
    const segment = this.#of(entry);
    const own = entry & SEGMENT_MASK;
    if (segment.frames[own] === 0) segment.since[own] = since;
    segment.frames[own]!++;
    const state = segment.states[own];
    if (state === EntryState.Free) this.#become(entry, EntryState.Untold);
    else if (state === EntryState.Gone) this.#become(entry, EntryState.Told);
    return entry;
  }

  /** One frame less has it. */
  release(entry: number): void {
    if (--this.#of(entry).frames[entry & SEGMENT_MASK]! > 0) return;
    if (this.#state(entry) === EntryState.Told) this.#become(entry, EntryState.Gone);
    else this.#remove(entry);
  }

  /** No frame has any. */
  releaseAll(): void {
    for (let entry = 1; entry < this.#used; entry++) {
      const { frames } = this.#of(entry);
      if (frames[entry & SEGMENT_MASK] === 0) continue;
      frames[entry & SEGMENT_MASK] = 1;
      this.release(entry);
    }
  }

  /** Nothing is told any more. */
  untell(): void {
    for (let entry = 1; entry < this.#used; entry++) {
      const state = this.#state(entry);
      if (state === EntryState.Told) this.#become(entry, EntryState.Untold);
      else if (state === EntryState.Gone) this.#remove(entry);
    }
  }

  /** Packs up to `most` of the tags in a state, Untold or Gone, which are told with this. */
  tell(state: typeof EntryState.Untold | typeof EntryState.Gone, most: number): Uint8Array {
    const count = Math.min(most, this.counts[state]!);
    const packed = new Uint32Array(count * TAG_WORDS);
    for (let number = 0, i = 0; i < count; number++) {
      const { states } = this.#segments[number]!;
      for (let own = states.indexOf(state); own >= 0 && i < count; own = states.indexOf(state, own + 1)) {
        const entry = (number << SEGMENT_BITS) + own;
        this.#copy(entry, packed, i++);
        if (state === EntryState.Untold) this.#become(entry, EntryState.Told);
        else this.#remove(entry);
      }
    }
    return new Uint8Array(packed.buffer);
  }

  /** Packs all that are held, and since when each is. */
  heldTags(): { tags: Uint8Array; since: Uint32Array } {
    const packed = new Uint32Array(this.held * TAG_WORDS);
    const since = new Uint32Array(this.held);
    for (let entry = 1, i = 0; entry < this.#used; entry++) {
      const segment = this.#of(entry);
      if (segment.frames[entry & SEGMENT_MASK] === 0) continue;
      this.#copy(entry, packed, i);
      since[i++] = segment.since[entry & SEGMENT_MASK]!;
    }
    return { tags: new Uint8Array(packed.buffer), since };
  }

  #of(entry: number): Segment {
    return this.#segments[entry >>> SEGMENT_BITS]!;
  }

  #state(entry: number): number {
    return this.#of(entry).states[entry & SEGMENT_MASK]!;
  }

  #next(entry: number): number {
    return this.#of(entry).next[entry & SEGMENT_MASK]!;
  }

  #copy(entry: number, into: Uint32Array, index: number): void {
    const { words } = this.#of(entry);
    const own = (entry & SEGMENT_MASK) * TAG_WORDS;
    for (let i = 0; i < TAG_WORDS; i++) into[index * TAG_WORDS + i] = words[own + i]!;
  }

  #become(entry: number, state: EntryState): void {
    this.counts[this.#state(entry)]!--;
    this.counts[state]!++;
    this.#of(entry).states[entry & SEGMENT_MASK] = state;
  }

  #insert(words: Uint32Array, at: number): number {
    let entry = this.#free;
    if (entry !== 0) this.#free = this.#next(entry);
    else {
      if (this.#used === this.#capacity) this.#makeRoom();
      entry = this.#used++;
    }
    const segment = this.#of(entry);
    const own = (entry & SEGMENT_MASK) * TAG_WORDS;
    for (let i = 0; i < TAG_WORDS; i++) segment.words[own + i] = words[at + i]!;
    this.#link(entry, this.#chain(words, at));
    // entries that are used, free ones left out, are in the chains
    if (this.held + this.counts[EntryState.Gone]! > 2 * this.#chains) this.#divide();
    return entry;
  }

  #remove(entry: number): void {
    const { words, next } = this.#of(entry);
    const own = entry & SEGMENT_MASK;
    const chain = this.#chain(words, own * TAG_WORDS);
    let before = this.#head(chain);
    if (before === entry) this.#setHead(chain, next[own]!);
    else {
      while (this.#next(before) !== entry) before = this.#next(before);
      this.#of(before).next[before & SEGMENT_MASK] = next[own]!;
    }
    this.#become(entry, EntryState.Free);
    next[own] = this.#free;
    this.#free = entry;
  }

  #link(entry: number, chain: number): void {
    this.#of(entry).next[entry & SEGMENT_MASK] = this.#head(chain);
    this.#setHead(chain, entry);
  }

  #head(chain: number): number {
    return this.#heads[chain >>> SEGMENT_BITS]![chain & SEGMENT_MASK]!;
  }

  #setHead(chain: number, entry: number): void {
    this.#heads[chain >>> SEGMENT_BITS]![chain & SEGMENT_MASK] = entry;
  }

  /** The chain of the tag at word `at`. */
  #chain(words: Uint32Array, at: number): number {
    const hash = hashTag(words, at, SEED);
    const chain = hash & (2 * this.#level - 1);
    return chain < this.#chains ? chain : hash & (this.#level - 1);
  }

  /** One more chain, from entries of the one whose turn it is. */
  #divide(): void {
    const added = this.#chains;
    const divided = added - this.#level;
    const number = added >>> SEGMENT_BITS;
    const heads = this.#heads[number];
    if (heads === undefined) this.#heads.push(new Uint32Array(SEGMENT_ROWS));
    else if ((added & SEGMENT_MASK) === heads.length) {
      this.#heads[number] = new Uint32Array(2 * heads.length);
      this.#heads[number].set(heads);
    }
    this.#chains++;
    let entry = this.#head(divided);
    this.#setHead(divided, 0);
    while (entry !== 0) {
      const next = this.#next(entry);
      this.#link(entry, this.#chain(this.#of(entry).words, (entry & SEGMENT_MASK) * TAG_WORDS));
      entry = next;
    }
    if (this.#chains === 2 * this.#level) this.#level = this.#chains;
  }

  #makeRoom(): void {
    const first = this.#segments[0]!;
    if (this.#capacity < SEGMENT_ROWS) this.#segments[0] = new Segment(2 * this.#capacity, first);
    else this.#segments.push(new Segment(SEGMENT_ROWS));
    this.#capacity = this.#capacity < SEGMENT_ROWS ? 2 * this.#capacity : this.#capacity + SEGMENT_ROWS;
  }
}
