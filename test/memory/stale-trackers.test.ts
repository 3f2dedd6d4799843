/** Trackers that a killed agent left in a guest: found by their features, closed, and nothing else is. */
import { join } from 'node:path';
import t from 'tap';
import { GuestControl } from '../../src/guests/control.ts';
import { launchDetached } from '../../src/guests/launch.ts';
import { endProcess } from '../../src/guests/process.ts';
import { native, nativeProgram } from '../../src/memory/native.ts';
import { closeStaleTrackers, featuresOf } from '../../src/memory/stale-trackers.ts';
import { trackingFeatures, WriteTracker } from '../../src/memory/write-tracker.ts';
import { scratch, until } from '../guests/embedded-support.ts';

void t.test('features are read from fdinfo', (t) => {
  t.equal(featuresOf('pos:\t0\npending:\t0\ntotal:\t0\nAPI:\taa:8000b001:80000000000001ff\n'), 0xb001n);
  t.equal(featuresOf('pos:\t0\nflags:\t02004000\n'), undefined);
  t.equal(featuresOf(''), undefined);
  t.end();
});

const offered = native().probe();
const allowed = process.getuid?.() === 0 && ((offered.features ?? 0n) & trackingFeatures()) === trackingFeatures();
const skip = allowed && offered.pagemapScan ? false : 'needs root, and a kernel that tracks writes (6.7)';

void t.test('what was left behind is closed', { skip }, async (t) => {
  const folder = scratch(t);
  const path = join(folder, 'control');
  const guest = await launchDetached({
    command: nativeProgram('pagetide-guest'),
    args: [
      '--memory-size',
      '4M',
      '--memory-file',
      join(folder, 'memory'),
      '--control',
      path,
      '--fill-from',
      '/usr/lib',
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
  t.equal(closeStaleTrackers(guest.pid), 0, 'nothing to do');

  // what a kill leaves: the descriptor inside the guest, none here (test/integration/crash-source.test.ts does kill)
  const { fd } = native().attach(guest.pid, trackingFeatures());
  const left = new WriteTracker({ pid: guest.pid, uffd: fd, regions, pageSize });
  const other = native().attach(guest.pid, 0n);
  t.teardown(() => native().close(other.fd));
  t.throws(
    () => WriteTracker.attach({ pid: guest.pid, regions, pageSize }),
    { code: 'PT_SYSCALL' },
    'the memory is taken',
  );
  t.equal(native().findUserfaults(guest.pid).length, 2);
  left.close();

  t.equal(closeStaleTrackers(guest.pid), 1);
  t.same(native().findUserfaults(guest.pid), [other.remoteFd], 'what serves faults stays');
  const again = WriteTracker.attach({ pid: guest.pid, regions, pageSize });
  t.teardown(() => again.tracker.close());
  t.equal(
    again.tracker.scan(() => undefined),
    frames,
    'the memory can be tracked again',
  );
});
