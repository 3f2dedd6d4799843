/** Which directory a domain has, by real stores of domains: made, granted, revoked, removed, restarted, and who may ask. */
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { pino } from 'pino';
import t, { type Test } from 'tap';
import { buildApi } from '../../src/agent/api/app.ts';
import { listenControl } from '../../src/agent/api/listen.ts';
import { Directories } from '../../src/agent/directories.ts';
import { ListedTags, tagsFrom } from '../../src/agent/guest-tag-pages.ts';
import { TagPace } from '../../src/distribution/tag-pace.ts';
import { LOWEST_PEAK } from '../../src/distribution/wire-cost.ts';
import type { AgentDirectories } from '../../src/agent/service.ts';
import { DomainStore } from '../../src/domains/store.ts';
import type { Directory, GuestChange, Report } from '../../src/directory/directory.ts';
import { fetchGuestTags } from '../../src/transport/directory-client.ts';
import { PeerClient } from '../../src/transport/peer.ts';
import { numbersOf, tagsOf } from '../directory/model.ts';
import { shortFolder } from './api-harness.ts';
import { FakeService } from './fake-service.ts';

const LEASE_MS = 1000;

interface Host {
  store: DomainStore;
  directories: Directories;
  control: string;
  state: string;
  clocks: { now: number; wall: number };
  lines: { level: number; code?: string; msg: string }[];
  tags: Map<string, { domain: string; tags: Uint8Array }>;
  pace: TagPace;
  /** Ends the directories, and opens them again from what is on the disk. */
  restart(): Promise<Directories>;
}

async function host(t: Test, folder: string, name: string): Promise<Host> {
  const state = join(folder, name);
  const control = join(folder, `${name}.sock`);
  const lines: Host['lines'] = [];
  const log = pino({ level: 'info' }, { write: (line: string) => lines.push(JSON.parse(line) as Host['lines'][0]) });
  const store = await DomainStore.open(join(state, 'domains'), log);
  const clocks = { now: 1000, wall: 1_700_000_000_000 };
  const tags: Host['tags'] = new Map();
  const pace = new TagPace(500_000_000);
  const open = async (): Promise<Directories> => {
    const directories = new Directories({
      ...{ store, folder: join(state, 'directory'), identity: undefined, control, log, leaseMs: LEASE_MS },
      connect: (url, whom) => new PeerClient(url, { ...whom, answerMs: 5_000 }),
      guests: (domain) => [...tags].flatMap(([guest, one]) => (one.domain === domain ? [guest] : [])),
      stableTags: (guest) => tags.get(guest),
      pace,
      clock: () => clocks.now,
      wall: () => clocks.wall,
    });
    await directories.start();
    t.teardown(() => directories.close());
    return directories;
  };
  const service = new FakeService();
  const directories = await open();
  const made: Host = { store, directories, control, state, clocks, lines, tags, pace, restart };
  async function restart(): Promise<Directories> {
    await made.directories.close();
    return (made.directories = await open());
  }
  // the routes outlive a restart of the directories here
  const value: AgentDirectories = {
    empty: (name) => made.directories.empty(name),
    member: (...args) => made.directories.member(...args),
    guests: (...args) => made.directories.guests(...args),
    guestTags: (...args) => made.directories.guestTags(...args),
  };
  Object.defineProperty(service, 'directories', { value });
  const app = buildApi(service, { closeGraceMs: 0 });
  t.teardown(() => app.close());
  await listenControl(app, control);
  return made;
}

/** As `pagetide domain grant` does, message by message. */
async function grant(home: Host, to: Host, name: string): Promise<void> {
  const { id } = home.store.record(name)!;
  const as = `unix:${to.control}`;
  const { epoch } = await home.store.beginGrant(id, as, as);
  await to.store.accept({
    ...{ id, name, secret: home.store.secretOf(name)! },
    home: { host: null, url: `unix:${home.control}`, as, epoch },
    members: [{ host: `unix:${home.control}`, url: 'http://127.0.0.1:7411' }],
  });
  await home.store.settleGrant(id, as, epoch, { state: 'granted', pages: 'http://127.0.0.1:7412' });
  await home.directories.settled();
  await to.directories.settled();
}

