/**
 * Which guest of a host that is evacuated goes where, and in which order: decides only, from what was found out before.
 *
 *   cost(guest, target) = bytes of its pages that the target lacks, and that no guest placed there before it brings
 *
 *   again and again: the cheapest (guest, target) of which the target has room and can take the guest ──► placed, its pages count as there
 *
 * So the first of several alike guests pays for the pages, and its siblings follow it for next to nothing. Where that leaves a guest
 * without room, it is tried again with the largest guests first; the plan that moves more guests is taken.
 *
 * Pages are those of a sample (page-sample.ts), by number within a domain: guests of two domains have none in common.
 */
import type { ErrorJson } from '../errors.ts';

export interface EvacuationGuest {
  name: string;
  /** Bytes that it needs at a target. */
  memory: number;
  /** Undefined: it shares pages with nobody. */
  domain?: string | undefined;
  /** Its pages that are in the sample, each once. */
  pages: Uint32Array;
  /** Bytes that one of them stands for. */
  pageBytes: number;
  /** Bytes of which it is not known what they are: all of its pages that are not zero, where it has no manifest yet. */
  unknownBytes: number;
}

export interface EvacuationTarget {
  url: string;
  /** Bytes that guests may take in all. */
  room: number;
  /** By domain a byte a page of the sample, 1: it is there. A domain that lacks: nothing of it is. */
  has: ReadonlyMap<string, Uint8Array>;
  /** Guests that it can't take, whatever room it has. */
  refuses: ReadonlyMap<string, ErrorJson>;
}

export interface Placement {
  guest: string;
  /** URL of the target. */
  to: string;
  /** Bytes of pages that have to come, before compression, once all placements before this one have been carried out. */
  bytes: number;
}

export interface EvacuationPlan {
  /** In the order in which they are to begin. */
  placements: Placement[];
  /** Guests that no target has room for, or can take. */
  left: string[];
}

/** Two guests have pages in common once it is more than one in so many of those of the smaller one. */
const ALIKE = 100;

/** A target while guests are placed. */
interface Filling {
  target: EvacuationTarget;
  room: number;
  has: Map<string, Uint8Array>;
}

export function planEvacuation(
  guests: readonly EvacuationGuest[],
  targets: readonly EvacuationTarget[],
): EvacuationPlan {
  const cheapest = place(guests, targets);
  if (cheapest.left.length === 0) return cheapest;
  const packed = pack(guests, targets);
  return packed.placements.length > cheapest.placements.length ? packed : cheapest;
}

/**
 * Whether one of the two brings pages that the other one needs as well: then they must not be under way to one target at once, as
 * each would fetch them. Of guests of a domain whose pages are not known that has to be taken for granted.
 */
export function areAlike(a: EvacuationGuest, b: EvacuationGuest): boolean {
  if (a.domain === undefined || a.domain !== b.domain) return false;
  if (a.unknownBytes > 0 || b.unknownBytes > 0) return true;
  const [small, large] = a.pages.length < b.pages.length ? [a, b] : [b, a];
  const pages = new Set(large.pages);
  const common = small.pages.reduce((count, page) => count + (pages.has(page) ? 1 : 0), 0);
  return common * ALIKE > small.pages.length;
}

/** Greedy, by cost. Of equal cost: where there is more room, then by the order in which guests and targets were given. */
function place(guests: readonly EvacuationGuest[], targets: readonly EvacuationTarget[]): EvacuationPlan {
  const fillings = targets.map(begin);
  const placements: Placement[] = [];
  const waiting = guests.map((guest) => ({ guest, costs: fillings.map((filling) => cost(guest, filling)) }));
  for (;;) {
    let best: { at: number; filling: number; bytes: number } | undefined;
    for (const [at, { guest, costs }] of waiting.entries()) {
      for (const [filling, bytes] of costs.entries()) {
        if (!takes(fillings[filling]!, guest)) continue;
        if (
          best === undefined ||
          bytes < best.bytes ||
          // of one guest only: between guests the order in which they were given
          (bytes === best.bytes && at === best.at && fillings[filling]!.room > fillings[best.filling]!.room)
        )
          best = { at, filling, bytes };
      }
    }
    if (best === undefined) return { placements, left: waiting.map(({ guest }) => guest.name) };
    const { guest } = waiting[best.at]!;
    const filling = fillings[best.filling]!;
    waiting.splice(best.at, 1);
    fill(filling, guest);
    placements.push({ guest: guest.name, to: filling.target.url, bytes: best.bytes });
    // nothing else has become cheaper
    for (const other of waiting)
      if (guest.domain !== undefined && other.guest.domain === guest.domain)
        other.costs[best.filling] = cost(other.guest, filling);
  }
}

/** The largest first, each to where it is cheapest: finds room where the cheapest first has used it up. Then in the cheapest order. */
function pack(guests: readonly EvacuationGuest[], targets: readonly EvacuationTarget[]): EvacuationPlan {
  const fillings = targets.map(begin);
  const assigned: EvacuationGuest[][] = targets.map(() => []);
  const left = new Set<string>();
  for (const guest of [...guests].sort((a, b) => b.memory - a.memory)) {
    let best: { filling: number; bytes: number } | undefined;
    for (const [filling, one] of fillings.entries()) {
      if (!takes(one, guest)) continue;
      const bytes = cost(guest, one);
      if (best === undefined || bytes < best.bytes) best = { filling, bytes };
    }
    if (best === undefined) {
      left.add(guest.name);
      continue;
    }
    fill(fillings[best.filling]!, guest);
    assigned[best.filling]!.push(guest);
  }
  const each = targets.map((target, at) => place(assigned[at]!, [target]).placements);
  const placements = each.flat().sort((a, b) => a.bytes - b.bytes);
  // within a target siblings follow the first of them: sorting keeps an order only of what costs the same
  const next = new Map(targets.map(({ url }, at) => [url, each[at]!.values()]));
  return {
    placements: placements.map(({ to }) => next.get(to)!.next().value!),
    left: guests.flatMap(({ name }) => (left.has(name) ? [name] : [])),
  };
}

function begin(target: EvacuationTarget): Filling {
  return { target, room: target.room, has: new Map() };
}

function takes({ target, room }: Filling, { name, memory }: EvacuationGuest): boolean {
  return room >= memory && !target.refuses.has(name);
}

function fill(filling: Filling, { domain, pages, memory }: EvacuationGuest): void {
  filling.room -= memory;
  if (domain === undefined || pages.length === 0) return;
  const before = filling.has.get(domain) ?? filling.target.has.get(domain) ?? new Uint8Array();
  // copied once, as what the target had at first is not ours
  const size = pages.reduce((most, page) => Math.max(most, page + 1), before.length);
  const has = filling.has.has(domain) && before.length >= size ? before : new Uint8Array(size);
  if (has !== before) has.set(before);
  for (const page of pages) has[page] = 1;
  filling.has.set(domain, has);
}

function cost({ domain, pages, pageBytes, unknownBytes }: EvacuationGuest, { target, has }: Filling): number {
  const there = domain === undefined ? undefined : (has.get(domain) ?? target.has.get(domain));
  let lacking = pages.length;
  if (there !== undefined) for (const page of pages) if (there[page] === 1) lacking--;
  return unknownBytes + lacking * pageBytes;
}
