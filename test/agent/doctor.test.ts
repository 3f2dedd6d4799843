/** The doctor, on hosts that are made up. */
import t from 'tap';
import { healthy, runDoctor, type DoctorProbes } from '../../src/agent/doctor.ts';
import { PagetideError } from '../../src/errors.ts';
import type { UserfaultProbe } from '../../src/memory/native.ts';
import type { Check } from '../../src/agent/service.ts';

const ALL_FEATURES = (1n << 17n) - 1n;

const userfault: UserfaultProbe = {
  ways: [
    { way: 'syscall', ok: true },
    { way: 'device', ok: true },
    { way: 'user-mode-only', ok: true },
  ],
  features: ALL_FEATURES,
  pagemapScan: true,
  shmem: true,
  hugetlbfs: true,
};

const FILES: Record<string, string> = {
  '/proc/self/status': 'Name:\tnode\nCapEff:\t000001ffffffffff\n',
  '/proc/sys/kernel/yama/ptrace_scope': '1\n',
  '/proc/misc': '126 userfaultfd\n',
  '/sys/kernel/mm/transparent_hugepage/shmem_enabled': 'always within_size advise [never] deny force\n',
  '/proc/self/limits':
    'Limit                     Soft Limit           Hard Limit           Units\n' +
    'Max open files            1048576              1048576              files\n' +
    'Max locked memory         unlimited            unlimited            bytes\n',
};

interface Change extends Partial<Omit<DoctorProbes, 'read' | 'userfault'>> {
  files?: Record<string, string | undefined>;
  probe?: Partial<UserfaultProbe>;
  userfault?: () => UserfaultProbe;
}

/** A host with everything, but for `change`. */
function hostWith({ files, probe, ...change }: Change = {}): DoctorProbes {
  return {
    platform: 'linux',
    kernel: '6.8.0-generic',
    node: 'v20.20.2',
    uid: 0,
    userfault: () => ({ ...userfault, ...probe }),
    read: (path) => Promise.resolve({ ...FILES, ...files }[path]),
    fileSystem: () => Promise.resolve({ type: 0x01021994, freeBytes: 8 * 1024 ** 3 }),
    firstLine: () => Promise.resolve('QEMU emulator version 7.2.9 (Debian 1:7.2)'),
    ...change,
  };
}

const find = (checks: Check[], name: string): Check => {
  const check = checks.find((one) => one.name === name);
  if (check === undefined) throw new Error(`no check ${name} among ${checks.map((one) => one.name).join(', ')}`);
  return check;
};

void t.test('a host with everything', async (t) => {
  const checks = await runDoctor(hostWith());
  t.same(
    checks.filter((check) => check.status !== 'ok'),
    [],
  );
  t.ok(healthy(checks));
  t.match(find(checks, 'qemu-system-x86_64').found, /^7\.2\.9/);
  t.match(find(checks, '/dev/shm').found, '8 GiB free');
});

