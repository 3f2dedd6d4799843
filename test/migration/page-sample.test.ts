/** What a sample tells of guests' pages: all of them where they are few, a fair part where they are many. */
import { createHash } from 'node:crypto';
import t from 'tap';
import { samplePages } from '../../src/migration/page-sample.ts';
import { Manifest } from '../../src/pages/manifest.ts';
import { TAG_BYTES, TAG_PAGE } from '../../src/pages/tags.ts';

/** Of frames with these pages; page 0 is the zero page. */
function manifestOf(pages: readonly number[]): Manifest {
  const manifest = new Manifest(pages.length);
  for (const [frame, page] of pages.entries())
    if (page !== 0)
      manifest.tags.set(createHash('sha256').update(`page ${page}`).digest().subarray(0, TAG_BYTES), frame * TAG_BYTES);
  return manifest;
}

function range(first: number, count: number): number[] {
  return Array.from({ length: count }, (_, at) => first + at);
}

void t.test('few pages: each of them, repeated ones once, zero ones never', async (t) => {
  const guests = [
    { name: 'a', manifest: manifestOf([0, 1, 2, 2, 3, 0, 1]) },
    { name: 'b', manifest: manifestOf([3, 4, 0]) },
    { name: 'c', manifest: manifestOf([0, 0]) },
  ];
  const sample = await samplePages(guests, 100);
  t.equal(sample.pageBytes, TAG_PAGE);
  const [a, b, c] = sample.guests.map(({ pages }) => [...pages]);
  t.same([a!.length, b!.length, c!.length], [3, 2, 0]);
  t.equal(a!.filter((page) => b!.includes(page)).length, 1, 'the page that both have');
  t.equal(sample.tags.length, 4 * TAG_BYTES);
  const tag = createHash('sha256').update('page 4').digest().subarray(0, TAG_BYTES);
  const number = b!.find((page) => !a!.includes(page))!;
  t.same(Buffer.from(sample.tags.subarray(number * TAG_BYTES, (number + 1) * TAG_BYTES)), tag, 'by number');
});

void t.test('many pages: a part of them, and the same part of what guests have in common', async (t) => {
  const count = 100_000;
  const common = 60_000;
  const guests = [
    { name: 'a', manifest: manifestOf(range(1, count)) },
    { name: 'b', manifest: manifestOf([...range(1, common), ...range(count + 1, count - common)]) },
  ];
  const { guests: sampled, pageBytes } = await samplePages(guests, 4096);
  const [a, b] = sampled.map(({ pages }) => new Set(pages));
  t.ok(a!.size > 2000 && a!.size < 4500, `${a!.size} pages`);
  const bytes = (pages: number): number => (pages * pageBytes) / TAG_PAGE;
  const off = (value: number, right: number): number => Math.abs(value - right) / right;
  // the standard deviation is below 2.5% there
  t.ok(off(bytes(a!.size), count) < 0.1, `${bytes(a!.size)} pages of ${count}`);
  const both = [...a!].filter((page) => b!.has(page)).length;
  t.ok(off(bytes(both), common) < 0.1, `${bytes(both)} of ${common} in common`);
});
