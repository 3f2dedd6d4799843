/** Guests of one domain find each other's pages at the destination, and what is not there comes from the source. */
import {
  closeSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  statSync,
  truncateSync,
  writeFileSync,
  writeSync,
} from 'node:fs';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import type { TestAgent } from '../support/cluster.ts';
import { share } from '../support/domains.ts';
import {
  begin,
  follow,
  guestFaults,
  migrate,
  reaches,
  reportFaults,
  startGuest,
  stillLeft,
  until,
} from '../support/migrate.ts';
import { clusterOf } from '../support/sound.ts';
import type { CacheInfo } from '../../src/agent/service.ts';
import type { MigrationReport } from '../../src/migration/types.ts';

t.setTimeout(900_000);

/** Two guests like that have the same pages, but for what they wrote since. */
const alike = { memory: '16M', seed: 7, writeRate: 200, readRate: 2000, workingSet: 0.2, threads: 2 };

/** Of whom this is about the cache alone: they take nothing from guests that run there. */
const alone = { watch: { cpu: 0 } };

async function pair(t: Test, cache: Record<string, unknown> = { size: '64M' }): Promise<[TestAgent, TestAgent]> {
  const cluster = clusterOf(t);
  const config = { cache, ...alone };
  const [a, b] = await Promise.all([cluster.agent('a', config), cluster.agent('b', config)]);
  for (const domain of ['shop', 'other']) await share(domain, a, b);
  return [a, b];
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

/** Resolves when the agent has kept what that guest left behind. */
async function kept(agent: TestAgent, guest: string): Promise<void> {
  const line = (text: string): boolean => text.includes('kept what the guest left behind') && text.includes(guest);
  await until(`${agent.name} keeps ${guest}`, () => agent.log().some(line));
}

const fileOf = (agent: TestAgent): string => join(agent.memoryFolder, 'shared-pages');

async function cacheOf(agent: TestAgent): Promise<NonNullable<CacheInfo['cache']>> {
  return (await agent.client.cacheInfo()).cache!;
}

/** A guest that arrives slowly; another, alike, has not left yet. */
async function underWay(t: Test): Promise<{ a: TestAgent; b: TestAgent; id: string }> {
  const cluster = clusterOf(t);
  const config = { cache: { size: '64M' }, fill: { bandwidth: 2 * 2 ** 20 }, ...alone };
  const [a, b] = await Promise.all([cluster.agent('a', { cache: { size: '64M' } }), cluster.agent('b', config)]);
  await share('shop', a, b);
  await startGuest(a, 'first', alike, 'shop');
  await startGuest(a, 'second', alike, 'shop');
  const id = await begin(a, b, 'first');
  await reaches(a.client, id, 'serving');
  return { a, b, id };
}

void t.test('a guest that comes back costs what changed', async (t) => {
  const [a, b] = await pair(t);
  await startGuest(a, 'there', { ...alike, memory: '32M' }, 'shop');
  const cold = await moved(t, a, b, 'there');
  await kept(a, 'there');
  t.same(readdirSync(join(a.state, 'history', 'shop')), ['there.manifest']);
  const back = await moved(t, b, a, 'there');
  const data = back.frames.total - back.frames.zero;
  t.ok(back.frames.cache > data * 0.65, `${back.frames.cache} of ${data} frames from the cache`);
  t.ok(back.bytes.wire < cold.bytes.wire / 2, `${back.bytes.wire} bytes, ${cold.bytes.wire} at first`);

  // again, with agents that were killed meanwhile: cache and history are on disk
  await kept(b, 'there');
  await Promise.all([a.restart(), b.restart()]);
  const again = await moved(t, a, b, 'there');
  t.ok(again.frames.cache > data * 0.65, `${again.frames.cache} of ${data} frames from the cache of before`);
  const { used, pinned, lost } = await cacheOf(b);
  t.ok(used > data * 0.8 && !lost, `${used} pages`);
  t.equal(pinned, 0, 'nothing is pinned once it is over');
});

void t.test('chunks that the destination knows need no tags', async (t) => {
  const [a, b] = await pair(t);
  await startGuest(a, 'idle', { ...alike, writeRate: 0 }, 'shop');
  const cold = await moved(t, a, b, 'idle');
  await kept(a, 'idle');
  await b.restart(); // knows nothing of the guest's manifest but what it tags itself
  const back = await moved(t, b, a, 'idle');
  t.ok(back.bytes.manifest < cold.bytes.manifest / 4, `${back.bytes.manifest} bytes, ${cold.bytes.manifest} at first`);
  t.ok(back.frames.source < 100, `${back.frames.source} frames from the source`);
});

void t.test('guests that are all zero, all alike, or no multiple of a chunk: there and back', async (t) => {
  const cluster = clusterOf(t);
  const [a, b] = await Promise.all([
    cluster.agent('a', { cache: { size: '64M' } }),
    cluster.agent('b', { cache: { size: '64M' } }),
  ]);
  await share('shop', a, b);
  const reading = { ...alike, writeRate: 0 };
  const one = join(cluster.root, 'one-page');
  mkdirSync(one);
  writeFileSync(join(one, 'page'), Buffer.alloc(4096, 'alike'));

  /** There, and back when what it left behind is kept: then there is nothing to send but that. */
  async function thereAndBack(guest: string, options: object): Promise<MigrationReport> {
    await startGuest(a, guest, { ...reading, ...options }, 'shop');
    const there = await moved(t, a, b, guest);
    await kept(a, guest);
    const back = await moved(t, b, a, guest);
    t.equal(back.frames.total, there.frames.total);
    t.equal(back.frames.zero, there.frames.zero);
    t.equal(back.frames.cache, back.frames.total - back.frames.zero, `${guest}: all from the cache`);
    t.ok(back.bytes.manifest < 100, `${guest}: ${back.bytes.manifest} bytes of manifest, every chunk is known`);
    return there;
  }

  const zero = await thereAndBack('zero', { zeroFraction: 1 });
  t.match(zero, { frames: { total: 4096, zero: 4096, source: 0, duplicate: 0 }, bytes: { raw: 0 } });
  t.equal((await cacheOf(a)).used, 0, 'no zero page is kept');

  const same = await thereAndBack('same', { fillFrom: one, zeroFraction: 0 });
  t.equal(same.frames.zero, 0);
  // its own tables of 512 frames are not its one page, and several may be asked for before the first of them is there
  t.ok(same.frames.source < 1000, `${same.frames.source} of ${same.frames.total} frames from the source`);
  t.ok((await cacheOf(a)).used <= 9, 'the page is in the cache once');

  // a chunk and some of the next: less than a batch of the fill, an odd number, all but one frame
  for (const frames of [516, 1281, 1535]) {
    const odd = await thereAndBack(`odd-${frames}`, { memory: frames * 4096, zeroFraction: 0 });
    t.equal(odd.frames.total, frames);
  }
  t.same(await stillLeft(cluster), []);
});

void t.test('a cache that is too small: from the source, and right', async (t) => {
  const [a, b] = await pair(t, { size: '2M' });
  await startGuest(a, 'first', alike, 'shop');
  await startGuest(a, 'second', alike, 'shop');
  await moved(t, a, b, 'first');
  const { frames } = await moved(t, a, b, 'second');
  t.ok(frames.source > 2000, `${frames.source} frames from the source`);
  const { used, slots, evictions } = await cacheOf(b);
  t.ok(used <= slots && evictions > 0, `${used} of ${slots}, ${evictions} evicted`);
});

void t.test('the destination dies while a guest arrives, and goes on with its cache', async (t) => {
  const { a, b, id } = await underWay(t);
  await b.restart();
  const { last } = await follow(a.client, id);
  t.equal(last.progress.phase, 'done', JSON.stringify(last.error));
  t.same(reportFaults(last.report), []);
  t.equal(last.report?.verified, true);
  t.ok(last.report!.frames.present > 0, 'what had come before the restart counts as present');
  t.same(await guestFaults(b, 'first'), []);
  t.ok((await cacheOf(b)).used > 500, 'what came first is there still');
  t.equal((await cacheOf(b)).pinned, 0);
});

void t.test('the cache file is cut off while a guest arrives', async (t) => {
  const { a, b, id } = await underWay(t);
  truncateSync(fileOf(b), 2 ** 20);
  const { last } = await follow(a.client, id);
  t.equal(last.progress.phase, 'done', JSON.stringify(last.error));
  t.same(reportFaults(last.report), []);
  t.equal(last.report?.verified, true);
  t.same(await guestFaults(b, 'first'), []);
  await until('it is told', () => b.log().some((line) => line.includes('was cut off')));
  t.equal((await cacheOf(b)).lost, true);
  await moved(t, a, b, 'second');

  await b.stop();
  await b.restart();
  t.ok(
    b.log().some((line) => line.includes('made anew')),
    'the next agent makes it anew',
  );
  t.match(await cacheOf(b), { used: 0, lost: false });
});

void t.test('pages that rotted in the file are dropped, not served', async (t) => {
  const [a, b] = await pair(t);
  await startGuest(a, 'first', alike, 'shop');
  await startGuest(a, 'second', alike, 'shop');
  await moved(t, a, b, 'first');
  await b.stop();
  const { size } = statSync(fileOf(b));
  const file = openSync(fileOf(b), 'r+');
  // the same byte of every other page; those of the headers before them lie in the first MiB
  const byte = Buffer.from([0x5a]);
  for (let at = 2 ** 20; at < size; at += 2 * 4096) writeSync(file, byte, 0, 1, at + 77);
  closeSync(file);
  await b.restart();
  const { frames } = await moved(t, a, b, 'second');
  const { dropped } = await cacheOf(b);
  t.ok(dropped > 1000, `${dropped} pages dropped`);
  t.ok(frames.cache > 500 && frames.source > 1000, `${frames.cache} from the cache, ${frames.source} from the source`);
});

void t.test('files that are not to be used are refused', async (t) => {
  const cluster = clusterOf(t);
  const a = await cluster.agent('a', { cache: { size: '4M' } });
  await t.rejects(cluster.agent('b', { cache: { size: '4M', path: fileOf(a) } }), /PT_CACHE_IN_USE/);
  const mine = join(cluster.root, 'notes');
  writeFileSync(mine, 'not a cache');
  await t.rejects(cluster.agent('c', { cache: { size: '4M', path: mine } }), /PT_CACHE_FILE/);
  t.equal(readFileSync(mine, 'utf8'), 'not a cache', 'and left alone');
  const d = await cluster.agent('d', { cache: { size: '999T' } });
  t.ok(
    d.log().some((line) => line.includes('PT_NO_SPACE')),
    'without room the agent does without',
  );
  const { cache, resident } = await d.client.cacheInfo();
  t.equal(cache, undefined);
  t.match(resident, { files: 0, hits: 0 }, 'what its guests hold is told all the same');
  await t.rejects(d.client.clearCache(), { code: 'PT_NO_CACHE' });
});

void t.test('both hosts must have the same domain; the guest stays where it is', async (t) => {
  const cluster = clusterOf(t);
  const a = await cluster.agent('a', { cache: { size: '16M' } });
  const b = await cluster.agent('b');
  const c = await cluster.agent('c');
  await share('shop', a);
  await share('shop', b); // another of that name
  await share('other', a, c);
  await startGuest(a, 'guest', alike, 'shop');
  for (const [to, code] of [
    [b, 'PT_DOMAIN_SECRET'],
    [c, 'PT_DOMAIN_UNKNOWN'],
  ] as const) {
    const { last } = await migrate(a, to, 'guest');
    t.match(last, { progress: { phase: 'failed' }, error: { code } });
    t.same(await guestFaults(a, 'guest'), []);
  }
  await t.rejects(startGuest(a, 'lost', alike, 'nowhere'), { code: 'PT_DOMAIN_UNKNOWN' });
  t.same(await stillLeft(cluster), []);
});

void t.test('a cache is warmed from guests and files, and cleared', async (t) => {
  const [a, b] = await pair(t);
  await startGuest(a, 'web', alike, 'shop');
  await startGuest(b, 'template', { ...alike, writeRate: 0 }, 'shop');
  const first = await b.client.warmCache({ domain: 'shop', guest: 'template' });
  t.ok(first.inserted > 2000 && first.refused === 0, JSON.stringify(first));
  const { files } = await b.client.showGuest('template');
  const second = await b.client.warmCache({ domain: 'shop', file: files[0]!.path });
  t.match(second, { pages: first.pages, inserted: 0, present: first.pages });
  const { frames } = await moved(t, a, b, 'web');
  const data = frames.total - frames.zero;
  t.ok(frames.cache > data * 0.7, `${frames.cache} of ${data} frames from the cache`);

  await t.rejects(b.client.warmCache({ domain: 'other', guest: 'template' }), { code: 'PT_BAD_ARGUMENT' });
  await t.rejects(b.client.warmCache({ domain: 'shop' }), { code: 'PT_BAD_ARGUMENT' });
  await t.rejects(b.client.warmCache({ domain: 'shop', file: '/dev/null' }), { code: 'PT_MEMORY_FILE' });
  await t.rejects(b.client.warmCache({ domain: 'shop', file: 'x/y' }), { code: 'PT_BAD_ARGUMENT' });
  await t.rejects(b.client.warmCache({ domain: 'nowhere', file: '/dev/null' }), { code: 'PT_DOMAIN_UNKNOWN' });
  const { used } = await cacheOf(b);
  t.match(await b.client.clearCache(), { erased: used });
  t.equal((await cacheOf(b)).used, 0);
});
