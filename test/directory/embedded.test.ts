/** The embedded directory: the contract, its limits, and what a page costs. */
import { randomBytes } from 'node:crypto';
import t from 'tap';
import { EmbeddedDirectory, MOST_DOMAINS, MOST_HOSTS } from '../../src/directory/embedded.ts';
import type { ReportAnswer } from '../../src/directory/directory.ts';
import { HINTS_LIMIT } from '../../src/directory/hint.ts';
import { contract, LEASE_MS } from './contract.ts';
import { tagsOf } from './model.ts';

contract('embedded', (clock) => new EmbeddedDirectory({ leaseMs: LEASE_MS, clock }));

const NONE = new Uint8Array(0);

/** Tells it all in reports that are as large as may be. */
async function tellAll(directory: EmbeddedDirectory, host: string, tags: Uint8Array): Promise<ReportAnswer> {
  let answer: ReportAnswer | undefined;
  const most = 65_536 * 16;
  for (let at = 0, sequence = 1; at < tags.length; at += most, sequence++) {
    const changes = [{ domain: 'shop', guest: 'a', added: tags.subarray(at, at + most), removed: NONE }];
    answer = await directory.report({ host, epoch: 1, sequence, begins: at === 0, changes });
  }
  return answer!;
}

void t.test('a page seen once costs bits, one that two hosts hold a record', async (t) => {
  for (const pages of [10_000, 100_000, 1_000_000]) {
    const directory = new EmbeddedDirectory({ leaseMs: 1e6 });
    const tags = randomBytes(pages * 16);
    let begun = performance.now();
    await tellAll(directory, 'h1', tags);
    const onceUs = ((performance.now() - begun) * 1000) / pages;
    const once = directory.stats();
    t.equal(once.records < pages / 500, true, `${once.records} of ${pages} were taken for pages seen before`);
    const bytesOnce = once.filterBytes / pages;
    t.ok(bytesOnce < 8, `${bytesOnce.toFixed(2)} bytes a page seen once`);
    begun = performance.now();
    await tellAll(directory, 'h2', tags);
    const twiceUs = ((performance.now() - begun) * 1000) / pages;
    let asked = await directory.heartbeat('h1', 1);
    for (let sequence = Math.ceil(pages / 65_536) + 1; asked.wanted.length > 0; sequence++) {
      const held = asked.wanted.map(({ domain, tags }) => ({
        domain,
        tags,
        guests: new Uint16Array(tags.length / 16).fill(1),
      }));
      asked = await directory.report({ host: 'h1', epoch: 1, sequence, changes: [], held });
    }
    const twice = directory.stats();
    t.ok(Math.abs(twice.records - pages) <= pages / 500, `${twice.records} records`);
    const { guests } = await directory.holders('shop', tags.subarray(0, 1024 * 16));
    t.ok(guests.filter((n) => n === 2).length >= 1020);
    const bytesTwice = twice.recordBytes / pages;
    t.ok(bytesTwice < 80, `${bytesTwice.toFixed(1)} bytes a record`);
    t.comment(
      `${pages} pages: seen once ${bytesOnce.toFixed(2)} bytes, ${onceUs.toFixed(2)} µs; record ${bytesTwice.toFixed(1)} bytes, ${twiceUs.toFixed(2)} µs; filters then ${(twice.filterBytes / pages).toFixed(2)} bytes`,
    );
    await directory.close();
  }
});

void t.test('a filter that withdrawals have worn out is begun anew with its host', async (t) => {
  const directory = new EmbeddedDirectory({ leaseMs: 1e6 });
  let sequence = 0;
  let before: Uint8Array = NONE;
  let state = 'applied';
  let told = 0;
  while (state === 'applied' && told < 100_000) {
    const tags = randomBytes(2048 * 16);
    const changes = [{ domain: 'shop', guest: 'a', added: tags, removed: before }];
    ({ state } = await directory.report({
      host: 'h1',
      epoch: 1,
      sequence: ++sequence,
      begins: sequence === 1,
      changes,
    }));
    before = tags;
    told += 2048;
  }
  t.equal(state, 'anew');
  t.ok(told <= 4 * 4096 + 3 * 2048, `after ${told} tags`);
  const bytes = directory.stats().filterBytes;
  const changes = [{ domain: 'shop', guest: 'a', added: before, removed: NONE }];
  t.equal(
    (await directory.report({ host: 'h1', epoch: 1, sequence: ++sequence, begins: true, changes })).state,
    'applied',
  );
  t.ok(directory.stats().filterBytes < bytes);
});

void t.test('so many hosts and domains, and no more', async (t) => {
  const directory = new EmbeddedDirectory({ leaseMs: 1e6 });
  const begin = { epoch: 1, sequence: 1, begins: true, changes: [] };
  for (let i = 0; i < MOST_HOSTS; i++) await directory.report({ ...begin, host: `h${i}` });
  await t.rejects(directory.report({ ...begin, host: 'more' }), { code: 'PT_BAD_ARGUMENT' });
  await directory.removeHost('h3');
  t.equal((await directory.report({ ...begin, host: 'more' })).state, 'applied', 'its place is free again');
  const domains = (
    from: number,
    count: number,
  ): { domain: string; guest: string; added: Uint8Array; removed: Uint8Array }[] =>
    Array.from({ length: count }, (_, i) => ({ domain: `d${from + i}`, guest: 'a', added: tagsOf(1), removed: NONE }));
  await directory.report({ host: 'h1', epoch: 1, sequence: 2, changes: domains(0, MOST_DOMAINS) });
  const more = { host: 'h1', epoch: 1, sequence: 3, changes: domains(MOST_DOMAINS, 1) };
  await t.rejects(directory.report(more), { code: 'PT_BAD_ARGUMENT' });
  await directory.removeDomain('d0');
  t.equal((await directory.report(more)).state, 'applied');
  t.throws(() => new EmbeddedDirectory({ leaseMs: 0 }), { code: 'PT_BAD_ARGUMENT' });
});

void t.test('so many hints of a domain, and so long names of all together', async (t) => {
  const clock = { now: 0 };
  const directory = new EmbeddedDirectory({ leaseMs: 1, clock: () => clock.now });
  const set = (guest: string, hosts = ['h']): Promise<void> =>
    directory.hint('shop', { kind: 'affinity', guest, hosts, leftMs: 10 });
  for (let i = 0; i < HINTS_LIMIT; i++) await set(`g${i}`);
  await t.rejects(set('more'), { code: 'PT_BAD_ARGUMENT' });
  await set('g0', ['other']);
  t.equal((await directory.hints('shop')).length, HINTS_LIMIT);
  clock.now = 10;
  await set('more');
  const long = Array.from({ length: 64 }, (_, i) => 'h'.repeat(253) + String(i).padStart(2, '0'));
  const fit = Math.floor((4 << 20) / (64 * 255 + 4)) - 1;
  for (let i = 0; i < fit; i++) await set(String(1000 + i), long);
  await t.rejects(
    async () => {
      for (let i = 0; i < 3; i++) await set(String(9000 + i), long);
    },
    { code: 'PT_BAD_ARGUMENT' },
  );
  t.ok(JSON.stringify(await directory.hints('shop')).length < 8 << 20);
});
