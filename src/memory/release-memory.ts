/**
 * Gives memory back that a migration needed, once it is over. Neither V8 nor glibc does so by itself in a process that
 * has gone idle: a heap is collected when something is allocated, and freed memory is kept for the next time. An agent
 * is idle most of its life, on a host whose memory is for guests.
 */
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import { native } from './native.ts';

/**
 * Of a worker's heap, MiB. It holds a page connection and some small maps. Node's own limits let a young generation grow to
 * 48 MiB a thread, and with a dozen threads that is what an agent's memory would mostly be.
 */
export const WORKER_LIMITS = { maxYoungGenerationSizeMb: 4, maxOldGenerationSizeMb: 512 };

/** After the last work has ended, milliseconds: what comes right after it must not meet a collection. */
const IDLE_MS = 1_000;

let collect: (() => void) | undefined;

/** A full collection of this thread's heap. Takes some milliseconds, in which the thread does nothing else. */
function collectGarbage(): void {
  if (collect === undefined) {
    // The function is only handed out where the flag is set; a context made afterwards has it. Node offers no other way in.
    setFlagsFromString('--expose-gc');
    collect = runInNewContext('gc') as () => void;
  }
  collect();
}

/** Watches over one thread. */
export class MemoryReleaser {
  private readonly isIdle: () => boolean;
  private readonly trim: boolean;
  private timer: NodeJS.Timeout | undefined;

  /**
   * @param isIdle whether nothing is under way in this thread that a pause of milliseconds would hurt
   * @param trim also give back what native code has freed, in the whole process: one thread does it for all
   */
  constructor(isIdle: () => boolean, trim: boolean) {
    this.isIdle = isIdle;
    this.trim = trim;
  }

  /** Some work has ended. Collects in a while, if nothing has begun by then. */
  ended(): void {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => {
      if (!this.isIdle()) return; // the end of what runs now comes by here too
      collectGarbage();
      if (this.trim) native().trimMemory();
    }, IDLE_MS);
    this.timer.unref();
  }

  close(): void {
    clearTimeout(this.timer);
  }
}
