/** Sorting of many by one number: a radix sort, O(n), stable, so of equals the first given comes first. */
import { finish, PIECE } from './pieces.ts';

const BITS = 16;
const BUCKETS = 1 << BITS;
const float = new Float32Array(1);
const bits = new Uint32Array(float.buffer);

/**
 * A whole number of 31 bits that grows with `value`, 0 for nothing, for negative numbers and for NaN. Values are told apart to a part in 10⁷
 * or so: as float32, whose bits read as an integer grow with the number where that is not negative.
 */
export function orderKey(value: number): number {
  float[0] = value > 0 ? value : 0;
  return bits[0]!;
}

/** The indices of `keys` (whole numbers of 32 bits) in ascending order of their keys. */
export function ascending(keys: Uint32Array): Uint32Array {
  return finish(ascendingInPieces(keys));
}

/** The same in pieces: yields after each. `keys` must not change meanwhile. */
export function* ascendingInPieces(keys: Uint32Array): Generator<void, Uint32Array> {
  const count = keys.length;
  let order = new Uint32Array(count);
  let next = new Uint32Array(count);
  for (let i = 0; i < count; i++) {
    if (i % PIECE === PIECE - 1) yield;
    order[i] = i;
  }
  const ends = new Uint32Array(BUCKETS + 1);
  for (let shift = 0; shift < 32; shift += BITS) {
    ends.fill(0);
    for (let i = 0; i < count; i++) {
      if (i % PIECE === PIECE - 1) yield;
      ends[((keys[i]! >>> shift) & (BUCKETS - 1)) + 1]!++;
    }
    for (let bucket = 1; bucket <= BUCKETS; bucket++) ends[bucket]! += ends[bucket - 1]!;
    for (let i = 0; i < count; i++) {
      if (i % PIECE === PIECE - 1) yield;
      const at = order[i]!;
      next[ends[(keys[at]! >>> shift) & (BUCKETS - 1)]!++] = at;
    }
    [order, next] = [next, order];
  }
  return order;
}
