/**
 * The frames of a page stream, and the decoder that takes them out of a TCP stream cut anywhere.
 *
 *    0        4      5       6          8         12         16
 *    ├────────┼──────┼───────┼──────────┼─────────┼──────────┼───── … ─────┤
 *    │ length │ type │ flags │ reserved │ stream  │ argument │   payload   │      little-endian throughout
 *    │  u32   │  u8  │  u8   │ u16 = 0  │  u32    │   u32    │ length bytes│
 *
 * `length` counts the payload only, and is checked against the type's own bounds when the header is read: before a
 * byte of payload is buffered. `stream` pairs an answer with its request. See docs/protocol.md for the sequences.
 */
import { PagetideError } from '../errors.ts';
import { DIGEST_BYTES } from '../pages/manifest.ts';
import { tagRunsLimit } from '../pages/tag-runs.ts';
import { TAG_BYTES, TAG_PAGE } from '../pages/tags.ts';

/** Bytes of a frame's header. */
export const HEADER_SIZE = 16;

/** What a frame is. Numbers are part of the protocol: never reused (5 was a map of the frames, which the manifest tells). */
export const FrameType = {
  /** Demand: one page, now. argument = frame. */
  PageRequest: 1,
  /** Its answer. argument = frame; payload = the raw page, or nothing with {@link FrameFlag.Zero}. */
  Page: 2,
  /** Fill: runs of pages. argument = frames in all; payload = runs. */
  BatchRequest: 3,
  /** Its answer. argument = frames in all; payload: see wire-batch.ts. */
  Batch: 4,
  /** A piece of the device state. argument = its byte offset. */
  State: 6,
  /** The state is whole. payload = u64 length, 32 bytes of SHA-256. */
  StateEnd: 7,
  /** JSON {code, message, hint}. stream = the request that failed, argument = its frame; stream 0: the connection ends. */
  Error: 8,
  /** Are you there? argument = anything. */
  Ping: 9,
  /** Yes. argument = the ping's. */
  Pong: 10,
  /** Tags of consecutive 4 KiB frames. argument = the first; payload = u32 how many, then their runs (pages/tag-runs.ts). */
  Tags: 11,
  /** The manifest as it was told up to here. argument = its frames; payload = its digest. */
  ManifestEnd: 12,
  /** Pages by tag: who asks has the domain's secret. payload: see tag-proof.ts. */
  Proof: 13,
  /** Which of these pages are there? argument = how many; payload = their tags. */
  HaveRequest: 14,
  /** Its answer. argument = how many; payload = one bit a tag. */
  Have: 15,
  /** Pages by tag. argument = how many; payload = their tags. */
  TagRequest: 16,
  /** Its answer. argument = how many; payload: see wire-tag-pages.ts. */
  TagPages: 17,
  /** The last ManifestEnd was the end: the guest stands still, and this is what it holds. */
  Settled: 18,
  /** Fill: runs of pages of which there are older versions. argument = frames in all; payload: see wire-deltas.ts. */
  DeltaRequest: 19,
  /** Its answer. argument = frames in all; payload: see wire-deltas.ts. */
  Deltas: 20,
} as const;
export type FrameType = (typeof FrameType)[keyof typeof FrameType];

/** Bits of the flags byte; each belongs to one type, any other bit is refused. */
export const FrameFlag = {
  /** Page: the page is all zero and not sent. */
  Zero: 1,
  /** Batch, TagPages, Deltas: the body is one LZ4 block. */
  Lz4: 1,
  /** DeltaRequest: tell what whole pages would have taken. */
  Measure: 1,
} as const;

/** Pages of which deltas are made; bytes of one's digests, of its map of blocks, and of a block: see native/core/block_delta.h. */
export const DELTA_PAGE = 4096;
export const DELTA_DIGESTS = 64;
export const DELTA_MAP = 4;
export const DELTA_BLOCK = 128;

