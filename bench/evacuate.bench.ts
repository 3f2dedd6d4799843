/** What evacuating like guests together saves: the bytes on the network, against each of them moved alone to a host that has nothing. */
import { PagetideError } from '../src/errors.ts';
import type { EvacuationInfo } from '../src/agent/service.ts';
import type { MigrationReport } from '../src/migration/types.ts';
import type { Cluster, TestAgent } from '../test/support/cluster.ts';
import { share } from '../test/support/domains.ts';
import { migrate, startGuest, until } from '../test/support/migrate.ts';
import { checkSettings, setting } from './lib/settings.ts';
import { judge, median } from './lib/statistics.ts';
import { withCluster } from './lib/with-cluster.ts';
import type { BenchModule, BenchOptions } from './lib/types.ts';

export const description = 'Bytes on the network of like guests that leave together, against each alone.';

const MIB = 2 ** 20;
const DOMAIN = 'fleet';
/** Of all the wire bytes of single migrations, at most. */
const TARGET = 0.5;
/** Guests are tagged soon, so that a round does not take long; what it costs is not measured here. */
const WATCH = { cpu: 1, intervalMs: 50 };

interface Setup {
  guests: number;
  mib: number;
  /** Pages that each guest writes a second, all the time. */
  rate: number;
  /** Bytes of pages a second for all; 0: no limit. */
  bandwidth: number;
}

interface Round {
  singles: MigrationReport[];
  together: EvacuationInfo;
}

function readSetup(options: BenchOptions): Setup {
  checkSettings(options, ['guests', 'mib', 'rate', 'bandwidth']);
  return {
    guests: setting(options, 'guests', 4, 2),
    mib: setting(options, 'mib', 64, 4),
    rate: setting(options, 'rate', 200, 0),
    bandwidth: setting(options, 'bandwidth', 0, 0),
  };
}

/** Hosts of one domain; the guests run at the first, all of their pages known. */
async function start(cluster: Cluster, names: readonly string[], setup: Setup): Promise<[TestAgent, ...TestAgent[]]> {
  const agents: TestAgent[] = [];
  for (const name of names) agents.push(await cluster.agent(name, { watch: WATCH }));
  const [source, ...others] = agents as [TestAgent, ...TestAgent[]];
  await share(DOMAIN, source, ...others);
  const load = { seed: 7, writeRate: setup.rate, readRate: 2000, workingSet: 0.1, threads: 1 };
  for (let at = 0; at < setup.guests; at++)
    await startGuest(source, `g${at}`, { ...load, memory: `${setup.mib}M` }, DOMAIN);
  for (let at = 0; at < setup.guests; at++)
    await until(`g${at} is tagged`, () =>
      source.log().some((line) => line.includes('are tagged') && line.includes(`"g${at}"`)),
    );
  return [source, ...others];
}

async function stop(agents: readonly TestAgent[]): Promise<void> {
  for (const { client } of agents) for (const { name } of await client.listGuests()) await client.removeGuest(name);
  for (const agent of agents) await agent.stop();
}

/** Each guest to a host of its own that has nothing. */
async function alone(cluster: Cluster, round: number, setup: Setup): Promise<MigrationReport[]> {
  const names = Array.from({ length: setup.guests }, (_, at) => `r${round}-cold${at}`);
  const [source, ...others] = await start(cluster, [`r${round}-a`, ...names], setup);
  const reports: MigrationReport[] = [];
  for (const [at, other] of others.entries()) {
    const { last } = await migrate(source, other, `g${at}`, { mode: 'auto' });
    if (last.report?.verified !== true)
      throw new PagetideError('PT_PEER_FAILED', `g${at}: ${last.error?.message ?? last.progress.phase}`);
    reports.push(last.report);
  }
  await stop([source, ...others]);
  return reports;
}

/** All of them, to two hosts that have nothing. */
async function together(cluster: Cluster, round: number, setup: Setup): Promise<EvacuationInfo> {
  const agents = await start(
    cluster,
    ['s', 't1', 't2'].map((name) => `r${round}-${name}`),
    setup,
  );
  const [source, ...targets] = agents;
  const { bandwidth } = setup;
  await source.client.evacuate({
    ...{ to: targets.map(({ url }) => url), parallel: setup.guests, mode: 'auto', verify: true },
    ...(bandwidth === 0 ? {} : { bandwidth }),
  });
  let last: EvacuationInfo | undefined;
  for await (const info of source.client.watchEvacuation()) last = info;
  const wrong = last!.guests.filter(({ report }) => report?.verified !== true);
  if (wrong.length > 0)
    throw new PagetideError('PT_PEER_FAILED', `not moved, or not right: ${JSON.stringify(wrong[0]!.error)}`);
  await stop(agents);
  return last!;
}

export async function run(options: BenchOptions): ReturnType<BenchModule['run']> {
  const setup = readSetup(options);
  const rounds: Round[] = [];
  await withCluster(async (cluster, signal) => {
    for (let round = 0; round < options.rounds; round++) {
      options.progress(`round ${round}: each alone`);
      const singles = await alone(cluster, round, setup);
      // an agent that starts after the cluster has ended would stay
      signal.throwIfAborted();
      options.progress(`round ${round}: together`);
      rounds.push({ singles, together: await together(cluster, round, setup) });
    }
  });
  const wire = (reports: readonly MigrationReport[]): number => reports.reduce((sum, { bytes }) => sum + bytes.wire, 0);
  const pairs = rounds.map(({ singles, together: all }) => ({
    value: all.totals.bytes.wire / MIB,
    baseline: wire(singles) / MIB,
  }));
  const name = `${setup.guests} like guests together`;
  const each = (at: number): string =>
    (median(rounds.map(({ together: all }) => all.guests[at]!.report!.bytes.wire)) / MIB).toFixed(1);
  const frames = rounds.at(-1)!.together.totals.frames;
  return {
    targets: [judge(name, 'MiB', pairs, { target: TARGET, direction: 'at-most' })],
    notes: [
      'measured: what the sockets carried, both ways, of all guests that were evacuated together to two hosts; reference: the same of the guests each moved alone to a host that has nothing',
      `embedded guests of ${setup.mib} MiB with the same pages at first, each writing ${setup.rate} pages a second all the time; mode auto`,
      `of them in turn: ${Array.from({ length: setup.guests }, (_, at) => each(at)).join(', ')} MiB; together ${frames.total} frames: ` +
        `${frames.zero} zero, ${frames.cache} cache, ${frames.resident} resident, ${frames.duplicate} duplicate, ${frames.peer} peer, ${frames.source} source`,
      `all were there after ${(median(rounds.map(({ together: all }) => all.elapsedMs)) / 1000).toFixed(1)} s, each verified`,
    ],
    raw: { setup, rounds },
  };
}
