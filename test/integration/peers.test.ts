/** Pages from hosts that are neither the source nor the destination. */
import t, { type Test } from 'tap';
import { skipTracking } from '../pages/guest-support.ts';
import type { TestAgent } from '../support/cluster.ts';
import { share } from '../support/domains.ts';
import { startLiar } from '../support/liar.ts';
import { begin, guestFaults, reaches, startGuest, until } from '../support/migrate.ts';
import { clusterOf, sound } from '../support/sound.ts';
import { TcpProxy } from '../support/tcp-proxy.ts';

t.setTimeout(900_000);

const MIB = 2 ** 20;
/** Two guests like that have the same pages, but for what they wrote since. */
const alike = { memory: '16M', seed: 7, writeRate: 200, readRate: 2000, workingSet: 0.2, threads: 2 };
const quiet = { watch: { cpu: 0 } };
const cached = { ...quiet, cache: { size: '24M' } };

/** Puts a guest's pages into the cache of the agent that it runs on. */
async function warm(agent: TestAgent, guest: string): Promise<void> {
  const { pages } = await agent.client.warmCache({ domain: 'shop', guest });
  t.comment(`${pages} pages of ${guest} at ${agent.name}`);
}

/** Source, destination, and a third host with a sibling of the guest. */
async function three(
  t: Test,
  third: Record<string, unknown> = cached,
  peers: Record<string, unknown> = { waitMs: 20_000 },
): Promise<[TestAgent, TestAgent, TestAgent]> {
  const cluster = clusterOf(t);
  const [a, b, c] = await Promise.all([
    cluster.agent('a', quiet),
    // so slowly that the third host is there before it is over, on a busy machine too
    cluster.agent('b', { ...quiet, fill: { bandwidth: 3 * MIB }, peers }),
    cluster.agent('c', third),
  ]);
  await share('shop', b, a, c);
  await startGuest(a, 'guest', alike, 'shop');
  await startGuest(c, 'sibling', alike, 'shop');
  return [a, b, c];
}

void t.test('a third host that has the pages in its cache gives most of them', async (t) => {
  const [a, b, c] = await three(t);
  await warm(c, 'sibling');
  const { frames } = await sound(t, await begin(a, b, 'guest'), a, b, 'guest');
  const data = frames.total - frames.zero;
  t.ok(frames.peer > data / 2, `${frames.peer} of ${data} frames from the third host`);
  const text = await (await fetch(`${c.url}/metrics`)).text();
  const sent = Number(/^pagetide_peer_pages_total\{what="sent"\} (\d+)/m.exec(text)?.[1]);
  t.ok(sent > data / 2, `which counted ${sent}`);
});

void t.test('or in a guest that runs there', { skip: skipTracking }, async (t) => {
  const [a, b, c] = await three(t, { watch: { cpu: 1, intervalMs: 10 } });
  await until('the sibling is tagged', () =>
    c.log().some((line) => line.includes('are tagged') && line.includes('"sibling"')),
  );
  const { frames } = await sound(t, await begin(a, b, 'guest'), a, b, 'guest');
  const data = frames.total - frames.zero;
  t.ok(frames.peer > data / 2, `${frames.peer} of ${data} frames from the third host's guest`);
  t.same(await guestFaults(c, 'sibling'), [], 'which is as it was');
});

void t.test('one that sends wrong pages is found out, and left out; the guest gets none of them', async (t) => {
  const liar = await startLiar(t);
  const [a, b, c] = await three(t, { ...cached, advertise: liar.proxy.url });
  liar.proxy.target = c.ownUrl;
  await warm(c, 'sibling');
  const { frames } = await sound(t, await begin(a, b, 'guest'), a, b, 'guest');
  t.equal(frames.peer, 0);
  t.ok(liar.wrong >= 3, `${liar.wrong} wrong pages`);
  t.ok(
    b.log().some((line) => line.includes('is not asked for pages any more')),
    'the operator is told',
  );
  const text = await (await fetch(`${b.url}/metrics`)).text();
  const caught = Number(/^pagetide_page_mismatches_total\{from="peer"\} (\d+)/m.exec(text)?.[1]);
  t.ok(caught >= 3, `${caught} were counted`);
});

