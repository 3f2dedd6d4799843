/**
 * What this host can do, what is missing, what doesn't work without it, and the command that gets it. Looks only;
 * changes nothing. Everything it looks at goes through {@link DoctorProbes}, so that tests can be any host.
 */
import { execFile } from 'node:child_process';
import { readFile, statfs } from 'node:fs/promises';
import { release } from 'node:os';
import { asPagetideError } from '../errors.ts';
import { native, type UserfaultProbe } from '../memory/native.ts';
import { hostChecks } from './doctor-host.ts';
import { userfaultChecks } from './doctor-userfault.ts';
import type { Check } from './service.ts';

/** The eyes of the doctor. */
export interface DoctorProbes {
  platform: string;
  /** As `uname -r` gives it. */
  kernel: string;
  /** As `process.version` gives it. */
  node: string;
  uid: number;
  /** Asks the native shim; throws where it can't be loaded. */
  userfault(): UserfaultProbe;
  /** A small file's text; undefined where it can't be read. */
  read(path: string): Promise<string | undefined>;
  /** f_type and free bytes of a file system; undefined where there is none. */
  fileSystem(path: string): Promise<{ type: number; freeBytes: number } | undefined>;
  /** First line that a program prints; undefined where it isn't installed or fails. */
  firstLine(program: string, args: string[]): Promise<string | undefined>;
}

/** The machine this runs on. */
export function thisHost(): DoctorProbes {
  return {
    platform: process.platform,
    kernel: release(),
    node: process.version,
    uid: process.getuid?.() ?? 0,
    userfault: () => native().probe(),
    read: (path) => readFile(path, 'utf8').catch(() => undefined),
    fileSystem: async (path) => {
      try {
        const { type, bavail, bsize } = await statfs(path);
        return { type, freeBytes: bavail * bsize };
      } catch {
        return undefined;
      }
    },
    firstLine: (program, args) =>
      new Promise((resolve) => {
        execFile(program, args, { timeout: 10_000, maxBuffer: 1024 * 1024 }, (error, stdout) => {
          resolve(error === null ? stdout.split('\n')[0]!.trim() : undefined);
        });
      }),
  };
}

/** Runs every check; never rejects because of the host. */
export async function runDoctor(probes: DoctorProbes = thisHost()): Promise<Check[]> {
  const checks: Check[] = [platformCheck(probes), nodeCheck(probes)];
  let probe: UserfaultProbe | undefined;
  try {
    probe = probes.userfault();
    checks.push({ name: 'native part', status: 'ok', found: 'loads' });
  } catch (thrown) {
    const error = asPagetideError(thrown);
    checks.push({
      name: 'native part',
      status: 'missing',
      found: error.message,
      needed: 'everything',
      fix: error.code === 'PT_INTERNAL' ? 'npm run build:native' : error.hint,
      essential: true,
    });
  }
  if (probe !== undefined) checks.push(...(await userfaultChecks(probes, probe)));
  checks.push(...(await hostChecks(probes)));
  return checks;
}

/** Whether a host with these findings can take part in migrations at all. */
export function healthy(checks: readonly Check[]): boolean {
  return !checks.some((check) => check.status === 'missing' && check.essential === true);
}

/** Numbers of a version such as `v20.17.1` or `6.1.0-18-amd64`, compared with `major.minor`. */
function atLeast(version: string, major: number, minor: number): boolean {
  const [a = 0, b = 0] = (/(\d+)\.(\d+)/.exec(version) ?? []).slice(1).map(Number);
  return a > major || (a === major && b >= minor);
}

function platformCheck({ platform, kernel }: DoctorProbes): Check {
  const name = 'kernel';
  if (platform !== 'linux') {
    const fix = 'run Pagetide on a Linux host, kernel 5.7 or newer';
    return {
      name,
      status: 'missing',
      found: platform,
      needed: 'everything: userfaultfd is Linux’s',
      fix,
      essential: true,
    };
  }
  const found = `Linux ${kernel}`;
  if (!atLeast(kernel, 5, 7)) {
    const needed = 'everything: page faults of shared memory, and pidfd_getfd';
    return { name, status: 'missing', found, needed, fix: 'install kernel 5.7 or newer, better 6.7', essential: true };
  }
  if (!atLeast(kernel, 6, 7)) {
    const needed = 'cheap write tracking (PAGEMAP_SCAN)';
    return { name, status: 'warning', found, needed, fix: 'install kernel 6.7 or newer' };
  }
  return { name, status: 'ok', found };
}

function nodeCheck({ node }: DoctorProbes): Check {
  if (atLeast(node, 20, 17)) return { name: 'node', status: 'ok', found: node };
  const fix = 'install Node.js 20.17 or newer';
  return { name: 'node', status: 'missing', found: node, needed: 'everything', fix, essential: true };
}
