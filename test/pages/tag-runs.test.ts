import fc from 'fast-check';
import t from 'tap';
import {
  decodeTagRuns,
  encodeTagRuns,
  isZeroTag,
  sameTag,
  tagRunsLimit,
  writeChangedTags,
} from '../../src/pages/tag-runs.ts';
import { TAG_BYTES } from '../../src/pages/tags.ts';

/** Tables as memory has them: runs of zero, of one tag, of different ones. `few`: how many different tags there are. */
const table = fc.array(fc.tuple(fc.nat({ max: 5 }), fc.integer({ min: 1, max: 40 })), { maxLength: 30 }).map((runs) => {
  const tags: number[][] = [];
  let serial = 10;
  for (const [kind, count] of runs) {
    for (let i = 0; i < count; i++) {
      const value = kind === 0 ? 0 : kind < 4 ? kind : serial++;
      tags.push(
        Array.from({ length: TAG_BYTES }, (_, byte) => (byte === 0 ? value & 255 : byte === 9 ? value >> 8 : 0)),
      );
    }
  }
  return Uint8Array.from(tags.flat());
});

void t.test('any table survives coding, within the limit', (t) => {
  fc.assert(
    fc.property(table, fc.nat({ max: 9 }), (tags, before) => {
      const count = tags.length / TAG_BYTES;
      const padded = new Uint8Array((before + count) * TAG_BYTES).fill(7, 0, before * TAG_BYTES);
      padded.set(tags, before * TAG_BYTES);
      const coded = encodeTagRuns(padded, before, count);
      const decoded = new Uint8Array((before + count + 1) * TAG_BYTES).fill(9);
      decodeTagRuns(coded, decoded, before, count);
      const inside = decoded.subarray(before * TAG_BYTES, (before + count) * TAG_BYTES);
      const outside = decoded.filter((_, at) => at < before * TAG_BYTES || at >= (before + count) * TAG_BYTES);
      return coded.length <= tagRunsLimit(count) && Buffer.compare(inside, tags) === 0 && outside.every((b) => b === 9);
    }),
  );
  t.end();
});

void t.test('what has not changed is left as it is, and costs two bytes a gap', (t) => {
  fc.assert(
    fc.property(table, fc.infiniteStream(fc.nat({ max: 7 })), (tags, dice) => {
      const count = tags.length / TAG_BYTES;
      const changed = Uint8Array.from({ length: count }, () => (dice.next().value! < 2 ? 1 : 0));
      const out = Buffer.alloc(tagRunsLimit(count) + 2);
      const coded = out.subarray(0, writeChangedTags(tags, changed, 0, count, out, 0));
      const before = new Uint8Array(tags.length).fill(9);
      const decoded = Uint8Array.from(before);
      const wrote = new Uint8Array(count);
      decodeTagRuns(coded, decoded, 0, count, (first, some) => wrote.fill(1, first, first + some));
      if (Buffer.compare(wrote, changed) !== 0) return false;
      for (let at = 0; at < count; at++) if (!sameTag(decoded, at, changed[at] === 1 ? tags : before, at)) return false;
      const one = changed.indexOf(1);
      const isAlone = one >= 0 && one === changed.lastIndexOf(1) && one > 0 && one < count - 1;
      return !isAlone || coded.length === 3 * 2 + (isZeroTag(tags, one) ? 0 : TAG_BYTES);
    }),
  );
  t.end();
});

void t.test('what repeats is cheap', (t) => {
  t.equal(encodeTagRuns(new Uint8Array(512 * TAG_BYTES), 0, 512).length, 2, 'a chunk of zero pages');
  t.equal(encodeTagRuns(new Uint8Array(512 * TAG_BYTES).fill(3), 0, 512).length, 18, 'a chunk of one page');
  const long = new Uint8Array(40_000 * TAG_BYTES);
  t.equal(encodeTagRuns(long, 0, 40_000).length, 6, 'runs longer than one header counts');
  const back = new Uint8Array(long.length).fill(1);
  decodeTagRuns(encodeTagRuns(long, 0, 40_000), back, 0, 40_000);
  t.ok(back.every((byte) => byte === 0));
  t.end();
});

void t.test('garbage is refused, and never writes outside its place', (t) => {
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 200 }), fc.integer({ min: 1, max: 64 }), (coded, count) => {
      const tags = new Uint8Array((count + 2) * TAG_BYTES).fill(5);
      try {
        decodeTagRuns(coded, tags, 1, count);
      } catch (error) {
        if ((error as { code?: string }).code !== 'PT_PROTOCOL') return false;
      }
      return [0, count + 1].every((at) => tags.subarray(at * TAG_BYTES, (at + 1) * TAG_BYTES).every((b) => b === 5));
    }),
  );
  const tags = new Uint8Array(4 * TAG_BYTES);
  const cases: [string, number[]][] = [
    ['too few', [1, 0]],
    ['too many', [4, 0]],
    ['half a header', [3]],
    ['what was never told is left out', [3, 0xc0]],
    ['half a tag', [3, 0x80, 1, 2]],
    ['nothing', []],
    ['goes on', [3, 0, 0, 0]],
  ];
  for (const [name, bytes] of cases)
    t.throws(() => decodeTagRuns(Uint8Array.from(bytes), tags, 0, 4), { code: 'PT_PROTOCOL' }, name);
  t.end();
});

void t.test('tags are compared whole', (t) => {
  const a = new Uint8Array(2 * TAG_BYTES);
  a[31] = 1;
  t.equal(isZeroTag(a, 0), true);
  t.equal(isZeroTag(a, 1), false, 'its last byte counts');
  t.equal(sameTag(a, 0, a, 1), false);
  t.equal(sameTag(a, 1, a, 1), true);
  t.end();
});
