/** The experiment in small: embedded guests on three hosts with limited links. Only loose things are asked of it. */
import t from 'tap';
import { readSetup } from '../../bench/distribution.bench.ts';
import { runExperiment } from '../../bench/lib/distribution/experiment.ts';
import type { OwnMove } from '../../bench/lib/distribution/types.ts';
import { cannotIsolate } from '../../bench/lib/netns-cluster/ip.ts';
import { median } from '../../bench/lib/statistics.ts';

t.setTimeout(300_000);

const cannot = cannotIsolate();
const skip = cannot !== undefined && process.env['PAGETIDE_REQUIRE_NETNS'] !== '1' ? cannot : false;

void t.test('bringing pages ahead saves bytes, below its peak', { skip }, async (t) => {
  const words = { small: 1, mbit: 200, budget: 1 };
  const settings = new Map(Object.entries(words).map(([name, value]) => [name, String(value)]));
  const setup = readSetup({ rounds: 1, json: false, settings, progress: (text) => t.comment(text) });
  const { own, passes, score, windows, budget } = await runExperiment(setup, 1, (text) => t.comment(text));
  const bytes = (arm: OwnMove['arm']): number =>
    median(own.filter((move) => move.arm === arm && move.kind === 'like').map(({ linkBytes }) => linkBytes));
  t.ok(
    own.every(({ report }) => report.verified === true),
    'each guest found its memory right',
  );
  t.ok(bytes('nothing') > 2 ** 20, `${bytes('nothing')} bytes where nothing was brought`);
  t.ok(Math.max(...windows.busiest) <= (setup.link / 8 / 10) * 1.1, 'no window has more than a link carries');
  t.ok(bytes('prepared') < bytes('nothing') / 2, `${bytes('prepared')} bytes where pages were brought`);
  t.ok(bytes('planned') < bytes('nothing') / 2, `${bytes('planned')} bytes where it was known who comes`);
  t.ok(score.savedBytes > 0, `${score.savedBytes} bytes saved`);
  t.ok(score.servedPages > 0, `${score.servedPages} pages served`);
  t.equal(score.wrongPages, 0);
  // all caches were emptied again and again; what was in them is known to be gone
  t.ok(score.evictedPages > 0, `${score.evictedPages} pages were found gone`);
  t.ok(
    passes.every(({ idle, heldBytes }) => idle && heldBytes[2]! > 0),
    'each pass ended with pages there, and none left to bring',
  );
  const held = budget.map(({ heldBytes }) => heldBytes);
  t.ok(held[0] === 0 && held[1]! > 0 && held[1]! < held[2]!, `${held.join(', ')} bytes held by budget`);
  // one way, with all headers: frames of the streams that bring, and all frames, those of reports and plans included
  const peaks = passes.flatMap(({ peakIn, peakOut }) => [...peakIn, ...peakOut]);
  const all = passes.flatMap(({ allIn, allOut }) => [...allIn, ...allOut]);
  t.ok(Math.max(...all) <= setup.peak / 10, `at most ${Math.max(...all)} bytes in 100 ms with all else`);
  t.ok(
    Math.max(...peaks) > 0 && Math.max(...peaks) <= setup.peak / 10,
    `at most ${Math.max(...peaks)} bytes in 100 ms`,
  );
});
