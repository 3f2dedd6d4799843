/** A batch of pages that came for the fill: what of it is right, and what is left of it. */
import type { NamedPages } from './named-pages.ts';

/** A batch, unpacked: the pages of all frames of `runs` that are not zero, back to back in `pages`. */
export interface FilledBatch {
  runs: Uint32Array;
  /** One bit a frame, least significant first: set where the frame is all zero. */
  zero: Uint8Array;
  pages: Uint8Array;
  /** Payload bytes on the wire. */
  wireBytes: number;
  /** From where; a peer's is found right already. */
  from: 'source' | 'peer';
  /** The pages were made of deltas: one that is not right may be so for no fault of the source's. */
  ofDeltas?: boolean;
}

/** The first frame whose page is not what belongs there; -1: all are. Allocates nothing but what checking does. */
export function firstWrong(named: NamedPages, { runs, zero, pages }: FilledBatch, pageSize: number): number {
  let index = 0;
  let offset = 0;
  for (let i = 0; i < runs.length; i += 2) {
    for (let frame = runs[i]!; frame < runs[i]! + runs[i + 1]!; frame++) {
      const isZero = bit(zero, index++);
      if (!(isZero ? named.isZero(frame) : named.verify(frame, pages, offset))) return frame;
      if (!isZero) offset += pageSize;
    }
  }
  return -1;
}

/**
 * What of a batch is right, as batches of consecutive frames without bytes on the wire; and the frames that are not, with where their
 * pages are in `pages` (-1: it was to be zero).
 */
export function sortOut(
  named: NamedPages,
  { runs, zero, pages, from }: FilledBatch,
  pageSize: number,
): { right: FilledBatch[]; wrong: number[]; wrongAt: number[] } {
  const pieces: { frame: number; count: number; isZero: boolean; offset: number }[] = [];
  const wrong: number[] = [];
  const wrongAt: number[] = [];
  let index = 0;
  let offset = 0;
  for (let i = 0; i < runs.length; i += 2) {
    for (let frame = runs[i]!; frame < runs[i]! + runs[i + 1]!; frame++) {
      const isZero = bit(zero, index++);
      const last = pieces.at(-1);
      const follows = last !== undefined && last.isZero === isZero && last.frame + last.count === frame;
      if (!(isZero ? named.isZero(frame) : named.verify(frame, pages, offset))) {
        wrong.push(frame);
        wrongAt.push(isZero ? -1 : offset);
      } else if (follows) last.count++;
      else pieces.push({ frame, count: 1, isZero, offset });
      if (!isZero) offset += pageSize;
    }
  }
  const right = pieces.map(({ frame, count, isZero, offset: at }): FilledBatch => {
    const bitmap = new Uint8Array((count + 7) >> 3).fill(isZero ? 0xff : 0);
    const content = isZero ? pages.subarray(0, 0) : pages.subarray(at, at + count * pageSize);
    return { runs: Uint32Array.of(frame, count), zero: bitmap, pages: content, wireBytes: 0, from };
  });
  return { right, wrong, wrongAt };
}

/** Bit `index` of a bitmap. */
export function bit(bitmap: Uint8Array, index: number): boolean {
  return ((bitmap[index >> 3]! >> (index & 7)) & 1) === 1;
}

/** What of a batch is left from `frame` (in run `i / 2`, the `index`th of the batch, its page at `offset`) on. */
export function rest(batch: FilledBatch, i: number, frame: number, index: number, offset: number): FilledBatch {
  const end = batch.runs[i]! + batch.runs[i + 1]!;
  const runs = Uint32Array.of(frame, end - frame, ...batch.runs.subarray(i + 2));
  let frames = 0;
  for (let r = 1; r < runs.length; r += 2) frames += runs[r]!;
  const zero = new Uint8Array((frames + 7) >> 3);
  for (let n = 0; n < frames; n++) if (bit(batch.zero, index + n)) zero[n >> 3]! |= 1 << (n & 7);
  // a copy, as the pages may lie in memory that the connection uses again; `slice` of a Buffer would be none
  return { runs, zero, pages: new Uint8Array(batch.pages.subarray(offset)), wireBytes: 0, from: batch.from };
}
