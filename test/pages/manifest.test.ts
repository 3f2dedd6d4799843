import fc from 'fast-check';
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t from 'tap';
import { linkDuplicates } from '../../src/pages/duplicates.ts';
import { decodeManifest, encodeManifest, readManifest, writeManifest } from '../../src/pages/manifest-file.ts';
import { compareManifests, summarizeManifest, uniqueFrames } from '../../src/pages/manifest-summary.ts';
import { CHUNK_FRAMES, chunkTagOf, Manifest } from '../../src/pages/manifest.ts';
import { TAG_BYTES } from '../../src/pages/tags.ts';

/** Numbers as pages: 0 is the zero page. */
function manifestOf(pages: readonly number[]): Manifest {
  const manifest = new Manifest(pages.length);
  pages.forEach((page, frame) => {
    for (let i = 0; i < 4; i++) manifest.tags[frame * TAG_BYTES + i * 5] = page >>> (8 * i);
  });
  return manifest;
}

const pages = fc.oneof(
  fc.array(fc.nat({ max: 6 }), { minLength: 1, maxLength: 60 }),
  fc
    .tuple(
      fc.integer({ min: 400, max: 1600 }),
      fc.array(fc.tuple(fc.nat({ max: 1599 }), fc.nat({ max: 99_999 })), { maxLength: 50 }),
    )
    .map(([frames, some]) => {
      const all = new Array<number>(frames).fill(0);
      for (const [at, page] of some) all[at % frames] = page;
      return all;
    }),
);

void t.test('chunks carry a manifest from one side to another, the digest says so', (t) => {
  fc.assert(
    fc.property(pages, (content) => {
      const from = manifestOf(content);
      const to = new Manifest(from.frames);
      for (let i = 0; i < from.chunks; i++) to.decodeChunk(i, from.encodeChunk(i), from.chunkTag(i));
      return Buffer.compare(to.tags, from.tags) === 0 && to.digest().equals(from.digest());
    }),
  );
  t.end();
});

void t.test('any change of any frame changes its chunk and the digest', (t) => {
  fc.assert(
    fc.property(pages, fc.nat(), fc.integer({ min: 1, max: 255 }), fc.nat({ max: 15 }), (content, at, value, byte) => {
      const manifest = manifestOf(content);
      const frame = at % manifest.frames;
      const before = {
        digest: manifest.digest(),
        chunk: Buffer.from(manifest.chunkTag(Math.floor(frame / CHUNK_FRAMES))),
      };
      manifest.tags[frame * TAG_BYTES + byte]! ^= value;
      manifest.touch(frame, 1);
      const changed = !manifest.digest().equals(before.digest);
      const chunk = !before.chunk.equals(manifest.chunkTag(Math.floor(frame / CHUNK_FRAMES)));
      manifest.tags[frame * TAG_BYTES + byte]! ^= value;
      manifest.touch(frame, 1);
      return changed && chunk && manifest.digest().equals(before.digest);
    }),
  );
  t.notOk(
    manifestOf([0, 0])
      .digest()
      .equals(manifestOf([0, 0, 0]).digest()),
    'nor do more zero frames go unnoticed',
  );
  t.end();
});

void t.test('a chunk is taken only if it is the one that was named', (t) => {
  const from = manifestOf(Array.from({ length: 700 }, (_, i) => i + 1));
  const to = new Manifest(700);
  t.equal(from.chunks, 2);
  t.equal(from.framesOf(1), 188, 'memory is no multiple of a chunk');
  t.throws(() => to.decodeChunk(0, from.encodeChunk(0), from.chunkTag(1)), { code: 'PT_PROTOCOL' });
  t.throws(() => to.decodeChunk(1, from.encodeChunk(0), from.chunkTag(0)), { code: 'PT_PROTOCOL' }, 'another length');
  t.throws(() => to.setChunk(1, from.tags.subarray(0, 512 * TAG_BYTES), from.chunkTag(0)), { code: 'PT_PROTOCOL' });
  t.ok(
    to.tags.every((byte) => byte === 0),
    'nothing has changed',
  );
  for (const index of [-1, 2, 0.5]) t.throws(() => to.framesOf(index), { code: 'PT_BAD_ARGUMENT' });
  to.setChunk(1, from.tags.subarray(512 * TAG_BYTES), from.chunkTag(1));
  t.same(to.chunkTag(1), from.chunkTag(1));
  t.same(chunkTagOf(new Uint8Array(512 * TAG_BYTES)), Buffer.alloc(16), 'a chunk of zero pages has a name of its own');
  for (const frames of [0, -1, 1.5, 2 ** 31]) t.throws(() => new Manifest(frames), { code: 'PT_BAD_ARGUMENT' });
  t.throws(() => new Manifest(2, new Uint8Array(31)), { code: 'PT_BAD_ARGUMENT' });
  t.end();
});

void t.test('rings of duplicates: every frame with a page is in the ring of that page, and of no other', (t) => {
  fc.assert(
    fc.property(pages, (content) => {
      const { next, first, repeated, zero } = linkDuplicates(manifestOf(content).tags);
      const seen = new Set<number>();
      for (let frame = 0; frame < content.length; frame++) {
        const ring = [frame];
        for (let at = next[frame]!; at !== frame; at = next[at]!) {
          ring.push(at);
          if (ring.length > content.length) return false;
        }
        const page = content[frame]!;
        const expected = page === 0 ? 1 : content.filter((other) => other === page).length;
        if (ring.length !== expected || ring.some((at) => content[at] !== page)) return false;
        if (first[frame] !== Math.min(...ring)) return false;
        if (page !== 0) seen.add(page);
      }
      const zeros = content.filter((page) => page === 0).length;
      return zero === zeros && repeated === content.length - zeros - seen.size;
    }),
  );
  t.end();
});

