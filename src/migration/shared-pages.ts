/**
 * What this host keeps of guests' pages beyond the guests themselves, by domain: the shared-page cache, the chunks of
 * manifests that it knows, and the history of guests that left.
 *
 *   arriving guest: openKey ──► hits from the cache and from guests that run here, misses into the cache (memory/named-pages.ts),
 *                   chunks that are known
 *   leaving guest:  leave ── its VMM ends, the source acknowledges ── keep ──► manifest and pages, behind everything else
 *   domain removed: key forgotten ──► pages, chunks and manifests erased
 *
 * A guest of no domain uses none of it: its tags are made with a key of the one migration.
 */
import { closeSync, constants, fstatSync, openSync } from 'node:fs';
import type { Logger } from 'pino';
import { asPagetideError, PagetideError } from '../errors.ts';
import type { GuestRecord } from '../guests/driver.ts';
import { MOST_PEERS, type PeersSpec } from '../memory/peers.ts';
import type { PageCache } from '../pages/cache.ts';
import type { ChunkStore } from '../pages/chunk-store.ts';
import type { History, HistoryLimits } from '../pages/history.ts';
import type { KeepPool } from '../pages/keep-pool.ts';
import type { KeepTask, Kept } from '../pages/keep-task.ts';
import type { Manifest } from '../pages/manifest.ts';
import type { ResidentIndex } from '../pages/resident.ts';
import { TAG_PAGE } from '../pages/tags.ts';
import { migrationKey, type GuestKey } from './arriving-names.ts';
import { checkClaim, type Domain, type Domains } from './domains.ts';
import type { PrepareRequest } from './types.ts';

/** Part of the cache that one guest that leaves, or one warming, may fill. */
const BUDGET = 1 / 2;
/** Worth of such a page: it outlives one round of the queue without being asked for. See docs/cache.md. */
const WORTH = 1;

export interface SharedPagesParts {
  domains: Domains;
  cache: PageCache | undefined;
  /** Pages of the guests that run here; undefined: there is no room for it. */
  resident: ResidentIndex | undefined;
  chunks: ChunkStore;
  history: History;
  historyPlace: { folder: string; limits: HistoryLimits };
  keeper: KeepPool;
  peers: PeerSettings;
  log: Logger;
}

/** Whether and how other hosts are asked for the pages of a guest that arrives. */
export interface PeerSettings {
  /** Hosts of one guest's workers at most; 0: none is asked. */
  most: number;
  /** See memory/peer.ts. */
  waitMs: number;
}

/** A guest that has left, whose memory is still to be looked at. Its files may be unlinked already. */
export interface Leaving {
  /** Keeps manifest and pages. Nobody has to wait for it; it never rejects. */
  keep(): Promise<void>;
  /** Lets go of its memory instead. Idempotent, and of no effect once it is being kept. */
  drop(): void;
}

export class SharedPages {
  readonly chunks: ChunkStore;
  readonly cache: PageCache | undefined;
  readonly resident: ResidentIndex | undefined;
  readonly #parts: SharedPagesParts;
  /** Of which the cache has the key: by number. */
  readonly #keyed = new Set<number>();
  #lossTold = false;

