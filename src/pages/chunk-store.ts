/**
 * Chunks of manifests that this host knows, by their tags: those of guests that are or were here. A chunk that is known is
 * named by 16 bytes instead of the 8 KiB of its tags. What a chunk's tag names never changes, so nothing here ever gets
 * stale; the chunk that was used longest ago goes first.
 */
import { CHUNK_FRAMES, type Manifest } from './manifest.ts';
import { isZeroTag } from './tag-runs.ts';
import { TAG_BYTES } from './tags.ts';

interface Chunk {
  /** Whose chunk it is: goes with its domain. */
  domain: number;
  tags: Uint8Array;
}

export class ChunkStore {
  readonly #most: number;
  /** In the order of use, oldest first. */
  readonly #chunks = new Map<string, Chunk>();

  /** @param bytes of tags that are kept at most; 8 KiB name 2 MiB of memory */
  constructor(bytes: number) {
    this.#most = Math.floor(bytes / (CHUNK_FRAMES * TAG_BYTES));
  }

  get size(): number {
    return this.#chunks.size;
  }

  /** Takes in the chunks of a manifest of `domain`, copied; chunks of zero pages need none. */
  add(domain: number, manifest: Manifest): void {
    for (let index = 0; index < manifest.chunks; index++) {
      const tag = manifest.chunkTag(index);
      if (isZeroTag(tag, 0)) continue;
      const name = nameOf(tag, 0);
      const known = this.#chunks.get(name);
      const first = index * CHUNK_FRAMES;
      const tags =
        known?.tags ??
        new Uint8Array(manifest.tags.subarray(first * TAG_BYTES, (first + manifest.framesOf(index)) * TAG_BYTES));
      this.#chunks.delete(name);
      this.#chunks.set(name, { domain, tags });
    }
    for (const name of this.#chunks.keys()) {
      if (this.#chunks.size <= this.#most) break;
      this.#chunks.delete(name);
    }
  }

  /** The tags of the chunk whose tag is number `at` of `chunkTags`, where it is known for that domain. */
  get(domain: number, chunkTags: Uint8Array, at: number): Uint8Array | undefined {
    const name = nameOf(chunkTags, at);
    const found = this.#chunks.get(name);
    if (found === undefined || found.domain !== domain) return undefined;
    this.#chunks.delete(name);
    this.#chunks.set(name, found);
    return found.tags;
  }

  /** Forgets the chunks of a domain. */
  removeDomain(domain: number): void {
    for (const [name, chunk] of this.#chunks) if (chunk.domain === domain) this.#chunks.delete(name);
  }
}

function nameOf(tags: Uint8Array, at: number): string {
  return Buffer.from(tags.buffer, tags.byteOffset + at * TAG_BYTES, TAG_BYTES).toString('latin1');
}
