/** Watches that end on an error: they begin again, later and later, are told of once, and leave nothing when they must not. */
import { renameSync } from 'node:fs';
import { pino } from 'pino';
import t, { type Test } from 'tap';
import { GuestWatches, type SightingsFeed, type WatchBackoff } from '../../src/agent/guest-watches.ts';
import { Sightings } from '../../src/distribution/sightings.ts';
import { PagetideError } from '../../src/errors.ts';
import type { Vmm } from '../../src/guests/driver.ts';
import { native } from '../../src/memory/native.ts';
import type { SharedPages } from '../../src/migration/shared-pages.ts';
import type { WatchSettings } from '../../src/pages/guest-watch.ts';
import { ResidentIndex } from '../../src/pages/resident.ts';
import type { TagPool, TagRange } from '../../src/pages/tag-pool.ts';
import { until } from '../guests/embedded-support.ts';
import { openKey, openPool, skipTracking as skip, startTagged, type TaggedGuest } from '../pages/guest-support.ts';

interface Line {
  level: number;
  msg: string;
  code?: string;
}

const domain = { name: 'shop', id: 0, mark: '', openKey: () => openKey(0) };

/** Watches of a guest of 16 MiB; `fault.on` makes each batch of its tags fail. */
async function setting(
  t: Test,
  backoff: WatchBackoff,
  settings: Partial<WatchSettings> = {},
  more: { sightings?: SightingsFeed; rate?: number } = {},
) {
  const { rate = 100, ...feed } = more;
  const guest = await startTagged(t, 16, rate);
  const vmm = { record: { ...guest.record, domain: 'shop' } } as unknown as Vmm;
  const resident = ResidentIndex.open();
  t.teardown(() => resident.close());
  const pool = openPool(t);
  const fault = { on: true, tries: [] as number[] };
  const tag = async (range: TagRange): Promise<number> => {
    if (!fault.on) return pool.tag(range);
    fault.tries.push(performance.now());
    // what such a worker has open is its own: the tracker must be gone all the same
    throw new PagetideError('PT_INTERNAL', 'a tag worker failed');
  };
  const lines: Line[] = [];
  const log = pino({}, { write: (text: string) => void lines.push(JSON.parse(text) as Line) });
  const home = { on: true };
  const watches = new GuestWatches({
    shared: { resident, domain: () => (home.on ? domain : undefined) } as unknown as SharedPages,
    tagPool: { tag } as unknown as TagPool,
    log,
    settings: { cpu: 1, intervalMs: 1, ...settings },
    backoff,
    ...feed,
  });
  t.teardown(() => watches.close());
  const follow = (free = true): void => watches.follow([{ name: 'web', vmm, free }]);
  const told = (pattern: RegExp): number => lines.filter(({ msg }) => pattern.test(msg)).length;
  return { guest, vmm, resident, watches, fault, lines, home, follow, told };
}

const trackers = (guest: TaggedGuest): number => native().findUserfaults(guest.record.pid).length;

void t.test('later and later, told once; and when it goes again, that once', { skip }, async (t) => {
  const { guest, resident, fault, follow, told, lines } = await setting(t, { firstMs: 20, mostMs: 160 });
  follow();
  await until('it was tried six times', () => fault.tries.length >= 6);
  follow(); // of no effect: it is tried again as it is
  const { tries } = fault;
  const gaps = tries.slice(1, 6).map((at, i) => at - tries[i]!);
  // timers end late, never early (but for the fraction that they are rounded by)
  [20, 40, 80, 160, 160].forEach((ms, i) => t.ok(gaps[i]! >= ms - 2, `gap ${i}: ${gaps[i]} ms, at least ${ms}`));
  t.equal(told(/not watched for now/), 1, 'six failures, told once');
  t.match(
    lines.find(({ msg }) => /not watched/.test(msg)),
    { level: 40, code: 'PT_INTERNAL', guest: 'web' },
  );
  t.equal(told(/all pages/), 0);

  fault.on = false;
  await until('all pages are tagged', () => told(/all pages/) === 1);
  t.equal(trackers(guest), 1, 'with one tracker');
  t.ok(resident.stats().listed > 0);
  t.equal(resident.stats().files, 1, 'no earlier watch has left its file');
  t.ok((await guest.control.verify()).verified, 'the guest is as it was');
});

void t.test('what cannot begin is tried again as well', { skip }, async (t) => {
  const { guest, resident, fault, follow, told } = await setting(t, { firstMs: 1, mostMs: 10 });
  fault.on = false;
  const { path } = guest.record.files[0]!;
  renameSync(path, `${path}-away`);
  follow();
  t.equal(told(/not watched for now/), 1);
  renameSync(`${path}-away`, path);
  await until('all pages are tagged', () => told(/all pages/) === 1);
  t.equal(resident.stats().files, 1);
  t.equal(told(/not watched for now/), 1);
});

