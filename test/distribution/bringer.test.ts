/** Pages that are brought from real page servers: spread, each once, right ones only, and how it ends. */
import t from 'tap';
import type { ErrandResult } from '../../src/distribution/bringer.ts';
import { TAG_BYTES, TAG_PAGE } from '../../src/pages/tags.ts';
import { startLiar } from '../support/liar.ts';
import { until } from '../transport/support.ts';
import { DOMAIN, NUMBER, ask, holder, pagesOf, tagged } from '../transport/tag-support.ts';
import { errand, puller, tally } from './bring-support.ts';

const SLOW = { average: 200_000, peak: 400_000 };

void t.test('several holders side by side', async (t) => {
  const here = puller(t);
  const from = await Promise.all([holder(t), holder(t), holder(t)]);
  const { pages, tags } = tagged(from[0].key, 900);
  for (const one of from) one.hold(pages, tags, (i) => i < 800);
  for (let i = 0; i < 50; i++) here.cache.insert(NUMBER, tags, i * TAG_BYTES, pages, i * TAG_PAGE);
  const urls = from.map(({ url }) => url);
  const result = await here.bringer.bring(errand(here, tags, urls));
  t.same(tally(result), { Brought: 750, Present: 50, Absent: 100 });
  t.same({ wrong: result.wrong, unreachable: result.unreachable }, { wrong: [], unreachable: [] });
  const page = Buffer.alloc(TAG_PAGE);
  for (let i = 0; i < 800; i++) {
    t.ok(here.cache.read(tags, i * TAG_BYTES, page), `page ${i}`);
    t.ok(page.equals(pages.subarray(i * TAG_PAGE, (i + 1) * TAG_PAGE)));
  }
  const sent = from.map(({ server }) => server.tagCounters());
  t.equal(
    sent.reduce((sum, { backgroundPages }) => sum + backgroundPages, 0),
    750,
    'each page once',
  );
  for (const { backgroundPages, backgroundStreams } of sent) {
    t.ok(backgroundPages > 20, `${backgroundPages} pages of one holder`);
    t.equal(backgroundStreams, 1);
  }
  const { bytesReceived, pages: brought, wrongPages } = here.bringer.stats();
  const wire = result.wireBytes.reduce((sum, bytes) => sum + bytes, 0);
  t.same({ brought, wrongPages }, { brought: 750, wrongPages: 0 });
  t.ok(wire > 750 * 1024 && wire <= bytesReceived, `${wire} of ${bytesReceived} bytes`);
  t.same(tally(await here.bringer.bring(errand(here, tags.subarray(0, 800 * TAG_BYTES), urls))), { Present: 800 });
  t.same(tally(await here.bringer.bring(errand(here, new Uint8Array(0), []))), {});
});

void t.test('a storm of the same errand asks for each page once', async (t) => {
  const here = puller(t);
  const from = await holder(t);
  const { pages, tags } = tagged(from.key, 200);
  from.hold(pages, tags);
  const results = await Promise.all(
    Array.from({ length: 100 }, () => here.bringer.bring(errand(here, tags, [from.url]))),
  );
  for (const result of results) t.notOk(result.outcome.some((outcome) => outcome > 2));
  const { tagPages, tagAbsent } = from.server.tagCounters();
  t.same({ tagPages, tagAbsent }, { tagPages: 200, tagAbsent: 0 });
});

void t.test('a holder that vanishes in the middle', async (t) => {
  const here = puller(t, { rates: { average: 4e6, peak: 8e6 } });
  const [gone, stays] = await Promise.all([holder(t), holder(t)]);
  const { pages, tags } = tagged(gone.key, 400);
  for (const one of [gone, stays]) one.hold(pages, tags);
  const nobody = 'http://127.0.0.1:1';
  const bringing = here.bringer.bring(errand(here, tags, [gone.url, stays.url, nobody]));
  await until(() => gone.server.tagCounters().tagPages > 20);
  await gone.server.close();
  const result = await bringing;
  t.same(tally(result), { Brought: 400 });
  t.same(result.unreachable.toSorted(), [gone.url, nobody].toSorted());
});

