/** Deciding over rounds: simulated guests of all kinds come to an end, and to the right one. */
import fc from 'fast-check';
import t from 'tap';
import type { Rescan } from '../../src/migration/guest-scan.ts';
import {
  decide,
  estimateSwitch,
  type Decision,
  type LastPass,
  type RoundSettings,
} from '../../src/migration/rounds.ts';
import type { RoundReport } from '../../src/migration/types.ts';

const PASS: LastPass = { tagsAMs: 200, readsAll: 0 };
const PRE_COPY: RoundSettings = { rest: 'copy', maxDowntimeMs: 300, maxRounds: 30 };
const HYBRID: RoundSettings = { rest: 'serve', maxDowntimeMs: 300, maxRounds: 5 };

interface Guest {
  frames: number;
  /** Frames that it writes, and how many of them in a millisecond. */
  workingSet: number;
  perMs: number;
  /** Of the first round that the destination has already, and of the pages that change. */
  cached: number;
  known: number;
}

interface Course {
  rounds: RoundReport[];
  scans: Rescan[];
  end: Exclude<Decision, { do: 'again' }>;
}

/** Copies a simulated guest over a link of so many bytes a millisecond. */
function simulate(guest: Guest, link: number, settings: RoundSettings, pass = PASS): Course {
  const rounds: RoundReport[] = [];
  const scans: Rescan[] = [];
  let changed = guest.frames;
  for (let round = 1; ; round++) {
    const cache = Math.round(changed * (round === 1 ? guest.cached : guest.known));
    const source = changed - cache;
    const wireBytes = source * 4000 + 500;
    const ms = 1 + wireBytes / link;
    rounds.push({ ...none(), changed, cache, source, wireBytes, ms });
    const dirty = Math.min(guest.workingSet, Math.round(guest.perMs * ms));
    const sinceMs = ms;
    scans.push({ tagged: dirty, unlocated: 0, changed: dirty, zero: 0, sinceMs, tagMs: 0.5 + dirty / 200 });
    const decision = decide(rounds, scans, pass, settings);
    if (decision.do !== 'again') return { rounds, scans, end: decision };
    changed = dirty;
    if (round > settings.maxRounds) throw new Error('it goes on for ever');
  }
}

function none(): RoundReport {
  const classes = { zero: 0, cache: 0, resident: 0, duplicate: 0, peer: 0, source: 0 };
  return { changed: 0, lacking: 0, ...classes, wireBytes: 0, ms: 0 };
}

const QUIET: Guest = { frames: 65_536, workingSet: 100, perMs: 0.05, cached: 0, known: 0 };
/** 1 Gbit/s, bytes a millisecond: about 31 pages. */
const LINK = 125_000;

void t.test('an idle guest moves after one round, and one that writes a little after a short one more', (t) => {
  for (const settings of [PRE_COPY, HYBRID]) {
    t.equal(simulate({ ...QUIET, workingSet: 50 }, LINK, settings).rounds.length, 1);
    const { rounds, scans, end } = simulate(QUIET, LINK, settings);
    t.equal(rounds.length, 2);
    t.equal(rounds[1]!.changed, 100);
    t.ok(scans[1]!.changed < 10, 'next to nothing is left for when it stands still');
    t.match(end, { do: 'switch', because: 'fits' });
    t.ok(end.estimate.downtimeMs < 100, `${end.estimate.downtimeMs} ms`);
  }
  t.end();
});

void t.test('a guest that writes slower than the link converges, in rounds that shrink', (t) => {
  const guest = { ...QUIET, workingSet: 40_000, perMs: 10 };
  const { rounds, end } = simulate(guest, LINK, { ...PRE_COPY, maxDowntimeMs: 60 });
  t.match(end, { do: 'switch', because: 'fits' });
  t.ok(rounds.length > 2 && rounds.length < 10, `${rounds.length} rounds`);
  for (let i = 1; i < rounds.length; i++) t.ok(rounds[i]!.changed < rounds[i - 1]!.changed);
  t.ok(end.estimate.downtimeMs <= 60);
  t.ok(
    simulate(guest, LINK, { ...PRE_COPY, maxDowntimeMs: 2_000 }).rounds.length <= rounds.length,
    'patience spares rounds',
  );
  t.end();
});

void t.test('one that writes faster is stuck as a pre-copy, and moves as a hybrid', (t) => {
  const guest = { ...QUIET, workingSet: 40_000, perMs: 50 };
  const { rounds, end } = simulate(guest, LINK, PRE_COPY);
  t.match(end, { do: 'stuck', because: 'dirty' });
  t.ok(rounds.length <= 4, `after ${rounds.length} rounds, not after all`);
  t.ok(end.estimate.downtimeMs > 300);
  t.ok(end.estimate.dirtyPerSecond > 20_000);
  const hybrid = simulate(guest, LINK, HYBRID);
  t.match(hybrid.end, { do: 'switch', because: 'no-gain' });
  t.ok(hybrid.rounds.length <= 2);
  t.ok(hybrid.end.estimate.downtimeMs < 300, 'what is left follows');
  t.end();
});

