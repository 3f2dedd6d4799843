/** What a host says that it can do, from what the kernel and its rights allow. */
import t from 'tap';
import { userfaultfd, writeTracking } from '../../src/agent/capabilities.ts';
import type { UserfaultProbe } from '../../src/memory/native.ts';
import { trackingFeatures } from '../../src/memory/write-tracker.ts';

const GOOD: UserfaultProbe = {
  ways: [{ way: 'syscall', ok: true }],
  features: trackingFeatures(),
  shmem: true,
  hugetlbfs: true,
  pagemapScan: true,
};

void t.test('userfaultfd', (t) => {
  t.same(
    userfaultfd(() => GOOD),
    { ok: true },
  );
  const userMode: UserfaultProbe = { ...GOOD, ways: [{ way: 'user-mode-only', ok: true }] };
  for (const probe of [userMode, { ...GOOD, ways: [] }])
    t.match(
      userfaultfd(() => probe),
      { ok: false, why: /system calls/ },
    );
  t.match(
    userfaultfd(() => ({ ...GOOD, shmem: false })),
    { ok: false, why: /tmpfs/ },
  );
  const broken = (): never => {
    throw new Error('the native part does not load');
  };
  t.match(userfaultfd(broken), { ok: false, why: 'the native part does not load' });
  t.end();
});

void t.test('write tracking', (t) => {
  t.same(
    writeTracking(() => GOOD),
    { ok: true },
  );
  t.match(
    writeTracking(() => ({ ...GOOD, pagemapScan: false })),
    { ok: false, why: /PAGEMAP_SCAN/ },
  );
  t.end();
});
