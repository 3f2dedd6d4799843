/** A guest on one of two agents, for tests in which an agent dies at a known moment. */
import { join } from 'node:path';
import type { Test } from 'tap';
import { checkAll, untilSettled } from './chaos-checks.ts';
import { cluster as makeCluster, type Cluster, type TestAgent } from './cluster.ts';
import { untilRecord, type Side } from './journal-watch.ts';
import { processesBelow } from './processes.ts';

export const MIB = 2 ** 20;
export const NAME = 'moving';
/** For one thing that another process does; a test machine may be very busy. */
export const WAIT_MS = 60_000;

export interface Pair {
  cluster: Cluster;
  source: TestAgent;
  destination: TestAgent;
  /** Resolves when the record stands in the journal of that side. */
  record(side: Side, state: string): Promise<void>;
}

/** A guest at the source. It is filled so slowly that nothing is over before a test has looked. */
export async function pair(t: Test, config: Record<string, unknown> = {}): Promise<Pair> {
  const cluster = makeCluster(t);
  t.teardown(() => {
    if (t.passing()) return;
    for (const agent of cluster.agents) t.comment([`log of ${agent.name}:`, ...agent.log().slice(-40)].join('\n'));
  });
  const all = { fill: { bandwidth: 32 * MIB }, ...config };
  const [source, destination] = await Promise.all([cluster.agent('a', all), cluster.agent('b', all)]);
  const options = { memory: 32 * MIB, writeRate: 1_000, readRate: 1_000, workingSet: 0.5, threads: 2 };
  await source.client.runGuest({ name: NAME, driver: 'embedded', options });
  const sides = { source, destination };
  const record = async (side: Side, state: string): Promise<void> => {
    if (await untilRecord(sides[side], 0, side, state, WAIT_MS)) return;
    throw new Error(`no '${state}' in the journal of the ${side}:\n${sides[side].log().join('\n')}`);
  };
  return { cluster, source, destination, record };
}

/** Waits until everything is over; the guest is then at `expected`, whole, and nothing of it is left anywhere else. */
export async function ends(t: Test, { cluster }: Pair, expected: TestAgent): Promise<void> {
  await untilSettled(cluster.agents, WAIT_MS);
  const { owner } = await checkAll(cluster, NAME, 0);
  t.equal(owner.name, expected.name, `the guest is at ${expected.name}, whole, and nothing is left elsewhere`);
}

/** Processes of the guests of an agent, whether it knows them or not. */
export function guestsOf(agent: TestAgent): number[] {
  return processesBelow(`${join(agent.state, 'guests')}/`);
}
