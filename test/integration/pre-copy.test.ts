/** Modes that copy memory in rounds, from one real agent to another: what moves, how, and what happens when it doesn't. */
import { spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync, statfsSync } from 'node:fs';
import t, { type Test } from 'tap';
import type { MigrationReport } from '../../src/migration/types.ts';
import { cluster, type Cluster, type TestAgent } from '../support/cluster.ts';
import {
  begin,
  follow,
  guestFaults,
  migrate,
  reaches,
  reportFaults,
  startGuest,
  stillLeft,
  until,
} from '../support/migrate.ts';

t.setTimeout(900_000);
const limit = { timeout: 600_000 };

/** Two agents, and a guest at the first of them that writes to a part of its memory. */
async function pair(
  t: Test,
  config: Record<string, unknown> = {},
  guest: Record<string, unknown> = {},
): Promise<{ made: Cluster; a: TestAgent; b: TestAgent }> {
  const made = cluster(t);
  t.teardown(() => {
    if (t.passing()) return;
    for (const agent of made.agents) t.comment([`log of ${agent.name}:`, ...agent.log().slice(-40)].join('\n'));
  });
  const [a, b] = await Promise.all([made.agent('a'), made.agent('b', config)]);
  await startGuest(a, 'g1', { memory: '32M', writeRate: 2_000, readRate: 2_000, workingSet: 0.25, ...guest });
  return { made, a, b };
}

/** What a report of a migration in rounds has to say. */
function checkRounds(t: Test, report: MigrationReport | undefined): void {
  t.strictSame(reportFaults(report), []);
  const rounds = report?.rounds ?? [];
  t.ok(rounds.length > 0, `${rounds.length} rounds`);
  t.equal(rounds[0]?.changed, report?.frames.total, 'the first is of all frames');
  for (const { zero, cache, resident, duplicate, peer, source, lacking, changed } of rounds)
    t.ok(zero + cache + resident + duplicate + peer + source + lacking <= changed * 2 + lacking, 'frames of a round');
}

void t.test('pre-copy: nothing is missing when the guest runs', limit, async (t) => {
  const { made, a, b } = await pair(t);
  const { last, phases } = await migrate(a, b, 'g1', { mode: 'pre-copy', maxDowntimeMs: 2_000 });
  t.match(last.report, { mode: 'pre-copy', verified: true, faults: { count: 0 } });
  t.strictSame(phases.slice(0, 3), ['preparing', 'copying', 'switching']);
  checkRounds(t, last.report);
  t.strictSame(await guestFaults(b, 'g1'), []);
  t.strictSame(await stillLeft(made), []);

  const back = await migrate(b, a, 'g1', { mode: 'hybrid' });
  t.match(back.last.report, { mode: 'hybrid', verified: true });
  checkRounds(t, back.last.report);
  t.strictSame(await guestFaults(a, 'g1'), []);
  t.strictSame(await stillLeft(made), []);
});

void t.test('hybrid: what changed since follows', limit, async (t) => {
  // so much is written that something is left whenever it moves
  const { made, a, b } = await pair(t, {}, { writeRate: 50_000, workingSet: 0.5 });
  const { last } = await migrate(a, b, 'g1', { mode: 'hybrid', maxRounds: 3, maxDowntimeMs: 26 });
  t.match(last.report, { mode: 'hybrid', verified: true });
  checkRounds(t, last.report);
  t.ok(last.report!.rounds!.length <= 3);
  t.strictSame(await guestFaults(b, 'g1'), []);
  t.strictSame(await stillLeft(made), []);
});

void t.test('auto: hybrid, or pre-copy where the destination has no userfaultfd', limit, async (t) => {
  const { made, a, b } = await pair(t, { pager: { userfaultfd: 'off' } });
  const there = await migrate(a, b, 'g1', { mode: 'auto', maxDowntimeMs: 2_000 });
  t.match(there.last.report, { mode: 'pre-copy', verified: true, why: /the destination has no userfaultfd/ });
  t.strictSame(await guestFaults(b, 'g1'), []);
  const back = await migrate(b, a, 'g1', { mode: 'auto' });
  t.match(back.last.report, { mode: 'hybrid', verified: true, why: /^hybrid/ });
  t.strictSame(await guestFaults(a, 'g1'), []);

  for (const more of [{ mode: 'hybrid' }, { mode: 'pre-copy', onNoConvergence: 'post-copy' }] as const)
    await t.rejects(begin(a, b, 'g1', more), { code: 'PT_MODE_UNSUPPORTED' });
  const refused = await migrate(a, b, 'g1', { mode: 'post-copy' });
  t.equal(refused.last.progress.phase, 'failed', 'an explicit post-copy is refused when the destination is to prepare');
  t.strictSame(await guestFaults(a, 'g1'), []);
  t.strictSame(await stillLeft(made), []);
});

