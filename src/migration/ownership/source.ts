/**
 * Ownership, the source's side: a state machine free of I/O.
 *
 *                  ┌──prepared──► copying ──┐
 *                  │                        │copied
 *                  │                        ▼
 *  opening* ─► preparing ──prepared──► pausing ──paused──► loading ─arrived──► committing*
 *     │            │                      │                   │                 │       │ journal fails
 *     └────────────┴──── cancel, failure, refused ────────────┘          durable│       ▼
 *                  │                                                            │    undoing*
 *                  │            refused (durably, its VMM dead)                 ▼       │ refused, or `preparing` durable again
 *                  │◄─────────────────────────────────────────────────── handing-over   │
 *                  │◄──────────────── fencing* ◄──── operator: fence ─────────  │ │     │
 *                  │◄───────────────────────────────────────────────────────────┼─┼─────┘
 *                  ▼                                                       owner│ │complete
 *              resuming ──resumed──► settling* ──durable──► ROLLED-BACK         ▼ │
 *                                                                          leaving* ──durable──► gone
 *   VMM dies before `committing`: losing* ──durable──► LOST                     │ │               │ complete
 *                                                                               ▼ ▼               ▼
 *                                                     RELEASED ◄──durable── closing* ◄──dead── releasing
 *
 *   * waits for the journal        CAPITALS: over
 *
 * `copying` is for migrations that copy memory while the guest runs: all of that is before the guest is paused, and nothing of it
 * is in the journal, which says `preparing`. It ends as `preparing` does when anything goes wrong.
 *
 * The rules, each argued in docs/ownership.md:
 *  1. A take-over is only sent when `handing-over` is durable. So until then the guest may be resumed at once: nothing
 *     in the world can make the destination an owner.
 *  2. Afterwards it is resumed only on a definite `refused`, or by the operator's fence once that is durable.
 *     Silence never decides: the guest stays paused and the question is asked again.
 *  3. The VMM is released only when the destination said `complete`.
 */
import { PagetideError, type ErrorJson } from '../../errors.ts';
import type {
  MigrationKey,
  SourceAction,
  SourceEvent,
  SourceRecord,
  SourceRecordState,
  SourceReport,
  SourceRequest,
  Step,
} from './types.ts';

export type SourceAt =
  | 'opening'
  | 'preparing'
  | 'copying'
  | 'pausing'
  | 'loading'
  | 'committing'
  | 'undoing'
  | 'handing-over'
  | 'fencing'
  | 'leaving'
  | 'gone'
  | 'releasing'
  | 'closing'
  | 'released'
  | 'resuming'
  | 'settling'
  | 'rolled-back'
  | 'losing'
  | 'lost';

export interface SourceState extends MigrationKey {
  readonly side: 'source';
  readonly at: SourceAt;
  readonly guest: string;
  readonly peer: string;
  /** Memory is copied in rounds before the guest is paused. */
  readonly copies: boolean;
  /** The destination may still hold something for this migration, and is told to abort until it has refused. */
  readonly telling: boolean;
  /** A question that decides over ownership went unanswered. */
  readonly doubt: boolean;
  readonly cancelled: boolean;
  /** The VMM died after the guest's state had left; its memory files may still serve pages. */
  readonly vmmDead: boolean;
  /** The destination said that it lost the guest. */
  readonly peerLost: boolean;
  readonly error: ErrorJson | null;
}

export type SourceStep = Step<SourceState, SourceAction>;

export interface SourceStart extends MigrationKey {
  guest: string;
  /** URL of the destination's agent. */
  peer: string;
  /** Whether memory is copied in rounds while the guest runs. */
  copies: boolean;
}

/** Begins a migration of a guest that is owned and runs here. `epoch` from {@link nextEpoch}. */
export function startSource(start: SourceStart): SourceStep {
  const state = initial(start, 'opening');
  return { state, actions: [journal(state, 'preparing')] };
}

