/** What the distributor makes of pages that could not be brought as planned, with pages from real page servers where it matters; and what a crash leaves. */
import { closeSync, openSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import { ResidentIndex } from '../../src/pages/resident.ts';
import { TAG_BYTES, TAG_PAGE } from '../../src/pages/tags.ts';
import { startLiar } from '../support/liar.ts';
import { folder } from '../transport/support.ts';
import { holder, keyOf, tagged } from '../transport/tag-support.ts';
import { puller } from './bring-support.ts';
import { began, keysOf, planned, range, tagsOf, until, World } from './support.ts';

t.setTimeout(120_000);

void t.test('a cache without room: nothing more is asked for until the next plan', async (t) => {
  const world = await World.make(t, ['d']);
  await world.like('d', tagsOf(...range(1, 5000)), { a: 2, b: 2 });
  world.bringer.room = 1500;
  const distributor = await world.distributor();
  await began(distributor);
  t.match(distributor.status(), { state: 'idle', heldPages: 1500, queuedPages: 0, totals: { broughtPages: 1500 } });
  t.equal(distributor.status().domains[0]!.spentBytes, 1500 * 2000, 'pages without room are no page brought');
  const asked = world.bringer.errands.reduce((sum, { tags }) => sum + tags.length / TAG_BYTES, 0);
  t.ok(asked <= 3 * 1024, `${asked} pages: the errand that found it, and one beside it`);
  world.bringer.room = Infinity;
  await planned(world, distributor);
  t.equal(distributor.status().heldPages, 5000);
});

void t.test('a holder that sends wrong pages: counted, none gets in, another is asked', async (t) => {
  const here = puller(t);
  const world = await World.make(t, []);
  world.domains.push(here.domain);
  const [from, other] = await Promise.all([holder(t), holder(t)]);
  const { pages, tags } = tagged(from.key, 300);
  for (const one of [from, other]) one.hold(pages, tags);
  const liar = await startLiar(t);
  liar.proxy.target = from.url;
  world.urls.set('a', liar.proxy.url).set('b', other.url);
  const alone = tags.subarray(0, 40 * TAG_BYTES);
  await world.like('d', alone, { a: 3 });
  const distributor = await world.distributor({ cache: here.cache, bringer: here.bringer });
  await began(distributor);
  const { wrongPages } = distributor.status().totals;
  t.ok(wrongPages > 0 && wrongPages <= liar.wrong, `${wrongPages} wrong pages`);
  t.match(distributor.status(), { heldPages: 0, totals: { broughtPages: 0, absentPages: 40 } });
  t.equal(distributor.status().domains[0]!.spentBytes, 0);
  t.equal(here.cache.stats().used, 0);

  await world.like('d', tags, { b: 3 });
  const streams = liar.proxy.counts.tags;
  await planned(world, distributor);
  t.match(distributor.status(), { heldPages: 300, totals: { wrongPages, broughtPages: 300 } });
  t.equal(liar.proxy.counts.tags, streams, 'who lied is not asked');
  const page = Buffer.alloc(TAG_PAGE);
  for (let i = 0; i < 300; i++) {
    t.ok(here.cache.read(tags, i * TAG_BYTES, page));
    t.ok(page.equals(pages.subarray(i * TAG_PAGE, (i + 1) * TAG_PAGE)));
  }
});

void t.test('a holder that is gone before its pages are fetched', async (t) => {
  const here = puller(t, { bytes: 64 << 20 });
  const world = await World.make(t, []);
  world.domains.push(here.domain);
  const [gone, stays] = await Promise.all([holder(t), holder(t)]);
  const { pages, tags } = tagged(gone.key, 6000);
  stays.hold(pages, tags, (i) => i < 40);
  world.urls.set('a', gone.url).set('b', stays.url);
  await world.like('d', tags.subarray(0, 40 * TAG_BYTES), { a: 8, b: 8 });
  await gone.server.close();
  const distributor = await world.distributor({ cache: here.cache, bringer: here.bringer });
  await began(distributor);
  t.match(distributor.status(), { heldPages: 40, totals: { broughtPages: 40, absentPages: 0 } }, 'another has them');

  // pages that nobody else has: what is left of the plan is given up at the first errand of them
  await world.like('d', tags.subarray(40 * TAG_BYTES), { a: 2 });
  await planned(world, distributor);
  const { totals, heldPages, state } = distributor.status();
  t.same([heldPages, state], [40, 'idle']);
  t.ok(
    totals.absentPages > 0 && totals.absentPages <= 2 * 1024,
    `${totals.absentPages} of 5960: the errand that found it, and one beside it`,
  );
});

void t.test('what a guest got here meanwhile is not brought', async (t) => {
  const world = await World.make(t, ['d']);
  const key = keyOf(t, 1);
  const { pages, tags } = tagged(key, 3000);
  await world.like('d', tags, { a: 2, b: 2 });
  const index = ResidentIndex.open(4096);
  t.teardown(() => index.close());
  const file = join(folder(t), 'ram');
  writeFileSync(file, pages);
  const fd = openSync(file, 'r');
  t.teardown(() => closeSync(fd));
  const guest = index.add({ domain: 1, key, fd, frames: 3000 });
  let open: () => void = () => undefined;
  world.bringer.gate = new Promise((resolve) => (open = resolve));
  const distributor = await world.distributor({ resident: index });
  await until(() => world.bringer.errands.length === 2);
  t.equal(distributor.status().lastPlan?.bring, 3000, 'when it was planned, no guest here had any');
  const under = world.bringer.errands.flatMap(({ tags }) => keysOf(tags));
  guest.set(0, 3000, tags);
  open();
  await began(distributor);
  const brought = world.bringer.errands.flatMap(({ tags }) => keysOf(tags));
  t.same(brought, under, 'only what was under way');
  t.equal(distributor.status().heldPages, under.length);
});

void t.test('what is held is on the disk within a minute, and there after a crash', async (t) => {
  const world = await World.make(t, ['d']);
  await world.like('d', tagsOf(...range(1, 20)), { a: 2, b: 2 });
  const path = join(world.folder, 'held');
  const first = await world.distributor();
  await began(first);
  t.notOk(statSync(path, { throwIfNoEntry: false }));
  // a migration begins: errands wait, for however long
  world.bringer.gate = new Promise(() => undefined);
  await world.like('d', tagsOf(...range(101, 20)), { a: 2, b: 2 });
  first.nudge();
  await until(() => world.bringer.errands.length === 2);
  world.clock.advance(59_000);
  t.notOk(statSync(path, { throwIfNoEntry: false }));
  world.clock.advance(1000);
  await until(() => statSync(path, { throwIfNoEntry: false }) !== undefined);
  const { mtimeNs, ino } = statSync(path, { bigint: true });

  // the first is not closed: it was killed, as far as the second knows
  world.bringer.gate = undefined;
  const second = await world.distributor();
  const { heldPages, domains } = second.status();
  t.equal(heldPages, 20);
  // what was spent counts for less with time
  const { spentBytes } = domains[0]!;
  t.ok(spentBytes > 39_900 && spentBytes <= 40_000, `${spentBytes} bytes spent`);
  await second.pause();
  await second.close();
  t.match(statSync(path, { bigint: true }), { mtimeNs, ino }, 'nothing has changed: nothing is written');
});
