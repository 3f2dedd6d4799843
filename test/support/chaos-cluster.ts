/** Two agents and a guest under load, for runs in which agents are killed. */
import type { ChaosGuest } from './chaos.ts';
import { cluster as makeCluster, type Cluster } from './cluster.ts';

const DOMAIN = 'chaos';

/**
 * @param memory bytes of the guest
 * @param cache bytes of each agent's cache: less than the guest, so that pages come and go. 0: none, and no domain
 */
export async function chaosCluster(
  t: { teardown(fn: () => Promise<void>): unknown },
  memory: number,
  cache = 0,
): Promise<{ cluster: Cluster; guest: ChaosGuest }> {
  const cluster = makeCluster(t);
  // Slow enough that serving lasts as long as everything else: it is to be hit as often.
  const config = { faultWorkers: 2, fill: { bandwidth: Math.max(65_536, memory) }, cache: { size: String(cache) } };
  const owner = await cluster.agent('a', config);
  const other = await cluster.agent('b', config);
  if (cache > 0) {
    await owner.client.createDomain(DOMAIN);
    await owner.client.grantDomain(DOMAIN, `unix:${other.control}`);
  }
  await owner.client.runGuest({
    name: 'moving',
    driver: 'embedded',
    ...(cache > 0 ? { domain: DOMAIN } : {}),
    options: { memory, writeRate: 2_000, readRate: 2_000, workingSet: 0.5, threads: 2, regions: 2 },
  });
  return { cluster, guest: { name: 'moving', operations: 0, owner } };
}
