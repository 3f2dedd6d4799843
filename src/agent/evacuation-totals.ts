/** Sums over the guests of an evacuation. */
import type { ErrorJson } from '../errors.ts';
import type { FrameClasses, MigrationInfo } from '../migration/types.ts';
import type { EvacuatedState, EvacuationTotals } from './service.ts';

interface Counted {
  state: EvacuatedState;
  last?: Pick<MigrationInfo, 'report'> | undefined;
  error?: ErrorJson | undefined;
}

/** Of guests that have moved; those that stay are counted. */
export function totalsOf(entries: readonly Counted[]): EvacuationTotals {
  const frames: FrameClasses = {
    ...{ total: 0, zero: 0, present: 0, cache: 0 },
    ...{ resident: 0, duplicate: 0, peer: 0, source: 0 },
  };
  const bytes: EvacuationTotals['bytes'] = { wire: 0, manifest: 0, pages: 0, state: 0, raw: 0 };
  let longestDowntimeMs: number | null = null;
  for (const { state, last } of entries) {
    const report = last?.report;
    if (state !== 'moved' || report === undefined) continue;
    add(frames, report.frames);
    add<typeof bytes>(bytes, report.bytes);
    const { downtime } = report.ms;
    if (downtime !== null) longestDowntimeMs = Math.max(longestDowntimeMs ?? 0, downtime);
  }
  const count = (wanted: EvacuatedState): number => entries.filter(({ state }) => state === wanted).length;
  return { moved: count('moved'), stay: count('stays'), frames, bytes, longestDowntimeMs };
}

/** Guests of an evacuation by what has become of them so far. */
export interface EvacuationCounts {
  waiting: number;
  moving: number;
  moved: number;
  /** Stays, and was not moved to the end: it can't go, nobody takes it, or it was stopped or cancelled. */
  left: number;
  /** Stays as its migration failed, to the last target that it was tried with. */
  failed: number;
}

interface Tried extends Counted {
  /** By target. */
  refused: ReadonlyMap<string, ErrorJson>;
}

export function countsOf(entries: readonly Tried[]): EvacuationCounts {
  const counts: EvacuationCounts = { waiting: 0, moving: 0, moved: 0, left: 0, failed: 0 };
  for (const entry of entries) counts[entry.state === 'stays' ? whyStays(entry) : entry.state]++;
  return counts;
}

function whyStays({ refused, error }: Tried): 'left' | 'failed' {
  return refused.size > 0 && error?.code !== 'PT_CANCELLED' ? 'failed' : 'left';
}

function add<T extends Record<keyof T, number>>(sum: T, more: T): void {
  for (const key of Object.keys(sum) as (keyof T)[]) sum[key] = (sum[key] + more[key]) as T[keyof T];
}