void t.test('a working set that is rewritten all the time is not copied for ever, however fast the link', (t) => {
  const guest = { ...QUIET, workingSet: 20_000, perMs: 1e6 };
  t.match(simulate(guest, 10 * LINK, { ...PRE_COPY, maxDowntimeMs: 40 }).end, { do: 'stuck', because: 'dirty' });
  t.match(simulate(guest, 10 * LINK, { ...HYBRID, maxDowntimeMs: 40 }).end, { do: 'switch', because: 'no-gain' });
  t.end();
});

void t.test('rounds run out', (t) => {
  const guest = { ...QUIET, workingSet: 60_000, perMs: 20 };
  const limits = { maxDowntimeMs: 26, maxRounds: 3 };
  t.match(simulate(guest, LINK, { ...PRE_COPY, ...limits }).end, { do: 'stuck', because: 'rounds' });
  const { end, rounds } = simulate(guest, LINK, { ...HYBRID, ...limits });
  t.match(end, { do: 'switch', because: 'rounds' });
  t.equal(rounds.length, 3);
  t.match(simulate(guest, LINK, { ...PRE_COPY, ...limits, maxRounds: 1 }).end, { do: 'stuck', because: 'rounds' });
  t.end();
});

void t.test('pages that the destination knows cost little, but only once that was seen', (t) => {
  const scan: Rescan = { tagged: 10_000, unlocated: 0, changed: 10_000, zero: 0, sinceMs: 1_000, tagMs: 50 };
  const first = { ...none(), changed: 65_536, cache: 60_000, source: 5_536, wireBytes: 5_536 * 4_000, ms: 180 };
  const early = estimateSwitch([first], [scan], PASS, 'copy');
  t.ok(early.fetchMs > 300, `${early.fetchMs} ms: what changes is not in the cache`);
  const second = { ...none(), changed: 10_000, cache: 9_900, source: 100, wireBytes: 400_000, ms: 20 };
  const late = estimateSwitch([first, second], [scan, scan], PASS, 'copy');
  t.ok(late.fetchMs < early.fetchMs / 4, `${late.fetchMs} ms`);
  t.end();
});

void t.test('a page costs what those of later rounds did, which come as deltas', (t) => {
  const scan: Rescan = { tagged: 1_000, unlocated: 0, changed: 1_000, zero: 0, sinceMs: 1_000, tagMs: 5 };
  const first = { ...none(), changed: 65_536, source: 65_536, wireBytes: 65_536 * 4_000, ms: 5_000 };
  const second = { ...none(), changed: 1_000, source: 1_000, wireBytes: 1_000 * 400, ms: 10 };
  const early = estimateSwitch([first], [scan], PASS, 'copy');
  const late = estimateSwitch([first, second], [scan, scan], PASS, 'copy');
  t.ok(late.fetchMs < early.fetchMs / 5, `${early.fetchMs}, then ${late.fetchMs} ms`);
  t.end();
});

void t.test('what the last pass costs', (t) => {
  const scan: Rescan = { tagged: 100, unlocated: 0, changed: 10, zero: 10, sinceMs: 1_000, tagMs: 5 };
  const round = { ...none(), changed: 65_536, source: 65_536, wireBytes: 65_536 * 4_000, ms: 2_000 };
  const cheap = estimateSwitch([round], [scan], PASS, 'copy');
  t.equal(cheap.left, 0, 'zero frames are told, not fetched');
  const all = estimateSwitch([round], [scan], { tagsAMs: 200, readsAll: 65_536 }, 'serve');
  t.ok(
    all.downtimeMs > 65_536 / 200,
    'where all of memory is read again, the guest stands still for that in every mode',
  );
  t.match(decide([round], [scan], { tagsAMs: 200, readsAll: 65_536 }, HYBRID), { do: 'again' });
  const given = { ...scan, tagged: 65_536, unlocated: 65_536 };
  const again = estimateSwitch([round], [given], PASS, 'copy');
  t.equal(again.downtimeMs, all.downtimeMs, 'a guest that has just given memory back may do it once more');
  t.match(decide([round], [given], PASS, PRE_COPY), { do: 'again' });
  t.match(
    decide([round, round], [given, scan], PASS, PRE_COPY),
    { do: 'switch', because: 'fits' },
    'it has come to rest',
  );
  const lacking = estimateSwitch([{ ...round, lacking: 5_000 }], [scan], PASS, 'copy');
  t.equal(lacking.left, 5_000, 'what was read too late is left, too');
  t.end();
});

