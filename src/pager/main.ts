/**
 * The pager: serves a snapshot's memory file to whatever VMM connects and hands its userfaultfd over (Firecracker's
 * way; see src/memory/handover.ts). No agent, no cluster. The socket appears when the pager is ready. Several snapshots
 * have a socket each, and share the workers and the cache (see src/memory/cached-file.ts).
 *
 *   hand-over ──► fits the file? place free? kind of memory? ──► serving ──► VMM gone ──► place free again
 *                        │ no
 *                        ╰──► refused: logged, and the VMM sees the end of its connection
 *
 * A VMM whose pager dies waits for ever, which is better than running on with zero pages: it keeps a copy of its
 * userfaultfd itself. A memory file that shrinks or vanishes stops the faults that need the missing part, and says so;
 * it is never padded, and the pager goes on serving everything else.
 */
import { asPagetideError, PagetideError } from '../errors.ts';
import { createLogger, type Logger } from '../agent/log.ts';
import { GuestService } from '../memory/guest-service.ts';
import { HandoverListener, type Handover } from '../memory/handover.ts';
import { checkMemoryFile } from '../memory/local-pages.ts';
import { FrameState, native, type FaultSession } from '../memory/native.ts';
import type { PagesSpec } from '../memory/worker-messages.ts';
import { WorkerPools, type Place } from '../memory/worker-pools.ts';
import { PagerKey, SharedCache, type SharedCacheOptions } from './shared-cache.ts';
import { openSnapshot, type Snapshot, type SnapshotOptions } from './snapshot.ts';
import { keepsUserfault, memoryKind, VmmWatch } from './vmm.ts';

export interface PagerOptions {
  /** At least one, each with a socket of its own. */
  snapshots: SnapshotOptions[];
  /** File of the secret that pages are named with; without it, a key of this run. */
  keyFile?: string | undefined;
  /** Pages are taken from it by their content, and put into it. */
  cache?: SharedCacheOptions | undefined;
  /** VMs served at once, all snapshots together, 1 to 64. */
  maxVms: number;
  /** Bring all pages in the background, not only those that fault. */
  fill: boolean;
  spinMicros?: number;
  logLevel?: string;
}

export interface RunningPager {
  /** VMs being served. */
  readonly serving: number;
  close(): Promise<void>;
}

const SPIN_MICROS = 20;
const BATCH_FRAMES = 256;

interface Served {
  service: GuestService;
  handover: Handover;
  watch: VmmWatch;
}

/** A refused VMM that lives and has no userfaultfd but ours. */
interface Held {
  uffd: number;
  watch: VmmWatch;
}

class Pager implements RunningPager {
  readonly #options: PagerOptions;
  readonly #pools: WorkerPools;
  readonly #key: PagerKey;
  readonly #cache: SharedCache | undefined;
  readonly #listeners: readonly HandoverListener[];
  readonly #served = new Set<Served>();
  readonly #ending = new Set<Promise<void>>();
  readonly #held = new Set<Held>();
  readonly #log: Logger;
  #closed: Promise<void> | undefined;

  /** Takes pools, key and cache over. @throws PagetideError `PT_SOCKET_IN_USE`, `PT_BAD_ARGUMENT`; then they are still the caller's */
  constructor(
    options: PagerOptions,
    pools: WorkerPools,
    key: PagerKey,
    cache: SharedCache | undefined,
    snapshots: Snapshot[],
  ) {
    this.#options = options;
    this.#log = createLogger({ level: options.logLevel ?? 'info', format: 'json', name: 'pager' });
    this.#pools = pools;
    this.#key = key;
    this.#cache = cache;
    this.#listeners = listen(snapshots);
    this.#listeners.forEach((listener, i) => void this.#accept(listener, snapshots[i]!));
  }

  get serving(): number {
    return this.#served.size;
  }

