/** The distributor at a host `c`, with a directory in memory, a cache and a bringer that are told what to do. */
import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import t from 'tap';
import { began, keysOf, planned, range, tagsOf, until, World } from './support.ts';

const PAGE = 4096;

void t.test('what like guests elsewhere hold is brought, from those who hold it', async (t) => {
  const world = await World.make(t, ['d']);
  await world.like('d', tagsOf(...range(1, 3000)), { a: 1, b: 1 });
  const distributor = await world.distributor();
  await began(distributor);
  const { heldPages, heldBytes, totals, lastPlan, domains, state } = distributor.status();
  t.equal(state, 'idle');
  t.same([heldPages, heldBytes, totals.broughtPages], [3000, 3000 * PAGE, 3000]);
  t.match(lastPlan, { candidates: 3000, chosen: 3000, bring: 3000, leaving: 0, away: [], complete: true });
  t.match(domains, [{ domain: 'd', heldPages: 3000, spentBytes: 6_000_000, directory: { reachable: true } }]);
  t.same([...world.bringer.errands[0]!.urls], ['http://a', 'http://b']);
  t.same([...world.bringer.errands[0]!.first.subarray(0, 3)], [0, 2, 4], 'both hold each');
  t.ok(world.bringer.errands.every(({ tags }) => tags.length / 16 <= 1024));
  await planned(world, distributor);
  t.match(distributor.status().lastPlan, { bring: 0, leaving: 0, chosen: 3000 }, 'the next plan has nothing to do');
  t.match(await distributor.explain('d', tagsOf(1, 2, 9999)), {
    ...{ pages: 3, brought: 2, cache: 2, queued: 0, missing: 1, guests: 0, hints: [] },
    decisions: [
      { decision: 'keep', reason: 'important', pages: 2 },
      { decision: 'skip', reason: 'unknown', pages: 1 },
    ],
  });
});

void t.test('pages that are in the cache anyway are not its business', async (t) => {
  const world = await World.make(t, ['d']);
  const tags = tagsOf(...range(1, 10));
  await world.like('d', tags, { a: 2, b: 2 });
  for (const key of keysOf(tags.subarray(0, 64))) world.cache.pages.add(key);
  const distributor = await world.distributor();
  await began(distributor);
  t.equal(distributor.status().heldPages, 6);
  t.match((await distributor.explain('d', tags)).decisions, [
    { reason: 'in the cache anyway', pages: 4 },
    { pages: 6 },
  ]);
  await distributor.setBudget(0);
  t.notOk(
    keysOf(tags.subarray(0, 64)).some((key) => world.cache.values.has(key)),
    'nor do they leave',
  );
});

void t.test('a budget below what is held: the least important leave at once', async (t) => {
  const world = await World.make(t, ['d']);
  await world.like('d', tagsOf(...range(1, 20)), { a: 1, b: 1 });
  await world.like('d', tagsOf(...range(101, 20)), { a: 1, b: 4 });
  const distributor = await world.distributor();
  await began(distributor);
  t.equal(distributor.status().heldPages, 40);
  await distributor.setBudget(25 * PAGE);
  t.equal(distributor.status().heldPages, 25);
  t.match(distributor.status().totals, { leftPages: 15 });
  const left = new Set([...world.cache.values].filter(([, value]) => value === 0).map(([key]) => key));
  t.ok(
    [...left].every((key) => keysOf(tagsOf(...range(1, 20))).includes(key)),
    'those that fewer hold',
  );
  await planned(world, distributor);
  t.equal(distributor.status().heldPages, 25, 'and the plan agrees');
  await distributor.setBudget(0);
  t.match(distributor.status(), { state: 'off', offBecause: 'no budget', heldPages: 0 });
});

void t.test('a domain that is removed while its pages flow', async (t) => {
  const world = await World.make(t, ['d', 'e']);
  await world.like('d', tagsOf(...range(1, 50)), { a: 4, b: 4 });
  await world.like('e', tagsOf(...range(1001, 50)), { a: 1, b: 1 });
  let open: () => void = () => undefined;
  world.bringer.gate = new Promise((resolve) => (open = resolve));
  const distributor = await world.distributor();
  await until(() => world.bringer.errands.length === 2);
  t.same(
    world.bringer.errands.map(({ domain }) => domain.name),
    ['d', 'e'],
    'the most important first, the next beside it',
  );
  const [removed] = world.domains.splice(0, 1);
  const gone = distributor.domainRemoved(removed!);
  world.bringer.gate = undefined;
  open();
  await gone;
  await began(distributor);
  t.match(distributor.status(), { heldPages: 50, domains: [{ domain: 'e', heldPages: 50 }] });
  t.equal(world.bringer.errands.filter(({ domain }) => domain.name === 'd').length, 1);
  await planned(world, distributor);
  t.equal(distributor.status().domains.length, 1);
});

