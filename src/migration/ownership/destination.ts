/**
 * Ownership, the destination's side: a state machine free of I/O.
 *
 *                                                                             ╭── take-over ──► awaited ──loaded──╮
 *                                                                             │                    │              ▼
 *  idle ──prepare──► accepting* ──► starting ──► prepared ──load──► loading ──► arrived ──loaded──► loaded ──take-over──► taking-over*
 *   │                    │              │            │                 │           │                  │               │      │
 *   │ load, take-over,   └────────── abort, timeout, failure, VMM died, take-over before it has arrived ──────────────┘      │durable
 *   │ abort, obstacle    │                                    (journal failed, VMM died: retracting* first)                  ▼
 *   └───────────────────►▼                                                                                                resuming
 *                     killing ──VMM dead──► refusing* ──durable──► REFUSED                                                    │
 *                        │ a guest runs that nobody knows                                                                     ▼
 *                        ▼                                                            restart as owner: reattaching ──►    serving
 *                      ORPHAN                                                                                                 │filled
 *                                                                                                                             ▼
 *   VMM dies as owner: losing* ──► LOST             COMPLETE ◄──durable── closing* ◄──acknowledged── completing ◄── unregistering
 *
 *   * waits for the journal        CAPITALS: over
 *
 * The rules, each argued in docs/ownership.md:
 *  1. The guest runs only when `owner` is durable; `owner` is answered only from then on.
 *  2. `refused` is answered only when the refusal is durable and no VMM of this key lives. The VMM dies first: so the
 *     record alone says both, and nothing is left to do after a restart.
 *  3. A key this host never heard of is refused likewise, before it is answered.
 *  4. Only a state loaded by this incarnation of the agent is taken over: `incoming` after a restart is refused.
 */
import { PagetideError, type ErrorCode, type ErrorJson } from '../../errors.ts';
import type {
  AnswerState,
  DestinationAction,
  DestinationEvent,
  DestinationRecord,
  DestinationRecordState,
  DestinationReport,
  MigrationKey,
  Step,
} from './types.ts';

export type DestinationAt =
  | 'idle'
  | 'accepting'
  | 'starting'
  | 'prepared'
  | 'loading'
  | 'arrived'
  | 'awaited'
  | 'loaded'
  | 'taking-over'
  | 'retracting'
  | 'resuming'
  | 'reattaching'
  | 'serving'
  | 'unregistering'
  | 'completing'
  | 'closing'
  | 'complete'
  | 'killing'
  | 'refusing'
  | 'refused'
  | 'orphan'
  | 'losing'
  | 'lost';

export interface DestinationState extends MigrationKey {
  readonly side: 'destination';
  readonly at: DestinationAt;
  /** Null until a prepare named it. */
  readonly guest: string | null;
  readonly peer: string | null;
  /** The journal has (or is getting) `incoming` of this key: what was started for it is known to have been started here. */
  readonly known: boolean;
  /** Every page was here before the guest was ready to hear of it. */
  readonly filled: boolean;
  /** The guest ended by itself after every page had come: that is no business of the migration any more. */
  readonly vmmDead: boolean;
  readonly error: ErrorJson | null;
}

export type DestinationStep = Step<DestinationState, DestinationAction>;

/** A machine for a key that this host has never heard of. */
export function newDestination({ migration, epoch }: MigrationKey): DestinationState {
  const unknown = { guest: null, peer: null, known: false, filled: false, vmmDead: false, error: null };
  return { side: 'destination', at: 'idle', migration, epoch, ...unknown };
}

/** Takes a migration up again after a restart, from the last record of it that is durable. */
export function recoverDestination(record: DestinationRecord): DestinationStep {
  const { guest, peer } = record;
  const state: DestinationState = { ...newDestination(record), guest, peer, known: true, error: record.error ?? null };
  switch (record.state) {
    case 'incoming':
      return refuse(state, problem('PT_PEER_FAILED', "the destination's agent restarted before it owned the guest"));
    case 'owner':
      return go({ ...state, at: 'reattaching' }, [{ do: 'serve' }]);
    case 'complete':
    case 'refused':
    case 'lost':
      return go({ ...state, at: record.state });
  }
}

/** Whether nothing more will happen by itself, nor has to be asked again. */
export function destinationEnded({ at }: DestinationState): boolean {
  return at === 'complete' || at === 'refused' || at === 'lost' || at === 'orphan' || at === 'idle';
}

