/** How far a migration is, as its source sees it. */
import type { PageCounters } from '../transport/page-server.ts';
import { describe, type SourceState } from './ownership/index.ts';
import type { CopyingProgress, MigrationProgress, MigrationReport } from './types.ts';

export interface SourceView {
  state: SourceState;
  /** Of the guest's page size. */
  frames: number;
  /** Milliseconds since the epoch. */
  startedAt: number;
  /** What the destination told last. */
  remote: MigrationProgress | undefined;
  report: MigrationReport | undefined;
  /** Of the page streams at this end. */
  counters: PageCounters | undefined;
  copying: CopyingProgress | undefined;
  /** Something went wrong that the report doesn't tell. */
  hasFailed: boolean;
  /** Goes before everything else that could be said. */
  alarm: string | undefined;
  /** What did not go as asked for. */
  note: string | undefined;
}

export function sourceProgress(view: SourceView): MigrationProgress {
  const { state, frames, remote, report, counters, copying, alarm } = view;
  const { phase, note } = describe(state);
  const alarmed = (phase === 'serving' && remote?.phase === 'failed') || (phase === 'done' && view.hasFailed);
  const completing = phase === 'serving' && remote?.phase === 'completing';
  // until the guest has moved, what is known here says more than that the destination is ready
  const words =
    phase === 'preparing' || phase === 'copying' ? (view.note ?? note) : (remote?.note ?? view.note ?? note);
  return {
    phase: alarmed ? 'failed' : completing ? 'completing' : phase,
    framesTotal: remote?.framesTotal ?? report?.frames.total ?? frames,
    framesPresent: report?.frames.total ?? remote?.framesPresent ?? 0,
    faultsServed: report?.faults.count ?? remote?.faultsServed ?? 0,
    wireBytes: report?.bytes.wire ?? (counters === undefined ? 0 : counters.bytesIn + counters.bytesOut),
    elapsedMs: Date.now() - view.startedAt,
    note: alarm ?? words,
    ...(phase === 'copying' && copying !== undefined ? { copying } : {}),
  };
}
