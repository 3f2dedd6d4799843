/**
 * Batch requests and batches: the fill's messages.
 *
 *   runs    ┌ u32 start │ u32 count ┐ …                    frames start … start + count; in any order
 *
 *   batch   u32 raw │ u32 runs │ runs │ zero bitmap │ body
 *                                       │             └ the non-zero pages, in order, back to back: `raw` bytes; with the
 *                                       │               LZ4 flag one LZ4 block that its own u32 raw size precedes
 *                                       └ one bit a frame, in order, least significant first; set: all zero, not in the body
 */
import { uncompressSync } from 'lz4-napi';
import {
  FrameFlag,
  FrameType,
  HEADER_SIZE,
  batchFrameLimit,
  protocolError,
  readU32,
  writeHeader,
  writeU32,
} from './wire.ts';

/** Frames as pairs [start, count, start, count, …]. */
export type Runs = Uint32Array;

/**
 * Checks runs that came from outside, or from a caller.
 * @returns frames in all
 * @throws PagetideError `PT_PROTOCOL`
 */
export function checkRuns(runs: Runs, frames: number, pageSize: number): number {
  if (runs.length === 0 || runs.length % 2 !== 0) throw protocolError('a batch must ask for at least one run');
  const limit = batchFrameLimit(pageSize);
  let total = 0;
  for (let i = 0; i < runs.length; i += 2) {
    const start = runs[i]!;
    const count = runs[i + 1]!;
    if (count === 0 || start + count > frames)
      throw protocolError(`run ${start}+${count} is outside the guest's ${frames} frames`);
    total += count;
    if (total > limit) throw protocolError(`a batch may hold ${limit} frames at most`);
  }
  return total;
}

/** A whole BatchRequest frame. `runs` must have passed {@link checkRuns}, which told `total`. */
export function encodeBatchRequest(stream: number, runs: Runs, total: number): Buffer {
  const frame = Buffer.allocUnsafe(HEADER_SIZE + runs.length * 4);
  writeHeader(frame, 0, runs.length * 4, FrameType.BatchRequest, 0, stream, total);
  writeRuns(frame, HEADER_SIZE, runs);
  return frame;
}

/** Runs of a BatchRequest's payload; the decoder has checked that they are whole. */
export function decodeBatchRequest(
  buffer: Buffer,
  byteOffset: number,
  length: number,
  total: number,
  frames: number,
  pageSize: number,
): Runs {
  const runs = readRuns(buffer, byteOffset, length / 8);
  const counted = checkRuns(runs, frames, pageSize);
  if (counted !== total) throw protocolError(`a batch request says ${total} frames and lists ${counted}`);
  return runs;
}

/** Runs as they are sent, 8 bytes each. */
export function writeRuns(into: Uint8Array, offset: number, runs: Runs): void {
  for (let i = 0; i < runs.length; i++) writeU32(into, offset + i * 4, runs[i]!);
}

export function readRuns(from: Uint8Array, offset: number, count: number): Runs {
  const runs = new Uint32Array(count * 2);
  for (let i = 0; i < runs.length; i++) runs[i] = readU32(from, offset + i * 4);
  return runs;
}

/** Where the body of a batch begins, from the frame's first byte. */
export function batchBodyOffset(runs: Runs, total: number): number {
  return HEADER_SIZE + 8 + runs.length * 4 + ((total + 7) >> 3);
}

/**
 * Puts a Batch frame together, header included, in a buffer of its own (so that it can be handed to another thread).
 * @param zero bitmap over the `total` frames
 * @param body the non-zero pages, or their LZ4 block
 * @param raw bytes of the non-zero pages before compression
 */
export function encodeBatch(
  stream: number,
  runs: Runs,
  total: number,
  zero: Uint8Array,
  body: Uint8Array,
  raw: number,
  lz4: boolean,
): Buffer {
  const at = batchBodyOffset(runs, total);
  const frame = Buffer.allocUnsafeSlow(at + body.length);
  writeHeader(frame, 0, frame.length - HEADER_SIZE, FrameType.Batch, lz4 ? FrameFlag.Lz4 : 0, stream, total);
  writeU32(frame, HEADER_SIZE, raw);
  writeU32(frame, HEADER_SIZE + 4, runs.length / 2);
  writeRuns(frame, HEADER_SIZE + 8, runs);
  frame.set(zero.subarray(0, (total + 7) >> 3), at - ((total + 7) >> 3));
  frame.set(body, at);
  return frame;
}

