/**
 * Frames of one guest that hold the same page, linked in rings: a page that has been fetched once is put into all of them.
 *
 *    tags    A  B  A  0  A  B            next    2  5  4  3  0  1
 *            0  1  2  3  4  5            first   0  1  0  3  0  1
 *
 * A frame whose page no other frame has, and every zero frame, is a ring of its own. The first frame names its ring; in rings that were
 * kept up with a manifest that changed ({@link DuplicateRings}) some other frame of it may.
 */
import { isZeroTag, sameTag } from './tag-runs.ts';
import { TAG_BYTES } from './tags.ts';

const EMPTY = 0xffff_ffff;

export interface Duplicates {
  /** Shared memory, a frame each: the next frame with the same tag; itself where there is none. */
  next: Uint32Array;
  /** Shared memory, a frame each: the first frame with the same tag. */
  first: Uint32Array;
  /** Frames whose tag an earlier frame has already. */
  repeated: number;
  /** Frames with the zero page's tag. */
  zero: number;
}

/**
 * Rings that are kept up with a manifest that changes, at the cost of the frames that changed and the rings that they were in. No ring
 * ever holds two pages. One page may be in two rings, where the frame is gone by which the other one was found: it is fetched once for each.
 *
 *   update ─► changed frames leave their rings ─► each joins that of its new tag, as far as `heads` finds one
 */
export class DuplicateRings implements Pick<Duplicates, 'next' | 'first'> {
  readonly next: Uint32Array;
  readonly first: Uint32Array;
  readonly #tags: Uint8Array;
  /** Frames by tag, as {@link linkDuplicates} has them; some may have another tag since. */
  #heads: Uint32Array | undefined;
  #used = 0;
  readonly #changed: Uint8Array;

  /** All frames of their own. @param tags 16 bytes a frame, read by every call */
  constructor(tags: Uint8Array) {
    this.#tags = tags;
    ({ next: this.next, first: this.first } = noDuplicates(tags.length / TAG_BYTES));
    this.#changed = new Uint8Array(this.next.length);
  }

  /** Anew, from all tags. */
  link(): void {
    const { heads, different } = linkInto(this.#tags, this);
    this.#heads = heads;
    this.#used = different;
  }

  /** The tags of these frames, [first, count, …] of disjoint runs, have changed. */
  update(runs: readonly number[]): void {
    let frames = 0;
    for (let i = 1; i < runs.length; i += 2) frames += runs[i]!;
    const heads = this.#heads;
    // each may take a slot for itself and one for what is left of its ring
    if (heads === undefined || this.#used + 2 * frames > heads.length * (3 / 4)) {
      this.link();
      return;
    }
    eachFrame(runs, (frame) => (this.#changed[frame] = 1));
    const left: number[] = [];
    eachFrame(runs, (frame) => this.#leave(frame, left));
    // once all have left: a frame that has changed to the tag of such a ring may be listed already
    for (const name of left) this.#join(heads, name);
    eachFrame(runs, (frame) => {
      this.#changed[frame] = 0;
      this.#join(heads, frame);
    });
  }

  /** The ring of a changed frame, without all that have changed; its new name goes to `left`. */
  #leave(frame: number, left: number[]): void {
    const { next, first } = this;
    if (next[frame] === frame) return;
    const kept: number[] = [];
    for (let at = next[frame]!, other = at; ; at = other) {
      other = next[at]!;
      next[at] = at;
      first[at] = at;
      if (this.#changed[at] === 0) kept.push(at);
      if (at === frame) break;
    }
    const name = kept[0];
    if (name === undefined) return;
    for (let i = 0; i < kept.length; i++) {
      next[kept[i]!] = kept[(i + 1) % kept.length]!;
      first[kept[i]!] = name;
    }
    left.push(name);
  }

  /** Makes one ring of that of `frame` and that of the frame that is listed with its tag, where one of the two is alone. */
  #join(heads: Uint32Array, frame: number): void {
    const { next, first } = this;
    if (isZeroTag(this.#tags, frame)) return;
    const head = this.#list(heads, frame);
    if (first[head] === first[frame]) return;
    if (next[head] === head) first[head] = first[frame]!;
    else if (next[frame] === frame) first[frame] = first[head]!;
    else return;
    const after = next[head]!;
    next[head] = next[frame]!;
    next[frame] = after;
  }

  /** The frame that is listed with the tag of `frame`; else lists that one. */
  #list(heads: Uint32Array, frame: number): number {
    for (let slot = slotOf(this.#tags, frame, heads.length); ; slot = (slot + 1) & (heads.length - 1)) {
      const head = heads[slot]!;
      if (head !== EMPTY) {
        if (sameTag(this.#tags, head, this.#tags, frame)) return head;
        continue;
      }
      heads[slot] = frame;
      this.#used++;
      return frame;
    }
  }
}

/** Room for the rings of `frames` frames, each a ring of its own. */
export function noDuplicates(frames: number): Duplicates {
  const next = new Uint32Array(new SharedArrayBuffer(frames * 4));
  const first = new Uint32Array(new SharedArrayBuffer(frames * 4));
  for (let frame = 0; frame < frames; frame++) next[frame] = first[frame] = frame;
  return { next, first, repeated: 0, zero: 0 };
}

/**
 * Builds the rings: one pass, 8 bytes a frame beside a table of as much that is dropped afterwards.
 * @param tags 16 bytes a frame
 * @param into room for them, of {@link noDuplicates}
 */
export function linkDuplicates(tags: Uint8Array, into = noDuplicates(tags.length / TAG_BYTES)): Duplicates {
  const { next, first } = into;
  const { repeated, zero } = linkInto(tags, into);
  return { next, first, repeated, zero };
}

function linkInto(
  tags: Uint8Array,
  { next, first }: Pick<Duplicates, 'next' | 'first'>,
): { heads: Uint32Array; different: number; repeated: number; zero: number } {
  const frames = tags.length / TAG_BYTES;
  // Open addressing, at most half full.
  let size = 16;
  while (size < frames * 2) size *= 2;
  const heads = new Uint32Array(size).fill(EMPTY);
  let repeated = 0;
  let zero = 0;
  for (let frame = 0; frame < frames; frame++) {
    next[frame] = frame;
    first[frame] = frame;
    if (isZeroTag(tags, frame)) {
      zero++;
      continue;
    }
    for (let slot = slotOf(tags, frame, size); ; slot = (slot + 1) & (size - 1)) {
      const head = heads[slot]!;
      if (head === EMPTY) {
        heads[slot] = frame;
        break;
      }
      if (sameTag(tags, head, tags, frame)) {
        next[frame] = next[head]!;
        next[head] = frame;
        first[frame] = head;
        repeated++;
        break;
      }
    }
  }
  return { heads, different: frames - repeated - zero, repeated, zero };
}

/** Tags are digests: their first bytes are as good as any hash of them. */
function slotOf(tags: Uint8Array, frame: number, size: number): number {
  const at = frame * TAG_BYTES;
  const hash = tags[at]! | (tags[at + 1]! << 8) | (tags[at + 2]! << 16) | (tags[at + 3]! << 24);
  return (hash >>> 0) & (size - 1);
}

function eachFrame(runs: readonly number[], take: (frame: number) => void): void {
  for (let i = 0; i < runs.length; i += 2)
    for (let frame = runs[i]!; frame < runs[i]! + runs[i + 1]!; frame++) take(frame);
}