async function pair(t: Test): Promise<{ a: Host; b: Host; id: string }> {
  const folder = shortFolder(t);
  const [a, b] = [await host(t, folder, 'a'), await host(t, folder, 'b')];
  const { id } = await a.store.create('shop');
  await grant(a, b, 'shop');
  return { a, b, id };
}

function of({ directories }: Host): { directory: Directory; domain: string; self: string } {
  return directories.get('shop')!;
}

function report(from: Host, sequence: number, added: Uint8Array = tagsOf(), more: Partial<Report> = {}): Report {
  const { self, domain } = of(from);
  const changes: GuestChange[] = [{ domain, guest: 'g', added, removed: tagsOf() }];
  return { host: self, epoch: 1, sequence, changes, ...(sequence === 1 ? { begins: true } : {}), ...more };
}

void t.test('the home keeps it, a host that was granted the domain reaches it, and both see the same', async (t) => {
  const { a, b, id } = await pair(t);
  let changes = 0;
  b.directories.onChange(() => changes++);
  t.equal(of(a).domain, id);
  t.equal(of(a).self, `unix:${a.control}`);
  t.equal(of(b).self, `unix:${b.control}`);
  t.equal(a.directories.get('shop')!.directory, of(a).directory, 'one instance');
  t.equal(a.directories.get('bank'), undefined);
  await of(a).directory.report(report(a, 1, tagsOf(1, 2)));
  await of(b).directory.report(report(b, 1, tagsOf(2, 3)));
  t.same(
    (await of(a).directory.hosts()).map(({ host }) => host),
    [`unix:${a.control}`, `unix:${b.control}`],
  );
  t.same(numbersOf((await of(a).directory.lacking(id, of(a).self, { limit: 9 })).tags), [2], 'a is still asked');
  await of(b).directory.hint(id, { kind: 'evacuate', host: of(b).self, leftMs: 500 });
  t.same(await of(a).directory.hints(id), [{ kind: 'evacuate', host: of(b).self, leftMs: 500 }]);
  t.same(a.directories.state('shop'), { home: null, reachable: true });
  t.same(b.directories.state('shop'), { home: `unix:${a.control}`, reachable: true });
  await b.store.forget('shop', () => undefined);
  await b.directories.settled();
  t.equal(b.directories.get('shop'), undefined);
  t.ok(changes > 0);
});

void t.test('a host asks for itself and its domain alone', async (t) => {
  const { a, b, id } = await pair(t);
  const other = { ...report(b, 1), host: of(a).self };
  await t.rejects(of(b).directory.report(other), { code: 'PT_NO_PERMISSION' }, 'not for another host');
  t.ok(b.directories.state('shop')?.error);
  await t.rejects(of(b).directory.heartbeat(of(a).self, 1), { code: 'PT_NO_PERMISSION' });
  const elsewhere = report(b, 1, tagsOf(1));
  elsewhere.changes = [{ ...elsewhere.changes[0]!, domain: 'f'.repeat(32) }];
  await t.rejects(of(b).directory.report(elsewhere), { code: 'PT_NO_PERMISSION' });
  const ask =
    (domain: string, as?: string, sender: string | null = null) =>
    () =>
      a.directories.member(domain, as, sender);
  t.throws(ask(id, 'unix:/run/c.sock'), { code: 'PT_NO_PERMISSION' });
  t.throws(ask(id), { code: 'PT_NO_PERMISSION' });
  t.throws(ask(id, of(b).self, 'host-c'), { code: 'PT_NO_PERMISSION' }, 'a certificate counts, not what is said');
  t.throws(ask('f'.repeat(32), of(b).self), { code: 'PT_DOMAIN_UNKNOWN' });
  t.throws(() => b.directories.member(id, of(a).self, null), { code: 'PT_DOMAIN_ELSEWHERE' });
  await of(b).directory.report(report(b, 1));
  t.equal(b.directories.state('shop')?.error, undefined);
});

void t.test('a host whose grant is revoked is taken out, and hears why', async (t) => {
  const { a, b, id } = await pair(t);
  await of(a).directory.report(report(a, 1, tagsOf(1)));
  await of(b).directory.report(report(b, 1, tagsOf(2)));
  const revoked = of(b);
  await a.store.beginRevoke(id, of(b).self);
  await t.rejects(revoked.directory.heartbeat(revoked.self, 1), { code: 'PT_NO_PERMISSION' }, 'at once');
  await a.directories.settled();
  t.same(
    (await of(a).directory.hosts()).map(({ host }) => host),
    [of(a).self],
  );
  t.equal(b.directories.state('shop')?.error?.code, 'PT_NO_PERMISSION');
  t.equal(b.lines.filter(({ code }) => code === 'PT_NO_PERMISSION').length, 1, 'logged once');
});

