import fc from 'fast-check';
import { compressSync } from 'lz4-napi';
import t from 'tap';
import { TAG_BYTES, TAG_PAGE } from '../../src/pages/tags.ts';
import {
  decodeHave,
  decodeTagPages,
  decodeTagRequest,
  encodeHave,
  encodeTagPages,
  encodeTagRequest,
  isSet,
  set,
} from '../../src/transport/wire-tag-pages.ts';
import { FrameFlag, FrameType, HEADER_SIZE, WireLimit } from '../../src/transport/wire.ts';
import { receive } from './support.ts';

const PROTOCOL = { code: 'PT_PROTOCOL' };

void t.test('requests, and what is there, come as they were sent', (t) => {
  fc.assert(
    fc.property(fc.integer({ min: 1, max: 70 }), fc.integer(), fc.infiniteStream(fc.boolean()), (count, seed, bits) => {
      const tags = new Uint8Array(count * TAG_BYTES).map((_, i) => (i * 7 + seed) & 255);
      for (const type of [FrameType.HaveRequest, FrameType.TagRequest] as const) {
        const bytes = encodeTagRequest(type, 5, tags);
        const frame = receive('server-tags', bytes, (seed >>> 0) % bytes.length);
        t.match(frame, { type, stream: 5, argument: count }, 'a request');
        t.same(decodeTagRequest(frame.payload, count), tags, 'its tags');
      }
      const present = Uint8Array.from({ length: count }, () => (bits.next().value === true ? 1 : 0));
      const bytes = encodeHave(6, present);
      const frame = receive('client-tags', bytes, (seed >>> 0) % bytes.length);
      const bitmap = decodeHave(frame.payload, frame.argument);
      t.same(
        present.map((_, i) => (isSet(bitmap, i) ? 1 : 0)),
        present,
        'a bit each',
      );
    }),
    { numRuns: 30 },
  );
  t.end();
});

void t.test('pages come as they were sent, packed and raw', (t) => {
  fc.assert(
    fc.property(fc.array(fc.boolean(), { minLength: 1, maxLength: 20 }), fc.boolean(), (there, packed) => {
      const bitmap = new Uint8Array((there.length + 7) >> 3);
      there.forEach((is, i) => is && set(bitmap, i));
      const found = there.filter(Boolean).length;
      const pages = Buffer.alloc(found * TAG_PAGE, 'some content ');
      const lz4 = packed && found > 0;
      const bytes = encodeTagPages(9, there.length, bitmap, lz4 ? compressSync(pages) : pages, pages.length, lz4);
      const frame = receive('client-tags', bytes, bytes.length >> 1);
      t.match(frame, { type: FrameType.TagPages, flags: lz4 ? FrameFlag.Lz4 : 0, stream: 9, argument: there.length });
      const answer = decodeTagPages(frame.payload, frame.flags, there.length);
      t.equal(Buffer.compare(answer.pages, pages), 0, 'the pages');
      t.same([...answer.present], [...bitmap], 'which they are');
    }),
    { numRuns: 30 },
  );
  t.end();
});

void t.test('what is not right is refused before anything is made of it', (t) => {
  const page = Buffer.alloc(TAG_PAGE, 1);
  const good = encodeTagPages(1, 3, Uint8Array.of(0b100), page, TAG_PAGE, false).subarray(HEADER_SIZE);
  t.equal(decodeTagPages(good, 0, 3).pages.length, TAG_PAGE);
  const broken = (change: (payload: Buffer) => Buffer | undefined): Buffer => {
    const copy = Buffer.from(good);
    return change(copy) ?? copy;
  };
  for (const [what, payload, flags] of [
    ['a bit too many', broken((p) => void (p[4] = 0b1100)), 0],
    ['more pages than bytes', broken((p) => void (p[4] = 0b110)), 0],
    ['another size', broken((p) => void p.writeUInt32LE(2 * TAG_PAGE, 0)), 0],
    ['cut off', good.subarray(0, -1), 0],
    ['too long', Buffer.concat([good, Buffer.alloc(1)]), 0],
    ['nothing', Buffer.alloc(3), 0],
    ['packed, and is not', good, FrameFlag.Lz4],
    ['packed, of another size', broken((p) => Buffer.concat([p.subarray(0, 5), compressSync(Buffer.alloc(9000))])), 1],
  ] as const)
    t.throws(() => decodeTagPages(payload as Buffer, flags, 3), PROTOCOL, what);
  t.throws(() => decodeTagPages(good, 0, 9), PROTOCOL, 'of another request');
  t.throws(() => decodeHave(Uint8Array.of(0b1000), 3), PROTOCOL);
  t.throws(() => decodeHave(Uint8Array.of(1, 0), 3), PROTOCOL);
  t.throws(() => decodeTagRequest(new Uint8Array(32), 3), PROTOCOL);

  const frame = (type: FrameType, bytes: number): Buffer => {
    const head = Buffer.alloc(HEADER_SIZE + bytes);
    head.writeUInt32LE(bytes, 0);
    head[4] = type;
    return head;
  };
  t.throws(() => receive('server-tags', frame(FrameType.TagRequest, 20), 16), PROTOCOL, 'no whole tags');
  t.throws(() => receive('server-tags', frame(FrameType.HaveRequest, 0), 16), PROTOCOL, 'no tags');
  const many = frame(FrameType.TagRequest, (WireLimit.tagPages + 1) * TAG_BYTES);
  t.throws(() => receive('server-tags', many, 16), PROTOCOL, 'too many');
  t.throws(() => receive('server-tags', frame(FrameType.Proof, 17), 16), PROTOCOL, 'a proof of another length');
  t.throws(() => receive('server-tags', frame(FrameType.PageRequest, 0), 16), PROTOCOL, 'of a migration');
  t.throws(() => receive('client-tags', frame(FrameType.Page, 0), 16), PROTOCOL);
  t.end();
});
