/**
 * Which way a guest moves: what the operator asked for, held against what both hosts can do. Decides only; nothing has changed yet
 * when it refuses.
 *
 *   auto ── the guest may run before its pages are there ──┬── copying pays: hybrid
 *     │                                                    └── huge pages, writes can't be tracked: post-copy
 *     └──── it may not, or the destination has no userfaultfd: pre-copy
 */
import { PagetideError } from '../errors.ts';
import { PEER_PROTOCOL, type Capabilities, type Mode, type ModeWanted, type OnNoConvergence } from './types.ts';

/** What an operator may ask for; what is left out is chosen. */
export interface ModeRequest {
  mode: ModeWanted;
  /** How long the guest may stand still, milliseconds. Of modes that copy; {@link MAX_DOWNTIME_MS} by default. */
  maxDowntimeMs?: number;
  /** Rounds of copying, at most. */
  maxRounds?: number;
  /** Bytes of pages that the destination fetches a second, at most. */
  bandwidth?: number;
  /** Of pre-copy; `abort` by default. */
  onNoConvergence?: OnNoConvergence;
}

export const MAX_DOWNTIME_MS = 300;
/** Of a pre-copy that gets nowhere, most end before: rounds that don't pay are counted, too. */
export const PRE_COPY_ROUNDS = 30;
/** A hybrid need not get to the end of it. */
export const HYBRID_ROUNDS = 5;

/** How a migration is to go about it. */
export interface Plan {
  mode: Mode;
  /** Why that, where it was chosen. */
  why?: string;
  /** Bytes of pages a second, at most; 0: the destination's own limit alone. */
  bandwidth: number;
  /** The guest may run at the destination before every page is there. */
  serves: boolean;
  /** Memory is copied in rounds first. */
  copying?: {
    maxDowntimeMs: number;
    /** The operator named that limit: better no migration than a longer one. */
    isStrict: boolean;
    maxRounds: number;
    onNoConvergence: OnNoConvergence;
    /** There is no other way for this guest to this destination. */
    mustWait: boolean;
  };
}

/** What of the guest and its host decides. */
export interface Source {
  /** Bytes. */
  pageSize: number;
  /** Whether the host can track writes of a running guest. */
  tracking: { ok: boolean; why?: string };
  /** Why all of the guest's pages have to be there before it runs; see `Movable` in ../guests/driver.ts. */
  preCopyOnly?: string;
}

/** Why a guest can't run at the destination before all of its pages are there, and what to do about it. */
interface Wait {
  why: string;
  hint: string;
}

/** Page size of guests that are copied in rounds: one write makes a whole huge page dirty. */
const COPIED_PAGE = 4096;

/**
 * @param destination what it said that it can do; undefined where it wasn't asked: an explicit post-copy
 * @throws PagetideError `PT_MODE_UNSUPPORTED`, `PT_BAD_ARGUMENT`, `PT_PROTOCOL`
 */
export function planMigration(request: ModeRequest, source: Source, destination: Capabilities | undefined): Plan {
  checkRequest(request);
  if (destination !== undefined && destination.protocol !== PEER_PROTOCOL)
    throw new PagetideError(
      'PT_PROTOCOL',
      `the destination speaks version ${destination.protocol}, this agent ${PEER_PROTOCOL}`,
    );
  const wait = mustWait(source, destination);
  const { mode, why } = request.mode === 'auto' ? choose(source, wait) : { mode: request.mode, why: undefined };
  if (mode !== 'pre-copy' && wait !== undefined)
    throw new PagetideError('PT_MODE_UNSUPPORTED', `${mode} is not possible: ${wait.why}`, { hint: wait.hint });
  if (mode !== 'post-copy' && source.pageSize !== COPIED_PAGE)
    throw new PagetideError(
      'PT_MODE_UNSUPPORTED',
      `${mode} is for guests of 4 KiB pages, this one has ${source.pageSize}`,
      {
        hint: 'Choose --mode post-copy.',
      },
    );
  const plan = { mode, bandwidth: request.bandwidth ?? 0, ...(why === undefined ? {} : { why }) };
  if (mode === 'post-copy') return { ...plan, serves: true };
  const { maxDowntimeMs, maxRounds, onNoConvergence = 'abort' } = request;
  if (onNoConvergence === 'post-copy' && wait !== undefined)
    throw new PagetideError('PT_MODE_UNSUPPORTED', `there is no falling over to post-copy: ${wait.why}`, {
      hint: 'Choose --on-no-convergence pause or abort.',
    });
  return {
    ...plan,
    serves: mode === 'hybrid' || onNoConvergence === 'post-copy',
    copying: {
      maxDowntimeMs: maxDowntimeMs ?? MAX_DOWNTIME_MS,
      isStrict: maxDowntimeMs !== undefined,
      maxRounds: maxRounds ?? (mode === 'hybrid' ? HYBRID_ROUNDS : PRE_COPY_ROUNDS),
      onNoConvergence,
      mustWait: wait !== undefined,
    },
  };
}

/** What means nothing in a mode is refused rather than ignored; with `auto` nobody knows beforehand. */
function checkRequest({ mode, maxDowntimeMs, maxRounds, onNoConvergence }: ModeRequest): void {
  if (maxDowntimeMs === 0)
    throw new PagetideError(
      'PT_BAD_ARGUMENT',
      'a guest that moves stands still for a moment: --max-downtime 0 cannot be met',
      {
        hint: `Give milliseconds, e.g. ${MAX_DOWNTIME_MS}; some 50 are needed to hand a guest over.`,
      },
    );
  if (mode === 'post-copy' && (maxDowntimeMs ?? maxRounds) !== undefined)
    throw new PagetideError('PT_BAD_ARGUMENT', '--max-downtime and --max-rounds are for modes that copy in rounds', {
      hint: 'A post-copy stands still only while the device state moves. Leave them out, or choose --mode hybrid or pre-copy.',
    });
  if (onNoConvergence !== undefined && (mode === 'post-copy' || mode === 'hybrid'))
    throw new PagetideError(
      'PT_BAD_ARGUMENT',
      `--on-no-convergence is for pre-copy: a ${mode} always gets to its end`,
      {
        hint: 'Leave it out, or choose --mode pre-copy.',
      },
    );
}

/** Undefined: it need not. */
function mustWait({ preCopyOnly }: Source, destination: Capabilities | undefined): Wait | undefined {
  if (preCopyOnly !== undefined) return { why: preCopyOnly, hint: 'Choose --mode pre-copy.' };
  if (destination?.userfaultfd.ok !== false) return undefined;
  return {
    why: `the destination has no userfaultfd (${destination.userfaultfd.why ?? 'no reason given'})`,
    hint: 'Choose --mode pre-copy, or see `pagetide doctor` on that host.',
  };
}

function choose({ pageSize, tracking }: Source, wait: Wait | undefined): { mode: Mode; why: string } {
  if (wait !== undefined) return { mode: 'pre-copy', why: `pre-copy, as ${wait.why}` };
  if (pageSize !== COPIED_PAGE)
    return { mode: 'post-copy', why: 'post-copy, as the guest has huge pages, of which one write makes all dirty' };
  if (!tracking.ok)
    return {
      mode: 'post-copy',
      why: `post-copy, as this host can't track what the guest writes (${tracking.why ?? 'no reason given'})`,
    };
  return {
    mode: 'hybrid',
    why: 'hybrid: both hosts can copy while the guest runs, and fetch what changed since when it has moved',
  };
}
