/** What a destination tells of a migration: to its source, and to operators. */
import type { GuestService } from '../memory/guest-service.ts';
import type { Copying } from './incoming-copying.ts';
import type { IncomingDetails } from './incoming-details.ts';
import type { IncomingWatch } from './incoming-watch.ts';
import { answerState, describe, type DestinationState } from './ownership/index.ts';
import type { CompletionFigures, IncomingStatus, MigrationInfo, MigrationProgress } from './types.ts';

/** Where it stands. */
export interface Seen {
  state: DestinationState;
  details: IncomingDetails;
  watched: Pick<IncomingWatch, 'alarm' | 'error' | 'note'>;
  /** Asked at any moment, also while it is being let go of. */
  service: GuestService | undefined;
  /** Where memory is copied in rounds. */
  copying: Pick<Copying, 'hasTaken'> | undefined;
  wants: number[] | undefined;
  figures: CompletionFigures | undefined;
}

export function statusOf(seen: Seen): IncomingStatus {
  const { migration, epoch, at } = seen.state;
  const { wants, figures } = seen;
  const state = answerState(at);
  const error = seen.watched.error ?? seen.state.error ?? undefined;
  const { resumedAt } = seen.details;
  return {
    migration,
    epoch,
    state,
    progress: progressOf(seen),
    ...(resumedAt === undefined ? {} : { resumedAt }),
    ...(error === undefined ? {} : { error }),
    ...(wants === undefined || state !== 'prepared' ? {} : { wants }),
    ...(figures === undefined ? {} : { figures }),
  };
}

export function infoOf(seen: Seen): MigrationInfo {
  const { state, details } = seen;
  const error = seen.watched.error ?? state.error ?? undefined;
  return {
    id: state.migration,
    guest: state.guest ?? '',
    mode: details.request?.mode ?? 'post-copy',
    peer: state.peer ?? '',
    direction: 'incoming',
    progress: progressOf(seen),
    ...(error === undefined ? {} : { error }),
  };
}

function progressOf({ state, details, watched, service, copying, figures }: Seen): MigrationProgress {
  const described = describe(state);
  const counts = service?.counts();
  // until the first round is told, the table knows of nothing that it lacks
  const isUntold = copying?.hasTaken === false;
  const memory = details.request?.description.memory;
  const total = memory === undefined ? 0 : memory.size / memory.pageSize;
  const done = described.phase === 'completing' || described.phase === 'done';
  return {
    phase: watched.alarm === undefined ? described.phase : 'failed',
    framesTotal: total,
    framesPresent: counts === undefined || isUntold ? (done ? total : 0) : counts.total - counts.outstanding,
    faultsServed: service?.serving.faultsServed ?? figures?.faults.count ?? 0,
    wireBytes: service === undefined ? (figures?.bytes.wire ?? 0) : service.wireBytes(),
    elapsedMs: Date.now() - details.startedAt,
    note: watched.note ?? described.note,
  };
}
