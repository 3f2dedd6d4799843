/** The batch workers of the page server: a piscina of fixed size with a finite queue. */
import type { Piscina } from 'piscina';
import { batchWorkers } from '../batch-workers.ts';
import { PagetideError, asPagetideError } from '../errors.ts';
import type { BatchResult, BatchTask } from './batch-task.ts';

/** Tasks that may wait for each thread: enough to keep it busy, few enough that a withdrawn guest's end soon. */
const QUEUE_PER_THREAD = 2;

/**
 * Runs batches. What finds no room doesn't queue here: it stays with its connection, which is told when there is room
 * again, so that no connection can fill the pool for the others.
 */
export class BatchPool {
  readonly #pool: Piscina<BatchTask, BatchResult>;
  readonly #room: number;
  #running = 0;
  /** Of those that have ended, how many so recently that whoever had them made may not have asked for the next yet. */
  #ending = 0;
  #waiting: (() => void)[] = [];
  /** Of background streams. */
  #waitingLast: (() => void)[] = [];
  #closed = false;

  constructor(threads: number) {
    this.#room = threads * (1 + QUEUE_PER_THREAD);
    this.#pool = batchWorkers<BatchTask, BatchResult>('batch-worker', threads, threads * QUEUE_PER_THREAD);
  }

  /** Whether {@link run} would take a task now. */
  get hasRoom(): boolean {
    return this.#running < this.#room && !this.#closed;
  }

  /**
   * The same for a task of a background stream: only where nothing runs and nobody waits, so that none is behind it for longer than one takes.
   * Not yet in the turn of the event loop in which a batch ended either: several may end in one, and who waits for them goes on after that, one
   * after the other. Between them the pool only seems idle.
   */
  get isIdle(): boolean {
    return this.#running + this.#ending === 0 && this.#waiting.length === 0 && !this.#closed;
  }

  /** Calls back once, when the pool {@link isIdle}; one at a time. */
  whenIdle(callback: () => void): void {
    this.#waitingLast.push(callback);
  }

  /** Calls back once, when there is room; in the order in which they asked. */
  whenRoom(callback: () => void): void {
    this.#waiting.push(callback);
  }

  /** Makes a batch; only when {@link hasRoom}. Never rejects. */
  async run(task: BatchTask): Promise<BatchResult> {
    this.#running++;
    try {
      return await this.#pool.run(task);
    } catch (error) {
      // a worker that died, or the pool being closed
      return { error: asPagetideError(error, 'PT_INTERNAL', 'a batch worker failed').toJSON() };
    } finally {
      this.#running--;
      // all for whom there is room: one that has no more use for it must not keep the next from being told
      while (this.hasRoom && this.#waiting.length > 0) this.#waiting.shift()?.();
      this.#ending++;
      setImmediate(() => {
        this.#ending--;
        while (this.isIdle && this.#waitingLast.length > 0) this.#waitingLast.shift()?.();
      });
    }
  }

  /** Waits for what runs, refuses what comes, ends the threads. */
  async close(): Promise<void> {
    this.#closed = true;
    this.#waiting = [];
    this.#waitingLast = [];
    try {
      await this.#pool.close({ force: true });
    } catch (cause) {
      throw new PagetideError('PT_INTERNAL', 'the batch workers did not end', { cause });
    }
  }
}
