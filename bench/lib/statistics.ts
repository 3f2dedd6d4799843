/** The statistics of benches: medians, percentiles, ratios of rounds and how far they can be trusted. */
import { PagetideError } from '../../src/errors.ts';
import type { Direction, Target } from './types.ts';

function checked(samples: ArrayLike<number>): number[] {
  const numbers = Array.from(samples);
  if (numbers.length === 0 || !numbers.every(Number.isFinite)) {
    throw new PagetideError('PT_BAD_ARGUMENT', 'statistics need at least one sample, all of them finite numbers');
  }
  return numbers;
}

/**
 * Percentile by nearest rank: the smallest sample that at least the share `p` of all samples does not exceed. Always a
 * value that was measured; the toucher's own percentiles are made the same way.
 * @param p 0 < p ≤ 1
 */
export function percentile(samples: ArrayLike<number>, p: number): number {
  if (!(p > 0 && p <= 1)) throw new PagetideError('PT_BAD_ARGUMENT', `percentile: 0 < p <= 1, not ${p}`);
  const sorted = checked(samples).sort((a, b) => a - b);
  // 0.99 * 100 is 99.00000000000001 in binary: without the allowance rank 99 would become 100
  return sorted[Math.max(0, Math.ceil(p * sorted.length - 1e-9) - 1)]!;
}

/** Median; of an even number of samples the mean of the middle two. */
export function median(samples: ArrayLike<number>): number {
  const sorted = checked(samples).sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 ? sorted[middle]! : (sorted[middle - 1]! + sorted[middle]!) / 2;
}

/** Numbers in [0, 1) from a seed (mulberry32): the same interval each time the same rounds are judged. */
export function seededRandom(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let x = Math.imul(state ^ (state >>> 15), state | 1);
    x = (x + Math.imul(x ^ (x >>> 7), x | 61)) ^ x;
    return ((x ^ (x >>> 14)) >>> 0) / 2 ** 32;
  };
}

/**
 * Percentile bootstrap of the median: draw as many samples with replacement, take the median, many times. With few
 * rounds (five) it is coarse, and close to the smallest and largest round.
 * @returns the bounds that hold `confidence` (0.95) of the resampled medians
 */
export function bootstrapMedian(
  samples: ArrayLike<number>,
  { confidence = 0.95, resamples = 2000, seed = 1 } = {},
): { low: number; high: number } {
  const values = checked(samples);
  const random = seededRandom(seed);
  const medians = Array.from({ length: resamples }, () =>
    median(values.map(() => values[Math.floor(random() * values.length)]!)),
  );
  const tail = (1 - confidence) / 2;
  return { low: percentile(medians, tail), high: percentile(medians, 1 - tail) };
}

/** One round's figure and what it is compared with. */
export interface Pair {
  value: number;
  baseline: number;
}

/**
 * Judges one figure: the median of the rounds' ratios against the target. Ratios are taken within a round, whose arms
 * ran right after each other, so that a machine that slows down for a while slows both.
 */
export function judge(
  name: string,
  unit: string,
  pairs: readonly Pair[],
  goal: { target: number | null; direction: Direction },
): Target {
  const ratios = pairs.map(({ value, baseline }) => {
    if (!(baseline > 0)) throw new PagetideError('PT_BAD_ARGUMENT', `${name}: the baseline of a round is ${baseline}`);
    return value / baseline;
  });
  const ratio = median(ratios);
  const met = goal.target === null ? null : goal.direction === 'at-most' ? ratio <= goal.target : ratio >= goal.target;
  return {
    name,
    value: median(pairs.map((pair) => pair.value)),
    baseline: median(pairs.map((pair) => pair.baseline)),
    ratio,
    target: goal.target,
    direction: goal.direction,
    met,
    unit,
    spread: { min: Math.min(...ratios), max: Math.max(...ratios), ...bootstrapMedian(ratios) },
  };
}
