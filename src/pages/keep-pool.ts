/** Puts pages of whole memory files into the shared-page cache, on a thread of its own that exists only while there is work. */
import { closeSync } from 'node:fs';
import { Piscina } from 'piscina';
import { asPagetideError, errorFromJson, PagetideError } from '../errors.ts';
import { POOL_OPTIONS } from '../batch-workers.ts';
import type { KeepResult, KeepTask, Kept } from './keep-task.ts';

/** Guests whose memory may wait for it. Each is held until then: beyond that it is let go of instead. */
const WAITING = 4;
const IDLE_MS = 5_000;

export class KeepPool {
  readonly #pool: Piscina<KeepTask, KeepResult>;
  readonly #stop = new Int32Array(new SharedArrayBuffer(4));

  constructor() {
    this.#pool = new Piscina<KeepTask, KeepResult>({
      filename: new URL('../../workers/keep-worker.js', import.meta.url).href,
      minThreads: 0,
      maxThreads: 1,
      maxQueue: WAITING,
      idleTimeout: IDLE_MS,
      ...POOL_OPTIONS,
    });
  }

  /**
   * One task after the other. Takes the files over: they are closed when it has ended, in whatever way.
   * @throws PagetideError `PT_CANCELLED` where there is no room for more work; what reading, tagging or writing throws
   */
  async keep(task: Omit<KeepTask, 'stop'>): Promise<Kept> {
    try {
      const result = await this.#pool.run({ ...task, stop: this.#stop });
      if ('error' in result) throw errorFromJson(result.error);
      return result;
    } catch (error) {
      if (error instanceof PagetideError) throw error;
      throw asPagetideError(error, 'PT_CANCELLED', 'no pages were kept');
    } finally {
      for (const { fd } of task.files) closeSync(fd);
    }
  }

  /** Ends what is under way soon, and the thread. */
  async close(): Promise<void> {
    Atomics.store(this.#stop, 0, 1);
    await this.#pool.close({ force: true });
  }
}
