/**
 * What a cache is asked for, as generators: the same numbers every time, so that nothing has to be recorded and kept.
 * A trace is a row of page numbers.
 */
import { seededRandom } from './statistics.ts';

export interface Trace {
  name: string;
  /** What a cache should reach on it, as a multiple of the hits of one that evicts the least recently used. */
  target: number;
  /** @param slots of the cache that will be asked: sizes are multiples of it */
  requests: (slots: number, length: number) => Generator<number>;
}

/** Numbers 0 to `universe` - 1, number k with weight 1 / (k + 1)^alpha, by the inverse of its distribution. */
function zipf(universe: number, alpha: number, random: () => number): () => number {
  const sums = new Float64Array(universe);
  let sum = 0;
  for (let k = 0; k < universe; k++) sums[k] = sum += (k + 1) ** -alpha;
  return () => {
    const wanted = random() * sum;
    let low = 0;
    for (let high = universe - 1; low < high;) {
      const middle = (low + high) >> 1;
      if (sums[middle]! < wanted) low = middle + 1;
      else high = middle;
    }
    return low;
  };
}

/** Pages of a fleet: a few that everybody has, and a long tail. */
function* fleet(slots: number, length: number): Generator<number> {
  const next = zipf(slots * 10, 0.9, seededRandom(11));
  for (let i = 0; i < length; i++) yield next();
}

/**
 * Half of it goes round and round over half as many pages again as there are slots; the other half asks for what was
 * asked for lately, and for a new page now and then, which is what evicting the least recently used is best at.
 */
function* loopAndRecency(slots: number, length: number): Generator<number> {
  const random = seededRandom(12);
  const loop = Math.floor(slots * 1.5);
  const recent: number[] = [];
  let at = 0;
  let fresh = loop;
  for (let i = 0; i < length; i++) {
    if (random() < 0.5) {
      yield at++ % loop;
      continue;
    }
    const distance = Math.floor(-Math.log(1 - random()) * slots * 0.15);
    const page = recent.length > distance && random() < 0.9 ? recent[recent.length - 1 - distance]! : fresh++;
    if (recent.length > slots * 4) recent.splice(0, slots);
    recent.push(page);
    yield page;
  }
}

/**
 * A guest with eight times as many pages of its own as there are slots arrives amid requests for a working set that
 * fits: three requests of four are the guest's, for three fifths of the time, and each of its pages comes once.
 */
function* bigScan(slots: number, length: number): Generator<number> {
  const random = seededRandom(13);
  const working = Math.floor(slots * 0.75);
  const next = zipf(working, 0.4, random);
  let scanned = working;
  for (let i = 0; i < length; i++) {
    const scanning = i >= length / 5 && i < (length * 4) / 5;
    yield scanning && i % 4 !== 0 ? scanned++ : next();
  }
}

export const TRACES: readonly Trace[] = [
  { name: 'fleet (zipf)', target: 1, requests: fleet },
  { name: 'loop and recency', target: 1, requests: loopAndRecency },
  { name: 'big scan', target: 1.2, requests: bigScan },
];

/** Hits of a cache of `slots` pages that evicts the least recently used. */
export function leastRecentlyUsedHits(slots: number, requests: Iterable<number>): number {
  const cache = new Map<number, true>();
  let hits = 0;
  for (const page of requests) {
    if (cache.delete(page)) hits++;
    else if (cache.size === slots) cache.delete(cache.keys().next().value!);
    cache.set(page, true);
  }
  return hits;
}
