/** Counters of links as bytes in windows of 100 ms. */
import type { Counters } from '../netns-cluster/recorder.ts';
import type { Windows } from './types.ts';

/** Value of a counter at a time, taken to grow evenly between two looks; before the first and after the last it stands still. */
export function counterAt(atMs: ArrayLike<number>, counter: ArrayLike<number>, ms: number): number {
  let [low, high] = [0, atMs.length - 1];
  if (high < 0) return 0;
  if (ms <= atMs[low]!) return counter[low]!;
  if (ms >= atMs[high]!) return counter[high]!;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (atMs[middle]! <= ms) low = middle;
    else high = middle;
  }
  const share = (ms - atMs[low]!) / (atMs[high]! - atMs[low]!);
  return counter[low]! + share * (counter[high]! - counter[low]!);
}

/** Bytes that went from `fromMs` to `toMs`. */
export function bytesBetween(
  atMs: ArrayLike<number>,
  counter: ArrayLike<number>,
  fromMs: number,
  toMs: number,
): number {
  return counterAt(atMs, counter, toMs) - counterAt(atMs, counter, fromMs);
}

/** What each host received, in windows side by side from `fromMs` on. */
export function windowsOf(links: readonly Counters[], fromMs: number, toMs: number, windowMs = 100): Windows {
  const count = Math.max(0, Math.ceil((toMs - fromMs) / windowMs));
  const each = links.map(({ atMs, bytesIn }) =>
    Array.from({ length: count }, (_, i) => {
      const at = fromMs + i * windowMs;
      return Math.round(bytesBetween(atMs, bytesIn, at, at + windowMs));
    }),
  );
  const at = (i: number): number[] => each.map((link) => link[i]!);
  return {
    windowMs,
    busiest: Array.from({ length: count }, (_, i) => Math.max(0, ...at(i))),
    all: Array.from({ length: count }, (_, i) => at(i).reduce((a, b) => a + b, 0)),
  };
}
