/** The embedded guest as Firecracker: private memory, handed over registered, with remove events. */
import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { join } from 'node:path';
import t from 'tap';
import { HandoverListener, closeHandover } from '../../src/memory/handover.ts';
import { FrameState, Outcome, WaitField, native } from '../../src/memory/native.ts';
import { PAGE, scratch, spawnGuest, startGuest, until } from './embedded-support.ts';

void t.test('private memory is served, and frames given up read as zero', async (t) => {
  const folder = scratch(t);
  const listener = new HandoverListener(join(folder, 'h'));
  t.teardown(() => listener.close());
  const args = ['--memory-size', '4M', '--private', '--regions', '2', '--incoming', '--handover', join(folder, 'h')];
  const guest = await startGuest(t, join(folder, 'c'), args);
  const { uffd, regions, pageSize, pid, connection } = await listener.next(5000);
  t.teardown(() => native().close(connection));
  t.equal(pid, guest.child.pid);
  t.match({ pageSize, offsets: regions.map((region) => region.offset) }, { pageSize: PAGE, offsets: [0, 2 ** 21] });
  const status = await guest.control.status();
  t.same(regions, status.regions, 'what was handed over is what there is');

  // The guest has registered its memory itself.
  const session = native().createSession({ uffd, regions, pageSize, shared: false });
  const page = randomBytes(PAGE);
  const outcome = new Int32Array(4);
  const frames = new Uint32Array(16);
  const waited = new Float64Array(8);
  let removes = 0;
  const watcher = native().watch(uffd, () => {
    const count = session.wait(frames, waited, 0, 0);
    removes += waited[WaitField.Removes]!;
    for (const frame of frames.subarray(0, count)) {
      const removed = session.table[frame] === FrameState.Removed;
      const result = removed ? session.installZero(frame, 1, outcome) : session.install(frame, 1, page, 0, outcome);
      t.equal(result, Outcome.Done, `frame ${frame}`);
    }
  });
  t.teardown(() => {
    watcher.close();
    native().destroySession(session.id);
    session.close();
  });

  // On both sides of the gap between the regions.
  const [last, first] = await guest.control.touch(511, 2);
  t.equal(last!.hash, first!.hash, 'the same content');
  t.ok(last!.ns > 1000, 'each waited for its page');
  t.equal(session.counts().faults, 2);
  t.match(await guest.control.digest(511), { zero: false });
  await guest.control.remove(511, 1, 'dontneed');
  await until('the pager has read the event', () => removes > 0);
  t.match(await guest.control.digest(511), { zero: true }, 'never the old content');
  t.match(await guest.control.digest(512), { zero: false });

  // Its end is the connection's end.
  const gone = new Promise<void>((resolve) => {
    const hangup = native().watch(connection, () => {
      hangup.close();
      resolve();
    });
  });
  guest.child.kill('SIGKILL');
  await gone;
  t.equal(native().receive(connection, Buffer.alloc(1)).bytes, 0);
});

void t.test('huge pages, where this machine has some', async (t) => {
  const folder = scratch(t);
  const listener = new HandoverListener(join(folder, 'h'));
  t.teardown(() => listener.close());
  const args = ['--memory-size', '4M', '--private', '--page-size', '2M', '--incoming', '--handover', listener.path];
  const guest = spawnGuest(t, join(folder, 'c'), args);
  const ended = once(guest.child, 'close').then(() => undefined);
  const taken = await Promise.race([listener.next(), ended]);
  if (taken === undefined) {
    t.match(guest.stderr(), /mapping huge pages: Cannot allocate memory/);
    t.comment('skipped: no huge pages; echo 2 > /proc/sys/vm/nr_hugepages');
    return;
  }
  t.teardown(() => closeHandover(taken));
  t.match(taken, { pageSize: 2 ** 21, regions: [{ size: 2 ** 22, offset: 0 }] });
  await until('it answers', () => guest.control.status().then(Boolean, () => false));
  t.match(await guest.control.status(), { frames: 2, pageSize: 2 ** 21 });
});
