/** Two agents and a guest under load, for runs in which agents are killed. */
import type { ChaosGuest } from './chaos.ts';
import { cluster as makeCluster, type Cluster } from './cluster.ts';

/** @param memory bytes of the guest */
export async function chaosCluster(
  t: { teardown(fn: () => Promise<void>): unknown },
  memory: number,
): Promise<{ cluster: Cluster; guest: ChaosGuest }> {
  const cluster = makeCluster(t);
  // Slow enough that serving lasts as long as everything else: it is to be hit as often.
  const config = { faultWorkers: 2, fill: { bandwidth: Math.max(65_536, memory) } };
  const owner = await cluster.agent('a', config);
  await cluster.agent('b', config);
  await owner.client.runGuest({
    name: 'moving',
    driver: 'embedded',
    options: { memory, writeRate: 2_000, readRate: 2_000, workingSet: 0.5, threads: 2, regions: 2 },
  });
  return { cluster, guest: { name: 'moving', operations: 0, owner } };
}
