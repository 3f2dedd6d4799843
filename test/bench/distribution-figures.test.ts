/** The experiment's arithmetic and its plots, on figures made up here: no guest, no network. */
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t from 'tap';
import { plotsOf } from '../../bench/lib/distribution/plots.ts';
import { notesOf, targetsOf } from '../../bench/lib/distribution/tables.ts';
import type { Experiment, OtherMove, OwnMove } from '../../bench/lib/distribution/types.ts';
import { bytesBetween, counterAt, windowsOf } from '../../bench/lib/distribution/windows.ts';
import { drawSvg, pngSize, svgToPng, writePlots } from '../../bench/lib/plots.ts';

const MIB = 2 ** 20;
const cpu = { ms: 1000, spentMs: { 'host-1': 100, guests: 500 }, idle: 0.5, stolen: 0, saturated: false };
const measured = (linkBytes: number): { fromMs: number; toMs: number; linkBytes: number; cpu: typeof cpu } => ({
  ...{ fromMs: 0, toMs: 1000, linkBytes, cpu },
});

function ownMove(arm: OwnMove['arm'], mode: 'pre-copy' | 'post-copy', bytes: number, total: number): OwnMove {
  const frames = { total: 10, zero: 1, present: 0, cache: 5, resident: 0, duplicate: 0, peer: 0, source: 4 };
  const report: OwnMove['report'] = {
    ...{ guest: 'like-1', mode, driver: 'qemu' as const, verified: null, frames },
    bytes: { wire: bytes, manifest: 1, pages: 1, state: 1, raw: 1 },
    ms: { prepare: 1, downtime: 20, total, journal: 1 },
    faults: { count: 3, p50Us: 1, p99Us: 2, maxUs: 3 },
    longestGapMs: 50,
  };
  return { ...measured(bytes), guest: 'like-1', kind: 'like', arm, round: 0, report };
}

function nativeMove(method: OtherMove['method'], bytes: number, totalMs: number): OtherMove {
  const reported = { totalMs, downtimeMs: 5, setupMs: 1, bytes };
  return { ...measured(bytes), method, round: 0, sound: true, downtimeMs: 10, totalMs, reported, longestGapMs: 60 };
}

function experiment(): Experiment {
  const own = (['nothing', 'prepared', 'planned'] as const).flatMap((arm, at) =>
    (['pre-copy', 'post-copy'] as const).map((mode) => ownMove(arm, mode, (100 * MIB) / 10 ** at, 2000 / (at + 1))),
  );
  const point = (at: number): Experiment['budget'][number] => ({
    ...{ at, round: 0, heldBytes: at * MIB, move: ownMove('prepared', 'post-copy', (2 - at) * MIB, 500) },
  });
  return {
    setup: {
      arms: ['nothing', 'prepared', 'planned'],
      ...{ small: false, mib: 512, rate: 20, link: 1e9, cache: MIB, average: 4e6, peak: 8e6, mostMs: 1000, allMs: 1e6 },
      ...{ budgets: [0, 1], fades: [0, 1], native: true, movers: 4, offload: true, own: 10 },
    },
    guests: [{ name: 'like-1', kind: 'like', home: 0, to: 2 }],
    own,
    native: [
      nativeMove('pre-copy', 280 * MIB, 2500),
      nativeMove('multifd', 283 * MIB, 2480),
      nativeMove('post-copy', 280 * MIB, 2500),
    ],
    passes: [
      {
        ...measured(50 * MIB),
        arm: 'prepared',
        idle: true,
        heldBytes: [1, 2, 3],
        peakIn: [1e5, 7e5, 2e5],
        peakOut: [0, 0, 3e5],
        allIn: [1e5, 7e5, 2e5],
        allOut: [0, 0, 3e5],
      },
    ],
    budget: [point(0), point(1)],
    fade: [point(0), point(1)],
    marks: [
      { ...measured(0), name: 'distributing, prepared' },
      { ...measured(0), name: 'moves, prepared', fromMs: 1000, toMs: 3000 },
    ],
    windows: { windowMs: 100, busiest: Array.from({ length: 30 }, (_, i) => i * 1000), all: [] },
    score: { spentBytes: MIB, savedBytes: 3 * MIB, servedPages: 800, evictedPages: 0, wrongPages: 0 },
    incomplete: null,
  };
}