  constructor(parts: SharedPagesParts) {
    this.#parts = parts;
    this.chunks = parts.chunks;
    this.cache = parts.cache;
    this.resident = parts.resident;
    parts.domains.onRemoved((domain) => this.#remove(domain));
  }

  /** Takes in the chunks of the guests that left before, the last ones first. Some at a time: nothing waits for it. */
  async recall(): Promise<void> {
    const { history, domains, log } = this.#parts;
    const known = history.list().flatMap((past) => {
      const domain = domains.get(past.domain);
      return domain === undefined ? [] : [{ past, domain }];
    });
    // what was used last stays longest
    for (const { past, domain } of known.reverse()) {
      const manifest = history.read(past, (error) => log.warn({ guest: past.guest, code: error.code }, error.message));
      if (manifest !== undefined) this.chunks.add(domain.id, manifest);
      await new Promise((resolve) => setImmediate(resolve));
    }
  }

  /** The domain of that name, ready to be used. Undefined: this host does not have it. */
  domain(name: string | undefined): Domain | undefined {
    const domain = name === undefined ? undefined : this.#parts.domains.get(name);
    if (domain !== undefined) this.#giveKey(domain);
    return domain;
  }

  /** Calls back after a domain was removed, and all that is kept here of it. */
  onRemoved(callback: (domain: { name: string; id: number }) => void): void {
    this.#parts.domains.onRemoved(callback);
  }

  /** Whether what a source claims can be taken on. @throws PagetideError `PT_DOMAIN_UNKNOWN`, `PT_DOMAIN_SECRET` */
  check({ domain, migration }: Pick<PrepareRequest, 'domain' | 'migration'>): void {
    if (domain !== undefined) checkClaim(this.#parts.domains, domain, migration);
  }

  /** What a guest arrives with. The caller closes the key. @throws PagetideError as {@link check} */
  openKey({ domain: claim, migration, source }: PrepareRequest): GuestKey {
    if (claim === undefined) return { key: migrationKey(source.token), shared: undefined };
    const domain = checkClaim(this.#parts.domains, claim, migration);
    this.#giveKey(domain);
    const resident = this.resident?.lookups(domain.id) ?? 0;
    return { key: domain.openKey(), shared: { cache: this.cache?.id ?? 0, resident, domain: domain.id } };
  }

  /**
   * Other hosts that may have the pages of a guest that arrives: of its domain, but for its source. Where there are more than are
   * asked, some of them, others each time. Undefined: none.
   */
  peers({ domain: claim, source }: Pick<PrepareRequest, 'domain' | 'source'>): PeersSpec | undefined {
    const { domains, peers } = this.#parts;
    const domain = claim === undefined ? undefined : domains.get(claim.name);
    if (domain === undefined) return undefined;
    const others = domains.members(domain.name).filter(({ url }) => !sameOrigin(url, source.url));
    for (let left = others.length; left > 1; left--) {
      const other = Math.floor(Math.random() * left);
      [others[left - 1], others[other]] = [others[other]!, others[left - 1]!];
    }
    const urls = others.slice(0, Math.min(peers.most, MOST_PEERS)).map(({ url }) => url);
    return urls.length === 0 ? undefined : { domain: domain.mark, urls, waitMs: peers.waitMs };
  }

  /**
   * A guest that was here is about to be freed: opens its memory files, so that they last until {@link Leaving.keep} has looked
   * at them, whatever becomes of their names. Undefined where there is nothing to keep.
   */
  leave(record: GuestRecord, guest: string, domain: Domain, manifest: Manifest): Leaving | undefined {
    const { history, historyPlace, keeper, log } = this.#parts;
    if (this.cache === undefined && !history.keeps) return undefined;
    let files: KeepTask['files'];
    try {
      files = openFiles(this.cache === undefined ? [] : record.files);
    } catch (error) {
      log.debug(
        { guest, error: asPagetideError(error).message },
        'the memory of a guest that left cannot be looked at',
      );
      return undefined;
    }
    let over = false;
    return {
      keep: async () => {
        if (over) return;
        over = true;
        // the chunks first: they are of use even where there is no room for the pages
        this.chunks.add(domain.id, manifest);
        const { cache } = this;
        try {
          const kept = await keeper.keep({
            cache: cache?.id ?? 0,
            domain: domain.id,
            value: WORTH,
            budget: this.#budget(),
            files,
            tags: { known: manifest.tags },
            ...(history.keeps ? { history: { ...historyPlace, domain: domain.name, guest } } : {}),
          });
          log.info({ guest, ...kept }, 'kept what the guest left behind');
        } catch (error) {
          const { code, message } = asPagetideError(error);
          log.warn({ guest, code }, `not all that the guest left behind was kept: ${message}`);
        }
        // removed meanwhile: what was written after that is no more to be kept than what was there
        if (this.#parts.domains.get(domain.name)?.id !== domain.id) history.removeDomain(domain.name);
        this.noteLoss();
      },
      drop: () => {
        if (over) return;
        over = true;
        for (const { fd } of files) closeSync(fd);
      },
    };
  }

  /**
   * Puts the pages of memory files into the cache: of a guest that runs here, or of any file.
   * @throws PagetideError `PT_NO_CACHE`, `PT_DOMAIN_UNKNOWN`, `PT_MEMORY_FILE`, `PT_CANCELLED`
   */
  async warm(name: string, memory: readonly { path: string }[]): Promise<Kept> {
    const { cache } = this;
    if (cache === undefined) throw new PagetideError('PT_NO_CACHE', 'this agent has no cache');
    const domain = this.domain(name);
    if (domain === undefined) throw new PagetideError('PT_DOMAIN_UNKNOWN', `there is no domain '${name}' here`);
    const key = domain.openKey();
    try {
      return await this.#parts.keeper.keep({
        cache: cache.id,
        domain: domain.id,
        value: WORTH,
        budget: this.#budget(),
        files: openFiles(memory),
        tags: { key: key.id },
      });
    } finally {
      key.close();
    }
  }

  /** Says once that the cache's file was cut off: nobody is told by the migrations, which go on without it. */
  noteLoss(): void {
    if (this.#lossTold || this.cache?.stats().lost !== true) return;
    this.#lossTold = true;
    this.#parts.log.error(
      'the file of the shared-page cache was cut off: nothing is taken from it until the agent is restarted',
    );
  }

  #budget(): number {
    return Math.ceil((this.cache?.stats().slots ?? 0) * BUDGET);
  }

  #giveKey(domain: Domain): void {
    if (this.cache === undefined || this.#keyed.has(domain.id)) return;
    const key = domain.openKey();
    try {
      this.cache.useKey(domain.id, key);
      this.#keyed.add(domain.id);
    } finally {
      key.close();
    }
  }

  /**
   * The key goes first: from then on no page of the domain can be verified, so none comes in while the others are erased; one
   * that was verified just before is refused by the removal itself (native/core/page_cache.cc). Guests that are arriving go
   * on: their own handle on the key checks what comes from the source.
   */
  #remove({ name, id }: { name: string; id: number }): void {
    const { history, log } = this.#parts;
    this.chunks.removeDomain(id);
    this.resident?.removeDomain(id);
    history.removeDomain(name);
    this.#keyed.delete(id);
    if (this.cache === undefined) return;
    this.cache.setKey(id, new Uint8Array());
    try {
      const pages = this.cache.removeDomain(id);
      log.info({ domain: name, pages }, 'erased the pages of a domain that was removed');
    } catch (error) {
      const { code, message } = asPagetideError(error);
      log.error({ domain: name, code }, message);
    }
  }
}

