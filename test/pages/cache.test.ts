/** The shared-page cache through its TypeScript door: against a model, refusals, reopening, threads. */
import { readFileSync, statSync, truncateSync, writeFileSync } from 'node:fs';
import { Worker } from 'node:worker_threads';
import fc from 'fast-check';
import t, { type Test } from 'tap';
import { PagetideError, type ErrorCode } from '../../src/errors.ts';
import { CACHE_PAGE, Insertion, PageCache } from '../../src/pages/cache.ts';
import { bytesOf, cachePath, KEYS, makePage, makeTag, openCache } from './support.ts';

const PAGES = 24;
const pages = Array.from({ length: PAGES }, (_, n) => makePage(n));
/** Page n belongs to domain n mod 3. */
const tags = pages.map((page, n) => makeTag(n % 3, page));
const into = new Uint8Array(CACHE_PAGE);

function throwsCode(t: Test, expected: ErrorCode, call: () => unknown): void {
  let thrown: unknown;
  try {
    call();
  } catch (error) {
    thrown = error;
  }
  t.ok(thrown instanceof PagetideError && thrown.code === expected, `${expected}: ${String(thrown)}`);
}

/** What can be done to a cache, and to the model of it: a map from page to nothing. */
type Step =
  | { do: 'insert' | 'read' | 'has' | 'pin' | 'wrong' | 'value'; n: number }
  | { do: 'removeDomain'; domain: number }
  | { do: 'unpin' | 'clear' | 'reopen' };
const page = fc.nat(PAGES - 1);
const step: fc.Arbitrary<Step> = fc.oneof(
  { weight: 12, arbitrary: fc.record({ do: fc.constant('insert' as const), n: page }) },
  {
    weight: 10,
    arbitrary: fc.record({ do: fc.constantFrom('read' as const, 'has', 'pin', 'wrong', 'value'), n: page }),
  },
  { weight: 1, arbitrary: fc.record({ do: fc.constant('removeDomain' as const), domain: fc.nat(3) }) },
  { weight: 2, arbitrary: fc.record({ do: fc.constantFrom('unpin' as const, 'clear', 'reopen') }) },
);

/** Plays steps on a cache with `slots` slots. With as many as pages it must be the map, with fewer a part of it. */
function play(path: string, slots: number, steps: Step[]): void {
  const open = (replace: boolean): PageCache => {
    const opened = PageCache.open({ path, bytes: bytesOf(slots), replace });
    KEYS.forEach((key, domain) => opened.setKey(domain, key));
    return opened;
  };
  let cache = open(true);
  const model = new Set<number>();
  const pinned = new Set<number>();
  const exact = slots >= PAGES;
  const fail = (what: string): never => {
    throw new Error(what);
  };
  try {
    cache.clear();
    let pins = cache.pins();
    for (const one of steps) {
      switch (one.do) {
        case 'insert': {
          const result = cache.insert(one.n % 3, tags[one.n]!, 0, pages[one.n]!, 0, one.n % 16);
          const expected: Insertion[] = model.has(one.n) ? [Insertion.Present] : [Insertion.Inserted];
          if (!exact) expected.push(Insertion.Inserted, Insertion.Full);
          if (!expected.includes(result)) fail(`insert ${one.n}: ${result}`);
          if (pinned.has(one.n) && result !== Insertion.Present) fail(`pinned page ${one.n} was gone`);
          if (result === Insertion.Inserted) model.add(one.n);
          break;
        }
        case 'wrong':
          if (cache.insert(one.n % 3, tags[(one.n + 1) % PAGES]!, 0, pages[one.n]!) !== Insertion.Rejected) {
            fail('a wrong page came in');
          }
          break;
        case 'read': {
          const there = cache.read(tags[one.n]!, 0, into);
          if (exact ? there !== model.has(one.n) : there && !model.has(one.n)) fail(`read ${one.n}: ${there}`);
          if (pinned.has(one.n) && !there) fail(`pinned page ${one.n} is gone`);
          if (there && Buffer.compare(into, pages[one.n]!) !== 0) fail(`page ${one.n} is another`);
          break;
        }
        case 'has': {
          const present = new Uint8Array(1);
          const count = cache.has(tags[one.n]!, present);
          if (count !== present[0] || (exact ? count !== Number(model.has(one.n)) : count && !model.has(one.n))) {
            fail(`has ${one.n}: ${count}`);
          }
          break;
        }
        case 'pin':
          if (pins.add(tags[one.n]!) === 1) pinned.add(one.n);
          else if (exact && model.has(one.n)) fail(`pin ${one.n}`);
          break;
        case 'value':
          cache.setValue(tags[one.n]!, one.n % 16);
          break;
        case 'unpin':
          pins.release();
          pins = cache.pins();
          pinned.clear();
          break;
        case 'removeDomain': {
          const gone = [...model].filter((n) => n % 3 === one.domain);
          const count = cache.removeDomain(one.domain);
          if (exact ? count !== gone.length : count > gone.length) fail(`removed ${count} of ${gone.length}`);
          for (const n of gone) {
            model.delete(n);
            pinned.delete(n);
          }
          break;
        }
        case 'clear':
          cache.clear();
          model.clear();
          pinned.clear();
          break;
        case 'reopen':
          cache.close();
          cache = open(false);
          pins = cache.pins();
          pinned.clear();
          break;
      }
      const stats = cache.stats();
      if (exact ? stats.used !== model.size : stats.used > Math.min(slots, model.size)) fail(`${stats.used} used`);
      if (stats.pinned !== pinned.size) fail(`${stats.pinned} pinned, not ${pinned.size}`);
      if (stats.dropped !== 0) fail('a page was dropped');
    }
  } finally {
    cache.close();
  }
}

