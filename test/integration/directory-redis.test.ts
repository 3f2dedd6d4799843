/** Agents whose directories are in a Redis: what they report, that it may be away or lose all, and what is left of it. */
import t, { type Test } from 'tap';
import { RedisDirectory } from '../../src/directory/redis/redis.ts';
import { skipTracking } from '../pages/guest-support.ts';
import type { Cluster, TestAgent } from '../support/cluster.ts';
import { share } from '../support/domains.ts';
import { startGuest } from '../support/migrate.ts';
import { killed, skipWithoutRedis, startRedis, until, type Server } from '../support/redis.ts';
import { clusterOf } from '../support/sound.ts';

t.setTimeout(300_000);

const skip = skipWithoutRedis || skipTracking;
/** Guests that have the same pages, and write none. */
const still = { memory: '4M', seed: 7, writeRate: 0, readRate: 100 };
const watch = { cpu: 1, intervalMs: 50 };
const quick = { leaseMs: 3000, reportMs: 500 };

async function agents(t: Test, url: string, more: Record<string, unknown> = {}): Promise<[Cluster, TestAgent[]]> {
  const cluster = clusterOf(t);
  const directory = { url, ...quick, ...more };
  const all = await Promise.all(['a', 'b', 'c'].map((name) => cluster.agent(name, { watch, directory })));
  return [cluster, all];
}

interface Told {
  directory: RedisDirectory;
  id: string;
}

/** The directory of a domain, as another user of the Redis sees it. */
async function told(t: Test, agent: TestAgent, url: string, prefix = 'pagetide'): Promise<Told> {
  const id = (await agent.client.listDomains()).find(({ name }) => name === 'shop')!.id;
  const options = { urls: [url], prefix: `${prefix}:${id}:`, leaseMs: quick.leaseMs, sweepMs: 0 };
  const directory = new RedisDirectory(options);
  t.teardown(() => directory.close());
  return { directory, id };
}

/** How many pages so many guests hold, all questions answered. */
async function heldBy(guests: number, { directory, id }: Told): Promise<number> {
  const { tags, first, held } = await directory.lacking(id, 'nobody', { limit: 65_536 });
  let pages = 0;
  for (let i = 0; i < tags.length / 16; i++) {
    let sum = 0;
    for (let cell = first[i]!; cell < first[i + 1]!; cell++) sum += held[cell]!;
    if (sum === guests) pages++;
  }
  return pages;
}

const away = (error: unknown): false => {
  if ((error as { code?: string }).code === 'PT_PEER_UNREACHABLE') return false;
  throw error;
};

async function startGuests(all: TestAgent[]): Promise<void> {
  for (const agent of all) await startGuest(agent, `guest-${agent.name}`, still, 'shop');
}

void t.test('an agent says that its directory loses records', { skip }, async (t) => {
  const { url } = await startRedis(t, { args: ['--maxmemory-policy', 'allkeys-lru'] });
  const cluster = clusterOf(t);
  const agent = await cluster.agent('a', { watch, directory: { url, ...quick } });
  await agent.client.createDomain('shop');
  await until('it is said', async () => (await agent.client.distribution()).domains[0]?.directory.error !== undefined);
  const [info] = (await agent.client.distribution()).domains;
  t.match(info?.directory, { error: { code: 'PT_DIRECTORY_EVICTS', message: /allkeys-lru/ } });
});

void t.test(
  'reports arrive and count; all is told again to one that lost it; agents go on without',
  { skip },
  async (t) => {
    let server: Server = await startRedis(t);
    const [, all] = await agents(t, server.url);
    const [a, b, c] = all as [TestAgent, TestAgent, TestAgent];
    await share('shop', a, b, c);
    await startGuests(all);
    const shop = await told(t, a, server.url);
    // a look while a report comes sees a part of it, so what all three have reported is the number
    let pages = 0;
    await until('the pages of all three are there', async () => {
      const reported = await Promise.all(
        all.map(async ({ client }) => (await client.distribution()).domains[0]?.directory.reportedTags ?? 0),
      );
      pages = reported[0]!;
      return pages > 500 && reported.every((tags) => tags === pages) && (await heldBy(3, shop)) === pages;
    });
    t.same((await shop.directory.hosts()).map(({ host, guests }) => [host, guests]).sort(), [
      ...[a, b, c].map(({ control }) => [`unix:${control}`, 1]),
    ]);
    const [info] = (await b.client.distribution()).domains;
    t.match(info?.directory, { home: server.url, reachable: true });

    await killed(server.process);
    await until(
      'b says that it is away',
      async () => (await b.client.distribution()).domains[0]?.directory.reachable === false,
    );
    t.equal((await b.client.showGuest('guest-b')).state, 'running');
    await startGuest(c, 'late', still, 'shop');
    await c.restart();
    t.equal((await c.client.listGuests()).length, 2, 'an agent starts without it');

    server = await startRedis(t, { port: server.port });
    await until('all is told again, and the late one, too', async () => (await heldBy(4, shop).catch(away)) === pages);
    t.equal(await heldBy(5, shop), 0);

    await a.client.emptyDirectory('shop');
    await until('and once more, when its home has emptied it', async () => (await heldBy(4, shop)) === pages);
    await t.rejects(b.client.emptyDirectory('shop'), { code: 'PT_DOMAIN_ELSEWHERE' });

    await c.client.removeGuest('guest-c');
    await c.client.removeGuest('late');
    await a.client.revokeDomain('shop', `unix:${c.control}`);
    await until('a host that has the domain no more is out', async () => (await shop.directory.hosts()).length === 2);
    t.equal(await heldBy(2, shop), pages);
    await a.client.removeGuest('guest-a');
    await b.client.removeGuest('guest-b');
    await a.client.removeDomain('shop');
    await until('no page of a removed domain is left', async () => {
      const keys = await server.client.keys(`*${shop.id}*`);
      return keys.every((key) => !key.includes(`{${shop.id}.`));
    });
  },
);
