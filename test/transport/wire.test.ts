import { randomBytes } from 'node:crypto';
import fc from 'fast-check';
import { compressSync } from 'lz4-napi';
import t from 'tap';
import { PagetideError } from '../../src/errors.ts';
import {
  FrameDecoder,
  FrameFlag,
  FrameType,
  HEADER_SIZE,
  WireLimit,
  encodeFrame,
  isPageSize,
  type Reader,
} from '../../src/transport/wire.ts';
import {
  checkRuns,
  decodeBatch,
  decodeBatchRequest,
  eachPiece,
  encodeBatch,
  encodeBatchRequest,
} from '../../src/transport/wire-batch.ts';
import { StateEncoder, StateReader, decodeError, encodeError } from '../../src/transport/wire-state.ts';

const PAGE = 4096;
const protocol = { code: 'PT_PROTOCOL' };

interface Seen {
  type: number;
  flags: number;
  stream: number;
  argument: number;
  payload: string;
}

/** Decodes chunks; payloads are copied, as they must be. */
function decode(reader: Reader, chunks: Buffer[]): { seen: Seen[]; decoder: FrameDecoder } {
  const seen: Seen[] = [];
  const decoder = new FrameDecoder(reader, PAGE, (type, flags, stream, argument, buffer, offset, length) => {
    seen.push({ type, flags, stream, argument, payload: buffer.toString('hex', offset, offset + length) });
  });
  for (const chunk of chunks) decoder.feed(chunk);
  return { seen, decoder };
}

/** Cuts bytes at the given places. */
function cut(bytes: Buffer, places: number[]): Buffer[] {
  const at = [0, ...places.map((p) => p % (bytes.length + 1)).sort((a, b) => a - b), bytes.length];
  return at.slice(1).map((end, i) => bytes.subarray(at[i], end));
}

const PAGES = Buffer.concat([
  encodeFrame(FrameType.Page, 0, 7, 42, randomBytes(PAGE)),
  encodeFrame(FrameType.Page, FrameFlag.Zero, 8, 43),
  encodeFrame(FrameType.Ping, 0, 0, 5),
  encodeError(new PagetideError('PT_MEMORY_FILE', 'short'), 9, 44),
  encodeFrame(FrameType.Page, 0, 0xffff_ffff, 0xffff_fffe, randomBytes(PAGE)),
]);

void t.test('frames come out as they went in, however the stream is cut', (t) => {
  const whole = decode('client-demand', [PAGES]).seen;
  t.match(
    whole.map((f) => [f.type, f.stream, f.argument]),
    [
      [2, 7, 42],
      [2, 8, 43],
      [9, 0, 5],
      [8, 9, 44],
      [2, 0xffff_ffff, 0xffff_fffe],
    ],
  );
  t.same(
    decode(
      'client-demand',
      Array.from(PAGES, (_, i) => PAGES.subarray(i, i + 1)),
    ).seen,
    whole,
    'byte by byte',
  );
  fc.assert(
    fc.property(fc.array(fc.nat(PAGES.length), { maxLength: 40 }), (places) => {
      const { seen, decoder } = decode('client-demand', cut(PAGES, places));
      return JSON.stringify(seen) === JSON.stringify(whole) && decoder.atBoundary;
    }),
  );
  t.end();
});

void t.test('a whole frame is handed on where it lies; a cut one is gathered in scratch memory', (t) => {
  const chunk = encodeFrame(FrameType.Page, 0, 1, 1, randomBytes(PAGE));
  let same = false;
  const decoder = new FrameDecoder('client-demand', PAGE, (_t, _f, _s, _a, buffer, offset) => {
    same = buffer === chunk && offset === HEADER_SIZE;
  });
  decoder.feed(chunk);
  t.equal(same, true);
  t.equal(decoder.scratchBytes, 0);
  decoder.feed(chunk.subarray(0, 100));
  decoder.feed(chunk.subarray(100));
  t.equal(same, false);
  t.ok(decoder.scratchBytes > 0);
  t.end();
});

void t.test('only the given part of a chunk is read', (t) => {
  const frame = encodeFrame(FrameType.Page, FrameFlag.Zero, 1, 1);
  const decoder = new FrameDecoder('client-demand', PAGE, () => t.fail('the frame is not whole'));
  decoder.feed(frame, 10);
  t.equal(decoder.atBoundary, false);
  t.end();
});