/** The reducer. An event that means nothing in this state returns the state unchanged and no actions. */
export function stepDestination(state: DestinationState, event: DestinationEvent): DestinationStep {
  switch (event.type) {
    case 'prepare':
    case 'load':
    case 'take-over':
    case 'abort':
    case 'status':
      // a stale message of another try; the driver routes by key, this is the second lock
      return sameKey(state, event) ? onRequest(state, event) : stay(state);
    case 'acknowledged':
      return sameKey(state, event) && state.at === 'completing' ? close(state) : stay(state);
    case 'peer-gone':
      return state.at === 'completing' ? close(state) : stay(state);
    case 'journaled':
      return onJournaled(state, event.record);
    case 'journal-failed':
      return onJournalFailed(state, event.record, event.error);
    case 'vmm-started':
      return state.at === 'starting' ? answering({ ...state, at: 'prepared' }) : stay(state);
    case 'start-failed':
      return state.at === 'starting' ? refuse(state, event.error) : stay(state);
    case 'arrived':
      return state.at === 'loading' ? answering({ ...state, at: 'arrived' }) : stay(state);
    case 'loaded':
      if (state.at === 'awaited') return own(state);
      return isLoading(state) ? answering({ ...state, at: 'loaded' }) : stay(state);
    case 'load-failed':
      return isLoading(state) ? refuse(state, event.error) : stay(state);
    case 'resumed':
      return onResumed(state);
    case 'resume-failed':
    case 'serve-failed':
      // the owner all the same: the source may know, and the driver tries again
      if (state.at !== 'resuming' && state.at !== 'reattaching') return stay(state);
      return answering({ ...state, error: event.error });
    case 'served':
      return state.at === 'reattaching' ? go({ ...state, at: 'resuming' }, [{ do: 'resume' }]) : stay(state);
    case 'filled':
      if (state.at === 'serving') return go({ ...state, at: 'unregistering', filled: true }, [{ do: 'unregister' }]);
      return go({ ...state, filled: true });
    case 'unregistered':
      return state.at === 'unregistering' ? go({ ...state, at: 'completing' }, [complete(state)]) : stay(state);
    case 'unregister-failed':
      return state.at === 'unregistering' ? go({ ...state, error: event.error }) : stay(state);
    case 'vmm-dead':
      return state.at === 'killing' ? go({ ...state, at: 'refusing' }, [journal(state, 'refused')]) : stay(state);
    case 'vmm-running':
      return state.at === 'killing' ? orphan(state) : stay(state);
    case 'kill-failed':
      return state.at === 'killing' ? go({ ...state, error: event.error }, [notYet(state, event.error)]) : stay(state);
    case 'vmm-died':
      return onVmmDied(state);
    case 'timeout':
      return beforeOwner(state) ? refuse(state, problem('PT_PEER_UNREACHABLE', 'the source went silent')) : stay(state);
    case 'retry':
      return onRetry(state);
  }
}

type Request = Extract<DestinationEvent, { type: 'prepare' | 'load' | 'take-over' | 'abort' | 'status' }>;

function onRequest(state: DestinationState, event: Request): DestinationStep {
  switch (state.at) {
    case 'idle':
      if (event.type === 'status') return answering(state);
      if (event.type === 'prepare') return onPrepare(state, event);
      // it can be an answer that was lost with a journal, or a message that overtook its prepare: refuse for ever
      return refuse(state, problem('PT_MIGRATION_UNKNOWN', 'the destination knows nothing of this migration'));
    case 'accepting':
    case 'starting':
      if (event.type === 'prepare') return stay(state); // answered once prepared
      break;
    case 'prepared':
      if (event.type === 'load') return go({ ...state, at: 'loading' }, [{ do: 'load' }]);
      break;
    case 'loading':
      if (event.type === 'load') return stay(state); // answered once it has arrived
      break;
    case 'arrived':
      // it waits for nothing but the VMM, and that is here: answered once it is decided
      if (event.type === 'take-over') return go({ ...state, at: 'awaited' });
      break;
    case 'awaited':
      if (event.type === 'take-over') return stay(state);
      break;
    case 'loaded':
      if (event.type === 'take-over') return own(state);
      break;
    case 'taking-over':
    case 'retracting':
    case 'killing':
    case 'refusing':
      return event.type === 'status' ? answering(state) : stay(state); // answered once it is decided
    case 'resuming':
      return event.type === 'take-over' ? stay(state) : answering(state); // answered with the time of the resume
    default:
      return answering(state);
  }
  // not the owner yet, and the request isn't the one that leads on from here
  if (event.type === 'abort') return refuse(state, problem('PT_CANCELLED', 'the source aborted the migration'));
  if (event.type === 'take-over')
    return refuse(state, problem('PT_PROTOCOL', 'told to take over a guest that is not loaded'));
  return answering(state);
}

