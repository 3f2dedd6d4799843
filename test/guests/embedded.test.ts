/** The guest's proof of itself: wrong memory shows at the next use and in verify, whatever the kind of wrong. */
import { copyFileSync, existsSync, statSync } from 'node:fs';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import type { ControlStatus, GuestControl } from '../../src/guests/control.ts';
import {
  PAGE,
  readFrame,
  saved,
  scratch,
  smallGuest,
  startGuest,
  streamOf,
  until,
  writeFrame,
} from './embedded-support.ts';

const BUSY = ['--write-rate', '5000', '--read-rate', '5000'];
const IDLE = ['--write-rate', '0', '--read-rate', '0'];
/** 4 MiB: 1024 frames, of which the last two hold the tables. */
const FRAMES = 1024;
const DATA_FRAMES = 1022;
const ZERO = Buffer.alloc(PAGE);

/** A frame of the working set that a busy guest will come to soon. */
async function hotFrame(control: GuestControl): Promise<number> {
  for (let frame = 0; frame < DATA_FRAMES; frame++) if ((await control.digest(frame)).hot) return frame;
  throw new Error('no frame of this guest is hot');
}

/** Tampers while the guest is paused, lets it go on, and waits until it has noticed. */
async function noticed(control: GuestControl, tamper: () => Promise<void> | void): Promise<ControlStatus> {
  await control.pause();
  await tamper();
  await control.resume();
  let status = await control.status();
  await until('the workload notices', async () => (status = await control.status()).failureCount > 0);
  return status;
}

async function busyGuest(test: Test): Promise<{ ram: string; control: GuestControl }> {
  const folder = scratch(test);
  // Few hot frames: each comes up within milliseconds.
  const { ram, args } = smallGuest(folder, [...BUSY, '--working-set', '0.02']);
  const { control } = await startGuest(test, join(folder, 'c'), args);
  return { ram, control };
}

void t.test('a guest under load verifies', async (t) => {
  const folder = scratch(t);
  const { ram, args } = smallGuest(folder, [...BUSY, '--threads', '2', '--regions', '3', '--seed', '7']);
  const { control } = await startGuest(t, join(folder, 'c'), args);
  const before = await control.status();
  t.equal(before.frames, FRAMES);
  t.equal(before.regions.length, 3);
  t.equal(before.memoryFile, ram);
  t.equal(statSync(ram).mode & 0o777, 0o600);
  t.equal(statSync(join(folder, 'c')).mode & 0o777, 0o600);
  const sizes = before.regions.map((region) => region.size).reduce((a, b) => a + b);
  t.equal(sizes, FRAMES * PAGE, 'regions cover memory');
  await until('some work is done', async () => (await control.status()).operations > before.operations + 1000);
  t.match(await control.verify(), { verified: true, checked: FRAMES, bad: [], badCount: 0, detail: '' });
  const stats = await control.stats();
  t.equal(stats.stalls.count, 0, 'memory of its own does not stall');
  t.ok(stats.longestGapMs > 0 && stats.longestGapMs < 5000, 'the heart beats');
  t.equal((await control.status()).failureCount, 0);
});

void t.test('memory is real content with holes', async (t) => {
  const folder = scratch(t);
  const { ram, args } = smallGuest(folder, IDLE);
  const { control } = await startGuest(t, join(folder, 'c'), args);
  const zero = Array.from({ length: DATA_FRAMES }, (_, frame) => readFrame(ram, frame).equals(ZERO)).filter(
    Boolean,
  ).length;
  t.ok(zero > DATA_FRAMES * 0.15 && zero < DATA_FRAMES * 0.6, `${zero} frames of ${DATA_FRAMES} are zero`);
  t.ok(statSync(ram).blocks * 512 < FRAMES * PAGE * 0.85, 'holes take no memory');
  t.match(await control.verify(), { verified: true });
});

void t.test('a lost write is noticed at once and by verify', async (t) => {
  const { ram, control } = await busyGuest(t);
  await control.pause();
  const frame = await hotFrame(control);
  const old = readFrame(ram, frame);
  await control.poke(frame);
  const status = await noticed(control, () => writeFrame(ram, frame, old));
  t.match(status.failures[0], { kind: 'page', frame });
  t.not(status.failures[0]?.expected, status.failures[0]?.actual);
  t.match(await control.verify(), { verified: false, bad: [frame], badCount: 1 });
});

void t.test('a zero page is noticed at once and by verify', async (t) => {
  const { ram, control } = await busyGuest(t);
  const frame = await hotFrame(control);
  const status = await noticed(control, () => writeFrame(ram, frame, ZERO));
  t.match(status.failures[0], { kind: 'page', frame });
  t.match(await control.verify(), { verified: false, bad: [frame] });
});

