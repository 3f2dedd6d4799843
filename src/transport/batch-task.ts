/** What a batch worker does: read pages, leave out what is not to be sent, compress the rest, make the whole frame. */
import { compressSync } from 'lz4-napi';
import { asPagetideError, type ErrorJson } from '../errors.ts';
import { TAG_BYTES, TAG_PAGE } from '../pages/tags.ts';
import { isZero, readMemory, type Segment } from './memory-file.ts';
import { readByTag, readFromFiles, type TagPlace } from './tag-place.ts';
import { encodeBatch, type Runs } from './wire-batch.ts';
import { bitmapBytes, encodeTagPages, set } from './wire-tag-pages.ts';
import { WireLimit } from './wire.ts';

/** Pages by frame, of a guest's memory; zero pages are left out. */
export interface FramesTask {
  kind: 'frames';
  segments: readonly Segment[];
  pageSize: number;
  stream: number;
  /** Checked: inside the guest, and within the bounds of a batch. */
  runs: Runs;
  /** Frames in all. */
  total: number;
}

/** Pages by tag; those that are not here are left out. */
export interface TagsTask {
  kind: 'tags';
  place: TagPlace;
  stream: number;
  /** 16 bytes each. */
  tags: Uint8Array;
}

export type BatchTask = FramesTask | TagsTask;

/** Errors travel as JSON: a thrown one would lose its code between threads. */
export type BatchResult =
  | { frame: Uint8Array<ArrayBuffer>; pages: number; absent: number; rawBytes: number; bodyBytes: number }
  | { error: ErrorJson };

/** One batch is made at a time in a thread: its pages are gathered here. */
let scratch: Buffer | undefined;

/** Makes the frame that answers a request. Never throws. */
export function makeBatch(task: BatchTask): BatchResult {
  try {
    return task.kind === 'frames' ? makeFrames(task) : makeTags(task);
  } catch (error) {
    return { error: asPagetideError(error).toJSON() };
  }
}

function makeFrames({ segments, pageSize, stream, runs, total }: FramesTask): BatchResult {
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
  const { body, lz4 } = pack(pages.subarray(0, raw));
  const frame = encodeBatch(stream, runs, total, zero, body, raw, lz4) as Uint8Array<ArrayBuffer>;
  return { frame, pages: total - zeroFrames, absent: zeroFrames, rawBytes: raw, bodyBytes: body.length };
}

function makeTags({ place, stream, tags }: TagsTask): BatchResult {
  const pages = (scratch ??= Buffer.allocUnsafeSlow(WireLimit.batchBytes));
  const count = tags.length / TAG_BYTES;
  const present = new Uint8Array(bitmapBytes(count));
  let raw = 0;
  for (let i = 0; i < count; i++) {
    if (!readByTag(place, tags, i, pages, raw) && !readFromFiles(place, tags, i, pages, raw)) continue;
    set(present, i);
    raw += TAG_PAGE;
  }
  const data = pages.subarray(0, raw);
  // somebody's guest waits for a single one
  const { body, lz4 } = count === 1 ? { body: data, lz4: false } : pack(data);
  const frame = encodeTagPages(stream, count, present, body, raw, lz4) as Uint8Array<ArrayBuffer>;
  return { frame, pages: raw / TAG_PAGE, absent: count - raw / TAG_PAGE, rawBytes: raw, bodyBytes: body.length };
}

/** One LZ4 block, where that is smaller. */
function pack(data: Buffer): { body: Uint8Array; lz4: boolean } {
  const packed = data.length === 0 ? data : compressSync(data);
  const lz4 = packed.length < data.length;
  return { body: lz4 ? packed : data, lz4 };
}
