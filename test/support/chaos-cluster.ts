/** Two agents and a guest under load, for runs in which agents are killed. */
import { randomFrom, type ChaosGuest } from './chaos.ts';
import { cluster as makeCluster, type Cluster, type TestAgent } from './cluster.ts';
import { startLiar, type Liar } from './liar.ts';

const DOMAIN = 'chaos';
/** Of the pages that the peer sends: so few that it gives many right ones before it is left out. */
const LIES = 1 / 300;

export interface ChaosOptions {
  /** Bytes of the guest. */
  memory: number;
  /** Bytes of each agent's cache: less than the guest, so that pages come and go. 0: none, and no domain. */
  cache?: number;
  /**
   * With a cache: a third host has the guest's first pages, and sends them to whoever asks, one of 300 with a bit changed. It
   * is not killed.
   */
  liar?: boolean;
  seed?: number;
}

export interface ChaosCluster {
  cluster: Cluster;
  guest: ChaosGuest;
  liar: Liar | undefined;
}

export async function chaosCluster(
  t: { teardown(fn: () => Promise<void>): unknown },
  { memory, cache = 0, liar: wantsLiar = false, seed = 1 }: ChaosOptions,
): Promise<ChaosCluster> {
  const cluster = makeCluster(t);
  // Slow enough that serving lasts as long as everything else: it is to be hit as often.
  const config = { faultWorkers: 2, fill: { bandwidth: Math.max(65_536, memory) }, cache: { size: String(cache) } };
  const owner = await cluster.agent('a', config);
  const other = await cluster.agent('b', config);
  const options = { memory, seed: 5, writeRate: 2_000, readRate: 2_000, workingSet: 0.5, threads: 2, regions: 2 };
  let liar: Liar | undefined;
  if (cache > 0) {
    await owner.client.createDomain(DOMAIN);
    // before the other, which is told of it with its own grant
    if (wantsLiar) liar = await makeLiar(t, cluster, owner, options, seed);
    await owner.client.grantDomain(DOMAIN, `unix:${other.control}`);
  }
  await owner.client.runGuest({
    name: 'moving',
    driver: 'embedded',
    ...(cache > 0 ? { domain: DOMAIN } : {}),
    options,
  });
  return { cluster, guest: { name: 'moving', operations: 0, owner }, liar };
}

/** A host whose cache has a twin's pages, behind a proxy that changes some of what it sends. */
async function makeLiar(
  t: { teardown(fn: () => Promise<void>): unknown },
  cluster: Cluster,
  home: TestAgent,
  options: Record<string, unknown>,
  seed: number,
): Promise<Liar> {
  const liar = await startLiar({
    teardown: (fn) =>
      t.teardown(async () => {
        await fn();
      }),
  });
  const random = randomFrom(seed);
  liar.lies = () => random() < LIES;
  const peer = await cluster.agent('c', {
    advertise: liar.proxy.url,
    cache: { size: String(2 * Number(options['memory'])) },
    watch: { cpu: 0 },
  });
  liar.proxy.target = peer.ownUrl;
  await home.client.grantDomain(DOMAIN, `unix:${peer.control}`);
  await peer.client.runGuest({
    name: 'twin',
    driver: 'embedded',
    domain: DOMAIN,
    options: { ...options, writeRate: 0, readRate: 0 },
  });
  await peer.client.warmCache({ domain: DOMAIN, guest: 'twin' });
  await peer.client.removeGuest('twin');
  return liar;
}
