/**
 * When a guest that is copied in rounds is copied once more, and when it moves. Decides from figures alone, free of I/O.
 *
 *   round 1 ─► scan 1 ─► decide ─► round 2 ─► scan 2 ─► decide ─► …
 *   all        what changed          that        what changed
 *   frames     while it was copied   and no more while that was copied
 *
 * What is left after a scan is what changed, and what changes until the guest is paused. Moving it takes
 *
 *   last pass    frames written since the scan ÷ frames that are tagged a second (all frames where writes can't be tracked; and those of
 *                files of which the guest has just given back memory: it may do so once more, and that once costs as much again)
 *   fetching     frames left × share that had to be fetched × bytes a page ÷ bytes a second, all as measured in earlier rounds
 *
 * A pre-copy has both in its downtime, a hybrid the first only. It switches once both together fit the downtime that was asked for.
 * Where they fit, another round is copied only if it takes most of what is left out of the downtime: what it brings has to be moved anyway, so
 * it costs no more than what the guest writes again meanwhile.
 * A hybrid also switches when rounds stop paying, as what is left follows it. A pre-copy that gets nowhere is `stuck`.
 *
 * Early estimates are cautious where nothing was measured yet: a page that changes has to be fetched until a round has shown otherwise,
 * as the first one is of the pages that hosts have in common.
 */
import type { Rescan } from './guest-scan.ts';
import type { Rest, RoundReport } from './types.ts';

/** Loading the device state and taking over, milliseconds: what QEMU was measured to take. */
const SWITCH_MS = 25;
/** Until the guest has stopped after the decision, milliseconds. */
const PAUSE_MS = 5;
/** To put a page that is on the spot into a file, milliseconds. */
const LOCAL_MS = 0.003;
/** Where nothing was fetched yet: bytes of a page on the wire, and bytes a millisecond of a link that nobody has seen. */
const ASSUMED_PAGE = 4096;
const ASSUMED_LINK = 50_000;
/** Rounds of which the link's speed is taken. */
const RECENT = 3;
/** A round pays when at most this share of what the last one had left is left after it. */
const PAYS = 0.9;
/** A round that could be left out is copied where at most this share of what is left will be left after it, and at least so many frames fewer. */
const CLOSING = 0.5;
const CLOSING_FRAMES = 64;
/** Messages and a look at the guest, beside what a round fetches and tags; milliseconds. */
const ROUND_MS = 20;
/** Rounds in a row that don't pay before a pre-copy is stuck. */
const PATIENCE = 3;

export interface RoundSettings {
  /** What comes of what is left at the switch. */
  rest: Rest;
  maxDowntimeMs: number;
  maxRounds: number;
}

/** What the last pass costs, when the guest stands still. */
export interface LastPass {
  /** Frames of 4096 bytes tagged in a millisecond; undefined: never measured. */
  tagsAMs: number | undefined;
  /** Frames that it has to read whatever was written: all of them, or 0. */
  readsAll: number;
}

export interface Estimate {
  /** Frames a second whose page becomes another. */
  dirtyPerSecond: number;
  /** Frames that are left to be moved. */
  left: number;
  /** To fetch them. */
  fetchMs: number;
  /** How long the guest would stand still if it moved now. */
  downtimeMs: number;
}

export type Decision =
  | { do: 'again'; estimate: Estimate }
  /** `fits`: the downtime. `rounds`: there are no more. `no-gain`: another would leave as much. */
  | { do: 'switch'; because: 'fits' | 'rounds' | 'no-gain'; estimate: Estimate }
  /** It won't fit: `rounds`: there are no more. `dirty`: the guest writes as fast as pages move. */
  | { do: 'stuck'; because: 'rounds' | 'dirty'; estimate: Estimate };

/**
 * @param rounds that were copied, one at least
 * @param scans the scan after each of them
 */