/** Bounds that both sides hold each other to. */
export const WireLimit = {
  /** Frames in one batch. */
  batchFrames: 1024,
  /** Bytes of pages in one batch, before compression. */
  batchBytes: 4 << 20,
  /** Batch requests that one connection may have outstanding. */
  batchRequests: 64,
  /** Page requests that one connection may have outstanding. */
  pageRequests: 4096,
  /** Tags in one frame of them. */
  tags: 16384,
  /** Pages that one request by tag may name. */
  tagPages: 1024,
  /** Requests by tag that one connection may have outstanding. */
  tagRequests: 64,
  /** Bytes of one piece of the device state. */
  stateChunk: 64 << 10,
  /** Bytes of the device state in all. */
  stateBytes: 256 << 20,
  /** Bytes of an error's JSON. */
  error: 4096,
  /** Frames of a guest: run lengths are 31 bits. */
  frames: 0x7fff_ffff,
} as const;

/** The channels of a migration; each has a connection of its own. */
export const CHANNELS = ['demand', 'fill', 'state'] as const;
export type Channel = (typeof CHANNELS)[number];
/** What a page stream carries: a channel of a migration, or pages of a domain by tag. */
export type StreamKind = Channel | 'tags';

export function protocolError(message: string): PagetideError {
  return new PagetideError('PT_PROTOCOL', message);
}

/** A page size that frames can carry: 4096 bytes up to 2 MiB, a power of two. */
export function isPageSize(pageSize: number): boolean {
  return Number.isInteger(pageSize) && pageSize >= 4096 && pageSize <= 2 << 20 && (pageSize & (pageSize - 1)) === 0;
}

/** Most frames that one batch may hold at this page size. */
export function batchFrameLimit(pageSize: number): number {
  return Math.min(WireLimit.batchFrames, WireLimit.batchBytes / pageSize);
}

/** Writes a header at `offset`. Arguments are trusted: they are ours. */
export function writeHeader(
  into: Uint8Array,
  offset: number,
  length: number,
  type: FrameType,
  flags: number,
  stream: number,
  argument: number,
): void {
  writeU32(into, offset, length);
  into[offset + 4] = type;
  into[offset + 5] = flags;
  into[offset + 6] = 0;
  into[offset + 7] = 0;
  writeU32(into, offset + 8, stream);
  writeU32(into, offset + 12, argument);
}

/** A whole frame in a buffer of its own. Off the fast path. */
export function encodeFrame(
  type: FrameType,
  flags: number,
  stream: number,
  argument: number,
  payload?: Uint8Array,
): Buffer {
  const length = payload?.length ?? 0;
  const frame = Buffer.allocUnsafe(HEADER_SIZE + length);
  writeHeader(frame, 0, length, type, flags, stream, argument);
  if (payload !== undefined) frame.set(payload, HEADER_SIZE);
  return frame;
}

/** Bytewise, so that it needs no alignment and no view object. */
export function writeU32(into: Uint8Array, offset: number, value: number): void {
  into[offset] = value;
  into[offset + 1] = value >>> 8;
  into[offset + 2] = value >>> 16;
  into[offset + 3] = value >>> 24;
}

export function readU32(from: Uint8Array, offset: number): number {
  return (from[offset]! | (from[offset + 1]! << 8) | (from[offset + 2]! << 16) | (from[offset + 3]! << 24)) >>> 0;
}

/** Who reads the stream: each accepts only what the other side may send on that channel. */
export type Reader = `${'server' | 'client'}-${StreamKind}`;

const ACCEPTS: Record<Reader, readonly FrameType[]> = {
  'server-demand': [FrameType.PageRequest],
  'server-fill': [FrameType.BatchRequest, FrameType.DeltaRequest],
  'server-state': [],
  'client-demand': [FrameType.Page, FrameType.Error],
  'client-fill': [FrameType.Batch, FrameType.Deltas, FrameType.Error],
  'client-state': [
    FrameType.Tags,
    FrameType.ManifestEnd,
    FrameType.Settled,
    FrameType.State,
    FrameType.StateEnd,
    FrameType.Error,
  ],
  'server-tags': [FrameType.Proof, FrameType.HaveRequest, FrameType.TagRequest],
  'client-tags': [FrameType.Have, FrameType.TagPages, FrameType.Error],
};

