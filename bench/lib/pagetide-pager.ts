/**
 * Pagetide's own parts as a pager for benches: the hand-over listener, a session, the fault and fill workers of
 * production, over an arena of slots, a memory file, pages by tag, or a page server elsewhere. A program of its own, so that it has
 * the process topology of the reference handlers.
 *
 * By tag, the pages of the memory file are put into a shared-page cache, or listed in a resident index as if a guest of this host had
 * them.
 *
 *   node pagetide-pager.js '{"socket":…,"guests":N,"spinUs":N,"source":{…}}'
 *
 * stdout: {"event":"ready"} when the socket listens, {"event":"attached"} for each guest, {"event":"filled"} after
 * `fill` on stdin. `rss` on stdin gives {"event":"rss","bytes":…}. Ends with its stdin.
 */
import { openSync, readFileSync, readSync, statSync } from 'node:fs';
import { createInterface } from 'node:readline';
import { GuestService } from '../../src/memory/guest-service.ts';
import { HandoverListener } from '../../src/memory/handover.ts';
import { native } from '../../src/memory/native.ts';
import type { PagesSpec } from '../../src/memory/worker-messages.ts';
import { WorkerPools } from '../../src/memory/worker-pools.ts';
import { CACHE_PAGE, Insertion, PageCache, TAG_BYTES } from '../../src/pages/cache.ts';
import { linkDuplicates } from '../../src/pages/duplicates.ts';
import { ResidentIndex } from '../../src/pages/resident.ts';
import { DOMAIN_KEY_BYTES, DomainKey, HASH_BYTES } from '../../src/pages/tags.ts';
import { forgoDirect } from '../../src/transport/direct-io.ts';
import { takeCertificates } from './certificates.ts';

export type PagerSource =
  | { kind: 'slots'; arena: string; table: string }
  | { kind: 'file'; path: string }
  /** `cache`: where to make one; without it, the resident index. */
  | { kind: 'by-tag'; memory: string; cache?: string }
  | { kind: 'peer'; url: string; migration: string; token: string; frames: number };

export interface PagerArguments {
  socket: string;
  guests: number;
  spinUs: number;
  source: PagerSource;
  /** Folder of a host's certificate, for a source that speaks TLS. */
  certificates?: string | undefined;
  /** Its sockets are read and written by Node alone. */
  indirect?: boolean | undefined;
}

const PAGE = 4096;

function say(event: Record<string, unknown>): void {
  process.stdout.write(`${JSON.stringify(event)}\n`);
}

/** Frames of the memory file that are read at once. */
const BATCH = 256;

function taggedPages({ memory, cache: path }: { memory: string; cache?: string }, frames: number): PagesSpec {
  const secret = new Uint8Array(DOMAIN_KEY_BYTES).fill(7);
  const key = new DomainKey(secret);
  const tags = new Uint8Array(new SharedArrayBuffer(frames * TAG_BYTES));
  const fd = openSync(memory, 'r');
  const pages = Buffer.allocUnsafeSlow(BATCH * PAGE);
  const hashes = new Uint8Array(frames * HASH_BYTES);
  for (let at = 0; at < frames; at += BATCH) {
    const count = Math.min(BATCH, frames - at);
    native().tagFile(key.id, fd, at * PAGE, count, tags, at, pages, hashes.subarray(at * HASH_BYTES));
  }
  let cache = 0;
  let resident = 0;
  if (path === undefined) {
    const index = ResidentIndex.open(frames);
    index.add({ domain: 0, key, fd, frames }).set(0, frames, tags, 0, hashes);
    resident = index.lookups(0);
  } else {
    const bytes = CACHE_PAGE * (1 + Math.ceil((frames * 32) / CACHE_PAGE) + frames);
    const pageCache = PageCache.open({ path, bytes });
    pageCache.setKey(0, secret);
    for (let at = 0; at < frames; at++) {
      readSync(fd, pages, 0, PAGE, at * PAGE);
      if (pageCache.insert(0, tags, at * TAG_BYTES, pages) === Insertion.Rejected)
        throw new Error(`page ${at} did not go into the cache`);
    }
    cache = pageCache.id;
  }
  const { next, first } = linkDuplicates(tags);
  const named = { tags, next, first, key: key.id, cache, resident, domain: 0 };
  return { kind: 'by-tag', named, peers: { domain: '', urls: [], waitMs: 0 } };
}

function pagesOf(source: PagerSource): PagesSpec {
  if (source.kind === 'file') return source;
  if (source.kind === 'by-tag') return taggedPages(source, statSync(source.memory).size / PAGE);
  if (source.kind === 'peer') return { ...source, pageSize: PAGE, patient: false };
  const table = readFileSync(source.table);
  const slots = new Uint32Array(new SharedArrayBuffer(table.length));
  new Uint8Array(slots.buffer).set(table);
  const count = slots.reduce((most, slot) => Math.max(most, slot + 1), 0);
  const arena = native().createArena(source.arena, PAGE, count);
  // Enters the arena into this process's page table, as that of a pager that has written its cache itself is.
  const view = native().arenaView(arena);
  let sum = 0;
  for (let at = 0; at < view.length; at += PAGE) sum += view[at]!;
  if (sum < 0) throw new Error('unreachable');
  return { kind: 'arena', arena, slots };
}

async function main(): Promise<void> {
  const options = JSON.parse(process.argv[2]!) as PagerArguments;
  takeCertificates(options.certificates);
  if (options.indirect === true) forgoDirect();
  const pages = pagesOf(options.source);
  const pools = new WorkerPools(options.guests);
  const listener = new HandoverListener(options.socket);
  const services: GuestService[] = [];
  createInterface({ input: process.stdin })
    .on('line', (line) => {
      if (line === 'rss') say({ event: 'rss', bytes: process.memoryUsage.rss() });
      if (line === 'fill') for (const service of services) service.fill();
    })
    .on('close', () => process.exit(0));
  say({ event: 'ready' });
  for (;;) {
    const { uffd, regions, pageSize } = await listener.next();
    const session = native().createSession({ uffd, regions, pageSize, shared: false });
    const fill = { batchFrames: 256, window: 4, bandwidth: 0 };
    const service = new GuestService({ session, place: pools.take(), pages, spinMicros: options.spinUs, fill });
    service.on('filled', () => say({ event: 'filled' }));
    service.on('failed', (error) => say({ event: 'error', message: error.message }));
    service.on('foreign', (frame) => say({ event: 'error', message: `foreign page in frame ${frame}` }));
    await service.ready();
    service.serve();
    services.push(service);
    say({ event: 'attached' });
  }
}

if (process.argv[1]?.endsWith('pagetide-pager.js') === true) {
  main().catch((error: unknown) => {
    say({ event: 'error', message: String(error) });
    process.exitCode = 1;
  });
}