void t.test('the next errand is given while one is under way; a third is not', async (t) => {
  const world = await World.make(t, ['d']);
  await world.like('d', tagsOf(...range(1, 3000)), { a: 4, b: 4 });
  let open: () => void = () => undefined;
  world.bringer.gate = new Promise((resolve) => (open = resolve));
  const distributor = await world.distributor();
  await until(() => world.bringer.errands.length === 2);
  t.match(distributor.status(), { state: 'bringing', heldPages: 0 });
  world.bringer.gate = undefined;
  open();
  await began(distributor);
  t.equal(distributor.status().heldPages, 3000);
  const keys = world.bringer.errands.flatMap(({ tags }) => keysOf(tags));
  t.equal(new Set(keys).size, keys.length, 'each page is in one of them');
});

void t.test('the directory of one domain goes away and comes back', async (t) => {
  const world = await World.make(t, ['d', 'e']);
  await world.like('d', tagsOf(...range(1, 20)), { a: 2, b: 2 });
  await world.like('e', tagsOf(...range(101, 20)), { a: 2, b: 2 });
  const distributor = await world.distributor();
  await began(distributor);
  world.away.add('d');
  await world.like('e', tagsOf(...range(201, 5)), { a: 2, b: 2 });
  await planned(world, distributor);
  t.match(distributor.status(), { heldPages: 45, state: 'idle', lastPlan: { away: ['d'] } });
  world.away.add('e');
  world.clock.advance(24 * 3_600_000);
  await planned(world, distributor);
  t.match(distributor.status(), { heldPages: 45, state: 'directory-away' }, 'nothing leaves for that, however long');
  world.away.clear();
  await planned(world, distributor);
  t.match(distributor.status(), { heldPages: 45, state: 'idle' });
});

void t.test('a directory that was emptied: what is held stays for a while, and leaves then', async (t) => {
  const world = await World.make(t, ['d']);
  await world.like('d', tagsOf(...range(1, 20)), { a: 2, b: 2 });
  const distributor = await world.distributor();
  await began(distributor);
  await world.directory.empty();
  world.forgetReports();
  await planned(world, distributor);
  t.equal(distributor.status().heldPages, 20);
  await world.like('d', tagsOf(...range(1, 10)), { a: 2, b: 2 });
  await planned(world, distributor);
  t.equal(distributor.status().heldPages, 20);
  for (let minute = 0; minute < 10; minute++) await planned(world, distributor);
  t.equal(distributor.status().heldPages, 10, 'those that it was told of again');
});

void t.test('pause, rates and budget outlive a restart, and what is held', async (t) => {
  const world = await World.make(t, ['d']);
  await world.like('d', tagsOf(...range(1, 20)), { a: 2, b: 2 });
  const first = await world.distributor();
  await began(first);
  await first.pause();
  await first.setRates({ average: 200_000, peak: 400_000 });
  await first.setBudget(30 * PAGE);
  t.equal(first.status().state, 'paused');
  await world.like('d', tagsOf(...range(101, 20)), { a: 2, b: 2 });
  await first.close();
  const second = await world.distributor();
  t.match(second.status(), { state: 'paused', heldPages: 20, budgetBytes: 30 * PAGE, rates: { average: 200_000 } });
  t.same(world.bringer.rates, { average: 200_000, peak: 400_000 });
  t.equal(second.status().domains[0]!.spentBytes, 40_000);
  const { length } = world.bringer.errands;
  await second.resume();
  await began(second);
  t.equal(second.status().heldPages, 30);
  const keys = world.bringer.errands.slice(length).flatMap(({ tags }) => keysOf(tags));
  t.equal(keys.length, 10, 'it goes on where it was');
  await second.close();
  const path = join(world.folder, 'held');
  const bytes = await readFile(path);
  bytes[bytes.length - 50]! ^= 1;
  await writeFile(path, bytes);
  const third = await world.distributor();
  await began(third);
  t.match(third.status(), { heldPages: 10 }, 'a damaged file: 30 pages are ordinary ones of the cache');
});

void t.test('paused while pages flow', async (t) => {
  const world = await World.make(t, ['d']);
  await world.like('d', tagsOf(...range(1, 20)), { a: 2, b: 2 });
  world.bringer.gate = new Promise(() => undefined);
  const distributor = await world.distributor();
  await until(() => world.bringer.errands.length === 1);
  world.bringer.standingBack = true;
  t.equal(distributor.status().state, 'standing-back');
  world.bringer.standingBack = false;
  t.equal(distributor.status().state, 'bringing');
  await distributor.pause();
  t.equal(distributor.status().state, 'paused');
  await until(() => distributor.status().queuedPages === 20);
  t.equal((await distributor.explain('d', tagsOf(1, 20))).queued, 2, 'the errand is in the queue again');
  world.bringer.gate = undefined;
  await distributor.resume();
  await until(() => distributor.status().heldPages === 20);
});