void t.test('cancelled in the middle of a round', limit, async (t) => {
  const { made, a, b } = await pair(t);
  const { pid } = await a.client.showGuest('g1');
  const id = await begin(a, b, 'g1', { mode: 'hybrid', bandwidth: 1 << 20 });
  await reaches(a.client, id, 'copying');
  await until('pages have come', async () => (await a.client.showMigration(id)).progress.wireBytes > 1 << 18);
  await a.client.cancel('g1');
  t.equal((await follow(a.client, id)).last.progress.phase, 'cancelled');
  t.match(await a.client.showGuest('g1'), { state: 'running', pid });
  t.strictSame(await guestFaults(a, 'g1'), []);
  t.strictSame(await stillLeft(made), [], 'the destination has let go');
  t.equal(
    (await migrate(a, b, 'g1', { mode: 'hybrid' })).last.report?.verified,
    true,
    'and it can go there afterwards',
  );
});

void t.test('a guest that writes faster than pages move', limit, async (t) => {
  const busy = { memory: '16M', writeRate: 20_000, workingSet: 0.5 };
  const slow = { mode: 'pre-copy', bandwidth: 2 << 20 } as const;
  const { made, a, b } = await pair(t, {}, busy);
  const stays = await migrate(a, b, 'g1', slow);
  t.match(stays.last, { progress: { phase: 'failed' }, error: { code: 'PT_NOT_CONVERGING' } });
  t.strictSame(await guestFaults(a, 'g1'), [], 'it was never stopped');
  t.strictSame(await stillLeft(made), []);

  const falls = await migrate(a, b, 'g1', { ...slow, onNoConvergence: 'post-copy' });
  t.match(falls.last.report, { mode: 'pre-copy', verified: true, note: /moves by post-copy/ });
  checkRounds(t, falls.last.report);
  t.strictSame(await guestFaults(b, 'g1'), []);

  const waits = await migrate(b, a, 'g1', { ...slow, onNoConvergence: 'pause' });
  t.match(waits.last.report, {
    mode: 'pre-copy',
    verified: true,
    faults: { count: 0 },
    note: /stands still for longer/,
  });
  t.ok(waits.last.report!.ms.downtime! > 300);
  t.strictSame(await guestFaults(a, 'g1'), []);
  t.strictSame(await stillLeft(made), []);
});

void t.test('a destination that fills up half-way', limit, async (t) => {
  const small = mkdtempSync('/tmp/ptt-small-');
  t.teardown(() => rmSync(small, { recursive: true, force: true }));
  if (spawnSync('mount', ['-t', 'tmpfs', '-o', 'size=40M', 'tmpfs', small]).status !== 0) {
    t.comment('a tmpfs can not be mounted here');
    return;
  }
  t.teardown(() => spawnSync('umount', [small]));
  const { made, a, b } = await pair(t, { memoryFolder: small });
  for (const mode of ['hybrid', 'pre-copy'] as const) {
    const id = await begin(a, b, 'g1', { mode, bandwidth: 2 << 20 });
    await reaches(a.client, id, 'copying');
    await until('pages have come', async () => (await a.client.showMigration(id)).progress.wireBytes > 1 << 18);
    // pages come meanwhile, so what was free a moment ago may be too much
    await until('another has taken what is free', () => {
      const { bavail, bsize } = statfsSync(small);
      return bavail > 0 && spawnSync('fallocate', ['-l', `${bavail * bsize}`, `${small}/other`]).status === 0;
    });
    const { last } = await follow(a.client, id);
    t.match(last, { progress: { phase: 'failed' }, error: { code: 'PT_NO_SPACE', hint: /./ } });
    rmSync(`${small}/other`);
    t.strictSame(await guestFaults(a, 'g1'), []);
    t.strictSame(await stillLeft(made), []);
    t.strictSame(await b.client.listGuests(), []);
  }
  t.equal((await migrate(a, b, 'g1', { mode: 'hybrid' })).last.report?.verified, true, 'with room it goes there');
  await b.stop();
});

void t.test('an agent that dies while memory is copied', limit, async (t) => {
  for (const dies of ['a', 'b'] as const) {
    const { made, a, b } = await pair(t);
    const id = await begin(a, b, 'g1', { mode: 'hybrid', bandwidth: 1 << 20 });
    await reaches(a.client, id, 'copying');
    await (dies === 'a' ? a : b).restart();
    const { last } = await follow(a.client, id);
    t.equal(last.progress.phase, 'failed', `of the ${dies === 'a' ? 'source' : 'destination'}`);
    t.strictSame(await guestFaults(a, 'g1'), []);
    t.strictSame(await stillLeft(made), []);
    t.equal((await migrate(a, b, 'g1', { mode: 'hybrid' })).last.report?.verified, true, 'and it moves afterwards');
  }
});
