/** Page sources on this host: content that a fault worker installs on the spot. */
import { closeSync, fstatSync, openSync } from 'node:fs';
import { PagetideError } from '../errors.ts';
import { openCachedFile, type CachedFileSpec } from './cached-file.ts';
import type { FaultSession, Outcome } from './native.ts';
import type { Serving } from './serving.ts';

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
  | { kind: 'arena'; arena: number; slots: Uint32Array }
  | CachedFileSpec;

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

/**
 * Opens it in this thread.
 * @param pageSize of the guest
 * @param serving counts what came from the cache, as `which` of the two workers
 * @throws PagetideError `PT_MEMORY_FILE`
 */
export function openLocalPages(
  spec: LocalPagesSpec,
  pageSize: number,
  serving: Serving,
  which: 'demand' | 'fill',
): LocalPages {
  switch (spec.kind) {
    case 'file':
      return new FilePages(spec.path);
    case 'arena':
      return new ArenaPages(spec.arena, spec.slots);
    case 'cached-file':
      return openCachedFile(spec, pageSize, serving, which);
  }
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

/** What {@link Outcome.Wrong} is told as. */
export function wrongPage(frame: number): PagetideError {
  return new PagetideError(
    'PT_PAGE_MISMATCH',
    `frame ${frame} of the memory file is not the page that its manifest names: the file was changed, and the guest waits`,
    { hint: 'Put the memory file back as it was when its manifest was made: the guest then goes on.' },
  );
}
