/**
 * What the pager has to know of a VMM that handed its userfaultfd over: of which kind its memory is, and when it is gone.
 */
import { readFileSync } from 'node:fs';
import { PagetideError } from '../errors.ts';
import { native, type FdWatcher, type MemoryRegion } from '../memory/native.ts';

export type MemoryKind = 'private' | 'shared';

/**
 * The kind of memory that lies under `regions`, from /proc/PID/maps: it decides what a remove event means. In private
 * memory the content is gone, in shared memory it stays in the file.
 * @returns undefined where this process may not look (another user's VMM, another PID namespace)
 * @throws PagetideError `PT_HANDOVER_INVALID` where there is no memory, or of both kinds; `PT_VMM_GONE`
 */
export function memoryKind(pid: number, regions: readonly MemoryRegion[]): MemoryKind | undefined {
  if (pid <= 0) return undefined;
  let maps: string;
  try {
    maps = readFileSync(`/proc/${pid}/maps`, 'latin1');
  } catch (cause) {
    const { code } = cause as NodeJS.ErrnoException;
    if (code === 'EACCES' || code === 'EPERM') return undefined;
    throw new PagetideError('PT_VMM_GONE', `the VMM, process ${pid}, is gone already`, { cause });
  }
  return kindFromMaps(maps, regions);
}

/** {@link memoryKind}, from the text of a maps file. */
export function kindFromMaps(maps: string, regions: readonly MemoryRegion[]): MemoryKind {
  const areas = maps
    .split('\n')
    .map((line) => /^([0-9a-f]+)-([0-9a-f]+) ...([ps]) /.exec(line))
    .filter((match) => match !== null)
    .map(([, start, end, kind]) => ({ start: parseInt(start!, 16), end: parseInt(end!, 16), kind: kind! }))
    .sort((a, b) => a.start - b.start);
  const kinds = new Set<string>();
  for (const { hostAddress, size } of regions) {
    let at = hostAddress;
    const end = hostAddress + size;
    for (const area of areas) {
      if (at >= end || area.start > at) break;
      if (area.end <= at) continue;
      kinds.add(area.kind);
      at = area.end;
    }
    if (at < end) {
      throw new PagetideError(
        'PT_HANDOVER_INVALID',
        `hand-over refused: the VMM has no memory at address 0x${at.toString(16)}`,
      );
    }
  }
  if (kinds.size !== 1) {
    throw new PagetideError('PT_HANDOVER_INVALID', 'hand-over refused: some regions are shared memory, some private');
  }
  return kinds.has('s') ? 'shared' : 'private';
}

/**
 * Whether the VMM has a userfaultfd open itself. One that has none depends on ours: with the last copy that is closed,
 * its missing pages would silently become zero pages.
 */
export function keepsUserfault(pid: number): boolean {
  try {
    return pid > 0 && native().findUserfaults(pid).length > 0;
  } catch {
    return false; // gone, or not ours to look at
  }
}

export interface VmmEvents {
  /** The VMM's process is gone. Comes once. */
  onGone: () => void;
  /** It has closed the connection, but lives on: it is served on. */
  onClosed?: () => void;
}

/** How long after the connection's end a process that exits may take until it is gone, milliseconds. */
const EXIT_MS = 1000;

/**
 * Tells when a VMM is gone: by its process where that can be watched, else by the end of its connection, on which it
 * says nothing. Whatever it says is read and thrown away, so that the end can be seen behind it.
 *
 * Not by the connection alone: a VMM that closed it too early would wait for its pages for ever.
 */
export class VmmWatch {
  readonly #pid: number;
  readonly #fd: number;
  readonly #events: VmmEvents;
  readonly #scrap = Buffer.allocUnsafe(4096);
  #pidfd = -1;
  #process: FdWatcher | undefined;
  #connection: FdWatcher | undefined;
  #late: NodeJS.Timeout | undefined;
  #closed = false;

  /**
   * Watches until {@link close}, which does not close the connection.
   * @param pid 0 where it is unknown
   * @param connection -1 where there is none: then only the process is watched
   */
  constructor(pid: number, connection: number, events: VmmEvents) {
    this.#pid = pid;
    this.#fd = connection;
    this.#events = events;
    try {
      if (pid > 0) {
        this.#pidfd = native().pidfdOpen(pid);
        this.#process = native().watch(this.#pidfd, () => this.#gone());
      }
    } catch {
      // gone already, which the connection tells too
      this.#closePidfd();
    }
    if (connection >= 0) this.#connection = native().watch(connection, () => this.#heard());
  }

  /** Whether the process is there, and watched. */
  get seesProcess(): boolean {
    return this.#pidfd >= 0;
  }

  /** Idempotent. */
  close(): void {
    this.#closed = true;
    clearTimeout(this.#late);
    this.#connection?.close();
    this.#closePidfd();
  }

  #closePidfd(): void {
    this.#process?.close();
    if (this.#pidfd >= 0) native().close(this.#pidfd);
    this.#process = undefined;
    this.#pidfd = -1;
  }

  #gone(): void {
    if (this.#closed) return;
    this.close();
    this.#events.onGone();
  }

  #heard(): void {
    if (this.#closed) return;
    try {
      const { bytes, fds } = native().receive(this.#fd, this.#scrap);
      for (const fd of fds) native().close(fd);
      if (bytes !== 0) return;
    } catch {
      // reset: as good as its end
    }
    this.#connection?.close();
    this.#connection = undefined;
    // A process with the number of ours but no userfaultfd is another one, or about to be gone.
    if (this.#pidfd < 0 || !keepsUserfault(this.#pid)) this.#gone();
    else this.#late = setTimeout(() => this.#events.onClosed?.(), EXIT_MS).unref();
  }
}
