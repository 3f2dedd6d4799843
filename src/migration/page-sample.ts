/**
 * A sample of the pages of guests, by which is told what they have in common without comparing all of them: the pages whose tag ends in a number of
 * zero bits. Tags are keyed digests, so that is a fair sample of different pages; and a page is in the sample of every guest that has
 * it or of none, so what two samples have in common is a sample of what the guests have in common.
 */
import type { Manifest } from '../pages/manifest.ts';
import { isZeroTag } from '../pages/tag-runs.ts';
import { TAG_BYTES, TAG_PAGE } from '../pages/tags.ts';

/** Frames that are looked at in one go: about a millisecond. */
const PIECE = 1 << 15;

export interface SampledGuest {
  name: string;
  /** Its pages in the sample by number, each once. */
  pages: Uint32Array;
}

/** Pages of guests of one domain. */
export interface PageSample {
  guests: SampledGuest[];
  /** Tags of the sample, 16 bytes each, by number. */
  tags: Uint8Array;
  /** Bytes of pages that one page of the sample stands for. */
  pageBytes: number;
}

/**
 * @param guests of one domain; their manifests may change meanwhile: what is told is an estimate
 * @param most pages of one guest that are wanted in the sample, about
 */
export async function samplePages(
  guests: readonly { name: string; manifest: Manifest }[],
  most: number,
): Promise<PageSample> {
  let largest = 0;
  for (const { manifest } of guests) {
    let pages = 0;
    await eachFrame(manifest, () => {
      pages++;
    });
    largest = Math.max(largest, pages);
  }
  const bits = Math.min(31, Math.max(0, Math.ceil(Math.log2(largest / Math.max(1, most)))));
  const mask = 2 ** bits - 1;
  const numbers = new Map<string, number>();
  const sampled: SampledGuest[] = [];
  for (const { name, manifest } of guests) {
    const pages = new Set<number>();
    const { tags } = manifest;
    await eachFrame(manifest, (frame) => {
      const at = frame * TAG_BYTES;
      const low = tags[at]! | (tags[at + 1]! << 8) | (tags[at + 2]! << 16) | ((tags[at + 3]! & 0x7f) << 24);
      if ((low & mask) !== 0) return;
      const tag = Buffer.from(tags.subarray(at, at + TAG_BYTES)).toString('latin1');
      let number = numbers.get(tag);
      if (number === undefined) numbers.set(tag, (number = numbers.size));
      pages.add(number);
    });
    sampled.push({ name, pages: Uint32Array.from(pages) });
  }
  const tags = Buffer.alloc(numbers.size * TAG_BYTES);
  for (const [tag, number] of numbers) tags.write(tag, number * TAG_BYTES, 'latin1');
  return { guests: sampled, tags, pageBytes: TAG_PAGE * (mask + 1) };
}

/** Every frame that is not zero; some at a time, as an agent's thread has other things to do. */
async function eachFrame({ tags, frames }: Manifest, look: (frame: number) => void): Promise<void> {
  for (let first = 0; first < frames; first += PIECE) {
    const end = Math.min(frames, first + PIECE);
    for (let frame = first; frame < end; frame++) if (!isZeroTag(tags, frame)) look(frame);
    if (end < frames) await new Promise((resolve) => setImmediate(resolve));
  }
}
