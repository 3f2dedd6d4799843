/** A source that copies its guest in rounds, against a destination that only listens: what is asked, told and done, and how it ends. */
import { readFileSync } from 'node:fs';
import t, { type Test } from 'tap';
import type { CopiedRound, Rest } from '../../src/migration/types.ts';
import { PagetideError } from '../../src/errors.ts';
import { cluster, type TestAgent } from '../support/cluster.ts';
import { fakeDestination, fetched, isNamed, type FakeDestination } from '../support/fake-destination.ts';
import { begin, follow, guestFaults, reaches, startGuest } from '../support/migrate.ts';

t.setTimeout(600_000);
const FRAMES = 4096;

interface Scene {
  a: TestAgent;
  there: FakeDestination;
  /** What the destination found when the guest's state had come. */
  loads: { rest: Rest; isRight: boolean }[];
}

async function scene(t: Test, options: Record<string, unknown> = {}): Promise<Scene> {
  const a = await cluster(t).agent('a');
  const there = await fakeDestination(t);
  t.teardown(() => {
    if (!t.passing()) t.comment([there.asked.join(', '), ...a.log().slice(-20)].join('\n'));
  });
  await startGuest(a, 'g1', { memory: '16M', writeRate: 20_000, workingSet: 0.25, ...options });
  const { files } = await a.client.showGuest('g1');
  const loads: Scene['loads'] = [];
  there.onLoad = (rest, manifest, token) =>
    void loads.push({ rest, isRight: isNamed(readFileSync(files[0]!.path), manifest, token) });
  return { a, there, loads };
}

const isRight = true;

void t.test('a pre-copy: rounds, then the switch with the memory as it is then', async (t) => {
  const { a, there, loads } = await scene(t);
  // as if over a slow link: it takes some rounds
  there.copied = (round, told) => fetched(round, told, round < 4 ? 1_000_000 / round : 1e9);
  const { last, seen, phases } = await follow(
    a.client,
    await begin(a, there.url, 'g1', { mode: 'pre-copy', maxDowntimeMs: 60, bandwidth: 1 << 24 }),
  );
  t.match(there.prepared, { mode: 'pre-copy', copies: true, serves: false, bandwidth: 1 << 24 });
  t.same(loads, [{ rest: 'copy', isRight }], 'the last manifest is that of the memory');
  t.ok(phases.includes('copying'), phases.join());
  t.match(last, { mode: 'pre-copy', progress: { phase: 'failed' }, error: { code: 'PT_VMM_REFUSED_STATE' } });
  t.notOk(last.why, 'nobody has to be told why it is what was asked for');
  t.ok(seen.some(({ progress }) => progress.copying?.round === 1 && progress.copying.frames === FRAMES));
  t.strictSame(await guestFaults(a, 'g1'), [], 'the guest goes on here');
});

void t.test('a hybrid serves what is left', async (t) => {
  const { a, there, loads } = await scene(t);
  const { last } = await follow(a.client, await begin(a, there.url, 'g1', { mode: 'hybrid' }));
  t.match(there.prepared, { mode: 'hybrid', copies: true, serves: true, bandwidth: 0 });
  t.same(loads, [{ rest: 'serve', isRight }]);
  t.equal(last.error?.code, 'PT_VMM_REFUSED_STATE');
});

void t.test('auto', async (t) => {
  const { a, there, loads } = await scene(t);
  there.capabilities = { ...there.capabilities, userfaultfd: { ok: false, why: 'turned off' } };
  const { last } = await follow(a.client, await begin(a, there.url, 'g1', { mode: 'auto', maxDowntimeMs: 5_000 }));
  t.match(last, { mode: 'pre-copy', why: /pre-copy, as the destination has no userfaultfd \(turned off\)/ });
  t.match(there.prepared, { mode: 'pre-copy', copies: true, serves: false });
  t.same(loads, [{ rest: 'copy', isRight }]);
  for (const mode of ['hybrid', 'pre-copy'] as const) {
    const more = mode === 'pre-copy' ? { onNoConvergence: 'post-copy' as const } : {};
    await t.rejects(begin(a, there.url, 'g1', { mode, ...more }), { code: 'PT_MODE_UNSUPPORTED' }, mode);
  }
  await t.rejects(begin(a, there.url, 'g1', { mode: 'auto', maxDowntimeMs: 0 }), { code: 'PT_BAD_ARGUMENT' });
  t.equal(there.asked.filter((question) => question === 'prepare').length, 1, 'what was refused has changed nothing');

  const able = await fakeDestination(t);
  t.match((await follow(a.client, await begin(a, able.url, 'g1', { mode: 'auto' }))).last, {
    ...{ mode: 'hybrid', why: /^hybrid: both hosts/ },
  });
});

