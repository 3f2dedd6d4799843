/** What operators ask of the agent's cache, and of the resident index. */
import { isAbsolute } from 'node:path';
import { PagetideError } from '../errors.ts';
import type { SharedPages } from '../migration/shared-pages.ts';
import type { PageCache } from '../pages/cache.ts';
import type { Kept } from '../pages/keep-task.ts';
import type { Guests } from './guests.ts';
import type { CacheInfo, WarmRequest } from './service.ts';

export class CacheService {
  readonly #shared: SharedPages;
  readonly #guests: Guests;
  readonly #path: string;

  /** @param path of the cache's file */
  constructor(shared: SharedPages, guests: Guests, path: string) {
    this.#shared = shared;
    this.#guests = guests;
    this.#path = path;
  }

  /** Also of an agent that has no cache: its guests may be of use to each other. */
  stats(): CacheInfo {
    const { cache, resident, chunks } = this.#shared;
    return {
      ...(cache === undefined ? {} : { cache: { path: this.#path, ...cache.stats() } }),
      ...(resident === undefined ? {} : { resident: resident.stats() }),
      chunks: chunks.size,
    };
  }

  /** Erases every page; returns how many. @throws PagetideError `PT_NO_CACHE`, `PT_CACHE_FILE` */
  clear(): number {
    return this.#need().clear();
  }

  /**
   * Of a guest that runs here, into its own domain only: what its domain was made to keep apart stays apart.
   * @throws PagetideError `PT_BAD_ARGUMENT`, `PT_GUEST_UNKNOWN`, and those of SharedPages.warm
   */
  async warm({ domain, guest, file }: WarmRequest): Promise<Kept> {
    this.#need();
    if ((guest === undefined) === (file === undefined))
      throw new PagetideError('PT_BAD_ARGUMENT', 'a cache is warmed from a guest or from a file, one of them');
    if (guest !== undefined) {
      const { record } = this.#guests.need(guest).vmm;
      if (record.domain !== domain) {
        const own = record.domain === undefined ? 'no domain' : `the domain '${record.domain}'`;
        throw new PagetideError('PT_BAD_ARGUMENT', `guest '${guest}' is of ${own}, not of '${domain}'`);
      }
      return this.#shared.warm(domain, record.files);
    }
    if (!isAbsolute(file!)) throw new PagetideError('PT_BAD_ARGUMENT', `the path of the file is not absolute: ${file}`);
    return this.#shared.warm(domain, [{ path: file! }]);
  }

  #need(): PageCache {
    const { cache } = this.#shared;
    if (cache === undefined) throw new PagetideError('PT_NO_CACHE', 'this agent has no cache');
    return cache;
  }
}
