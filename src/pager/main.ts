/**
 * The pager: serves a snapshot's memory file to whatever VMM connects and hands its userfaultfd over (Firecracker's
 * way; see src/memory/handover.ts). No agent, no cluster. The socket appears when the pager is ready.
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
import { native, type FaultSession } from '../memory/native.ts';
import { WorkerPools, type Place } from '../memory/worker-pools.ts';
import { keepsUserfault, memoryKind, VmmWatch } from './vmm.ts';

export interface PagerOptions {
  /** Unix socket to listen on. */
  listen: string;
  /** The memory file. */
  memory: string;
  /** VMs served at once, 1 to 64. */
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
  readonly #listener: HandoverListener;
  readonly #served = new Set<Served>();
  readonly #ending = new Set<Promise<void>>();
  readonly #held = new Set<Held>();
  readonly #log: Logger;
  #closed: Promise<void> | undefined;

  constructor(options: PagerOptions, pools: WorkerPools, listener: HandoverListener) {
    this.#options = options;
    this.#log = createLogger({ level: options.logLevel ?? 'info', format: 'json', name: 'pager' });
    this.#pools = pools;
    this.#listener = listener;
    void this.#accept();
  }

  get serving(): number {
    return this.#served.size;
  }

  close(): Promise<void> {
    return (this.#closed ??= this.#close());
  }

  async #close(): Promise<void> {
    this.#listener.close();
    for (const served of [...this.#served]) this.#end(served, 'the pager ends: the VM waits at its next missing page');
    await Promise.all(this.#ending);
    for (const held of [...this.#held]) this.#letGo(held);
    await this.#pools.close();
  }

  async #accept(): Promise<void> {
    while (this.#closed === undefined) {
      let handover: Handover;
      try {
        handover = await this.#listener.next();
      } catch (error) {
        const { code, message } = asPagetideError(error);
        if (code === 'PT_CANCELLED') return;
        this.#log.warn({ code }, message);
        continue;
      }
      try {
        this.#serve(handover);
      } catch (error) {
        this.#refuse(handover, asPagetideError(error));
      }
    }
  }

  #serve(handover: Handover): void {
    const { regions, pageSize, pid } = handover;
    const { memory, fill, spinMicros = SPIN_MICROS } = this.#options;
    // Now, not at the start: the file may have shrunk since.
    checkMemoryFile(
      memory,
      regions.reduce((end, region) => Math.max(end, region.offset + region.size), 0),
    );
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
    const service = this.#start(session, place, { memory, spinMicros });
    const log = this.#log.child({ vmm: pid });
    const watch = new VmmWatch(pid, handover.connection, {
      onGone: () => this.#end(served, 'the VM is gone'),
      onClosed: () => log.warn('the VMM has closed its connection, but lives; it is served on'),
    });
    const served: Served = { service, handover, watch };
    this.#served.add(served);
    log.info({ regions: regions.length, pageSize, memory: kind ?? 'private' }, 'serving a VM');
    if (kind === undefined) log.warn("may not see the VMM's memory map; its memory is taken for private");
    if (!keepsUserfault(pid)) {
      log.warn(
        'the VMM keeps no userfaultfd of its own, or may not be looked at: it may read zeros if this pager dies',
      );
    }
    service.on('note', (text) => log.warn(text));
    service.on('foreign', (frame) =>
      log.fatal({ frame }, 'a page stands in the way that nobody here installed; it is not served'),
    );
    service.on('failed', (error) => log.error({ code: error.code }, error.message));
    service.on('filled', () => log.info('every page is there'));
    service.on('gone', () => this.#end(served, 'the VM is gone'));
    service.serve();
    if (fill) service.fill();
  }

  #start(session: FaultSession, place: Place, options: { memory: string; spinMicros: number }): GuestService {
    return new GuestService({
      session,
      place,
      pages: { kind: 'file', path: options.memory },
      spinMicros: options.spinMicros,
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
      const { counts, faults } = served.service.lastFigures ?? {};
      this.#log.info({ vmm: served.handover.pid, faults, installed: counts?.installed }, why);
      this.#ending.delete(ended);
    });
    this.#ending.add(ended);
  }
}

/**
 * Starts a pager. @throws PagetideError `PT_MEMORY_FILE`, `PT_SOCKET_IN_USE`, `PT_BAD_ARGUMENT`
 */
export async function startPager(options: PagerOptions): Promise<RunningPager> {
  if (!Number.isInteger(options.maxVms) || options.maxVms < 1 || options.maxVms > 64) {
    throw new PagetideError('PT_BAD_ARGUMENT', 'a pager serves 1 to 64 VMs at once');
  }
  checkMemoryFile(options.memory, 1);
  const pools = new WorkerPools(options.maxVms);
  try {
    // Last: who sees the socket is served.
    return new Pager(options, pools, new HandoverListener(options.listen));
  } catch (error) {
    await pools.close();
    throw error;
  }
}
