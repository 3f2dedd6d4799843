/** Every message between the agent's main thread and the page server's thread. */
import type { ErrorJson } from '../errors.ts';
import type { Rates } from '../distribution/token-bucket.ts';
import type { Credentials } from '../trust/credentials.ts';
import type { TagPlace } from './tag-place.ts';

/** One file of guest memory, as the page server reads it. */
export interface OfferedFile {
  path: string;
  /** Bytes; a multiple of the page size. */
  size: number;
  /** Where it begins in guest memory space, bytes. The files follow each other without a gap from 0. */
  offset: number;
}

/** A guest's memory, opened to the one destination that knows the token. */
export interface Offer {
  migration: string;
  /** The secret that opens the streams: printable ASCII, at most 256 characters. Never logged. */
  token: string;
  pageSize: number;
  /** Frames of the guest: the files' sizes / page size. */
  frames: number;
  files: OfferedFile[];
  /**
   * The name in the destination's certificate: over TLS nobody else opens the streams, token or not, and nobody at all while
   * it isn't known ({@link PageServer.admit}). Means nothing on a plain port, where nobody has a name.
   */
  destination?: string | undefined;
}

/** A domain whose pages other hosts may have by tag. */
export interface SharedDomain {
  /** The mark of its secret, 32 hex digits. */
  id: string;
  place: TagPlace;
  /**
   * The names in the certificates of those hosts that have the domain. On a plain connection, which is within this host,
   * nobody can tell a name, and the secret alone decides.
   */
  hosts: string[];
}

/** What a page server's thread is started with. */
export interface PageServerSettings {
  host: string;
  port: number;
  /** The agent's control API, a Unix socket. */
  controlSocket: string;
  /** Threads that read and compress batches. */
  batchThreads: number;
  /** Milliseconds without a sign of life after which a connection is pinged; three times that ends it. */
  livenessMs: number;
  /** With them the port speaks mutual TLS and nothing else. Never logged. */
  credentials: Credentials | undefined;
  /** Of all background streams together, until they are told others. */
  background: Rates;
  /** Counters of pages by tag, of all domains together. */
  tagCounters: SharedArrayBuffer;
}

/** Requests of the main thread; each is answered by a {@link Reply} with the same `id`. */
export type Request =
  | { id: number; type: 'offer'; offer: Offer; counters: SharedArrayBuffer }
  | { id: number; type: 'admit'; migration: string; destination: string }
  | { id: number; type: 'withdraw'; migration: string }
  | { id: number; type: 'share'; domain: SharedDomain }
  | { id: number; type: 'unshare'; domain: string }
  | { id: number; type: 'settle'; migration: string }
  | { id: number; type: 'manifest'; migration: string; bytes: Uint8Array; lengths: Uint32Array }
  | { id: number; type: 'state'; migration: string; chunk: Uint8Array }
  | { id: number; type: 'state-end'; migration: string }
  | { id: number; type: 'state-abort'; migration: string; error: ErrorJson }
  | { id: number; type: 'background-rates'; rates: Rates }
  | { id: number; type: 'stand-back'; stands: boolean }
  | { id: number; type: 'close' };

export type RequestBody = Request extends infer R ? (R extends Request ? Omit<R, 'id'> : never) : never;

export interface Reply {
  type: 'reply';
  id: number;
  error?: ErrorJson;
}

/** What the thread says: `listening` or `failed` once, then replies, and who was not let in. */
export type FromThread =
  | { type: 'listening'; host: string; port: number }
  | { type: 'failed'; error: ErrorJson }
  | { type: 'refused'; error: ErrorJson; from: string }
  | Reply;

/** Index of each counter in the shared Float64Array of an offer, or of pages by tag. Written by the page server's thread only. */
export const Counter = {
  bytesIn: 0,
  bytesOut: 1,
  connections: 2,
  open: 3,
  demandRequests: 4,
  demandPages: 5,
  demandZero: 6,
  batchRequests: 7,
  fillPages: 8,
  fillZero: 9,
  rawBytes: 10,
  pageBytes: 11,
  stateBytes: 12,
  errors: 13,
  manifestBytes: 14,
  tagsAsked: 15,
  tagPages: 16,
  tagAbsent: 17,
  backgroundStreams: 18,
  backgroundPages: 19,
  backgroundBytes: 20,
} as const;
export const COUNTERS = Object.keys(Counter).length;

/** What the streams of an offer, or those of pages by tag, have carried so far, all connections together. */
export interface PageCounters {
  /** Bytes at the sockets, HTTP heads included. */
  bytesIn: number;
  bytesOut: number;
  /** Connections so far, and now. */
  connections: number;
  open: number;
  demandRequests: number;
  /** Answers to demand with content, and all zero. */
  demandPages: number;
  demandZero: number;
  batchRequests: number;
  fillPages: number;
  fillZero: number;
  /** Bytes of pages with content, before compression, demand and fill. */
  rawBytes: number;
  /** The same as they were sent. */
  pageBytes: number;
  /** Payload of the manifest, counted each time it is sent. */
  manifestBytes: number;
  /** Payload of the device state, counted each time it is sent. */
  stateBytes: number;
  /** Requests answered by an error, and connections ended by one. */
  errors: number;
  /** Pages by tag: of how many it was asked whether they are here, how many were sent, how many could not be. */
  tagsAsked: number;
  tagPages: number;
  tagAbsent: number;
  /** Of these on background streams: how many streams so far, pages, and their bytes as they were sent. */
  backgroundStreams: number;
  backgroundPages: number;
  backgroundBytes: number;
}

/** Reads an offer's counters; exact to the last frame, as each is one 64-bit word. */
export function readCounters(shared: SharedArrayBuffer): PageCounters {
  const words = new Float64Array(shared);
  return Object.fromEntries(
    Object.entries(Counter).map(([name, index]) => [name, words[index] ?? 0]),
  ) as unknown as PageCounters;
}
