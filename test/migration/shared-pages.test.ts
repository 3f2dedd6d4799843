/** Domains and what is kept for them: claims, keys, warming, and that a removed domain leaves nothing. */
import { closeSync, mkdirSync, openSync, readFileSync, writeFileSync, existsSync, unlinkSync } from 'node:fs';
import { join } from 'node:path';
import { pino } from 'pino';
import t, { type Test } from 'tap';
import type { GuestRecord } from '../../src/guests/driver.ts';
import { native } from '../../src/memory/native.ts';
import { ArrivingNames, checkOffer } from '../../src/migration/arriving-names.ts';
import { checkClaim, claimDomain, type Domain, type Domains } from '../../src/migration/domains.ts';
import { SharedPages } from '../../src/migration/shared-pages.ts';
import { ChunkStore } from '../../src/pages/chunk-store.ts';
import { History } from '../../src/pages/history.ts';
import { KeepPool } from '../../src/pages/keep-pool.ts';
import { CHUNK_FRAMES, Manifest } from '../../src/pages/manifest.ts';
import { copyResident, ResidentIndex } from '../../src/pages/resident.ts';
import { encodeTagRuns } from '../../src/pages/tag-runs.ts';
import { DomainKey, TAG_BYTES, TAG_PAGE, TAG_VERSION } from '../../src/pages/tags.ts';
import { makePage, openCache } from '../pages/support.ts';
import { scratch } from '../guests/embedded-support.ts';

const peers = { most: 3, waitMs: 500 };

/** Domains 1, 2, … by name; `remove` takes one away as a store does. */
function domainsOf(
  ...names: string[]
): Domains & { remove(name: string): void; others: Map<string, { host: string; url: string }[]> } {
  const others = new Map<string, { host: string; url: string }[]>();
  const known = new Map(
    names.map((name, index): [string, Domain] => [
      name,
      {
        name,
        id: index + 1,
        mark: `${index + 1}`.padStart(32, '0'),
        openKey: () => new DomainKey(Buffer.alloc(32, name)),
      },
    ]),
  );
  const told: ((domain: Domain) => void)[] = [];
  return {
    others,
    get: (name) => known.get(name),
    members: (name) => others.get(name) ?? [],
    onRemoved: (callback) => void told.push(callback),
    remove: (name) => {
      const domain = known.get(name)!;
      known.delete(name);
      for (const tell of told) tell(domain);
    },
  };
}

function open(t: Test, domains: Domains, slots = 256) {
  const folder = scratch(t);
  const path = join(folder, 'cache');
  const cache = openCache(t, path, slots);
  const keeper = new KeepPool();
  t.teardown(() => keeper.close());
  const historyPlace = { folder: join(folder, 'history'), limits: { guests: 4, bytes: 2 ** 20 } };
  const history = new History(historyPlace.folder, historyPlace.limits);
  const chunks = new ChunkStore(2 ** 20);
  const log = pino({ level: 'silent' });
  const resident = ResidentIndex.open(4096);
  t.teardown(() => resident.close());
  const shared = new SharedPages({ domains, cache, resident, chunks, history, historyPlace, keeper, peers, log });
  return { shared, cache, resident, history, chunks, folder, path };
}

/** A memory file of pages `from` …, every fourth of them a hole; with its manifest. */
function guestOf(folder: string, name: string, domain: Domain, from: number, frames: number) {
  const path = join(folder, name);
  writeFileSync(path, '');
  const pages = new Uint8Array(frames * TAG_PAGE);
  for (let i = 0; i < frames; i++) if (i % 4 !== 3) pages.set(makePage(from + i), i * TAG_PAGE);
  writeFileSync(path, pages);
  const key = domain.openKey();
  const manifest = new Manifest(frames);
  native().tagPages(key.id, pages, frames, manifest.tags);
  key.close();
  manifest.touch(0, frames);
  const record = { files: [{ id: 'ram', path, size: frames * TAG_PAGE, offset: 0 }] } as unknown as GuestRecord;
  return { path, manifest, record };
}

/** How many of the manifest's frames the cache has. */
function held(cache: { has(tags: Uint8Array, present: Uint8Array): number }, manifest: Manifest): number {
  return cache.has(manifest.tags, new Uint8Array(manifest.frames));
}

