/**
 * The manifest: the tags of all frames of one guest at one moment.
 *
 *    frames   0 … 511 │ 512 … 1023 │ …                  a tag each, of 4 KiB whatever the guest's page size
 *             └──┬───┘ └────┬─────┘
 *    chunks      c₀         c₁       …                   SHA-256("pagetide chunk 1" ‖ frames ‖ tags), 16 bytes; of zero pages only: zeros
 *                └────┬─────┴─ …
 *    digest           d                                  SHA-256("pagetide manifest 1" ‖ version ‖ frames ‖ chunk tags), 32 bytes
 *
 * Two sides that know the same chunk name it with 16 bytes instead of 2 MiB of tags and pages. The digest says that both
 * sides mean the same memory, to the last frame: the destination computes it over its own table before the guest runs.
 * Tags are keyed with the domain's secret, so neither chunk tags nor digest need a key of their own.
 */
import { createHash } from 'node:crypto';
import { PagetideError } from '../errors.ts';
import { decodeTagRuns, encodeTagRuns } from './tag-runs.ts';
import { TAG_BYTES, TAG_VERSION } from './tags.ts';

/** Frames of a chunk; the last one of a guest may have fewer. */
export const CHUNK_FRAMES = 512;
/** Frames of a guest: 2 TiB. A table is 16 bytes a frame. */
export const MOST_FRAMES = 1 << 29;
export const DIGEST_BYTES = 32;

export class Manifest {
  /** Frames of 4096 bytes. */
  readonly frames: number;
  /** Shared memory, 16 bytes a frame: tag of frame n at 16 n. Whoever writes it calls {@link touch}. */
  readonly tags: Uint8Array;
  readonly chunks: number;
  /** Chunk tags, 16 bytes each; valid where {@link #stale} is 0. */
  readonly #chunkTags: Uint8Array;
  readonly #stale: Uint8Array;

  /**
   * @param frames 1 to {@link MOST_FRAMES}
   * @param tags a table to take over, `frames` × 16 bytes; without it all frames are zero
   */
  constructor(frames: number, tags?: Uint8Array) {
    if (!Number.isInteger(frames) || frames < 1 || frames > MOST_FRAMES)
      throw new PagetideError('PT_BAD_ARGUMENT', `a manifest of ${frames} frames`);
    if (tags !== undefined && tags.length !== frames * TAG_BYTES)
      throw new PagetideError('PT_BAD_ARGUMENT', `${tags.length} bytes are not the tags of ${frames} frames`);
    this.frames = frames;
    this.tags = tags ?? new Uint8Array(new SharedArrayBuffer(frames * TAG_BYTES));
    this.chunks = Math.ceil(frames / CHUNK_FRAMES);
    this.#chunkTags = new Uint8Array(this.chunks * TAG_BYTES);
    this.#stale = new Uint8Array(this.chunks).fill(1);
  }

  /** Frames of chunk `index`. */
  framesOf(index: number): number {
    if (!Number.isInteger(index) || index < 0 || index >= this.chunks)
      throw new PagetideError('PT_BAD_ARGUMENT', `no chunk ${index} of ${this.chunks}`);
    return Math.min(CHUNK_FRAMES, this.frames - index * CHUNK_FRAMES);
  }

  /** The tags of `count` frames from `frame` have been written. */
  touch(frame: number, count: number): void {
    if (count <= 0) return;
    this.#stale.fill(1, Math.floor(frame / CHUNK_FRAMES), Math.floor((frame + count - 1) / CHUNK_FRAMES) + 1);
  }

  /** Tag of chunk `index`, 16 bytes. */
  chunkTag(index: number): Uint8Array {
    const frames = this.framesOf(index);
    if (this.#stale[index] === 1) {
      const first = index * CHUNK_FRAMES * TAG_BYTES;
      const tags = this.tags.subarray(first, first + frames * TAG_BYTES);
      this.#chunkTags.set(chunkTagOf(tags), index * TAG_BYTES);
      this.#stale[index] = 0;
    }
    return this.#chunkTags.subarray(index * TAG_BYTES, (index + 1) * TAG_BYTES);
  }

  /** All chunk tags back to back. */
  chunkTags(): Uint8Array {
    for (let index = 0; index < this.chunks; index++) this.chunkTag(index);
    return this.#chunkTags;
  }

  /** Digest of the whole: {@link DIGEST_BYTES} bytes. */
  digest(): Buffer {
    const head = Buffer.alloc(8);
    head.writeUInt32LE(TAG_VERSION, 0);
    head.writeUInt32LE(this.frames, 4);
    return createHash('sha256').update('pagetide manifest 1\0').update(head).update(this.chunkTags()).digest();
  }

  /** Chunk `index`, run-length coded. */
  encodeChunk(index: number): Buffer {
    return encodeTagRuns(this.tags, index * CHUNK_FRAMES, this.framesOf(index));
  }

  /**
   * Takes chunk `index` in, and only if it is the one that `expected` names: a chunk that comes from elsewhere is
   * decoded aside first.
   * @throws PagetideError `PT_PROTOCOL`; nothing has changed then
   */
  decodeChunk(index: number, coded: Uint8Array, expected: Uint8Array): void {
    const frames = this.framesOf(index);
    const tags = new Uint8Array(frames * TAG_BYTES);
    decodeTagRuns(coded, tags, 0, frames);
    this.setChunk(index, tags, expected);
  }

  /**
   * The same where only the digest of the whole is known: it has to be checked before anything is believed.
   * @throws PagetideError `PT_PROTOCOL`; the chunk may be written in part then
   */
  readChunk(index: number, coded: Uint8Array): void {
    const frames = this.framesOf(index);
    decodeTagRuns(coded, this.tags, index * CHUNK_FRAMES, frames);
    this.touch(index * CHUNK_FRAMES, frames);
  }

  /** The same for tags that are decoded: of a chunk that this host knows. */
  setChunk(index: number, tags: Uint8Array, expected: Uint8Array): void {
    const frames = this.framesOf(index);
    if (tags.length !== frames * TAG_BYTES || !chunkTagOf(tags).equals(expected))
      throw new PagetideError('PT_PROTOCOL', `chunk ${index} of a manifest is not the one that its tag names`);
    this.tags.set(tags, index * CHUNK_FRAMES * TAG_BYTES);
    this.touch(index * CHUNK_FRAMES, frames);
  }
}

/** The tag of a chunk from its tags; all zero when they are. */
export function chunkTagOf(tags: Uint8Array): Buffer {
  if (isZero(tags)) return Buffer.alloc(TAG_BYTES);
  const frames = Buffer.alloc(4);
  frames.writeUInt32LE(tags.length / TAG_BYTES);
  const digest = createHash('sha256').update('pagetide chunk 1\0').update(frames).update(tags).digest();
  return digest.subarray(0, TAG_BYTES);
}

function isZero(bytes: Uint8Array): boolean {
  for (const byte of bytes) if (byte !== 0) return false;
  return true;
}
