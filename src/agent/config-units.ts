/** Values that several parts of the configuration have. */
import { z } from 'zod';
import { parseSize } from './units.ts';

/** The lowest rate, bytes a second. */
export const LEAST_RATE = 65_536;
/** Smallest cache file, bytes. */
const SMALLEST_CACHE = 2 ** 20;

export const bytesPerSecond = z.union([z.int().positive(), z.string()]).transform((value, context): number => {
  const bytes = typeof value === 'number' ? value : parseSize(value);
  if (bytes === undefined || bytes < LEAST_RATE) {
    context.addIssue({ code: 'custom', message: 'bytes a second, 64K at least, e.g. 104857600 or 100M' });
    return z.NEVER;
  }
  return bytes;
});

export const cacheSize = z.union([z.int().min(0), z.string()]).transform((value, context): number => {
  const bytes = typeof value === 'number' ? value : parseSize(value);
  if (bytes !== 0 && (bytes === undefined || bytes < SMALLEST_CACHE)) {
    context.addIssue({ code: 'custom', message: 'a size, 1M at least, e.g. 1G; 0 for none' });
    return z.NEVER;
  }
  return bytes;
});

export const path = z
  .string()
  .min(1)
  .max(4096)
  .refine((text) => !text.includes('\0'), 'holds a zero byte');