void t.test('a claim is of one domain, one secret and one migration', (t) => {
  const mine = domainsOf('shop');
  const domain = mine.get('shop')!;
  const key = domain.openKey();
  const claim = claimDomain(domain, key, 'm1');
  key.close();
  t.equal(checkClaim(mine, claim, 'm1').id, domain.id);
  t.throws(() => checkClaim(mine, claim, 'm2'), { code: 'PT_DOMAIN_SECRET' });
  t.throws(() => checkClaim(domainsOf('other'), claim, 'm1'), { code: 'PT_DOMAIN_UNKNOWN' });
  const theirs = domainsOf('other', 'shop');
  const wrong: Domains = { ...theirs, get: () => ({ ...theirs.get('other')!, name: 'shop' }) };
  t.throws(() => checkClaim(wrong, claim, 'm1'), { code: 'PT_DOMAIN_SECRET' });
  t.throws(() => checkClaim(mine, { ...claim, proof: '' }, 'm1'), { code: 'PT_DOMAIN_SECRET' });
  t.end();
});

void t.test('what a guest leaves behind outlives its memory file', async (t) => {
  const domains = domainsOf('shop');
  const { shared, cache, history, chunks, folder } = open(t, domains);
  const domain = shared.domain('shop')!;
  const guest = guestOf(folder, 'ram', domain, 100, 64);
  const leaving = shared.leave(guest.record, 'web1', domain, guest.manifest)!;
  unlinkSync(guest.path); // as ending a VMM does
  await leaving.keep();
  t.equal(held(cache, guest.manifest), 48, 'its pages are there');
  t.equal(cache.stats().insertions, 48, 'and no zero page was looked at');
  t.equal(chunks.size, 1);
  const [past] = history.list();
  t.same(history.read(past!, () => t.fail())!.digest(), guest.manifest.digest());

  // a new agent has the chunks from the file
  const fresh = new ChunkStore(2 ** 20);
  const again = new SharedPages({
    domains,
    cache: undefined,
    resident: undefined,
    chunks: fresh,
    history,
    historyPlace: { folder: join(folder, 'history'), limits: { guests: 4, bytes: 2 ** 20 } },
    keeper: new KeepPool(),
    peers,
    log: pino({ level: 'silent' }),
  });
  await again.recall();
  t.ok(fresh.get(domain.id, guest.manifest.chunkTags(), 0));
});

void t.test('pages that are not those of the manifest are not kept, and one guest does not fill it all', async (t) => {
  const domains = domainsOf('shop');
  const { shared, cache, folder } = open(t, domains, 64);
  const domain = shared.domain('shop')!;
  const guest = guestOf(folder, 'ram', domain, 0, 32);
  const bytes = readFileSync(guest.path);
  for (let i = 0; i < 32; i += 2) bytes[i * TAG_PAGE + 5]! ^= 1;
  writeFileSync(guest.path, bytes);
  await shared.leave(guest.record, 'changed', domain, guest.manifest)!.keep();
  t.equal(held(cache, guest.manifest), 8, 'those that are right');
  t.equal(cache.stats().rejected, 16);

  const large = guestOf(folder, 'large', domain, 1000, 256);
  await shared.leave(large.record, 'large', domain, large.manifest)!.keep();
  t.equal(held(cache, large.manifest), 32, 'half of the cache');
  t.equal(held(cache, guest.manifest), 8, 'the others keep their place');
});

void t.test('a guest that is dropped is not kept', async (t) => {
  const { shared, cache, folder } = open(t, domainsOf('shop'));
  const domain = shared.domain('shop')!;
  const guest = guestOf(folder, 'ram', domain, 0, 16);
  const leaving = shared.leave(guest.record, 'web1', domain, guest.manifest)!;
  leaving.drop();
  leaving.drop();
  await leaving.keep();
  t.equal(cache.stats().insertions, 0);
  t.equal(
    shared.leave(
      { ...guest.record, files: [{ id: 'ram', path: '/nowhere/x', size: 1, offset: 0 }] },
      'x',
      domain,
      guest.manifest,
    ),
    undefined,
  );
});

