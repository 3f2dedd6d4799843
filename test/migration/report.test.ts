/** Reports: the times of a migration, and what is not known is said to be so. */
import t from 'tap';
import { makeReport, type Departure } from '../../src/migration/report.ts';
import type { CompletionFigures, MigrationReport } from '../../src/migration/types.ts';

const START = 1_700_000_000_000;
const ABOUT = { guest: 'g1', mode: 'post-copy', driver: 'embedded' } as const;

function report(departure: Partial<Departure>, figures: Partial<CompletionFigures> = {}): MigrationReport {
  const arrived: CompletionFigures = {
    frames: { total: 8, zero: 1, present: 0, cache: 0, resident: 0, duplicate: 0, peer: 0, source: 7 },
    bytes: { wire: 1, manifest: 2, pages: 3, state: 4, raw: 5 },
    faults: { count: 0, p50Us: 0, p99Us: 0, maxUs: 0 },
    longestGapMs: null,
    verified: true,
    resumedAt: (START + 560) * 1000,
    verifyMs: 100,
    ...figures,
  };
  return makeReport(ABOUT, { startedAt: START, ...departure }, arrived, 99, START + 2_100);
}

void t.test('times', (t) => {
  const whole = report({ pausedAt: (START + 500) * 1000 + 1 });
  t.strictSame(whole.ms, { prepare: 500.001, downtime: 59.999, total: 2_000, journal: null });
  t.equal(whole.bytes.wire, 99);
  const fast = report({ pausedAt: (START + 600) * 1000 });
  t.equal(fast.ms.downtime, 0, 'a clock that is ahead makes no negative time');
  t.end();
});

void t.test('what was chosen, what did not go as asked for, and rounds', (t) => {
  const lean = report({});
  for (const name of ['why', 'note', 'rounds']) t.notOk(name in lean, `${name} of a post-copy that was asked for`);
  const zero = { zero: 1, cache: 0, resident: 0, duplicate: 0, peer: 0, source: 7 };
  const rounds = [{ changed: 8, lacking: 1, ...zero, wireBytes: 30_000, ms: 12 }];
  t.match(report({ why: 'as it is', note: 'it took longer', rounds }), {
    why: 'as it is',
    note: 'it took longer',
    rounds,
  });
  t.end();
});

void t.test('nobody knows when the guest was stopped, or ran again', (t) => {
  t.strictSame(report({}).ms, { prepare: null, downtime: null, total: 2_000, journal: null });
  const late = report({ pausedAt: (START + 500) * 1000 }, { resumedAt: 0 });
  t.strictSame(late.ms, { prepare: 500, downtime: null, total: 2_000, journal: null });
  t.end();
});

void t.test('of the downtime, what the journals took', (t) => {
  t.equal(report({ journalMs: 1.25 }, { journalMs: 2 }).ms.journal, 3.25);
  t.equal(report({ journalMs: 1.25 }).ms.journal, null, 'the destination was restarted');
  t.equal(report({}, { journalMs: 2 }).ms.journal, null);
  t.end();
});

void t.test('the longest gap: of the guest, of one of the hosts, or between them', (t) => {
  const heartbeats = { firstNumber: 1, firstUnixMicros: 0, lastNumber: 9, lastUnixMicros: START * 1000 };
  const firstBeatAt = (START + 70) * 1000;
  t.equal(report({}).longestGapMs, null);
  t.equal(report({ heard: { longestGapMs: 30 } }, { longestGapMs: 20 }).longestGapMs, 30);
  t.equal(report({ heard: { longestGapMs: 30, heartbeats } }, { longestGapMs: 20, firstBeatAt }).longestGapMs, 70);
  t.equal(report({ heard: { longestGapMs: null } }, { firstBeatAt }).longestGapMs, null, 'half of it is no gap');
  t.end();
});