void t.test('one that sends wrong pages: none gets in, they come from elsewhere, it is left out', async (t) => {
  const here = puller(t);
  const [from, other] = await Promise.all([holder(t), holder(t)]);
  // more than the honest one is asked for at once, so that it can't have all
  const { pages, tags } = tagged(from.key, 800);
  for (const one of [from, other]) one.hold(pages, tags);
  const liar = await startLiar(t);
  liar.proxy.target = from.url;
  const goOn = other.server.standBack();
  const bringing = here.bringer.bring(errand(here, tags, [liar.proxy.url, other.url]));
  await until(() => liar.wrong > 0);
  goOn();
  const result = await bringing;
  t.same(tally(result), { Brought: 800 });
  t.equal(result.wrong[0]?.url, liar.proxy.url);
  t.ok(here.bringer.stats().wrongPages > 0);
  const page = Buffer.alloc(TAG_PAGE);
  for (let i = 0; i < 800; i++) {
    t.ok(here.cache.read(tags, i * TAG_BYTES, page));
    t.ok(page.equals(pages.subarray(i * TAG_PAGE, (i + 1) * TAG_PAGE)));
  }
  here.cache.clear();
  const before = liar.proxy.counts.tags;
  t.same(tally(await here.bringer.bring(errand(here, tags, [liar.proxy.url]))), { Absent: 800 });
  t.equal(liar.proxy.counts.tags, before, 'it is not asked again for a while');
});

void t.test('a domain that is removed while its pages come', async (t) => {
  const here = puller(t, { rates: SLOW });
  const from = await holder(t);
  const { pages, tags } = tagged(from.key, 400);
  from.hold(pages, tags);
  const bringing = here.bringer.bring(errand(here, tags, [from.url]));
  await until(() => here.cache.stats().used > 5);
  // as it is done: the key first; nobody tells the bringer
  here.cache.setKey(NUMBER, new Uint8Array());
  here.cache.removeDomain(NUMBER);
  const result = await bringing;
  t.ok(tally(result).Stopped! > 300);
  t.equal(here.cache.stats().used, 0);
  // told, while it waits for its turn
  const goOn = here.bringer.standBack();
  const waits = here.bringer.bring(errand(here, tags, [from.url]));
  const begun = performance.now();
  here.bringer.domainRemoved(NUMBER);
  t.same(tally(await waits), { Stopped: 400 });
  t.ok(performance.now() - begun < 1000);
  goOn();
  t.equal(here.cache.stats().used, 0);
  // and once it is there again
  here.cache.useKey(NUMBER, from.key);
  const again = await here.bringer.bring(errand(here, tags.subarray(0, 10 * TAG_BYTES), [from.url]));
  t.same(tally(again), { Brought: 10 });
});

void t.test('given up: soon, and only by who gave up', async (t) => {
  const here = puller(t, { rates: SLOW });
  const from = await holder(t);
  const { pages, tags } = tagged(from.key, 300);
  from.hold(pages, tags);
  const abort = new AbortController();
  const stays = tags.subarray(0, 40 * TAG_BYTES);
  const first = here.bringer.bring(errand(here, tags, [from.url]), abort.signal);
  const second = here.bringer.bring(errand(here, stays, [from.url]));
  await until(() => here.cache.stats().used > 3);
  const begun = performance.now();
  abort.abort();
  const result = await first;
  const tookMs = performance.now() - begun;
  t.ok(tally(result).Stopped! > 200);
  t.ok(tookMs < 200, `${tookMs} ms`);
  t.same(tally(await second), { Brought: 40 }, 'who still wants a page gets it');
  t.same(tally(await here.bringer.bring(errand(here, tags, [from.url]), abort.signal)), { Stopped: 300 });
  const last = here.bringer.bring(errand(here, tags, [from.url]));
  await here.bringer.close();
  t.ok(tally(await last).Stopped! > 200);
  t.same(tally(await here.bringer.bring(errand(here, tags, [from.url]))), { Stopped: 300 });
});

