/**
 * A snapshot that a pager serves: its memory file, and with a cache the manifest that says what the file holds; or its manifest
 * alone, and the hosts that have the pages.
 *
 * The manifest is read where there is one, and made where there is none, before anybody can connect. Made means that the
 * file as it is now is the snapshot: one that changes while it is tagged is refused, as it would be of no single moment.
 */
import { fstatSync } from 'node:fs';
import { PagetideError } from '../errors.ts';
import { checkMemoryFile } from '../memory/local-pages.ts';
import { MOST_PEERS } from '../memory/peers.ts';
import type { PagesSpec } from '../memory/worker-messages.ts';
import { linkDuplicates } from '../pages/duplicates.ts';
import { memoryFileOf, openMemory, scanMemory } from '../pages/file-manifest.ts';
import { MARK_PREFIX } from '../pages/key-file.ts';
import { readManifest } from '../pages/manifest-file.ts';
import type { Manifest } from '../pages/manifest.ts';
import { isZeroTag } from '../pages/tag-runs.ts';
import { TAG_PAGE } from '../pages/tags.ts';
import { connectTags } from '../transport/tag-client.ts';
import type { PagerKey, SharedCache } from './shared-cache.ts';

export interface SnapshotOptions {
  /** Unix socket that its VMMs connect to. */
  listen: string;
  /** The memory file. Undefined: other hosts have its pages. */
  memory?: string | undefined;
  /** The memory file's manifest, made with the pager's key. */
  manifest?: string | undefined;
  /** Without a memory file: URLs of the agents that have its pages, 1 to {@link MOST_PEERS}. */
  from?: readonly string[] | undefined;
}

export interface Snapshot extends SnapshotOptions {
  /** Its memory, for people: a file, or whom it comes from. */
  name: string;
  /** How workers get its pages. */
  pages: PagesSpec;
  /** Frames that its VMs can have at most; undefined where only the file says that. */
  frames: number | undefined;
  /** [first, count, …] of frames of zeros that nobody is asked for; empty where the workers know by themselves. */
  zeroRuns: number[];
}

/** Milliseconds without a byte after which a host that owes an answer is given up for a moment. */
const WAIT_MS = 2_000;
/** Longest pause before such a host is asked again, milliseconds: there may be no other. */
const REST_MS = 1_000;

/**
 * Checks it, and makes ready what serving needs.
 * @throws PagetideError `PT_MEMORY_FILE`, `PT_MANIFEST_INVALID`, `PT_CANCELLED`; where none of the hosts gives pages, what the
 * last one said, as of {@link connectTags}
 */
export async function openSnapshot(
  options: SnapshotOptions,
  key: PagerKey,
  cache: SharedCache | undefined,
  signal?: AbortSignal,
): Promise<Snapshot> {
  const { memory, manifest: path } = options;
  if (memory === undefined) return openRemote(options, key, cache, signal);
  const named = { ...options, name: memory, zeroRuns: [] };
  if (cache === undefined) {
    checkMemoryFile(memory, 1);
    return { ...named, pages: { kind: 'file', path: memory }, frames: undefined };
  }
  const manifest = path === undefined ? await makeManifest(memory, key, signal) : loadManifest(memory, path, key);
  const pages: PagesSpec = {
    kind: 'cached-file',
    path: memory,
    tags: manifest.tags,
    key: key.key.id,
    cache: cache.id,
    domain: key.domain,
  };
  return { ...named, pages, frames: manifest.frames };
}

/** One whose pages other hosts have: at least one of them must be there, and prove that it is of the domain. */
async function openRemote(
  options: SnapshotOptions,
  { key, mark, domain }: PagerKey,
  cache: SharedCache | undefined,
  signal: AbortSignal | undefined,
): Promise<Snapshot> {
  const { manifest: path, from: urls = [] } = options;
  if (path === undefined || urls.length === 0 || urls.length > MOST_PEERS)
    throw new PagetideError(
      'PT_BAD_ARGUMENT',
      `a snapshot of other hosts needs a manifest, and 1 to ${MOST_PEERS} hosts`,
    );
  const manifest = readManifest(path, mark);
  const peers = { domain: mark.slice(MARK_PREFIX.length), urls, waitMs: WAIT_MS, restMs: REST_MS };
  await Promise.any(
    urls.map(async (url) => {
      const stream = await connectTags({
        url,
        domain: peers.domain,
        key: key.id,
        ...(signal === undefined ? {} : { signal }),
      });
      stream.close();
    }),
  ).catch((failed: unknown) => {
    throw (failed as AggregateError).errors.at(-1);
  });
  const { next, first } = linkDuplicates(manifest.tags);
  const named = { tags: manifest.tags, next, first, key: key.id, cache: cache?.id ?? 0, resident: 0, domain };
  return {
    ...options,
    name: `${path} from ${urls.join(', ')}`,
    pages: { kind: 'by-tag', named, peers },
    frames: manifest.frames,
    zeroRuns: zeroRunsOf(manifest),
  };
}

function zeroRunsOf({ tags, frames }: Manifest): number[] {
  const runs: number[] = [];
  for (let frame = 0; frame < frames; frame++) {
    if (!isZeroTag(tags, frame)) continue;
    if (runs.length > 0 && runs.at(-2)! + runs.at(-1)! === frame) runs[runs.length - 1]!++;
    else runs.push(frame, 1);
  }
  return runs;
}

/** Another file than the manifest's is told by its length at once, by its pages when they are wanted. */
function loadManifest(memory: string, path: string, { mark }: PagerKey): Manifest {
  const { size } = memoryFileOf(memory);
  const manifest = readManifest(path, mark);
  if (manifest.frames * TAG_PAGE === size) return manifest;
  const named = manifest.frames * TAG_PAGE;
  throw new PagetideError('PT_MANIFEST_INVALID', `${path} is of a memory of ${named} bytes, ${memory} has ${size}`);
}

async function makeManifest(path: string, { key }: PagerKey, signal: AbortSignal | undefined): Promise<Manifest> {
  const memory = openMemory([memoryFileOf(path)]);
  try {
    const before = changeOf(memory.segments[0]!.fd);
    const manifest = await scanMemory({ memory, key, signal });
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
