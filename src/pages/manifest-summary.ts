/** What a manifest holds, and what it shares with others: what `pagetide manifest` shows. */
import { isZeroTag, sameTag } from './tag-runs.ts';
import type { Manifest } from './manifest.ts';
import { TAG_BYTES } from './tags.ts';

/** Frames of 4096 bytes. */
export interface ManifestSummary {
  frames: number;
  zero: number;
  /** Different pages, the zero page not counted. */
  distinct: number;
  /** Frames that repeat a page of an earlier frame: `frames − zero − distinct`. */
  repeated: number;
}

export interface ManifestComparison {
  /** Non-zero frames whose page the other manifest has in any frame. */
  shared: number;
  /** Of them, frames that have the same page as the other's frame of the same number. */
  inPlace: number;
  /** Different pages that both have. */
  sharedDistinct: number;
  /** Non-zero frames whose page the other lacks. */
  missing: number;
  /** Chunks that both have, of this manifest's; those of zero pages only are not counted. */
  sharedChunks: number;
  chunks: number;
}

const EMPTY = 0xffff_ffff;

/** The tags of one manifest, to be looked up: 8 bytes a frame at most. Zero tags are not in it. */
class TagSet {
  readonly #tags: Uint8Array;
  readonly #slots: Uint32Array;
  distinct = 0;
  zero = 0;

  constructor(tags: Uint8Array) {
    const frames = tags.length / TAG_BYTES;
    let size = 16;
    while (size < frames * 2) size *= 2;
    this.#tags = tags;
    this.#slots = new Uint32Array(size).fill(EMPTY);
    for (let frame = 0; frame < frames; frame++) {
      if (isZeroTag(tags, frame)) {
        this.zero++;
        continue;
      }
      const slot = this.#find(tags, frame);
      if (this.#slots[slot] !== EMPTY) continue;
      this.#slots[slot] = frame;
      this.distinct++;
    }
  }

  /** Whether `frame`, of this manifest, is the first one with its page. */
  isFirst(frame: number): boolean {
    return this.#slots[this.#find(this.#tags, frame)] === frame;
  }

  has(tags: Uint8Array, frame: number): boolean {
    return this.#slots[this.#find(tags, frame)] !== EMPTY;
  }

  /** Different pages that the other set has too. */
  countIn(other: TagSet): number {
    let count = 0;
    for (const frame of this.#slots) if (frame !== EMPTY && other.has(this.#tags, frame)) count++;
    return count;
  }

  /** The slot of that tag, or the free one where it would go. */
  #find(tags: Uint8Array, frame: number): number {
    const at = frame * TAG_BYTES;
    const hash = tags[at]! | (tags[at + 1]! << 8) | (tags[at + 2]! << 16) | (tags[at + 3]! << 24);
    const mask = this.#slots.length - 1;
    let slot = (hash >>> 0) & mask;
    for (;;) {
      const held = this.#slots[slot]!;
      if (held === EMPTY || sameTag(this.#tags, held, tags, frame)) return slot;
      slot = (slot + 1) & mask;
    }
  }
}

export function summarizeManifest(manifest: Manifest): ManifestSummary {
  const { frames } = manifest;
  const { zero, distinct } = new TagSet(manifest.tags);
  return { frames, zero, distinct, repeated: frames - zero - distinct };
}

/** What of `manifest` a host would have that holds all pages of `other`. Both must be of one domain, or nothing is shared. */
export function compareManifests(manifest: Manifest, other: Manifest): ManifestComparison {
  const { tags, frames } = manifest;
  const theirs = new TagSet(other.tags);
  const ours = new TagSet(tags);
  const result: ManifestComparison = {
    shared: 0,
    inPlace: 0,
    sharedDistinct: 0,
    missing: 0,
    sharedChunks: 0,
    chunks: manifest.chunks,
  };
  for (let frame = 0; frame < frames; frame++) {
    if (isZeroTag(tags, frame)) continue;
    if (theirs.has(tags, frame)) result.shared++;
    else result.missing++;
    if (frame < other.frames && sameTag(tags, frame, other.tags, frame)) result.inPlace++;
  }
  result.sharedDistinct = theirs.countIn(ours);
  const chunks = new Set<string>();
  for (let index = 0; index < other.chunks; index++) chunks.add(hex(other.chunkTag(index)));
  for (let index = 0; index < manifest.chunks; index++) {
    const tag = manifest.chunkTag(index);
    if (!isZeroTag(tag, 0) && chunks.has(hex(tag))) result.sharedChunks++;
  }
  return result;
}

/** The first frame of each different page that is not zero, in ascending order; with `lacking`, of those that it lacks. */
export function uniqueFrames({ tags, frames }: Manifest, lacking?: Manifest): Uint32Array {
  const own = new TagSet(tags);
  const theirs = lacking === undefined ? undefined : new TagSet(lacking.tags);
  const unique = new Uint32Array(own.distinct);
  let count = 0;
  for (let frame = 0; frame < frames; frame++) {
    if (isZeroTag(tags, frame) || !own.isFirst(frame) || theirs?.has(tags, frame) === true) continue;
    unique[count++] = frame;
  }
  return unique.subarray(0, count);
}

function hex(tag: Uint8Array): string {
  return Buffer.from(tag.buffer, tag.byteOffset, tag.length).toString('hex');
}
