import { randomBytes } from 'node:crypto';
import fc from 'fast-check';
import { compressSync } from 'lz4-napi';
import t from 'tap';
import { native } from '../../src/memory/native.ts';
import { decodeDeltaRequest, decodeDeltas, encodeDeltaRequest, encodeDeltas } from '../../src/transport/wire-deltas.ts';
import { FrameFlag, FrameType, HEADER_SIZE, WireLimit } from '../../src/transport/wire.ts';
import { receive } from './support.ts';

const PAGE = 4096;
const PROTOCOL = { code: 'PT_PROTOCOL' };

void t.test('a request comes as it was sent', (t) => {
  fc.assert(
    fc.property(
      fc.bigInt({ min: 0n, max: (1n << 64n) - 1n }),
      fc.array(fc.tuple(fc.nat(500), fc.integer({ min: 1, max: 9 })), { minLength: 1, maxLength: 12 }),
      fc.boolean(),
      fc.nat(),
      (seed, pairs, measure, cut) => {
        const runs = Uint32Array.from(pairs.flat());
        const total = pairs.reduce((sum, [, count]) => sum + count, 0);
        const digests = new Uint8Array(randomBytes(total * 64));
        const bytes = encodeDeltaRequest(5, { seed, runs, digests }, total, measure);
        const frame = receive('server-fill', bytes, cut % bytes.length);
        t.match(frame, { type: FrameType.DeltaRequest, flags: measure ? 1 : 0, stream: 5, argument: total });
        const got = decodeDeltaRequest(frame.payload, total, 1000, PAGE);
        if (got.seed !== seed || Buffer.compare(got.digests, digests) !== 0 || got.runs.join() !== runs.join())
          throw new Error('it is another');
      },
    ),
    { numRuns: 60 },
  );
  t.end();
});

void t.test('deltas make the page that was read, whatever the older version was, packed and raw', (t) => {
  const write = fc.tuple(fc.nat(3 * PAGE - 1), fc.nat(255), fc.integer({ min: 1, max: 600 }));
  fc.assert(
    fc.property(
      fc.array(write, { maxLength: 30 }),
      fc.bigInt({ min: 0n, max: 1n << 60n }),
      fc.boolean(),
      (writes, seed, lz4) => {
        const base = Buffer.alloc(3 * PAGE, 'what it was before ');
        const now = Buffer.from(base);
        for (const [at, byte, length] of writes) now.fill(byte, at, Math.min(at + length, now.length));
        const digests = new Uint8Array(3 * 64);
        native().digestBlocks(seed, base, 3, digests);
        const into = new Uint8Array(3 * (PAGE + 4));
        const raw = native().encodeDeltas(seed, now, 3, digests, into);
        const deltas = into.subarray(0, raw);
        const packed = Buffer.from(compressSync(Buffer.from(deltas)));
        const isPacked = lz4 && packed.length < raw;
        const bytes = encodeDeltas(9, 3, 77, isPacked ? packed : deltas, raw, isPacked);
        const frame = receive('client-fill', bytes, bytes.length >> 1);
        t.match(frame, { type: FrameType.Deltas, stream: 9, argument: 3 });
        const got = decodeDeltas(frame.payload, frame.flags, 3);
        t.match(got, { whole: 77, total: 3 });
        if (!native().applyDeltas(base, 3, got.deltas) || Buffer.compare(base, now) !== 0)
          throw new Error('it is another');
      },
    ),
    { numRuns: 100 },
  );
  t.end();
});