/**
 * Takes a migration up again after a restart, from the last record of it that is durable. The VMM lived on: whether
 * it was paused is not recorded, so what it should be doing is asked for again (each VMM action may be repeated).
 */
export function recoverSource(record: SourceRecord): SourceStep {
  const start = {
    migration: record.migration,
    epoch: record.epoch,
    guest: record.guest ?? '',
    peer: record.peer ?? '',
    copies: false, // there is no way back to where that matters
  };
  const state = { ...initial(start, 'opening'), error: record.error ?? null };
  switch (record.state) {
    case 'preparing':
      return rollBack({ ...state, telling: true });
    case 'handing-over':
      return go({ ...state, at: 'handing-over', doubt: true }, [
        { do: 'serve-pages' },
        send(state, 'take-over'),
        report('in-doubt'),
      ]);
    case 'fenced':
      return rollBack({ ...state, telling: true });
    case 'gone':
      return go({ ...state, at: 'gone' }, [{ do: 'serve-pages' }, send(state, 'status')]);
    case 'running':
      return go({ ...state, at: 'rolled-back' });
    case 'released':
      return go({ ...state, at: 'released' });
    case 'lost':
      return go({ ...state, at: 'lost' });
  }
}

/** Whether nothing more will happen by itself, nor has to be asked again. */
export function sourceEnded(state: SourceState): boolean {
  if (state.at === 'released') return true;
  return (state.at === 'rolled-back' || state.at === 'lost') && !state.telling;
}

/** The reducer. An event that means nothing in this state returns the state unchanged and no actions. */
export function stepSource(state: SourceState, event: SourceEvent): SourceStep {
  switch (event.type) {
    case 'answer':
    case 'complete':
      // a stale message of another try; the driver routes by key, this is the second lock
      if (event.migration !== state.migration || event.epoch !== state.epoch) return stay(state);
      return event.type === 'answer' ? onAnswer(state, event) : onComplete(state);
    case 'journaled':
      return onJournaled(state, event.record);
    case 'journal-failed':
      return onJournalFailed(state, event.record, event.error);
    case 'copied':
      return state.at === 'copying' ? go({ ...state, at: 'pausing' }, [{ do: 'pause' }]) : stay(state);
    case 'paused':
      return state.at === 'pausing' ? go({ ...state, at: 'loading' }, [send(state, 'load')]) : stay(state);
    case 'pause-failed':
      return state.at === 'pausing' ? rollBack({ ...state, error: event.error }) : stay(state);
    case 'resumed':
      return state.at === 'resuming' ? go({ ...state, at: 'settling' }, [journal(state, 'running')]) : stay(state);
    case 'resume-failed':
      return state.at === 'resuming' ? go({ ...state, error: event.error }) : stay(state);
    case 'vmm-died':
      return onVmmDied(state);
    case 'vmm-released':
      return state.at === 'releasing' ? go({ ...state, at: 'closing' }, [journal(state, 'released')]) : stay(state);
    case 'release-failed':
      return state.at === 'releasing' ? go({ ...state, error: event.error }) : stay(state);
    case 'retry':
      return onRetry(state);
    case 'failed':
      return beforeCommit(state) ? rollBack({ ...state, error: event.error }) : stay(state);
    case 'cancel':
      return onCancel(state);
    case 'fence':
      return onFence(state);
    case 'discard':
      return onDiscard(state);
    case 'peer-gone':
      // only where the guest is ours for certain: elsewhere `fence` is the word, and a decision
      return settled(state) ? go({ ...state, telling: false }) : stay(state);
  }
}