void t.test('what is not right is refused by its header alone', (t) => {
  const bad: [string, Reader, Buffer][] = [
    ['unknown type', 'client-demand', encodeFrame(99 as FrameType, 0, 0, 0)],
    ['type 0', 'client-demand', Buffer.alloc(16)],
    ['type beyond the table', 'client-demand', encodeFrame(255 as FrameType, 0, 0, 0)],
    ['a request to a client', 'client-demand', encodeFrame(FrameType.PageRequest, 0, 1, 1)],
    ['a page to a server', 'server-demand', encodeFrame(FrameType.Page, FrameFlag.Zero, 1, 1)],
    ['a batch request on the demand channel', 'server-demand', encodeBatchRequest(1, Uint32Array.of(0, 1), 1)],
    ['a request with payload', 'server-demand', encodeFrame(FrameType.PageRequest, 0, 1, 1, Buffer.alloc(1))],
    ['a page too short', 'client-demand', encodeFrame(FrameType.Page, 0, 1, 1, Buffer.alloc(PAGE - 1))],
    ['a page too long', 'client-demand', encodeFrame(FrameType.Page, 0, 1, 1, Buffer.alloc(PAGE + 1))],
    ['a page without content or flag', 'client-demand', encodeFrame(FrameType.Page, 0, 1, 1)],
    [
      'a zero page with content',
      'client-demand',
      encodeFrame(FrameType.Page, FrameFlag.Zero, 1, 1, Buffer.alloc(PAGE)),
    ],
    ['unknown flags', 'client-demand', encodeFrame(FrameType.Page, 2, 1, 1, Buffer.alloc(PAGE))],
    ['flags on a ping', 'client-demand', encodeFrame(FrameType.Ping, 1, 0, 0)],
    ['a batch request without runs', 'server-fill', encodeFrame(FrameType.BatchRequest, 0, 1, 0)],
    ['half a run', 'server-fill', encodeFrame(FrameType.BatchRequest, 0, 1, 1, Buffer.alloc(12))],
    ['too many runs', 'server-fill', encodeFrame(FrameType.BatchRequest, 0, 1, 1, Buffer.alloc(8 * 1025))],
    [
      'an end of the manifest with something in it',
      'client-state',
      encodeFrame(FrameType.Settled, 0, 0, 0, Buffer.alloc(1)),
    ],
    ['a frame that there was once', 'client-state', Buffer.concat([Buffer.of(4, 0, 0, 0, 5), Buffer.alloc(15)])],
    ['an empty state piece', 'client-state', encodeFrame(FrameType.State, 0, 0, 0)],
    ['a state end of the wrong size', 'client-state', encodeFrame(FrameType.StateEnd, 0, 0, 0, Buffer.alloc(39))],
    ['an error too long', 'client-demand', encodeFrame(FrameType.Error, 0, 0, 0, Buffer.alloc(WireLimit.error + 1))],
  ];
  for (const [what, reader, frame] of bad) {
    t.throws(() => decode(reader, [frame.subarray(0, HEADER_SIZE)]), protocol, what);
    t.throws(
      () => decode(reader, [frame.subarray(0, 7), frame.subarray(7, HEADER_SIZE)]),
      protocol,
      `${what}, header cut`,
    );
  }
  const reserved = encodeFrame(FrameType.Ping, 0, 0, 0);
  reserved[6] = 1;
  t.throws(() => decode('client-demand', [reserved]), protocol, 'reserved bits');
  t.end();
});

void t.test('a claim does not allocate: scratch memory grows with what arrived', (t) => {
  const most = encodeFrame(FrameType.Batch, 0, 1, 1024, Buffer.alloc(WireLimit.batchBytes));
  const { decoder } = decode('client-fill', [most.subarray(0, HEADER_SIZE + 10)]);
  t.ok(decoder.scratchBytes <= 64 << 10, `${decoder.scratchBytes} bytes for 10`);
  decoder.feed(most.subarray(HEADER_SIZE + 10, 1 << 20));
  t.ok(decoder.scratchBytes <= 2 << 20);
  const huge = encodeFrame(FrameType.Batch, 0, 1, 1024);
  huge.writeUInt32LE(0xffff_ffff, 0);
  t.throws(() => decode('client-fill', [huge]), protocol);
  t.end();
});

