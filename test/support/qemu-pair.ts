/** Two real agents, and a QEMU guest that has booted at the first of them. */
import { join } from 'node:path';
import type { Test } from 'tap';
import { QmpClient } from '../../src/guests/qemu/qmp.ts';
import { cluster, type Cluster, type TestAgent } from './cluster.ts';
import { until } from './migrate.ts';
import { BOOT_MS, guestOptions, type GuestShape } from './qemu-guest.ts';

export interface Pair {
  made: Cluster;
  a: TestAgent;
  b: TestAgent;
}

/** @param config of the second agent. The guest is called `g1`. */
export async function qemuPair(t: Test, shape: GuestShape, config: Record<string, unknown> = {}): Promise<Pair> {
  const made = cluster(t);
  t.teardown(() => {
    if (t.passing()) return;
    for (const agent of made.agents) t.comment([`log of ${agent.name}:`, ...agent.log().slice(-40)].join('\n'));
  });
  const [a, b] = await Promise.all([made.agent('a'), made.agent('b', config)]);
  const watched = { ...shape, more: [...(shape.more ?? []), ...OPERATOR] };
  await a.client.runGuest({ name: 'g1', driver: 'qemu', options: { ...(await guestOptions(watched)) } });
  const booted = async (): Promise<boolean> => ((await a.client.showGuest('g1')).stats?.operations ?? 0) > 0;
  await until('it has booted', booted, BOOT_MS);
  return { made, a, b };
}

/** A second monitor: the agent has the first for itself. */
const OPERATOR = ['-qmp', 'unix:{folder}/operator.sock,server=on,wait=off'];

/** The operator's own monitor of the guest at an agent; closed after the test. */
export async function operatorOf(t: Test, agent: TestAgent): Promise<QmpClient> {
  const monitor = await QmpClient.connect(join(agent.state, 'guests/g1/operator.sock'));
  t.teardown(() => monitor.close());
  return monitor;
}