function sameOrigin(a: string, b: string): boolean {
  return URL.canParse(a) && URL.canParse(b) && new URL(a).origin === new URL(b).origin;
}

/** Whole pages of the files, in guest memory space one after the other. @throws PagetideError `PT_MEMORY_FILE` */
function openFiles(files: readonly { path: string; size?: number; offset?: number }[]): KeepTask['files'] {
  const opened: KeepTask['files'] = [];
  let next = 0;
  try {
    for (const { path, size = Infinity, offset } of files) {
      // O_NONBLOCK: opening a FIFO by mistake must not hang the agent
      const fd = openSync(path, constants.O_RDONLY | constants.O_NONBLOCK);
      opened.push({ fd, first: offset === undefined ? next : offset / TAG_PAGE, frames: 0 });
      const info = fstatSync(fd);
      if (!info.isFile()) throw new PagetideError('PT_MEMORY_FILE', `${path} is no regular file`);
      const frames = Math.floor(Math.min(info.size, size) / TAG_PAGE);
      opened.at(-1)!.frames = frames;
      next += frames;
    }
    return opened;
  } catch (error) {
    for (const { fd } of opened) closeSync(fd);
    if (error instanceof PagetideError) throw error;
    throw new PagetideError('PT_MEMORY_FILE', 'a memory file cannot be read', { cause: error });
  }
}
