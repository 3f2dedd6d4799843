/** Guests of one domain find each other's pages at the destination, and what is not there comes from the source. */
import t, { type Test } from 'tap';
import { cluster as makeCluster, type TestAgent } from '../support/cluster.ts';
import { guestFaults, migrate, reportFaults, startGuest, stillLeft } from '../support/migrate.ts';
import type { MigrationReport } from '../../src/migration/types.ts';

t.setTimeout(300_000);

const SECRET = '5e'.repeat(32);
process.env['PAGETIDE_TEST_DOMAINS'] = JSON.stringify({ shop: SECRET, other: 'a7'.repeat(32) });

/** Two guests like that have the same pages, but for what they wrote since. */
const alike = { memory: '16M', seed: 7, writeRate: 200, readRate: 2000, workingSet: 0.2, threads: 2 };

function pair(t: Test, cache: Record<string, unknown> = { size: '64M' }): Promise<[TestAgent, TestAgent]> {
  const cluster = makeCluster(t);
  t.teardown(async () => {
    if (t.passing()) return;
    for (const agent of cluster.agents) t.comment([`log of ${agent.name}:`, ...agent.log().slice(-30)].join('\n'));
    t.comment(await stillLeft(cluster));
  });
  return Promise.all([cluster.agent('a', { cache }), cluster.agent('b', { cache })]);
}

/** Moves it, and checks everything that any report must keep to. */
async function moved(t: Test, from: TestAgent, to: TestAgent, guest: string): Promise<MigrationReport> {
  const { last } = await migrate(from, to, guest);
  t.equal(last.progress.phase, 'done', `${guest} has moved: ${JSON.stringify(last.error)}`);
  t.same(reportFaults(last.report), [], 'the report is sound');
  t.equal(last.report?.verified, true, 'the guest found every page right');
  t.same(await guestFaults(to, guest), []);
  t.comment(`${guest}: ${JSON.stringify(last.report?.frames)} ${JSON.stringify(last.report?.bytes)}`);
  return last.report!;
}

void t.test("a sibling's migration takes most from the cache", async (t) => {
  const [a, b] = await pair(t);
  await startGuest(a, 'first', alike, 'shop');
  await startGuest(a, 'second', alike, 'shop');
  await startGuest(a, 'stranger', alike, 'other');
  await startGuest(a, 'loner', alike);
  const cold = await moved(t, a, b, 'first');
  t.equal(cold.frames.cache, 0, 'a cold cache has nothing');
  const warm = await moved(t, a, b, 'second');
  const data = warm.frames.total - warm.frames.zero;
  t.ok(warm.frames.cache > data * 0.7, `${warm.frames.cache} of ${data} frames from the cache`);
  t.ok(warm.bytes.wire < cold.bytes.wire / 2, `${warm.bytes.wire} bytes, ${cold.bytes.wire} when it was cold`);
  for (const guest of ['stranger', 'loner']) {
    const { frames } = await moved(t, a, b, guest);
    t.equal(frames.cache, 0, `${guest} shares nothing with them`);
  }
  t.equal((await b.client.showGuest('second')).domain, 'shop');
});