/** A batch, unpacked. */
export interface Batch {
  runs: Runs;
  /** Frames in all. */
  total: number;
  zeroFrames: number;
  /** Bitmap over the frames, in the runs' order; set: all zero, not in `pages`. */
  zero: Uint8Array;
  /** The non-zero pages, in order. Raw batches: a view of the payload, valid only as long as that is. */
  pages: Uint8Array;
  /** Bytes of the body as it came. */
  bodyBytes: number;
}

/**
 * Unpacks a Batch's payload. Everything that it says is checked against what was asked before anything is allocated.
 * @param asked the runs of the request that it answers
 * @param total frames in `asked`
 * @throws PagetideError `PT_PROTOCOL`
 */
export function decodeBatch(payload: Buffer, flags: number, asked: Runs, total: number, pageSize: number): Batch {
  const bitmapBytes = (total + 7) >> 3;
  const bodyAt = 8 + asked.length * 4 + bitmapBytes;
  if (payload.length < bodyAt) throw protocolError('a batch is shorter than its own lists');
  if (readU32(payload, 4) !== asked.length / 2) throw protocolError('a batch answers other runs than were asked for');
  for (let i = 0; i < asked.length; i++) {
    if (readU32(payload, 8 + i * 4) !== asked[i]) throw protocolError('a batch answers other runs than were asked for');
  }
  const zero = payload.subarray(bodyAt - bitmapBytes, bodyAt);
  let zeroFrames = 0;
  for (const byte of zero) zeroFrames += BITS[byte]!;
  if ((total & 7) !== 0 && zero[bitmapBytes - 1]! >> (total & 7) !== 0)
    throw protocolError('a batch marks frames zero that it has not');
  const raw = readU32(payload, 0);
  if (raw !== (total - zeroFrames) * pageSize)
    throw protocolError(`a batch says ${raw} bytes for ${total - zeroFrames} pages`);
  const body = payload.subarray(bodyAt);
  const pages = (flags & FrameFlag.Lz4) === 0 ? body : unpack(body, raw);
  if (pages.length !== raw) throw protocolError(`a batch holds ${pages.length} bytes and says ${raw}`);
  return { runs: asked, total, zeroFrames, zero, pages, bodyBytes: body.length };
}

const BITS = Uint8Array.from({ length: 256 }, (_, byte) => byte.toString(2).replaceAll('0', '').length);

/** The pages of an LZ4 body that says to hold `raw` bytes. @throws PagetideError `PT_PROTOCOL` */
export function unpack(body: Buffer, raw: number): Buffer {
  // The library allocates what the block's own prefix claims: look at that first.
  if (raw === 0 || body.length < 5 || body.length >= raw || readU32(body, 0) !== raw)
    throw protocolError('a batch has a wrong compressed size');
  try {
    return uncompressSync(body);
  } catch (cause) {
    throw protocolError(`a batch can't be decompressed: ${String(cause)}`);
  }
}

/**
 * Walks the pieces of a batch in order: stretches of consecutive frames that are all there, or all zero.
 * @param take gets the first frame, how many, and where they begin in `batch.pages`, or -1 for zero frames
 */
export function eachPiece(
  batch: Batch,
  pageSize: number,
  take: (frame: number, count: number, byteOffset: number) => void,
): void {
  let index = 0;
  let at = 0;
  for (let r = 0; r < batch.runs.length; r += 2) {
    const start = batch.runs[r]!;
    const end = start + batch.runs[r + 1]!;
    let frame = start;
    while (frame < end) {
      const first = frame;
      const isZero = (batch.zero[index >> 3]! >> (index & 7)) & 1;
      do {
        frame++;
        index++;
      } while (frame < end && ((batch.zero[index >> 3]! >> (index & 7)) & 1) === isZero);
      if (isZero === 1) {
        take(first, frame - first, -1);
      } else {
        take(first, frame - first, at);
        at += (frame - first) * pageSize;
      }
    }
  }
}
