/** The shapes that a migration has at the edges: what is asked for, how far it is, and the report it ends in. */
import type { ErrorJson } from '../errors.ts';
import type { GuestDescription } from '../guests/driver.ts';
import type { DomainClaim } from './domains.ts';

export type Mode = 'post-copy';

/**
 * Where a migration stands, as an operator sees it.
 *
 *   preparing → switching → serving → completing → done
 *        │          │
 *        └──────────┴──→ rolling-back → failed | cancelled        (before ownership passes)
 *
 * `in-doubt`: the source gave the guest away, and doesn't know whether the destination took it; it stays paused.
 */
export type Phase =
  'preparing' | 'switching' | 'in-doubt' | 'serving' | 'completing' | 'rolling-back' | 'done' | 'failed' | 'cancelled';

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

/** What a migration ends in. Field names and units are part of the interface. */
export interface MigrationReport {
  guest: string;
  mode: Mode;
  driver: GuestDescription['driver'];
  /** True only when the guest itself checked every frame of its own after completion; null where it can't. */
  verified: boolean | null;
  frames: FrameClasses;
  /**
   * `wire`: all bytes sent and received for this migration, counted at the sockets of both directions.
   * `manifest`, `pages`, `state`: payload of the kinds. `raw`: size of the pages before compression.
   */
  bytes: { wire: number; manifest: number; pages: number; state: number; raw: number };
  /**
   * `downtime`: from the guest stopped to the guest running, by the VMM's own timestamps where it gives them. `prepare` and
   * `downtime` are null where nobody knows any more when the guest was stopped.
   */
  ms: { prepare: number | null; downtime: number | null; total: number };
  /** Stalls that faults caused. */
  faults: { count: number; p50Us: number; p99Us: number; maxUs: number };
  /** Longest silence of the guest's heartbeat; null where it has none. */
  longestGapMs: number | null;
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
}

export interface MigrationInfo {
  id: string;
  guest: string;
  mode: Mode;
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

export const PEER_PROTOCOL = 2;

/** What the destination knows when asked: the answer to every `/v1/incoming/{id}` call. */
export interface IncomingStatus {
  migration: string;
  epoch: number;
  state: 'preparing' | 'prepared' | 'loaded' | 'owner' | 'complete' | 'refused' | 'unknown';
  /** When the guest ran again, microseconds since the epoch; from `owner` on. */
  resumedAt?: number;
  progress?: MigrationProgress;
  error?: ErrorJson;
  /** From `prepared` on: the chunks of the manifest that the destination lacks, [first chunk, count, …]. */
  wants?: number[];
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
  bytes: { wire: number; manifest: number; pages: number; state: number; raw: number };
  faults: { count: number; p50Us: number; p99Us: number; maxUs: number };
  longestGapMs: number | null;
  /** When the first heartbeat came at the destination, microseconds since the epoch; where the host hears heartbeats. */
  firstBeatAt?: number;
  verified: boolean | null;
  /** When the guest ran again at the destination, microseconds since the epoch. */
  resumedAt: number;
  /** How long the guest's own check took, milliseconds; the migration was complete before. */
  verifyMs: number;
}
