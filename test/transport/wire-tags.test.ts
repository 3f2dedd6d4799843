import fc from 'fast-check';
import t from 'tap';
import { Manifest } from '../../src/pages/manifest.ts';
import { TAG_BYTES } from '../../src/pages/tags.ts';
import {
  checkManifestEnd,
  decodeTags,
  encodeChangedTags,
  encodeChunks,
  encodeManifestEnd,
  encodeTags,
} from '../../src/transport/wire-tags.ts';
import { FrameDecoder, FrameType, HEADER_SIZE, readU32 } from '../../src/transport/wire.ts';

function manifest(frames: number, seed: number): Manifest {
  const made = new Manifest(frames);
  for (let i = 0; i < frames; i++) made.tags[i * TAG_BYTES + (i % TAG_BYTES)] = (i * seed) & 255;
  return made;
}

/** Decodes `frames` as a destination does, cut into pieces of `cut` bytes. */
function receive(frames: Buffer[], into: Manifest, cut: number): { ended: boolean } {
  let ended = false;
  const decoder = new FrameDecoder('client-state', 4096, (type, _flags, _stream, argument, buffer, offset, length) => {
    const payload = buffer.subarray(offset, offset + length);
    if (type === FrameType.Tags) decodeTags(payload, argument, into);
    else checkManifestEnd(payload, argument, into);
    ended = type === FrameType.ManifestEnd;
  });
  const bytes = Buffer.concat(frames);
  for (let at = 0; at < bytes.length; at += cut) decoder.feed(bytes.subarray(at, at + cut));
  return { ended };
}

void t.test('a manifest arrives whole, in chunks and patches, however the stream is cut', (t) => {
  fc.assert(
    fc.property(
      fc.integer({ min: 1, max: 3000 }),
      fc.nat({ max: 200 }),
      fc.integer({ min: 1, max: 5000 }),
      fc.array(fc.tuple(fc.nat(), fc.integer({ min: 1, max: 90 })), { maxLength: 5 }),
      (frames, seed, cut, patches) => {
        const from = manifest(frames, seed);
        const to = new Manifest(frames);
        const sent = encodeChunks(from, [0, from.chunks]);
        for (const [at, count] of patches) {
          const first = at % frames;
          const some = Math.min(count, frames - first);
          from.tags.fill(at & 255, first * TAG_BYTES, (first + some) * TAG_BYTES);
          from.touch(first, some);
          sent.push(...encodeTags(from, first, some));
        }
        sent.push(encodeManifestEnd(from));
        return receive(sent, to, cut).ended && Buffer.compare(from.tags, to.tags) === 0;
      },
    ),
    { numRuns: 60 },
  );
  t.end();
});

void t.test('frames that changed, however far apart', (t) => {
  const from = manifest(60_000, 7);
  const to = new Manifest(60_000);
  to.tags.set(from.tags);
  const changed = new Uint8Array(60_000);
  // at the ends, in one piece over the bounds of a frame of tags, far apart, alone
  for (const [first, count] of [
    [0, 1],
    [5, 20_000],
    [40_000, 3],
    [59_999, 1],
  ] as const) {
    changed.fill(1, first, first + count);
    from.tags.fill(first & 255, first * TAG_BYTES, (first + count) * TAG_BYTES);
    from.touch(first, count);
  }
  const sent = encodeChangedTags(from, changed);
  t.equal(sent.length, 4);
  t.ok(receive([...sent, encodeManifestEnd(from)], to, 4096).ended);
  t.same(to.tags, from.tags);
  t.same(encodeChangedTags(from, new Uint8Array(60_000)), [], 'nothing has changed');
  const sparse = new Uint8Array(60_000);
  for (let frame = 0; frame < 60_000; frame += 100) sparse[frame] = 1;
  const bytes = encodeChangedTags(from, sparse).reduce((sum, { length }) => sum + length, 0);
  t.ok(bytes / 600 < 20.5, `${bytes / 600} bytes a frame that changed alone`);
  t.end();
});

void t.test('a manifest larger than a frame of tags', (t) => {
  const from = manifest(40_000, 7);
  const to = new Manifest(40_000);
  const sent = encodeChunks(from, [0, from.chunks]);
  t.equal(sent.length, 3);
  t.ok(receive([...sent, encodeManifestEnd(from)], to, 65_536).ended);
  t.end();
});

void t.test('what is wrong is refused', (t) => {
  const from = manifest(600, 3);
  const [frame] = encodeTags(from, 100, 400);
  const payload = frame!.subarray(HEADER_SIZE);
  t.equal(readU32(payload, 0), 400);
  const bad = (name: string, work: (into: Manifest) => void): void => {
    t.throws(() => work(new Manifest(600)), { code: 'PT_PROTOCOL' }, name);
  };
  bad('beyond the guest', (into) => decodeTags(payload, 201, into));
  bad('a count of none', (into) => decodeTags(Buffer.concat([Buffer.alloc(4), payload.subarray(4)]), 0, into));
  bad('a count beyond all bounds', (into) =>
    decodeTags(Buffer.concat([Buffer.alloc(4, 255), payload.subarray(4)]), 0, into),
  );
  bad('fewer tags than it says', (into) => decodeTags(payload.subarray(0, -TAG_BYTES), 100, into));
  const end = encodeManifestEnd(from);
  bad('a digest of something else', (into) => checkManifestEnd(end.subarray(HEADER_SIZE), 600, into));
  bad('frames of another guest', () => checkManifestEnd(end.subarray(HEADER_SIZE), 601, from));
  bad('half a digest', () => checkManifestEnd(end.subarray(HEADER_SIZE, -1), 600, from));
  checkManifestEnd(end.subarray(HEADER_SIZE), 600, from);
  for (const [first, count] of [
    [-1, 2],
    [0, 0],
    [599, 2],
  ] as const)
    t.throws(() => encodeTags(from, first, count), { code: 'PT_BAD_ARGUMENT' });
  t.end();
});