export function decide(
  rounds: readonly RoundReport[],
  scans: readonly Rescan[],
  lastPass: LastPass,
  settings: RoundSettings,
): Decision {
  const { rest, maxDowntimeMs, maxRounds } = settings;
  const fits = ({ downtimeMs, fetchMs }: Estimate): boolean =>
    downtimeMs + (rest === 'serve' ? fetchMs : 0) <= maxDowntimeMs;
  const estimate = estimateSwitch(rounds, scans, lastPass, rest);
  const isLast = rounds.length >= maxRounds;
  if (fits(estimate))
    return !isLast && shortens(estimate, scans.at(-1)!)
      ? { do: 'again', estimate }
      : { do: 'switch', because: 'fits', estimate };
  // Whether all that stands against it is memory that the guest gave back meanwhile: that comes to rest.
  const waits = fits(estimateSwitch(rounds, [...scans.slice(0, -1), atRest(scans.at(-1)!)], lastPass, rest));
  if (waits && !isLast) return { do: 'again', estimate };
  if (rest === 'serve') {
    if (isLast) return { do: 'switch', because: 'rounds', estimate };
    return pays(rounds, scans, scans.length - 1)
      ? { do: 'again', estimate }
      : { do: 'switch', because: 'no-gain', estimate };
  }
  let inVain = 0;
  while (inVain < scans.length && !pays(rounds, scans, scans.length - 1 - inVain)) inVain++;
  if (inVain >= PATIENCE && !waits) return { do: 'stuck', because: 'dirty', estimate };
  return isLast ? { do: 'stuck', because: 'rounds', estimate } : { do: 'again', estimate };
}

/** What moving the guest now would come to. */
export function estimateSwitch(
  rounds: readonly RoundReport[],
  scans: readonly Rescan[],
  { tagsAMs, readsAll }: LastPass,
  rest: Rest,
): Estimate {
  const scan = scans.at(-1)!;
  const sinceMs = Math.max(scan.sinceMs, 1);
  // what it writes until it stands still
  const more = Math.min(1, (scan.tagMs + PAUSE_MS) / sinceMs);
  const left = remaining(rounds, scans, scans.length - 1) + Math.round((scan.changed - scan.zero) * more);
  const fetchMs = fetching(rounds, left);
  const tagged = Math.max(readsAll, scan.unlocated, scan.tagged * more);
  const passMs = tagsAMs === undefined ? 0 : tagged / tagsAMs;
  return {
    dirtyPerSecond: (scan.changed / sinceMs) * 1000,
    left,
    fetchMs,
    downtimeMs: SWITCH_MS + passMs + (rest === 'copy' ? fetchMs : 0),
  };
}

/** Whether little of what is left would be left after another round. */
function shortens({ left, dirtyPerSecond, fetchMs }: Estimate, { tagMs }: Rescan): boolean {
  const again = Math.min(left, (dirtyPerSecond * (fetchMs + tagMs + ROUND_MS)) / 1000);
  return again <= CLOSING * left && left - again >= CLOSING_FRAMES;
}

/** What the scan would have found, had the guest given back nothing. */
function atRest(scan: Rescan): Rescan {
  return { ...scan, tagged: Math.max(0, scan.tagged - scan.unlocated), unlocated: 0 };
}

/** Frames that are not at the destination after the `index`th round and its scan: changed since, or read too late. */
function remaining(rounds: readonly RoundReport[], scans: readonly Rescan[], index: number): number {
  const { changed, zero } = scans[index]!;
  // whatever was read too late had changed: the scan reports it, too
  return Math.max(changed - zero, rounds[index]!.lacking);
}

/** Whether the `index`th round left less than the one before, and less than moves while as much is written again. */
function pays(rounds: readonly RoundReport[], scans: readonly Rescan[], index: number): boolean {
  const left = remaining(rounds, scans, index);
  if (left === 0) return true;
  if (fetching(rounds.slice(0, index + 1), left) >= scans[index]!.sinceMs) return false;
  return index === 0 || left <= PAYS * remaining(rounds, scans, index - 1);
}

/** How long it takes to get so many frames to the destination, going by these rounds; milliseconds. */
function fetching(rounds: readonly RoundReport[], frames: number): number {
  const later = sums(rounds.slice(1));
  const share = later.got === 0 ? 1 : later.fetched / later.got;
  const all = sums(rounds);
  // pages that changed come as deltas, which the first round's can't
  const alike = later.fetched === 0 ? all : later;
  const page = alike.fetched === 0 ? ASSUMED_PAGE : alike.wireBytes / alike.fetched;
  const recent = sums(rounds.filter((round) => fetched(round) > 0).slice(-RECENT));
  const link = recent.wireBytes === 0 || recent.ms <= 0 ? ASSUMED_LINK : recent.wireBytes / recent.ms;
  return frames * LOCAL_MS + (frames * share * page) / link;
}

function fetched({ source, peer }: RoundReport): number {
  return source + peer;
}

function sums(rounds: readonly RoundReport[]): { got: number; fetched: number; wireBytes: number; ms: number } {
  const sum = { got: 0, fetched: 0, wireBytes: 0, ms: 0 };
  for (const round of rounds) {
    sum.got += fetched(round) + round.cache + round.resident + round.duplicate;
    sum.fetched += fetched(round);
    sum.wireBytes += round.wireBytes;
    sum.ms += round.ms;
  }
  return sum;
}
