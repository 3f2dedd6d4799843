/** Guests of one domain that run on one host: the one that arrives has its pages from the others' memory. */
import { readFileSync } from 'node:fs';
import t, { type Test } from 'tap';
import { native } from '../../src/memory/native.ts';
import type { MigrationReport } from '../../src/migration/types.ts';
import { skipTracking as skip } from '../pages/guest-support.ts';
import type { TestAgent } from '../support/cluster.ts';
import { share } from '../support/domains.ts';
import { begin, guestFaults, migrate, reaches, startGuest, until } from '../support/migrate.ts';
import { clusterOf, sound } from '../support/sound.ts';

t.setTimeout(900_000);

/** Two guests like that have the same pages, but for what they wrote since. */
const alike = { memory: '16M', seed: 7, writeRate: 200, readRate: 2000, workingSet: 0.2, threads: 2 };
const brisk = { watch: { cpu: 1, intervalMs: 10 } };

async function pair(t: Test, more: Record<string, unknown> = {}): Promise<[TestAgent, TestAgent]> {
  const cluster = clusterOf(t);
  const config = { ...brisk, ...more };
  const [a, b] = await Promise.all([cluster.agent('a', config), cluster.agent('b', config)]);
  for (const domain of ['shop', 'other']) await share(domain, a, b);
  return [a, b];
}

/** Times that the agent has told of this guest that all of its pages are tagged. */
function taggings(agent: TestAgent, guest: string): number {
  return agent.log().filter((line) => line.includes('are tagged') && line.includes(`"${guest}"`)).length;
}

/** Resolves when all pages of the guest are in the agent's resident index, once more than `before`. */
function tagged(agent: TestAgent, guest: string, before = 0): Promise<void> {
  return until(`${agent.name} has tagged ${guest}`, () => taggings(agent, guest) > before);
}

async function pidOf(agent: TestAgent, guest: string): Promise<number> {
  return (await agent.client.showGuest(guest)).pid;
}

async function moved(t: Test, from: TestAgent, to: TestAgent, guest: string): Promise<MigrationReport> {
  return sound(t, await begin(from, to, guest), from, to, guest);
}

void t.test('a sibling that runs there has most of the pages', { skip }, async (t) => {
  const [a, b] = await pair(t);
  for (const guest of ['first', 'second']) await startGuest(a, guest, alike, 'shop');
  await startGuest(a, 'stranger', alike, 'other');
  await startGuest(a, 'loner', alike);
  await tagged(a, 'first');
  const cold = await moved(t, a, b, 'first');
  t.equal(cold.frames.resident, 0, 'nobody else is there');
  await tagged(b, 'first');
  const warm = await moved(t, a, b, 'second');
  const data = warm.frames.total - warm.frames.zero;
  t.ok(warm.frames.resident > data * 0.7, `${warm.frames.resident} of ${data} frames from the sibling`);
  t.equal(warm.frames.cache, 0, 'there is no cache');
  const { cache, resident } = await b.client.cacheInfo();
  t.equal(cache, undefined);
  t.ok(resident!.hits >= warm.frames.resident && resident!.listed > data * 0.7, JSON.stringify(resident));
  const metrics = await (await fetch(`${b.url}/metrics`)).text();
  t.match(metrics, /^pagetide_resident_files [12]$/m);
  t.match(metrics, /^pagetide_resident_frames\{kind="listed"\} [1-9]/m);
  t.match(metrics, new RegExp(`^pagetide_resident_events_total\\{event="hits"\\} ${resident!.hits}$`, 'm'));
  t.ok(warm.bytes.wire < cold.bytes.wire / 2, `${warm.bytes.wire} bytes, ${cold.bytes.wire} at first`);
  t.same(await guestFaults(b, 'first'), [], 'the sibling is as it was');
  for (const guest of ['stranger', 'loner']) {
    const { frames } = await moved(t, a, b, guest);
    t.equal(frames.resident, 0, `${guest} shares nothing with them`);
  }
  // and back, by the tags that the watch has made
  await tagged(b, 'second');
  const back = await moved(t, b, a, 'second');
  t.equal(back.frames.resident, 0, 'no sibling is left there');
});

