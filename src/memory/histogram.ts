/**
 * A log-linear histogram of durations in a plain Int32Array, so that it can lie in memory that threads share and be
 * filled on the way of a fault: recording is one array increment, nothing is allocated.
 *
 * Unit 0.25 µs. Below 64 µs every unit has its own bucket; above, each power of two has 128: the error is below 1%.
 */
const LINEAR = 256;
const SUB = 128;
/** The longest duration that is told apart, in units. */
export const MOST_UNITS = 2 ** 31 - 1;

/** Entries that a histogram needs. */
export const HISTOGRAM_BUCKETS = LINEAR + (31 - 8) * SUB;

/** Adds one duration in microseconds (0 to about 9 minutes; longer ones count as that). One writer at a time. */
export function record(buckets: Int32Array, micros: number): void {
  recordUnits(buckets, toUnits(micros));
}

/** Microseconds as whole units of 0.25 µs, at most 2^31 - 1. */
export function toUnits(micros: number): number {
  return micros <= 0 ? 0 : Math.min(MOST_UNITS, micros * 4) | 0;
}

/** {@link record}, in units: a whole number can be passed on without an object being made of it. */
export function recordUnits(buckets: Int32Array, unit: number): void {
  let index = unit;
  if (unit >= LINEAR) {
    const exponent = 31 - Math.clz32(unit);
    index = LINEAR + (exponent - 8) * SUB + ((unit >> (exponent - 7)) & (SUB - 1));
  }
  buckets[index]!++;
}

/** Middle of bucket `index`, microseconds. */
function valueOf(index: number): number {
  if (index < LINEAR) return (index + 0.5) / 4;
  const exponent = Math.floor((index - LINEAR) / SUB) + 8;
  const sub = (index - LINEAR) % SUB;
  const width = 2 ** (exponent - 7);
  return (2 ** exponent + (sub + 0.5) * width) / 4;
}

export interface Summary {
  count: number;
  p50Us: number;
  p99Us: number;
}

/**
 * Count and percentiles so far. All zero where nothing was recorded.
 *
 * A percentile is the middle of its bucket, which may lie above the longest duration in it: where that is known, in
 * microseconds, none is said to be longer.
 */
export function summarize(buckets: Int32Array, longestUs = Infinity): Summary {
  let count = 0;
  for (const n of buckets) count += n;
  const at = (share: number): number => {
    let left = Math.max(1, Math.ceil(count * share));
    for (let i = 0; i < buckets.length; i++) {
      left -= buckets[i]!;
      if (left <= 0) return Math.min(valueOf(i), longestUs);
    }
    return 0;
  };
  return count === 0 ? { count, p50Us: 0, p99Us: 0 } : { count, p50Us: at(0.5), p99Us: at(0.99) };
}