void t.test('a domain that is removed leaves no page, no chunk, no manifest, and no other loses any', async (t) => {
  const domains = domainsOf('shop', 'bank');
  const { shared, cache, resident, history, chunks, folder, path } = open(t, domains);
  const shop = shared.domain('shop')!;
  const bank = shared.domain('bank')!;
  const mine = guestOf(folder, 'mine', shop, 0, 40);
  const theirs = guestOf(folder, 'theirs', bank, 0, 40); // the very same pages
  await shared.leave(mine.record, 'mine', shop, mine.manifest)!.keep();
  await shared.leave(theirs.record, 'theirs', bank, theirs.manifest)!.keep();
  t.equal(held(cache, mine.manifest), 30);
  for (const [domain, guest] of [
    [shop, mine],
    [bank, theirs],
  ] as const) {
    const [key, fd] = [domain.openKey(), openSync(guest.path, 'r')];
    resident.add({ domain: domain.id, key, fd, frames: 40 }).set(0, 40, guest.manifest.tags);
    key.close();
    closeSync(fd);
  }
  const runs = (domain: Domain, { manifest }: { manifest: Manifest }): boolean =>
    copyResident(resident.lookups(domain.id), manifest.tags, 0, new Uint8Array(TAG_PAGE));
  t.ok(runs(shop, mine));
  let told = 0;
  shared.onRemoved(() => told++);
  domains.remove('shop');
  t.equal(told, 1);
  t.notOk(runs(shop, mine), 'nor of a guest that runs here');
  t.ok(runs(bank, theirs));
  t.equal(held(cache, mine.manifest), 0);
  t.equal(held(cache, theirs.manifest), 30);
  t.equal(chunks.get(shop.id, mine.manifest.chunkTags(), 0), undefined);
  t.same(
    history.list().map(({ guest }) => guest),
    ['theirs'],
  );
  // what is inserted by whoever has not heard of it yet
  const { Unverified } = (await import('../../src/pages/cache.ts')).Insertion;
  t.equal(cache.insert(shop.id, mine.manifest.tags, 0, makePage(0)), Unverified);
  await t.rejects(shared.warm('shop', [{ path: mine.path }]), { code: 'PT_DOMAIN_UNKNOWN' });
  // a guest that had left before, and is looked at only now
  await shared.leave(mine.record, 'mine', shop, mine.manifest)!.keep();
  t.equal(held(cache, mine.manifest), 0);
  t.notOk(existsSync(join(folder, 'history', 'shop')));
  const used = cache.stats().used;
  cache.close();
  const file = readFileSync(path);
  let found = 0;
  for (let at = 4096; at < file.length; at += 4096) if (!native().isZero(file, at, 4096)) found++;
  t.ok(found - used <= Math.ceil((256 * 32) / 4096), `${found} pages of the file hold something, headers included`);
});

void t.test('other hosts are asked: of the guest’s domain, not the source, and not more than allowed', (t) => {
  const domains = domainsOf('shop', 'bank');
  const { shared } = open(t, domains);
  const url = (port: number): string => `http://127.0.0.1:${port}`;
  domains.others.set(
    'shop',
    [1, 2, 3, 4, 5].map((n) => ({ host: `host-${n}`, url: url(n) })),
  );
  const asked = (domain: string | undefined, source: string) =>
    shared.peers({
      ...(domain === undefined ? {} : { domain: { name: domain, proof: '' } }),
      source: { url: source, token: '' },
    });
  t.equal(asked(undefined, url(1)), undefined, 'a guest of no domain');
  t.equal(asked('bank', url(1)), undefined, 'nobody else has it');
  t.equal(asked('none', url(1)), undefined);
  const ever = new Set<string>();
  for (let i = 0; i < 200; i++) {
    const peers = asked('shop', `${url(1)}/`)!;
    t.equal(peers.urls.length, 3);
    t.equal(new Set(peers.urls).size, 3);
    for (const one of peers.urls) ever.add(one);
    t.equal(peers.domain, domains.get('shop')!.mark);
  }
  t.same([...ever].sort(), [url(2), url(3), url(4), url(5)]);
  t.end();
});

