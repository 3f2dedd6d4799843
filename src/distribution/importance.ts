/**
 * Which pages a host should hold before anyone needs them: pure functions over arrays, an entry a page.
 *
 *   expected bytes   = 1 − Π over guests elsewhere that hold it: (1 − p(guest comes here))     likelihood that any comes, hints.ts
 *                      × p(the page is still the same by then)                                stability
 *                      × bytes on the wire that an arrival saves
 *                      × what such pages were worth so far, 1/4 to 4                          score.ts
 *   cost in bytes    = bytes of cache × hold price + bytes on the wire to bring it × bring price
 *   importance       = expected bytes / cost
 *
 * Why the likelihood that any guest comes, and not how many are expected: the first that arrives without the page here has it sent, and
 * what was sent enters the cache; those after it find it there. So holding the page saves one sending within the horizon, if at least one
 * guest comes, however many do. Guests are taken to move each for itself; those that move together are overstated by that, as the product
 * over n guests is then one factor. Many guests with a page matter by bringing the likelihood near 1.
 *
 * Which are chosen: by importance, as long as the budget has room. A held page is taken for {@link Prices.hysteresis} times as important as
 * it is, so it leaves only for one that is that much more important. To be brought a page has to be worth its whole cost, to stay only what
 * it costs to hold.
 *
 * Why nothing swaps back and forth: let the same pages be chosen from again after a choice was carried out. A page that was chosen ranks as
 * high as before or higher (it may be held now), one that was not as low or lower. So when one that was not chosen has its turn, no fewer
 * bytes are taken than the first time, when it had no room; and the chosen ones have room, as they had. The same are chosen, whatever their
 * sizes. A page that never paid is not brought, so it doesn't return either, for as long as the caller remembers that it never paid.
 */
import { PagetideError } from '../errors.ts';
import { ascendingInPieces } from './order.ts';
import { finish, PIECE } from './pieces.ts';
import { rankKey } from './score.ts';

/** What a byte costs, in bytes on the wire of a migration. */
export interface Prices {
  /** Of a byte of cache, until the horizon. */
  hold: number;
  /** Of a byte on the wire while nobody waits. */
  bring: number;
  /** 1 or more; a number without unit. */
  hysteresis: number;
}

/**
 * A byte brought while nobody waits, at a low rate and behind everything else, is a quarter as dear as one that a guest waits for. A byte
 * of cache is held for a horizon of an hour or so, in which it could have served otherwise: 1/32, so a page costs 128 bytes.
 */
export const PRICES: Readonly<Prices> = { hold: 1 / 32, bring: 1 / 4, hysteresis: 1.25 };

/** Pages that a host could hold, or does: an entry a page in each array. */
export interface Candidates {
  /** Guests elsewhere that hold it. */
  guests: Uint32Array;
  /** How likely at least one of them comes here within the horizon: {@link arrivalLikelihoods}. */
  likelihood: Float64Array;
  /** How likely it is still the same by then, 0 to 1: {@link stability}. */
  stability: Float64Array;
  /** Bytes on the wire that an arrival of a guest with it saves. */
  wireBytes: Float64Array;
  /** What pages of its domain and class were worth: `Score.factor`. */
  score: Float64Array;
  /** Bytes of cache that it takes. */
  holdBytes: Float64Array;
  /** Bytes on the wire that bringing it takes, or took. */
  bringBytes: Float64Array;
  /** 1: it is held. */
  held: Uint8Array;
  /** 1: it never paid (`neverPaid`), also where it is not held any more. */
  unpaid: Uint8Array;
}

export interface Choice {
  /** Indices of pages to bring, the most important first. */
  bring: Uint32Array;
  /** Indices of held pages that are to leave, in the order in which they are to. */
  leave: Uint32Array;
  /** An entry a page. 1: it is to be held; brought, or kept. */
  chosen: Uint8Array;
  /** Bytes of cache that are taken once all that is done: never above the budget. */
  bytes: number;
}

export type Decision = 'bring' | 'keep' | 'leave' | 'skip';

/** Why a page is brought, kept, leaves or is not brought: for operators. Bytes, and numbers without unit. */
export interface Explanation {
  decision: Decision;
  reason: 'important' | 'not worth its cost' | 'never paid' | 'no room in the budget';
  guestsElsewhere: number;
  likelihood: number;
  stability: number;
  wireBytes: number;
  scoreFactor: number;
  expectedBytes: number;
  holdBytes: number;
  bringBytes: number;
  costBytes: number;
  importance: number;
}

/**
 * What a page has lived, as it is taken, when a directory tells of it first, in milliseconds: it stood still for several scans, in two guests,
 * which what changes soon seldom does. 2 hours give the upper end of both of VeCycle's figures, see {@link stability}.
 */
