/**
 * Many migrations in a row of one guest under load, forth and back between two agents, each checked by the guest itself;
 * and a look at what is left afterwards: in memory, in files, in processes.
 */
import { PagetideError } from '../../src/errors.ts';
import type { GuestInfo, GuestRequest } from '../../src/agent/service.ts';
import type { MigrationReport } from '../../src/migration/types.ts';
import type { Cluster, TestAgent } from '../../test/support/cluster.ts';
import { migrate, reportFaults, stillLeft, until } from '../../test/support/migrate.ts';
import { descriptors, residentBytes } from '../../test/support/processes.ts';
import { guestOptions } from '../../test/support/qemu-guest.ts';

export interface SoakOptions {
  guest: 'embedded' | 'qemu';
  migrations: number;
  /** Of the guest, e.g. `96M`. */
  memory: string;
  /** Pages that the guest writes a second. */
  writeRate: number;
  threads: number;
  progress: (text: string) => void;
}

/** What an agent holds when it has come to rest. */
export interface Rest {
  agent: string;
  /** Resident memory, bytes. */
  rss: number;
  descriptors: number;
}

export interface SoakResult {
  migrations: number;
  /** After which migration the agents were first measured, and how they stood then and at the end. */
  warm: { after: number; agents: Rest[] };
  end: { agents: Rest[] };
  /** Largest resident memory at the end as part of that when warm. */
  growth: number;
  reports: MigrationReport[];
  /** What did not hold; empty: all is well. */
  problems: string[];
}

/** Agents may take this much more memory at the end than when warm. */
export const MAX_GROWTH = 1.05;
const WARM_AFTER = 10;
/** Fewer migrations say little: memory still swings by more than the limit between two collections. It is told all the same. */
const JUDGED_FROM = 50;
const NAME = 'soak';
/** QEMU without KVM, on a busy machine. */
const BOOT_MS = 240_000;

/** Runs it on a cluster without agents. Throws only where it can't go on; what is merely wrong is in `problems`. */
export async function soak(cluster: Cluster, options: SoakOptions): Promise<SoakResult> {
  const { migrations, progress } = options;
  const agents = [await cluster.agent('a'), await cluster.agent('b')] as const;
  const problems: string[] = [];
  const reports: MigrationReport[] = [];
  await agents[0].client.runGuest(await request(options));
  // a guest that still boots would not hear a request to check itself
  await until('the guest works', async () => works(await agents[0].client.showGuest(NAME)), BOOT_MS);

  // with fewer the agents are still warming up
  const judged = migrations > WARM_AFTER;
  const half = judged ? WARM_AFTER : Math.ceil(migrations / 2);
  // the guest is at the same agent then as at the end: that one holds its connections
  const warmAfter = half + ((migrations - half) % 2);
  let warm: Rest[] = [];
  for (let nth = 1; nth <= migrations; nth++) {
    const [from, to] = nth % 2 === 1 ? agents : [agents[1], agents[0]];
    const { last } = await migrate(from, to, NAME);
    const { report, error } = last;
    if (report === undefined) {
      const why = error === undefined ? last.progress.phase : `${error.code} ${error.message}`;
      throw new PagetideError('PT_PEER_FAILED', `migration ${nth} did not end well: ${why}`, {
        hint: [...from.log().slice(-5), ...to.log().slice(-5)].join('\n'),
      });
    }
    reports.push(report);
    if (report.verified !== true) problems.push(`migration ${nth}: verified is ${report.verified}`);
    problems.push(...reportFaults(report).map((text) => `migration ${nth}: ${text}`));
    const { frames, ms, faults } = report;
    progress(
      `${nth}/${migrations} verified=${report.verified} source=${frames.source} faults=${faults.count} ` +
        `downtime=${ms.downtime?.toFixed(1)}ms total=${ms.total.toFixed(0)}ms`,
    );
    if (nth === warmAfter) warm = await atRest(agents);
  }
  problems.push(...(await stillLeft(cluster)));
  const end = await atRest(agents);
  const growth = Math.max(...end.map(({ rss }, at) => rss / warm[at]!.rss));
  if (migrations >= JUDGED_FROM && growth > MAX_GROWTH)
    problems.push(`an agent's memory grew to ${(growth * 100).toFixed(1)}%`);
  for (const [at, now] of end.entries()) {
    const before = warm[at]!.descriptors;
    if (now.descriptors > before) problems.push(`agent ${now.agent} has ${now.descriptors} descriptors, had ${before}`);
  }
  await removeGuest(agents);
  problems.push(...(await stillLeft(cluster)));
  return { migrations, warm: { after: warmAfter, agents: warm }, end: { agents: end }, growth, reports, problems };
}

function works({ stats }: GuestInfo): boolean {
  return (stats?.operations ?? 0) > 0 || stats?.heartbeats !== undefined;
}

async function request(options: SoakOptions): Promise<GuestRequest> {
  const { guest, memory, writeRate, threads } = options;
  if (guest === 'embedded')
    return { name: NAME, driver: 'embedded', options: { memory, writeRate, readRate: writeRate, threads } };
  const megabytes = String(Math.round(Number(/^(\d+)M$/.exec(memory)?.[1] ?? 128)));
  const made = await guestOptions({ memory: megabytes, cpus: threads, settings: `pagetide.rate=${writeRate}` });
  return { name: NAME, driver: 'qemu', options: { ...made } };
}

async function removeGuest(agents: readonly TestAgent[]): Promise<void> {
  for (const { client } of agents) {
    for (const { name } of await client.listGuests()) await client.removeGuest(name);
  }
}

/** Equal measurements in a row, and the pause between two, that count as rest: longer than idle connections are kept. */
const EQUAL = 12;
const PAUSE_MS = 500;
const REST_WITHIN_MS = 30_000;
/** Memory that differs by less is the same, bytes. */
const SAME = 128 << 10;

/** How the agents stand when nothing changes any more. Nothing is forced: no collection, no trimming. */
async function atRest(agents: readonly TestAgent[]): Promise<Rest[]> {
  const look = (): Rest[] =>
    agents.map(({ name, pid }) => ({
      agent: name,
      rss: residentBytes(pid).total,
      descriptors: descriptors(pid).length,
    }));
  const deadline = performance.now() + REST_WITHIN_MS;
  let last = look();
  for (let equal = 0; equal < EQUAL && performance.now() < deadline;) {
    await new Promise((resolve) => setTimeout(resolve, PAUSE_MS));
    const now = look();
    const same = now.every((one, at) => {
      const before = last[at]!;
      return one.descriptors === before.descriptors && Math.abs(one.rss - before.rss) < SAME;
    });
    equal = same ? equal + 1 : 0;
    last = now;
  }
  return last;
}
