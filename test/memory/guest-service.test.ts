/** Worker pools and the handle on a served guest, with real workers and real guests. */
import { once } from 'node:events';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { GuestService, type GuestServiceEvents } from '../../src/memory/guest-service.ts';
import { HandoverListener } from '../../src/memory/handover.ts';
import { native, FrameState, Outcome } from '../../src/memory/native.ts';
import type { PagesSpec } from '../../src/memory/worker-messages.ts';
import { WorkerPools } from '../../src/memory/worker-pools.ts';
import { scratch, until, type Guest } from '../guests/embedded-support.ts';
import { PAGE, hashes, memoryFile, startVm, touched } from '../pager/support.ts';

const MIB = 1024 * 1024;
const FILL = { batchFrames: 64, window: 2, bandwidth: 0 };

function openPools(t: Test, size: number): WorkerPools {
  const pools = new WorkerPools(size);
  t.teardown(() => pools.close());
  return pools;
}

interface Bed {
  service: GuestService;
  guest: Guest;
  events: string[];
}

/** A guest of `bytes` whose memory was handed over, and its service, which serves nothing yet. */
async function served(
  t: Test,
  pools: WorkerPools,
  folder: string,
  bytes: number,
  pages: PagesSpec,
  fill = FILL,
): Promise<Bed> {
  const listener = new HandoverListener(join(folder, 'h'));
  t.teardown(() => listener.close());
  const [{ uffd, regions, pageSize, connection }, guest] = await Promise.all([
    listener.next(20_000),
    startVm(t, folder, listener.path, bytes),
  ]);
  listener.close();
  t.teardown(() => native().close(connection));
  const session = native().createSession({ uffd, regions, pageSize, shared: false });
  const service = new GuestService({ session, place: pools.take(), pages, spinMicros: 10, fill });
  const events: string[] = [];
  for (const name of ['filled', 'gone', 'foreign', 'note', 'failed'] satisfies (keyof GuestServiceEvents)[]) {
    service.on(name, () => events.push(name));
  }
  t.teardown(() => service.stop());
  return { service, guest, events };
}

void t.test('places: as many as workers, given back once', (t) => {
  const pools = openPools(t, 2);
  const first = pools.take();
  pools.take();
  t.equal(pools.busy, 2);
  t.throws(() => pools.take(), { code: 'PT_NO_WORKER' });
  first.free();
  first.free();
  t.equal(pools.busy, 1, 'once');
  pools.take();
  t.throws(() => pools.take(), { code: 'PT_NO_WORKER' });
  t.end();
});

void t.test('pools that are idle end', async (t) => {
  const pools = new WorkerPools(3);
  await pools.close();
  t.pass('closed');
});

void t.test('a guest from its first fault until everything is there, one after the other in one place', async (t) => {
  const folder = scratch(t);
  const { path, content } = memoryFile(folder, 4 * MIB);
  const want = hashes(content);
  const pools = openPools(t, 1);
  for (let round = 0; round < 2; round++) {
    const { service, guest, events } = await served(t, pools, folder, 4 * MIB, { kind: 'file', path });
    await service.ready();
    t.throws(() => pools.take(), { code: 'PT_NO_WORKER' });
    service.serve();
    t.same(await touched(guest, 10, 20), want.slice(10, 30));
    // a thread of the guest goes on before its page is counted
    await until('counted', () => service.session.counts().installed >= 20);
    t.equal(service.session.counts().installed, 20, 'nothing but what was touched');
    const filled = once(service, 'filled');
    service.fill();
    await filled;
    t.match(service.session.counts(), { outstanding: 0, present: 1024, foreign: 0 });
    t.same(await touched(guest, 0, want.length), want);
    t.equal(service.figures().installed, 1004, 'by the fill');
    await Promise.all([service.stop(), service.stop()]);
    await service.stop();
    t.equal(pools.busy, 0);
    t.match(service.lastFigures, { counts: { outstanding: 0 }, faults: { count: 20 } });
    t.same(service.counts(), service.lastFigures!.counts, 'who asks after its end is told how it was');
    // of the end: a hit counts from the next wait on
    const { p50Us, p99Us, maxUs } = service.lastFigures!.faults;
    t.ok(p50Us > 0 && p99Us >= p50Us && maxUs > 0);
    t.same(events, ['filled']);
  }
});

