/**
 * What the pages of a pager are named with, and the shared-page cache that it keeps them in.
 *
 * With a key file, pages of earlier runs are of use again, and other hosts of the domain can be asked for pages. Without one
 * the key is of this run alone, and so are its pages: they are erased when the pager ends, as nobody could ever ask for them.
 */
import { PageCache, type CacheStats } from '../pages/cache.ts';
import { keyMark, keyNumber, passingKey, readKeyFile } from '../pages/key-file.ts';
import { DomainKey } from '../pages/tags.ts';

/** A domain's secret, of the pager's run or for longer. */
export class PagerKey {
  readonly key: DomainKey;
  /** What manifest files of this domain are marked with. */
  readonly mark: string;
  /** The domain's number in a cache. */
  readonly domain: number;
  /** Of this run alone. */
  readonly passing: boolean;

  /** @param file of the domain's secret; without it, a key of this run @throws PagetideError `PT_BAD_ARGUMENT`, `PT_NO_PERMISSION` */
  constructor(file: string | undefined) {
    this.passing = file === undefined;
    const secret = file === undefined ? passingKey() : readKeyFile(file);
    try {
      this.mark = keyMark(secret);
      this.domain = keyNumber(secret);
      this.key = new DomainKey(secret);
    } finally {
      secret.fill(0);
    }
  }

  /** Idempotent. */
  close(): void {
    this.key.close();
  }
}

export interface SharedCacheOptions {
  path: string;
  /** Of the file. */
  bytes: number;
}

export class SharedCache {
  readonly #cache: PageCache;
  readonly #key: PagerKey;
  #closed = false;

  /** @param key stays the caller's @throws PagetideError `PT_CACHE_IN_USE`, `PT_CACHE_FILE`, `PT_NO_SPACE`, `PT_BAD_ARGUMENT` */
  constructor({ path, bytes }: SharedCacheOptions, key: PagerKey) {
    this.#key = key;
    this.#cache = PageCache.open({ path, bytes });
    this.#cache.useKey(key.domain, key.key);
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
      if (this.#key.passing) {
        this.#cache.setKey(this.#key.domain, new Uint8Array());
        this.#cache.removeDomain(this.#key.domain);
      }
    } finally {
      this.#cache.close();
    }
  }
}
