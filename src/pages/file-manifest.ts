/**
 * Manifests of memory files: of a snapshot, or of a guest that runs here. Read with `pread` only: a mapping would create
 * pages where the guest's file has holes.
 *
 * Of a guest that runs, each tag is that of its page at the moment at which it was read: a description, for people or for
 * warming a cache. A migration makes its own (src/migration/guest-scan.ts), which tracks what is written meanwhile.
 */
import { availableParallelism } from 'node:os';
import { statSync } from 'node:fs';
import { PagetideError } from '../errors.ts';
import { MemoryFiles } from '../transport/memory-file.ts';
import type { OfferedFile } from '../transport/server-messages.ts';
import { Manifest, MOST_FRAMES } from './manifest.ts';
import { TagPool } from './tag-pool.ts';
import { TAG_BYTES, TAG_PAGE, type DomainKey } from './tags.ts';

/** Frames between two words of progress: 64 MiB. */
const SLICE = 16_384;
const MOST_THREADS = 16;

/** A memory file as the one file of a guest. @throws PagetideError `PT_MEMORY_FILE` where it is none, or no whole pages */
export function memoryFileOf(path: string): OfferedFile {
  let info;
  try {
    info = statSync(path);
  } catch (cause) {
    throw new PagetideError('PT_MEMORY_FILE', `cannot read ${path}`, { cause });
  }
  if (!info.isFile()) throw new PagetideError('PT_MEMORY_FILE', `${path} is no regular file`);
  const { size } = info;
  if (size === 0 || size % TAG_PAGE !== 0 || size / TAG_PAGE > MOST_FRAMES)
    throw new PagetideError('PT_MEMORY_FILE', `${path} has ${size} bytes: no whole pages of ${TAG_PAGE} bytes`, {
      hint: 'A memory file is the guest’s memory and nothing else, e.g. what a snapshot left or a file on tmpfs.',
    });
  return { path, size, offset: 0 };
}

/** Opens memory files; `release()` closes them. @throws PagetideError `PT_MEMORY_FILE`, `PT_BAD_ARGUMENT` */
export function openMemory(files: readonly OfferedFile[]): MemoryFiles {
  const bytes = files.reduce((sum, { size }) => sum + size, 0);
  return MemoryFiles.open(files, bytes / TAG_PAGE, TAG_PAGE);
}

export interface ScanOptions {
  /** Open files, which stay open until this has settled. */
  memory: MemoryFiles;
  /** Stays open likewise. */
  key: DomainKey;
  signal?: AbortSignal | undefined;
  /** Whose threads tag; by default those of a pool of its own, one a CPU. */
  pool?: TagPool | undefined;
  /** Frames that are tagged so far. */
  onProgress?: ((frames: number) => void) | undefined;
}

/**
 * Tags every frame.
 * @throws PagetideError `PT_CANCELLED`; `PT_MEMORY_FILE` where a file shrinks meanwhile
 */
export async function scanMemory({ memory, key, signal, pool: given, onProgress }: ScanOptions): Promise<Manifest> {
  const { segments } = memory;
  const manifest = new Manifest(segments.at(-1)!.end / TAG_PAGE);
  const pool = given ?? new TagPool(Math.min(MOST_THREADS, availableParallelism()));
  try {
    for (const { fd, begin, end } of segments) {
      const frames = (end - begin) / TAG_PAGE;
      const tags = manifest.tags.subarray((begin / TAG_PAGE) * TAG_BYTES, (end / TAG_PAGE) * TAG_BYTES);
      for (let first = 0; first < frames; first += SLICE) {
        const count = Math.min(SLICE, frames - first);
        await pool.tag({ key, fd, first, count, tags, ...(signal === undefined ? {} : { signal }) });
        onProgress?.(begin / TAG_PAGE + first + count);
      }
    }
  } catch (error) {
    if (!(error instanceof PagetideError) || error.code !== 'PT_SYSCALL') throw error;
    throw new PagetideError('PT_MEMORY_FILE', 'a memory file could not be read to its end: it has shrunk', {
      cause: error,
    });
  } finally {
    if (given === undefined) await pool.close();
  }
  manifest.touch(0, manifest.frames);
  return manifest;
}
