/** Doctor: what the kernel and our rights let us do with userfaultfd. */
import type { UserfaultProbe } from '../memory/native.ts';
import type { DoctorProbes } from './doctor.ts';
import type { Check } from './service.ts';

/** Bits of `UFFDIO_API`, from linux/userfaultfd.h, and what each is for. */
const FEATURES = [
  { name: 'EVENT_REMOVE', bit: 3n, essential: true, needed: 'guests that give memory back (balloon)', kernel: '4.11' },
  { name: 'MISSING_HUGETLBFS', bit: 4n, essential: false, needed: 'guests on huge pages', kernel: '4.11' },
  { name: 'MISSING_SHMEM', bit: 5n, essential: true, needed: 'guests whose memory is a file', kernel: '4.11' },
  { name: 'WP_HUGETLBFS_SHMEM', bit: 12n, essential: false, needed: 'write tracking of shared memory', kernel: '5.19' },
  { name: 'WP_UNPOPULATED', bit: 13n, essential: false, needed: 'write tracking', kernel: '6.4' },
  { name: 'WP_ASYNC', bit: 15n, essential: false, needed: 'write tracking', kernel: '6.7' },
] as const;

const WAY = { syscall: 'system call', device: '/dev/userfaultfd', 'user-mode-only': 'user mode only' } as const;

/** The checks, from the native shim's findings. */
export async function userfaultChecks(probes: DoctorProbes, probe: UserfaultProbe): Promise<Check[]> {
  return [await waysCheck(probes, probe), ...featureChecks(probe), registrationCheck(probe), scanCheck(probe)];
}

async function waysCheck(probes: DoctorProbes, { ways }: UserfaultProbe): Promise<Check> {
  const name = 'userfaultfd';
  const found = ways
    .map(({ way, ok, errno }) => `${WAY[way]}: ${ok ? 'yes' : `no${errno === undefined ? '' : ` (${errno})`}`}`)
    .join(', ');
  if (ways.some(({ way, ok }) => ok && way !== 'user-mode-only')) return { name, status: 'ok', found };

  const device = (await probes.read('/proc/misc'))?.includes('userfaultfd') === true;
  const fix = device
    ? 'sudo setfacl -m u:$(id -un):rw /dev/userfaultfd   (until the next boot; a udev rule makes it last)'
    : 'sudo sysctl -w vm.unprivileged_userfaultfd=1   (or run the agent as root)';
  if (ways.some(({ ok }) => ok)) {
    const needed = 'QEMU guests: faults inside system calls are not handled; embedded guests do without';
    return { name, status: 'warning', found, needed, fix };
  }
  return { name, status: 'missing', found: found === '' ? 'none' : found, needed: 'everything', fix, essential: true };
}

function featureChecks({ features }: UserfaultProbe): Check[] {
  // without any userfaultfd nobody could ask; the check above says so already
  if (features === undefined) return [];
  return FEATURES.map(({ name, bit, essential, needed, kernel }): Check => {
    const title = `feature ${name}`;
    if ((features & (1n << bit)) !== 0n) return { name: title, status: 'ok', found: 'yes' };
    const fix = `install kernel ${kernel} or newer, built with CONFIG_USERFAULTFD`;
    if (essential) return { name: title, status: 'missing', found: 'no', needed, fix, essential };
    return { name: title, status: 'warning', found: 'no', needed, fix };
  });
}

function registrationCheck({ features, shmem, hugetlbfs }: UserfaultProbe): Check {
  const name = 'registering memory';
  const found = `tmpfs: ${shmem ? 'yes' : 'no'}, huge pages: ${hugetlbfs ? 'yes' : 'no'}`;
  if (shmem && hugetlbfs) return { name, status: 'ok', found };
  if (shmem) {
    const fix = 'sudo sysctl -w vm.nr_hugepages=16   (as many pages of 2 MiB as guests need)';
    return { name, status: 'warning', found, needed: 'guests on huge pages', fix };
  }
  const fix =
    features === undefined ? 'as for userfaultfd above' : 'install a kernel built with CONFIG_SHMEM and CONFIG_TMPFS';
  return { name, status: 'missing', found, needed: 'every guest', fix, essential: true };
}

function scanCheck({ pagemapScan }: UserfaultProbe): Check {
  const name = 'pagemap scan';
  if (pagemapScan) return { name, status: 'ok', found: 'yes' };
  return { name, status: 'warning', found: 'no', needed: 'cheap write tracking', fix: 'install kernel 6.7 or newer' };
}
