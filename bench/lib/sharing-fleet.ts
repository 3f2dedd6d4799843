/** Two agents that share pages, and real guests that move from the one to the other. */
import { PagetideError } from '../../src/errors.ts';
import type { GuestInfo } from '../../src/agent/service.ts';
import type { MigrationReport } from '../../src/migration/types.ts';
import type { Cluster, TestAgent } from '../../test/support/cluster.ts';
import { share } from '../../test/support/domains.ts';
import { migrate, reportFaults, until } from '../../test/support/migrate.ts';
import { guestOptions, needsQemu } from '../../test/support/qemu-guest.ts';

/** QEMU without KVM, on a busy machine. */
const BOOT_MS = 240_000;
/** The domain of all guests. */
const DOMAIN = 'fleet';

/** A guest's load: pages rewritten a second, and how many before it moves. */
export interface GuestLoad {
  rate: number;
  rewritten: number;
}

/** One guest, as the test guest's kernel command line makes it. */
export interface FleetGuest {
  name: string;
  /** Guests of one number have the same content at first. */
  template: number;
  /** Guests of one number write the same. */
  seed: number;
  load: GuestLoad;
}

export interface GuestMachine {
  mib: number;
  /** Whether the guest's kernel lies elsewhere at each start, as kernels do unless they are told not to. */
  randomized: boolean;
}

/** @throws PagetideError `PT_UNSUPPORTED_HOST` where no test guest can be run */
export function requireQemu(): void {
  const { skip } = needsQemu();
  if (skip === false) return;
  throw new PagetideError('PT_UNSUPPORTED_HOST', skip, {
    hint: 'This bench moves QEMU guests: apt-get update && apt-get install qemu-system-x86 cpio libc6-dev.',
  });
}

/**
 * A source without a cache, and a destination with an empty one, of one domain. Their names end in `suffix`. Guests are not
 * watched: what a sibling saves is what the cache has.
 */
export async function startPair(
  cluster: Cluster,
  suffix: string,
  cacheBytes: number,
): Promise<{ source: TestAgent; destination: TestAgent }> {
  const watch = { cpu: 0 };
  const source = await cluster.agent(`a${suffix}`, { watch });
  const destination = await cluster.agent(`b${suffix}`, { watch, cache: { size: cacheBytes } });
  await share(DOMAIN, source, destination);
  return { source, destination };
}

/** Resolves when it has booted and rewritten as many pages as it should. */
export async function startFleetGuest(agent: TestAgent, guest: FleetGuest, machine: GuestMachine): Promise<void> {
  const { name, template, seed, load } = guest;
  const words = { template, seed, rate: load.rate };
  const settings = Object.entries(words).map(([word, value]) => `pagetide.${word}=${value}`);
  if (!machine.randomized) settings.push('nokaslr');
  const options = await guestOptions({ memory: String(machine.mib), settings: settings.join(' ') });
  await agent.client.runGuest({ name, driver: 'qemu', options: { ...options }, domain: DOMAIN });
  await until(
    `${name} has booted and rewritten ${load.rewritten} pages`,
    async () => ((await agent.client.showGuest(name)).stats?.operations ?? -1) >= load.rewritten,
    BOOT_MS,
  );
}

/** Moves it; it runs at `to` afterwards. @throws PagetideError where the migration failed or its report is not sound */
export async function moveGuest(
  from: TestAgent,
  to: TestAgent,
  name: string,
): Promise<{ report: MigrationReport; guest: GuestInfo }> {
  const { last } = await migrate(from, to, name);
  const { report, error, progress } = last;
  const faults = reportFaults(report);
  if (report?.verified !== true) faults.push(`verified: ${report?.verified}`);
  if (report === undefined || faults.length > 0) {
    const why = error === undefined ? `${progress.phase}; ${faults.join('; ')}` : `${error.code} ${error.message}`;
    throw new PagetideError('PT_PEER_FAILED', `the migration of ${name} did not end well: ${why}`, {
      hint: [...from.log().slice(-5), ...to.log().slice(-5)].join('\n'),
    });
  }
  return { report, guest: await to.client.showGuest(name) };
}

export async function removeGuests(agents: readonly TestAgent[]): Promise<void> {
  for (const { client } of agents) {
    for (const { name } of await client.listGuests()) await client.removeGuest(name);
  }
}
