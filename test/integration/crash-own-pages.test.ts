/**
 * The destination's agent dies while a guest arrives whose lacking pages are, most of them, in frames that it has already: its own
 * pages. The agent that takes it up finds them there, and need not fetch them.
 */
import { join } from 'node:path';
import t from 'tap';
import { GuestControl } from '../../src/guests/control.ts';
import { ends, MIB, NAME, pair } from '../support/crash-pair.ts';
import { begin, follow, reportFaults, startGuest, until } from '../support/migrate.ts';

/** Frames that become like others, and frames that become unlike any: more than a batch of the fill. */
const ALIKE = 1024;
const UNLIKE = 320;

void t.test('a hybrid is taken up: what its own frames have is not fetched', { timeout: 300_000 }, async (t) => {
  // so slowly that the fill, which begins with those that are unlike any, is not yet at the others when the agent dies
  const two = await pair(t, { fill: { bandwidth: 3 * MIB } });
  const { source, destination } = two;
  await source.client.removeGuest(NAME);
  // some of what others are copied from is written meanwhile, at the destination too: then it is of no use any more
  const calm = { writeRate: 50, readRate: 50, workingSet: 0.1, zeroFraction: 0, threads: 1 };
  await startGuest(source, NAME, { ...calm, memory: 16 * MIB });
  const id = await begin(source, destination, NAME, { mode: 'hybrid', maxRounds: 1 });
  const copied = async (): Promise<number> => (await source.client.showMigration(id)).progress.copying?.frames ?? 0;
  await until('the round has begun', async () => (await copied()) > 0);
  const control = new GuestControl(join(source.state, 'guests', NAME, 'control.sock'));
  await control.copy(2048, 1024, ALIKE);
  for (let frame = 0; frame < UNLIKE; frame++) await control.poke(frame);
  control.close();
  t.equal((await source.client.showMigration(id)).progress.phase, 'copying', 'all of that while it was copied');

  await two.record('destination', 'owner');
  await destination.kill();
  await destination.restart();
  const { last } = await follow(source.client, id);
  t.equal(last.progress.phase, 'done', JSON.stringify(last.error));
  const { frames, verified, rounds } = last.report!;
  t.comment(JSON.stringify({ frames, rounds, bytes: last.report!.bytes }));
  t.equal(verified, true, 'the guest found every page right');
  t.same(reportFaults(last.report), []);
  t.ok(frames.present < ALIKE / 2, `${frames.present} frames had come by fault or fill when the agent died`);
  t.ok(frames.duplicate > ALIKE / 2, `${frames.duplicate} frames have the page of another`);
  await ends(t, two, destination);
});
