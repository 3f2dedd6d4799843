/** `evacuate --prepare` with agents: the target brings the guests' pages first, and they go by its cache. */
import t, { type Test } from 'tap';
import type { EvacuationInfo } from '../../src/agent/service.ts';
import { runCli, startCli } from '../cli/harness.ts';
import { skipTracking as skip } from '../pages/guest-support.ts';
import type { TestAgent } from '../support/cluster.ts';
import { share } from '../support/domains.ts';
import { guestFaults, startGuest, until } from '../support/migrate.ts';
import { clusterOf } from '../support/sound.ts';

t.setTimeout(600_000);

const config = {
  watch: { cpu: 1, intervalMs: 10 },
  cache: { size: '64M' },
  directory: { leaseMs: 5000, reportMs: 200 },
  // without a plan nobody is expected, and nothing is brought
  distribution: { intervalMs: 1000, average: '50M', moves: 0 },
  // the cache or the source: what a peer gives was not brought
  peers: { most: 0 },
};
/** So slow that a guest takes minutes. */
const slow = { ...config, distribution: { intervalMs: 1000, average: '64K', peak: '1M', moves: 0 } };
/** It writes nearly nothing: what it has is stable. */
const still = { memory: '16M', seed: 7, writeRate: 1, readRate: 100, workingSet: 0.01, threads: 1 };
const guests = ['one', 'two'];

interface Two {
  a: TestAgent;
  b: TestAgent;
}

/** a, with the guests; b, where the domain's directory is, brings as configured. */
async function two(t: Test, target: Record<string, unknown> = config): Promise<Two> {
  const cluster = clusterOf(t);
  const [a, b] = await Promise.all([cluster.agent('a', config), cluster.agent('b', target)]);
  await share('shop', b, a);
  for (const name of guests) await startGuest(a, name, still, 'shop');
  for (const name of guests)
    await until(`${name} is known, and reported`, async () => {
      const explained = await a.client.explainGuest(name).catch(() => undefined);
      const { domains } = await a.client.distribution();
      return explained?.stable === true && (domains[0]?.directory.reportedTags ?? 0) >= explained.pages;
    });
  return { a, b };
}

const command = ({ a, b }: Two, ...args: string[]) => [
  ...['evacuate', '--to', b.url, '--json', '--agent', `unix:${a.control}`],
  ...args,
];

/** A plan is in force at both hosts, or at neither. */
async function planned({ a, b }: Two): Promise<string[][]> {
  const lists = await Promise.all([a, b].map(({ client }) => client.listPlans()));
  return lists.map(({ plans }) => plans.map(({ domain, kind }) => `${domain} ${kind}`));
}

const evacuating = [['shop evacuate'], ['shop evacuate']];

async function allAt(t: Test, { client }: TestAgent, agent: TestAgent): Promise<void> {
  const names = (await client.listGuests()).map(({ name }) => name).sort();
  t.same(names, ['one', 'two']);
  for (const name of names) t.same(await guestFaults(agent, name), []);
}

void t.test('pages are brought, then guests go by the cache, and the plan is withdrawn', { skip }, async (t) => {
  const both = await two(t);
  const { a, b } = both;
  t.equal((await b.client.distribution()).heldPages, 0, 'nobody is expected, nothing is brought');
  const cli = startCli(t, command(both, '--prepare=3m'));
  await cli.says(/preparing: /);
  t.same(await planned(both), evacuating);
  t.equal((await a.client.listGuests()).length, 2, 'nobody moves yet');
  const { code, stdout, stderr } = await cli.finished;
  t.equal(code, 0, stderr);
  t.match(stderr, /^prepared: nothing was left to be brought/m);
  const { state, preparation, totals } = JSON.parse(stdout) as EvacuationInfo;
  t.match(preparation, { ended: 'brought', queuedBytes: 0, planning: 0, silent: [] });
  t.ok(preparation!.there > preparation!.pages * 0.8, JSON.stringify(preparation));
  const { frames, moved } = totals;
  const data = frames.total - frames.zero;
  t.same([state, moved], ['ended', 2]);
  t.ok(frames.cache > data * 0.7 && frames.source < data * 0.2, JSON.stringify(frames));
  t.same(await planned(both), [[], []], 'once it has ended');
  await allAt(t, b, b);
  // the second one has its pages of the first
  await until('it is counted', async () => (await b.client.distribution()).totals.servedPages > data / 3);
});

void t.test('its time runs out: guests go, it is said, and the plan is withdrawn', { skip }, async (t) => {
  const both = await two(t, slow);
  const { code, stdout, stderr } = await runCli(t, command(both, '--prepare=15s'));
  t.equal(code, 0, stderr);
  t.match(stderr, /^prepared: its time was over, \S+ \S+ still to come; /m);
  const { preparation, totals } = JSON.parse(stdout) as EvacuationInfo;
  t.match(preparation, { ended: 'time', mostMs: 15_000 });
  t.ok(preparation!.queuedBytes > 0 && preparation!.elapsedMs < 20_000, JSON.stringify(preparation));
  t.equal(totals.moved, 2);
  // what the first one fetched the second one finds
  const { source, total, zero } = totals.frames;
  t.ok(source > (total - zero) / 3, JSON.stringify(totals.frames));
  t.same(await planned(both), [[], []]);
  await allAt(t, both.b, both.b);
});

void t.test('stopped, cancelled, or its agent ends: nobody goes, and no plan is left', { skip }, async (t) => {
  const both = await two(t, slow);
  const { a } = both;
  for (const cancel of [false, true]) {
    const cli = startCli(t, command(both, '--prepare=3m'));
    await cli.says(/preparing: /);
    t.same(await planned(both), evacuating);
    if (cancel) await a.client.stopEvacuation(true);
    else cli.kill('SIGINT');
    const { code, stdout, stderr } = await cli.finished;
    t.equal(code, 1, stderr);
    t.match(JSON.parse(stdout), { state: 'ended', totals: { moved: 0, stay: 2 }, preparation: { ended: 'stopped' } });
    t.same(await planned(both), [[], []]);
    await allAt(t, a, a);
  }
  const cli = startCli(t, command(both, '--prepare=3m'));
  await cli.says(/preparing: /);
  t.equal(await a.stop(), 0);
  t.same((await both.b.client.listPlans()).plans, []);
  await a.restart();
  t.match((await a.client.listGuests()).map(({ name }) => name).sort(), ['one', 'two']);
  await t.rejects(a.client.showEvacuation(), { code: 'PT_EVACUATION_UNKNOWN' });
});
