/** Guests that run a real load and check it (docs/loads.md), for the agents of a test. */
import { execFileSync, spawnSync } from 'node:child_process';
import { closeSync, openSync, readFileSync, readSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import { checkout, machineArgv } from './qemu-guest.ts';
import type { TestAgent } from './cluster.ts';
import { until } from './migrate.ts';

export const LOADS = ['idle', 'redis', 'nginx', 'node', 'postgres'] as const;
export type Load = (typeof LOADS)[number];

/** MiB. With much less it doesn't boot: the image is there twice while the kernel unpacks it. */
const MEMORY: Record<Load, number> = { idle: 96, redis: 128, nginx: 96, node: 256, postgres: 256 };
/** A tmpfs would hold no image that is larger than half of the memory. */
const SETTINGS = 'rootfstype=ramfs';
/** TCG on a busy machine; Node.js takes longest. */
const RUNS_MS = 180_000;

interface Images {
  kernel: string;
  initramfs: Record<Load, string>;
}

let images: Images | undefined;

const buildScript = (): string => join(checkout(), 'scripts/build-load-guests.mjs');

/** Why tests with such guests can't run here; false where they can. Never a reason under PAGETIDE_REQUIRE_QEMU=1: then they fail. */
export function cannotLoad(): string | false {
  if (process.env['PAGETIDE_REQUIRE_QEMU'] === '1') return false;
  if (spawnSync('qemu-system-x86_64', ['--version']).status !== 0) return 'qemu-system-x86_64 is not installed';
  const build = spawnSync(process.execPath, [buildScript()], { encoding: 'utf8' });
  if (build.status !== 0) return build.stderr.trim().split('\n')[0]!;
  images = JSON.parse(build.stdout) as Images;
  return false;
}

/** Options for the driver's `run`. `settings` are words for the guest's kernel command line, as `pagetide.rate=10`. */
export function loadOptions(load: Load, settings = ''): { argv: string[]; checkSocket: string } {
  images ??= JSON.parse(execFileSync(process.execPath, [buildScript()], { encoding: 'utf8' })) as Images;
  const { kernel, initramfs } = images;
  return machineArgv(
    { kernel, initramfs: initramfs[load] },
    { memory: String(MEMORY[load]), settings: `${SETTINGS} ${settings}` },
  );
}

/** Starts a guest with a load at an agent, named after the load; resolves when the load runs. */
export async function startLoad(agent: TestAgent, load: Load, settings?: string): Promise<void> {
  await agent.client.runGuest({ name: load, driver: 'qemu', options: { ...loadOptions(load, settings) } });
  const works = async (): Promise<boolean> => {
    const { state, stats } = await agent.client.showGuest(load);
    if (state !== 'running') throw new Error(`${load} is ${state}`);
    return (stats?.operations ?? 0) > 0;
  };
  try {
    await until(`the ${load} load runs`, works, RUNS_MS);
  } catch (error) {
    throw new Error(`${String(error)}; its console:\n${loadConsole(agent, load)}`, { cause: error });
  }
}

/** The last lines of the guest's console at an agent: what the server, the clients and the guest's kernel said there. */
export function loadConsole(agent: TestAgent, load: Load): string {
  try {
    return readFileSync(join(agent.state, 'guests', load, 'console.log'), 'utf8')
      .split('\n')
      .slice(-30)
      .join('\n');
  } catch (error) {
    return String(error);
  }
}

const PAGE = 4096;
const WINDOW = 64;
/** In front of it an account or teller of PostgreSQL's has its balance, a bigint: a filler of 84 blanks, with its length. */
const FILLER = Buffer.concat([Buffer.from([0xab]), Buffer.alloc(84, ' ')]);

const isHexadecimal = (byte: number): boolean => (byte >= 0x30 && byte <= 0x39) || (byte >= 0x61 && byte <= 0x66);

/** Offsets in a page of bytes that belong to what a load's server keeps. */
function keptBytes(load: Load, page: Buffer): number[] {
  const found: number[] = [];
  if (load === 'postgres') {
    for (let at = page.indexOf(FILLER); at >= 8; at = page.indexOf(FILLER, at + 1)) found.push(at - 8);
    return found;
  }
  // the others keep long texts of hexadecimal digits
  for (let at = 0; at < PAGE; at += WINDOW) {
    if (page.subarray(at, at + WINDOW).every(isHexadecimal)) found.push(at + WINDOW / 2);
  }
  return found;
}

/**
 * Damages what the server of a running guest keeps, right in the guest's memory: a check that finds nothing now would never find
 * anything. Resolves to how many bytes were changed. The guest must not be moving.
 */
export async function damage(agent: TestAgent, load: Load): Promise<number> {
  const { files } = await agent.client.showGuest(load);
  const page = Buffer.alloc(PAGE);
  let changed = 0;
  for (const { path } of files) {
    const fd = openSync(path, 'r+');
    try {
      for (let at = 0; readSync(fd, page, 0, PAGE, at) === PAGE; at += PAGE) {
        for (const offset of keptBytes(load, page)) {
          writeSync(fd, Buffer.from([page[offset]! ^ 1]), 0, 1, at + offset);
          changed++;
        }
      }
    } finally {
      closeSync(fd);
    }
  }
  return changed;
}
