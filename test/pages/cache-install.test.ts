/** Installing from the cache through the addon: a guest of this process, its frames by their tags. */
import { truncateSync } from 'node:fs';
import t from 'tap';
import { FrameState, Outcome, OUTCOME_FIELDS, OutcomeField } from '../../src/memory/native.ts';
import { CACHE_PAGE, TAG_BYTES } from '../../src/pages/cache.ts';
import { cachePath, makeGuest, makePage, makeTag, openCache } from './support.ts';

const FRAMES = 8;

/** Tags of frames 0 to 7 over shared memory; frame 3 is zero. */
function makeTags(): Uint8Array {
  const tags = new Uint8Array(new SharedArrayBuffer(FRAMES * TAG_BYTES));
  for (let frame = 0; frame < FRAMES; frame++) {
    if (frame !== 3) tags.set(makeTag(0, makePage(frame)), frame * TAG_BYTES);
  }
  return tags;
}

void t.test('hits are installed, zero frames marked, and the first absent page ends it', (t) => {
  const { session, read } = makeGuest(t, FRAMES);
  const cache = openCache(t, cachePath(t), FRAMES);
  const tags = makeTags();
  const outcome = new Int32Array(OUTCOME_FIELDS);
  for (const n of [0, 1, 2, 4, 7]) cache.insert(0, tags, n * TAG_BYTES, makePage(n));
  t.equal(session.installFromCache(0, FRAMES, tags, cache.id, outcome), Outcome.Absent);
  t.equal(outcome[OutcomeField.Installed], 4);
  t.equal(outcome[OutcomeField.Skipped], 1);
  t.equal(outcome[OutcomeField.Next], 5);
  t.equal(session.installFromCache(7, 1, tags, cache.id, outcome), Outcome.Done);
  const { Present, Zero, Missing } = FrameState;
  t.same([...session.table], [Present, Present, Present, Zero, Present, Missing, Missing, Present]);
  for (const n of [0, 1, 2, 4, 7]) t.equal(Buffer.compare(read(n), makePage(n)), 0, `frame ${n}`);
  t.match(cache.stats(), { hits: 5, misses: 1 });
  t.end();
});

void t.test('a cache that was closed or cut off lacks everything', (t) => {
  const { session } = makeGuest(t, FRAMES);
  const path = cachePath(t);
  const cache = openCache(t, path, FRAMES);
  const tags = makeTags();
  const outcome = new Int32Array(OUTCOME_FIELDS);
  for (const n of [0, 1, 2]) cache.insert(0, tags, n * TAG_BYTES, makePage(n));
  t.equal(session.installFromCache(0, 1, tags, cache.id, outcome), Outcome.Done);
  cache.close();
  t.equal(session.installFromCache(1, 1, tags, cache.id, outcome), Outcome.Absent);
  t.equal(outcome[OutcomeField.Next], 1);
  // the thread's use of it does not keep the file locked
  const again = openCache(t, path, FRAMES);
  truncateSync(path, 3 * CACHE_PAGE - 100);
  t.equal(session.installFromCache(1, 1, tags, again.id, outcome), Outcome.Absent);
  t.equal(session.table[1], FrameState.Missing);
  t.equal(again.stats().lost, true);
  t.end();
});

void t.test('refuses tags that do not reach the frames, and what is no cache', (t) => {
  const { session } = makeGuest(t, FRAMES);
  const cache = openCache(t, cachePath(t), FRAMES);
  const outcome = new Int32Array(OUTCOME_FIELDS);
  const tags = makeTags();
  const code = { code: 'PT_INTERNAL' };
  t.throws(() => session.installFromCache(4, 4, tags.subarray(0, 7 * TAG_BYTES), cache.id, outcome), code);
  t.throws(() => session.installFromCache(0, 1, tags, 0, outcome), code);
  t.throws(() => session.installFromCache(0, 1, tags, cache.id, new Int32Array(3)), code);
  t.throws(() => session.installFromCache(FRAMES, 1, tags, cache.id, outcome), { code: 'PT_BAD_ARGUMENT' });
  t.ok(session.table.every((state) => state === FrameState.Missing));
  t.end();
});
