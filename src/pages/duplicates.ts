/**
 * Frames of one guest that hold the same page, linked in rings: a page that has been fetched once is put into all of them.
 *
 *    tags    A  B  A  0  A  B            next    2  5  4  3  0  1
 *            0  1  2  3  4  5            first   0  1  0  3  0  1
 *
 * A frame whose page no other frame has, and every zero frame, is a ring of its own.
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
  const frames = tags.length / TAG_BYTES;
  const { next, first } = into;
  // Tags are digests: their first bytes are as good as any hash of them. Open addressing, at most half full.
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
    const at = frame * TAG_BYTES;
    const hash = tags[at]! | (tags[at + 1]! << 8) | (tags[at + 2]! << 16) | (tags[at + 3]! << 24);
    for (let slot = (hash >>> 0) & (size - 1); ; slot = (slot + 1) & (size - 1)) {
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
  return { next, first, repeated, zero };
}
