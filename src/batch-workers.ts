/** Pools of threads for short batches, all of the same kind. */
import { Piscina } from 'piscina';
import { WORKER_LIMITS } from './memory/release-memory.ts';

/**
 * A piscina of fixed size.
 * @param name of the entry point in workers/, without `.js`
 * @param threads kept for the pool's whole life
 * @param queue tasks that may wait beyond those that run; more are rejected
 */
export function batchWorkers<Task, Result>(name: string, threads: number, queue: number): Piscina<Task, Result> {
  return new Piscina<Task, Result>({
    filename: new URL(`../workers/${name}.js`, import.meta.url).href,
    minThreads: threads,
    maxThreads: threads,
    maxQueue: queue,
    // idle workers must keep their event loops: piscina's default parks them in Atomics.wait
    atomics: 'disabled',
    resourceLimits: WORKER_LIMITS,
    closeTimeout: 5_000,
  });
}
