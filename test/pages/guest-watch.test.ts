/** Guests that are watched while they run: their manifest, the resident index, the share of the CPU, and every way that it ends. */
import { closeSync, openSync, readSync } from 'node:fs';
import t, { type Test } from 'tap';
import { native } from '../../src/memory/native.ts';
import { GuestWatch, type GuestWatchOptions, type WatchSettings } from '../../src/pages/guest-watch.ts';
import { copyResident, ResidentIndex } from '../../src/pages/resident.ts';
import { Manifest } from '../../src/pages/manifest.ts';
import { TAG_BYTES, TAG_PAGE } from '../../src/pages/tags.ts';
import { isZeroTag } from '../../src/pages/tag-runs.ts';
import { WriteTracker } from '../../src/memory/write-tracker.ts';
import { findRegions } from '../../src/guests/qemu/memory-map.ts';
import { until } from '../guests/embedded-support.ts';
import { openKey, openPool, silent, skipTracking as skip, startTagged, type TaggedGuest } from './guest-support.ts';

const MIB = 16;
const BRISK: Partial<WatchSettings> = { cpu: 1, intervalMs: 1 };

function openIndex(t: Test): ResidentIndex {
  const index = ResidentIndex.open();
  t.teardown(() => index.close());
  return index;
}

function watch(t: Test, guest: TaggedGuest, more: Partial<GuestWatchOptions> = {}): GuestWatch {
  const options = { record: guest.record, key: openKey(0), pool: openPool(t), log: silent, settings: BRISK, ...more };
  const made = new GuestWatch(options);
  t.teardown(() => made.close());
  return made;
}

void t.test('the manifest follows a guest that writes, and the index finds its pages', { skip }, async (t) => {
  const guest = await startTagged(t, MIB, 20_000);
  const index = openIndex(t);
  const watching = watch(t, guest, { resident: { index, domain: 0 } });
  for (let i = 0; i < 5; i++) await watching.fresh();
  await guest.control.pause();
  await watching.fresh();
  const { passes, tagged, tracked } = watching.stats;
  t.ok(passes > 5 && tracked);
  t.ok(tagged > MIB * 256 && tagged < passes * MIB * 256, `${tagged} frames were tagged in ${passes} passes`);
  const now = guest.tags();
  const tags = await watching.handOver();
  t.ok(tags !== undefined);
  t.teardown(() => tags?.close());
  t.ok(now.equals(tags!.manifest.tags), 'the manifest is that of the memory');
  // every page that is not zero is found, and is the right one
  const page = new Uint8Array(TAG_PAGE);
  const fd = openSync(guest.record.files[0]!.path, 'r');
  const memory = Buffer.alloc(TAG_PAGE);
  let data = 0;
  for (let frame = 0; frame < MIB * 256; frame++) {
    if (isZeroTag(now, frame)) continue;
    data++;
    readSync(fd, memory, 0, TAG_PAGE, frame * TAG_PAGE);
    if (!copyResident(index.lookups(0), now, frame, page) || memory.compare(page) !== 0) t.fail(`frame ${frame}`);
  }
  closeSync(fd);
  t.equal(index.stats().listed, data);
  t.ok(data > 0);
  t.equal(await watching.handOver(), undefined, 'once');
  await watching.close();
  t.equal(index.stats().files, 1, 'closing what was handed over does nothing');
  tags!.close();
  t.equal(index.stats().files, 0);
  t.same(native().findUserfaults(guest.record.pid), [], 'nothing is left in the guest');
});

void t.test('guesses are of use before anything is tagged, and are believed by nobody', { skip }, async (t) => {
  const guest = await startTagged(t, MIB, 0);
  await guest.control.pause();
  const now = guest.tags();
  const frames = MIB * 256;
  const data = [...Array(frames).keys()].filter((frame) => !isZeroTag(now, frame));
  const guessed = (): Manifest => {
    const guesses = new Manifest(frames);
    guesses.tags.set(now);
    // wrong: another page's tag; a page where there is none, and none where there is one
    guesses.tags.copyWithin(data[1]! * TAG_BYTES, data[0]! * TAG_BYTES, (data[0]! + 1) * TAG_BYTES);
    guesses.tags.fill(9, 0, TAG_BYTES);
    guesses.tags.fill(0, data[2]! * TAG_BYTES, (data[2]! + 1) * TAG_BYTES);
    return guesses;
  };
  const index = openIndex(t);
  const resident = { index, domain: 0 };
  // so slow that it does not come to tag much while this looks
  const slow = watch(t, guest, { resident, guesses: guessed(), settings: { cpu: 0.0001, intervalMs: 0 } });
  await until('they are listed', () => index.stats().listed >= data.length - 1);
  t.equal(slow.stats.tagged, 0);
  const page = new Uint8Array(TAG_PAGE);
  const key = openKey(0);
  t.teardown(() => key.close());
  const found = data.filter((frame) => copyResident(index.lookups(0), now, frame, page));
  t.ok(found.length >= data.length - 3, `${found.length} of ${data.length} pages`);
  const last = found.at(-1)! * TAG_BYTES;
  t.ok(key.verify(page, now.subarray(last, last + TAG_BYTES)), 'what was found is the page');
  const wrong = new Uint8Array(TAG_BYTES).fill(9);
  t.notOk(copyResident(index.lookups(0), wrong, 0, page));
  t.ok(index.stats().stale > 0, 'a wrong guess is a miss, and goes');
  await slow.close();
  t.equal(index.stats().files, 0);

  // whoever it is handed to: nothing but what was tagged
  for (const passes of [0, 1]) {
    const watching = watch(t, guest, { resident, guesses: guessed() });
    for (let pass = 0; pass < passes; pass++) await watching.fresh();
    const tags = (await watching.handOver())!;
    t.equal(tags.isDue, passes === 0);
    await tags.tagDue();
    t.ok(now.equals(tags.manifest.tags));
    tags.close();
  }
  const other = watch(t, guest, { guesses: new Manifest(frames + 1) });
  await other.fresh();
  t.ok(other.stats.tagged >= frames, 'of another guest: of no use');
});

