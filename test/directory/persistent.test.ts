/** What of a directory outlives the agent: after an orderly end, from an older snapshot, from a torn one, and after a kill. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { readdirSync, readFileSync, renameSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import { pino } from 'pino';
import t, { type Test } from 'tap';
import type { Report } from '../../src/directory/directory.ts';
import type { Hint } from '../../src/directory/hint.ts';
import { PersistentDirectory } from '../../src/directory/persistent.ts';
import { folder } from '../trust/support.ts';
import { contract, LEASE_MS } from './contract.ts';
import { tagsOf } from './model.ts';

t.setTimeout(300_000);
const silent = pino({ level: 'silent' });
const NONE = tagsOf();

interface Clocks {
  now: number;
  wall: number;
}

function opener(t: Test): { at: string; clocks: Clocks; open: () => Promise<PersistentDirectory> } {
  const at = join(folder(t), 'shop');
  const clocks = { now: 1000, wall: 1_700_000_000_000 };
  const open = async (): Promise<PersistentDirectory> => {
    const directory = await PersistentDirectory.open({
      ...{ folder: at, domain: 'shop', leaseMs: LEASE_MS, log: silent },
      clock: () => clocks.now,
      wall: () => clocks.wall,
    });
    t.teardown(() => directory.drop());
    return directory;
  };
  return { at, clocks, open };
}

function report(host: string, sequence: number, more: Partial<Report> = {}): Report {
  return { host, epoch: 1, sequence, changes: [], ...(sequence === 1 ? { begins: true } : {}), ...more };
}

function add(guest: string, ...tags: number[]): Report['changes'][number] {
  return { domain: 'shop', guest, added: tagsOf(...tags), removed: NONE };
}

async function count(directory: PersistentDirectory, ...tags: number[]): Promise<number[]> {
  return [...(await directory.holders('shop', tagsOf(...tags))).guests];
}

/** Two hosts with 2000 tags each, 1000 of them in common, all questions answered. */
async function fill(directory: PersistentDirectory): Promise<void> {
  const range = (from: number): number[] => Array.from({ length: 2000 }, (_, i) => from + i);
  await directory.report(report('h1', 1, { changes: [add('a', ...range(0))] }));
  await directory.report(report('h2', 1, { changes: [add('b', ...range(1000))] }));
  const { wanted } = await directory.heartbeat('h1', 1);
  const held = wanted.map(({ domain, tags }) => {
    return { domain, tags, guests: new Uint16Array(tags.length / 16).fill(1) };
  });
  await directory.report(report('h1', 2, { held }));
}

contract('persistent', async (clock) => {
  const at = join(folder(t), 'shop');
  return PersistentDirectory.open({ folder: at, domain: 'shop', leaseMs: LEASE_MS, clock, log: silent });
});

void t.test('after an orderly end hosts go on with their next reports', async (t) => {
  const { at, clocks, open } = opener(t);
  const first = await open();
  await fill(first);
  // a question that is not answered yet, and one who was taken out
  await first.report(report('h3', 1, { changes: [add('c', 0, 9000)] }));
  await first.report(report('h4', 1, { epoch: 7 }));
  await first.removeHost('h4');
  clocks.now += LEASE_MS - 1;
  for (const host of ['h1', 'h2', 'h3']) await first.heartbeat(host, 1);
  const { records } = first.stats();
  await first.close();
  t.equal(statSync(join(at, 'snapshot')).mode & 0o777, 0o600);
  clocks.now = 3; // of another process
  const next = await open();
  t.equal(next.stats().records, records);
  t.same(await count(next, 0, 1500, 2500, 9000), [1, 2, 0, 0]);
  t.same(
    (await next.hosts()).map(({ host, leaseMs, guests }) => [host, leaseMs, guests]),
    ['h1', 'h2', 'h3'].map((host) => [host, LEASE_MS, 1]),
    'a whole lease for each',
  );
  await t.rejects(next.heartbeat('h4', 6), { code: 'PT_SUPERSEDED' }, 'epochs are remembered');
  t.equal((await next.heartbeat('h2', 1, 1)).state, 'applied');
  const { state, wanted } = await next.heartbeat('h1', 1, 2);
  t.equal(state, 'applied');
  t.same(wanted, [{ domain: 'shop', tags: tagsOf(0) }], 'a question is asked until it is answered');
  const held = [{ ...wanted[0]!, guests: Uint16Array.of(1) }];
  t.equal((await next.report(report('h1', 3, { held }))).state, 'applied');
  t.same(await count(next, 0), [2]);
  t.equal(
    (await next.report(report('h2', 2, { changes: [add('d', 2500)] }))).state,
    'applied',
    'filters are there, too',
  );
  t.same(await count(next, 2500), [1]);
  clocks.now += LEASE_MS;
  t.same(await next.hosts(), [], 'and then leases run as ever');
});

