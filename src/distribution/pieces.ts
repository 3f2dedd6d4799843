/**
 * Long work in the agent's main thread, in pieces: it is written as a generator that yields after each, and whoever runs it lets others
 * have their turn between them.
 */
import { setImmediate } from 'node:timers/promises';

/** Entries of an array between two yields: some tenths of a millisecond, a few where each is a miss of the processor's caches. */
export const PIECE = 4096;
/** Milliseconds after which others have their turn. */
const TURN_MS = 2;

/** Runs it in one go. */
export function finish<T>(work: Generator<void, T>): T {
  for (;;) {
    const step = work.next();
    if (step.done === true) return step.value;
  }
}

/** Lets others have their turn now and then. One for each work. */
export class Turns {
  #beganMs = performance.now();

  /** Whether the turn is over. */
  get over(): boolean {
    return performance.now() - this.#beganMs >= TURN_MS;
  }

  /** Resolves at once while the turn lasts, else after everybody else had theirs. */
  async next(): Promise<void> {
    if (!this.over) return;
    await setImmediate();
    this.#beganMs = performance.now();
  }

  /** Runs a generator to its end, a turn at a time. */
  async run<T>(work: Generator<void, T>): Promise<T> {
    for (;;) {
      const step = work.next();
      if (step.done === true) return step.value;
      if (this.over) await this.next();
    }
  }
}
