/** Errors as the CLI shows them, and its exit codes. */
import { asPagetideError, PagetideError } from '../errors.ts';

export const EXIT_OK = 0;
export const EXIT_FAILURE = 1;
/** The command line or the configuration is wrong; nothing was done. */
export const EXIT_USAGE = 2;

/** An error in what was typed. */
export function usage(message: string, hint?: string): PagetideError {
  return new PagetideError('PT_BAD_ARGUMENT', message, hint === undefined ? {} : { hint });
}

/** For what a signal ended before it had done anything: `PT_CANCELLED` speaks of migrations otherwise. */
export function cancelled(thrown: unknown): never {
  if (!(thrown instanceof PagetideError) || thrown.code !== 'PT_CANCELLED') throw thrown;
  throw new PagetideError('PT_CANCELLED', 'ended by a signal', { cause: thrown, hint: 'Nothing was written.' });
}

/** 2 for what was typed wrongly, 1 for all else. */
export function exitCode(error: PagetideError): number {
  return error.code === 'PT_BAD_ARGUMENT' || error.code === 'PT_BAD_CONFIG' ? EXIT_USAGE : EXIT_FAILURE;
}

/**
 * `error PT_…: message (hint)`, in one line; with `verbose` causes and stack in further ones. With `json` one JSON
 * object instead: `{code, message, hint, cause?, stack?}`.
 */
export function formatFailure(thrown: unknown, options: { json: boolean; verbose: boolean }): string {
  const error = asPagetideError(thrown);
  if (options.json) {
    return JSON.stringify({ ...error.toJSON(), ...(options.verbose ? { stack: error.stack ?? '' } : {}) });
  }
  const line = `error ${error.code}: ${oneLine(error.message)} (${oneLine(error.hint)})`;
  if (!options.verbose) return line;
  const lines = [line];
  let cause = error.cause;
  // causes may be chained, and by mistake in a circle
  for (let depth = 0; cause !== undefined && depth < 8; depth++) {
    lines.push(
      `  caused by: ${cause instanceof Error ? `${cause.name}: ${oneLine(cause.message)}` : JSON.stringify(cause)}`,
    );
    cause = cause instanceof Error ? cause.cause : undefined;
  }
  const stack = (error.stack ?? '').split('\n').filter((text) => text.startsWith('    at '));
  return [...lines, ...stack].join('\n');
}

function oneLine(text: string): string {
  return text.trim().replaceAll(/\s*\n\s*/g, ' ');
}