const FAULTY: [
  what: string,
  change: Change,
  check: string,
  expected: Partial<Record<keyof Check, unknown>>,
  healthy: boolean,
][] = [
  ['macOS', { platform: 'darwin' }, 'kernel', { status: 'missing', found: 'darwin', essential: true }, false],
  ['an old kernel', { kernel: '5.4.0' }, 'kernel', { status: 'missing', fix: /5\.7/ }, false],
  ['a kernel without scan', { kernel: '6.1.0-18-amd64' }, 'kernel', { status: 'warning', fix: /6\.7/ }, true],
  ['an old node', { node: 'v20.16.0' }, 'node', { status: 'missing', fix: /20\.17/ }, false],
  [
    'no native part',
    {
      userfault: () => {
        throw new PagetideError('PT_UNSUPPORTED_HOST', 'not built', { hint: 'Run `npm run build:native`' });
      },
    },
    'native part',
    { status: 'missing', found: 'not built', fix: /build:native/ },
    false,
  ],
  [
    'no way to userfaultfd, but a device',
    { probe: { ways: [{ way: 'syscall', ok: false, errno: 'EPERM' }] } },
    'userfaultfd',
    { status: 'missing', found: 'system call: no (EPERM)', fix: /setfacl.*\/dev\/userfaultfd/ },
    false,
  ],
  [
    'no way at all',
    { probe: { ways: [{ way: 'syscall', ok: false, errno: 'ENOSYS' }] }, files: { '/proc/misc': undefined } },
    'userfaultfd',
    { status: 'missing', fix: /vm\.unprivileged_userfaultfd=1/ },
    false,
  ],
  [
    'user mode only',
    {
      probe: {
        ways: [
          { way: 'syscall', ok: false, errno: 'EPERM' },
          { way: 'user-mode-only', ok: true },
        ],
      },
    },
    'userfaultfd',
    { status: 'warning', needed: /QEMU/ },
    true,
  ],
  [
    'no shmem',
    { probe: { features: ALL_FEATURES & ~(1n << 5n) } },
    'feature MISSING_SHMEM',
    { status: 'missing' },
    false,
  ],
  ['no remove events', { probe: { features: 0xfff7n } }, 'feature EVENT_REMOVE', { status: 'missing' }, false],
  ['no async tracking', { probe: { features: 0x7fffn } }, 'feature WP_ASYNC', { status: 'warning', fix: /6\.7/ }, true],
  ['no huge pages', { probe: { hugetlbfs: false } }, 'registering memory', { status: 'warning' }, true],
  ['no tmpfs registered', { probe: { shmem: false } }, 'registering memory', { status: 'missing' }, false],
  ['no scan', { probe: { pagemapScan: false } }, 'pagemap scan', { status: 'warning' }, true],
  [
    'no ptrace',
    { files: { '/proc/self/status': 'CapEff:\t0000000000000000\n' } },
    'ptrace',
    { status: 'warning', found: /scope 1, CAP_SYS_PTRACE no/, fix: /setcap cap_sys_ptrace/ },
    true,
  ],
  [
    'other capabilities than ptrace',
    { files: { '/proc/self/status': 'CapEff:\t0000000000040000\n' } },
    'ptrace',
    { status: 'warning' },
    true,
  ],
  [
    'ptrace switched off',
    { files: { '/proc/sys/kernel/yama/ptrace_scope': '3\n' } },
    'ptrace',
    { status: 'warning', fix: /reboot/ },
    true,
  ],
  [
    'no /dev/shm',
    { fileSystem: () => Promise.resolve(undefined) },
    '/dev/shm',
    { status: 'missing', found: 'not there', fix: /mount -t tmpfs/ },
    false,
  ],
  [
    'a disk at /dev/shm',
    { fileSystem: () => Promise.resolve({ type: 0xef53, freeBytes: 1e12 }) },
    '/dev/shm',
    { status: 'missing', found: 'not a tmpfs' },
    false,
  ],
  [
    'little room',
    { fileSystem: () => Promise.resolve({ type: 0x01021994, freeBytes: 64 * 1024 ** 2 }) },
    '/dev/shm',
    { status: 'warning', found: 'tmpfs, 64 MiB free', fix: /remount/ },
    true,
  ],
  [
    'huge pages on tmpfs',
    { files: { '/sys/kernel/mm/transparent_hugepage/shmem_enabled': '[always] within_size advise never deny force' } },
    'huge pages of tmpfs',
    { status: 'warning', found: /512 frames/, fix: /echo never/ },
    true,
  ],
  [
    'no QEMU',
    { firstLine: () => Promise.resolve(undefined) },
    'qemu-system-x86_64',
    { status: 'missing', fix: /apt-get install qemu-system-x86/ },
    true,
  ],
  [
    'few files',
    { files: { '/proc/self/limits': 'Max open files            256              4096              files\n' } },
    'open files',
    { status: 'warning', found: '256', fix: /ulimit -n/ },
    true,
  ],
];

void t.test('each thing that may be missing', async (t) => {
  for (const [what, change, name, expected, ok] of FAULTY) {
    const checks = await runDoctor(hostWith(change));
    t.match(find(checks, name), expected, what);
    t.equal(healthy(checks), ok, `${what}: ${ok ? 'still healthy' : 'not healthy'}`);
    for (const check of checks) {
      if (check.status === 'missing')
        t.ok(check.fix !== undefined && check.needed !== undefined, `${what}: ${check.name} says how`);
    }
  }
});

void t.test('this machine, whatever it is', async (t) => {
  const checks = await runDoctor();
  t.equal(find(checks, 'node').found, process.version);
  t.ok(checks.length >= 8);
});