void t.test('together with a cache: each gives what the other lacks', { skip }, async (t) => {
  const [a, b] = await pair(t, { cache: { size: '4M' } });
  for (const guest of ['first', 'second']) await startGuest(a, guest, alike, 'shop');
  await moved(t, a, b, 'first');
  await tagged(b, 'first');
  const { frames } = await moved(t, a, b, 'second');
  const data = frames.total - frames.zero;
  t.ok(frames.cache > 100, `${frames.cache} frames from the cache`);
  t.ok(frames.resident + frames.cache > data * 0.7, `and ${frames.resident} from the sibling, of ${data}`);
});

void t.test('a guest that has just arrived is of use before its memory was tagged', { skip }, async (t) => {
  const cluster = clusterOf(t);
  // it would take a minute
  const slow = { watch: { cpu: 0.0002, intervalMs: 10 } };
  const [a, b] = await Promise.all([cluster.agent('a', brisk), cluster.agent('b', slow)]);
  await share('shop', a, b);
  for (const guest of ['first', 'second']) await startGuest(a, guest, alike, 'shop');
  const cold = await moved(t, a, b, 'first');
  const data = cold.frames.total - cold.frames.zero;
  const listed = async (): Promise<number> => (await b.client.cacheInfo()).resident!.listed;
  await until('what it came with is listed', async () => (await listed()) >= data);
  const { frames } = await moved(t, a, b, 'second');
  t.equal(taggings(b, 'first'), 0, 'it is not tagged yet');
  // what it has written since it came, to where nothing was known of writes, is missed
  t.ok(frames.resident > data * 0.5, `${frames.resident} of ${data} frames from the sibling`);
  t.same(await guestFaults(b, 'first'), []);
  const { last } = await migrate(b, a, 'first');
  t.match(
    last,
    { progress: { phase: 'done' }, report: { verified: true } },
    'and by what it is itself, it leaves again',
  );
});

void t.test('the sibling leaves, is removed or dies while pages are taken from it', { skip }, async (t) => {
  const cluster = clusterOf(t);
  const slow = { ...brisk, fill: { bandwidth: 4 * 2 ** 20 } };
  const [a, b] = await Promise.all([cluster.agent('a', brisk), cluster.agent('b', slow)]);
  await share('shop', a, b);
  const ends = {
    removed: (name: string) => b.client.removeGuest(name),
    killed: async (name: string) => process.kill(await pidOf(b, name), 'SIGKILL'),
    left: (name: string) => migrate(b, a, name),
  };
  for (const [how, end] of Object.entries(ends)) {
    const sibling = `sibling-${how}`;
    await startGuest(b, sibling, alike, 'shop');
    await tagged(b, sibling);
    // some of its pages are the sibling's, the others have to come, slowly
    const guest = `guest-${how}`;
    await startGuest(a, guest, { ...alike, writeRate: 4000, workingSet: 0.5 }, 'shop');
    const id = await begin(a, b, guest);
    await reaches(a.client, id, 'serving');
    await end(sibling);
    const { frames } = await sound(t, id, a, b, guest);
    t.ok(frames.source > 0, `${how}: ${frames.resident} frames from the sibling, ${frames.source} from the source`);
    await b.client.removeGuest(guest);
  }
});

void t.test('watching begins and ends with the guest, and leaves nothing in it', { skip }, async (t) => {
  const [a, b] = await pair(t);
  await startGuest(a, 'guest', alike, 'shop');
  await startGuest(a, 'loner', alike);
  await tagged(a, 'guest');
  const pid = await pidOf(a, 'guest');
  const trackers = (): number => native().findUserfaults(pid).length;
  t.equal(trackers(), 1);
  t.equal(native().findUserfaults(await pidOf(a, 'loner')).length, 0, 'a guest of no domain is not watched');

  // a migration that fails takes the tracker, and gives the guest back to be watched
  await b.stop();
  const { last } = await migrate(a, b.url, 'guest');
  t.equal(last.progress.phase, 'failed');
  await tagged(a, 'guest', 1);
  t.equal(trackers(), 1);
  t.same(await guestFaults(a, 'guest'), []);

  // an agent that is killed leaves its tracker, which the next one closes and makes anew
  const before = taggings(a, 'guest');
  await a.restart();
  await tagged(a, 'guest', before);
  t.equal(trackers(), 1);
  t.same(await guestFaults(a, 'guest'), []);

  await a.stop();
  t.equal(trackers(), 0, 'one that ends leaves none');
  t.ok(readFileSync(`/proc/${pid}/status`, 'utf8').includes('State'), 'the guest lives on');
  await a.restart();
});
