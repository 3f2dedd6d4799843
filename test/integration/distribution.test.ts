/** Distribution as a whole: real agents, guests that are alike, and a host that none of them was on. */
import t, { type Test } from 'tap';
import { skipTracking } from '../pages/guest-support.ts';
import type { TestAgent } from '../support/cluster.ts';
import { share } from '../support/domains.ts';
import { begin, guestFaults, startGuest, until } from '../support/migrate.ts';
import { clusterOf, sound } from '../support/sound.ts';

t.setTimeout(600_000);

/** Guests that have the same pages, and write few. */
const alike = { memory: '16M', seed: 7, writeRate: 20, readRate: 500, workingSet: 0.1, threads: 1 };
/** All the same as usual, but soon. */
const soon = {
  watch: { cpu: 0.5, intervalMs: 100 },
  directory: { leaseMs: 3_000, reportMs: 200 },
  distribution: { average: 20_000_000, peak: 40_000_000, intervalMs: 1_000 },
  // the source and the cache alone: what a peer gives was not brought
  peers: { most: 0 },
};
const cached = { ...soon, cache: { size: '64M' } };

interface Three {
  a: TestAgent;
  b: TestAgent;
  c: TestAgent;
}

/** Two guests alike at a and b; c has a cache, and no guest. */
async function three(t: Test, more: Record<string, unknown> = {}): Promise<Three> {
  const cluster = clusterOf(t);
  const [a, b, c] = await Promise.all([
    cluster.agent('a', soon),
    cluster.agent('b', soon),
    cluster.agent('c', { ...cached, ...more }),
  ]);
  await share('shop', a, b, c);
  await startGuest(a, 'one', alike, 'shop');
  await startGuest(b, 'two', alike, 'shop');
  return { a, b, c };
}

async function held({ client }: TestAgent): Promise<number> {
  return (await client.distribution()).heldPages;
}

/** Resolves when most of what both guests have is at the agent, and nothing is on its way. */
async function brought(agent: TestAgent, pages = 1000): Promise<void> {
  await until(
    `${agent.name} has what was to be brought`,
    async () => {
      const { heldPages, queuedPages, state } = await agent.client.distribution();
      return heldPages >= pages && queuedPages === 0 && state === 'idle';
    },
    40_000,
  );
}

void t.test('what guests elsewhere share is here before one of them comes', { skip: skipTracking }, async (t) => {
  const { a, b, c } = await three(t);
  await brought(c);
  const before = await c.client.distribution();
  t.comment(JSON.stringify(before));
  t.equal(before.totals.wrongPages, 0);
  const explained = await a.client.explainGuest('one');
  const there = explained.hosts.find(({ url }) => url === c.url)?.explanation;
  t.ok((there?.brought ?? 0) > 1000, `${there?.brought} of ${explained.pages} pages of the guest were brought there`);

  const report = await sound(t, await begin(a, c, 'one'), a, c, 'one');
  const data = report.frames.total - report.frames.zero;
  t.ok(report.frames.cache > data / 2, `${report.frames.cache} of ${data} frames from the cache`);
  await until('it is counted', async () => (await c.client.distribution()).totals.servedPages > 1000);
  const { domains } = await c.client.distribution();
  t.ok(domains[0]!.savedBytes > 0 && domains[0]!.spentBytes > 0, JSON.stringify(domains[0]));
  t.same(await guestFaults(b, 'two'), []);
});

void t.test('a host that is killed goes on where it stopped', { skip: skipTracking }, async (t) => {
  const { c } = await three(t);
  await brought(c);
  const pages = await held(c);
  await c.stop();
  await c.restart();
  t.ok((await held(c)) >= pages * 0.9, `${await held(c)} of ${pages} pages are known after a restart`);
  const { totals } = await c.client.distribution();
  t.ok(totals.broughtPages < pages / 2, `${totals.broughtPages} were brought again`);
});

void t.test('paused it brings nothing, over a restart too', { skip: skipTracking }, async (t) => {
  const { a, c } = await three(t);
  await c.client.pauseDistribution();
  await until('the guests are known', async () => {
    const { domains } = await a.client.distribution();
    return (domains[0]?.directory.reportedTags ?? 0) > 1000;
  });
  const before = await held(c);
  await c.restart();
  t.equal((await c.client.distribution()).state, 'paused');
  t.equal(await held(c), before);
  await c.client.resumeDistribution();
  await brought(c);
});

void t.test('an evacuation plan brings what only one guest has', { skip: skipTracking }, async (t) => {
  const cluster = clusterOf(t);
  const [a, c] = await Promise.all([cluster.agent('a', soon), cluster.agent('c', cached)]);
  await share('shop', a, c);
  await startGuest(a, 'one', alike, 'shop');
  await until('the guest is known', async () => {
    const { domains } = await a.client.distribution();
    return (domains[0]?.directory.reportedTags ?? 0) > 1000;
  });
  await until('a plan was made', async () => (await c.client.distribution()).totals.plans > 1);
  t.equal(await held(c), 0, 'nothing is shared, nothing is brought');
  await a.client.planEvacuate('a', 600_000);
  await brought(c);
});