export const SHARED_LIFE_MS = 2 * 3_600_000;
/** A likelihood is taken for at most this, so that logarithms stay numbers: a guest that is sure to come may still be lost. */
const SUREST = 1 - 1e-9;

/**
 * How likely a page that was unchanged for `unchangedMs` is unchanged for `horizonMs` more.
 *
 *   ( (u + s) / (u + s + h) ) ^ ½       u unchanged, s what it is taken to have lived before, h horizon
 *
 * A page is taken to change as a Poisson process of unknown rate, as Cho and Garcia-Molina do for web pages ("Estimating frequency of
 * change", 2003). Jeffreys' prior of such a rate is Γ(½, 0); with no change in time u its posterior is Γ(½, u), under which none comes in h
 * with the likelihood above. What it lived before is added so that a page just seen is not hopeless. The exponent ½ gives long lives to what
 * lived long: with 1 to 2 hours 58 to 71% are left after two hours and 20 to 28% after a day, where VeCycle measured 50 to 70% and 20
 * to 50% of an older image of a VM. A uniform prior (exponent 1, Laplace's rule of succession) can't give both. That compares a page with a
 * whole image: a sign that the tail has about the right weight, no more.
 *
 * @param unchangedMs milliseconds that it was seen unchanged
 * @param horizonMs milliseconds
 * @param beforeMs milliseconds, above 0: an interval between scans where nothing else is known, {@link SHARED_LIFE_MS} for a shared page
 */
export function stability(unchangedMs: number, horizonMs: number, beforeMs: number): number {
  const lived = Math.max(0, unchangedMs) + beforeMs;
  return Math.sqrt(lived / (lived + Math.max(0, horizonMs)));
}

/**
 * The logarithm of how likely a guest does not come: these add up over guests.
 *
 * @param likelihood that it comes, 0 to 1
 */
export function logMiss(likelihood: number): number {
  return Math.log1p(-Math.min(SUREST, Math.max(0, likelihood)));
}

/** How likely at least one guest comes, from the sum of {@link logMiss} over all. */
export function anyOf(sum: number): number {
  return sum < 0 ? -Math.expm1(sum) : 0;
}

/**
 * How likely at least one guest with each page comes: 1 − Π (1 − p), an entry a page.
 *
 * @param offsets a page's holders are `holders` from `offsets[page]` to `offsets[page + 1]`; one more than there are pages
 * @param holders numbers of guests, or of hosts where only those are known
 * @param likelihoods by number: how likely the guest comes here (of a host: each of its guests). `Hints.arrivals`
 * @param counts how many guests each of `holders` stands for; without, one each
 */
export function arrivalLikelihoods(
  offsets: Uint32Array,
  holders: Uint32Array,
  likelihoods: Float64Array,
  counts?: Uint32Array,
): Float64Array {
  const misses = Float64Array.from(likelihoods, logMiss);
  const likely = new Float64Array(Math.max(0, offsets.length - 1));
  for (let page = 0; page < likely.length; page++) {
    let sum = 0;
    for (let at = offsets[page]!; at < offsets[page + 1]!; at++)
      sum += misses[holders[at]!]! * (counts === undefined ? 1 : counts[at]!);
    likely[page] = anyOf(sum);
  }
  return likely;
}

/** Bytes on the wire that holding the page is expected to save. */
export function expectedBytes(pages: Candidates, at: number): number {
  return pages.likelihood[at]! * pages.stability[at]! * pages.wireBytes[at]! * pages.score[at]!;
}

/** What the page costs, in bytes on the wire; the same whether it is held or not. */
export function costBytes(pages: Candidates, at: number, prices: Prices = PRICES): number {
  return pages.holdBytes[at]! * prices.hold + pages.bringBytes[at]! * prices.bring;
}

/** Bytes expected to be saved for a byte of cost; Infinity for what costs nothing and saves something. */
export function importance(pages: Candidates, at: number, prices: Prices = PRICES): number {
  const expected = expectedBytes(pages, at);
  return expected > 0 ? expected / costBytes(pages, at, prices) : 0;
}

/**
 * What to bring and what is to leave so that what is held is within `budget`. Greedy by importance; one that has no room is passed over,
 * smaller ones after it may have. Best possible where pages cost the same and have one size, as nearly all have, and none is held. O(n). Of
 * equals the first given is taken. Held pages that aren't among the candidates have to be taken off the budget before.
 *
 * @param budget bytes of cache
 * @throws {PagetideError} PT_BAD_ARGUMENT: arrays of unequal length, no such budget or prices
 */
export function choose(pages: Candidates, budget: number, prices: Prices = PRICES): Choice {
  return finish(choosing(pages, budget, prices));
}