void t.test('a holder that vanished: asked again by the next plan', async (t) => {
  const world = await World.make(t, ['d']);
  const tags = tagsOf(...range(1, 20));
  await world.like('d', tags, { a: 2, b: 2 });
  for (const key of keysOf(tags.subarray(0, 80))) world.bringer.absent.add(key);
  const distributor = await world.distributor();
  await began(distributor);
  t.match(distributor.status(), { heldPages: 15, totals: { absentPages: 5 } });
  world.bringer.absent.clear();
  await planned(world, distributor);
  t.equal(distributor.status().heldPages, 20);
});

void t.test('a clock that jumps', async (t) => {
  const world = await World.make(t, ['d']);
  await world.like('d', tagsOf(...range(1, 20)), { a: 2, b: 2 });
  const distributor = await world.distributor();
  await began(distributor);
  world.clock.advance(-900);
  await world.like('d', tagsOf(...range(101, 20)), { a: 2, b: 2 });
  world.clock.advance(900);
  await planned(world, distributor);
  t.equal(distributor.status().heldPages, 40);
  world.clock.advance(1e10);
  await planned(world, distributor);
  t.match(distributor.status(), { heldPages: 40, lastPlan: { leaving: 0 } });
});

void t.test('a hint comes and expires', async (t) => {
  const world = await World.make(t, ['d']);
  await world.like('d', tagsOf(...range(1, 20)), { a: 1, b: 1 });
  const distributor = await world.distributor();
  await began(distributor);
  const own = tagsOf(...range(500, 30));
  world.guests.set('a/g0', Buffer.concat([tagsOf(...range(1, 20)), own]));
  await world.holds('a', 'd', 'g0', own);
  await planned(world, distributor);
  t.equal(distributor.status().heldPages, 20, 'what one guest holds is not brought');
  world.hints.push({ kind: 'evacuate', host: 'a', leftMs: 3_600_000 });
  const { plans } = distributor.status().totals;
  world.clock.advance(10_000);
  await until(() => distributor.status().totals.plans > plans);
  await until(() => distributor.status().heldPages === 50);
  t.match(await distributor.explain('d', own), { brought: 30, queued: 0, hints: ['evacuate a'] });
  t.equal(await distributor.queued('d', own), 0);
  t.same([...world.bringer.errands.at(-1)!.holder], Array(30).fill(0), 'only its host has them');
  world.hints.length = 0;
  for (let minute = 0; minute < 12; minute++) await planned(world, distributor);
  t.equal(distributor.status().heldPages, 20, 'they leave when nothing speaks for them any more');

  world.hints.push({ kind: 'affinity', guest: 'g0', hosts: ['c'], leftMs: 3_600_000 });
  for (const key of keysOf(own)) world.cache.pages.delete(key);
  await planned(world, distributor);
  t.equal(distributor.status().heldPages, 50, 'an affinity names this host');
});

void t.test('what served, and what never paid', async (t) => {
  const world = await World.make(t, ['d']);
  await world.like('d', tagsOf(...range(1, 20)), { a: 2, b: 2 });
  const distributor = await world.distributor();
  await began(distributor);
  const guest = { tags: tagsOf(1, 1, 2, 3, 900) };
  await distributor.arrived('d', guest);
  t.match(distributor.status().totals, { servedPages: 3, savedBytes: 6000 }, 'each once');
  t.equal(distributor.status().domains[0]!.savedBytes, 6000);
  await distributor.arrived('d', guest);
  t.equal(distributor.status().totals.servedPages, 3, 'the first is here: it would have given them');
  await planned(world, distributor);
  await distributor.arrived('d', guest);
  t.equal(distributor.status().totals.servedPages, 6, 'no guest here has them, the directory said');
  await distributor.arrived('d', { tags: tagsOf(900) });
  await distributor.setBudget(3 * PAGE);
  t.match((await distributor.explain('d', tagsOf(1, 2, 3))).brought, 3, 'what paid stays');
  world.cache.pages.clear();
  for (const key of keysOf(tagsOf(1, 2, 3))) world.cache.pages.add(key);
  await distributor.setBudget(20 * PAGE);
  await planned(world, distributor);
  t.equal(distributor.status().heldPages, 3, 'what never paid is remembered, and not brought again');
  t.match((await distributor.explain('d', tagsOf(4, 5))).decisions, [
    { decision: 'skip', reason: 'never paid', pages: 2 },
  ]);
});

void t.test('what the cache evicted is not held any more', async (t) => {
  const world = await World.make(t, ['d']);
  await world.like('d', tagsOf(...range(1, 20)), { a: 2, b: 2 });
  const distributor = await world.distributor();
  await began(distributor);
  for (const key of keysOf(tagsOf(1, 2, 3))) world.cache.pages.delete(key);
  world.bringer.absent.add(keysOf(tagsOf(1))[0]!);
  await planned(world, distributor);
  t.match(distributor.status(), { heldPages: 19, totals: { evictedPages: 3, broughtPages: 22 } });
});
