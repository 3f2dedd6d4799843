/** The embedded driver: guests started, found, attached, ended; and one moved by hand through its userfaultfd. */
import { closeSync, existsSync, openSync, readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { EmbeddedDriver } from '../../src/guests/embedded/driver.ts';
import { parseDescription, parseRunOptions } from '../../src/guests/embedded/options.ts';
import type { EmbeddedVmm } from '../../src/guests/embedded/vmm.ts';
import type { Acquired, GuestDescription, GuestPlace } from '../../src/guests/driver.ts';
import { isAlive } from '../../src/guests/process.ts';
import {
  FrameState,
  Outcome,
  OutcomeField,
  WaitField,
  WaitFlag,
  native,
  type FaultSession,
} from '../../src/memory/native.ts';
import { Collected, PAGE, scratch, startGuest, streamOf, until } from './embedded-support.ts';

const driver = new EmbeddedDriver();
const SMALL = { memory: '8M', writeRate: 2000, readRate: 2000 };

function placeIn(folder: string, name: string): GuestPlace {
  return { name, folder: join(folder, name), memoryFolder: join(folder, 'ram') };
}

/** Ends a VMM with the test. */
function endsWith(test: Test, vmm: EmbeddedVmm): EmbeddedVmm {
  test.teardown(() => vmm.destroy({ force: true }));
  return vmm;
}

async function stateOf(vmm: EmbeddedVmm): Promise<Buffer> {
  const sink = new Collected();
  await vmm.depart(sink).saved;
  return sink.bytes;
}

/** Serves a guest's memory from a file: a pager as small as it can be. */
class HandPager {
  readonly session: FaultSession;
  readonly #file: number;
  readonly #watcher;
  readonly #frames = new Uint32Array(64);
  readonly #status = new Float64Array(8);
  readonly #outcome = new Int32Array(4);

  constructor(test: Test, acquired: Acquired, path: string) {
    const { uffd, regions, pageSize, shared } = acquired;
    this.#file = openSync(path, 'r');
    const size = regions.reduce((sum, region) => sum + region.size, 0);
    this.session = native().createSession({ uffd, regions, pageSize, shared });
    this.session.reset(0, this.session.frames, FrameState.Zero);
    for (const extent of native().dataExtents(this.#file, 0, size)) {
      this.session.reset(extent.offset / PAGE, extent.length / PAGE, FrameState.Missing);
    }
    this.session.register();
    this.#watcher = native().watch(uffd, () => this.#serve());
    test.teardown(() => {
      this.#watcher.close();
      native().destroySession(this.session.id);
      this.session.close();
      closeSync(this.#file);
    });
  }

  #serve(): void {
    const count = this.session.wait(this.#frames, this.#status, 0, 0);
    if ((this.#status[WaitField.Flags]! & WaitFlag.Hangup) !== 0) this.#watcher.close();
    for (const frame of this.#frames.subarray(0, count)) this.install(frame);
  }

  install(frame: number): void {
    const state = this.session.table[frame];
    const outcome =
      state === FrameState.Missing
        ? this.session.installFromFile(frame, 1, this.#file, frame * PAGE, this.#outcome)
        : this.session.installZero(frame, 1, this.#outcome);
    if (outcome !== Outcome.Done) {
      throw new Error(`frame ${frame}: outcome ${outcome}, errno ${this.#outcome[OutcomeField.Errno]}`);
    }
  }

  /** The rest, a little at a time, so that faults come first. */
  async fill(): Promise<void> {
    for (let frame = 0; (frame = this.session.nextMissing(frame)) >= 0;) {
      for (let i = 0; i < 32 && frame >= 0; i++, frame = this.session.nextMissing(frame)) this.install(frame);
      if (frame < 0) return;
      await new Promise(setImmediate);
    }
  }

  complete(): void {
    this.session.unregister();
    this.#watcher.close();
  }
}

void t.test('a guest moves by its userfaultfd while it works, and every page is right', async (t) => {
  const folder = scratch(t);
  const here = placeIn(folder, 'here');
  const there = placeIn(folder, 'there');
  const source = endsWith(t, await driver.run(here, { ...SMALL, threads: 2, regions: 3 }));
  await until('it has worked', async () => ((await source.stats()).operations ?? 0) > 500);
  const target = endsWith(t, await driver.prepare(there, source.record.description));
  t.equal(await target.status(), 'incoming');
  t.equal(readdirSync(there.folder).includes('handover.sock'), false, 'the hand-over socket is gone');

  const acquired = await target.acquire();
  t.match(acquired, { origin: 'handed-over', pageSize: PAGE, shared: true });
  t.equal(acquired.regions.length, 3);
  t.same(native().findUserfaults(target.record.pid), [acquired.remoteFd]);
  t.same(native().dataExtents(openFile(t, target.record.files[0]!.path), 0, 8 * 2 ** 20), [], 'it has touched nothing');

  const paused = await source.pause();
  const state = await stateOf(source);
  const pager = new HandPager(t, acquired, source.record.files[0]!.path);
  await target.loadState(streamOf(state));
  t.ok(pager.session.counts().faults > 0, 'loading the state faults');
  const resumed = await target.resume();
  t.ok(resumed.unixMicros > paused.unixMicros);
  const before = (await target.stats()).operations!;
  await until('it works on', async () => ((await target.stats()).operations ?? 0) > before + 200);
  await pager.fill();
  pager.complete();

  t.match(await target.verify(), { ok: true, checked: 2048, bad: [] });
  const counts = pager.session.counts();
  t.equal(counts.foreign, 0);
  t.equal(counts.outstanding, 0);
  const stats = await target.stats();
  t.ok(stats.stalls!.count > 0 && stats.stalls!.maxUs >= stats.stalls!.p50Us, 'the guest felt its faults');
  t.ok(stats.longestGapMs! >= ((resumed.unixMicros - paused.unixMicros) / 1000) * 0.9);
  await target.resetStats();
  t.equal((await target.stats()).stalls!.count, 0);

  await source.destroy();
  t.equal(await source.status(), 'gone');
  t.match(await target.verify(), { ok: true }, 'without its source');
});

function openFile(test: Test, path: string): number {
  const fd = openSync(path, 'r');
  test.teardown(() => closeSync(fd));
  return fd;
}

void t.test('one page left out by the pager is found', async (t) => {
  const folder = scratch(t);
  const source = endsWith(t, await driver.run(placeIn(folder, 'a'), { ...SMALL, writeRate: 0, readRate: 0 }));
  const target = endsWith(t, await driver.prepare(placeIn(folder, 'b'), source.record.description));
  await source.pause();
  const state = await stateOf(source);
  const pager = new HandPager(t, await target.acquire(), source.record.files[0]!.path);
  // A pager that takes a page for zero that isn't: what this guest is there to notice.
  const lost = pager.session.nextMissing(100);
  pager.session.reset(lost, 1, FrameState.Zero);
  await target.loadState(streamOf(state));
  await target.resume();
  await pager.fill();
  pager.complete();
  t.match(await target.verify(), { ok: false, bad: [lost], checked: 2048 });
});

void t.test('an agent that comes back finds the guest and takes the userfaultfd again', async (t) => {
  const folder = scratch(t);
  const place = placeIn(folder, 'a');
  const source = endsWith(t, await driver.run(placeIn(folder, 's'), SMALL));
  const first = endsWith(t, await driver.prepare(place, source.record.description));
  const record = structuredClone(first.record);
  first.close();
  const found = (await driver.find(place, record)) as EmbeddedVmm;
  t.teardown(() => found.close());
  t.equal(await found.status(), 'incoming');
  const acquired = await found.acquire();
  await source.pause();
  const state = await stateOf(source);
  const pager = new HandPager(t, acquired, source.record.files[0]!.path);
  await found.loadState(streamOf(state));
  await found.resume();
  await pager.fill();
  pager.complete();
  t.match(await found.verify(), { ok: true });
  t.equal(await driver.find(place, { ...record, startTime: record.startTime + 1 }), undefined, 'another process');
});

void t.test('ending a guest leaves nothing, even one that waits for a page', async (t) => {
  const folder = scratch(t);
  const place = placeIn(folder, 'a');
  const source = endsWith(t, await driver.run(placeIn(folder, 's'), SMALL));
  const target = endsWith(t, await driver.prepare(place, source.record.description));
  const acquired = await target.acquire();
  const session = native().createSession(acquired);
  t.teardown(() => {
    native().destroySession(session.id);
    session.close();
  });
  session.register();
  // Nobody serves: this never answers.
  const stuck = t.rejects(target.control.touch(3), { code: 'PT_VMM_GONE' });
  const faulted = new Promise<void>((resolve) => {
    const watcher = native().watch(acquired.uffd, () => {
      watcher.close();
      resolve();
    });
  });
  await faulted;
  t.equal(await target.status(), 'incoming', 'and still it answers');
  await target.destroy();
  await stuck;
  await target.exited;
  t.notOk(isAlive(target.record));
  t.same(readdirSync(place.folder), ['guest.log']);
  t.notOk(existsSync(target.record.files[0]!.path));
  await target.destroy();
  t.equal(await target.status(), 'gone');
});

void t.test('attaching to a guest started by someone else', async (t) => {
  const folder = scratch(t);
  const place = placeIn(folder, 'a');
  const path = join(folder, 'c');
  const guest = await startGuest(t, path, [
    '--memory-size',
    '4M',
    '--memory-file',
    join(folder, 'r'),
    '--threads',
    '2',
  ]);
  const vmm = await driver.attach(place, { control: path });
  t.teardown(() => vmm.close());
  t.match(vmm.record, { pid: guest.child.pid, launched: false, files: [{ id: 'ram', path: join(folder, 'r') }] });
  t.match(vmm.record.description, { memory: { size: 4 * 2 ** 20 }, config: { threads: 2, regions: 1 } });
  t.equal(await vmm.status(), 'running');
  await t.rejects(vmm.acquire(), { code: 'PT_GUEST_STATE' }, 'not an incoming one');
  await t.rejects(vmm.destroy(), { code: 'PT_GUEST_STATE' }, 'not ours to end');
  t.equal(await vmm.status(), 'running');

  const secret = await startGuest(t, join(folder, 'p'), ['--memory-size', '4M', '--private']);
  await t.rejects(driver.attach(place, { control: secret.path }), { code: 'PT_GUEST_UNSAFE' });
  await t.rejects(driver.attach(place, { control: join(folder, 'nobody') }), { code: 'PT_VMM_GONE' });
  await t.rejects(driver.attach(place, {}), { code: 'PT_BAD_ARGUMENT' });
});

void t.test('what cannot be started is refused, and leaves nothing', async (t) => {
  const folder = scratch(t);
  const place = placeIn(folder, 'a');
  const bad: [GuestPlace, Record<string, unknown>, string][] = [
    [place, { memory: 'much' }, 'PT_BAD_ARGUMENT'],
    [place, { memory: '100K' }, 'PT_BAD_ARGUMENT'],
    [place, { memory: '5000001' }, 'PT_BAD_ARGUMENT'],
    [place, { colour: 'green' }, 'PT_BAD_ARGUMENT'],
    [place, { threads: 0 }, 'PT_BAD_ARGUMENT'],
    [place, { threads: 1.5 }, 'PT_BAD_ARGUMENT'],
    [place, { workingSet: 2 }, 'PT_BAD_ARGUMENT'],
    [place, { fillFrom: 'usr/lib' }, 'PT_BAD_ARGUMENT'],
    [place, { memory: '4000G' }, 'PT_NO_SPACE'],
    [{ ...place, folder: join(folder, 'x'.repeat(100)) }, SMALL, 'PT_BAD_CONFIG'],
    [{ ...place, memoryFolder: '/tmp' }, SMALL, 'PT_BAD_CONFIG'],
    [place, { ...SMALL, fillFrom: join(folder, 'nothing') }, 'PT_VMM_FAILED'],
  ];
  for (const [where, options, code] of bad) {
    await t.rejects(driver.run(where, options), { code }, JSON.stringify(options));
  }
  t.same(readdirSync(place.memoryFolder), []);
  t.same(readdirSync(place.folder), ['guest.log']);
  t.match(readFileSync(join(place.folder, 'guest.log'), 'utf8'), /no readable files/);

  const running = endsWith(t, await driver.run(place, SMALL));
  await t.rejects(driver.run(place, SMALL), { code: 'PT_SOCKET_IN_USE' }, 'the same place again');
  t.equal(await running.status(), 'running');
  t.equal(readdirSync(place.memoryFolder).length, 1);
});

void t.test('descriptions from other agents are checked', async (t) => {
  const memory = { size: 8 * 2 ** 20, pageSize: PAGE, files: [{ id: 'ram', size: 8 * 2 ** 20, offset: 0 }] };
  const good: GuestDescription = { driver: 'embedded', memory, config: { threads: 1, regions: 1 } };
  t.same(parseDescription({ ...good, config: { ...good.config, later: 1 } }), { threads: 1, regions: 1 });
  const bad: [GuestDescription, string][] = [
    [{ ...good, driver: 'qemu' }, 'PT_BAD_ARGUMENT'],
    [{ ...good, config: {} }, 'PT_BAD_ARGUMENT'],
    [{ ...good, config: { threads: 1000, regions: 1 } }, 'PT_BAD_ARGUMENT'],
    [{ ...good, memory: { ...memory, size: 12345 } }, 'PT_GUEST_UNSAFE'],
    [{ ...good, memory: { ...memory, files: [] } }, 'PT_GUEST_UNSAFE'],
    [{ ...good, memory: { ...memory, size: 4 * 2 ** 20 } }, 'PT_GUEST_UNSAFE'],
    [{ ...good, memory: { ...memory, pageSize: 2 ** 21 } }, 'PT_GUEST_UNSAFE'],
  ];
  for (const [description, code] of bad) t.throws(() => driver.validate(description), { code });
  const folder = scratch(t);
  await t.rejects(driver.prepare(placeIn(folder, 'a'), bad[0]![0]), { code: 'PT_BAD_ARGUMENT' });
  t.same(readdirSync(folder), [], 'nothing was made');
  t.match(parseRunOptions({ memory: '1.5G', threads: '2' }), { memory: 1.5 * 2 ** 30, threads: 2, writeRate: 1000 });
});