function onPrepare(state: DestinationState, event: Extract<DestinationEvent, { type: 'prepare' }>): DestinationStep {
  const next: DestinationState = { ...state, at: 'accepting', guest: event.guest, peer: event.peer };
  if (event.obstacle !== undefined) return refuse(next, event.obstacle);
  return go({ ...next, known: true }, [journal(next, 'incoming')]);
}

function onJournaled(state: DestinationState, record: DestinationRecordState): DestinationStep {
  const { at } = state;
  if (at === 'accepting' && record === 'incoming') return go({ ...state, at: 'starting' }, [{ do: 'start-vmm' }]);
  if (at === 'retracting' && record === 'incoming')
    return refuse(state, state.error ?? problem('PT_IO', 'the journal failed'));
  if (at === 'taking-over' && record === 'owner') return go({ ...state, at: 'resuming' }, [{ do: 'resume' }]);
  if (at === 'refusing' && record === 'refused') {
    const next: DestinationState = { ...state, at: 'refused' };
    return go(next, [answer(next), report('refused', next.error)]);
  }
  if (at === 'closing' && record === 'complete') return go({ ...state, at: 'complete' }, [report('complete')]);
  if (at === 'losing' && record === 'lost') return go({ ...state, at: 'lost' });
  return stay(state);
}

function onJournalFailed(state: DestinationState, record: DestinationRecordState, error: ErrorJson): DestinationStep {
  if (state.at === 'accepting' && record === 'incoming') return refuse(state, error);
  if (state.at === 'taking-over' && record === 'owner') return retract(state, error);
  if (state.at === 'retracting' && record === 'incoming') return go({ ...state, error }, [notYet(state, error)]);
  if (state.at === 'refusing' && record === 'refused') return go({ ...state, error }, [notYet(state, error)]);
  return state.at === 'closing' || state.at === 'losing' ? go({ ...state, error }) : stay(state);
}

function onResumed(state: DestinationState): DestinationStep {
  if (state.at !== 'resuming') return stay(state);
  const next: DestinationState = { ...state, at: state.filled ? 'unregistering' : 'serving', error: null };
  return go(next, [answer(next), report('owner'), ...(state.filled ? [{ do: 'unregister' as const }] : [])]);
}

function onVmmDied(state: DestinationState): DestinationStep {
  switch (state.at) {
    case 'starting':
    case 'prepared':
    case 'loading':
    case 'arrived':
    case 'awaited':
    case 'loaded':
      return refuse(state, problem('PT_VMM_GONE', "the destination's VMM exited before it owned the guest"));
    case 'taking-over':
      return retract(state, problem('PT_VMM_GONE', "the destination's VMM exited before it owned the guest"));
    case 'resuming':
    case 'reattaching':
    case 'serving':
    case 'unregistering': {
      const error = problem('PT_VMM_GONE', 'the VMM exited at the destination while it owned the guest');
      const next: DestinationState = { ...state, at: 'losing', error };
      return go(next, [journal(next, 'lost'), answer(next), report('guest-lost', error)]);
    }
    case 'completing':
    case 'closing':
      return go({ ...state, vmmDead: true });
    default:
      return stay(state);
  }
}

function onRetry(state: DestinationState): DestinationStep {
  switch (state.at) {
    case 'resuming':
      return go(state, [{ do: 'resume' }]);
    case 'reattaching':
      return go(state, [{ do: 'serve' }]);
    case 'unregistering':
      return go(state, [{ do: 'unregister' }]);
    case 'completing':
      return go(state, [complete(state)]);
    case 'closing':
      return go(state, [journal(state, 'complete')]);
    case 'killing':
      return go(state, [{ do: 'kill-vmm', unlessRunning: !state.known }]);
    case 'retracting':
      return go(state, [journal(state, 'incoming')]);
    case 'refusing':
      return go(state, [journal(state, 'refused')]);
    case 'losing':
      return go(state, [journal(state, 'lost')]);
    default:
      return stay(state);
  }
}