void t.test('one that does not converge', async (t) => {
  for (const [onNoConvergence, rest] of [
    ['post-copy', 'serve'],
    ['pause', 'copy'],
  ] as const) {
    const { a, there, loads } = await scene(t);
    there.copied = (round, told) => fetched(round, told, 100);
    const { seen } = await follow(a.client, await begin(a, there.url, 'g1', { mode: 'pre-copy', onNoConvergence }));
    t.equal(there.prepared?.serves, rest === 'serve');
    t.same(loads, [{ rest, isRight }]);
    t.ok(seen.some(({ progress }) => progress.note?.includes('the guest would stand still for about')));
  }
  const { a, there, loads } = await scene(t);
  there.copied = (round, told) => fetched(round, told, 100);
  const { last } = await follow(a.client, await begin(a, there.url, 'g1', { mode: 'pre-copy' }));
  t.match(last, { progress: { phase: 'failed' }, error: { code: 'PT_NOT_CONVERGING', hint: /--max-downtime/ } });
  t.same(loads, [], 'it was never paused');
  t.equal(there.asked.at(-1), 'abort');
  t.strictSame(await guestFaults(a, 'g1'), []);
});

void t.test('cancelled in the middle of a round', async (t) => {
  const { a, there, loads } = await scene(t);
  there.copied = () => new Promise<CopiedRound>(() => undefined);
  const id = await begin(a, there.url, 'g1', { mode: 'hybrid' });
  await reaches(a.client, id, 'copying');
  await a.client.cancel('g1');
  const { last } = await follow(a.client, id);
  t.match(last, { progress: { phase: 'cancelled' }, error: { code: 'PT_CANCELLED' } });
  t.same(loads, []);
  t.strictSame(await guestFaults(a, 'g1'), []);
});

void t.test('a round that takes its time, pages that were read too late, a destination that gives up', async (t) => {
  const { a, there, loads } = await scene(t);
  let answers = 0;
  there.copied = (round, told) => {
    if (round === 1 && ++answers < 3) return undefined; // it goes on
    return { ...fetched(round, told, 1e9), lacking: round < 3 ? 2_000 : 0, ms: 400 };
  };
  const copying = { mode: 'pre-copy', maxDowntimeMs: 40 } as const;
  await follow(a.client, await begin(a, there.url, 'g1', { ...copying, onNoConvergence: 'pause' }));
  t.same(there.asked.slice(0, 5), ['prepare', 'copy 1', 'copy 1', 'copy 1', 'copy 2']);
  t.match(loads, [{ isRight }]);

  const gone = await fakeDestination(t);
  gone.copied = () => Promise.reject(new PagetideError('PT_NO_SPACE', 'the memory file is full'));
  const { last } = await follow(a.client, await begin(a, gone.url, 'g1', copying));
  t.match(last, { progress: { phase: 'failed' }, error: { code: 'PT_NO_SPACE' } });
  t.equal(gone.asked.at(-1), 'abort');
  t.strictSame(await guestFaults(a, 'g1'), []);
});

void t.test('the agent restarts while it copies: the guest has never stopped', async (t) => {
  const { a, there } = await scene(t);
  there.copied = () => new Promise<CopiedRound>(() => undefined);
  const id = await begin(a, there.url, 'g1', { mode: 'hybrid' });
  await reaches(a.client, id, 'copying');
  const { pid } = await a.client.showGuest('g1');
  await a.restart();
  t.match((await follow(a.client, id)).last.progress, { phase: 'failed' });
  t.match(await a.client.showGuest('g1'), { state: 'running', pid });
  t.equal(there.asked.at(-1), 'abort', 'the destination is told');
  t.strictSame(await guestFaults(a, 'g1'), []);
});