const figure = fc.integer({ min: 0, max: 1 << 29 });
const millis = fc.double({ min: 0, max: 1e7, noNaN: true });
const anyRound: fc.Arbitrary<RoundReport> = fc.record({
  ...{ changed: figure, lacking: figure, zero: figure, cache: figure, resident: figure, duplicate: figure },
  ...{ peer: figure, source: figure, wireBytes: fc.integer({ min: 0, max: 2 ** 50 }), ms: millis },
});
const anyScan: fc.Arbitrary<Rescan> = fc
  .record({
    tagged: figure,
    unlocated: figure,
    changed: figure,
    share: fc.double({ min: 0, max: 1, noNaN: true }),
    sinceMs: millis,
    tagMs: millis,
  })
  .map(({ share, ...scan }) => ({ ...scan, zero: Math.floor(scan.changed * share) }));
const anyCourse = fc
  .array(fc.tuple(anyRound, anyScan), { minLength: 1, maxLength: 12 })
  .map((pairs) => ({ rounds: pairs.map(([round]) => round), scans: pairs.map(([, scan]) => scan) }));
const anyPass: fc.Arbitrary<LastPass> = fc.record({
  tagsAMs: fc.option(fc.double({ min: 0.01, max: 1e6, noNaN: true }), { nil: undefined }),
  readsAll: figure,
});
const anySettings: fc.Arbitrary<RoundSettings> = fc.record({
  rest: fc.constantFrom('copy' as const, 'serve' as const),
  maxDowntimeMs: fc.integer({ min: 1, max: 1e6 }),
  maxRounds: fc.integer({ min: 1, max: 12 }),
});

void t.test('whatever the figures: numbers, an end, and never a switch that does not fit what it says', (t) => {
  fc.assert(
    fc.property(anyCourse, anyPass, anySettings, ({ rounds, scans }, pass, settings) => {
      const decision = decide(rounds, scans, pass, settings);
      const { estimate } = decision;
      for (const value of Object.values(estimate)) if (!Number.isFinite(value) || value < 0) return false;
      if (rounds.length >= settings.maxRounds && decision.do === 'again') return false;
      if (decision.do === 'stuck' && settings.rest === 'serve') return false;
      const whole = estimate.downtimeMs + (settings.rest === 'serve' ? estimate.fetchMs : 0);
      const fits = whole <= settings.maxDowntimeMs;
      const takesIt = decision.do === 'switch' && decision.because === 'fits';
      if (fits ? decision.do !== 'again' && !takesIt : takesIt) return false;
      return settings.rest === 'serve' || decision.do !== 'switch' || takesIt;
    }),
    { numRuns: 2_000 },
  );
  t.pass();
  t.end();
});

void t.test('more patience never makes a guest wait; more that changed never makes it move sooner', (t) => {
  fc.assert(
    fc.property(anyCourse, anyPass, anySettings, figure, ({ rounds, scans }, pass, settings, more) => {
      const decision = decide(rounds, scans, pass, settings);
      const patient = decide(rounds, scans, pass, { ...settings, maxDowntimeMs: settings.maxDowntimeMs * 2 });
      if (decision.do === 'switch' && decision.because === 'fits' && patient.do !== 'switch') return false;
      const last = scans.at(-1)!;
      const busier = [...scans.slice(0, -1), { ...last, changed: last.changed + more, tagged: last.tagged + more }];
      const worse = estimateSwitch(rounds, busier, pass, settings.rest);
      return worse.downtimeMs >= decision.estimate.downtimeMs && worse.left >= decision.estimate.left;
    }),
    { numRuns: 2_000 },
  );
  t.pass();
  t.end();
});

void t.test('simulated guests of all kinds come to an end, and what fits does fit', (t) => {
  const guest = fc.record({
    frames: fc.integer({ min: 256, max: 1 << 22 }),
    workingSet: fc.integer({ min: 0, max: 256 }),
    perMs: fc.double({ min: 0, max: 1_000, noNaN: true }),
    cached: fc.double({ min: 0, max: 1, noNaN: true }),
    known: fc.double({ min: 0, max: 1, noNaN: true }),
  });
  fc.assert(
    fc.property(guest, fc.integer({ min: 1_000, max: 1e7 }), anySettings, (any, link, settings) => {
      const scaled = { ...any, workingSet: Math.floor((any.workingSet / 256) * any.frames) };
      const { end, rounds } = simulate(scaled, link, settings);
      return end.do === 'switch' || rounds.length <= settings.maxRounds;
    }),
    { numRuns: 500 },
  );
  t.pass();
  t.end();
});
