/**
 * Packed tags as 32-bit words, four a tag, so that nothing is allocated a tag. Tag `i` is words [4i, 4i + 4).
 */
import { TAG_BYTES } from '../pages/tags.ts';

export const TAG_WORDS = TAG_BYTES / 4;

/** A copy: what comes over a network may lie at any byte, a `Uint32Array` may not. One allocation a batch. */
export function toWords(tags: Uint8Array): Uint32Array<ArrayBuffer> {
  const words = new Uint32Array(tags.length / 4);
  new Uint8Array(words.buffer).set(tags);
  return words;
}

/**
 * 32 bits, unsigned, of the tag at word `at`. Tags are keyed digests already; they are mixed all the same, so that an agent that
 * reports other things than digests can't make long chains by accident. Two seeds give two hashes.
 */
export function hashTag(words: Uint32Array, at: number, seed: number): number {
  let hash = Math.imul(words[at]! ^ seed, 0x85ebca6b);
  hash = Math.imul(hash ^ (hash >>> 15) ^ words[at + 1]!, 0xc2b2ae35);
  hash = Math.imul(hash ^ (hash >>> 13) ^ words[at + 2]!, 0x27d4eb2f);
  hash = Math.imul(hash ^ (hash >>> 16) ^ words[at + 3]!, 0x165667b1);
  hash = Math.imul(hash ^ (hash >>> 16), 0x85ebca6b);
  hash = Math.imul(hash ^ (hash >>> 13), 0xc2b2ae35);
  return (hash ^ (hash >>> 16)) >>> 0;
}