void t.test('with room for every page it is a map, also after a restart', (t) => {
  const path = cachePath(t);
  fc.assert(
    fc.property(fc.array(step, { maxLength: 60 }), (steps) => play(path, PAGES, steps)),
    { numRuns: 150 },
  );
  t.end();
});

void t.test('with less room it is a part of one, and keeps what is pinned', (t) => {
  const path = cachePath(t);
  fc.assert(
    fc.property(fc.integer({ min: 1, max: 10 }), fc.array(step, { maxLength: 60 }), (slots, steps) =>
      play(path, slots, steps),
    ),
    { numRuns: 150 },
  );
  t.end();
});

void t.test('refuses bad arguments before anything is made', (t) => {
  const path = cachePath(t);
  for (const bytes of [0, -1, 12287, 1.5, NaN, Infinity]) {
    throwsCode(t, 'PT_BAD_ARGUMENT', () => PageCache.open({ path, bytes }));
  }
  throwsCode(t, 'PT_BAD_ARGUMENT', () => PageCache.open({ path: '', bytes: 1 << 20 }));
  t.throws(() => statSync(path));
  const cache = openCache(t, path, 8);
  throwsCode(t, 'PT_BAD_ARGUMENT', () => cache.setKey(-1, KEYS[0]!));
  throwsCode(t, 'PT_BAD_ARGUMENT', () => cache.setKey(2 ** 32, KEYS[0]!));
  throwsCode(t, 'PT_BAD_ARGUMENT', () => cache.setKey(0, new Uint8Array(65)));
  throwsCode(t, 'PT_BAD_ARGUMENT', () => cache.has(new Uint8Array(17), new Uint8Array(2)));
  throwsCode(t, 'PT_BAD_ARGUMENT', () => cache.setValue(tags[0]!, 16));
  throwsCode(t, 'PT_INTERNAL', () => cache.insert(0, tags[0]!, 1, pages[0]!));
  throwsCode(t, 'PT_INTERNAL', () => cache.insert(0, tags[0]!, 0, pages[0]!, 1));
  throwsCode(t, 'PT_INTERNAL', () => cache.read(tags[0]!, 0, new Uint8Array(4095)));
  throwsCode(t, 'PT_INTERNAL', () => cache.has(tags[0]!, new Uint8Array(0)));
  const pins = cache.pins();
  pins.release();
  throwsCode(t, 'PT_INTERNAL', () => pins.add(tags[0]!));
  t.equal(cache.insert(7, tags[0]!, 0, pages[0]!), Insertion.Unverified, 'a domain without a key');
  t.equal(cache.insert(0, new Uint8Array(16), 0, new Uint8Array(4096)), Insertion.Rejected, 'the zero page');
  cache.close();
  cache.close();
  throwsCode(t, 'PT_INTERNAL', () => cache.stats());
  t.end();
});

