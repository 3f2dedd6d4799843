/**
 * The guests of the experiment, on three hosts. Like ones run on the first two hosts; the others are unlike them and each other.
 * Each moves to a host without a guest like it: what it finds there it was brought.
 *
 *   host 1   like-1 → 3   web-1 → 3
 *   host 2   like-2 → 3   web-2 (stays)   like-3 (stays)   redis → 1
 *   host 3   node   → 2
 */
import { until } from '../../../test/support/migrate.ts';
import { loadOptions, type Load } from '../../../test/support/load-guest.ts';
import { guestOptions } from '../../../test/support/qemu-guest.ts';
import { DOMAIN } from '../netns-cluster/cluster.ts';
import type { FleetGuest, Host, Setup } from './types.ts';

/** Without KVM, seven at once on a busy machine. */
const BOOT_MS = 420_000;
/** Between heartbeats, milliseconds: silences are told to so much. */
const BEAT_MS = 50;
/** Pages that each like guest has rewritten before anything is measured. */
const REWRITTEN = 200;

/** Of their usual work, so that seven of them and three agents leave a part of two cores idle: operations a second. */
const PACED: Partial<Record<Load, number>> = { nginx: 6, redis: 20, node: 2 };

const FLEET: readonly FleetGuest[] = [
  { name: 'like-1', kind: 'like', home: 0, to: 2 },
  { name: 'like-2', kind: 'like', home: 1, to: 2 },
  { name: 'like-3', kind: 'like', home: 1, to: 2, stays: true },
  { name: 'web-1', kind: 'like server', load: 'nginx', home: 0, to: 2 },
  { name: 'web-2', kind: 'like server', load: 'nginx', home: 1, to: 2, stays: true },
  { name: 'redis', kind: 'unlike', load: 'redis', home: 1, to: 0 },
  { name: 'node', kind: 'unlike', load: 'node', home: 2, to: 1 },
];

/** Embedded, small. */
const SMALL: readonly FleetGuest[] = [
  { name: 'like-1', kind: 'like', home: 0, to: 2 },
  { name: 'like-2', kind: 'like', home: 1, to: 2 },
];

export const fleetOf = ({ small }: Setup): readonly FleetGuest[] => (small ? SMALL : FLEET);

/** Those that move: at most so many of the like ones, and all others that don't stay. */
export function moversOf(setup: Setup): readonly FleetGuest[] {
  let like = 0;
  return fleetOf(setup).filter(({ kind, stays }) => stays !== true && (kind !== 'like' || ++like <= setup.movers));
}

/** Options for the driver's `run` of a like guest; no two write the same. */
export async function likeOptions(setup: Setup, seed: number): Promise<{ argv: string[]; checkSocket: string }> {
  const settings = `pagetide.template=0 pagetide.seed=${seed} pagetide.rate=${setup.rate} pagetide.set=${setup.own} pagetide.beat=${BEAT_MS}`;
  return guestOptions({ memory: String(setup.mib), settings });
}

async function optionsOf(guest: FleetGuest, at: number, setup: Setup): Promise<Record<string, unknown>> {
  if (setup.small) {
    // guests of one seed begin with the same pages
    const seed = guest.kind === 'like' ? 7 : 100 + at;
    const load = { writeRate: setup.rate, readRate: 20, workingSet: 0.1, threads: 1 };
    return { memory: `${setup.mib}M`, seed, ...load };
  }
  if (guest.kind === 'like') return { ...(await likeOptions(setup, at + 1)) };
  const load = guest.load!;
  return { ...loadOptions(load, `pagetide.beat=${BEAT_MS} pagetide.seed=${at + 1} pagetide.rate=${PACED[load] ?? 1}`) };
}

/** One after the other, as booting takes all of a core. Resolves when all of them work. */
export async function startFleet(
  hosts: readonly Host[],
  setup: Setup,
  progress: (text: string) => void,
): Promise<void> {
  for (const [at, guest] of fleetOf(setup).entries()) {
    const { client } = hosts[guest.home]!;
    const { name } = guest;
    progress(`starting ${name}`);
    const driver = setup.small ? 'embedded' : 'qemu';
    await client.runGuest({ name, driver, options: await optionsOf(guest, at, setup), domain: DOMAIN });
    const least = setup.small || guest.load !== undefined ? 1 : Math.min(REWRITTEN, setup.rate * 10);
    await until(
      `${name} works`,
      async () => ((await client.showGuest(name)).stats?.operations ?? -1) >= least,
      BOOT_MS,
    );
  }
}
