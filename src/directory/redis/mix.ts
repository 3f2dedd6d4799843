/**
 * Tags as they are kept in Redis: mixed, so that all their bytes are as good as random, whatever an agent reports.
 *
 * Tags are keyed digests and random already; but shard, bucket and filter take bits of them at fixed places, and nobody should be able to
 * fill one of these by accident. The mix is a bijection, so nothing else is kept: each of its steps changes one word by the other three, and is
 * its own inverse; backwards they undo it.
 */
import { hashTag, TAG_WORDS, toWords } from '../tag-words.ts';

/** Shards of a domain. Changing it makes other keys: all hosts begin anew. */
export const SHARDS = 128;
const STEPS = [0x1b873593, 0xcc9e2d51, 0x85ebca77, 0xc2b2ae3d, 0x27d4eb4f, 0x165667c5, 0x9e3779b1, 0x7feb352d];

/** The same number of packed tags. A copy. */
export function mix(tags: Uint8Array): Uint8Array<ArrayBuffer> {
  return run(tags, 0, 1);
}

export function unmix(tags: Uint8Array): Uint8Array<ArrayBuffer> {
  return run(tags, STEPS.length - 1, -1);
}

/** Of the mixed tag at byte `at`. */
export function shardOf(mixed: Uint8Array, at: number): number {
  return mixed[at + 15]! % SHARDS;
}

function run(tags: Uint8Array, first: number, way: 1 | -1): Uint8Array<ArrayBuffer> {
  const words = toWords(tags);
  for (let at = 0; at < words.length; at += TAG_WORDS)
    for (let i = first; i >= 0 && i < STEPS.length; i += way) {
      const word = at + (i % TAG_WORDS);
      const own = words[word]!;
      words[word] = 0;
      words[word] = own ^ hashTag(words, at, STEPS[i]!);
    }
  return new Uint8Array(words.buffer);
}