interface FrameRule {
  min: number;
  max: number;
  /** `length - min` is a multiple of it. */
  step: number;
  flags: number;
}

function ruleOf(type: FrameType, pageSize: number): FrameRule {
  const frames = batchFrameLimit(pageSize);
  const runs = frames * 8;
  switch (type) {
    case FrameType.Page:
      return { min: 0, max: pageSize, step: pageSize, flags: FrameFlag.Zero };
    case FrameType.BatchRequest:
      return { min: 8, max: runs, step: 8, flags: 0 };
    case FrameType.Batch:
      return { min: 17, max: 8 + runs + Math.ceil(frames / 8) + frames * pageSize, step: 1, flags: FrameFlag.Lz4 };
    case FrameType.DeltaRequest:
      return { min: 84, max: 12 + runs + frames * DELTA_DIGESTS, step: 8, flags: FrameFlag.Measure };
    case FrameType.Deltas:
      return { min: 9, max: 8 + frames * (DELTA_MAP + pageSize), step: 1, flags: FrameFlag.Lz4 };
    case FrameType.Tags:
      return { min: 6, max: 4 + tagRunsLimit(WireLimit.tags), step: 1, flags: 0 };
    case FrameType.ManifestEnd:
      return { min: DIGEST_BYTES, max: DIGEST_BYTES, step: 1, flags: 0 };
    case FrameType.Proof:
      return { min: TAG_BYTES, max: TAG_BYTES, step: 1, flags: 0 };
    case FrameType.HaveRequest:
    case FrameType.TagRequest:
      return { min: TAG_BYTES, max: WireLimit.tagPages * TAG_BYTES, step: TAG_BYTES, flags: 0 };
    case FrameType.Have:
      return { min: 1, max: WireLimit.tagPages / 8, step: 1, flags: 0 };
    case FrameType.TagPages:
      return { min: 5, max: 4 + WireLimit.tagPages / 8 + WireLimit.tagPages * TAG_PAGE, step: 1, flags: FrameFlag.Lz4 };
    case FrameType.State:
      return { min: 1, max: WireLimit.stateChunk, step: 1, flags: 0 };
    case FrameType.StateEnd:
      return { min: 40, max: 40, step: 1, flags: 0 };
    case FrameType.Error:
      return { min: 2, max: WireLimit.error, step: 1, flags: 0 };
    case FrameType.PageRequest:
    case FrameType.Settled:
    case FrameType.Ping:
    case FrameType.Pong:
      return { min: 0, max: 0, step: 1, flags: 0 };
  }
}

/**
 * Takes one frame. The payload is `buffer[byteOffset … byteOffset + length)` and is valid **until this returns**: it
 * lies in the chunk that was read, or in the decoder's own scratch memory.
 */
export type FrameSink = (
  type: FrameType,
  flags: number,
  stream: number,
  argument: number,
  buffer: Buffer,
  byteOffset: number,
  length: number,
) => void;

const NOTHING = Buffer.alloc(0);
const FIRST_SCRATCH = 64 << 10;

/**
 * Decodes a stream of frames that arrives in chunks cut anywhere.
 *
 * A frame that lies whole in one chunk is handed on where it lies. Only one that is cut is gathered, in scratch memory
 * that grows with what has *arrived*, doubling: a header's claim alone never allocates, and a byte is copied at most
 * about twice however small the chunks are. The scratch memory is kept for the next frame.
 */
export class FrameDecoder {
  readonly #sink: FrameSink;
  /** By type; undefined: this reader doesn't accept it. */
  readonly #rules: (FrameRule | undefined)[] = new Array<FrameRule | undefined>(32).fill(undefined);
  readonly #head = Buffer.alloc(HEADER_SIZE);
  /** Bytes of a cut header that have arrived; HEADER_SIZE while its payload is gathered. */
  #headFill = 0;
  #scratch = NOTHING;
  #fill = 0;
  #stopped = false;

  constructor(reader: Reader, pageSize: number, sink: FrameSink) {
    this.#sink = sink;
    for (const type of [...ACCEPTS[reader], FrameType.Ping, FrameType.Pong]) this.#rules[type] = ruleOf(type, pageSize);
  }

