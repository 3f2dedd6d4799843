/**
 * Requests for deltas, and deltas: the fill's messages in rounds of copying, for frames of which the destination has older versions.
 *
 *   request   u64 seed │ u32 runs │ runs │ digests             runs as those of a batch; the digests of the blocks of the older
 *                                                              versions, 64 bytes a frame, in the order of the runs
 *   deltas    u32 whole │ u32 raw │ body                       body: `raw` bytes, as native/core/block_delta.h draws them; with the
 *                                                              LZ4 flag one LZ4 block that its own u32 raw size precedes
 *
 * `whole`: bytes of the body of a batch with the same pages, where the request has the flag Measure; 0 otherwise. Zero pages are pages as
 * others: who asks knows those frames by their tags. Deltas are of pages of 4096 bytes only.
 */
import { checkRuns, readRuns, unpack, writeRuns, type Runs } from './wire-batch.ts';
import {
  DELTA_BLOCK,
  DELTA_DIGESTS,
  DELTA_MAP,
  DELTA_PAGE,
  FrameFlag,
  FrameType,
  HEADER_SIZE,
  protocolError,
  readU32,
  writeHeader,
  writeU32,
} from './wire.ts';

const HEAD = 12;

export interface DeltaRequest {
  seed: bigint;
  runs: Runs;
  digests: Uint8Array;
}

/** A whole DeltaRequest frame. `runs` must have passed {@link checkRuns}, which told `total`; `digests` of as many frames. */
export function encodeDeltaRequest(
  stream: number,
  { seed, runs, digests }: DeltaRequest,
  total: number,
  measure: boolean,
): Buffer {
  const length = HEAD + runs.length * 4 + total * DELTA_DIGESTS;
  const frame = Buffer.allocUnsafe(HEADER_SIZE + length);
  writeHeader(frame, 0, length, FrameType.DeltaRequest, measure ? FrameFlag.Measure : 0, stream, total);
  frame.writeBigUInt64LE(seed, HEADER_SIZE);
  writeU32(frame, HEADER_SIZE + 8, runs.length / 2);
  writeRuns(frame, HEADER_SIZE + HEAD, runs);
  frame.set(digests, HEADER_SIZE + length - total * DELTA_DIGESTS);
  return frame;
}

/**
 * @param payload `digests` is a copy: the request waits for its turn
 * @throws PagetideError `PT_PROTOCOL`
 */
export function decodeDeltaRequest(payload: Buffer, total: number, frames: number, pageSize: number): DeltaRequest {
  if (pageSize !== DELTA_PAGE) throw protocolError(`there are no deltas of pages of ${pageSize} bytes`);
  const count = readU32(payload, 8);
  // before anything is read: neither list goes beyond the payload then
  if (payload.length !== HEAD + count * 8 + total * DELTA_DIGESTS)
    throw protocolError('a request for deltas is not as long as its own lists');
  const runs = readRuns(payload, HEAD, count);
  const counted = checkRuns(runs, frames, pageSize);
  if (counted !== total) throw protocolError(`a request for deltas says ${total} frames and lists ${counted}`);
  return { seed: payload.readBigUInt64LE(0), runs, digests: new Uint8Array(payload.subarray(HEAD + count * 8)) };
}

/** A whole Deltas frame, in a buffer of its own (so that it can be handed to another thread). */
export function encodeDeltas(
  stream: number,
  total: number,
  whole: number,
  body: Uint8Array,
  raw: number,
  lz4: boolean,
): Buffer {
  const frame = Buffer.allocUnsafeSlow(HEADER_SIZE + 8 + body.length);
  writeHeader(frame, 0, 8 + body.length, FrameType.Deltas, lz4 ? FrameFlag.Lz4 : 0, stream, total);
  writeU32(frame, HEADER_SIZE, whole);
  writeU32(frame, HEADER_SIZE + 4, raw);
  frame.set(body, HEADER_SIZE + 8);
  return frame;
}

/** Deltas, unpacked. */
export interface Deltas {
  /** Frames in all. */
  total: number;
  /** What whole pages would have taken, bytes of a batch's body; 0: not measured. */
  whole: number;
  /** For {@link Native.applyDeltas}, which looks whether they fit. Raw: a view of the payload, valid only as long as that is. */
  deltas: Uint8Array;
  /** Bytes of the body as it came. */
  bodyBytes: number;
}

/**
 * Unpacks the payload of Deltas. What it says is checked before anything is allocated.
 * @param total frames asked for
 * @throws PagetideError `PT_PROTOCOL`
 */
export function decodeDeltas(payload: Buffer, flags: number, total: number): Deltas {
  const whole = readU32(payload, 0);
  const raw = readU32(payload, 4);
  const blocks = raw - total * DELTA_MAP;
  if (blocks < 0 || blocks > total * DELTA_PAGE || blocks % DELTA_BLOCK !== 0 || whole > total * DELTA_PAGE)
    throw protocolError(`deltas of ${total} pages can't have ${raw} bytes`);
  const body = payload.subarray(8);
  const deltas = (flags & FrameFlag.Lz4) === 0 ? body : unpack(body, raw);
  if (deltas.length !== raw) throw protocolError(`deltas have ${deltas.length} bytes and say ${raw}`);
  return { total, whole, deltas, bodyBytes: body.length };
}
