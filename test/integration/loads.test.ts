/**
 * Real loads move while they work, by every mode: every acknowledged write is there afterwards, and no request is answered wrongly.
 *
 * The guest is the judge (docs/loads.md): its clients compare every answer as it comes, and `verify` reads everything back that was
 * ever acknowledged. One guest after the other: each is an emulated machine. A guest is booted once, and each of its two moves is of
 * another mode; every load by every mode, both ways, is `npm run matrix`.
 */
import t from 'tap';
import type { ModeWanted } from '../../src/migration/types.ts';
import { cluster, type TestAgent } from '../support/cluster.ts';
import { cannotLoad, LOADS, loadConsole, startLoad, type Load } from '../support/load-guest.ts';
import { blindness, MODES, moveLoad } from '../support/load-moves.ts';
import { stillLeft } from '../support/migrate.ts';

/** What is moved, and by which mode there and back. */
const journeys: [load: Load, there: ModeWanted, back: ModeWanted][] = [
  ['idle', 'auto', 'post-copy'],
  ['redis', 'pre-copy', 'hybrid'],
  ['nginx', 'hybrid', 'pre-copy'],
  ['node', 'post-copy', 'auto'],
  ['postgres', 'pre-copy', 'post-copy'],
];

void t.test('every load goes, by two modes; and every mode goes there and back', (t) => {
  const sorted = (words: Iterable<string>): string[] => [...new Set(words)].sort();
  t.strictSame(sorted(journeys.map(([load]) => load)), sorted(LOADS));
  t.strictSame(sorted(journeys.map(([, there]) => there)), sorted(MODES), 'there');
  t.strictSame(sorted(journeys.map(([, , back]) => back)), sorted(MODES), 'back');
  t.strictSame(
    // auto takes hybrid here: that would be the same mode twice
    journeys.filter(([, ...modes]) => sorted(modes.map((mode) => (mode === 'auto' ? 'hybrid' : mode))).length < 2),
    [],
  );
  t.end();
});

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

      t.strictSame(await blindness(a, load), [], 'and had anything been wrong, it would have been seen');
      await a.client.removeGuest(load);
      t.same(await stillLeft(made), [], 'nothing is left');
      t.comment(`in all ${seconds()}`);
    });
  }
});

/** Moves the guest, and looks whether all is well with its load. */
async function leg(t: Tap, load: Load, from: TestAgent, to: TestAgent, mode: ModeWanted): Promise<void> {
  const { report, operations, problems } = await moveLoad(load, from, to, mode);
  t.strictSame(problems, [], `it is at ${to.name} by ${mode}, found everything as it left it, and works on`);
  t.comment(
    JSON.stringify({
      operations,
      ms: report?.ms,
      rounds: report?.rounds?.length,
      faults: report?.faults,
      gap: report?.longestGapMs,
      note: report?.note,
    }),
  );
  if (!t.passing()) t.comment(`console at ${to.name}:\n${loadConsole(to, load)}`);
}

type Tap = Pick<typeof t, 'strictSame' | 'comment' | 'passing'>;
