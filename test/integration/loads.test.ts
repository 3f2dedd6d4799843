/**
 * Real loads move while they work: every acknowledged write is there afterwards, and no request is answered wrongly.
 *
 * The guest is the judge (docs/loads.md): its clients compare every answer as it comes, and `verify` reads everything back that was
 * ever acknowledged. One guest after the other: each is an emulated machine.
 */
import t from 'tap';
import type { MigrateRequest } from '../../src/agent/service.ts';
import { cluster, type TestAgent } from '../support/cluster.ts';
import { cannotLoad, damage, loadConsole, startLoad, type Load } from '../support/load-guest.ts';
import { guestFaults, migrate, reportFaults, stillLeft } from '../support/migrate.ts';

type Mode = MigrateRequest['mode'];

/** What is moved, and by which mode there and back. */
const journeys: [load: Load, there: Mode, back: Mode][] = [
  ['idle', 'post-copy', 'post-copy'],
  ['redis', 'post-copy', 'post-copy'],
  ['nginx', 'post-copy', 'post-copy'],
  ['node', 'post-copy', 'post-copy'],
  ['postgres', 'post-copy', 'post-copy'],
];

const skip = cannotLoad();

void t.test('real loads move while they work', { skip, timeout: 1_200_000 }, async (t) => {
  const made = cluster(t);
  const [a, b] = await Promise.all([made.agent('a'), made.agent('b')]);
  for (const [load, there, back] of journeys) {
    await t.test(`${load}: there by ${there}, back by ${back}`, { timeout: 600_000 }, async (t) => {
      t.teardown(async () => {
        for (const { client } of [a, b]) await client.removeGuest(load).catch(() => undefined);
      });
      const began = performance.now();
      const seconds = (): string => `${((performance.now() - began) / 1000).toFixed(1)} s`;
      await startLoad(a, load);
      t.comment(`runs after ${seconds()}`);
      await leg(t, load, a, b, there);
      await leg(t, load, b, a, back);

      // and had anything been wrong, it would have been seen
      t.ok((await damage(a, load)) > 0, 'its memory was damaged');
      t.equal((await a.client.verifyGuest(load))?.ok, false, 'it notices');
      await a.client.removeGuest(load);
      t.same(await stillLeft(made), [], 'nothing is left');
      t.comment(`in all ${seconds()}`);
    });
  }
});

/** Moves the guest, and looks whether all is well with its load. */
async function leg(t: Tap, load: Load, from: TestAgent, to: TestAgent, mode: Mode): Promise<void> {
  const before = (await from.client.showGuest(load)).stats?.operations ?? 0;
  const { last } = await migrate(from, to, load, { mode });
  t.strictSame([last.progress.phase, last.error], ['done', undefined], `it is at ${to.name}`);
  const { report } = last;
  t.match(report, { guest: load, mode, driver: 'qemu', verified: true }, 'the guest found everything as it left it');
  t.same(reportFaults(report), [], 'the report adds up');
  t.same(await guestFaults(to, load), [], 'it checks once more, and works on');
  const { stats } = await to.client.showGuest(load);
  t.ok((stats?.operations ?? 0) > before, `${stats?.operations} operations, ${before} before it was moved`);
  t.comment(
    JSON.stringify({
      operations: stats?.operations,
      ms: report?.ms,
      faults: report?.faults,
      gap: report?.longestGapMs,
    }),
  );
  if (!t.passing()) t.comment(`console at ${to.name}:\n${loadConsole(to, load)}`);
}

type Tap = Pick<typeof t, 'match' | 'same' | 'strictSame' | 'ok' | 'comment' | 'passing'>;
