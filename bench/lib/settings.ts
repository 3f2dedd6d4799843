/** A bench's own knobs, from `--set name=value`. */
import { PagetideError } from '../../src/errors.ts';
import type { BenchOptions } from './types.ts';

/** A whole number from the settings, or `fallback`. @throws PT_BAD_ARGUMENT below `least` or not a number */
export function setting(options: BenchOptions, name: string, fallback: number, least = 1): number {
  const text = options.settings.get(name);
  if (text === undefined) return fallback;
  const value = Number(text);
  if (!/^\d+$/.test(text) || !Number.isSafeInteger(value) || value < least) {
    throw new PagetideError('PT_BAD_ARGUMENT', `--set ${name}=${text}: a whole number from ${least}, please`);
  }
  return value;
}

/** Refuses settings that this bench does not have: a misspelt one must not silently measure something else. */
export function checkSettings(options: BenchOptions, known: readonly string[]): void {
  for (const name of options.settings.keys()) {
    if (!known.includes(name)) {
      const names = known.length > 0 ? `it has ${known.join(', ')}` : 'it has none';
      throw new PagetideError('PT_BAD_ARGUMENT', `this bench has no setting ${name}; ${names}`);
    }
  }
}