void t.test('a failure after it went well for a while is another one', { skip }, async (t) => {
  // all of its memory is tagged again and again, by the workers that fail
  const { fault, follow, told } = await setting(t, { firstMs: 1, mostMs: 50 }, { slowMs: 1 });
  follow();
  await until('it has failed', () => fault.tries.length > 2);
  fault.on = false;
  await until('all pages are tagged', () => told(/all pages/) === 1);
  const began = performance.now();
  await until('it went well for a while', () => performance.now() - began > 60);
  t.equal(told(/not watched for now/), 1);
  fault.on = true;
  const failed = fault.tries.length;
  await until('it fails again', () => fault.tries.length > failed + 2);
  t.equal(told(/not watched for now/), 2);
  fault.on = false;
  await until('all pages are tagged, as is told again', () => told(/all pages/) === 2);
});

void t.test('not once the guest is given away, of no domain any more, or has ended', { skip }, async (t) => {
  const { guest, vmm, watches, fault, home, follow, told, lines } = await setting(t, { firstMs: 200, mostMs: 200 });
  /** Longer than the next try would take. */
  const idle = async (why: string): Promise<void> => {
    const { length } = fault.tries;
    const began = performance.now();
    await until('another try would have come', () => performance.now() - began > 300);
    t.equal(fault.tries.length, length, why);
    t.equal(trackers(guest), 0);
  };
  const fails = async (): Promise<void> => {
    const before = fault.tries.length;
    follow();
    await until('it fails', () => fault.tries.length > before && trackers(guest) === 0);
  };
  await fails();
  t.equal(await watches.handOver(vmm, domain), undefined, 'there is nothing to be given away');
  follow(false);
  await idle('while its migration has it');

  await fails();
  home.on = false;
  follow();
  await idle('without its domain');

  home.on = true;
  await fails();
  await guest.kill();
  await until('it is told', () => told(/watched no more/) === 1);
  t.match(lines.at(-1), { level: 30, guest: 'web' });
  await idle('without its guest');

  await watches.close();
});

void t.test(
  'what a watch sees is told: stable pages, those that change no more, none of a guest that ended',
  { skip },
  async (t) => {
    const sightings = new Sightings({ passes: 2 });
    const { guest, fault, follow, vmm, watches } = await setting(
      t,
      { firstMs: 1, mostMs: 10 },
      {},
      { sightings, rate: 0 },
    );
    fault.on = false;
    follow();
    const hex = (tags: Uint8Array): string[] =>
      Array.from({ length: tags.length / 16 }, (_, i) =>
        Buffer.from(tags.subarray(16 * i, 16 * (i + 1))).toString('hex'),
      );
    const zero = '0'.repeat(32);
    const memory = (): Set<string> => new Set(hex(guest.tags()).filter((tag) => tag !== zero));
    const stable = (): string[] => hex(sightings.stableTags('web')?.tags ?? new Uint8Array(0));
    const told = new Set<string>();
    /** As a reporter does: the directory knows what is left of all differences. */
    const tell = (): void => {
      for (const { added, removed } of sightings.take('shop', 1_000_000)) {
        for (const tag of hex(removed)) t.ok(told.delete(tag), 'what was told is taken back');
        for (const tag of hex(added)) told.add(tag);
      }
    };
    const same = (a: Iterable<string>, b: Set<string>): boolean => {
      const all = [...a];
      return all.length === b.size && all.every((tag) => b.has(tag));
    };
    const before = memory();
    await until('all of its memory is stable', () => same(stable(), before));
    tell();
    t.ok(same(told, before), `${told.size} of ${before.size} pages`);

    const frame = hex(guest.tags()).findIndex(
      (tag, _, all) => tag !== zero && all.indexOf(tag) === all.lastIndexOf(tag),
    );
    const was = hex(guest.tags())[frame]!;
    await guest.control.poke(frame);
    const is = hex(guest.tags())[frame]!;
    t.not(is, was, `frame ${frame} is another page`);
    await until('the page of before is stable no more', () => !stable().includes(was));
    tell();
    t.notOk(told.has(was));
    await until('the one in its place is', () => stable().includes(is));
    tell();
    t.ok(same(told, memory()));

    await guest.kill();
    watches.follow([]);
    t.equal(sightings.stableTags('web'), undefined);
    t.same(sightings.guests('shop'), []);
    tell();
    t.same([...told], [], 'all of it is taken back');
    t.equal(watches.manifestOf(vmm), undefined);
  },
);