void t.test('what is not right is refused before anything is made of it', (t) => {
  const runs = Uint32Array.of(3, 2, 9, 1);
  const request = encodeDeltaRequest(1, { seed: 1n, runs, digests: new Uint8Array(3 * 64) }, 3, false);
  const good = request.subarray(HEADER_SIZE);
  t.equal(decodeDeltaRequest(good, 3, 10, PAGE).runs.length, 4);
  const broken = (change: (payload: Buffer) => void, of = good): Buffer => {
    const copy = Buffer.from(of);
    change(copy);
    return copy;
  };
  for (const [what, payload, total] of [
    ['fewer digests', good.subarray(0, -8), 3],
    ['more digests', Buffer.concat([good, Buffer.alloc(8)]), 3],
    ['more runs than there are', broken((p) => p.writeUInt32LE(3, 8)), 3],
    ['runs without end', broken((p) => p.writeUInt32LE(0xffff_ffff, 8)), 3],
    ['no run', broken((p) => p.writeUInt32LE(0, 8)), 3],
    ['frames without end', good, 0xffff_ffff],
    ['other frames than it lists', broken((p) => p.writeUInt32LE(1, 16)), 3],
    ['a frame outside the guest', broken((p) => p.writeUInt32LE(10, 20)), 3],
    ['a run of nothing', broken((p) => p.writeUInt32LE(0, 24)), 3],
  ] as const)
    t.throws(() => decodeDeltaRequest(payload, total, 10, PAGE), PROTOCOL, what);
  t.throws(() => decodeDeltaRequest(good, 3, 10, 2 << 20), PROTOCOL, 'of huge pages');

  const raw = 3 * 4 + 2 * 128;
  const answer = encodeDeltas(1, 3, 0, Buffer.alloc(raw), raw, false).subarray(HEADER_SIZE);
  t.equal(decodeDeltas(answer, 0, 3).deltas.length, raw);
  const bomb = compressSync(Buffer.alloc(1 << 20));
  for (const [what, payload, flags] of [
    ['cut off', answer.subarray(0, -1), 0],
    ['too long', Buffer.concat([answer, Buffer.alloc(1)]), 0],
    ['less than the maps', broken((p) => p.writeUInt32LE(8, 4), answer), 0],
    ['no whole blocks', broken((p) => p.writeUInt32LE(raw + 1, 4), answer), 0],
    ['more than the pages', broken((p) => p.writeUInt32LE(3 * 4 + 97 * 128, 4), answer), 0],
    ['a size without end', broken((p) => p.writeUInt32LE(0xffff_fff0, 4), answer), 0],
    ['more for whole pages than they are', broken((p) => p.writeUInt32LE(3 * PAGE + 1, 0), answer), 0],
    ['packed, and is not', answer, FrameFlag.Lz4],
    ['packed, of another size', Buffer.concat([answer.subarray(0, 8), bomb]), FrameFlag.Lz4],
  ] as const)
    t.throws(() => decodeDeltas(payload, flags, 3), PROTOCOL, what);
  // sizes alone don't tell whether the maps fit the blocks: that is seen when they are applied, and nothing is changed
  const pages = Buffer.alloc(3 * PAGE, 7);
  t.notOk(native().applyDeltas(pages, 3, decodeDeltas(answer, 0, 3).deltas), 'blocks that no map has');
  t.ok(pages.every((byte) => byte === 7));

  const head = (type: FrameType, bytes: number, flags = 0): Buffer => {
    const frame = Buffer.alloc(HEADER_SIZE + bytes);
    frame.writeUInt32LE(bytes, 0);
    frame[4] = type;
    frame[5] = flags;
    return frame;
  };
  const { batchFrames } = WireLimit;
  t.throws(() => receive('server-fill', head(FrameType.DeltaRequest, 83), 16), PROTOCOL, 'too short');
  t.throws(
    () => receive('server-fill', head(FrameType.DeltaRequest, 12 + batchFrames * 72 + 8), 16),
    PROTOCOL,
    'too long',
  );
  t.throws(() => receive('server-fill', head(FrameType.DeltaRequest, 84, 2), 16), PROTOCOL, 'an unknown flag');
  t.throws(() => receive('server-fill', head(FrameType.Deltas, 20), 16), PROTOCOL, 'from the wrong side');
  t.throws(() => receive('client-fill', head(FrameType.Deltas, 8 + batchFrames * 4100 + 1), 16), PROTOCOL, 'too long');
  t.throws(() => receive('client-fill', head(FrameType.DeltaRequest, 84), 16), PROTOCOL, 'from the wrong side');
  t.end();
});

void t.test('whatever comes is refused, or makes no more than it may', (t) => {
  fc.assert(
    fc.property(
      fc.uint8Array({ minLength: 12, maxLength: 400 }),
      fc.nat(1),
      fc.integer({ min: 1, max: 4 }),
      (any, flags, total) => {
        const payload = Buffer.from(any);
        for (const decode of [
          () => decodeDeltaRequest(payload, total, 100, PAGE),
          () => native().applyDeltas(Buffer.alloc(total * PAGE), total, decodeDeltas(payload, flags, total).deltas),
        ]) {
          try {
            decode();
          } catch (error) {
            if ((error as { code?: string }).code !== 'PT_PROTOCOL') throw error;
          }
        }
      },
    ),
    { numRuns: 500 },
  );
  t.pass('in every run');
  t.end();
});