void t.test('warming: any file, tags made on the way', async (t) => {
  const { shared, cache, folder } = open(t, domainsOf('shop'));
  const guest = guestOf(folder, 'ram', shared.domain('shop')!, 0, 70);
  writeFileSync(join(folder, 'odd'), Buffer.concat([readFileSync(guest.path), Buffer.from('more')]));
  t.same(await shared.warm('shop', [{ path: guest.path }]), { pages: 53, inserted: 53, present: 0, refused: 0 });
  t.same(await shared.warm('shop', [{ path: join(folder, 'odd') }]), {
    pages: 53,
    inserted: 0,
    present: 53,
    refused: 0,
  });
  t.equal(held(cache, guest.manifest), 53);
  mkdirSync(join(folder, 'sub'));
  await t.rejects(shared.warm('shop', [{ path: join(folder, 'sub') }]), { code: 'PT_MEMORY_FILE' });
  await t.rejects(shared.warm('shop', [{ path: join(folder, 'none') }]), { code: 'PT_MEMORY_FILE' });
  t.equal(TAG_BYTES, 16);
});

void t.test('what a source offers is refused where it does not fit', (t) => {
  const manifest = new Manifest(CHUNK_FRAMES + 5); // no multiple of a chunk
  manifest.tags.fill(7);
  manifest.touch(0, manifest.frames);
  const chunks = encodeTagRuns(manifest.chunkTags(), 0, 2).toString('base64');
  const offer = { version: TAG_VERSION, frames: manifest.frames, chunks };
  const bytes = manifest.frames * TAG_PAGE;
  t.same(checkOffer(offer, bytes), manifest.chunkTags());
  const code = { code: 'PT_MANIFEST_INVALID' };
  t.throws(() => checkOffer({ ...offer, version: TAG_VERSION + 1 }, bytes), { ...code, message: /version/ });
  t.throws(() => checkOffer({ ...offer, frames: manifest.frames - 1 }, bytes), { ...code, message: /frames/ });
  t.throws(() => checkOffer(offer, bytes - 1), code, 'a part of a page is no frame');
  t.throws(() => checkOffer({ ...offer, chunks: chunks.slice(0, -8) }, bytes), { ...code, message: /cannot be read/ });
  const long = Buffer.alloc(1000, Buffer.from(chunks, 'base64')).toString('base64');
  t.throws(() => checkOffer({ ...offer, chunks: long }, bytes), { ...code, message: /too long/ });
  t.end();
});

void t.test('a chunk that is known is taken only where its length fits', (t) => {
  const domain = 1;
  const known = new ChunkStore(2 ** 20);
  const short = new Manifest(5);
  short.tags.fill(7);
  short.touch(0, 5);
  known.add(domain, short);
  const name = short.chunkTags();
  const key = { key: new DomainKey(Buffer.alloc(32, 1)), shared: { cache: 0, resident: 0, domain } };
  const names = ArrivingNames.create(join(scratch(t), 'tags'), CHUNK_FRAMES + 5, key);
  t.teardown(() => names.close());
  // a source that names the short chunk in both places, the first of them a whole one
  t.same(names.learn(Buffer.concat([name, name]), known), [0, 1]);
  t.same(names.manifest.tags.subarray(CHUNK_FRAMES * TAG_BYTES), short.tags);
  t.ok(names.manifest.tags.subarray(0, CHUNK_FRAMES * TAG_BYTES).every((byte) => byte === 0));
  t.end();
});

void t.test('what is in use is not begun with again', (t) => {
  const key = { key: new DomainKey(Buffer.alloc(32, 1)), shared: undefined };
  const names = ArrivingNames.create(join(scratch(t), 'tags'), 40, key);
  const { tags } = names.manifest;
  tags.fill(3, 0, 2 * TAG_BYTES);
  t.equal(names.begin(), true);
  t.equal(names.begin(), true, 'it may be repeated until then');
  tags.fill(3, 4 * TAG_BYTES, 5 * TAG_BYTES);
  names.noteTold(4, 1);
  names.noteTold(7, 2);
  t.same(names.settle(), [4, 1, 7, 2], 'what was told since');
  const rings = names.spec.next.slice();
  t.same(
    [0, 1, 4].map((frame) => new Set([frame, rings[frame], rings[rings[frame]!]]).size),
    [3, 3, 3],
    'one ring',
  );
  t.equal(names.begin(), false);
  t.same(names.spec.next, rings);
  names.close();
  const other = ArrivingNames.create(join(scratch(t), 'tags'), 40, {
    key: new DomainKey(Buffer.alloc(32, 1)),
    shared: undefined,
  });
  other.begin();
  other.forgetTold();
  t.equal(other.settle(), undefined, 'all came again');
  other.close();
  t.equal(other.begin(), false);
  t.end();
});
