/** The time, as distribution takes it; tests have their own. */
import { setTimeout } from 'node:timers/promises';

export interface Clock {
  /** Monotonic milliseconds. One that goes back is taken to stand still. */
  nowMs(): number;
  /** Unix milliseconds: to show, never to decide. */
  unixMs(): number;
  /** Resolves after `ms` milliseconds, or when the signal aborts. Keeps no process alive. */
  wait(ms: number, signal: AbortSignal): Promise<void>;
}

export const systemClock: Clock = {
  nowMs: () => performance.now(),
  unixMs: () => Date.now(),
  wait: (ms, signal) => setTimeout(ms, undefined, { signal, ref: false }).catch(() => undefined),
};