function onAnswer(state: SourceState, event: Extract<SourceEvent, { type: 'answer' }>): SourceStep {
  const owned = event.state === 'owner' || event.state === 'complete';
  switch (state.at) {
    case 'preparing':
    case 'copying':
    case 'pausing':
    case 'loading':
      if (owned) return conflict(state); // it was never told to take over
      if (event.state === 'refused') return rollBack({ ...state, telling: false, error: event.error ?? refusal() });
      if (event.error !== undefined) return rollBack({ ...state, error: event.error });
      if (state.at === 'preparing' && event.state === 'prepared')
        return state.copies
          ? go({ ...state, at: 'copying' }, [{ do: 'copy' }])
          : go({ ...state, at: 'pausing' }, [{ do: 'pause' }]);
      if (state.at === 'loading' && (event.state === 'arrived' || event.state === 'loaded')) {
        return go({ ...state, at: 'committing' }, [journal(state, 'handing-over')]);
      }
      return stay(state);
    case 'committing':
      // an early refusal is heard again as the answer to the take-over; deciding here would race with the journal
      return stay(state);
    case 'undoing':
      if (owned) return conflict(state);
      return event.state === 'refused' ? rollBack({ ...state, telling: false }) : stay(state);
    case 'handing-over':
    case 'fencing':
      if (event.state === 'owner') return leave(withPeerError(state, event.error));
      if (event.state === 'complete') return release(state);
      if (event.state !== 'refused') return stay(state);
      if (state.vmmDead) return lose({ ...state, telling: false });
      return rollBack({ ...state, telling: false, error: event.error ?? refusal() });
    case 'leaving':
    case 'gone':
      if (event.state === 'complete') return release(state);
      if (event.state === 'owner') return go(withPeerError(state, event.error));
      return event.state === 'refused' ? conflict(state) : stay(state);
    case 'resuming':
    case 'settling':
    case 'rolled-back':
    case 'losing':
    case 'lost':
      if (owned) return conflict(state); // after a fence that wasn't one
      return event.state === 'refused' ? go({ ...state, telling: false }) : stay(state);
    case 'opening':
    case 'releasing':
    case 'closing':
    case 'released':
      return stay(state);
  }
}

function onComplete(state: SourceState): SourceStep {
  switch (state.at) {
    case 'handing-over':
    case 'fencing':
    case 'leaving':
    case 'gone':
      return release(state); // complete implies owner
    case 'releasing':
    case 'closing':
      return stay(state); // acknowledged once it is durable
    case 'released':
      return go(state, [{ do: 'acknowledge', key: keyOf(state) }]);
    default:
      return conflict(state);
  }
}

function onJournaled(state: SourceState, record: SourceRecordState): SourceStep {
  const { at } = state;
  if (at === 'opening' && record === 'preparing') {
    return go({ ...state, at: 'preparing', telling: true }, [{ do: 'serve-pages' }, send(state, 'prepare')]);
  }
  if (at === 'committing' && record === 'handing-over') {
    return go({ ...state, at: 'handing-over' }, [send(state, 'take-over')]);
  }
  // it supersedes a `handing-over` that may be on disk, and no take-over was ever sent. Not `running`: that would be
  // the end of it, and after a crash nobody would resume the guest
  if (at === 'undoing' && record === 'preparing') return rollBack(state);
  if (at === 'fencing' && record === 'fenced') return rollBack(state);
  if (at === 'leaving' && record === 'gone') return go({ ...state, at: 'gone' }, [report('left')]);
  if (at === 'closing' && record === 'released') {
    return go({ ...state, at: 'released' }, [{ do: 'acknowledge', key: keyOf(state) }, report('released')]);
  }
  if (at === 'settling' && record === 'running') {
    return go({ ...state, at: 'rolled-back' }, [report('rolled-back', state.error)]);
  }
  if (at === 'losing' && record === 'lost') return go({ ...state, at: 'lost' });
  return stay(state);
}

