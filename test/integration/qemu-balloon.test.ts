/** Real guests with a memory balloon, that is moved by its operator while they are, and that stays inflated on their way. */
import { statSync } from 'node:fs';
import t, { type Test } from 'tap';
import type { MigrateRequest } from '../../src/agent/service.ts';
import type { MigrationReport } from '../../src/migration/types.ts';
import { actual, BALLOON_GUEST, readAll, setBalloon, SMALL, WHOLE } from '../support/balloon.ts';
import type { TestAgent } from '../support/cluster.ts';
import { begin, follow, guestFaults, migrate, reaches, reportFaults, stillLeft, until } from '../support/migrate.ts';
import { needsQemu } from '../support/qemu-guest.ts';
import { operatorOf, qemuPair } from '../support/qemu-pair.ts';

const MIB = 2 ** 20;
const qemu = { ...needsQemu(true), timeout: 400_000 };
/** Bytes that the guest's memory takes at an agent. */
async function allocated(agent: TestAgent): Promise<number> {
  const { files } = await agent.client.showGuest('g1');
  return files.reduce((sum, { path }) => sum + statSync(path).blocks * 512, 0);
}

function checkReport(t: Test, report: MigrationReport | undefined): void {
  t.strictSame(reportFaults(report), []);
  t.equal(report?.verified, true, 'the guest has found every page right');
  t.equal(report?.faults.count, 0, 'nothing was missing when it ran');
  const { mode, frames, ms, rounds } = report!;
  t.comment(JSON.stringify({ mode, frames, ms, rounds: rounds?.map((round) => round.changed) }));
}

void t.test('the balloon moves while rounds run', qemu, async (t) => {
  const { made, a, b } = await qemuPair(t, BALLOON_GUEST);
  const hosts = [a, b];
  for (const turn of [1, 2]) {
    const [from, to] = [hosts[0]!, hosts[1]!];
    hosts.reverse();
    const monitor = await operatorOf(t, from);
    const allows = { maxDowntimeMs: 100, maxRounds: 6, bandwidth: 16 * MIB, onNoConvergence: 'pause' } as const;
    const id = await begin(from, to, 'g1', { mode: 'auto', ...allows });
    await reaches(from.client, id, 'copying');
    let moves = 0;
    const moving = (async () => {
      // it ends with the guest: stopped for the switch it answers no balloon any more
      for (;;) {
        await setBalloon(monitor, SMALL);
        moves++;
        await setBalloon(monitor, WHOLE);
        moves++;
      }
    })().catch(() => undefined);
    const { last } = await follow(from.client, id);
    t.strictSame(last.error, undefined);
    t.match(last, { mode: 'pre-copy', why: /^pre-copy, as the guest has a memory balloon/ });
    checkReport(t, last.report);
    monitor.close();
    await moving;
    t.comment(`turn ${turn}: the balloon went ${moves} times up or down, ${last.report?.note ?? 'no note'}`);
    t.ok(moves >= 2, 'the balloon went up and down while it was copied');
    // where it was when the guest was stopped, it goes on
    const there = await operatorOf(t, to);
    await setBalloon(there, SMALL);
    await setBalloon(there, WHOLE);
    there.close();
    t.strictSame(await guestFaults(to, 'g1'), []);
    t.strictSame(await stillLeft(made), []);
  }
});

void t.test('forth and back with an inflated balloon; agents that are restarted', qemu, async (t) => {
  const { made, a, b } = await qemuPair(t, BALLOON_GUEST);
  const operator = await operatorOf(t, a);
  await readAll(operator);
  const before = await allocated(a);
  t.equal(before, WHOLE, 'there are no holes');
  await setBalloon(operator, SMALL);
  operator.close();
  const inflated = await allocated(a);
  t.ok(inflated < SMALL + 4 * MIB, `${inflated} bytes with the balloon: it has given memory back`);

  const forth = await migrate(a, b, 'g1', { mode: 'auto', maxDowntimeMs: 3_000 });
  t.strictSame(forth.last.error, undefined);
  checkReport(t, forth.last.report);
  const there = await operatorOf(t, b);
  t.equal(await actual(there), SMALL, 'the balloon is as large as it was');
  there.close();
  const arrived = await allocated(b);
  const zero = forth.last.report!.frames.zero * 4096;
  t.ok(zero >= WHOLE - SMALL, 'what is in the balloon is zero');
  // since then it runs: has its memory that comes and goes, and has read pages of zeros
  t.ok(arrived < WHOLE - zero + 16 * MIB, `${arrived} bytes at the destination, where ${zero} are zero`);
  t.comment(`bytes of the memory file: ${before} deflated, ${inflated} inflated, ${arrived} at the destination`);

  await b.kill();
  await b.restart();
  const refused: [Partial<MigrateRequest>, RegExp][] = [
    [{ mode: 'post-copy' }, /post-copy is not possible: the guest has a memory balloon/],
    [{ mode: 'hybrid' }, /hybrid is not possible/],
    [{ mode: 'pre-copy', onNoConvergence: 'post-copy' }, /no falling over to post-copy/],
    [{ mode: 'auto', onNoConvergence: 'post-copy' }, /no falling over to post-copy/],
  ];
  const known = (await b.client.listMigrations()).length;
  for (const [request, message] of refused)
    await t.rejects(migrate(b, a, 'g1', request), { code: 'PT_MODE_UNSUPPORTED', message, hint: /./ });
  t.equal((await b.client.listMigrations()).length, known, 'nothing has begun');
  t.strictSame(await a.client.listGuests(), []);
  const evacuation = { to: [a.url], parallel: 1, verify: true };
  await t.rejects(b.client.planEvacuation({ ...evacuation, mode: 'hybrid' }), {
    ...{ code: 'PT_NO_TARGET', message: /hybrid is not possible: the guest has a memory balloon/ },
  });
  t.match((await b.client.planEvacuation({ ...evacuation, mode: 'auto' })).guests, [{ guest: 'g1', to: a.url }]);
  t.strictSame(await guestFaults(b, 'g1'), []);

  const id = await begin(b, a, 'g1', { mode: 'auto', bandwidth: 8 * MIB });
  await reaches(b.client, id, 'copying');
  await b.kill();
  await b.restart();
  await until('it is where it was', async () => (await b.client.showMigration(id)).progress.phase === 'failed');
  await until('and nowhere else', async () => (await a.client.listGuests()).length === 0);
  t.strictSame(await guestFaults(b, 'g1'), []);

  const back = await migrate(b, a, 'g1', { mode: 'auto', maxDowntimeMs: 3_000 });
  t.match(back.last, { mode: 'pre-copy', why: /balloon/, error: undefined });
  checkReport(t, back.last.report);
  const home = await operatorOf(t, a);
  t.equal(await actual(home), SMALL);
  const returned = await allocated(a);
  t.comment(`and ${returned} back`);
  t.ok(returned < arrived + 8 * MIB);
  await setBalloon(home, WHOLE);
  t.strictSame(await guestFaults(a, 'g1'), [], 'what comes out of the balloon is of use');
  t.strictSame(await stillLeft(made), []);
});
