/**
 * The words in which the two ownership machines and whoever drives them speak. Nothing here does I/O.
 *
 * A machine is a reducer: `(state, event) → {state, actions}`. The driver carries the actions out and feeds what came
 * of them back as events. What it has to keep to:
 *
 *  - Journal actions are made durable in the order given. `journaled` comes back only when the record is durable.
 *  - VMM actions of one guest (`pause`, `resume`, `start-vmm`, `load`, `serve`, `unregister`, `kill-vmm`,
 *    `release-vmm`) are carried out one after the other in the order given; each may be repeated.
 *  - `send` is best effort. When it fails, or its answer stays away, the driver feeds `retry` (with a backoff).
 *  - One machine a ({@link MigrationKey}): a message for a pair that no machine on this host has is fed to a new idle
 *    destination machine, so that it is refused durably before it is answered.
 */
import type { ErrorJson } from '../../errors.ts';
import type { IncomingStatus, MigrationProgress, Phase } from '../types.ts';

/** Names one try to move one guest. The same migration id with another epoch is another machine. */
export interface MigrationKey {
  /** 16 hex digits. */
  migration: string;
  /** Grows with every try to move the guest, whether or not the try succeeds. Never used twice for one guest. */
  epoch: number;
}

/** What the source's journal says of a migration; the last record counts. */
export type SourceRecordState =
  /** The guest is ours; the destination may have been asked to prepare. */
  | 'preparing'
  /** Over, rolled back: the guest is ours. */
  | 'running'
  /** The destination may have been told to take over. The guest may not run here until it has refused. */
  | 'handing-over'
  /** The operator said that the destination is fenced: the guest is ours by decree. */
  | 'fenced'
  /** The destination owns the guest; its memory is kept here for it. */
  | 'gone'
  /** Over: the destination has every page, and the VMM here is dead. */
  | 'released'
  /** Over: the VMM here died before the guest was handed over. */
  | 'lost';

/** What the destination's journal says of a migration; the last record counts. */
export type DestinationRecordState =
  /** A VMM for the guest may have been started. It has not run. */
  | 'incoming'
  /** The guest is ours: it may have run here. */
  | 'owner'
  /** Over: every page is here, and the source knows (or is known to be gone for ever). */
  | 'complete'
  /** Over: this host will never own the guest under this key, and the VMM that was started for it is dead. */
  | 'refused'
  /** Over: the VMM died here while it owned the guest. */
  | 'lost';

interface RecordBase extends MigrationKey {
  /** Null where a migration is refused that this host never heard of: a bare take-over names no guest. */
  guest: string | null;
  /** URL of the other agent; null likewise. */
  peer: string | null;
  /** Why it was rolled back, refused or lost. */
  error?: ErrorJson;
}
export interface SourceRecord extends RecordBase {
  side: 'source';
  state: SourceRecordState;
}
export interface DestinationRecord extends RecordBase {
  side: 'destination';
  state: DestinationRecordState;
}
/** One line of a migration in the journal. */
export type OwnershipRecord = SourceRecord | DestinationRecord;

/**
 * What the source asks of the destination.
 * `load` carries the final map and the device state with it; the driver streams them, again at every repeat.
 */
export type SourceRequest = 'prepare' | 'load' | 'take-over' | 'abort' | 'status';

/** The destination's answer. `owner`, `complete` and `refused` are definite; everything else may change. */
export type AnswerState = IncomingStatus['state'];

export interface Step<State, Action> {
  state: State;
  /** To be carried out in this order. */
  actions: Action[];
}

// --- source -------------------------------------------------------------------------------------------------------

export type SourceAction =
  | { do: 'journal'; record: SourceRecord }
  | { do: 'send'; request: SourceRequest; key: MigrationKey }
  /** Answer page requests for this migration from the guest's memory, from now until `stop-pages`. */
  | { do: 'serve-pages' }
  | { do: 'stop-pages' }
  /** Copy memory to the destination in rounds while the guest runs; once, however often it is asked for. Ends in `copied` or `failed`. */
  | { do: 'copy' }
  | { do: 'pause' }
  | { do: 'resume' }
  /** The guest is elsewhere, whole: end the VMM here (an attached one too), remove its memory. */
  | { do: 'release-vmm' }
  /** Answers every `complete` request of this migration that waits. */
  | { do: 'acknowledge'; key: MigrationKey }
  /** The operator's request is turned down; nothing has changed. */
  | { do: 'turn-down'; what: 'cancel' | 'fence' | 'discard'; error: ErrorJson }
  | { do: 'report'; what: SourceReport; error?: ErrorJson };

/** `conflict`: the other side says something that the protocol rules out. An alarm; nothing is done about it. */
export type SourceReport = 'in-doubt' | 'rolled-back' | 'guest-lost' | 'left' | 'released' | 'conflict';