/** The same in pieces: yields after each, so that others have their turn. The arrays must not change meanwhile. */
export function* choosing(pages: Candidates, budget: number, prices: Prices = PRICES): Generator<void, Choice> {
  check(pages, budget, prices);
  const count = pages.held.length;
  const keys = new Uint32Array(count);
  for (let i = 0; i < count; i++) {
    if (i % PIECE === PIECE - 1) yield;
    const boost = pages.held[i] === 1 ? prices.hysteresis : 1;
    // turned round, so that ascending order is the most important first
    keys[i] = ~rankKey(importance(pages, i, prices) * boost, pages.unpaid[i] === 1) >>> 0;
  }
  const order = yield* ascendingInPieces(keys);
  const chosen = new Uint8Array(count);
  const bring = new Uint32Array(count);
  let brought = 0;
  let bytes = 0;
  for (let nth = 0; nth < count; nth++) {
    if (nth % PIECE === PIECE - 1) yield;
    const at = order[nth]!;
    const hold = pages.holdBytes[at]!;
    // also false for what is no number, so that the sum stays one
    if (!isWorth(pages, at, prices) || !(hold >= 0 && bytes + hold <= budget)) continue;
    bytes += hold;
    chosen[at] = 1;
    if (pages.held[at] !== 1) bring[brought++] = at;
  }
  const leave = yield* leaving(pages, chosen, prices);
  return { bring: bring.subarray(0, brought), leave, chosen, bytes };
}

/** Why {@link choose} decided as it did about the page at index `at`. */
export function explain(pages: Candidates, choice: Choice, at: number, prices: Prices = PRICES): Explanation {
  const decision = decisionOf(pages, choice, at);
  return {
    decision,
    reason: reasonOf(pages, at, decision, prices),
    guestsElsewhere: pages.guests[at]!,
    likelihood: pages.likelihood[at]!,
    stability: pages.stability[at]!,
    wireBytes: pages.wireBytes[at]!,
    scoreFactor: pages.score[at]!,
    expectedBytes: expectedBytes(pages, at),
    holdBytes: pages.holdBytes[at]!,
    bringBytes: pages.bringBytes[at]!,
    costBytes: costBytes(pages, at, prices),
    importance: importance(pages, at, prices),
  };
}

function decisionOf(pages: Candidates, choice: Choice, at: number): Decision {
  if (pages.held[at] === 1) return choice.chosen[at] === 1 ? 'keep' : 'leave';
  return choice.chosen[at] === 1 ? 'bring' : 'skip';
}

function reasonOf(pages: Candidates, at: number, decision: Decision, prices: Prices): Explanation['reason'] {
  if (decision === 'bring' || decision === 'keep') return 'important';
  if (pages.unpaid[at] === 1) return 'never paid';
  return isWorth(pages, at, prices) ? 'no room in the budget' : 'not worth its cost';
}

/** What was spent to bring a held page is spent: it is worth staying for what holding it costs. */
function isWorth(pages: Candidates, at: number, prices: Prices): boolean {
  const expected = expectedBytes(pages, at);
  if (!(expected > 0)) return false;
  if (pages.held[at] === 1) return expected >= pages.holdBytes[at]! * prices.hold;
  return pages.unpaid[at] !== 1 && expected >= costBytes(pages, at, prices);
}

/** Held pages that were not chosen, in the order of `evictionOrder`. */
function* leaving(pages: Candidates, chosen: Uint8Array, prices: Prices): Generator<void, Uint32Array> {
  const held = new Uint32Array(chosen.length);
  let count = 0;
  for (let i = 0; i < chosen.length; i++) {
    if (i % PIECE === PIECE - 1) yield;
    if (pages.held[i] === 1 && chosen[i] === 0) held[count++] = i;
  }
  const keys = new Uint32Array(count);
  for (let nth = 0; nth < count; nth++) {
    if (nth % PIECE === PIECE - 1) yield;
    keys[nth] = rankKey(importance(pages, held[nth]!, prices), pages.unpaid[held[nth]!] === 1);
  }
  const order = yield* ascendingInPieces(keys);
  for (let nth = 0; nth < count; nth++) order[nth] = held[order[nth]!]!;
  return order;
}

function check(pages: Candidates, budget: number, prices: Prices): void {
  const count = pages.held.length;
  for (const [name, array] of Object.entries(pages) as [string, ArrayLike<number>][])
    if (array.length !== count)
      throw new PagetideError('PT_BAD_ARGUMENT', `${name} has ${array.length} entries for ${count} pages`);
  if (!(budget >= 0)) throw new PagetideError('PT_BAD_ARGUMENT', `no budget in bytes: ${budget}`);
  if (!(prices.hold >= 0 && prices.bring >= 0 && prices.hysteresis >= 1))
    throw new PagetideError('PT_BAD_ARGUMENT', 'prices are 0 or more, and the hysteresis 1 or more');
}
