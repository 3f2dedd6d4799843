/**
 * Pages by tag: what goes over a stream between two hosts of one domain.
 *
 *   HaveRequest, TagRequest   tag │ tag │ …                 16 bytes each
 *   Have                      one bit a tag, in the request's order, least significant first; set: it seems to be there
 *   TagPages                  u32 raw │ bitmap │ body
 *                                       │        └ the pages that are there, in order, back to back: `raw` bytes; with
 *                                       │          the LZ4 flag one LZ4 block that its own u32 raw size precedes
 *                                       └ one bit a tag; set: in the body
 */
import { TAG_BYTES, TAG_PAGE } from '../pages/tags.ts';
import { unpack } from './wire-batch.ts';
import {
  FrameFlag,
  FrameType,
  HEADER_SIZE,
  encodeFrame,
  protocolError,
  readU32,
  writeHeader,
  writeU32,
} from './wire.ts';

/** Bytes of a bitmap over so many tags. */
export function bitmapBytes(tags: number): number {
  return (tags + 7) >> 3;
}

export function isSet(bitmap: Uint8Array, index: number): boolean {
  return ((bitmap[index >> 3]! >> (index & 7)) & 1) === 1;
}

export function set(bitmap: Uint8Array, index: number): void {
  bitmap[index >> 3]! |= 1 << (index & 7);
}

/** @param tags 16 bytes each; 1 to {@link WireLimit.tagPages} of them */
export function encodeTagRequest(
  type: typeof FrameType.HaveRequest | typeof FrameType.TagRequest,
  stream: number,
  tags: Uint8Array,
): Buffer {
  return encodeFrame(type, 0, stream, tags.length / TAG_BYTES, tags);
}

/** Tags of a request's payload, copied; the decoder has checked that they are whole. @throws PagetideError `PT_PROTOCOL` */
export function decodeTagRequest(payload: Uint8Array, count: number): Uint8Array<ArrayBuffer> {
  if (payload.length !== count * TAG_BYTES)
    throw protocolError(`a request says ${count} tags and has ${payload.length} bytes`);
  return Uint8Array.from(payload);
}

/** @param present a byte a tag, 1 where it is there */
export function encodeHave(stream: number, present: Uint8Array): Buffer {
  const bitmap = new Uint8Array(bitmapBytes(present.length));
  for (let i = 0; i < present.length; i++) if (present[i] === 1) set(bitmap, i);
  return encodeFrame(FrameType.Have, 0, stream, present.length, bitmap);
}

/** @returns a copy of the bitmap @throws PagetideError `PT_PROTOCOL` when it isn't one over `count` tags */
export function decodeHave(payload: Uint8Array, count: number): Uint8Array {
  checkBitmap(payload, count);
  return Uint8Array.from(payload);
}

/** Where the body of a TagPages frame begins, from the frame's first byte. */
export function tagPagesBodyAt(count: number): number {
  return HEADER_SIZE + 4 + bitmapBytes(count);
}

/** A whole TagPages frame in memory of its own. */
export function encodeTagPages(
  stream: number,
  count: number,
  present: Uint8Array,
  body: Uint8Array,
  raw: number,
  lz4: boolean,
): Buffer {
  const at = tagPagesBodyAt(count);
  const frame = Buffer.allocUnsafeSlow(at + body.length);
  writeHeader(frame, 0, frame.length - HEADER_SIZE, FrameType.TagPages, lz4 ? FrameFlag.Lz4 : 0, stream, count);
  writeU32(frame, HEADER_SIZE, raw);
  frame.set(present.subarray(0, bitmapBytes(count)), HEADER_SIZE + 4);
  frame.set(body, at);
  return frame;
}

/** Pages that came by tag. */
export interface TagPages {
  /** Bitmap over the tags that were asked for; set: its page is in `pages`. Valid as long as the payload is. */
  present: Uint8Array;
  /** The pages that are there, in order. Raw ones: a view of the payload, valid only as long as that is. */
  pages: Uint8Array;
  /** Bytes of the body as it came. */
  bodyBytes: number;
}

/**
 * Unpacks a TagPages payload. What it says is checked against what was asked before anything is allocated.
 * @param count tags that were asked for
 * @throws PagetideError `PT_PROTOCOL`
 */
export function decodeTagPages(payload: Buffer, flags: number, count: number): TagPages {
  const bodyAt = 4 + bitmapBytes(count);
  if (payload.length < bodyAt) throw protocolError('pages by tag are shorter than their own list');
  const present = payload.subarray(4, bodyAt);
  const found = checkBitmap(present, count);
  const raw = readU32(payload, 0);
  if (raw !== found * TAG_PAGE) throw protocolError(`pages by tag say ${raw} bytes for ${found} pages`);
  const body = payload.subarray(bodyAt);
  const pages = (flags & FrameFlag.Lz4) === 0 ? body : unpack(body, raw);
  if (pages.length !== raw) throw protocolError(`pages by tag hold ${pages.length} bytes and say ${raw}`);
  return { present, pages, bodyBytes: body.length };
}

/** @returns how many bits are set @throws PagetideError `PT_PROTOCOL` */
function checkBitmap(bitmap: Uint8Array, count: number): number {
  if (bitmap.length !== bitmapBytes(count)) throw protocolError(`a bitmap of ${bitmap.length} bytes for ${count} tags`);
  let found = 0;
  for (let i = 0; i < bitmap.length * 8; i++) {
    if (!isSet(bitmap, i)) continue;
    if (i >= count) throw protocolError('a bitmap has more bits than there are tags');
    found++;
  }
  return found;
}