function onJournalFailed(state: SourceState, record: SourceRecordState, error: ErrorJson): SourceStep {
  const failed = { ...state, error };
  if (state.at === 'opening' && record === 'preparing') {
    // nothing was sent and the guest never stopped; but the record may be there, and wants its end
    return rollBack(failed);
  }
  if (state.at === 'committing' && record === 'handing-over') {
    return go({ ...failed, at: 'undoing' }, [{ do: 'stop-pages' }, journal(failed, 'preparing'), send(state, 'abort')]);
  }
  if (state.at === 'fencing' && record === 'fenced') return go({ ...failed, at: 'handing-over' });
  return isJournaling(state.at) ? go(failed) : stay(state); // tried again at `retry`
}

function onVmmDied(state: SourceState): SourceStep {
  switch (state.at) {
    case 'opening':
    case 'preparing':
    case 'copying':
    case 'pausing':
    case 'loading':
    case 'undoing':
    case 'resuming':
    case 'settling':
      return lose(state);
    case 'committing':
    case 'handing-over':
    case 'leaving':
    case 'gone':
      // the destination has its whole state, and the memory is in files: it can still get there
      return go({ ...state, vmmDead: true });
    case 'fencing':
      return go({ ...state, at: 'handing-over', vmmDead: true });
    default:
      return stay(state);
  }
}

function onRetry(state: SourceState): SourceStep {
  const abort = state.telling ? [send(state, 'abort')] : [];
  switch (state.at) {
    case 'preparing':
      return go(state, [send(state, 'prepare')]);
    case 'copying':
      return go(state, [{ do: 'copy' }]);
    case 'pausing':
      return go(state, [{ do: 'pause' }]);
    case 'loading':
      return go(state, [send(state, 'load')]);
    case 'handing-over':
      return go({ ...state, doubt: true }, [send(state, 'take-over'), ...(state.doubt ? [] : [report('in-doubt')])]);
    case 'undoing':
      return go({ ...state, doubt: true }, [
        journal(state, 'preparing'),
        send(state, 'abort'),
        ...(state.doubt ? [] : [report('in-doubt')]),
      ]);
    case 'leaving':
      return go(state, [journal(state, 'gone')]);
    case 'gone':
      return go(state, [send(state, 'status')]);
    case 'releasing':
      return go(state, [{ do: 'release-vmm' }]);
    case 'closing':
      return go(state, [journal(state, 'released')]);
    case 'resuming':
      return go(state, [{ do: 'resume' }, ...abort]);
    case 'settling':
      return go(state, [journal(state, 'running'), ...abort]);
    case 'losing':
      return go(state, [journal(state, 'lost'), ...abort]);
    case 'rolled-back':
    case 'lost':
      return go(state, abort);
    case 'opening':
    case 'committing':
    case 'fencing':
    case 'released':
      return stay(state); // these wait for the journal alone, which always answers
  }
}

function onCancel(state: SourceState): SourceStep {
  if (beforeCommit(state)) return rollBack({ ...state, cancelled: true, error: cancelled() });
  if (settled(state) || state.at === 'undoing') return stay(state); // being rolled back already
  const message = 'the guest is being handed over, or belongs to the destination already';
  return turnDown(state, 'cancel', new PagetideError('PT_NOT_CANCELLABLE', message));
}

function onFence(state: SourceState): SourceStep {
  if (state.at === 'fencing') return stay(state);
  if (state.at === 'handing-over' && !state.vmmDead) return go({ ...state, at: 'fencing' }, [journal(state, 'fenced')]);
  const message =
    state.at === 'leaving' || state.at === 'gone'
      ? 'the guest has run at the destination: resuming it here would rewind it behind its disks'
      : 'there is no doubt about who owns the guest, so there is nothing to overrule';
  return turnDown(state, 'fence', new PagetideError('PT_GUEST_STATE', message));
}

function onDiscard(state: SourceState): SourceStep {
  if (state.at === 'gone' && state.peerLost) return release(state);
  if (state.at === 'releasing' || state.at === 'closing' || state.at === 'released') return stay(state);
  const message = 'the destination may still need the memory that is kept here';
  return turnDown(state, 'discard', new PagetideError('PT_GUEST_STATE', message));
}

