/**
 * The long-running tasks: one fault worker and one fill worker for each guest that is being served.
 *
 * A fault task must never wait in a queue behind another guest's. So each place has a pool of one thread for faults and one for the fill, which
 * are its own as long as it is taken; a guest is only admitted where a place is free. Threads are started for the first guest that needs
 * them, before anything of it is served, and kept for the next: an agent that no guest comes to has none.
 */
import { Piscina } from 'piscina';
import { PagetideError } from '../errors.ts';
import { POOL_OPTIONS } from '../batch-workers.ts';
import { settled } from './settled.ts';
import type { ServiceEnd, ServiceTask, Settled } from './worker-messages.ts';

type Pool = Piscina<ServiceTask, Settled>;

function thread(name: string): Pool {
  return new Piscina<ServiceTask, Settled>({
    filename: new URL(`../../workers/${name}.js`, import.meta.url).href,
    minThreads: 1,
    maxThreads: 1,
    maxQueue: 1,
    idleTimeout: Number.POSITIVE_INFINITY,
    ...POOL_OPTIONS,
  });
}

/** The threads of one place. */
interface Threads {
  fault: Pool;
  fill: Pool;
}

/** A place for one guest, taken before anything else is done for it. */
export interface Place {
  runFault(task: ServiceTask): Promise<ServiceEnd>;
  runFill(task: ServiceTask): Promise<ServiceEnd>;
  /** Gives the place back. Its tasks must have ended. Idempotent. */
  free(): void;
}

export class WorkerPools {
  readonly size: number;
  /** Threads that nobody uses now. */
  readonly #idle: Threads[] = [];
  readonly #all: Threads[] = [];
  #taken = 0;

  /** @param size guests that can be served at once, 1 to 64 */
  constructor(size: number) {
    this.size = size;
  }

  get busy(): number {
    return this.#taken;
  }

  /** @throws PagetideError `PT_NO_WORKER` when every place is taken */
  take(): Place {
    if (this.#taken >= this.size) {
      throw new PagetideError('PT_NO_WORKER', `all ${this.size} fault workers are serving guests`);
    }
    this.#taken++;
    const threads = this.#idle.pop() ?? this.#start();
    let held = true;
    return {
      runFault: (task) => settled(threads.fault.run(task, { transferList: [task.port] })),
      runFill: (task) => settled(threads.fill.run(task, { transferList: [task.port] })),
      free: () => {
        if (!held) return;
        held = false;
        this.#taken--;
        this.#idle.push(threads);
      },
    };
  }

  /** Ends the threads. Every session must have been stopped: a thread that waits for faults hears of nothing else. */
  async close(): Promise<void> {
    await Promise.all(this.#all.flatMap(({ fault, fill }) => [fault.destroy(), fill.destroy()]));
  }

  #start(): Threads {
    const threads = { fault: thread('fault-worker'), fill: thread('fill-worker') };
    this.#all.push(threads);
    return threads;
  }
}