void t.test('either end stands back', async (t) => {
  const here = puller(t, { limits: { waitMs: 300 } });
  const [from, other] = await Promise.all([holder(t), holder(t)]);
  const { pages, tags } = tagged(from.key, 60);
  for (const one of [from, other]) one.hold(pages, tags);
  const goOn = [here.bringer.standBack(), here.bringer.standBack()];
  t.ok(here.bringer.stats().standingBack);
  let over = false;
  const bringing = here.bringer.bring(errand(here, tags, [from.url])).finally(() => (over = true));
  goOn[0]!();
  goOn[0]!();
  await ask(t, from).then((connection) => pagesOf(connection, tags));
  t.notOk(over, 'one of the two still holds it back');
  t.equal(from.server.tagCounters().backgroundStreams, 0);
  goOn[1]!();
  t.same(tally(await bringing), { Brought: 60 });

  // the holder: those who wait for a page get it all the same
  here.cache.clear();
  const go = from.server.standBack();
  const urgent = await ask(t, from);
  t.equal((await pagesOf(urgent, tags)).pages.length, pages.length);
  const result = await here.bringer.bring(errand(here, tags, [from.url, other.url]));
  t.same(tally(result), { Brought: 60 }, 'from another, after a while');
  here.cache.clear();
  t.same(tally(await puller(t, { limits: { waitMs: 200 } }).bringer.bring(errand(here, tags, [from.url]))), {
    Absent: 60,
  });
  const patient = puller(t);
  const waits = patient.bringer.bring(errand(patient, tags, [from.url]));
  const before = from.server.tagCounters().backgroundStreams;
  await until(() => from.server.tagCounters().backgroundStreams > before);
  go();
  t.same(tally(await waits), { Brought: 60 });
});

void t.test('other rates hold at once', async (t) => {
  const here = puller(t, { rates: { average: 20_000, peak: 200_000 } });
  t.throws(() => here.bringer.setRates({ average: 1e6, peak: 1000 }), { code: 'PT_BAD_ARGUMENT' });
  const from = await holder(t);
  await t.rejects(from.server.setBackgroundRates({ average: 1, peak: 1 }), { code: 'PT_BAD_ARGUMENT' });
  const { pages, tags } = tagged(from.key, 600);
  from.hold(pages, tags);
  const begun = performance.now();
  const bringing = here.bringer.bring(errand(here, tags, [from.url]));
  await until(() => here.cache.stats().used > 1);
  here.bringer.setRates({ average: 20e6, peak: 40e6 });
  t.same(tally(await bringing), { Brought: 600 });
  t.ok(performance.now() - begun < 10_000, 'at the old rate it would have taken a minute');
});

void t.test('a cache that has no slot', async (t) => {
  const here = puller(t, { bytes: 40 * 4096 });
  const from = await holder(t);
  const { pages, tags } = tagged(from.key, 600);
  from.hold(pages, tags);
  const { slots } = here.cache.stats();
  const first = tags.subarray(0, slots * TAG_BYTES);
  t.same(tally(await here.bringer.bring(errand(here, first, [from.url]))), { Brought: slots });
  const pins = here.cache.pins();
  t.equal(pins.add(first), slots);
  const result = await here.bringer.bring(errand(here, tags.subarray(slots * TAG_BYTES), [from.url]));
  t.same(tally(result), { Full: 600 - slots });
  t.ok(from.server.tagCounters().tagPages < 600, 'not all of them were sent to find that out');
  pins.release();
});

void t.test('errands that are none, holders of another secret, domains that are not here', async (t) => {
  const here = puller(t);
  const from = await holder(t, { secret: 2 });
  const { tags } = tagged(from.key, 4);
  const good = errand(here, tags, [from.url]);
  const bad: Promise<ErrandResult>[] = [
    here.bringer.bring({ ...good, tags: tags.subarray(1) }),
    here.bringer.bring({ ...good, first: new Uint32Array(2) }),
    here.bringer.bring({ ...good, first: Uint32Array.of(0, 3, 2, 3, 4) }),
    here.bringer.bring({ ...good, urls: [] }),
    here.bringer.bring({ ...good, value: 16 }),
  ];
  for (const one of bad) await t.rejects(one, { code: 'PT_BAD_ARGUMENT' });
  const result = await here.bringer.bring(good);
  t.same(tally(result), { Absent: 4 });
  t.same(result.unreachable, [from.url]);
  const openKey = (): never => {
    throw new Error('removed');
  };
  t.same(tally(await here.bringer.bring({ ...good, domain: { ...here.domain, openKey } })), { Stopped: 4 });
  // a holder with the right secret that shares nothing any more
  const lost = await holder(t);
  await lost.server.unshare(DOMAIN);
  t.same(tally(await here.bringer.bring(errand(here, tags, [lost.url]))), { Absent: 4 });
});
