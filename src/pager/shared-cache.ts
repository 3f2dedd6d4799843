/**
 * The shared-page cache of a pager, and the key that its pages are named with.
 *
 * With a key file, pages of earlier runs are of use again. Without one the key is of this run alone, and so are its pages:
 * they are erased when the pager ends, as nobody could ever ask for them.
 */
import { PageCache, type CacheStats } from '../pages/cache.ts';
import { keyMark, keyNumber, passingKey, readKeyFile } from '../pages/key-file.ts';
import { DomainKey } from '../pages/tags.ts';

export interface SharedCacheOptions {
  path: string;
  /** Of the file. */
  bytes: number;
  /** File of the domain's secret; without it, a key of this run. */
  keyFile?: string | undefined;
}

export class SharedCache {
  readonly key: DomainKey;
  /** What manifest files of this domain are marked with. */
  readonly mark: string;
  /** The domain's number in the cache. */
  readonly domain: number;
  readonly #cache: PageCache;
  readonly #passing: boolean;
  #closed = false;

  /** @throws PagetideError `PT_CACHE_IN_USE`, `PT_CACHE_FILE`, `PT_NO_SPACE`, `PT_BAD_ARGUMENT`, `PT_NO_PERMISSION` */
  constructor({ path, bytes, keyFile }: SharedCacheOptions) {
    this.#passing = keyFile === undefined;
    const secret = keyFile === undefined ? passingKey() : readKeyFile(keyFile);
    try {
      this.mark = keyMark(secret);
      this.domain = keyNumber(secret);
      this.key = new DomainKey(secret);
    } finally {
      secret.fill(0);
    }
    try {
      this.#cache = PageCache.open({ path, bytes });
    } catch (error) {
      this.key.close();
      throw error;
    }
    this.#cache.useKey(this.domain, this.key);
  }

  /** For workers. */
  get id(): number {
    return this.#cache.id;
  }

  stats(): CacheStats {
    return this.#cache.stats();
  }

  /** When nobody uses it any more. Idempotent. @throws PagetideError `PT_CACHE_FILE` where pages could not be erased */
  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    try {
      if (this.#passing) {
        this.#cache.setKey(this.domain, new Uint8Array());
        this.#cache.removeDomain(this.domain);
      }
    } finally {
      this.#cache.close();
      this.key.close();
    }
  }
}
