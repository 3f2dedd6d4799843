/** Looks now and then whether the hints of a domain are other ones than its plan was made with. */
import type { Logger } from 'pino';
import { asPagetideError } from '../errors.ts';
import type { Surroundings } from './bringing.ts';
import type { Clock } from './clock.ts';
import { hintText } from './info.ts';
import type { DomainPlan } from './planner.ts';

/** Between two looks, milliseconds. */
export const HINTS_MS = 10_000;

export interface HintWatch {
  plans: () => Iterable<DomainPlan>;
  around: Pick<Surroundings, 'directory'>;
  clock: Clock;
  log: Logger;
  /** Ends it. */
  signal: AbortSignal;
  /** Nobody wants to know. */
  isIdle: () => boolean;
  changed: () => void;
}

/** Resolves when the signal has aborted. Never rejects. */
export async function watchHints({ plans, around, clock, log, signal, isIdle, changed }: HintWatch): Promise<void> {
  const isOver = (): boolean => signal.aborted;
  while (!isOver()) {
    await clock.wait(HINTS_MS, signal);
    if (isIdle()) continue;
    for (const plan of [...plans()]) {
      const place = around.directory(plan.domain.name);
      if (place === undefined || isOver()) continue;
      try {
        const hints = await place.directory.hints(place.domain);
        if (textOf(hints) !== textOf(plan.hints) && !plan.gone) changed();
      } catch (error) {
        log.debug({ domain: plan.domain.name }, `the directory is away: ${asPagetideError(error).message}`);
      }
    }
  }
}

function textOf(hints: DomainPlan['hints']): string {
  return hints.map(hintText).sort().join('\n');
}