  /** Bytes of scratch memory held. */
  get scratchBytes(): number {
    return this.#scratch.length;
  }

  /** False when the stream stands in the middle of a frame. */
  get atBoundary(): boolean {
    return this.#headFill === 0;
  }

  /** Drops everything from now on, also the rest of the chunk that is being fed. */
  stop(): void {
    this.#stopped = true;
  }

  /**
   * Feeds the next bytes, `chunk[0 … end)`; calls the sink for each frame that is whole. Keeps nothing of the chunk.
   * @throws PagetideError `PT_PROTOCOL` at the first thing that isn't right; the stream is of no use after it.
   */
  feed(chunk: Buffer, end: number = chunk.length): void {
    let at = 0;
    while (at < end && !this.#stopped) {
      if (this.#headFill !== 0) {
        at = this.#gather(chunk, at, end);
        continue;
      }
      const left = end - at;
      if (left < HEADER_SIZE) {
        chunk.copy(this.#head, 0, at, end);
        this.#headFill = left;
        return;
      }
      const length = this.#check(chunk, at);
      if (left < HEADER_SIZE + length) {
        chunk.copy(this.#head, 0, at, at + HEADER_SIZE);
        this.#headFill = HEADER_SIZE;
        at = this.#gather(chunk, at + HEADER_SIZE, end);
        continue;
      }
      const begin = at;
      at += HEADER_SIZE + length;
      this.#emit(chunk, begin, chunk, begin + HEADER_SIZE, length);
    }
  }

  /** Goes on with a frame that was cut; returns how far it came in the chunk. */
  #gather(chunk: Buffer, from: number, end: number): number {
    let at = from;
    if (this.#headFill < HEADER_SIZE) {
      const take = Math.min(HEADER_SIZE - this.#headFill, end - at);
      chunk.copy(this.#head, this.#headFill, at, at + take);
      this.#headFill += take;
      at += take;
      if (this.#headFill < HEADER_SIZE) return at;
      this.#check(this.#head, 0);
    }
    const length = readU32(this.#head, 0);
    const take = Math.min(length - this.#fill, end - at);
    this.#room(this.#fill + take, length);
    chunk.copy(this.#scratch, this.#fill, at, at + take);
    this.#fill += take;
    if (this.#fill < length) return at + take;
    this.#headFill = 0;
    this.#fill = 0;
    this.#emit(this.#head, 0, this.#scratch, 0, length);
    return at + take;
  }

  #room(bytes: number, most: number): void {
    if (this.#scratch.length >= bytes) return;
    const size = Math.min(Math.max(FIRST_SCRATCH, this.#scratch.length * 2, bytes), Math.max(most, FIRST_SCRATCH));
    const grown = Buffer.allocUnsafeSlow(size);
    this.#scratch.copy(grown, 0, 0, this.#fill);
    this.#scratch = grown;
  }

  /** Returns the payload's length once everything about the header is known to be right. */
  #check(head: Buffer, at: number): number {
    const length = readU32(head, at);
    const type = head[at + 4]!;
    const rule = this.#rules[type];
    if (rule === undefined) throw protocolError(`a frame of type ${type} is not expected here`);
    if (length < rule.min || length > rule.max || (length - rule.min) % rule.step !== 0) {
      throw protocolError(`a frame of type ${type} can't be ${length} bytes long`);
    }
    const flags = head[at + 5]!;
    if ((flags & ~rule.flags) !== 0) throw protocolError(`a frame of type ${type} has unknown flags ${flags}`);
    if (head[at + 6] !== 0 || head[at + 7] !== 0) throw protocolError(`a frame of type ${type} has reserved bits set`);
    if (type === FrameType.Page && (length === 0) !== ((flags & FrameFlag.Zero) !== 0)) {
      throw protocolError('a page must either be there or be flagged zero');
    }
    return length;
  }

  #emit(head: Buffer, at: number, payload: Buffer, offset: number, length: number): void {
    this.#sink(
      head[at + 4] as FrameType,
      head[at + 5]!,
      readU32(head, at + 8),
      readU32(head, at + 12),
      payload,
      offset,
      length,
    );
  }
}