void t.test('random and mutated streams are refused or decoded, never worse', (t) => {
  const readers: Reader[] = [
    'server-demand',
    'server-fill',
    'server-state',
    'client-demand',
    'client-fill',
    'client-state',
  ];
  const attempt = (reader: Reader, chunks: Buffer[]): boolean => {
    const decoder = new FrameDecoder(reader, PAGE, () => undefined);
    try {
      for (const chunk of chunks) decoder.feed(chunk);
    } catch (error) {
      return error instanceof PagetideError && error.code === 'PT_PROTOCOL';
    }
    return decoder.scratchBytes <= 128 << 10;
  };
  fc.assert(
    fc.property(
      fc.constantFrom(...readers),
      fc.uint8Array({ maxLength: 300 }),
      fc.array(fc.nat(300)),
      (reader, bytes, places) => attempt(reader, cut(Buffer.from(bytes), places)),
    ),
    { numRuns: 500 },
  );
  fc.assert(
    fc.property(fc.nat(PAGES.length - 1), fc.nat(255), fc.array(fc.nat(PAGES.length)), (at, value, places) => {
      const mutated = Buffer.from(PAGES);
      mutated[at] = value;
      return attempt('client-demand', cut(mutated, places));
    }),
    { numRuns: 500 },
  );
  t.end();
});

void t.test('page sizes', (t) => {
  for (const good of [4096, 8192, 2 << 20]) t.equal(isPageSize(good), true);
  for (const bad of [0, 1, 2048, 4097, 6144, 4 << 20, NaN, -4096, 4096.5]) t.equal(isPageSize(bad), false, String(bad));
  t.end();
});

void t.test('runs are bounded', (t) => {
  t.equal(checkRuns(Uint32Array.of(0, 2, 10, 3), 13, PAGE), 5);
  for (const bad of [[], [0], [0, 0], [12, 2], [13, 1], [0xffff_ffff, 1], [0, 0xffff_ffff], [0, 1, 2]]) {
    t.throws(() => checkRuns(Uint32Array.from(bad), 13, PAGE), protocol, JSON.stringify(bad));
  }
  t.equal(checkRuns(Uint32Array.of(0, 1024), 5000, PAGE), 1024);
  t.throws(() => checkRuns(Uint32Array.of(0, 1025), 5000, PAGE), protocol);
  t.equal(checkRuns(Uint32Array.of(0, 2), 5000, 2 << 20), 2);
  t.throws(() => checkRuns(Uint32Array.of(0, 3), 5000, 2 << 20), protocol, '4 MiB of pages at most');
  t.end();
});

void t.test('batch requests', (t) => {
  const runs = Uint32Array.of(5, 2, 0, 1);
  const frame = encodeBatchRequest(3, runs, 3);
  t.same(decodeBatchRequest(frame, HEADER_SIZE, 16, 3, 10, PAGE), runs);
  t.throws(() => decodeBatchRequest(frame, HEADER_SIZE, 16, 4, 10, PAGE), protocol, 'argument that does not fit');
  t.throws(() => decodeBatchRequest(frame, HEADER_SIZE, 16, 3, 6, PAGE), protocol, 'outside the guest');
  t.end();
});