void t.test('what a manifest holds and shares', (t) => {
  fc.assert(
    fc.property(pages, pages, (ours, theirs) => {
      const a = manifestOf(ours);
      const b = manifestOf(theirs);
      const have = new Set(theirs);
      const content = ours.filter((page) => page !== 0);
      const distinct = new Set(content);
      t.same(summarizeManifest(a), {
        frames: ours.length,
        zero: ours.length - content.length,
        distinct: distinct.size,
        repeated: content.length - distinct.size,
      });
      const compared = compareManifests(a, b);
      return (
        compared.shared === content.filter((page) => have.has(page)).length &&
        compared.missing === content.length - compared.shared &&
        compared.inPlace === ours.filter((page, at) => page !== 0 && theirs[at] === page).length &&
        compared.sharedDistinct === [...distinct].filter((page) => have.has(page)).length
      );
    }),
    { numRuns: 50 },
  );
  const like = manifestOf(Array.from({ length: 1024 }, (_, i) => i + 1));
  const other = manifestOf(Array.from({ length: 1536 }, (_, i) => (i < 512 ? 0 : i < 1024 ? i - 511 : 7)));
  t.match(compareManifests(like, other), { sharedChunks: 1, chunks: 2, shared: 512, inPlace: 0 });
  t.end();
});

void t.test('manifest files: written whole, read with suspicion', (t) => {
  const folder = mkdtempSync(join(tmpdir(), 'pagetide-manifest-'));
  t.teardown(() => rmSync(folder, { recursive: true }));
  const path = join(folder, 'guest.manifest');
  const manifest = manifestOf(Array.from({ length: 1300 }, (_, i) => (i % 3 === 0 ? 0 : i)));
  writeManifest(path, manifest, 'tenant');
  t.ok(readManifest(path, 'tenant').digest().equals(manifest.digest()));
  t.same(readdirSync(folder), ['guest.manifest']);
  const whole = readFileSync(path);
  const damaged = (name: string, change: (bytes: Buffer) => Buffer): void => {
    t.throws(() => decodeManifest(change(Buffer.from(whole)), 'tenant', 'x'), { code: 'PT_MANIFEST_INVALID' }, name);
  };
  const at = (offset: number, value: number) => (bytes: Buffer) => {
    bytes.writeUInt32LE(value, offset);
    return bytes;
  };
  damaged('empty', () => Buffer.alloc(0));
  damaged('magic', at(0, 1));
  damaged('format', at(4, 2));
  damaged('tags of another version', at(8, 2));
  damaged('no frames', at(12, 0));
  damaged('frames beyond all bounds', at(12, 0xffff_ffff));
  damaged('many frames, few bytes', at(12, 1 << 29));
  damaged('fewer frames', at(12, 1299));
  damaged('digest', at(16, 0));
  damaged('length of a chunk', at(80, 1 << 30));
  damaged('goes on', (bytes) => Buffer.concat([bytes, Buffer.alloc(1)]));
  t.throws(() => decodeManifest(whole, 'another', 'x'), { code: 'PT_MANIFEST_INVALID', message: /domain/ });
  fc.assert(
    fc.property(fc.nat({ max: whole.length - 1 }), fc.integer({ min: 1, max: 255 }), (offset, flip) => {
      const bytes = Buffer.from(whole);
      bytes[offset]! ^= flip;
      try {
        decodeManifest(bytes, 'tenant', 'x');
        return false;
      } catch (error) {
        return (error as { code?: string }).code === 'PT_MANIFEST_INVALID';
      }
    }),
    { numRuns: 300 },
  );
  for (let length = 0; length < whole.length; length += 97)
    damaged(`cut at ${length}`, (bytes) => bytes.subarray(0, length));
  t.throws(() => readManifest(join(folder, 'none'), 'tenant'), { code: 'PT_IO' });
  t.throws(() => writeManifest(join(folder, 'no/such/folder'), manifest, 'tenant'), { code: 'PT_IO' });
  writeFileSync(path, encodeManifest(manifest, 'tenant').subarray(0, 50));
  t.throws(() => readManifest(path, 'tenant'), { code: 'PT_MANIFEST_INVALID' });
  t.end();
});

void t.test('unique frames are the first of each page, and with another manifest of each that it lacks', (t) => {
  fc.assert(
    fc.property(pages, pages, (content, others) => {
      const [manifest, other] = [manifestOf(content), manifestOf(others)];
      const first = (page: number, frame: number): boolean => page !== 0 && content.indexOf(page) === frame;
      const frames = [...content.keys()].filter((frame) => first(content[frame]!, frame));
      const lacking = frames.filter((frame) => !others.includes(content[frame]!));
      const same = (a: Uint32Array, b: number[]): boolean => a.length === b.length && a.every((n, i) => n === b[i]);
      return same(uniqueFrames(manifest), frames) && same(uniqueFrames(manifest, other), lacking);
    }),
  );
  t.end();
});