void t.test('a stale table is noticed at once and by verify', async (t) => {
  const { ram, control } = await busyGuest(t);
  await control.pause();
  const frame = await hotFrame(control);
  const table = DATA_FRAMES + Math.floor(frame / 512);
  const old = readFrame(ram, table);
  await control.poke(frame);
  const status = await noticed(control, () => writeFrame(ram, table, old));
  t.match(status.failures[0], { kind: 'table', frame: table });
  const verdict = await control.verify();
  t.equal(verdict.verified, false);
  t.ok(verdict.bad.includes(table));
});

void t.test('a page and its table, stale together and consistent, are noticed at once and by verify', async (t) => {
  const { ram, control } = await busyGuest(t);
  await control.pause();
  const frame = await hotFrame(control);
  const table = DATA_FRAMES + Math.floor(frame / 512);
  const old = { page: readFrame(ram, frame), table: readFrame(ram, table) };
  await control.poke(frame);
  writeFrame(ram, frame, old.page);
  writeFrame(ram, table, old.table);
  const verdict = await control.verify();
  t.match(verdict, { verified: false, bad: [table] }, 'the page fits its table: only the registers know better');
  t.match(verdict.detail, /root checksum/);
  const status = await noticed(control, () => undefined);
  t.match(status.failures[0], { kind: 'table', frame: table });
});

void t.test('content in a frame that was never touched is noticed by verify', async (t) => {
  const folder = scratch(t);
  const { ram, args } = smallGuest(folder, IDLE);
  const { control } = await startGuest(t, join(folder, 'c'), args);
  let hole = 0;
  while ((await control.digest(hole)).expected !== '0000000000000000') hole++;
  const page = Buffer.alloc(PAGE);
  page[PAGE - 1] = 1;
  writeFrame(ram, hole, page);
  t.match(await control.verify(), { verified: false, bad: [hole] });
});

void t.test('a failure stays, also where memory is put right again', async (t) => {
  const { ram, control } = await busyGuest(t);
  const frame = await hotFrame(control);
  let good: Buffer | undefined;
  await noticed(control, () => {
    good = readFrame(ram, frame);
    writeFrame(ram, frame, ZERO);
  });
  await control.pause();
  writeFrame(ram, frame, good!);
  const verdict = await control.verify();
  t.match(verdict, { verified: false, bad: [] });
  t.match(verdict.detail, /met wrong memory/);
});

void t.test('a guest goes on where it was in a copy of its memory', async (t) => {
  const folder = scratch(t);
  const more = [...BUSY, '--threads', '2', '--regions', '2'];
  const { ram, args } = smallGuest(folder, more);
  const { control } = await startGuest(t, join(folder, 'c'), args);
  await until('some work is done', async () => (await control.status()).operations > 500);
  const paused = await control.pause();
  t.same(await control.pause(), paused, 'pausing again changes nothing');
  const state = await saved(control);
  t.same(await saved(control), state, 'saving again gives the same');
  const there = await control.status();

  const copy = join(folder, 'copy');
  copyFileSync(ram, copy);
  const incoming = ['--memory-size', '4M', '--memory-file', copy, '--existing-memory', '--incoming'];
  const second = await startGuest(t, join(folder, 'd'), [...incoming, '--threads', '2', '--regions', '2']);
  t.match(await second.control.status(), { state: 'incoming' });
  await t.rejects(second.control.resume(), { code: 'PT_GUEST_STATE' }, 'no state, no run');
  await t.rejects(second.control.verify(), { code: 'PT_GUEST_STATE' });

  await second.control.load(streamOf(state));
  const here = await second.control.status();
  t.match(here, { state: 'paused', root: there.root, chain: there.chain, operations: there.operations });
  await t.rejects(second.control.load(streamOf(state)), { code: 'PT_VMM_REFUSED_STATE' }, 'once only');

  await second.control.resume();
  await until('work goes on', async () => (await second.control.status()).operations > there.operations + 500);
  t.match(await second.control.verify(), { verified: true, checked: FRAMES });
  const stats = await second.control.stats();
  t.ok(stats.longestGapMs > 0, 'the gap spans the move');
  await control.resume();
  t.match(await control.verify(), { verified: true }, 'the first goes on too');
});

void t.test('the longest gap spans hosts, and is forgotten on request', async (t) => {
  const folder = scratch(t);
  const { ram, args } = smallGuest(folder, BUSY);
  const { control } = await startGuest(t, join(folder, 'c'), args);
  const paused = await control.pause();
  const state = await saved(control);
  copyFileSync(ram, join(folder, 'copy'));
  const incoming = ['--memory-size', '4M', '--memory-file', join(folder, 'copy'), '--existing-memory', '--incoming'];
  const second = await startGuest(t, join(folder, 'd'), incoming);
  await second.control.load(streamOf(state));
  const resumed = await second.control.resume();
  const downMs = (resumed.unixMicros - paused.unixMicros) / 1000;
  await until('the heart beats again', async () => (await second.control.status()).beat >= resumed.unixMicros);
  const { longestGapMs } = await second.control.stats();
  t.ok(longestGapMs >= downMs * 0.9, `silent for ${longestGapMs} ms, down for ${downMs} ms`);
  await second.control.resetStats();
  t.ok((await second.control.stats()).longestGapMs < longestGapMs);
});

