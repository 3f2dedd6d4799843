/** The resident index through the addon: pages of one memory file installed into a guest of this process. */
import { closeSync, ftruncateSync, openSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { FrameState, native, Outcome, OUTCOME_FIELDS, OutcomeField } from '../../src/memory/native.ts';
import { copyResident, ResidentIndex } from '../../src/pages/resident.ts';
import { TagPool } from '../../src/pages/tag-pool.ts';
import { DomainKey, HASH_BYTES, TAG_BYTES, TAG_PAGE } from '../../src/pages/tags.ts';
import { scratch } from '../guests/embedded-support.ts';
import { KEYS, makeGuest, makePage, makeTag } from './support.ts';

const FRAMES = 8;

function openIndex(t: Test, frames?: number): ResidentIndex {
  const index = ResidentIndex.open(frames);
  t.teardown(() => index.close());
  return index;
}

function openKey(t: Test, domain: number): DomainKey {
  const key = new DomainKey(KEYS[domain]!);
  t.teardown(() => key.close());
  return key;
}

/** A memory file: page n in frame n for each of `present`, holes else. */
function makeFile(t: Test, present: readonly number[]): number {
  const fd = openSync(join(scratch(t), 'memory'), 'w+');
  t.teardown(() => closeSync(fd));
  ftruncateSync(fd, FRAMES * TAG_PAGE);
  for (const frame of present) writeSync(fd, makePage(frame), 0, TAG_PAGE, frame * TAG_PAGE);
  return fd;
}

/** Tags of frames 0 to 7 over shared memory; frame 3 is zero. */
function makeTags(domain: number): Uint8Array {
  const tags = new Uint8Array(new SharedArrayBuffer(FRAMES * TAG_BYTES));
  for (let frame = 0; frame < FRAMES; frame++) {
    if (frame !== 3) tags.set(makeTag(domain, makePage(frame)), frame * TAG_BYTES);
  }
  return tags;
}

void t.test(
  'frames are listed with the page hashes that tagging gave, and one that was written is missed',
  async (t) => {
    const index = openIndex(t);
    const key = openKey(t, 1);
    const pool = new TagPool(1);
    t.teardown(() => pool.close());
    const fd = makeFile(t, [0, 1, 2, 4, 7]);
    const tags = new Uint8Array(new SharedArrayBuffer(FRAMES * TAG_BYTES));
    const all = new Uint8Array(FRAMES * HASH_BYTES);
    native().tagFile(key.id, fd, 0, FRAMES, tags, 0, new Uint8Array(TAG_PAGE), all);
    for (let frame = 0; frame < FRAMES; frame++) {
      const hash = all.subarray(frame * HASH_BYTES, (frame + 1) * HASH_BYTES);
      t.equal(
        hash.some((byte) => byte !== 0),
        [0, 1, 2, 4, 7].includes(frame),
        `frame ${frame}`,
      );
    }
    // by the pool: those of a range, from its beginning
    const hashes = new Uint8Array(new SharedArrayBuffer(4 * HASH_BYTES));
    await pool.tag({ key, fd, first: 1, count: 4, tags, hashes });
    t.same(Buffer.from(hashes), Buffer.from(all.subarray(HASH_BYTES, 5 * HASH_BYTES)));
    const bad = { code: 'PT_BAD_ARGUMENT' };
    await t.rejects(pool.tag({ key, fd, first: 0, count: 5, tags, hashes }), bad);
    await t.rejects(pool.tag({ key, fd, first: 0, count: 4, tags, hashes: new Uint8Array(32) }), bad);

    const file = index.add({ domain: 1, key, fd, frames: FRAMES });
    t.throws(() => file.set(0, FRAMES, tags, 0, hashes), { code: 'PT_INTERNAL' });
    file.set(1, 4, tags, 1, hashes);
    const lookups = index.lookups(1);
    const page = new Uint8Array(TAG_PAGE);
    for (const frame of [1, 2, 4]) {
      t.ok(copyResident(lookups, tags, frame, page));
      t.same(page, makePage(frame));
    }
    const written = makePage(2);
    written[TAG_PAGE - 1]! ^= 1;
    writeSync(fd, written, 0, TAG_PAGE, 2 * TAG_PAGE);
    t.notOk(copyResident(lookups, tags, 2, page));
    t.equal(index.stats().stale, 1);
    t.ok(copyResident(lookups, tags, 1, page));
  },
);

void t.test('pages of a sibling are installed; zero frames marked; the first absent page ends it', (t) => {
  const { session, read } = makeGuest(t, FRAMES);
  const index = openIndex(t);
  const key = openKey(t, 1);
  const tags = makeTags(1);
  const fd = makeFile(t, [0, 1, 2, 4, 7]);
  const file = index.add({ domain: 1, key, fd, frames: FRAMES });
  key.close(); // the index has it
  const lookups = index.lookups(1);
  t.equal(index.lookups(1), lookups);
  const outcome = new Int32Array(OUTCOME_FIELDS);
  t.equal(session.installFromResident(0, FRAMES, tags, lookups, outcome), Outcome.Absent, 'nothing is listed yet');
  file.set(0, FRAMES, tags);
  t.equal(session.installFromResident(0, FRAMES, tags, lookups, outcome), Outcome.Absent);
  t.equal(outcome[OutcomeField.Installed], 4);
  t.equal(outcome[OutcomeField.Skipped], 1);
  t.equal(outcome[OutcomeField.Next], 5);
  t.equal(session.installFromResident(7, 1, tags, lookups, outcome), Outcome.Done);
  const { Present, Zero, Missing } = FrameState;
  t.same([...session.table], [Present, Present, Present, Zero, Present, Missing, Missing, Present]);
  for (const n of [0, 1, 2, 4, 7]) t.equal(Buffer.compare(read(n), makePage(n)), 0, `frame ${n}`);
  // frame 5 was listed, and is a hole
  t.match(index.stats(), { files: 1, frames: FRAMES, hits: 5, misses: 2, stale: 1, listed: 6 });
  t.end();
});

void t.test('a page that changed, a file that was removed, and a closed index are all missed', (t) => {
  const { session } = makeGuest(t, FRAMES);
  const index = openIndex(t);
  const key = openKey(t, 0);
  const tags = makeTags(0);
  const fd = makeFile(t, [0, 1, 2]);
  const file = index.add({ domain: 0, key, fd, frames: FRAMES });
  file.set(0, 3, tags);
  const lookups = index.lookups(0);
  const outcome = new Int32Array(OUTCOME_FIELDS);
  const install = (frame: number): number => session.installFromResident(frame, 1, tags, lookups, outcome);
  writeSync(fd, Buffer.from([255]), 0, 1, 17);
  t.equal(install(0), Outcome.Absent);
  t.equal(session.table[0], FrameState.Missing);
  t.equal(index.stats().listed, 2);
  t.equal(install(1), Outcome.Done);
  file.remove();
  file.remove();
  file.set(0, 3, tags);
  t.equal(install(2), Outcome.Absent);
  t.equal(index.stats().listed, 0);
  index.add({ domain: 0, key, fd, frames: FRAMES }).set(0, 3, tags);
  const page = new Uint8Array(2 * TAG_PAGE);
  t.equal(copyResident(lookups, tags, 2, page, TAG_PAGE), true);
  t.equal(Buffer.compare(page.subarray(TAG_PAGE), makePage(2)), 0);
  index.close();
  index.close();
  t.equal(copyResident(lookups, tags, 2, page), false);
  t.equal(install(2), Outcome.Absent);
  t.equal(outcome[OutcomeField.Next], 2);
  t.end();
});

void t.test('domains do not meet', (t) => {
  const index = openIndex(t);
  const page = new Uint8Array(TAG_PAGE);
  const files = [0, 1].map((domain) => {
    const fd = makeFile(t, [0, 1]);
    const file = index.add({ domain, key: openKey(t, domain), fd, frames: FRAMES });
    file.set(0, 2, makeTags(domain));
    return file;
  });
  const finds = (lookups: number, of: number): boolean => copyResident(index.lookups(lookups), makeTags(of), 1, page);
  t.same([finds(0, 0), finds(0, 1), finds(1, 0), finds(1, 1)], [true, false, false, true]);
  t.equal(index.removeDomain(0), 1);
  files[0]!.set(0, 2, makeTags(0)); // whoever scans the guest has not heard of it yet
  t.same([finds(0, 0), finds(0, 1), finds(1, 0), finds(1, 1)], [false, false, false, true]);
  t.end();
});

void t.test('refuses what does not fit', (t) => {
  const { session } = makeGuest(t, FRAMES);
  const index = openIndex(t, 1024);
  const key = openKey(t, 0);
  const tags = makeTags(0);
  const fd = makeFile(t, [0]);
  const bad = { code: 'PT_BAD_ARGUMENT' };
  const defect = { code: 'PT_INTERNAL' };
  for (const frames of [0, -1, 1.5, 2 ** 30 + 1]) {
    t.throws(() => ResidentIndex.open(frames), bad);
    t.throws(() => index.add({ domain: 0, key, fd, frames }), bad);
  }
  t.throws(() => index.add({ domain: -1, key, fd, frames: 1 }), bad);
  t.throws(() => index.add({ domain: 0, key, fd: -1, frames: 1 }), bad);
  t.throws(() => index.lookups(2 ** 32), bad);
  t.throws(() => index.add({ domain: 0, key, fd, frames: 1025 }), { code: 'PT_NO_SPACE' });
  const file = index.add({ domain: 0, key, fd, frames: FRAMES });
  t.throws(() => file.set(0, FRAMES + 1, new Uint8Array((FRAMES + 1) * TAG_BYTES)), bad);
  t.throws(() => file.set(1, FRAMES - 1, tags, 2), defect, 'tags that do not reach');
  t.equal(index.stats().listed, 0);
  const outcome = new Int32Array(OUTCOME_FIELDS);
  const lookups = index.lookups(0);
  t.throws(() => session.installFromResident(4, 4, tags.subarray(0, 7 * TAG_BYTES), lookups, outcome), defect);
  t.throws(() => session.installFromResident(0, 1, tags, 0, outcome), defect);
  t.throws(() => session.installFromResident(0, 1, tags, lookups, new Int32Array(3)), defect);
  t.throws(() => session.installFromResident(FRAMES, 1, tags, lookups, outcome), bad);
  t.throws(() => copyResident(lookups, tags, FRAMES, new Uint8Array(TAG_PAGE)), defect);
  t.throws(() => copyResident(lookups, tags, 0, new Uint8Array(TAG_PAGE), 1), defect);
  t.ok(session.table.every((state) => state === FrameState.Missing));
  t.end();
});