void t.test('one opener a file; files that do not fit have a code', (t) => {
  const path = cachePath(t);
  const cache = openCache(t, path, 8);
  throwsCode(t, 'PT_CACHE_IN_USE', () => PageCache.open({ path, bytes: bytesOf(8) }));
  cache.insert(0, tags[0]!, 0, pages[0]!);
  cache.close();
  throwsCode(t, 'PT_CACHE_FILE', () => PageCache.open({ path, bytes: bytesOf(9) }));
  truncateSync(path, 20_000);
  throwsCode(t, 'PT_CACHE_FILE', () => PageCache.open({ path, bytes: bytesOf(8) }));
  const again = openCache(t, path, 8, true);
  t.equal(again.stats().used, 0);
  again.insert(0, tags[0]!, 0, pages[0]!);
  again.close();
  const newer = readFileSync(path);
  newer.writeUInt32LE(2, 8);
  writeFileSync(path, newer);
  throwsCode(t, 'PT_CACHE_FILE', () => PageCache.open({ path, bytes: bytesOf(8) }));
  t.equal(Buffer.compare(readFileSync(path), newer), 0, 'one of another version is left as it is');
  const anew = openCache(t, path, 8, true);
  t.equal(anew.stats().used, 0, 'and nothing of it is used when it is made anew');
  anew.close();
  writeFileSync(path, 'a letter, and not ours');
  throwsCode(t, 'PT_CACHE_FILE', () => PageCache.open({ path, bytes: bytesOf(8), replace: true }));
  t.equal(readFileSync(path, 'utf8'), 'a letter, and not ours');
  throwsCode(t, 'PT_NO_SPACE', () => PageCache.open({ path: `${path}-large`, bytes: 2 ** 46 }));
  t.throws(() => statSync(`${path}-large`), 'nothing is left behind');
  t.end();
});

void t.test('a page that rotted while nobody looked is dropped, not served', (t) => {
  const path = cachePath(t);
  const cache = openCache(t, path, 8);
  for (let n = 0; n < 4; n++) cache.insert(n % 3, tags[n]!, 0, pages[n]!);
  cache.close();
  const file = readFileSync(path);
  file[file.indexOf(pages[2]!) + 77]! ^= 1;
  writeFileSync(path, file);
  const again = openCache(t, path, 8);
  t.equal(again.stats().used, 4);
  t.same(
    [0, 1, 2, 3].map((n) => again.read(tags[n]!, 0, into)),
    [true, true, false, true],
  );
  t.match(again.stats(), { used: 3, dropped: 1, hits: 3, misses: 1 });
  t.equal(again.insert(2, tags[2]!, 0, pages[2]!), Insertion.Inserted);
  t.end();
});

void t.test('a file that is cut off while in use is a cache that has nothing', (t) => {
  const path = cachePath(t);
  const cache = openCache(t, path, 8);
  cache.insert(0, tags[0]!, 0, pages[0]!);
  truncateSync(path, 4096);
  t.equal(cache.read(tags[0]!, 0, into), false);
  t.equal(cache.insert(0, tags[3]!, 0, pages[3]!), Insertion.Lost);
  throwsCode(t, 'PT_CACHE_FILE', () => cache.removeDomain(0));
  t.equal(cache.stats().lost, true);
  t.equal(statSync(path).size, 4096, 'nothing of ours made it longer');
  t.end();
});

void t.test('every thread uses it by its number', async (t) => {
  const cache = openCache(t, cachePath(t), 8);
  cache.insert(0, tags[0]!, 0, pages[0]!);
  const code = `
    const { workerData, parentPort } = require('node:worker_threads');
    import(workerData.module).then(({ PageCache }) => {
      const cache = PageCache.at(workerData.id), into = new Uint8Array(4096);
      const there = cache.read(workerData.tags, 0, into);
      const inserted = cache.insert(0, workerData.tags, 16, workerData.page);
      parentPort.postMessage({ there, inserted, into });
    });`;
  const both = new Uint8Array([...tags[0]!, ...tags[3]!]);
  const module = new URL('../../src/pages/cache.js', import.meta.url).href;
  const worker = new Worker(code, { eval: true, workerData: { module, id: cache.id, tags: both, page: pages[3] } });
  t.teardown(() => worker.terminate());
  const said = await new Promise<{ there: boolean; inserted: number; into: Uint8Array }>((resolve, reject) => {
    worker.once('message', resolve);
    worker.once('error', reject);
  });
  t.match(said, { there: true, inserted: Insertion.Inserted });
  t.equal(Buffer.compare(said.into, pages[0]!), 0);
  t.equal(cache.read(tags[3]!, 0, into), true);
});
