/** What a batch worker does: read pages, leave out what is not to be sent, compress the rest, make the whole frame. */
import { compressSync } from 'lz4-napi';
import { asPagetideError, type ErrorJson } from '../errors.ts';
import { native } from '../memory/native.ts';
import { TAG_BYTES, TAG_PAGE } from '../pages/tags.ts';
import { isZero, readMemory, type Segment } from './memory-file.ts';
import { readByTag, readFromFiles, type TagPlace } from './tag-place.ts';
import { encodeBatch, type Runs } from './wire-batch.ts';
import { encodeDeltas, type DeltaRequest } from './wire-deltas.ts';
import { bitmapBytes, encodeTagPages, set } from './wire-tag-pages.ts';
import { DELTA_MAP, DELTA_PAGE, WireLimit } from './wire.ts';

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

/** Deltas of frames of a guest's memory with pages of 4096 bytes. */
export interface DeltasTask {
  kind: 'deltas';
  segments: readonly Segment[];
  stream: number;
  /** Checked: inside the guest, and within the bounds of a batch. */
  request: DeltaRequest;
  /** Frames in all. */
  total: number;
  /** Tell what whole pages would have taken. */
  measure: boolean;
}

/** Pages by tag; those that are not here are left out. */
export interface TagsTask {
  kind: 'tags';
  place: TagPlace;
  stream: number;
  /** 16 bytes each. */
  tags: Uint8Array;
  /** Somebody's guest waits for it: not packed. */
  urgent: boolean;
}

export type BatchTask = FramesTask | TagsTask | DeltasTask;

/** Errors travel as JSON: a thrown one would lose its code between threads. */
export type BatchResult =
  | { frame: Uint8Array<ArrayBuffer>; pages: number; absent: number; rawBytes: number; bodyBytes: number }
  | { error: ErrorJson };

/** One batch is made at a time in a thread: its pages are gathered here. */
let scratch: Buffer | undefined;
/** And deltas there. */
let deltas: Buffer | undefined;

/** Makes the frame that answers a request. Never throws. */
export function makeBatch(task: BatchTask): BatchResult {
  try {
    switch (task.kind) {
      case 'frames':
        return makeFrames(task);
      case 'tags':
        return makeTags(task);
      case 'deltas':
        return makeDeltas(task);
    }
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

/**
 * The guest may write a page while it is read: digests and blocks are of the one copy that was read, whatever that is, and it is compared
 * with its tag where it arrives.
 */
function makeDeltas({ segments, stream, request, total, measure }: DeltasTask): BatchResult {
  const { seed, runs, digests } = request;
  const pages = (scratch ??= Buffer.allocUnsafeSlow(WireLimit.batchBytes));
  const into = (deltas ??= Buffer.allocUnsafeSlow(WireLimit.batchFrames * (DELTA_MAP + DELTA_PAGE)));
  let at = 0;
  for (let r = 0; r < runs.length; r += 2) {
    const bytes = runs[r + 1]! * DELTA_PAGE;
    readMemory(segments, runs[r]! * DELTA_PAGE, bytes, pages, at);
    at += bytes;
  }
  const raw = native().encodeDeltas(seed, pages, total, digests, into);
  const { body, lz4 } = pack(into.subarray(0, raw));
  const whole = measure ? pack(pages.subarray(0, at)).body.length : 0;
  const frame = encodeDeltas(stream, total, whole, body, raw, lz4) as Uint8Array<ArrayBuffer>;
  return { frame, pages: total, absent: 0, rawBytes: at, bodyBytes: body.length };
}

function makeTags({ place, stream, tags, urgent }: TagsTask): BatchResult {
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
  const { body, lz4 } = urgent ? { body: data, lz4: false } : pack(data);
  const frame = encodeTagPages(stream, count, present, body, raw, lz4) as Uint8Array<ArrayBuffer>;
  return { frame, pages: raw / TAG_PAGE, absent: count - raw / TAG_PAGE, rawBytes: raw, bodyBytes: body.length };
}

/** One LZ4 block, where that is smaller. */
function pack(data: Buffer): { body: Uint8Array; lz4: boolean } {
  const packed = data.length === 0 ? data : compressSync(data);
  const lz4 = packed.length < data.length;
  return { body: lz4 ? packed : data, lz4 };
}
