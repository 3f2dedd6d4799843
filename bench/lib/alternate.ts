/** Runs two arms in turn. */
import { PagetideError } from '../../src/errors.ts';

export interface AlternateOptions<A, B> {
  /** Rounds that count, at least 1. */
  rounds: number;
  /** Rounds before them whose figures are thrown away (1): files mapped, code compiled, clocks up. */
  warmup?: number;
  /** One run of each arm; `round` counts from 0, and is negative while warming up. */
  a: (round: number) => Promise<A>;
  b: (round: number) => Promise<B>;
  /** Called after each counted round. */
  onRound?: (round: number, a: A, b: B) => void;
}

/**
 * A B B A A B …: the two arms of a round run right after each other, so that what drifts (clock speed, neighbours on the
 * machine) meets both, and each goes first as often as the other, so that what one leaves behind (memory that its
 * hypervisor has backed) does not always help the same one. Nothing is averaged or dropped here: each counted round comes back as it was measured.
 */
export async function alternate<A, B>(options: AlternateOptions<A, B>): Promise<{ a: A; b: B }[]> {
  const { rounds, warmup = 1 } = options;
  if (!Number.isInteger(rounds) || rounds < 1 || !Number.isInteger(warmup) || warmup < 0) {
    throw new PagetideError('PT_BAD_ARGUMENT', `at least one round, please, not ${rounds} (and ${warmup} to warm up)`);
  }
  const results: { a: A; b: B }[] = [];
  for (let round = -warmup; round < rounds; round++) {
    let a: A;
    let b: B;
    if (round % 2 === 0) {
      a = await options.a(round);
      b = await options.b(round);
    } else {
      b = await options.b(round);
      a = await options.a(round);
    }
    if (round < 0) continue;
    results.push({ a, b });
    options.onRound?.(round, a, b);
  }
  return results;
}

/**
 * The same with any number of arms, by name: each round runs all of them, in turn forwards and backwards. One round before
 * them is thrown away.
 */
export async function alternateAll<T>(
  rounds: number,
  arms: Record<string, () => Promise<T>>,
): Promise<Record<string, T>[]> {
  const names = Object.keys(arms);
  const results: Record<string, T>[] = [];
  for (let round = -1; round < rounds; round++) {
    const result: Record<string, T> = {};
    for (const name of round % 2 === 0 ? names : [...names].reverse()) result[name] = await arms[name]!();
    if (round >= 0) results.push(result);
  }
  return results;
}