void t.test('from an older snapshot those that have told more begin anew', async (t) => {
  const { open } = opener(t);
  const first = await open();
  await fill(first);
  await first.save();
  const more = report('h1', 3, { changes: [add('c', 1, 1500)] });
  await first.report(more);
  await first.report(report('h1', 4, { changes: [{ ...add('c'), removed: tagsOf(1500) }] }));
  await first.report(report('h2', 2));
  await first.drop(); // the agent was killed
  const next = await open();
  t.equal((await next.heartbeat('h1', 1, 4)).state, 'anew');
  t.equal((await next.heartbeat('h2', 1)).state, 'anew', 'nothing says that it has told no more');
  t.equal((await next.report(report('h1', 5))).state, 'anew');
  t.equal((await next.report(more)).state, 'applied', 'one whose last answer was lost goes on');
  t.equal((await next.heartbeat('h1', 1, 3)).state, 'applied');
  t.equal((await next.report(report('h1', 5))).state, 'anew');
  const range = Array.from({ length: 2000 }, (_, i) => i);
  const changes = [add('a', ...range), add('c', 1)];
  t.equal((await next.report(report('h1', 6, { begins: true, changes }))).state, 'applied');
  const { wanted } = await next.heartbeat('h2', 1, 1);
  const held = wanted.map(({ domain, tags }) => ({ domain, tags, guests: new Uint16Array(tags.length / 16).fill(1) }));
  await next.report(report('h2', 2, { held }));
  const own = await next.heartbeat('h1', 1, 6);
  t.same(own.wanted, [{ domain: 'shop', tags: tagsOf(1) }]);
  await next.report(report('h1', 7, { held: [{ ...own.wanted[0]!, guests: Uint16Array.of(2) }] }));
  t.same(await count(next, 0, 1, 1500, 2500), [0, 2, 2, 0], 'counts are right again');
});

void t.test('a file that was torn or altered is dropped, and everybody begins anew', async (t) => {
  const { at, open } = opener(t);
  const path = join(at, 'snapshot');
  const first = await open();
  await fill(first);
  await first.hint('shop', { kind: 'evacuate', host: 'h1', leftMs: 5000 });
  await first.close();
  const whole = readFileSync(path);
  const altered = Buffer.from(whole);
  altered[whole.length >> 1]! ^= 1;
  const odd: [string, Buffer][] = [
    ['empty', Buffer.alloc(0)],
    ['torn', whole.subarray(0, whole.length - 1)],
    ['torn early', whole.subarray(0, 20)],
    ['altered', altered],
    ['longer', Buffer.concat([whole, Buffer.alloc(1)])],
    ['of another kind', Buffer.concat([Buffer.from('PTDIRSN0'), whole.subarray(8)])],
  ];
  for (const [what, bytes] of odd) {
    writeFileSync(path, bytes);
    const next = await open();
    t.notOk(readdirSync(at).includes('snapshot'), what);
    t.same(await next.hosts(), []);
    t.equal((await next.report(report('h1', 3))).state, 'anew');
    t.equal((await next.hints('shop')).length, 1, 'hints are apart');
    await next.drop();
  }
  writeFileSync(join(at, 'hints.json'), '{"version":1,"wallMs":0,"hints":[{}]}');
  const next = await open();
  t.same(await next.hints('shop'), []);
});

