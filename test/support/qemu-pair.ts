/** QEMU guests at real agents: started there, and two agents of which the first has one. */
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
  await bootAt(a, 'g1', shape);
  return { made, a, b };
}

/** Starts a guest at an agent; resolves when it has booted. */
export async function bootAt(agent: TestAgent, name: string, shape: GuestShape, domain?: string): Promise<void> {
  const watched = { ...shape, more: [...(shape.more ?? []), ...OPERATOR] };
  const options = { ...(await guestOptions(watched)) };
  await agent.client.runGuest({ name, driver: 'qemu', options, ...(domain === undefined ? {} : { domain }) });
  const booted = async (): Promise<boolean> => ((await agent.client.showGuest(name)).stats?.operations ?? 0) > 0;
  await until(`${name} has booted`, booted, BOOT_MS);
}

/** A second monitor: the agent has the first for itself. */
const OPERATOR = ['-qmp', 'unix:{folder}/operator.sock,server=on,wait=off'];

/** The operator's own monitor of a guest that was started at an agent by {@link bootAt}; closed after the test. */
export async function operatorOf(t: Test, agent: TestAgent, guest = 'g1'): Promise<QmpClient> {
  const monitor = await QmpClient.connect(join(agent.state, `guests/${guest}/operator.sock`));
  t.teardown(() => monitor.close());
  return monitor;
}
