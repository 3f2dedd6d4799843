/** The shapes that a migration has at the edges: what is asked for, how far it is, and the report it ends in. */
import type { ErrorJson } from '../errors.ts';
import type { GuestDescription } from '../guests/driver.ts';
import type { DeltaBytes } from '../memory/serving.ts';
import type { DomainClaim } from './domains.ts';

/**
 * How a guest's memory moves. `post-copy`: the guest runs at the destination first, and its pages follow. `pre-copy`: they are copied
 * in rounds while it runs at the source, and it moves when all are there. `hybrid`: rounds first, and what changed since follows.
 */
export type Mode = 'post-copy' | 'pre-copy' | 'hybrid';

/** What an operator asks for: `auto` is the best that both hosts can do. */
export type ModeWanted = 'auto' | Mode;

/** What becomes of a pre-copy whose guest writes faster than pages move: it runs on there without them, stands still for them, or stays. */
export type OnNoConvergence = 'post-copy' | 'pause' | 'abort';

/** `GET /v1/capabilities`: what an agent can do as a destination. */
export interface Capabilities {
  /** Version of the messages between agents that it speaks; {@link PEER_PROTOCOL}. */
  protocol: number;
  /** Whether a guest may run there before all of its pages are there; `why` not. */
  userfaultfd: { ok: boolean; why?: string };
  /** What guests may still take: bytes of memory in all, and how many may be arriving at once. Absent: it doesn't know. */
  room?: { bytes: number; guests: number };
}

/**
 * Where a migration stands, as an operator sees it.
 *
 *   preparing → copying → switching → serving → completing → done
 *        │         │          │
 *        └─────────┴──────────┴──→ rolling-back → failed | cancelled        (before ownership passes)
 *
 * `copying` where memory is copied in rounds before the switch: pre-copy, hybrid.
 * `in-doubt`: the source gave the guest away, and doesn't know whether the destination took it; it stays paused.
 */
export type Phase =
  | 'preparing'
  | 'copying'
  | 'switching'
  | 'in-doubt'
  | 'serving'
  | 'completing'
  | 'rolling-back'
  | 'done'
  | 'failed'
  | 'cancelled';

/** How a guest's frames came to the destination; the classes add up to `total`. */
export interface FrameClasses {
  total: number;
  zero: number;
  present: number;
  cache: number;
  resident: number;
  duplicate: number;
  peer: number;
  source: number;
}

/**
 * Bytes by what they were for. `wire`: all, sent and received for this migration, counted at the sockets of both directions.
 * `manifest`, `pages`, `state`: payload of the kinds. `raw`: size of the pages before compression. `deltas`: of the pages, those that came
 * as deltas; absent where none did.
 */
export interface MigrationBytes {
  wire: number;
  manifest: number;
  pages: number;
  state: number;
  raw: number;
  deltas?: DeltaBytes;
}

/** One round of copying. Frames got their page from the class that they are counted in. */
export interface RoundReport extends Omit<FrameClasses, 'total' | 'present'> {
  /** Frames whose tags were told: in the first round all, then those that had changed. */
  changed: number;
  /** Frames that changed again before they were read. */
  lacking: number;
  /** Bytes at the sockets of the page connections, both directions. */
  wireBytes: number;
  /** How long it took the destination, milliseconds. */
  ms: number;
}

/** What a migration ends in. Field names and units are part of the interface. */
export interface MigrationReport {
  guest: string;
  mode: Mode;
  driver: GuestDescription['driver'];
  /** True only when the guest itself checked every frame of its own after completion; null where it can't. */
  verified: boolean | null;
  frames: FrameClasses;
  bytes: MigrationBytes;
  /**
   * `downtime`: from the guest stopped to the guest running, by the VMM's own timestamps where it gives them. `prepare` and
   * `downtime` are null where nobody knows any more when the guest was stopped. `journal`: of the downtime, what both hosts waited for the
   * disks of their journals; null where one of them was restarted then.
   */
  ms: { prepare: number | null; downtime: number | null; total: number; journal: number | null };
  /** Stalls that faults caused. */
  faults: { count: number; p50Us: number; p99Us: number; maxUs: number };
  /** Longest silence of the guest's heartbeat; null where it has none. */
  longestGapMs: number | null;
  /** Why it was this mode, where nobody asked for it. */
  why?: string;
  /** What did not go as asked for. */
  note?: string;
  /** The rounds in which memory was copied before the switch; absent where none was. */
  rounds?: RoundReport[];
}

/** Memory is being copied while the guest runs. */
export interface CopyingProgress {
  /** The round that is under way, from 1. */
  round: number;
  /** Frames a second whose page becomes another; 0 in the first round. */
  dirtyPerSecond: number;
  /** How long the guest would stand still if it moved now, milliseconds; null in the first round. */
  expectedDowntimeMs: number | null;
  /** Frames that this round copies. */
  frames: number;
}

export interface MigrationProgress {
  phase: Phase;
  framesTotal: number;
  /** Frames whose content is at the destination (zero frames count). */
  framesPresent: number;
  faultsServed: number;
  /** Bytes received for this migration so far. */
  wireBytes: number;
  /** Milliseconds since the migration began. */
  elapsedMs: number;
  /** What an operator should know now, e.g. that the connection is being made again. */
  note?: string;
  /** In phase `copying`. */
  copying?: CopyingProgress;
}

