/** Driving rounds: what is told when, and what becomes of a guest that does not converge. */
import t from 'tap';
import { copyInRounds, downtimeBeforehand } from '../../src/migration/copying.ts';
import type { Rescan } from '../../src/migration/guest-scan.ts';
import { planMigration, type ModeRequest, type Plan, type Source } from '../../src/migration/modes.ts';
import { PEER_PROTOCOL, type CopiedRound, type CopyingProgress, type RoundReport } from '../../src/migration/types.ts';
import { Manifest } from '../../src/pages/manifest.ts';

const FRAMES = 65_536;
const QUIET: Rescan = { tagged: 20, unlocated: 0, changed: 10, zero: 0, sinceMs: 1_000, tagMs: 2 };
const BUSY: Rescan = { tagged: 60_000, unlocated: 0, changed: 60_000, zero: 0, sinceMs: 500, tagMs: 200 };

/** A guest that stays as it is, but for memory that it gives back all the time. */
const GIVING: Rescan = { ...QUIET, tagged: FRAMES, unlocated: FRAMES, tagMs: 330 };

function plan(request: ModeRequest, more: Partial<Source> = {}): Plan {
  const can = { protocol: PEER_PROTOCOL, userfaultfd: { ok: true } };
  return planMigration(request, { pageSize: 4096, tracking: { ok: true }, ...more }, can);
}

function copied(round: number, source: number): CopiedRound {
  const frames = { zero: 0, cache: 0, resident: 0, duplicate: 0, peer: 0, source };
  return { round, lacking: 0, frames, wireBytes: source * 4_000, ms: source / 30 + 0.12345 };
}

/** Copies with scans that find what they are told to, and notes the order of things. */
function parts(finds: readonly Rescan[], readsAll = false) {
  const order: string[] = [];
  const progress: CopyingProgress[] = [];
  const rounds: RoundReport[] = [];
  let scans = 0;
  const scan = {
    manifest: new Manifest(FRAMES),
    readsAll,
    tagsAMs: 200,
    rescan: () => {
      order.push('rescan');
      return Promise.resolve(finds[Math.min(scans++, finds.length - 1)]!);
    },
    tellChanged: () => [Buffer.from(`changes ${scans}`)],
  };
  const given = {
    scan,
    tell: (frames: readonly Buffer[]) => Promise.resolve(void order.push(`tell ${frames.join()}`)),
    copy: (round: number) => {
      order.push(`copy ${round}`);
      return Promise.resolve(copied(round, round === 1 ? FRAMES : finds[Math.min(scans, finds.length) - 1]!.changed));
    },
    onProgress: (now: CopyingProgress) => void progress.push(now),
    onRound: (round: RoundReport) => void rounds.push(round),
  };
  return { given, order, progress, rounds };
}

void t.test('what a scan has found is told before it is copied, and not at all when the guest moves', async (t) => {
  const between: Rescan = { tagged: 12_000, unlocated: 0, changed: 12_000, zero: 0, sinceMs: 2_000, tagMs: 60 };
  const { given, order, progress, rounds } = parts([between, QUIET]);
  t.same(await copyInRounds(given, plan({ mode: 'pre-copy' })), { rest: 'copy' });
  t.same(order, ['copy 1', 'rescan', 'tell changes 1', 'copy 2', 'rescan']);
  t.match(progress, [
    { round: 1, frames: FRAMES, dirtyPerSecond: 0, expectedDowntimeMs: null },
    { round: 2, frames: 12_000, dirtyPerSecond: 6_000, expectedDowntimeMs: Number },
  ]);
  t.ok(progress[1]!.expectedDowntimeMs! > 300);
  t.match(rounds, [
    { changed: FRAMES, source: FRAMES, lacking: 0, wireBytes: FRAMES * 4_000 },
    { changed: 12_000, source: 12_000 },
  ]);
  t.equal(rounds[1]!.ms, 400.123, 'to the microsecond');
});

void t.test('a guest that does not converge', async (t) => {
  const attempt = (request: ModeRequest) => copyInRounds(parts([BUSY]).given, plan(request));
  t.match(await attempt({ mode: 'hybrid' }), { rest: 'serve', note: undefined });
  t.match(await attempt({ mode: 'pre-copy', onNoConvergence: 'post-copy' }), {
    rest: 'serve',
    note: /after 3 rounds the guest would stand still for about .*, 300 ms are allowed.*120000 pages a second.*moves by post-copy$/,
  });
  t.match(await attempt({ mode: 'pre-copy', onNoConvergence: 'pause' }), {
    rest: 'copy',
    note: /stands still for longer$/,
  });
  await t.rejects(attempt({ mode: 'pre-copy' }), {
    code: 'PT_NOT_CONVERGING',
    message: /after 3 rounds/,
    hint: /hybrid/,
  });
  await t.rejects(attempt({ mode: 'pre-copy', maxRounds: 1 }), {
    code: 'PT_NOT_CONVERGING',
    message: /after 1 round the .*there are no more rounds/,
  });
});

void t.test('a guest that gives memory back moves once that has come to rest', async (t) => {
  const only = { preCopyOnly: 'it has a balloon' };
  const { given, rounds } = parts([GIVING, GIVING, QUIET]);
  t.same(await copyInRounds(given, plan({ mode: 'auto' }, only)), { rest: 'copy' });
  t.equal(rounds.length, 3);
  await t.rejects(copyInRounds(parts([GIVING]).given, plan({ mode: 'auto', maxRounds: 4 }, only)), {
    code: 'PT_NOT_CONVERGING',
    message: /after 4 rounds .* gives memory back all the time/,
    hint: /^((?!post-copy|hybrid).)*$/,
  });
});

void t.test('what fails meanwhile ends it', async (t) => {
  const { given } = parts([QUIET]);
  const failing = () => Promise.reject(new Error('the destination is gone'));
  await t.rejects(copyInRounds({ ...given, copy: failing }, plan({ mode: 'hybrid' })), /destination is gone/);
  await t.rejects(copyInRounds({ ...parts([BUSY]).given, tell: failing }, plan({ mode: 'pre-copy' })), /gone/);
  await t.rejects(copyInRounds(given, plan({ mode: 'post-copy' })), { code: 'PT_INTERNAL' });
});

void t.test('a downtime that is known beforehand', (t) => {
  t.equal(downtimeBeforehand(parts([QUIET]).given.scan), undefined);
  t.equal(downtimeBeforehand(parts([QUIET], true).given.scan), FRAMES / 200);
  t.end();
});
