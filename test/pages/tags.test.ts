/** Tags: against Node's own SHA-256, over shared memory, from files with holes, and on worker threads. */
import { createHash, randomBytes } from 'node:crypto';
import { closeSync, fstatSync, ftruncateSync, mkdtempSync, openSync, rmSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import fc from 'fast-check';
import t, { type Test } from 'tap';
import { native } from '../../src/memory/native.ts';
import { TagPool } from '../../src/pages/tag-pool.ts';
import {
  DomainKey,
  TAG_BYTES,
  TAG_PAGE,
  compareTags,
  isZeroTag,
  tagAt,
  tagFromHex,
  tagToHex,
  tagsEqual,
  zeroTag,
} from '../../src/pages/tags.ts';

const secret = randomBytes(32);

function openKey(t: Test, bytes: Uint8Array = secret): DomainKey {
  const key = new DomainKey(bytes);
  t.teardown(() => key.close());
  return key;
}

/** By the definition. */
function expected(page: Uint8Array, bytes: Uint8Array = secret): string {
  if (page.every((byte) => byte === 0)) return '0'.repeat(32);
  return createHash('sha256').update(bytes).update(page).digest('hex').slice(0, 32);
}

/** A sparse memory file; `true` is a frame with random content. */
function memoryFile(t: Test, frames: boolean[]): { fd: number; pages: Buffer } {
  const folder = mkdtempSync('/dev/shm/pt-tags-');
  t.teardown(() => rmSync(folder, { recursive: true, force: true }));
  const fd = openSync(join(folder, 'ram'), 'w+');
  t.teardown(() => closeSync(fd));
  const pages = Buffer.alloc(frames.length * TAG_PAGE);
  ftruncateSync(fd, pages.length);
  frames.forEach((data, frame) => {
    if (!data) return;
    const page = randomBytes(TAG_PAGE);
    page.copy(pages, frame * TAG_PAGE);
    writeSync(fd, page, 0, TAG_PAGE, frame * TAG_PAGE);
  });
  return { fd, pages };
}

const sharedTags = (frames: number): Uint8Array => new Uint8Array(new SharedArrayBuffer(frames * TAG_BYTES));
const pageOf = (pages: Uint8Array, frame: number): Uint8Array =>
  pages.subarray(frame * TAG_PAGE, (frame + 1) * TAG_PAGE);

void t.test('pages are tagged as the scheme says', (t) => {
  const key = openKey(t);
  fc.assert(
    fc.property(
      fc.array(fc.constantFrom('zero', 'random', 'one byte'), { maxLength: 9 }),
      fc.boolean(),
      (kinds, shared) => {
        const bytes = kinds.length * TAG_PAGE;
        const pages = shared ? new Uint8Array(new SharedArrayBuffer(bytes)) : new Uint8Array(bytes);
        kinds.forEach((kind, i) => {
          if (kind === 'random') pages.set(randomBytes(TAG_PAGE), i * TAG_PAGE);
          if (kind === 'one byte') pages[i * TAG_PAGE + Math.floor(Math.random() * TAG_PAGE)] = 1;
        });
        const tags = shared ? sharedTags(kinds.length) : new Uint8Array(kinds.length * TAG_BYTES);
        const zero = native().tagPages(key.id, pages, kinds.length, tags);
        t.equal(zero, kinds.filter((kind) => kind === 'zero').length);
        kinds.forEach((kind, i) => {
          const tag = tagAt(tags, i);
          t.equal(tagToHex(tag), expected(pageOf(pages, i)));
          t.equal(isZeroTag(tags, i), kind === 'zero');
          t.ok(key.verify(pageOf(pages, i), tag));
          const other = Uint8Array.from(tag);
          other[i] = other[i]! ^ 1;
          t.notOk(key.verify(pageOf(pages, i), other));
        });
      },
    ),
    { numRuns: 40 },
  );
  t.end();
});

void t.test('bad arguments are refused before memory is touched', (t) => {
  const key = openKey(t);
  const pages = new Uint8Array(2 * TAG_PAGE);
  const tags = new Uint8Array(2 * TAG_BYTES).fill(7);
  const bad = { code: 'PT_BAD_ARGUMENT' };
  t.throws(() => new DomainKey(new Uint8Array(31)), bad);
  t.throws(() => native().tagPages(key.id, pages, 3, new Uint8Array(100)), bad);
  t.throws(() => native().tagPages(key.id, pages, 2, tags.subarray(1)), bad);
  t.throws(() => native().tagPages(key.id, pages, -1, tags), { code: 'PT_INTERNAL' });
  t.throws(() => native().tagPages(key.id, pages, 0.5, tags), { code: 'PT_INTERNAL' });
  t.throws(() => key.verify(pages, tags.subarray(0, 16)), bad);
  t.throws(() => key.verify(pages.subarray(0, TAG_PAGE), tags), bad);
  const scratch = new Uint8Array(TAG_PAGE);
  const { fd } = memoryFile(t, [true, false]);
  t.throws(() => native().tagFile(key.id, fd, 0, 513, new Uint8Array(513 * 16), 0, scratch), bad);
  t.throws(() => native().tagFile(key.id, fd, 100, 1, tags, 0, scratch), bad);
  t.throws(() => native().tagFile(key.id, fd, 0, 2, tags, 1, scratch), bad);
  t.throws(() => native().tagFile(key.id, fd, 0, 1, tags, 0, scratch.subarray(1)), bad);
  t.throws(() => native().tagFile(key.id, fd, 0, 2, tags, 0, scratch, new Uint8Array(15)), bad);
  t.ok(tags.every((byte) => byte === 7));
  t.throws(() => native().tagFile(key.id, fd, 0, 3, new Uint8Array(48), 0, scratch), {
    errno: 'EIO',
    message: /\+4096/,
  });
  key.close();
  key.close();
  t.throws(() => native().tagPages(key.id, pages, 1, tags), { message: /no domain key/ });
  t.end();
});

void t.test('helpers', (t) => {
  fc.assert(
    fc.property(
      fc.uint8Array({ minLength: 16, maxLength: 16 }),
      fc.uint8Array({ minLength: 16, maxLength: 16 }),
      (a, b) => {
        t.same(tagFromHex(tagToHex(a)), a);
        const many = new Uint8Array([...a, ...b]);
        t.equal(tagsEqual(many, 0, many, 1), tagToHex(a) === tagToHex(b));
        t.ok(tagsEqual(many, 1, b, 0));
        const [x, y] = [tagToHex(a), tagToHex(b)];
        t.equal(Math.sign(compareTags(a, b)), x < y ? -1 : x > y ? 1 : 0);
      },
    ),
    { numRuns: 50 },
  );
  t.ok(isZeroTag(zeroTag()));
  for (const text of ['', 'g'.repeat(32), 'A'.repeat(32), '0'.repeat(31), '0'.repeat(33)])
    t.throws(() => tagFromHex(text), { code: 'PT_BAD_ARGUMENT' });
  t.throws(() => tagAt(new Uint8Array(31), 1), { code: 'PT_BAD_ARGUMENT' });
  t.throws(() => tagAt(new Uint8Array(32), -1), { code: 'PT_BAD_ARGUMENT' });
  t.throws(() => compareTags(new Uint8Array(15), new Uint8Array(16)), { code: 'PT_BAD_ARGUMENT' });
  t.throws(() => tagToHex(new Uint8Array(17)), { code: 'PT_BAD_ARGUMENT' });
  t.end();
});

void t.test('a memory file is tagged by workers, holes stay holes', async (t) => {
  const key = openKey(t);
  const pool = new TagPool(2);
  t.teardown(() => pool.close());
  const frames = Array.from({ length: 1700 }, (_, i) => i % 97 < 40 && i % 5 !== 0);
  const { fd, pages } = memoryFile(t, frames);
  const before = fstatSync(fd).blocks;
  const tags = sharedTags(frames.length);
  const zero = await pool.tag({ key, fd, first: 0, count: frames.length, tags });
  t.equal(zero, frames.filter((data) => !data).length);
  t.ok(frames.every((_, i) => tagToHex(tagAt(tags, i)) === expected(pageOf(pages, i))));
  t.equal(fstatSync(fd).blocks, before, 'no page was created');

  const part = sharedTags(frames.length);
  await pool.tag({ key, fd, first: 600, count: 700, tags: part });
  t.same(part.subarray(600 * 16, 1300 * 16), tags.subarray(600 * 16, 1300 * 16));
  t.ok(part.subarray(0, 600 * 16).every((byte) => byte === 0) && part.subarray(1300 * 16).every((byte) => byte === 0));
  const moved = sharedTags(100);
  await pool.tag({ key, fd, fileOffset: 10 * TAG_PAGE, first: 0, count: 100, tags: moved });
  t.same(moved, tags.subarray(160, 1760));
  t.equal(await pool.tag({ key, fd, first: 0, count: 0, tags }), 0);

  await t.rejects(pool.tag({ key, fd, first: 1000, count: 701, tags: sharedTags(1701) }), { code: 'PT_SYSCALL' });
  const range = { key, fd, first: 0, count: 10, tags };
  for (const wrong of [
    { fd: -1 },
    { first: -1 },
    { count: 1.5 },
    { fileOffset: 100 },
    { first: 1695 },
    { tags: new Uint8Array(160) },
  ])
    await t.rejects(pool.tag({ ...range, ...wrong }), { code: 'PT_BAD_ARGUMENT' });
});

void t.test('a call can be cancelled, and the pool goes on', async (t) => {
  const key = openKey(t);
  const pool = new TagPool(1);
  t.teardown(() => pool.close());
  const frames = Array.from({ length: 4096 }, () => true);
  const { fd } = memoryFile(t, frames);
  const range = { key, fd, first: 0, count: frames.length, tags: sharedTags(frames.length) };
  await t.rejects(pool.tag({ ...range, signal: AbortSignal.abort() }), { code: 'PT_CANCELLED' });
  const abort = new AbortController();
  const running = pool.tag({ ...range, signal: abort.signal });
  abort.abort();
  await t.rejects(running, { code: 'PT_CANCELLED' });
  t.equal(await pool.tag(range), 0);
});

void t.test('closing the pool ends calls', async (t) => {
  const key = openKey(t);
  const pool = new TagPool(1);
  const frames = Array.from({ length: 2048 }, () => true);
  const { fd } = memoryFile(t, frames);
  const running = pool.tag({ key, fd, first: 0, count: frames.length, tags: sharedTags(frames.length) });
  const settled = t.rejects(running, { code: 'PT_INTERNAL' });
  await pool.close();
  await settled;
  t.throws(() => new TagPool(0), { code: 'PT_BAD_ARGUMENT' });
});
