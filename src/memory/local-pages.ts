/** Page sources on this host: content that a fault worker installs on the spot. */
import { closeSync, fstatSync, openSync } from 'node:fs';
import { PagetideError } from '../errors.ts';
import type { FaultSession, Outcome } from './native.ts';

/** A source whose pages are installed by one native call; nothing is allocated. */
export interface LocalPages {
  /** Installs content into `count` consecutive frames. Frames that need none are skipped. */
  install(session: FaultSession, frame: number, count: number, outcome: Int32Array): Outcome;
  close(): void;
}

/** What travels to a worker to open the source there. */
export type LocalPagesSpec =
  | { kind: 'file'; path: string }
  /** `slots`: a Uint32Array over shared memory, a slot a frame. */
  | { kind: 'arena'; arena: number; slots: Uint32Array };

/**
 * A memory file of someone else: frame n lies at n × page size. It is read with `pread` into a buffer and never mapped:
 * a mapping of a file that is truncated would kill the process or read as zeros; a short read is refused.
 */
class FilePages implements LocalPages {
  private readonly fd: number;

  constructor(path: string) {
    try {
      this.fd = openSync(path, 'r');
    } catch (cause) {
      throw new PagetideError('PT_MEMORY_FILE', `cannot read ${path}`, { cause });
    }
  }

  install(session: FaultSession, frame: number, count: number, outcome: Int32Array): Outcome {
    return session.installFromFile(frame, count, this.fd, frame * session.pageSize, outcome);
  }

  close(): void {
    closeSync(this.fd);
  }
}

/** Slots of a mapped arena of our own, whose space is allocated: it can be copied from without reading it first. */
class ArenaPages implements LocalPages {
  private readonly arena: number;
  private readonly slots: Uint32Array;

  constructor(arena: number, slots: Uint32Array) {
    this.arena = arena;
    this.slots = slots;
  }

  install(session: FaultSession, frame: number, count: number, outcome: Int32Array): Outcome {
    return session.installFromArena(frame, count, this.arena, this.slots, frame, outcome);
  }

  close(): void {
    // the arena belongs to whoever made it
  }
}

/** Opens it in this thread. @throws PagetideError `PT_MEMORY_FILE` */
export function openLocalPages(spec: LocalPagesSpec): LocalPages {
  return spec.kind === 'file' ? new FilePages(spec.path) : new ArenaPages(spec.arena, spec.slots);
}

/** Refuses a memory file that cannot hold `bytes`. @throws PagetideError `PT_MEMORY_FILE` */
export function checkMemoryFile(path: string, bytes: number): void {
  let size: number;
  try {
    const fd = openSync(path, 'r');
    try {
      const info = fstatSync(fd);
      if (!info.isFile()) throw new PagetideError('PT_MEMORY_FILE', `${path} is no regular file`);
      size = info.size;
    } finally {
      closeSync(fd);
    }
  } catch (cause) {
    if (cause instanceof PagetideError) throw cause;
    throw new PagetideError('PT_MEMORY_FILE', `cannot read ${path}`, { cause });
  }
  if (size < bytes) {
    throw new PagetideError('PT_MEMORY_FILE', `${path} has ${size} bytes, the guest's memory ${bytes}`);
  }
}
