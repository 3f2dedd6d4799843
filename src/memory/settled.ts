/** Errors of a task on their way from a worker to the main thread: they keep their code. */
import { asPagetideError, errorFromJson } from '../errors.ts';
import { MemoryReleaser } from './release-memory.ts';
import type { ServiceEnd, ServiceTask, Settled } from './worker-messages.ts';

/** In the worker: `run`, whose errors become results, and whose memory is given back. */
export function settling(run: (task: ServiceTask) => Promise<ServiceEnd>): (task: ServiceTask) => Promise<Settled> {
  let running = 0;
  const memory = new MemoryReleaser(() => running === 0, false);
  return async (task) => {
    running++;
    try {
      return await run(task);
    } catch (error) {
      return { error: asPagetideError(error).toJSON() };
    } finally {
      running--;
      memory.ended();
    }
  };
}

/** In the main thread: the other way round. @throws PagetideError as thrown in the worker */
export async function settled(result: Promise<Settled>): Promise<ServiceEnd> {
  const end = await result;
  if ('error' in end) throw errorFromJson(end.error);
  return end;
}
