/** Reporters over a directory that is restarted, emptied, and far behind a bad network. */
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import fc from 'fast-check';
import t from 'tap';
import { MOST_REPORT_TAGS, type Directory } from '../../src/directory/directory.ts';
import { EmbeddedDirectory } from '../../src/directory/embedded.ts';
import { MemberDirectory } from '../../src/directory/member.ts';
import { AnsweredLists } from '../../src/directory/paced-lists.ts';
import { Epochs } from '../../src/distribution/epochs.ts';
import { Reporter, type ReporterParts } from '../../src/distribution/reporter.ts';
import { Sightings } from '../../src/distribution/sightings.ts';
import type { Fate } from '../directory/model.ts';
import { tagsOf } from '../directory/model.ts';
import { LossyDirectory, MemoryEpochs, pass, SeenGuest, silent } from './sighting-support.ts';

const LEASE_MS = 3000;
const SETTINGS = { leaseMs: LEASE_MS, intervalMs: 100, supersededMs: 1000 };
/** What directories call the domain. */
const ID = 'd0';

/** An agent: its guests, what is known of them, and its reporter. */
class Host {
  readonly guests = new Map<string, SeenGuest>();
  readonly network: LossyDirectory;
  readonly epochs: MemoryEpochs;
  sightings!: Sightings;
  reporter!: Reporter;
  readonly name: string;
  readonly #clock: () => number;

  constructor(name: string, directory: Directory, clock: () => number, epochs = new MemoryEpochs()) {
    this.name = name;
    this.network = new LossyDirectory(directory);
    this.epochs = epochs;
    this.#clock = clock;
    this.start();
  }