// --- moves --------------------------------------------------------------------------------------------------------

/** Resumes at once. The caller has made sure that the destination can't become the owner. */
function rollBack(state: SourceState): SourceStep {
  const abort = state.telling ? [send(state, 'abort')] : [];
  return go({ ...state, at: 'resuming', doubt: false }, [{ do: 'stop-pages' }, { do: 'resume' }, ...abort]);
}

function leave(state: SourceState): SourceStep {
  return go({ ...state, at: 'leaving', doubt: false, telling: false }, [journal(state, 'gone')]);
}

/** The VMM dies before `released` is journaled, so that the record means that nothing is left to clean up. */
function release(state: SourceState): SourceStep {
  const next = { ...state, at: 'releasing' as const, doubt: false, telling: false };
  return go(next, [{ do: 'stop-pages' }, { do: 'release-vmm' }]);
}

function lose(state: SourceState): SourceStep {
  const error = new PagetideError(
    'PT_VMM_GONE',
    `the VMM of guest '${state.guest}' exited during its migration`,
  ).toJSON();
  const next = { ...state, at: 'losing' as const, doubt: false, vmmDead: true, error };
  const abort = state.telling ? [send(state, 'abort')] : [];
  return go(next, [{ do: 'stop-pages' }, journal(next, 'lost'), ...abort, report('guest-lost', error)]);
}

function conflict(state: SourceState): SourceStep {
  return go(state, [report('conflict')]);
}

// --- helpers ------------------------------------------------------------------------------------------------------

/** Nothing that could make the destination an owner has been journaled or sent. */
function beforeCommit({ at }: SourceState): boolean {
  return at === 'opening' || at === 'preparing' || at === 'copying' || at === 'pausing' || at === 'loading';
}

function settled({ at }: SourceState): boolean {
  return at === 'resuming' || at === 'settling' || at === 'rolled-back' || at === 'losing' || at === 'lost';
}

function isJournaling(at: SourceAt): boolean {
  return at === 'undoing' || at === 'leaving' || at === 'closing' || at === 'settling' || at === 'losing';
}

function initial({ migration, epoch, guest, peer, copies }: SourceStart, at: SourceAt): SourceState {
  const flags = { telling: false, doubt: false, cancelled: false, vmmDead: false, peerLost: false };
  return { side: 'source', at, migration, epoch, guest, peer, copies, ...flags, error: null };
}

function withPeerError(state: SourceState, error: ErrorJson | undefined): SourceState {
  return error === undefined ? state : { ...state, error, peerLost: state.peerLost || error.code === 'PT_VMM_GONE' };
}

function keyOf({ migration, epoch }: MigrationKey): MigrationKey {
  return { migration, epoch };
}

function journal(state: SourceState, to: SourceRecordState): SourceAction {
  const { guest, peer, error } = state;
  const record: SourceRecord = { side: 'source', state: to, ...keyOf(state), guest, peer };
  return { do: 'journal', record: error === null ? record : { ...record, error } };
}

function send(state: SourceState, request: SourceRequest): SourceAction {
  return { do: 'send', request, key: keyOf(state) };
}

function report(what: SourceReport, error?: ErrorJson | null): SourceAction {
  return { do: 'report', what, ...(error === undefined || error === null ? {} : { error }) };
}

function turnDown(state: SourceState, what: 'cancel' | 'fence' | 'discard', error: PagetideError): SourceStep {
  return go(state, [{ do: 'turn-down', what, error: error.toJSON() }]);
}

function refusal(): ErrorJson {
  return new PagetideError('PT_PEER_FAILED', 'the destination refused the guest').toJSON();
}

function cancelled(): ErrorJson {
  return new PagetideError('PT_CANCELLED', 'the migration was cancelled').toJSON();
}

function go(state: SourceState, actions: SourceAction[] = []): SourceStep {
  return { state, actions };
}

function stay(state: SourceState): SourceStep {
  return { state, actions: [] };
}