void t.test('an emptied directory stays empty, also where the agent is killed then', async (t) => {
  const { open } = opener(t);
  const first = await open();
  await fill(first);
  await first.save();
  await first.empty();
  await first.drop();
  const next = await open();
  t.same(await next.hosts(), []);
  t.equal((await next.report(report('h1', 3))).state, 'anew');
});

void t.test('hints are on the disk when they are in force, and go on by the wall clock', async (t) => {
  const { at, clocks, open } = opener(t);
  const leaving: Hint = { kind: 'evacuate', host: 'h1', leftMs: 10_000 };
  const placed: Hint = { kind: 'affinity', guest: 'a', hosts: ['h2'], leftMs: 3000 };
  let directory = await open();
  await directory.hint('shop', leaving);
  await directory.hint('shop', placed);
  await directory.drop(); // the agent was killed
  clocks.now = 0;
  clocks.wall += 1000;
  directory = await open();
  t.same(await directory.hints('shop'), [
    { ...leaving, leftMs: 9000 },
    { ...placed, leftMs: 2000 },
  ]);
  clocks.now += 500;
  clocks.wall -= 1e9; // while it runs, the wall clock is nothing
  t.same(
    (await directory.hints('shop')).map(({ leftMs }) => leftMs),
    [8500, 1500],
  );
  await directory.close();
  clocks.wall -= 5000;
  directory = await open();
  t.same(
    (await directory.hints('shop')).map(({ leftMs }) => leftMs),
    [8500, 1500],
    'a clock that went back',
  );
  t.equal(await directory.withdraw('shop', { kind: 'affinity', guest: 'a' }), true);
  await directory.drop();
  directory = await open();
  t.same((await directory.hints('shop')).length, 1, 'withdrawn for good');
  await directory.close();
  clocks.wall += 1e9;
  directory = await open();
  t.same(await directory.hints('shop'), [], 'a clock that went on');
  await directory.drop();
  t.same(
    readdirSync(at).filter((name) => name.endsWith('.new')),
    [],
  );
});

void t.test('a hint that cannot be written down is not in force', async (t) => {
  const { at, open } = opener(t);
  const directory = await open();
  await directory.hint('shop', { kind: 'evacuate', host: 'h1', leftMs: 10 });
  renameSync(at, `${at}-away`);
  const other: Hint = { kind: 'evacuate', host: 'h2', leftMs: 10 };
  await t.rejects(directory.hint('shop', other), { code: 'PT_IO' });
  await t.rejects(directory.withdraw('shop', { kind: 'evacuate', host: 'h1' }), { code: 'PT_IO' });
  t.same(
    (await directory.hints('shop')).map((hint) => hint.kind === 'evacuate' && hint.host),
    ['h1'],
  );
  renameSync(`${at}-away`, at);
});

void t.test('killed at any moment: what is there is whole', async (t) => {
  const at = join(folder(t), 'shop');
  const child = fileURLToPath(new URL('./persistent-child.js', import.meta.url));
  for (let round = 0; round < 6; round++) {
    const run = spawn(process.execPath, [child, at], { stdio: ['ignore', 'pipe', 'inherit'] });
    const ended = once(run, 'exit');
    t.teardown(() => run.kill('SIGKILL'));
    const saved: number[] = [];
    for await (const line of createInterface({ input: run.stdout })) {
      saved.push(Number(line));
      if (saved.length === 2 + 3 * round) break; // somewhere in the next one
    }
    run.kill('SIGKILL');
    await ended;
    const warned: unknown[] = [];
    const log = pino({ level: 'warn' }, { write: (line) => warned.push(line) });
    const directory = await PersistentDirectory.open({ folder: at, domain: 'shop', leaseMs: LEASE_MS, log });
    t.same(warned, [], 'no file is torn');
    const { tags } = await directory.lacking('shop', 'h9', { limit: 65_536 });
    const [host] = await directory.hosts();
    t.ok(
      host !== undefined && tags.length / 16 >= saved.at(-1)!,
      `${tags.length / 16} tags, ${saved.at(-1)} were saved`,
    );
    await directory.drop();
  }
});
