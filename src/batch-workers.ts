/** What all pools of threads have in common, and those for short batches, all of the same kind. */
import { Piscina } from 'piscina';
import { WORKER_LIMITS } from './memory/release-memory.ts';

/** Of every piscina. */
export const POOL_OPTIONS = {
  // idle workers must keep their event loops: piscina's default parks them in Atomics.wait
  atomics: 'disabled',
  resourceLimits: WORKER_LIMITS,
  closeTimeout: 5_000,
  // Piscina tries require() on the entry point first. Where Node loads ES modules that way, a thread that is ended in the
  // midst of it takes the whole process along (an assertion of Node's); import(), to which it falls back, ends well.
  execArgv: ['--no-experimental-require-module'],
} as const satisfies Partial<ConstructorParameters<typeof Piscina>[0]>;

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
    ...POOL_OPTIONS,
  });
}