export type SourceEvent =
  | { type: 'journaled'; record: SourceRecordState }
  /** Whether the record became durable is not known. */
  | { type: 'journal-failed'; record: SourceRecordState; error: ErrorJson }
  /** What is left to be copied is little enough, or goes later. */
  | { type: 'copied' }
  | { type: 'paused' }
  | { type: 'pause-failed'; error: ErrorJson }
  | { type: 'resumed' }
  | { type: 'resume-failed'; error: ErrorJson }
  /** The VMM's process is gone by itself. */
  | { type: 'vmm-died' }
  | { type: 'vmm-released' }
  | { type: 'release-failed'; error: ErrorJson }
  /** The destination answered a request. Which one doesn't matter: it tells how things stand there. */
  | ({ type: 'answer'; state: AnswerState; error?: ErrorJson } & MigrationKey)
  /** The destination says that it has every page. */
  | ({ type: 'complete' } & MigrationKey)
  /** Whatever is outstanding stayed unanswered for too long, or failed: do it again. */
  | { type: 'retry' }
  /** The driver gives up (tries used up, page stream lost, scan failed …). Means nothing once the guest is handed over. */
  | { type: 'failed'; error: ErrorJson }
  | { type: 'cancel' }
  /** The operator vouches that the destination's host is off, or cut off from disks and network, for good. */
  | { type: 'fence' }
  /** The operator gives up what is kept for a destination that lost the guest. */
  | { type: 'discard' }
  /** The destination is known to be gone for good: stop telling it to abort. */
  | { type: 'peer-gone' };

// --- destination --------------------------------------------------------------------------------------------------

export type DestinationAction =
  | { do: 'journal'; record: DestinationRecord }
  | { do: 'send'; request: 'complete'; key: MigrationKey }
  /** Answers every request of this migration that waits; dropped when none does. */
  | { do: 'answer'; key: MigrationKey; state: AnswerState; error?: ErrorJson }
  /** Start the VMM (or take the one attached as incoming), acquire its userfaultfd, connect to the page server. */
  | { do: 'start-vmm' }
  /** Apply the final map, register, serve faults, load the device state. Never resumes. */
  | { do: 'load' }
  | { do: 'resume' }
  /** After a restart of the agent: find the VMM, take its userfaultfd again, wake, serve on, fill on. */
  | { do: 'serve' }
  /** Every page is here: unregister, part with the userfaultfd. */
  | { do: 'unregister' }
  /**
   * End the VMM that was started for this key, whether or not it was ever recorded, and wait until it is dead
   * (`vmm-dead` also when there was none). Never touches a VMM of another key. With `unlessRunning` a VMM whose guest
   * runs is left alone and `vmm-running` comes back.
   */
  | { do: 'kill-vmm'; unlessRunning: boolean }
  | { do: 'report'; what: DestinationReport; error?: ErrorJson };

/** `orphan`: a guest runs here of which the journal knows nothing. */
export type DestinationReport = 'refused' | 'owner' | 'guest-lost' | 'complete' | 'orphan';

export type DestinationEvent =
  | ({
      type: 'prepare';
      guest: string;
      peer: string;
      /** Why this host can't have the guest: {@link admission}, or the driver's own checks. Refused durably. */
      obstacle?: ErrorJson;
    } & MigrationKey)
  | ({ type: 'load' | 'take-over' | 'abort' | 'status' } & MigrationKey)
  | { type: 'journaled'; record: DestinationRecordState }
  | { type: 'journal-failed'; record: DestinationRecordState; error: ErrorJson }
  | { type: 'vmm-started' }
  | { type: 'start-failed'; error: ErrorJson }
  /** All that a `load` needs from the source is here: it depends on the VMM alone from now on. */
  | { type: 'arrived' }
  | { type: 'loaded' }
  | { type: 'load-failed'; error: ErrorJson }
  | { type: 'resumed' }
  | { type: 'resume-failed'; error: ErrorJson }
  | { type: 'served' }
  | { type: 'serve-failed'; error: ErrorJson }
  /** Every frame that isn't zero is present. May come at any time after `load` was begun. */
  | { type: 'filled' }
  | { type: 'unregistered' }
  | { type: 'unregister-failed'; error: ErrorJson }
  | { type: 'vmm-dead' }
  | { type: 'vmm-running' }
  | { type: 'kill-failed'; error: ErrorJson }
  | { type: 'vmm-died' }
  /** The source answered `complete`. */
  | ({ type: 'acknowledged' } & MigrationKey)
  | { type: 'retry' }
  /** Nothing was heard of the source for too long, or a newer migration of the guest asks to come in. */
  | { type: 'timeout' }
  /** The source is known to be gone for good: don't wait for its acknowledgement. */
  | { type: 'peer-gone' };

/** How a side stands, for operators. */
export interface Description {
  phase: Phase;
  /** Whether this host owns the guest: `unsure` is the side in doubt. */
  owner: 'yes' | 'no' | 'unsure';
  /** Nothing more will happen by itself. */
  ended: boolean;
  /** One sentence. */
  note: NonNullable<MigrationProgress['note']>;
}