void t.test('stopped while it fills, while threads wait, and before it began', async (t) => {
  const folder = scratch(t);
  const { path } = memoryFile(folder, 64 * MIB);
  const pools = openPools(t, 1);
  const spec: PagesSpec = { kind: 'file', path };

  const filling = await served(t, pools, folder, 64 * MIB, spec);
  filling.service.serve();
  filling.service.fill();
  const touch = filling.guest.control.touch(0, 64, { timeoutMs: 60_000 });
  touch.catch(() => undefined);
  await until('some are there', () => filling.service.session.counts().present > 100);
  await filling.service.stop();
  t.notMatch(filling.events, ['failed']);
  t.equal(filling.service.lastFigures?.counts.total, 16_384);

  const idle = await served(t, pools, folder, 64 * MIB, spec);
  await idle.service.stop();
  t.same(idle.events, []);

  const ready = await served(t, pools, folder, 64 * MIB, spec);
  await ready.service.ready();
  await ready.service.stop();
  t.equal(pools.busy, 0);
});

void t.test('stopped while the source cannot be reached', async (t) => {
  const folder = scratch(t);
  const pools = openPools(t, 1);
  // nobody listens on port 1
  const peer = { url: 'http://127.0.0.1:1', migration: 'm', token: 't', frames: 256, pageSize: PAGE, patient: true };
  const { service, events } = await served(t, pools, folder, MIB, { kind: 'peer', ...peer });
  const ready = service.ready().then(
    () => 'ready',
    (error: unknown) => (error as { code: string }).code,
  );
  await service.stop();
  t.equal(await ready, 'PT_CANCELLED', 'who waits for it is told');
  t.same(events, []);
  t.equal(pools.busy, 0);
});

void t.test('a source that cannot be opened is told', async (t) => {
  const folder = scratch(t);
  const pools = openPools(t, 1);
  const { service, events } = await served(t, pools, folder, MIB, { kind: 'file', path: join(folder, 'none') });
  await t.rejects(service.ready(), { code: 'PT_MEMORY_FILE' });
  await until('told', () => events.length === 2);
  t.same(events, ['failed', 'failed'], 'of both workers');
  await service.stop();
  t.equal(pools.busy, 0, 'the workers serve others');
  const { path, content } = memoryFile(folder, MIB);
  const next = await served(t, pools, folder, MIB, { kind: 'file', path });
  next.service.serve();
  t.same(await touched(next.guest, 0, 8), hashes(content.subarray(0, 8 * PAGE)));
});

void t.test('a guest that dies is told, once', async (t) => {
  const folder = scratch(t);
  const { path } = memoryFile(folder, 64 * MIB);
  const pools = openPools(t, 1);
  const { service, guest, events } = await served(
    t,
    pools,
    folder,
    64 * MIB,
    { kind: 'file', path },
    { ...FILL, bandwidth: 64 * MIB },
  );
  service.serve();
  service.fill();
  await until('some are there', () => service.session.counts().present > 100);
  const gone = once(service, 'gone');
  guest.child.kill('SIGKILL');
  await gone;
  await service.stop();
  t.same(events, ['gone']);
});

void t.test('pages of somebody else: told, and never served', async (t) => {
  const folder = scratch(t);
  const { path, content } = memoryFile(folder, MIB);
  const pools = openPools(t, 1);
  const { service, guest } = await served(t, pools, folder, MIB, { kind: 'file', path });
  const { session } = service;
  // Put in behind the table's back: by its rules the frame is missing still.
  const outcome = new Int32Array(4);
  t.equal(session.install(5, 1, new Uint8Array(PAGE).fill(1), 0, outcome), Outcome.Done);
  session.reset(5, 1, FrameState.Missing);
  const failed = once(service, 'failed');
  service.serve();
  service.fill();
  const [error] = (await failed) as [{ code: string }];
  t.equal(error.code, 'PT_FOREIGN_PAGE');
  t.equal(service.serving.alarms, 1);
  t.equal(session.table[5], FrameState.Missing);
  t.same(await touched(guest, 100, 4), hashes(content.subarray(100 * PAGE, 104 * PAGE)), 'faults are served on');
});
