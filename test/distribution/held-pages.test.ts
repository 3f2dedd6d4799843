/** Held pages: rows that come and go against a plain model, and their file. */
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import fc from 'fast-check';
import t from 'tap';
import { toWords } from '../../src/directory/tag-words.ts';
import { readHeld, writeHeld } from '../../src/distribution/held-file.ts';
import { HELD, HeldPages, UNPAID, UNPAID_MS } from '../../src/distribution/held-pages.ts';
import { finish } from '../../src/distribution/pieces.ts';
import { TRIAL_ARRIVALS } from '../../src/distribution/score.ts';
import { TagRows } from '../../src/distribution/tag-rows.ts';
import { range, tagsOf } from './support.ts';

const PAGE = { domain: 1, guests: 3, likelihood: 0.5, wireBytes: 1500 };

void t.test('rows of tags, against a map', (t) => {
  const step = fc.record({ tag: fc.nat(60), add: fc.boolean() });
  fc.assert(
    fc.property(fc.array(step, { maxLength: 300 }), (steps) => {
      const rows = new TagRows(16);
      const model = new Map<number, number>();
      for (const { tag, add } of steps) {
        const words = toWords(tagsOf(tag));
        const row = rows.find(words, 0);
        if (row !== (model.get(tag) ?? -1)) return false;
        if (add && row < 0) model.set(tag, rows.add(words, 0));
        if (!add && row >= 0) {
          rows.remove(row);
          model.delete(tag);
        }
      }
      const taken = [...model.values()];
      return rows.size === model.size && new Set(taken).size === taken.length && rows.rows <= rows.capacity;
    }),
  );
  const many = new TagRows(16);
  const words = toWords(tagsOf(...range(0, 50_000)));
  for (let i = 0; i < 50_000; i++) many.add(words, i * 4);
  for (let i = 0; i < 50_000; i += 2) many.remove(many.find(words, i * 4));
  t.ok(range(0, 50_000).every((i) => many.find(words, i * 4) >= 0 === (i % 2 === 1)));
  t.end();
});

void t.test('what never paid is remembered for a day', (t) => {
  const held = new HeldPages();
  const words = toWords(tagsOf(1, 2));
  held.add(words, 0, PAGE, 0);
  held.add(words, 4, PAGE, 0);
  for (let i = 0; i < TRIAL_ARRIVALS; i++) held.countArrival(1);
  held.serve(held.find(1, words, 4));
  t.ok(held.isUnpaid(held.find(1, words, 0)));
  t.notOk(held.isUnpaid(held.find(1, words, 4)));
  held.leave(held.find(1, words, 0), 10);
  held.leave(held.find(1, words, 4), 10);
  t.same([held.count(), held.unpaid, held.find(1, words, 4)], [0, 1, -1]);
  t.equal(held.state(held.find(1, words, 0)), UNPAID);
  finish(held.forget(10 + UNPAID_MS - 1));
  t.equal(held.unpaid, 1);
  finish(held.forget(10 + UNPAID_MS));
  t.equal(held.unpaid, 0);
  t.end();
});

void t.test('a domain that goes takes its rows along', (t) => {
  const held = new HeldPages();
  const words = toWords(tagsOf(...range(0, 10_000)));
  for (let i = 0; i < 10_000; i++) held.add(words, i * 4, { ...PAGE, domain: 1 + (i % 2) }, 0);
  const steps = held.dropDomain(1);
  steps.next();
  t.equal(held.count(), 5000, 'it counts nothing from the first step on');
  finish(steps);
  t.equal(held.index.size, 5000);
  t.equal(held.count(2), 5000);
  t.end();
});

void t.test('the file: as it was, or not at all', async (t) => {
  const folder = await mkdtemp(join(tmpdir(), 'pagetide-held-'));
  t.teardown(async () => rm(folder, { recursive: true, force: true }));
  const path = join(folder, 'held');
  t.equal(await readHeld(path, new HeldPages(), 0), undefined);
  const held = new HeldPages();
  const words = toWords(tagsOf(...range(0, 5000)));
  for (let i = 0; i < 5000; i++) held.add(words, i * 4, { ...PAGE, guests: 1 + (i % 10) }, 1000);
  held.countArrival(1);
  held.serve(held.find(1, words, 0));
  held.drop(held.find(1, words, 4));
  const score = [{ domain: 'd', class: 'pair' as const, spentBytes: 10, savedBytes: 20 }];
  await writeHeld(path, held, score, 5000);
  const back = new HeldPages();
  t.same(await readHeld(path, back, 100), score);
  t.equal(back.count(), 4999);
  for (const at of [0, 8, 4999 * 4])
    t.same(back.keptRow(back.find(1, words, at), 100), held.keptRow(held.find(1, words, at), 5000));
  t.equal(back.state(back.find(1, words, 0)), HELD);
  t.equal(back.keptRow(back.find(1, words, 0), 100).ageMs, 4000, 'the time between is not counted');
  const whole = await readFile(path);
  for (const torn of [whole.subarray(0, 20), whole.subarray(0, -1), Buffer.alloc(0), Buffer.alloc(100, 'x')]) {
    await writeFile(path, torn);
    const none = new HeldPages();
    await t.rejects(readHeld(path, none, 0), { code: 'PT_IO' });
    t.equal(none.index.size, 0);
  }
  for (const at of [9, 40, 5000, whole.length - 1]) {
    const wrong = Buffer.from(whole);
    wrong[at]! ^= 4;
    await writeFile(path, wrong);
    await t.rejects(readHeld(path, new HeldPages(), 0), { code: 'PT_IO' }, `byte ${at}`);
  }
});
