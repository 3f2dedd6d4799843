/** What is brought, as the main thread asks for it, and as it crosses to the distribution worker. */
import type { ErrorJson } from '../errors.ts';
import type { Domain } from '../migration/domains.ts';

/** Tags of one errand at most. */
export const ERRAND_TAGS = 4096;

export interface Errand {
  domain: Domain;
  /** Agents that may have pages. */
  urls: readonly string[];
  /** Packed, the most important first; {@link ERRAND_TAGS} at most. */
  tags: Uint8Array;
  /** Holders of tag i: `holder[first[i]]` up to, without, `holder[first[i + 1]]`. One more than there are tags. */
  first: Uint32Array;
  /** Indices into `urls`. */
  holder: Uint16Array;
  /** What the cache takes them for, 0 to 15: see PageCache.insert. */
  value: number;
}

/** What became of a tag. */
export const Outcome = {
  Brought: 1,
  /** It was in the cache, or came there meanwhile; the zero page needs no bringing. */
  Present: 2,
  /** No holder had it, or none was reached. */
  Absent: 3,
  /** The cache has no slot for it, or is gone. */
  Full: 4,
  /** The errand was given up, or its domain is not here any more. */
  Stopped: 5,
} as const;
export type Outcome = (typeof Outcome)[keyof typeof Outcome];

export interface ErrandResult {
  /** An {@link Outcome} a tag. */
  outcome: Uint8Array;
  /** Of pages that were sent here: each one's share of the body that it came in, bytes. */
  wireBytes: Uint16Array;
  /** Holders that sent pages which are not those of their tags; nothing of them got into the cache. */
  wrong: { url: string; pages: number }[];
  /** Holders that are not there now, or were too slow. */
  unreachable: string[];
}

/** How long things may take, milliseconds. */
export interface BringLimits {
  /** A connection, and then the answer to its request. */
  connectMs: number;
  /** A holder that owes an answer, without a byte; it may stand back so long. */
  waitMs: number;
  /** An answer, however steadily it trickles. */
  answerMs: number;
  /** A connection that nobody needs. */
  idleMs: number;
  /** The first rest of a holder that failed; doubled each time, up to `mostRestMs`. */
  restMs: number;
  /** The rest of one that sent a wrong page, likewise doubled. */
  wrongRestMs: number;
  mostRestMs: number;
}

export const BRING_LIMITS: BringLimits = {
  connectMs: 3_000,
  waitMs: 20_000,
  answerMs: 120_000,
  idleMs: 5_000,
  restMs: 1_000,
  wrongRestMs: 60_000,
  mostRestMs: 600_000,
};

/** An errand for the worker. */
export interface BringTask extends Omit<Errand, 'domain'> {
  /** See control.ts. */
  control: SharedArrayBuffer;
  limits: BringLimits;
  /** Over shared memory; not 0: end now. */
  stop: Int32Array;
  cache: number;
  /** The domain as the cache numbers it, the mark of its secret, and its key as native code knows it: open until the errand has ended. */
  domain: number;
  mark: string;
  key: number;
}

/** Errors travel as JSON: a thrown one would lose its code between threads. */
export type BringResult = ErrandResult | { error: ErrorJson };