void t.test('counters become bytes of windows', (t) => {
  const atMs = Float64Array.of(0, 10, 20);
  const bytes = Float64Array.of(100, 200, 600);
  t.equal(counterAt(atMs, bytes, 5), 150);
  t.equal(counterAt(atMs, bytes, -1), 100, 'nothing went before the first look');
  t.equal(counterAt(atMs, bytes, 99), 600);
  t.equal(bytesBetween(atMs, bytes, 5, 15), 250);
  const link = { atMs, bytesIn: bytes, framesIn: bytes, bytesOut: bytes, framesOut: bytes };
  const other = { ...link, bytesIn: Float64Array.of(0, 300, 300) };
  const windows = windowsOf([link, other], 0, 20, 10);
  t.same(windows, { windowMs: 10, busiest: [300, 400], all: [400, 400] });
  t.same(windowsOf([], 0, 20, 10).busiest, [0, 0]);
  t.end();
});

void t.test('targets are ratios against the same method of QEMU, and the peak', (t) => {
  const targets = targetsOf(experiment());
  const named = (name: string): (typeof targets)[number] | undefined => targets.find((one) => one.name === name);
  t.match(named('like guest, post-copy, planned: bytes, QEMU'), { value: 1, baseline: 280, met: true });
  t.match(named('like guest, post-copy, planned: time, QEMU'), { met: false });
  t.match(named('like guest, pre-copy, nothing: bytes, QEMU'), { value: 100, met: null });
  t.match(named('like guest, pre-copy, prepared: bytes, nothing'), { ratio: 0.1 });
  t.match(named('peak of 100 ms while distributing'), { ratio: 7e6 / 8e6, met: true });
  const over = experiment();
  over.passes[0]!.peakOut = [9e5];
  const peakOf = (name: string): unknown => targetsOf(over).find((one) => one.name === name)?.met;
  t.equal(peakOf('peak of 100 ms while distributing'), false, 'one window of one host is enough');
  t.equal(peakOf('the same with all else that agents say'), true);
  over.passes[0]!.allIn = [9e5];
  t.equal(peakOf('the same with all else that agents say'), false);
  const notes = notesOf(experiment()).join('\n');
  t.match(notes, /3\.0 MiB saved, 1\.0 MiB spent: 3\.00/);
  t.match(notes, /QEMU, multifd: 283\.00 MiB/);
  t.end();
});

void t.test('plots are drawn, the same each time, with text', async (t) => {
  const folder = mkdtempSync(join(tmpdir(), 'ptp-'));
  t.teardown(() => rmSync(folder, { recursive: true }));
  const plots = plotsOf(experiment());
  t.same(Object.keys(plots), ['bytes', 'time', 'downtime', 'gap', 'network', 'budget', 'fade']);
  const paths = await writePlots(join(folder, 'x'), plots);
  t.equal(paths.length, 2 * Object.keys(plots).length);
  for (const path of paths.filter((one) => one.endsWith('.png'))) {
    const { width, height } = pngSize(path);
    t.ok(width > 1000 && width < 3000 && height > 300 && height < 3000, `${path}: ${width} × ${height}`);
  }
  const svg = readFileSync(join(folder, 'x-bytes.svg'), 'utf8');
  t.match(svg, /QEMU post-copy/);
  t.equal(await drawSvg(plots['bytes']!), svg, 'the same again');
  const withText = svgToPng(svg);
  const without = svgToPng(svg.replaceAll(/<text[^>]*>[^<]*<\/text>/g, ''));
  t.not(withText.length, without.length, 'letters are drawn: there is a font');
});