void t.test('one that stops in the midst costs a bounded wait', async (t) => {
  const proxy = await TcpProxy.start(t);
  const [a, b, c] = await three(t, { ...cached, advertise: proxy.url }, { waitMs: 200 });
  proxy.target = c.ownUrl;
  await warm(c, 'sibling');
  // a few batches, and then nothing more
  proxy.alter = (bytes, { kind }, seen) => (kind === 'tags' && seen > 2 * MIB ? Buffer.alloc(0) : bytes);
  const { frames } = await sound(t, await begin(a, b, 'guest'), a, b, 'guest');
  t.ok(frames.peer > 0 && frames.source > 0, `${frames.peer} from the peer, ${frames.source} from the source`);
});

void t.test('the source is gone: pages that others hold come all the same, the rest when it is back', async (t) => {
  const cluster = clusterOf(t);
  const slow = { ...quiet, fill: { bandwidth: 4 * MIB } };
  const [a, b, c] = await Promise.all([
    cluster.agent('a', quiet),
    cluster.agent('b', slow),
    cluster.agent('c', cached),
  ]);
  await share('shop', b, a, c);
  await startGuest(a, 'guest', { ...alike, readRate: 200 }, 'shop');
  await startGuest(c, 'sibling', alike, 'shop');
  await warm(c, 'sibling');
  const id = await begin(a, b, 'guest');
  const { progress } = await reaches(a.client, id, 'serving');
  await a.kill();
  const present = async (): Promise<number> => (await b.client.listMigrations()).at(-1)!.progress.framesPresent;
  const before = await present();
  t.ok(before < progress.framesTotal * 0.9, `${before} of ${progress.framesTotal} frames had come`);
  let last = before;
  // goes on for as long as anything comes
  await until('no more comes', async () => {
    await new Promise((resolve) => setTimeout(resolve, 1_500));
    const now = await present();
    const stands = now === last;
    last = now;
    return stands;
  });
  // not what the two guests have written: the more, the slower the machine is, but two fifths of their memory at most
  t.ok(
    last - before > (progress.framesTotal - before) / 2 && last < progress.framesTotal,
    `${last} of ${progress.framesTotal} without it`,
  );
  await a.restart();
  await until('it is over', async () => (await b.client.listMigrations()).at(-1)!.progress.phase === 'done');
  t.same(await guestFaults(b, 'guest'), []);
});

void t.test('hosts that do not have the domain, or are told not to, give nothing', async (t) => {
  const cluster = clusterOf(t);
  const [a, b, c] = await Promise.all([
    cluster.agent('a', quiet),
    cluster.agent('b', quiet),
    cluster.agent('c', { ...cached, peers: { serve: false } }),
  ]);
  await share('shop', b, a, c);
  await startGuest(c, 'sibling', alike, 'shop');
  await warm(c, 'sibling');
  await startGuest(a, 'guest', alike, 'shop');
  const { frames } = await sound(t, await begin(a, b, 'guest'), a, b, 'guest');
  t.equal(frames.peer, 0, 'it does not serve');
  await b.client.removeGuest('guest');

  const [d, e] = await Promise.all([cluster.agent('d', cached), cluster.agent('e', { ...quiet, peers: { most: 0 } })]);
  await share('bank', d, a, e);
  await startGuest(d, 'teller', alike, 'bank');
  await d.client.warmCache({ domain: 'bank', guest: 'teller' });
  await startGuest(a, 'clerk', alike, 'bank');
  const asked = await sound(t, await begin(a, e, 'clerk'), a, e, 'clerk');
  t.equal(asked.frames.peer, 0, 'it does not ask');
});