// --- moves --------------------------------------------------------------------------------------------------------

function own(state: DestinationState): DestinationStep {
  return go({ ...state, at: 'taking-over' }, [journal(state, 'owner')]);
}

function refuse(state: DestinationState, error: ErrorJson): DestinationStep {
  return go({ ...state, at: 'killing', error }, [{ do: 'kill-vmm', unlessRunning: !state.known }]);
}

/**
 * Takes back an `owner` that may be durable or become so, although the guest has not run and now never will. The VMM
 * is left alone until the journal says `incoming` again: after a crash in between it would be this host's to resume.
 */
function retract(state: DestinationState, error: ErrorJson): DestinationStep {
  return go({ ...state, at: 'retracting', error }, [journal(state, 'incoming')]);
}

/** A guest that runs under a key without a record: a journal was lost. It may be the owner, so nothing is refused. */
function orphan(state: DestinationState): DestinationStep {
  const error = problem('PT_IN_DOUBT', 'a guest of this migration runs here, but the journal knows nothing of it');
  const next: DestinationState = { ...state, at: 'orphan', error };
  return go(next, [answer(next), report('orphan', error)]);
}

function close(state: DestinationState): DestinationStep {
  return go({ ...state, at: 'closing' }, [journal(state, 'complete')]);
}

// --- helpers ------------------------------------------------------------------------------------------------------

function beforeOwner(state: DestinationState): boolean {
  const { at } = state;
  return at === 'accepting' || at === 'starting' || at === 'prepared' || isLoading(state) || at === 'loaded';
}

function isLoading({ at }: DestinationState): boolean {
  return at === 'loading' || at === 'arrived' || at === 'awaited';
}

/** What is said of a state to whoever asks. Never more than is durable. */
export function answerState(at: DestinationAt): AnswerState {
  switch (at) {
    case 'idle':
    case 'orphan':
      return 'unknown';
    case 'accepting':
    case 'starting':
    case 'retracting':
    case 'killing':
    case 'refusing':
      return 'preparing';
    case 'prepared':
    case 'loading':
      return 'prepared';
    case 'arrived':
    case 'awaited':
      return 'arrived';
    case 'loaded':
    case 'taking-over':
      return 'loaded';
    case 'resuming':
    case 'reattaching':
    case 'serving':
    case 'unregistering':
    case 'completing':
    case 'closing':
    case 'losing':
    case 'lost':
      return 'owner';
    case 'complete':
      return 'complete';
    case 'refused':
      return 'refused';
  }
}

function answer(state: DestinationState): DestinationAction {
  const { error } = state;
  return { do: 'answer', key: keyOf(state), state: answerState(state.at), ...(error === null ? {} : { error }) };
}

/** It will be refused, but that could not be made durable yet. Enough for a source that hasn't given the guest away. */
function notYet(state: DestinationState, error: ErrorJson): DestinationAction {
  return { do: 'answer', key: keyOf(state), state: 'preparing', error };
}

function answering(state: DestinationState): DestinationStep {
  return go(state, [answer(state)]);
}

function complete(state: DestinationState): DestinationAction {
  return { do: 'send', request: 'complete', key: keyOf(state) };
}

function journal(state: DestinationState, to: DestinationRecordState): DestinationAction {
  const { guest, peer, error } = state;
  const record: DestinationRecord = { side: 'destination', state: to, ...keyOf(state), guest, peer };
  return { do: 'journal', record: error === null ? record : { ...record, error } };
}

function report(what: DestinationReport, error?: ErrorJson | null): DestinationAction {
  return { do: 'report', what, ...(error === undefined || error === null ? {} : { error }) };
}

function problem(code: ErrorCode, message: string): ErrorJson {
  return new PagetideError(code, message).toJSON();
}

function keyOf({ migration, epoch }: MigrationKey): MigrationKey {
  return { migration, epoch };
}

function sameKey(state: MigrationKey, event: MigrationKey): boolean {
  return state.migration === event.migration && state.epoch === event.epoch;
}

function go(state: DestinationState, actions: DestinationAction[] = []): DestinationStep {
  return { state, actions };
}

function stay(state: DestinationState): DestinationStep {
  return { state, actions: [] };
}