export interface MigrationInfo {
  id: string;
  guest: string;
  /** The one that was taken. */
  mode: Mode;
  /** Why, where nobody asked for it. */
  why?: string;
  /** URL of the other agent. */
  peer: string;
  direction: 'outgoing' | 'incoming';
  progress: MigrationProgress;
  report?: MigrationReport;
  error?: ErrorJson;
}

/** `POST /v1/incoming`: the source asks the destination to get ready. */
export interface PrepareRequest {
  /** Protocol version of the messages between agents; {@link PEER_PROTOCOL}. */
  protocol: number;
  /** Names the migration on both sides: 16 hex digits. */
  migration: string;
  /** Grows with every change of owner of this guest; both sides journal it. */
  epoch: number;
  guest: string;
  mode: Mode;
  description: GuestDescription;
  /** The guest's domain; none: its pages are shared with nobody. */
  domain?: DomainClaim;
  /** The names of the guest's pages, as far as they were known when this was sent. */
  manifest: ManifestOffer;
  /** Where the destination fetches pages: the source's URL, and the secret that opens its page streams. */
  source: { url: string; token: string };
  /** Let the guest check itself once every page is there, before the source frees its copy. */
  verify: boolean;
  /** Rounds come ({@link CopiedRound}): pages are copied while the guest still runs at the source. */
  copies: boolean;
  /** The guest may run before every page is there: the destination needs a userfaultfd. Without it, `load` is of `rest: 'copy'`. */
  serves: boolean;
  /** Bytes of pages that the destination fetches a second, at most; 0: its own limit alone. */
  bandwidth: number;
}

/** `POST /v1/incoming/{id}/load`: `copy`: fetch what is left before the guest runs. `serve`: it runs, and what is left follows. */
export type Rest = 'copy' | 'serve';

/**
 * `POST /v1/incoming/{id}/copy`: the destination fetches what it lacks of the manifest that the source has told up to the `round`th
 * ManifestEnd (1: the first). Answered when it has asked for all of it, with
 * this in the status; or after {@link ROUND_ANSWER_MS} without: then it is asked for again. The same round may be asked for any number of times.
 */
export interface CopiedRound {
  round: number;
  /** Frames whose page is not there: they changed before they were read. Of the next round. */
  lacking: number;
  /** Frames that got a page in this round, by where it came from; `zero`: that became zero. */
  frames: Omit<FrameClasses, 'total' | 'present'>;
  /** Bytes at the sockets of the page connections in this round, both directions. */
  wireBytes: number;
  /** How long it took the destination, milliseconds. */
  ms: number;
}

/** What a destination needs to know of a manifest to tell which of its chunks it lacks. */
export interface ManifestOffer {
  /** Version of the tags. */
  version: number;
  /** Of 4096 bytes. */
  frames: number;
  /** Tags of all chunks, run-length coded (pages/tag-runs.ts), base64. */
  chunks: string;
}

/** A round that takes longer is answered without its figures after this, milliseconds: whoever waits hears how far it is. */
export const ROUND_ANSWER_MS = 500;

export const PEER_PROTOCOL = 4;

/** What the destination knows when asked: the answer to every `/v1/incoming/{id}` call. */
export interface IncomingStatus {
  migration: string;
  epoch: number;
  state: 'preparing' | 'prepared' | 'arrived' | 'loaded' | 'owner' | 'complete' | 'refused' | 'unknown';
  /** When the guest ran again, microseconds since the epoch; from `owner` on. */
  resumedAt?: number;
  progress?: MigrationProgress;
  error?: ErrorJson;
  /** From `prepared` on: the chunks of the manifest that the destination lacks, [first chunk, count, …]. */
  wants?: number[];
  /** With the answer to a round. */
  copied?: CopiedRound;
  /** With `complete`: the same that the destination's own message carried, in case that was lost. */
  figures?: CompletionFigures;
}

/**
 * `POST /v1/outgoing/{id}/recheck`: what the source finds when it looks again at a frame of the paused guest. `right`: it is
 * what the manifest says. `changed`: it isn't, any more. `unknown`: the source can't tell, as it was restarted since.
 */
export type Finding = 'right' | 'changed' | 'unknown';

/** Frames that may be asked about at once; of 2 MiB, that is a tenth of a second of one core. */
export const MOST_DOUBTS = 32;

/** The destination's figures, sent with its completion, from which the source makes the report. */
export interface CompletionFigures {
  frames: FrameClasses;
  bytes: MigrationBytes;
  faults: { count: number; p50Us: number; p99Us: number; maxUs: number };
  longestGapMs: number | null;
  /** When the first heartbeat came at the destination, microseconds since the epoch; where the host hears heartbeats. */
  firstBeatAt?: number;
  verified: boolean | null;
  /** When the guest ran again at the destination, microseconds since the epoch. */
  resumedAt: number;
  /** How long the guest's own check took, milliseconds; the migration was complete before. */
  verifyMs: number;
  /** How long the guest stood still for the disk of the destination's journal, milliseconds; absent where that is not known any more. */
  journalMs?: number;
}