void t.test('what was told outlives a restart of the home, and goes with the domain', async (t) => {
  const { a, b, id } = await pair(t);
  await of(b).directory.report(report(b, 1, tagsOf(1)));
  await of(b).directory.hint(id, { kind: 'evacuate', host: of(b).self, leftMs: 500_000 });
  const place = join(a.state, 'directory', id);
  a.clocks.wall += 3600_000 * 24; // while it ran: no matter
  await a.restart();
  a.clocks.now = 5; // of another process
  t.ok(existsSync(join(place, 'snapshot')));
  t.equal((await of(b).directory.report(report(b, 2, tagsOf(5)))).state, 'applied', 'goes on');
  t.equal((await of(a).directory.hints(id)).length, 1);
  await of(a).directory.report(report(a, 1, tagsOf(5)));
  t.same([...(await of(b).directory.holders(id, tagsOf(5))).guests], [1], 'its filter is there');
  await a.store.forget('shop', () => undefined);
  await a.directories.settled();
  t.equal(a.directories.get('shop'), undefined);
  t.notOk(existsSync(place));
  await t.rejects(of(b).directory.hosts(), { code: 'PT_DOMAIN_UNKNOWN' });
});

void t.test('a clock that jumps', async (t) => {
  const { a, b } = await pair(t);
  const { directory, self } = of(b);
  await directory.report(report(b, 1));
  a.clocks.wall += 1e12;
  t.equal((await directory.heartbeat(self, 1)).state, 'applied', 'the wall clock is no matter while it runs');
  a.clocks.wall -= 2e12;
  t.equal((await directory.heartbeat(self, 1)).state, 'applied');
  a.clocks.now -= 500;
  t.equal((await directory.heartbeat(self, 1)).state, 'applied', 'back: nobody is taken out');
  a.clocks.now += 10 * LEASE_MS;
  t.equal((await directory.heartbeat(self, 1)).state, 'anew', 'forward: taken out, and begins anew');
  t.equal((await directory.report(report(b, 2, tagsOf(1), { begins: true }))).state, 'applied');
});

void t.test('emptied by its operator: everybody tells all again', async (t) => {
  const { a, b } = await pair(t);
  await of(b).directory.report(report(b, 1, tagsOf(1)));
  await a.directories.empty('shop');
  t.same(await of(a).directory.hosts(), []);
  t.equal((await of(b).directory.report(report(b, 2, tagsOf(2)))).state, 'anew');
  t.equal((await of(b).directory.report(report(b, 3, tagsOf(1, 2), { begins: true }))).state, 'applied');
  await t.rejects(b.directories.empty('shop'), { code: 'PT_DOMAIN_ELSEWHERE' });
  await t.rejects(a.directories.empty('none'), { code: 'PT_DOMAIN_UNKNOWN' });
});

void t.test('of two agents with one name the older is told, in its log and status', async (t) => {
  const { b } = await pair(t);
  const { directory, self } = of(b);
  await directory.report(report(b, 1, tagsOf(), { epoch: 5 }));
  for (const again of [1, 2, 3])
    await t.rejects(directory.report(report(b, again, tagsOf(), { epoch: 4 })), { code: 'PT_SUPERSEDED' });
  await t.rejects(directory.heartbeat(self, 4), { code: 'PT_SUPERSEDED' });
  t.match(b.directories.state('shop'), { reachable: true, error: { code: 'PT_SUPERSEDED', hint: /Two agents/ } });
  t.equal(b.lines.filter(({ code }) => code === 'PT_SUPERSEDED').length, 1, 'logged once');
  t.equal((await directory.report(report(b, 1, tagsOf(), { epoch: 6, begins: true }))).state, 'applied');
  t.equal(b.directories.state('shop')?.error, undefined);
});

