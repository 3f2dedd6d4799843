/** Guests that give memory back while they move: where the destination knows the pages that were there, it must not take them. */
import { join } from 'node:path';
import t from 'tap';
import { GuestControl } from '../../src/guests/control.ts';
import type { TestAgent } from '../support/cluster.ts';
import { share } from '../support/domains.ts';
import { begin, follow, guestFaults, migrate, reportFaults, startGuest, stillLeft } from '../support/migrate.ts';
import { clusterOf } from '../support/sound.ts';

t.setTimeout(900_000);

const FRAMES = 8192;
/** Frames that go at once. They are read then: that is what makes them look as if nothing had happened. */
const PIECE = 16;

/** Gives back a piece after the other and reads it, until the guest is paused or gone. Resolves to how many went. */
async function giveBack(agent: TestAgent, guest: string, from: number, how: 'punch' | 'remove'): Promise<number> {
  const control = new GuestControl(join(agent.state, 'guests', guest, 'control.sock'));
  let pieces = 0;
  try {
    // the guest's tables are at the end
    for (; pieces < 100_000; pieces++) {
      const at = (from + 3 * PIECE * pieces) % (FRAMES - 512);
      await control.remove(at, PIECE, how);
      await control.touch(at, PIECE);
    }
  } catch {
    // it has left
  } finally {
    control.close();
  }
  return pieces;
}

for (const watched of [true, false]) {
  void t.test(`pages that go, ${watched ? 'watched' : 'not watched'} before`, { timeout: 600_000 }, async (t) => {
    const made = clusterOf(t);
    const config = { cache: { size: '64M' }, ...(watched ? {} : { watch: { cpu: 0 } }) };
    const [a, b] = await Promise.all([made.agent('a', config), made.agent('b', config)]);
    await share('shop', a, b);
    const options = { memory: '32M', writeRate: 2_000, readRate: 2_000, workingSet: 0.2, zeroFraction: 0.1 };
    await startGuest(a, 'g1', options, 'shop');
    // both hosts have its pages then
    for (const [from, to] of [
      [a, b],
      [b, a],
    ] as const)
      t.equal((await migrate(from, to, 'g1')).last.progress.phase, 'done');
    let [from, to] = [a, b];
    for (const [round, mode] of (['post-copy', 'hybrid', 'pre-copy', 'post-copy'] as const).entries()) {
      const id = await begin(from, to, 'g1', mode === 'pre-copy' ? { mode, maxDowntimeMs: 2_000 } : { mode });
      const [pieces, { last }] = await Promise.all([
        giveBack(from, 'g1', round * PIECE, round % 2 === 0 ? 'punch' : 'remove'),
        follow(from.client, id),
      ]);
      t.ok(pieces > 0, `${mode}: ${pieces} pieces went`);
      t.equal(last.progress.phase, 'done', JSON.stringify(last.error));
      t.equal(last.report?.verified, true, 'the guest found every page right');
      t.strictSame(reportFaults(last.report), []);
      t.strictSame(await guestFaults(to, 'g1'), []);
      t.comment(`${mode}: ${JSON.stringify(last.report?.frames)}`);
      [from, to] = [to, from];
    }
    t.strictSame(await stillLeft(made), []);
  });
}