  start(more: Partial<ReporterParts> = {}): void {
    for (const guest of this.guests.values()) guest.anew();
    this.sightings = new Sightings({ passes: 2, clock: this.#clock });
    this.reporter = new Reporter({
      directory: this.network.asDirectory,
      domain: ID,
      host: this.name,
      source: this.sightings.of('shop'),
      epochs: this.epochs,
      log: silent,
      settings: SETTINGS,
      clock: this.#clock,
      random: () => 0.5,
      ...more,
    });
  }

  /** A guest with these pages, which is stable. */
  add(name: string, pages: number[]): void {
    const guest = new SeenGuest(pages.length);
    pages.forEach((page, frame) => guest.write(frame, page));
    this.guests.set(name, guest);
    this.settle();
  }

  settle(): void {
    for (const [name, guest] of this.guests) for (let i = 0; i < 3; i++) pass(this.sightings, name, guest);
  }
}

function setting(leaseMs = LEASE_MS) {
  const clock = { now: 10 };
  const directory = new EmbeddedDirectory({ leaseMs, clock: () => clock.now });
  const count = async (...tags: number[]): Promise<number[]> => [
    ...(await directory.holders(ID, tagsOf(...tags))).guests,
  ];
  /** Each does what is due, until all is told and answered. */
  const quiet = async (...hosts: Host[]): Promise<void> => {
    for (let round = 0; round < 30; round++) {
      for (const host of hosts) await host.reporter.step();
      clock.now += LEASE_MS / 3;
    }
  };
  return { clock, directory, count, quiet, host: (name: string) => new Host(name, directory, () => clock.now) };
}

void t.test('two hosts: first holders are found, guests that leave are taken out', async (t) => {
  const { directory, count, quiet, host } = setting();
  const [a, b] = [host('h1'), host('h2')];
  a.add('web', [1, 2, 2, 3]);
  a.add('db', [3]);
  b.add('web', [2, 4]);
  t.equal(a.reporter.state().state, 'beginning');
  await quiet(a, b);
  t.same(await count(1, 2, 3, 4, 5), [0, 2, 2, 0, 0]);
  t.match(a.reporter.state(), { state: 'told', epoch: 1, reportedTags: 4, pendingTags: 0, error: undefined });
  t.ok(a.reporter.state().bytesSent > 4 * 16);
  a.sightings.gone('web');
  t.equal(a.reporter.state().state, 'telling');
  await quiet(a, b);
  t.same(await count(2, 3), [0, 0]);
  t.same(
    (await directory.hosts()).map(({ host, guests }) => [host, guests]),
    [
      ['h1', 1],
      ['h2', 1],
    ],
  );
  await a.reporter.close();
  await a.reporter.close();
  t.match(a.reporter.state(), { state: 'closed', reportedTags: 0 });
});

void t.test('a report whose answer was lost comes again as it was; waits double, and are random by half', async (t) => {
  const { count, quiet, host } = setting();
  const [a, b] = [host('h1'), host('h2')];
  b.add('web', [1, 2]);
  a.add('web', [1]);
  await quiet(a, b);
  a.guests.get('web')!.write(0, 2);
  a.settle();
  a.network.fate = 'answer lost';
  const before = a.network.reports.length;
  const waits = [];
  for (let i = 0; i < 12; i++) waits.push(await a.reporter.step());
  t.same(waits, [750, 1500, 3000, 6000, 12_000, 24_000, 48_000, 96_000, 192_000, 225_000, 225_000, 225_000]);
  t.match(a.reporter.state(), { state: 'away', error: /lost/ });
  const sent = a.network.reports.slice(before);
  t.ok(sent.length === 12 && sent.every((report) => report === sent[0]), 'the same each time');
  // much happens meanwhile, and comes in one report
  for (let page = 10; page < 60; page++) {
    a.guests.get('web')!.write(0, page);
    a.settle();
  }
  a.network.fate = 'arrives';
  await quiet(a, b);
  const last = a.network.reports.slice(before + 13).flatMap(({ changes }) => changes);
  t.same(
    last.map(({ added, removed }) => [added.length, removed.length]),
    [[16, 16]],
    'nothing of what came between',
  );
  t.same(await count(1, 2, 59), [0, 0, 0]);
});

void t.test('a directory that lost all is told all again, in batches', async (t) => {
  const { clock, directory, count, host } = setting(1e9);
  const [a, b] = [host('h1'), host('h2')];
  const pages = Array.from({ length: 150_000 }, (_, i) => i);
  a.add('web', pages);
  b.add('web', pages);
  const steps = async (most: number): Promise<void> => {
    for (let i = 0; i < most; i++) {
      for (const one of [a, b]) await one.reporter.step();
      clock.now += LEASE_MS;
    }
  };
  await steps(60);
  t.same(await count(0, 149_999), [2, 2]);
  await directory.empty();
  await steps(2);
  await directory.empty(); // in the middle of it
  const before = a.network.reports.length;
  await steps(60);
  t.same(await count(0, 75_000, 149_999), [2, 2, 2]);
  const again = a.network.reports.slice(before);
  for (const { changes, held = [] } of again) {
    const tags = changes.reduce((sum, { added, removed }) => sum + added.length + removed.length, 0) / 16;
    t.ok(tags + held.reduce((sum, { tags }) => sum + tags.length / 16, 0) <= MOST_REPORT_TAGS);
  }
  t.ok(again.filter(({ changes }) => changes.length > 0).length >= 3);
});

void t.test('of two agents with one name the one that started later reports, the other when it is gone', async (t) => {
  const { clock, directory, quiet, host } = setting();
  const [old, later, other] = [host('h1'), host('h1'), host('h2')];
  later.epochs.last = 1000;
  old.add('web', [1, 2]);
  later.add('web', [2, 3]);
  other.add('web', [1, 2, 3]);
  const count = async (): Promise<number[]> => [...(await directory.holders(ID, tagsOf(1, 2, 3))).guests];
  await old.reporter.step();
  await quiet(later, other);
  for (let i = 0; i < 20; i++) {
    await quiet(old, later, other);
    t.match(old.reporter.state(), { state: 'superseded' });
    t.match(later.reporter.state(), { state: 'told', epoch: 1001 }, 'they do not fight');
  }
  t.same(await count(), [0, 2, 2]);
  const told = old.network.reports.length;
  t.ok(told <= 2, `${told} reports in vain`);
  await quiet(old, other);
  t.match(old.reporter.state(), { state: 'told' }, 'the name is free');
  t.ok(old.reporter.state().epoch! > 1001);
  t.same(await count(), [2, 2, 0]);
  await quiet(later, old, other);
  t.match(later.reporter.state(), { state: 'superseded' });
  // an agent that has lost its epochs, by far
  clock.now += 10 * LEASE_MS;
  const lost = host('h1');
  lost.add('web', [3]);
  await quiet(lost, other);
  t.match(lost.reporter.state(), { state: 'told' });
  t.same(await count(), [0, 0, 2]);
});

void t.test('what is refused is told anew, later', async (t) => {
  const { host, quiet, count } = setting();
  const [a, b] = [host('h1'), host('bad name')];
  a.add('web', [1]);
  b.add('web', [1]);
  const waits = [await b.reporter.step(), await b.reporter.step()];
  t.same(waits, [750, 1500]);
  t.match(b.reporter.state(), { state: 'away' });
  await quiet(a);
  t.same(await count(1), [0]);
});

void t.test('it runs by itself, and ends at once, whatever it waits for', async (t) => {
  const { host, directory } = setting();
  const a = host('h1');
  a.add('web', [1]);
  a.start({ settings: { ...SETTINGS, intervalMs: 1 } });
  const reached = new Promise<void>((resolve) => {
    const report = directory.report.bind(directory);
    directory.report = (one) => (resolve(), report(one));
  });
  a.reporter.start();
  await reached;
  directory.heartbeat = () => new Promise(() => undefined);
  directory.report = () => new Promise(() => undefined);
  await a.reporter.close();
  t.equal(a.reporter.state().state, 'closed');
});

void t.test('epochs grow, also where the clock went back or the file is damaged', async (t) => {
  const folder = mkdtempSync(join(tmpdir(), 'pagetide-epochs-'));
  t.teardown(() => rmSync(folder, { recursive: true }));
  const first = await (await Epochs.open(folder, silent)).next();
  t.ok(Math.abs(first - Date.now()) < 60_000);
  const future = Date.now() + 1e9;
  writeFileSync(join(folder, 'epoch'), `${future}\n`);
  const epochs = await Epochs.open(folder, silent);
  t.same(await Promise.all([epochs.next(), epochs.next(), epochs.next(future + 100)]), [
    future + 1,
    future + 2,
    future + 101,
  ]);
  t.equal(readFileSync(join(folder, 'epoch'), 'utf8'), `${future + 101}\n`, 'on the disk');
  for (const text of ['', '12', 'x\n', `${'9'.repeat(17)}\n`]) {
    writeFileSync(join(folder, 'epoch'), text);
    t.ok((await (await Epochs.open(folder, silent)).next()) >= first);
  }
});

const HOSTS = ['h1', 'h2', 'h3'];
const GUESTS = ['a', 'b'];
const PAGES = 10;
const FRAMES = 6;

void t.test('whatever is lost, in the end it counts exactly what two guests or more hold', async (t) => {
  const at = { host: fc.nat(HOSTS.length - 1), guest: fc.nat(GUESTS.length - 1) };
  const page = fc.option(fc.nat(PAGES - 1), { nil: undefined });
  const fate = fc.constantFrom<Fate>('arrives', 'arrives', 'arrives', 'request lost', 'answer lost', 'twice');
  const step = fc.oneof(
    {
      weight: 6,
      arbitrary: fc.record({ kind: fc.constant('write' as const), ...at, frame: fc.nat(FRAMES - 1), page }),
    },
    { weight: 6, arbitrary: fc.record({ kind: fc.constant('pass' as const), ...at }) },
    { weight: 8, arbitrary: fc.record({ kind: fc.constant('report' as const), ...at, fate }) },
    { weight: 2, arbitrary: fc.record({ kind: fc.constantFrom('gone' as const, 'watch' as const), ...at }) },
    { weight: 2, arbitrary: fc.record({ kind: fc.constant('time' as const), ms: fc.nat(LEASE_MS) }) },
    {
      weight: 1,
      arbitrary: fc.record({
        kind: fc.constantFrom('empty' as const, 'remove domain' as const, 'remove host' as const, 'restart' as const),
        ...at,
      }),
    },
  );
  await fc.assert(
    fc.asyncProperty(fc.array(step, { maxLength: 150 }), async (steps) => {
      const { clock, directory, quiet, host } = setting();
      const hosts = HOSTS.map(host);
      for (const one of steps) {
        if (one.kind === 'time') {
          clock.now += one.ms;
          continue;
        }
        const h = hosts[one.host]!;
        const name = GUESTS[one.guest]!;
        if (one.kind === 'write' || one.kind === 'pass') {
          const guest = h.guests.get(name) ?? new SeenGuest(FRAMES);
          h.guests.set(name, guest);
          if (one.kind === 'write') guest.write(one.frame, one.page);
          else pass(h.sightings, name, guest);
        } else if (one.kind === 'report') {
          h.network.fate = one.fate;
          await h.reporter.step();
        } else if (one.kind === 'gone') {
          h.guests.delete(name);
          h.sightings.gone(name);
        } else if (one.kind === 'watch') h.guests.get(name)?.anew();
        else if (one.kind === 'empty') await directory.empty();
        else if (one.kind === 'remove domain') await directory.removeDomain(ID);
        else if (one.kind === 'remove host') await directory.removeHost(h.name);
        else {
          await h.reporter.close();
          h.start();
        }
      }
      for (const h of hosts) {
        h.network.fate = 'arrives';
        h.settle();
      }
      await quiet(...hosts);
      for (const h of hosts)
        if (h.reporter.state().state !== 'told') throw new Error(`${h.name}: ${JSON.stringify(h.reporter.state())}`);
      const all = await directory.holders(ID, tagsOf(...Array(PAGES).keys()));
      for (let tag = 0; tag < PAGES; tag++) {
        const held = hosts.map((h) => [...h.guests.values()].filter((guest) => guest.holds(tag)).length);
        const sum = held.reduce((a, b) => a + b);
        if (all.guests[tag] !== (sum > 1 ? sum : 0)) throw new Error(`tag ${tag}: ${all.guests[tag]}, not ${sum}`);
        if (sum <= 1) continue;
        const told = HOSTS.map((name) => {
          for (let i = all.first[tag]!; i < all.first[tag + 1]!; i++)
            if (all.hosts[all.host[i]!] === name) return all.held[i]!;
          return 0;
        });
        if (told.join() !== held.join()) throw new Error(`tag ${tag}: ${told.join()}, not ${held.join()}`);
      }
    }),
    { numRuns: 400 },
  );
  t.pass();
});

void t.test('reports go at the pace of tags, and are no larger than a message of it', async (t) => {
  let now = 0;
  const directory = new EmbeddedDirectory({ leaseMs: LEASE_MS, clock: () => now });
  const host = new Host('a', directory, () => now);
  host.add(
    'web',
    Array.from({ length: 250 }, (_, i) => i + 1),
  );
  const passed: number[] = [];
  const pace = {
    most: 100,
    pass: (bytes: number) => {
      passed.push(bytes);
      return Promise.resolve();
    },
  };
  host.start({ pace });
  for (let i = 0; i < 3; i++) pass(host.sightings, 'web', host.guests.get('web')!);
  for (let i = 0; i < 4; i++) {
    now += 200;
    await host.reporter.step();
  }
  t.equal(host.reporter.state().reportedTags, 250);
  t.equal(passed.length, 3, 'a heartbeat does not wait');
  t.ok(passed.every((bytes) => bytes < 110 * 16));
  t.ok(passed[0]! < 74 * 16, 'the first is small, as all hosts may begin at once');
});

void t.test('reports are no larger than the directory lets them be', async (t) => {
  let now = 0;
  const inner = new EmbeddedDirectory({ leaseMs: LEASE_MS, clock: () => now });
  const sizes: number[] = [];
  const lists = new AnsweredLists({ most: 320, pass: async () => Promise.resolve() });
  const directory = new MemberDirectory(inner, ID, 'a', { lists, hosts: 4, check: () => undefined });
  const host = new Host('a', directory, () => now);
  host.add(
    'web',
    Array.from({ length: 250 }, (_, i) => i + 1),
  );
  const pace = { most: 1000, pass: async (bytes: number) => Promise.resolve(void sizes.push(bytes)) };
  host.start({ pace });
  for (let i = 0; i < 3; i++) pass(host.sightings, 'web', host.guests.get('web')!);
  for (let i = 0; i < 5; i++) {
    now += 200;
    await host.reporter.step();
  }
  t.equal(host.reporter.state().reportedTags, 250);
  t.equal(sizes.length, 4);
  t.ok(
    sizes.slice(1, 3).every((bytes) => bytes > 80 * 16 && bytes < 90 * 16),
    sizes.join(),
  );
});
