/** What a batch worker does: read runs of pages, leave out the zero ones, compress the rest, make the whole frame. */
import { compressSync } from 'lz4-napi';
import { asPagetideError, type ErrorJson } from '../errors.ts';
import { isZero, readMemory, type Segment } from './memory-file.ts';
import { encodeBatch, type Runs } from './wire-batch.ts';
import { WireLimit } from './wire.ts';

export interface BatchTask {
  segments: readonly Segment[];
  pageSize: number;
  stream: number;
  /** Checked: inside the guest, and within the bounds of a batch. */
  runs: Runs;
  /** Frames in all. */
  total: number;
}

/** Errors travel as JSON: a thrown one would lose its code between threads. */
export type BatchResult =
  | { frame: Uint8Array<ArrayBuffer>; pages: number; zero: number; rawBytes: number; bodyBytes: number }
  | { error: ErrorJson };

/** One batch is made at a time in a thread: its pages are gathered here. */
let scratch: Buffer | undefined;

/** Makes the Batch frame that answers a request. Never throws. */
export function makeBatch(task: BatchTask): BatchResult {
  try {
    return make(task);
  } catch (error) {
    return { error: asPagetideError(error).toJSON() };
  }
}

function make({ segments, pageSize, stream, runs, total }: BatchTask): BatchResult {
  const pages = (scratch ??= Buffer.allocUnsafeSlow(WireLimit.batchBytes));
  const zero = new Uint8Array((total + 7) >> 3);
  let index = 0;
  let zeroFrames = 0;
  let raw = 0;
  for (let r = 0; r < runs.length; r += 2) {
    const bytes = runs[r + 1]! * pageSize;
    const begin = raw;
    readMemory(segments, runs[r]! * pageSize, bytes, pages, begin);
    for (let at = begin; at < begin + bytes; at += pageSize, index++) {
      if (isZero(pages, at, pageSize)) {
        zero[index >> 3]! |= 1 << (index & 7);
        zeroFrames++;
        continue;
      }
      if (raw !== at) pages.copyWithin(raw, at, at + pageSize);
      raw += pageSize;
    }
  }
  const data = pages.subarray(0, raw);
  const packed = raw === 0 ? data : compressSync(data);
  const lz4 = packed.length < raw;
  const body = lz4 ? packed : data;
  const frame = encodeBatch(stream, runs, total, zero, body, raw, lz4) as Uint8Array<ArrayBuffer>;
  return { frame, pages: total - zeroFrames, zero: zeroFrames, rawBytes: raw, bodyBytes: body.length };
}
