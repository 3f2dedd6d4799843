/** Guests that run a real load and check it (docs/loads.md), for the agents of a test. */
import { execFileSync, spawnSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { checkout, machineArgv } from './qemu-guest.ts';
import type { TestAgent } from './cluster.ts';
import { until } from './migrate.ts';

export const LOADS = ['idle', 'redis', 'nginx', 'node', 'postgres'] as const;
export type Load = (typeof LOADS)[number];

/** MiB. What is less doesn't boot: the image is there twice while the kernel unpacks it. */
const MEMORY: Record<Load, number> = { idle: 128, redis: 160, nginx: 128, node: 320, postgres: 320 };
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
  return machineArgv({ kernel, initramfs: initramfs[load] }, { memory: String(MEMORY[load]), settings });
}

/** Starts a guest with a load at an agent, named after the load; resolves when the load runs. */
export async function startLoad(agent: TestAgent, load: Load, settings?: string): Promise<void> {
  await agent.client.runGuest({ name: load, driver: 'qemu', options: { ...loadOptions(load, settings) } });
  const works = async (): Promise<boolean> => ((await agent.client.showGuest(load)).stats?.operations ?? 0) > 0;
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
