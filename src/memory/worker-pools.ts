/**
 * The two pools of long-running tasks: one fault worker and one fill worker for each guest that is being served.
 *
 * A fault task must never wait in a queue behind another guest's: a guest is only admitted where a worker of each kind
 * is free, and the pools hold as many threads as there may be guests. Threads are kept for the next guest.
 */
import { Piscina } from 'piscina';
import { PagetideError } from '../errors.ts';
import { POOL_OPTIONS } from '../batch-workers.ts';
import { settled } from './settled.ts';
import type { ServiceEnd, ServiceTask, Settled } from './worker-messages.ts';

function pool(name: string, threads: number): Piscina<ServiceTask, Settled> {
  return new Piscina<ServiceTask, Settled>({
    filename: new URL(`../../workers/${name}.js`, import.meta.url).href,
    minThreads: threads,
    maxThreads: threads,
    // tasks beyond the threads are refused before they get here
    maxQueue: threads,
    idleTimeout: Number.POSITIVE_INFINITY,
    ...POOL_OPTIONS,
  });
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
  private readonly fault: Piscina<ServiceTask, Settled>;
  private readonly fill: Piscina<ServiceTask, Settled>;
  private taken = 0;

  /** @param size guests that can be served at once, 1 to 64 */
  constructor(size: number) {
    this.size = size;
    this.fault = pool('fault-worker', size);
    this.fill = pool('fill-worker', size);
  }

  get busy(): number {
    return this.taken;
  }

  /** @throws PagetideError `PT_NO_WORKER` when every place is taken */
  take(): Place {
    if (this.taken >= this.size) {
      throw new PagetideError('PT_NO_WORKER', `all ${this.size} fault workers are serving guests`);
    }
    this.taken++;
    let held = true;
    return {
      runFault: (task) => settled(this.fault.run(task, { transferList: [task.port] })),
      runFill: (task) => settled(this.fill.run(task, { transferList: [task.port] })),
      free: () => {
        if (held) this.taken--;
        held = false;
      },
    };
  }

  /** Ends the threads. Every session must have been stopped: a thread that waits for faults hears of nothing else. */
  async close(): Promise<void> {
    await Promise.all([this.fault.destroy(), this.fill.destroy()]);
  }
}