/** Tags whose first words are spread, as digests' are; their second ones count. */
function digestsOf(count: number): Uint8Array {
  const tags = new Uint8Array(count * 16);
  const view = new DataView(tags.buffer);
  for (let i = 0; i < count; i++) {
    view.setUint32(i * 16, Math.imul(i, 0x9e3779b1));
    view.setUint32(i * 16 + 4, i);
  }
  return tags;
}

void t.test("a guest's stable tags, for hosts that have its domain", async (t) => {
  const { a, b, id } = await pair(t);
  a.tags.set('web', { domain: 'shop', tags: tagsOf(1, 2, 3) });
  a.tags.set('vault', { domain: 'bank', tags: tagsOf(4) });
  const connect = (url: string, whom: object): PeerClient => new PeerClient(url, whom);
  const [member] = b.store.members('shop');
  const fetch = (guest: string, as = of(b).self): Promise<Uint8Array> =>
    fetchGuestTags(connect, member!, { domain: id, guest, as });
  t.same(numbersOf(await fetch('web')), [1, 2, 3]);
  await t.rejects(fetch('vault'), { code: 'PT_GUEST_UNKNOWN' });
  await t.rejects(fetch('none'), { code: 'PT_GUEST_UNKNOWN' });
  await t.rejects(fetch('web', 'unix:/run/c.sock'), { code: 'PT_NO_PERMISSION' });

  // few at once where the pace says so; and who loses the domain while it waits is told nothing
  a.pace.setPeak(LOWEST_PEAK);
  a.tags.set('web', { domain: 'shop', tags: digestsOf(300) });
  const passed: number[] = [];
  a.pace.pass = async (bytes) => Promise.resolve(void passed.push(bytes));
  t.equal((await fetch('web')).length, 300 * 16);
  t.ok(passed.length >= 5 && passed.every((bytes) => bytes <= 64 * 16), passed.join());
  // one page: a second one would be refused anyway
  a.tags.set('web', { domain: 'shop', tags: digestsOf(3) });
  a.pace.pass = async () => a.store.beginRevoke(id, of(b).self).then(() => undefined);
  await t.rejects(fetch('web'), { code: 'PT_NO_PERMISSION' });
});

void t.test('many tags come page by page, each once', (t) => {
  const count = 200_000;
  const tags = digestsOf(count);
  for (const most of [undefined, 3000]) {
    const seen = new Set<number>();
    let given = 0;
    let worst = 0;
    let pages = 0;
    for (let cursor: number | undefined = 0; cursor !== undefined; pages++) {
      const page = tagsFrom(tags, cursor, most);
      worst = Math.max(worst, page.tags.length / 16);
      const words = new DataView(page.tags.buffer, page.tags.byteOffset, page.tags.byteLength);
      for (let at = 4; at < page.tags.length; at += 16, given++) seen.add(words.getUint32(at));
      cursor = page.next === 0 ? undefined : page.next;
    }
    t.ok(worst <= (most ?? 65_536), `${worst} tags`);
    t.ok(pages < (2 * count) / (most ?? 65_536) + 3, `${pages} pages`);
    t.equal(given, count);
    t.equal(seen.size, count);
  }
  const crowd = tagsFrom(new Uint8Array(70_000 * 16), 0);
  t.equal(crowd.tags.length, 65_536 * 16, 'too many of one first word: it ends all the same');
  t.end();
});

void t.test('pages of a list are of one moment; few lists are kept, and not for long', (t) => {
  let now = 0;
  let made = 0;
  const listed = new ListedTags(() => now);
  const make = () => ({ domain: 'shop', tags: new Uint8Array(++made) });
  const length = (guest: string, anew = false) => listed.of(guest, anew, make)!.tags.length;
  t.equal(length('web', true), 1);
  now += 20_000;
  t.equal(length('web'), 1);
  now += 20_000;
  t.equal(length('web'), 1, 'each page makes it last');
  t.equal(length('web', true), 2, 'whoever begins gets what is now');
  now += 31_000;
  t.equal(length('web'), 3);
  for (const name of ['a', 'b', 'c', 'd']) length(name);
  t.equal(length('b'), 5);
  t.equal(length('web'), 8, 'the fifth was too much');
  t.equal(
    listed.of('web', true, () => undefined),
    undefined,
  );
  t.equal(length('web'), 9, 'a guest that has left is not remembered');
  t.end();
});
