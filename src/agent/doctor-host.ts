/** Doctor: rights, memory, limits and programs of the host. */
import type { DoctorProbes } from './doctor.ts';
import type { Check } from './service.ts';
import { formatSize } from './units.ts';

/** f_type of tmpfs, from linux/magic.h. */
const TMPFS_MAGIC = 0x01021994;
/** Bit of CAP_SYS_PTRACE, from linux/capability.h. */
const CAP_SYS_PTRACE = 19n;
/** Below this much free memory for guests a warning is due, bytes. */
const LITTLE_SPACE = 1024 ** 3;
/** Descriptors that an agent with a few guests may want. */
const ENOUGH_FILES = 1024;
/** Bytes that pinned buffers may want. */
const ENOUGH_LOCKED = 8 * 1024 ** 2;

/** The checks, in the order shown. */
export async function hostChecks(probes: DoctorProbes): Promise<Check[]> {
  const limits = await probes.read('/proc/self/limits');
  return [
    await ptraceCheck(probes),
    await memoryFolderCheck(probes),
    await hugePageCheck(probes),
    await qemuCheck(probes),
    lockedCheck(limits),
    filesCheck(limits),
  ];
}

/** Attaching to a QEMU needs ptrace; the embedded guest and Firecracker hand their userfaultfd over themselves. */
async function ptraceCheck(probes: DoctorProbes): Promise<Check> {
  const name = 'ptrace';
  const status = await probes.read('/proc/self/status');
  const effective = /^CapEff:\s*([0-9a-f]+)$/m.exec(status ?? '')?.[1];
  const capable = effective !== undefined && (BigInt(`0x${effective}`) & (1n << CAP_SYS_PTRACE)) !== 0n;
  // kernels without Yama have no such file, and allow what the classic rules do
  const scope = Number((await probes.read('/proc/sys/kernel/yama/ptrace_scope'))?.trim() ?? '0');
  const found = `yama ptrace_scope ${scope}, CAP_SYS_PTRACE ${capable ? 'yes' : 'no'}`;
  const needed = 'QEMU guests: the agent attaches to their process';
  if (scope >= 3) {
    return {
      name,
      status: 'warning',
      found: `${found}: switched off until the next boot`,
      needed,
      fix: 'set kernel.yama.ptrace_scope=1 in /etc/sysctl.d, then reboot',
    };
  }
  if (capable || scope === 0) return { name, status: 'ok', found };
  const lower = scope === 1 ? '   (or: sudo sysctl -w kernel.yama.ptrace_scope=0)' : '';
  return {
    name,
    status: 'warning',
    found,
    needed,
    fix: `sudo setcap cap_sys_ptrace+ep "$(readlink -f "$(command -v node)")"${lower}`,
  };
}

async function memoryFolderCheck(probes: DoctorProbes): Promise<Check> {
  const name = '/dev/shm';
  const found = await probes.fileSystem('/dev/shm');
  const needed = 'memory of guests';
  if (found?.type !== TMPFS_MAGIC) {
    return {
      name,
      status: 'missing',
      found: found === undefined ? 'not there' : 'not a tmpfs',
      needed,
      fix: 'sudo mount -t tmpfs -o mode=1777 tmpfs /dev/shm   (or set memoryFolder to a folder on a tmpfs)',
      essential: true,
    };
  }
  const text = `tmpfs, ${formatSize(found.freeBytes)} free`;
  if (found.freeBytes >= LITTLE_SPACE) return { name, status: 'ok', found: text };
  return { name, status: 'warning', found: text, needed, fix: 'sudo mount -o remount,size=75% /dev/shm' };
}

/** With huge pages forced on tmpfs one 4 KiB write makes 512 frames present, and none of them faults any more. */
async function hugePageCheck(probes: DoctorProbes): Promise<Check> {
  const name = 'huge pages of tmpfs';
  const setting = await probes.read('/sys/kernel/mm/transparent_hugepage/shmem_enabled');
  const chosen = /\[(\w+)\]/.exec(setting ?? '')?.[1];
  if (chosen === undefined) return { name, status: 'ok', found: 'not offered by this kernel' };
  const found = `shmem_enabled=${chosen}`;
  if (chosen !== 'always' && chosen !== 'force') return { name, status: 'ok', found };
  return {
    name,
    status: 'warning',
    found: `${found}: one write makes 512 frames present`,
    needed: 'post-copy: pages that are present never fault',
    fix: 'echo never | sudo tee /sys/kernel/mm/transparent_hugepage/shmem_enabled',
  };
}

async function qemuCheck(probes: DoctorProbes): Promise<Check> {
  const name = 'qemu-system-x86_64';
  const line = await probes.firstLine(name, ['--version']);
  const fix = 'sudo apt-get install qemu-system-x86';
  if (line === undefined) return { name, status: 'missing', found: 'not on PATH', needed: 'QEMU guests', fix };
  const version = /version (\d+)\.(\d+)/.exec(line);
  const found = line.replace(/^QEMU emulator version /, '');
  if (version !== null && Number(version[1]) >= 5) return { name, status: 'ok', found };
  return { name, status: 'warning', found, needed: 'QEMU guests: x-ignore-shared, tried from 7.2 on', fix };
}

function limit(limits: string | undefined, row: string): number | undefined {
  const soft = new RegExp(`^${row}\\s+(\\d+|unlimited)\\s`, 'm').exec(limits ?? '')?.[1];
  if (soft === undefined) return undefined;
  return soft === 'unlimited' ? Infinity : Number(soft);
}

function lockedCheck(limits: string | undefined): Check {
  const name = 'locked memory';
  const soft = limit(limits, 'Max locked memory');
  if (soft === undefined) return { name, status: 'warning', found: 'unknown', needed: 'pinned buffers' };
  const found = soft === Infinity ? 'unlimited' : formatSize(soft);
  if (soft >= ENOUGH_LOCKED) return { name, status: 'ok', found };
  return { name, status: 'warning', found, needed: 'pinned buffers of several guests', fix: 'ulimit -l 65536' };
}

function filesCheck(limits: string | undefined): Check {
  const name = 'open files';
  const soft = limit(limits, 'Max open files');
  if (soft === undefined) return { name, status: 'warning', found: 'unknown', needed: 'many guests' };
  const found = soft === Infinity ? 'unlimited' : String(soft);
  if (soft >= ENOUGH_FILES) return { name, status: 'ok', found };
  return { name, status: 'warning', found, needed: 'many guests: each takes some', fix: 'ulimit -n 65536' };
}
