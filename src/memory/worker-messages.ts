/** What crosses the threads between an agent's main thread and the workers of one guest. */
import type { MessagePort } from 'node:worker_threads';
import type { ErrorJson } from '../errors.ts';
import type { FillRound } from './fill-service.ts';
import type { LocalPagesSpec } from './local-pages.ts';
import type { NamedPagesSpec } from './named-pages.ts';
import type { PeersSpec } from './peers.ts';

/** Pages that lie with another agent. */
export interface PeerPagesSpec {
  kind: 'peer';
  /** The source agent's URL. */
  url: string;
  migration: string;
  /** Opens the page streams; never logged. */
  token: string;
  frames: number;
  pageSize: number;
  /** Without it nothing that comes can be checked: for tests and benches of the transport alone. */
  named?: NamedPagesSpec | undefined;
  /** Other hosts that may have the pages, by tag. */
  peers?: PeersSpec | undefined;
  /** The guest runs here already: no refusal is final, as the source may just be starting again. */
  patient: boolean;
}

/** Pages that others have, by tag alone: no source is sure to have them. */
export interface TaggedPagesSpec {
  kind: 'by-tag';
  named: NamedPagesSpec;
  peers: PeersSpec;
}

export type PagesSpec = LocalPagesSpec | PeerPagesSpec | TaggedPagesSpec;

/** One guest's task in the fault pool, or in the fill pool. */
export interface ServiceTask {
  /** The session with the guest's userfaultfd. Without it nothing is served, only copied; of no fault task. */
  session?: number;
  /** The session over its memory files, where rounds of copying come before; of the fill task only. */
  copy?: number;
  serving: SharedArrayBuffer;
  pages: PagesSpec;
  port: MessagePort;
  spinMicros: number;
  batchFrames: number;
  window: number;
  bandwidth: number;
  /** Whether rounds ask for deltas of what changed (delta-pages.ts); by default they do. */
  deltas?: boolean;
}

/**
 * From the main thread. `start`: serve (or fill) from now on; until then the worker only connects. `round`, to the fill worker
 * before that, one after the other: copy what the files lack, see fill-service.ts. `halt`: end the round that is under way, if one is.
 * `limit`, to the fill worker at any time: bytes of pages a second, at most, from now on; 0: no limit.
 */
export type ToWorker =
  | { do: 'start' }
  | { do: 'stop' }
  | { do: 'round'; kind: FillRound }
  | { do: 'halt' }
  | { do: 'limit'; bandwidth: number };

/** To the main thread. */
export type FromWorker =
  /** The source answers, or is local. Comes once. */
  | { event: 'ready' }
  | { event: 'connected' }
  /** The connection is being made again since `error`. */
  | { event: 'disconnected'; error: ErrorJson }
  | { event: 'foreign'; frame: number }
  /** A peer is not asked any more. */
  | { event: 'left-out'; url: string; error: ErrorJson }
  | { event: 'trouble'; frame: number; error: ErrorJson }
  /** The round has ended, and nothing is claimed by it. `copied`: as the round wants it; otherwise it was halted, or failed. */
  | { event: 'round'; copied: boolean; error?: ErrorJson };

/** How a task ended well. */
export interface ServiceEnd {
  end: 'stopped' | 'gone' | 'filled';
}

/** What a task comes to. An error that is thrown across threads arrives without its class and code. */
export type Settled = ServiceEnd | { error: ErrorJson };