void t.test('takes no more than its share of a CPU', { skip }, async (t) => {
  const guest = await startTagged(t, MIB, 1000);
  const cpu = 0.1;
  const began = performance.now();
  const watching = watch(t, guest, { settings: { cpu, intervalMs: 0 } });
  await watching.fresh();
  await watching.fresh();
  const share = watching.stats.busyMs / (performance.now() - began);
  t.ok(watching.stats.busyMs > 0);
  // the pause follows the work: what was just done is not yet paid for
  t.ok(share < 1.5 * cpu, `it took ${share} of a CPU`);
});

void t.test('ends when its guest dies, and leaves nothing', { skip }, async (t) => {
  const guest = await startTagged(t, MIB, 1000);
  const index = openIndex(t);
  const watching = watch(t, guest, { resident: { index, domain: 0 } });
  await watching.fresh();
  t.equal(index.stats().files, 1);
  await guest.kill();
  await watching.ended;
  t.same([index.stats().files, index.stats().listed], [0, 0]);
  t.equal(await watching.handOver(), undefined);
  await watching.fresh();
});

void t.test('closing it leaves nothing, whenever it is closed', { skip }, async (t) => {
  const guest = await startTagged(t, MIB, 5000);
  const index = openIndex(t);
  const pool = openPool(t);
  for (let turn = 0; turn < 8; turn++) {
    // slow ones end in the middle of a pass
    const settings = { cpu: turn % 3 === 0 ? 1 : 0.02, intervalMs: 0 };
    const watching = watch(t, guest, { pool, settings, resident: { index, domain: 0 } });
    if (turn % 3 === 0) await watching.fresh();
    for (let i = 0; i < turn; i++) await new Promise((resolve) => setImmediate(resolve));
    if (turn % 4 === 3) (await watching.handOver())?.close();
    await watching.close();
    await watching.close();
    t.same(native().findUserfaults(guest.record.pid), []);
    t.same([index.stats().files, index.stats().listed], [0, 0]);
  }
  t.ok((await guest.control.verify()).verified, 'the guest is as it was');
});

void t.test('where writes are not tracked it compares digests slowly', { skip }, async (t) => {
  const guest = await startTagged(t, MIB, 5000);
  const { pid, files, pageSize } = guest.record;
  // memory has one tracker: this one is in the way
  const other = WriteTracker.attach({ pid, regions: await findRegions(pid, files), pageSize });
  const index = openIndex(t);
  const slow = { cpu: 1, intervalMs: 1, slowMs: 20 };
  const watching = watch(t, guest, { settings: slow, resident: { index, domain: 0 } });
  await watching.fresh();
  t.equal(watching.stats.tracked, false);
  const all = MIB * 256;
  await until('memory is read again', () => watching.stats.tagged > 3 * all);
  await guest.control.pause();
  const { tagged } = watching.stats;
  await until('and once more', () => watching.stats.tagged > tagged + 2 * all);
  other.tracker.close();
  native().closeRemote(pid, other.remoteFd);
  await until('it is tracked as soon as that is possible', () => watching.stats.tracked);
  await watching.fresh();
  const tags = await watching.handOver();
  t.teardown(() => tags?.close());
  t.ok(guest.tags().equals(tags!.manifest.tags));
});

void t.test('refuses settings and files that make no sense', { skip }, async (t) => {
  const guest = await startTagged(t, MIB, 0);
  const bad = { code: 'PT_BAD_ARGUMENT' };
  for (const settings of [{ cpu: 0 }, { cpu: 1.1 }, { cpu: NaN }, { intervalMs: -1 }, { slowMs: Infinity }])
    t.throws(() => watch(t, guest, { settings }), bad);
  const record = { ...guest.record, files: [{ ...guest.record.files[0]!, path: '/nonexistent' }] };
  t.throws(() => watch(t, guest, { record }), { code: 'PT_MEMORY_FILE' });
  const index = ResidentIndex.open(1024);
  t.teardown(() => index.close());
  t.throws(() => watch(t, guest, { resident: { index, domain: 0 } }), { code: 'PT_NO_SPACE' });
  t.equal(index.stats().files, 0);
  t.same(native().findUserfaults(guest.record.pid), []);
});
