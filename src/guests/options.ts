/** What drivers share in checking an operator's options. */
import { z } from 'zod';
import { parseSize } from '../agent/units.ts';
import { PagetideError } from '../errors.ts';

export { parseSize };

/** Bytes, as a number or as people write them: `256M`, `1.5G`. Becomes a number. */
export const sizeOption = z.union([z.string(), z.number()]).transform((value, context) => {
  const bytes = typeof value === 'number' ? value : parseSize(value);
  if (bytes !== undefined && Number.isSafeInteger(bytes) && bytes > 0) return bytes;
  context.addIssue({ code: 'custom', message: 'must be a size such as 256M' });
  return z.NEVER;
});

/** A number, also as text, as the command line has it. */
export function numberOption(min: number, max: number) {
  return z.coerce.number<number | string>().min(min).max(max);
}

/**
 * Checks `options` by `schema`.
 * @throws PT_BAD_ARGUMENT naming every wrong option
 */
export function checkOptions<T extends z.ZodType>(schema: T, options: unknown, what: string): z.output<T> {
  const result = schema.safeParse(options);
  if (result.success) return result.data;
  const wrong = result.error.issues.map((issue) => {
    const path = issue.path.map(String).join('.');
    return path === '' ? issue.message : `${path}: ${issue.message}`;
  });
  throw new PagetideError('PT_BAD_ARGUMENT', `${what}: ${wrong.join('; ')}`);
}