void t.test('memory that does not belong to the state is refused at load', async (t) => {
  const folder = scratch(t);
  const { args } = smallGuest(folder, IDLE);
  const { control } = await startGuest(t, join(folder, 'c'), args);
  await control.pause();
  const state = await saved(control);
  const other = ['--memory-size', '4M', '--memory-file', join(folder, 'empty'), '--incoming'];
  const second = await startGuest(t, join(folder, 'd'), other);
  await t.rejects(second.control.load(streamOf(state)), {
    code: 'PT_VMM_REFUSED_STATE',
    message: /memory doesn't belong/,
  });
  t.match(await second.control.status(), { state: 'incoming' });
});

void t.test('frames given up read as zero, and the guest knows', async (t) => {
  const folder = scratch(t);
  const { ram, args } = smallGuest(folder, IDLE);
  const { control } = await startGuest(t, join(folder, 'c'), args);
  const frame = await hotFrame(control);
  for (const how of ['punch', 'remove'] as const) {
    await control.poke(frame);
    await control.remove(frame, 1, how);
    t.match(await control.digest(frame), { zero: true, expected: '0000000000000000' }, how);
    t.ok(readFrame(ram, frame).equals(ZERO));
    t.match(await control.verify(), { verified: true });
  }
  const hash = await control.poke(frame);
  await control.remove(frame, 1, 'dontneed');
  t.match(await control.digest(frame), { zero: false, expected: hash, hash }, 'shared memory keeps its content');
  t.match(await control.verify(), { verified: true });
  await t.rejects(control.remove(DATA_FRAMES - 1, 2, 'punch'), { code: 'PT_BAD_ARGUMENT' }, 'the tables stay');
  await control.pause();
  await t.rejects(control.remove(frame, 1, 'punch'), /paused/, 'its memory stands still');
  t.match(await control.digest(frame), { zero: false, expected: hash, hash });
  await control.resume();
  t.match(await control.verify(), { verified: true });
});

void t.test('frames are copied, and the guest knows', async (t) => {
  const folder = scratch(t);
  const { ram, args } = smallGuest(folder, IDLE);
  const { control } = await startGuest(t, join(folder, 'c'), args);
  await control.poke(3);
  await control.copy(20, 3, 4);
  for (let i = 0; i < 4; i++) {
    t.ok(readFrame(ram, 20 + i).equals(readFrame(ram, 3 + i)), `frame ${20 + i}`);
    t.equal((await control.digest(20 + i)).hash, (await control.digest(3 + i)).hash);
  }
  t.match(await control.verify(), { verified: true });
  await t.rejects(control.copy(DATA_FRAMES - 1, 3, 2), { code: 'PT_BAD_ARGUMENT' }, 'the tables stay');
  await t.rejects(control.copy(3, DATA_FRAMES - 1, 2), { code: 'PT_BAD_ARGUMENT' }, 'and are not copied');
  await control.pause();
  await t.rejects(control.copy(20, 3, 1), /paused/, 'its memory stands still');
  await control.resume();
  t.match(await control.verify(), { verified: true });
});

void t.test('private memory: frames given up become zero', async (t) => {
  const folder = scratch(t);
  const { control } = await startGuest(t, join(folder, 'c'), ['--memory-size', '4M', '--private', ...IDLE]);
  t.match(await control.status(), { private: true, memoryFile: null });
  await control.poke(5);
  await control.remove(5, 3, 'dontneed');
  t.match(await control.digest(5), { zero: true, expected: '0000000000000000' });
  await t.rejects(control.remove(5, 1, 'punch'), { code: 'PT_BAD_ARGUMENT' });
  t.match(await control.verify(), { verified: true });
});

void t.test('it ends cleanly when told to, and leaves its memory file', async (t) => {
  for (const how of ['SIGTERM', 'quit'] as const) {
    const folder = scratch(t);
    const { ram, args } = smallGuest(folder);
    const { child, control, path } = await startGuest(t, join(folder, 'c'), args);
    const ended = new Promise((resolve) => child.once('exit', resolve));
    if (how === 'quit') await control.quit();
    else child.kill('SIGTERM');
    t.equal(await ended, 0, how);
    t.notOk(existsSync(path), 'the socket is gone');
    t.ok(existsSync(ram), 'the memory file is not');
  }
});
