/**
 * A snapshot that a pager serves: its memory file, and with a cache the manifest that says what the file holds.
 *
 * The manifest is read where there is one, and made where there is none, before anybody can connect. Made means that the
 * file as it is now is the snapshot: one that changes while it is tagged is refused, as it would be of no single moment.
 */
import { fstatSync } from 'node:fs';
import { PagetideError } from '../errors.ts';
import { checkMemoryFile } from '../memory/local-pages.ts';
import type { PagesSpec } from '../memory/worker-messages.ts';
import { memoryFileOf, openMemory, scanMemory } from '../pages/file-manifest.ts';
import { readManifest } from '../pages/manifest-file.ts';
import type { Manifest } from '../pages/manifest.ts';
import { TAG_PAGE } from '../pages/tags.ts';
import type { SharedCache } from './shared-cache.ts';

export interface SnapshotOptions {
  /** Unix socket that its VMMs connect to. */
  listen: string;
  memory: string;
  /** The memory file's manifest, made with the cache's key. */
  manifest?: string | undefined;
}

export interface Snapshot extends SnapshotOptions {
  /** How workers get its pages. */
  pages: PagesSpec;
  /** Frames that its VMs can have at most; undefined where only the file says that. */
  frames: number | undefined;
}

/**
 * Checks it, and makes ready what serving needs.
 * @throws PagetideError `PT_MEMORY_FILE`, `PT_MANIFEST_INVALID`, `PT_CANCELLED`
 */
export async function openSnapshot(
  options: SnapshotOptions,
  cache: SharedCache | undefined,
  signal?: AbortSignal,
): Promise<Snapshot> {
  const { memory, manifest: path } = options;
  if (cache === undefined) {
    checkMemoryFile(memory, 1);
    return { ...options, pages: { kind: 'file', path: memory }, frames: undefined };
  }
  const manifest = path === undefined ? await makeManifest(memory, cache, signal) : loadManifest(memory, path, cache);
  const { id, key, domain } = cache;
  return {
    ...options,
    pages: { kind: 'cached-file', path: memory, tags: manifest.tags, key: key.id, cache: id, domain },
    frames: manifest.frames,
  };
}

/** Another file than the manifest's is told by its length at once, by its pages when they are wanted. */
function loadManifest(memory: string, path: string, cache: SharedCache): Manifest {
  const { size } = memoryFileOf(memory);
  const manifest = readManifest(path, cache.mark);
  if (manifest.frames * TAG_PAGE === size) return manifest;
  const named = manifest.frames * TAG_PAGE;
  throw new PagetideError('PT_MANIFEST_INVALID', `${path} is of a memory of ${named} bytes, ${memory} has ${size}`);
}

async function makeManifest(path: string, cache: SharedCache, signal: AbortSignal | undefined): Promise<Manifest> {
  const memory = openMemory([memoryFileOf(path)]);
  try {
    const before = changeOf(memory.segments[0]!.fd);
    const manifest = await scanMemory({ memory, key: cache.key, signal });
    if (changeOf(memory.segments[0]!.fd) !== before)
      throw new PagetideError('PT_MEMORY_FILE', `${path} was written while its pages were tagged`);
    return manifest;
  } finally {
    memory.release();
  }
}

/** Another one after each write and each change of length. */
function changeOf(fd: number): string {
  const { size, mtimeNs } = fstatSync(fd, { bigint: true });
  return `${size}/${mtimeNs}`;
}
