/**
 * Copies a running guest's memory to the destination in rounds, until it may move.
 *
 *   told the whole manifest ─► copy 1 ─► rescan ─► decide ─┬─► switch, or what becomes of one that is stuck
 *                               ▲                         │
 *                               └── copy n ◄── tell ──────┘ again: what the scan has found
 *
 * A scan that ends in the switch tells nothing: what it has found goes with the last pass, when the guest stands still. So nothing of what
 * the guest writes gets lost between rounds, whatever is decided here, and however often: see guest-scan.ts.
 */
import { formatMillis } from '../agent/units.ts';
import { PagetideError } from '../errors.ts';
import type { GuestScan, Rescan } from './guest-scan.ts';
import type { Plan } from './modes.ts';
import { decide, type Estimate, type LastPass } from './rounds.ts';
import type { CopiedRound, CopyingProgress, Rest, RoundReport } from './types.ts';

/** What of a {@link GuestScan} is needed. */
type Scan = Pick<GuestScan, 'manifest' | 'rescan' | 'tellChanged' | 'readsAll' | 'tagsAMs'>;

export interface CopyingParts {
  /** Its first manifest was told. */
  scan: Scan;
  /** Sends the frames of a round to the destination, in order. */
  tell(frames: readonly Buffer[]): Promise<void>;
  /** Resolves when the destination has copied a round. */
  copy(round: number): Promise<CopiedRound>;
  /** Where copying is now; the object is a new one each time. */
  onProgress(progress: CopyingProgress): void;
  /** A round is over. */
  onRound(round: RoundReport): void;
}

export interface CopyingEnd {
  /** What comes of what is left. */
  rest: Rest;
  /** Why it isn't as it was asked for. */
  note?: string;
}

/**
 * Resolves when the guest may be paused.
 * @throws PagetideError `PT_NOT_CONVERGING` where it is to stay then, and what scan, `tell` and `copy` throw
 */
export async function copyInRounds(parts: CopyingParts, plan: Plan): Promise<CopyingEnd> {
  const { scan } = parts;
  const copying = plan.copying;
  if (copying === undefined) throw new PagetideError('PT_INTERNAL', `a ${plan.mode} has no rounds`);
  const rest: Rest = plan.mode === 'hybrid' ? 'serve' : 'copy';
  const settings = { rest, maxDowntimeMs: copying.maxDowntimeMs, maxRounds: copying.maxRounds };
  const rounds: RoundReport[] = [];
  const scans: Rescan[] = [];
  let told = scan.manifest.frames;
  let estimate: Estimate | undefined;
  for (let round = 1; ; round++) {
    parts.onProgress({
      round,
      frames: told,
      dirtyPerSecond: Math.round(estimate?.dirtyPerSecond ?? 0),
      expectedDowntimeMs: estimate === undefined ? null : rounded(estimate.downtimeMs),
    });
    const report = reportOf(told, await parts.copy(round));
    rounds.push(report);
    parts.onRound(report);
    const found = await scan.rescan();
    scans.push(found);
    const decision = decide(rounds, scans, lastPass(scan), settings);
    estimate = decision.estimate;
    if (decision.do === 'switch') return { rest };
    if (decision.do === 'stuck') return stuck(decision.because, rounds.length, estimate, found.unlocated > 0, copying);
    told = found.changed;
    await parts.tell(scan.tellChanged());
  }
}

/** The time that the guest will stand still at least, milliseconds, where that can be told before it is copied: all of it is read again. */
export function downtimeBeforehand(scan: Scan): number | undefined {
  const { tagsAMs, readsAll } = lastPass(scan);
  return readsAll === 0 || tagsAMs === undefined ? undefined : readsAll / tagsAMs;
}

function lastPass(scan: Scan): LastPass {
  return { tagsAMs: scan.tagsAMs, readsAll: scan.readsAll ? scan.manifest.frames : 0 };
}

function stuck(
  because: 'rounds' | 'dirty',
  rounds: number,
  { downtimeMs, dirtyPerSecond }: Estimate,
  givesBack: boolean,
  { maxDowntimeMs, onNoConvergence, mustWait }: NonNullable<Plan['copying']>,
): CopyingEnd {
  const why =
    because === 'dirty'
      ? `the guest changes ${Math.round(dirtyPerSecond)} pages a second, as fast as they move`
      : `there are no more rounds${givesBack ? ', and the guest gives memory back all the time (its balloon), so all of it is read each time' : ''}`;
  const state =
    `after ${rounds} round${rounds === 1 ? '' : 's'} the guest would stand still for about ${formatMillis(downtimeMs)}, ` +
    `${formatMillis(maxDowntimeMs)} are allowed: ${why}`;
  switch (onNoConvergence) {
    case 'post-copy':
      return { rest: 'serve', note: `${state}; so it moves by post-copy` };
    case 'pause':
      return { rest: 'copy', note: `${state}; so it stands still for longer` };
    case 'abort':
      throw new PagetideError(
        'PT_NOT_CONVERGING',
        state,
        mustWait ? { hint: 'Raise --max-downtime or --bandwidth, or choose --on-no-convergence pause.' } : {},
      );
  }
}

function reportOf(changed: number, { lacking, frames, wireBytes, ms }: CopiedRound): RoundReport {
  const { zero, cache, resident, duplicate, peer, source } = frames;
  return { changed, lacking, zero, cache, resident, duplicate, peer, source, wireBytes, ms: rounded(ms) };
}

function rounded(ms: number): number {
  return Math.round(ms * 1000) / 1000;
}
