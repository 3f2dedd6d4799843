/** Write tracking of a guest that runs: a copy of its memory that follows the scans is the memory when it stands still. */
import { closeSync, openSync, readSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import { GuestControl } from '../../src/guests/control.ts';
import { launchDetached } from '../../src/guests/launch.ts';
import { endProcess, waitForExit } from '../../src/guests/process.ts';
import { native, nativeProgram } from '../../src/memory/native.ts';
import { WriteTracker, trackingFeatures } from '../../src/memory/write-tracker.ts';
import { PAGE, scratch, until } from '../guests/embedded-support.ts';

const MIB = 32;

const offered = native().probe();
const allowed = process.getuid?.() === 0 && ((offered.features ?? 0n) & trackingFeatures()) === trackingFeatures();
const skip = allowed && offered.pagemapScan ? false : 'needs root, and a kernel that tracks writes (6.7)';

void t.test('a copy follows a guest that writes all the time', { skip }, async (t) => {
  const folder = scratch(t);
  const path = join(folder, 'control');
  const file = join(folder, 'memory');
  const guest = await launchDetached({
    command: nativeProgram('pagetide-guest'),
    args: [
      ...['--memory-size', `${MIB}M`, '--memory-file', file, '--control', path, '--regions', '3'],
      ...['--write-rate', '20000', '--read-rate', '0', '--working-set', '0.5', '--fill-from', '/usr/lib'],
    ],
    log: join(folder, 'log'),
  });
  t.teardown(() => endProcess(guest, 0));
  const control = new GuestControl(path);
  t.teardown(() => control.close());
  await until('the guest answers', () =>
    control.status().then(
      () => true,
      () => false,
    ),
  );
  const { regions, pageSize, frames } = await control.status();
  t.throws(() => WriteTracker.attach({ pid: guest.pid, regions: regions.slice(1), pageSize }), {
    code: 'PT_BAD_ARGUMENT',
  });
  t.same(native().findUserfaults(guest.pid), [], 'nothing is left of a failure');
  const { tracker, remoteFd } = WriteTracker.attach({ pid: guest.pid, regions, pageSize });
  t.teardown(() => tracker.close());
  t.equal(tracker.frames, frames);

  const ram = openSync(file, 'r');
  t.teardown(() => closeSync(ram));
  const copy = Buffer.alloc(frames * PAGE);
  const follow = (): number =>
    tracker.scan((first, count) => {
      // by read(2): a hole stays a hole
      readSync(ram, copy, first * PAGE, count * PAGE, first * PAGE);
    });
  t.equal(follow(), frames);
  let seen = 0;
  for (let i = 0; i < 30; i++) {
    const { operations } = await control.status();
    await until('it goes on', async () => (await control.status()).operations > operations);
    seen += follow();
  }
  t.ok(seen > 0 && seen < 30 * frames, `${seen} frames were reported in 30 scans`);
  await control.pause();
  follow();
  const now = Buffer.alloc(copy.length);
  t.equal(readSync(ram, now, 0, now.length, 0), now.length);
  t.ok(now.equals(copy), 'no write was missed');
  t.equal(follow(), 0);

  tracker.close();
  native().closeRemote(guest.pid, remoteFd);
  t.same(native().findUserfaults(guest.pid), []);
  const again = WriteTracker.attach({ pid: guest.pid, regions, pageSize });
  t.teardown(() => again.tracker.close());
  t.equal(
    again.tracker.scan(() => undefined),
    frames,
  );
  await endProcess(guest, 0);
  await waitForExit(guest, 10_000);
  t.throws(() => again.tracker.scan(() => undefined), { code: 'PT_VMM_GONE' });
});