  close(): Promise<void> {
    return (this.#closed ??= this.#close());
  }

  async #close(): Promise<void> {
    for (const listener of this.#listeners) listener.close();
    for (const served of [...this.#served]) this.#end(served, 'the pager ends: the VM waits at its next missing page');
    await Promise.all(this.#ending);
    for (const held of [...this.#held]) this.#letGo(held);
    await this.#pools.close();
    this.#closeCache();
    this.#key.close();
  }

  #closeCache(): void {
    if (this.#cache === undefined) return;
    const { used, hits, misses, insertions, evictions, rejected, dropped, lost } = this.#cache.stats();
    this.#log.info({ used, hits, misses, insertions, evictions, rejected, dropped, lost }, 'the cache, so far');
    try {
      this.#cache.close();
    } catch (error) {
      const { code, message } = asPagetideError(error);
      this.#log.warn({ code }, message);
    }
  }

  async #accept(listener: HandoverListener, snapshot: Snapshot): Promise<void> {
    while (this.#closed === undefined) {
      let handover: Handover;
      try {
        handover = await listener.next();
      } catch (error) {
        const { code, message } = asPagetideError(error);
        if (code === 'PT_CANCELLED') return;
        this.#log.warn({ code }, message);
        continue;
      }
      try {
        this.#serve(handover, snapshot);
      } catch (error) {
        this.#refuse(handover, asPagetideError(error));
      }
    }
  }

  #serve(handover: Handover, { name, memory, pages, frames, zeroRuns }: Snapshot): void {
    const { regions, pageSize, pid } = handover;
    const { fill, spinMicros = SPIN_MICROS } = this.#options;
    const bytes = regions.reduce((end, region) => Math.max(end, region.offset + region.size), 0);
    // Now, not at the start: the file may have shrunk since.
    if (memory !== undefined) checkMemoryFile(memory, bytes);
    else if (pageSize !== 4096)
      throw new PagetideError('PT_BAD_ARGUMENT', `pages of other hosts have 4096 bytes, those of this VM ${pageSize}`);
    // frames with the same page are linked over the whole manifest
    const fits = frames === undefined || (memory === undefined ? bytes === frames * 4096 : bytes <= frames * 4096);
    if (!fits) {
      throw new PagetideError(
        'PT_MEMORY_FILE',
        memory === undefined
          ? `the VM has ${bytes} bytes of memory, the manifest names ${frames * 4096}`
          : `${memory} has grown: its manifest names ${frames * 4096} bytes`,
      );
    }
    const kind = memoryKind(pid, regions);
    const place = this.#pools.take();
    let session: FaultSession;
    try {
      // The VMM has registered its memory. Of which kind it is cannot always be seen; VMMs that hand over are private.
      session = native().createSession({ uffd: handover.uffd, regions, pageSize, shared: kind === 'shared' });
    } catch (error) {
      place.free();
      throw error;
    }
    // The session has the userfaultfd from here on.
    for (let i = 0; i < zeroRuns.length; i += 2) {
      const count = Math.min(zeroRuns[i + 1]!, session.frames - zeroRuns[i]!);
      if (count > 0) session.reset(zeroRuns[i]!, count, FrameState.Zero);
    }
    const service = this.#start(session, place, pages, spinMicros);
    const log = this.#log.child({ vmm: pid });
    const watch = new VmmWatch(pid, handover.connection, {
      onGone: () => this.#end(served, 'the VM is gone'),
      onClosed: () => log.warn('the VMM has closed its connection, but lives; it is served on'),
    });
    const served: Served = { service, handover, watch };
    this.#served.add(served);
    log.info({ snapshot: name, regions: regions.length, pageSize, memory: kind ?? 'private' }, 'serving a VM');
    if (this.#cache !== undefined && pageSize !== 4096) log.warn('the cache cannot serve a VM with huge pages');
    if (kind === undefined) log.warn("may not see the VMM's memory map; its memory is taken for private");
    if (!keepsUserfault(pid)) {
      log.warn(
        'the VMM keeps no userfaultfd of its own, or may not be looked at: it may read zeros if this pager dies',
      );
    }
    // a page that is not the snapshot's is no passing trouble: somebody has to put the file back
    service.on('note', (text, code) => log[code === 'PT_PAGE_MISMATCH' ? 'error' : 'warn']({ code }, text));
    service.on('leftOut', (url, { code, message }) =>
      log.error({ code, url }, `this host is not asked for pages any more: ${message}`),
    );
    service.on('foreign', (frame) =>
      log.fatal({ frame }, 'a page stands in the way that nobody here installed; it is not served'),
    );
    service.on('failed', (error) => log.error({ code: error.code }, error.message));
    service.on('filled', () => log.info('every page is there'));
    service.on('gone', () => this.#end(served, 'the VM is gone'));
    service.serve();
    if (fill) service.fill();
  }

  #start(session: FaultSession, place: Place, pages: PagesSpec, spinMicros: number): GuestService {
    return new GuestService({
      session,
      place,
      pages,
      spinMicros,
      fill: { batchFrames: Math.max(1, (BATCH_FRAMES * 4096) / session.pageSize), window: 1, bandwidth: 0 },
    });
  }

  /** The VMM can't be told more than the end of its connection; it must not run on with zero pages either. */
  #refuse(handover: Handover, error: PagetideError): void {
    const { code, message } = error;
    const { pid, uffd, connection } = handover;
    this.#log.error({ code, vmm: pid }, message);
    native().close(connection);
    const held: Held = { uffd, watch: new VmmWatch(pid, -1, { onGone: () => this.#letGo(held) }) };
    this.#held.add(held);
    const gone = pid > 0 && !held.watch.seesProcess;
    if (gone || keepsUserfault(pid)) this.#letGo(held);
  }

  #letGo(held: Held): void {
    if (!this.#held.delete(held)) return;
    held.watch.close();
    native().close(held.uffd);
  }

  #end(served: Served, why: string): void {
    if (!this.#served.delete(served)) return;
    served.watch.close();
    const ended = served.service.stop().then(() => {
      native().close(served.handover.connection);
      const { counts, faults, cached, fromPeers, mismatches, peerMismatches } = served.service.lastFigures ?? {};
      const installed = counts?.installed;
      const wrong = (mismatches ?? 0) + (peerMismatches ?? 0);
      this.#log.info({ vmm: served.handover.pid, faults, installed, cached, fromPeers, mismatches: wrong }, why);
      this.#ending.delete(ended);
    });
    this.#ending.add(ended);
  }
}

/** A socket a snapshot, all or none: who sees one is served. */
function listen(snapshots: readonly Snapshot[]): HandoverListener[] {
  const listeners: HandoverListener[] = [];
  try {
    for (const snapshot of snapshots) listeners.push(new HandoverListener(snapshot.listen));
    return listeners;
  } catch (error) {
    for (const listener of listeners) listener.close();
    throw error;
  }
}

function check({ snapshots, cache, keyFile, maxVms }: PagerOptions): void {
  const bad = (what: string): PagetideError => new PagetideError('PT_BAD_ARGUMENT', what);
  if (!Number.isInteger(maxVms) || maxVms < 1 || maxVms > 64) throw bad('a pager serves 1 to 64 VMs at once');
  if (snapshots.length === 0) throw bad('a pager serves one snapshot at least');
  for (const { memory, manifest, from } of snapshots) {
    if ((memory === undefined) === (from === undefined))
      throw bad('a snapshot is a memory file, or has hosts that it comes from: one of them');
    if (manifest !== undefined && cache === undefined && from === undefined)
      throw bad('a manifest is of use with a cache, or for pages of other hosts');
    if (manifest !== undefined && keyFile === undefined)
      throw bad('a manifest can only be read with the key that it was made with');
    if (from !== undefined && manifest === undefined)
      throw bad('pages of other hosts need the manifest that names them');
  }
}

/**
 * Starts a pager. Until it listens, `signal` ends that.
 * @throws PagetideError `PT_BAD_ARGUMENT`, `PT_MEMORY_FILE`, `PT_MANIFEST_INVALID`, `PT_SOCKET_IN_USE`, `PT_CANCELLED`, and
 * what opening the cache comes to: `PT_CACHE_IN_USE`, `PT_CACHE_FILE`, `PT_NO_SPACE`, `PT_NO_PERMISSION`; where no host gives
 * the pages: `PT_PEER_UNREACHABLE`, `PT_PEER_UNTRUSTED`, `PT_DOMAIN_UNKNOWN`, `PT_DOMAIN_SECRET`
 */
export async function startPager(options: PagerOptions, signal?: AbortSignal): Promise<RunningPager> {
  check(options);
  // what is refused for its files is refused before a cache is made
  for (const { memory } of options.snapshots) if (memory !== undefined) checkMemoryFile(memory, 1);
  const key = new PagerKey(options.keyFile);
  let cache: SharedCache | undefined;
  let pools: WorkerPools | undefined;
  try {
    if (options.cache !== undefined) cache = new SharedCache(options.cache, key);
    const snapshots: Snapshot[] = [];
    for (const snapshot of options.snapshots) snapshots.push(await openSnapshot(snapshot, key, cache, signal));
    pools = new WorkerPools(options.maxVms);
    // Last: who sees the socket is served.
    return new Pager(options, pools, key, cache, snapshots);
  } catch (error) {
    await pools?.close();
    cache?.close();
    key.close();
    throw error;
  }
}
