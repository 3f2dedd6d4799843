/** Pages that are copied in rounds come from where they are near, as those that are served do: other hosts, guests that run here, history. */
import t, { type Test } from 'tap';
import type { MigrateRequest } from '../../src/agent/service.ts';
import type { MigrationReport } from '../../src/migration/types.ts';
import { skipTracking as skip } from '../pages/guest-support.ts';
import type { Cluster, TestAgent } from '../support/cluster.ts';
import { share } from '../support/domains.ts';
import { startLiar } from '../support/liar.ts';
import { begin, guestFaults, startGuest, stillLeft, until } from '../support/migrate.ts';
import { clusterOf, sound } from '../support/sound.ts';

t.setTimeout(600_000);

const MIB = 2 ** 20;
/** Two guests like that have the same pages, but for what they wrote since. */
const alike = { memory: '16M', seed: 7, writeRate: 200, readRate: 500, workingSet: 0.2, threads: 1 };
const quiet = { watch: { cpu: 0 } };
const brisk = { watch: { cpu: 1, intervalMs: 10 } };
const whole = { mode: 'pre-copy', maxDowntimeMs: 5_000 } as const;
/** Several rounds, as some of what was written is always lacking. */
const several = { mode: 'hybrid', maxDowntimeMs: 26, maxRounds: 3 } as const;
/** So slowly that the third host is there before it is over, on a busy machine too. */
const slow = { ...quiet, fill: { bandwidth: 4 * MIB }, peers: { waitMs: 20_000 } };
/** A destination that copies guests whole, as it can't serve them. */
const unserved = { pager: { userfaultfd: 'off' } };

type Source = 'cache' | 'resident' | 'peer';

/** Moves the guest. Most of its pages have to have come from `source`, in rounds. */
async function moves(
  t: Test,
  from: TestAgent,
  to: TestAgent,
  how: Partial<MigrateRequest>,
  source: Source,
): Promise<MigrationReport> {
  const report = await sound(t, await begin(from, to, 'guest', how), from, to, 'guest');
  t.equal(report.mode, how.mode);
  const { frames, rounds = [] } = report;
  const data = frames.total - frames.zero;
  t.ok(frames[source] > data / 2, `${frames[source]} of ${data} frames: ${source}`);
  t.ok(frames.source < data / 2, `${frames.source} from the source`);
  const copied = rounds.reduce((sum, round) => sum + round[source], 0);
  t.ok(copied > data / 2, `${copied} of them in ${rounds.length} rounds`);
  return report;
}

function tagged(agent: TestAgent, guest: string): Promise<void> {
  const line = (text: string): boolean => text.includes('are tagged') && text.includes(`"${guest}"`);
  return until(`${agent.name} has tagged ${guest}`, () => agent.log().some(line));
}

/** A guest, a destination, and a third host with a sibling of the guest in its cache. */
async function three(
  t: Test,
  second: Record<string, unknown>,
  third: Record<string, unknown> = {},
): Promise<{ made: Cluster; a: TestAgent; b: TestAgent; c: TestAgent }> {
  const made = clusterOf(t);
  const [a, b, c] = await Promise.all([
    made.agent('a', slow),
    made.agent('b', { ...slow, ...second }),
    made.agent('c', { ...quiet, cache: { size: '24M' }, ...third }),
  ]);
  // in this order: a host learns of those that have the domain when it gets it, and of others later
  await share('shop', b, c, a);
  await startGuest(a, 'guest', alike, 'shop');
  await startGuest(c, 'sibling', alike, 'shop');
  await c.client.warmCache({ domain: 'shop', guest: 'sibling' });
  return { made, a, b, c };
}

void t.test('a third host gives most pages of the rounds', async (t) => {
  const { made, a, b, c } = await three(t, unserved);
  const { faults } = await moves(t, a, b, whole, 'peer');
  t.equal(faults.count, 0, 'nothing is missing when it runs');
  await moves(t, b, a, several, 'peer');
  t.same(await guestFaults(c, 'sibling'), []);
  t.same(await stillLeft(made), []);
});

void t.test('a guest that runs there gives them', { skip }, async (t) => {
  const made = clusterOf(t);
  const [a, b] = await Promise.all([made.agent('a', brisk), made.agent('b', { ...brisk, ...unserved })]);
  await share('shop', a, b);
  const at = [
    [a, 'guest'],
    [a, 'sibling-a'],
    [b, 'sibling-b'],
  ] as const;
  for (const [agent, guest] of at) await startGuest(agent, guest, alike, 'shop');
  await Promise.all(at.map(([agent, guest]) => tagged(agent, guest)));
  const there = await moves(t, a, b, whole, 'resident');
  t.same([there.frames.cache, there.faults.count], [0, 0]);
  await moves(t, b, a, several, 'resident');
  t.same(await guestFaults(a, 'sibling-a'), [], 'which is as it was');
  t.same(await guestFaults(b, 'sibling-b'), []);
  t.same(await stillLeft(made), []);
});

void t.test('a guest that comes back finds in the rounds what it left behind', async (t) => {
  const made = clusterOf(t);
  const [a, b] = await Promise.all([
    made.agent('a', { ...quiet, ...unserved, cache: { size: '32M' } }),
    made.agent('b', quiet),
  ]);
  await share('shop', a, b);
  await startGuest(a, 'guest', alike, 'shop');
  const there = await sound(t, await begin(a, b, 'guest'), a, b, 'guest');
  t.equal(there.frames.cache, 0);
  const used = async (): Promise<number> => (await a.client.cacheInfo()).cache!.used;
  const different = there.frames.total - there.frames.zero - there.frames.duplicate;
  await until('what it left is kept', async () => (await used()) >= different * 0.9);
  const back = await moves(t, b, a, whole, 'cache');
  t.ok(back.bytes.wire < there.bytes.wire / 4, `${back.bytes.wire} bytes, ${there.bytes.wire} on its way there`);
  t.same(await stillLeft(made), []);
});

void t.test('a third host that sends wrong pages in the rounds gives none', async (t) => {
  const liar = await startLiar(t);
  const { a, b, c } = await three(t, {}, { advertise: liar.proxy.url });
  liar.proxy.target = c.ownUrl;
  const { frames, rounds = [] } = await sound(t, await begin(a, b, 'guest', several), a, b, 'guest');
  t.equal(frames.peer, 0);
  t.equal(
    rounds.reduce((sum, { peer }) => sum + peer, 0),
    0,
  );
  t.ok(liar.wrong >= 3, `${liar.wrong} wrong pages`);
});