void t.test('batches, raw and compressed, and what is wrong with them', (t) => {
  const runs = Uint32Array.of(4, 2, 9, 3);
  const zero = Uint8Array.of(0b00010); // frame 5
  const pages = Buffer.concat([
    Buffer.alloc(PAGE, 'a'),
    Buffer.alloc(PAGE, 'b'),
    Buffer.alloc(PAGE, 'c'),
    Buffer.alloc(PAGE, 'd'),
  ]);
  const lz4 = compressSync(pages);
  for (const [flags, body] of [
    [0, pages],
    [FrameFlag.Lz4, lz4],
  ] as const) {
    const payload = encodeBatch(1, runs, 5, zero, body, pages.length, flags !== 0).subarray(HEADER_SIZE);
    const batch = decodeBatch(payload, flags, runs, 5, PAGE);
    t.same(Buffer.from(batch.pages), pages);
    t.equal(batch.zeroFrames, 1);
    const pieces: number[][] = [];
    eachPiece(batch, PAGE, (...piece) => pieces.push(piece));
    t.same(pieces, [
      [4, 1, 0],
      [5, 1, -1],
      [9, 3, PAGE],
    ]);

    const alter = (at: number, value: number): Buffer => {
      const copy = Buffer.from(payload);
      copy.writeUInt32LE(value, at);
      return copy;
    };
    t.throws(() => decodeBatch(payload.subarray(0, 20), flags, runs, 5, PAGE), protocol, 'shorter than its lists');
    t.throws(() => decodeBatch(payload.subarray(0, -1), flags, runs, 5, PAGE), protocol, 'body too short');
    t.throws(
      () => decodeBatch(Buffer.concat([payload, Buffer.of(0)]), flags, runs, 5, PAGE),
      protocol,
      'body too long',
    );
    t.throws(() => decodeBatch(alter(0, pages.length + PAGE), flags, runs, 5, PAGE), protocol, 'raw length');
    t.throws(() => decodeBatch(alter(4, 3), flags, runs, 5, PAGE), protocol, 'number of runs');
    t.throws(() => decodeBatch(alter(8, 3), flags, runs, 5, PAGE), protocol, 'another run');
    const marked = Buffer.from(payload);
    marked[8 + 16]! |= 0b100000;
    t.throws(() => decodeBatch(marked, flags, runs, 5, PAGE), protocol, 'a zero bit beyond the frames');
  }
  const hostile = encodeBatch(1, runs, 5, zero, lz4, pages.length, true).subarray(HEADER_SIZE);
  hostile.writeUInt32LE(0xffff_fff0, hostile.length - lz4.length);
  t.throws(() => decodeBatch(hostile, FrameFlag.Lz4, runs, 5, PAGE), protocol, 'a bomb in the LZ4 prefix');
  const none = encodeBatch(1, runs, 5, Uint8Array.of(0b11111), Buffer.alloc(0), 0, false).subarray(HEADER_SIZE);
  t.equal(decodeBatch(none, 0, runs, 5, PAGE).zeroFrames, 5);
  t.throws(() => decodeBatch(none, FrameFlag.Lz4, runs, 5, PAGE), protocol, 'nothing, compressed');
  fc.assert(
    fc.property(fc.nat(lz4.length - 1), fc.nat(255), (at, value) => {
      const payload = encodeBatch(1, runs, 5, zero, lz4, pages.length, true).subarray(HEADER_SIZE);
      payload[payload.length - lz4.length + at] = value;
      try {
        return decodeBatch(payload, FrameFlag.Lz4, runs, 5, PAGE).pages.length === pages.length;
      } catch (error) {
        return error instanceof PagetideError && error.code === 'PT_PROTOCOL';
      }
    }),
  );
  t.end();
});

void t.test('device state', (t) => {
  const state = randomBytes(200_000);
  const encoder = new StateEncoder();
  const frames = [...encoder.encode(state.subarray(0, 150_000)), ...encoder.encode(state.subarray(150_000))];
  const end = encoder.end().subarray(HEADER_SIZE);
  const read = (pieces: Buffer[]): StateReader => {
    const reader = new StateReader();
    for (const p of pieces) reader.chunk(p.subarray(HEADER_SIZE), p.readUInt32LE(12));
    return reader;
  };
  const reader = read(frames);
  reader.end(end);
  t.equal(reader.length, state.length);
  t.throws(() => reader.end(end), protocol, 'ends twice');
  t.throws(() => reader.chunk(Buffer.alloc(1), state.length), protocol, 'after the end');
  t.throws(() => read(frames.slice(1)), protocol, 'a piece missing');
  t.throws(() => read(frames.slice(0, -1)).end(end), protocol, 'the last piece missing');
  const wrong = Buffer.from(end);
  wrong[20]! ^= 1;
  t.throws(() => read(frames).end(wrong), protocol, 'wrong digest');
  const full = new StateEncoder();
  const mib = Buffer.alloc(16 << 20);
  for (let i = 0; i < 16; i++) full.encode(mib);
  t.throws(() => full.encode(Buffer.alloc(1)), { code: 'PT_NO_SPACE' });
  t.end();
});

void t.test('errors travel, and always fit', (t) => {
  const back = decodeError(
    encodeError(new PagetideError('PT_MEMORY_FILE', 'short', { hint: 'look' }), 1, 2).subarray(HEADER_SIZE),
  );
  t.match(back, { code: 'PT_MEMORY_FILE', message: 'short', hint: 'look' });
  for (const nasty of ['\u0000', '\ud800', '語', '"']) {
    t.ok(
      encodeError(new PagetideError('PT_IO', nasty.repeat(9999), { hint: nasty.repeat(9999) }), 0, 0).length <=
        HEADER_SIZE + WireLimit.error,
    );
  }
  t.throws(() => decodeError(Buffer.from('{"code"')), protocol);
  t.match(decodeError(Buffer.from('[]')), { code: 'PT_PEER_FAILED' });
  t.end();
});
