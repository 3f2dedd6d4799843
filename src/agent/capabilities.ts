/** What this host can do for migrations, from the same probe as the doctor's. */
import { asPagetideError } from '../errors.ts';
import { native, type UserfaultProbe } from '../memory/native.ts';
import { requireTracking } from '../memory/write-tracker.ts';

export interface Capability {
  ok: boolean;
  /** Why not. */
  why?: string;
}

/** Whether guests may arrive here before all of their pages: page faults of shared memory, also in system calls, can be served. */
export function userfaultfd(probe: () => UserfaultProbe = () => native().probe()): Capability {
  return capability(() => {
    const { ways, shmem } = probe();
    if (!ways.some(({ way, ok }) => ok && way !== 'user-mode-only'))
      return 'this agent may not create one that handles faults inside system calls';
    return shmem ? undefined : 'the kernel has none for memory on tmpfs';
  });
}

/** Whether writes of guests that run here can be tracked. */
export function writeTracking(probe: () => UserfaultProbe = () => native().probe()): Capability {
  return capability(() => {
    requireTracking(probe());
    return undefined;
  });
}

function capability(lack: () => string | undefined): Capability {
  let why: string | undefined;
  try {
    why = lack();
  } catch (error) {
    why = asPagetideError(error).message;
  }
  return why === undefined ? { ok: true } : { ok: false, why };
}
