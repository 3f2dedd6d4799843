/**
 * Guest memory files, read by `pread` only: reading a hole through a mapping would create a zero page there, and a
 * mapping of a file that shrinks kills its reader. A short read is an error, never zeros.
 */
import { closeSync, constants, fstatSync, openSync, readSync } from 'node:fs';
import { PagetideError } from '../errors.ts';
import { isPageSize, WireLimit } from './wire.ts';
import type { OfferedFile } from './server-messages.ts';

/** A stretch of guest memory space and the descriptor that holds it. Plain, so that it can go to another thread. */
export interface Segment {
  fd: number;
  /** Bytes in guest memory space. */
  begin: number;
  end: number;
}

function fileError(message: string, cause?: unknown): PagetideError {
  return new PagetideError('PT_MEMORY_FILE', message, cause === undefined ? {} : { cause });
}

/** Reads exactly `length` bytes from `position`, or throws `PT_MEMORY_FILE`. */
function readExactly(fd: number, into: Uint8Array, offset: number, length: number, position: number): void {
  let done = 0;
  while (done < length) {
    let bytes: number;
    try {
      bytes = readSync(fd, into, offset + done, length - done, position + done);
    } catch (cause) {
      throw fileError(`cannot read guest memory at byte ${position + done} of its file`, cause);
    }
    if (bytes === 0) throw fileError(`a guest memory file ends before byte ${position + length}: it has shrunk`);
    done += bytes;
  }
}

/**
 * Reads `length` bytes of guest memory space from `from`, across files. The range must lie inside.
 * @throws PagetideError `PT_MEMORY_FILE`
 */
export function readMemory(
  segments: readonly Segment[],
  from: number,
  length: number,
  into: Uint8Array,
  offset: number,
): void {
  let at = from;
  const end = from + length;
  for (const segment of segments) {
    if (at >= segment.end) continue;
    const part = Math.min(end, segment.end) - at;
    readExactly(segment.fd, into, offset + (at - from), part, at - segment.begin);
    at += part;
    if (at === end) return;
  }
  throw fileError(`guest memory ends before byte ${end}`);
}

const ZEROS = Buffer.alloc(2 << 20);

/** Whether `length` bytes (2 MiB at most) are all zero. `memcmp` stops at the first difference: 0.1 µs for most pages. */
export function isZero(data: Buffer, offset: number, length: number): boolean {
  return data.compare(ZEROS, 0, length, offset, offset + length) === 0;
}

/**
 * The open files of one offer. They are closed when the offer is withdrawn *and* no batch worker reads them any more: a
 * descriptor number that was closed too early could name another guest's file by then.
 */
export class MemoryFiles {
  readonly segments: readonly Segment[];
  #users = 1;

  private constructor(segments: Segment[]) {
    this.segments = segments;
  }

  /**
   * @throws PagetideError `PT_BAD_ARGUMENT` (files that don't fit each other), `PT_MEMORY_FILE` (a file that isn't there,
   * isn't a regular file, or is too short)
   */
  static open(files: readonly OfferedFile[], frames: number, pageSize: number): MemoryFiles {
    if (!isPageSize(pageSize)) throw new PagetideError('PT_BAD_ARGUMENT', `${pageSize} is no page size`);
    let end = 0;
    for (const file of files) {
      if (file.offset !== end || !(file.size > 0) || file.size % pageSize !== 0) {
        throw new PagetideError(
          'PT_BAD_ARGUMENT',
          'memory files must be whole pages and follow each other without a gap',
        );
      }
      end += file.size;
    }
    if (end !== frames * pageSize || end === 0 || frames > WireLimit.frames) {
      throw new PagetideError('PT_BAD_ARGUMENT', `memory files of ${end} bytes do not make ${frames} frames`);
    }
    const segments: Segment[] = [];
    try {
      for (const file of files) {
        segments.push({ fd: openRegular(file), begin: file.offset, end: file.offset + file.size });
      }
    } catch (error) {
      for (const { fd } of segments) closeSync(fd);
      throw error;
    }
    return new MemoryFiles(segments);
  }

  /** Keeps the files open until the matching {@link release}. */
  retain(): void {
    this.#users++;
  }

  release(): void {
    if (--this.#users === 0) for (const { fd } of this.segments) closeSync(fd);
  }
}

function openRegular(file: OfferedFile): number {
  let fd: number;
  try {
    // O_NONBLOCK: opening a FIFO by mistake must not hang the thread that answers faults
    fd = openSync(file.path, constants.O_RDONLY | constants.O_NONBLOCK);
  } catch (cause) {
    throw fileError(`cannot open guest memory file ${file.path}`, cause);
  }
  const stat = fstatSync(fd);
  if (stat.isFile() && stat.size >= file.size) return fd;
  closeSync(fd);
  throw fileError(
    stat.isFile()
      ? `${file.path} is ${stat.size} bytes long and should be ${file.size}`
      : `${file.path} is no regular file`,
  );
}
