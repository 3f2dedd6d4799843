/**
 * The shared-page cache: this agent's own store of pages by tag, bounded, in one file that survives a restart.
 *
 *   main thread                           fault and fill workers
 *   PageCache.open(…) ── id ────────────► session.installFromCache(frame, count, tags, id, outcome)
 *     setKey, insert, pin, …              PageCache.at(id): insert, read
 *   close()                               (their lookups miss from then on)
 *
 * The cache itself is native and process-wide; an object of this class is one thread's handle to it. What is in the
 * file, why a wrong page is never served, and what becomes of a damaged file: docs/cache.md.
 */
import { threadId } from 'node:worker_threads';
import { PagetideError } from '../errors.ts';
import { native, type CacheStats, type Insertion } from '../memory/native.ts';
import type { DomainKey } from './tags.ts';

export { Insertion, type CacheStats } from '../memory/native.ts';

/** Bytes of a tag: the first of SHA-256(domain key ‖ page). All zero: the zero page, which is never cached. */
export const TAG_BYTES = 16;
/** Bytes of a page, whatever the guest's own page size. */
export const CACHE_PAGE = 4096;
/** The largest value of a page; see {@link PageCache.insert}. */
export const MAX_VALUE = 15;

export interface PageCacheOptions {
  /** The file, on tmpfs or disk. Its folder must exist. */
  path: string;
  /** The file's size at most, bytes; all of it is allocated at once. At least 12288. */
  bytes: number;
  /**
   * Makes a cache file of another size or version, or one that was cut off, anew instead of refusing it (false). A
   * file that is no cache is never touched.
   */
  replace?: boolean;
}

/** The number that native code knows a set of pins by: of this thread alone, and never used again. */
let lastPinSet = threadId * 2 ** 32;

/** Pages that are kept from being evicted. */
export interface Pins {
  /** Holds those of `tags` (16 bytes each) that are in the cache, too; returns how many, each counted once a call. */
  add(tags: Uint8Array): number;
  /** Lets go of all of them. Idempotent. */
  release(): void;
}

export class PageCache {
  /** Valid in every thread of the process until {@link close}. */
  readonly id: number;

  private constructor(id: number) {
    this.id = id;
  }

  /**
   * Opens the cache, or makes it. Slots of an earlier run are of use at once; each is verified at its first use, for which
   * {@link setKey} must have been told the key of its domain.
   * @throws PagetideError `PT_CACHE_IN_USE` where an agent has the file; `PT_CACHE_FILE` where it is no cache, of
   * another size or version, damaged or cut off; `PT_NO_SPACE` where it does not fit (nothing is left behind);
   * `PT_BAD_ARGUMENT`; `PT_SYSCALL`
   */
  static open({ path, bytes, replace = false }: PageCacheOptions): PageCache {
    if (path === '' || path.includes('\0')) throw new PagetideError('PT_BAD_ARGUMENT', 'a cache needs a path');
    if (!Number.isSafeInteger(bytes) || bytes < 3 * CACHE_PAGE) {
      throw new PagetideError('PT_BAD_ARGUMENT', `a cache has at least ${3 * CACHE_PAGE} bytes, not ${bytes}`);
    }
    return new PageCache(native().createCache(path, bytes, replace));
  }

  /** The handle of another thread for a cache that is open. Calls throw `PT_INTERNAL` once it is closed. */
  static at(id: number): PageCache {
    return new PageCache(id);
  }

  /**
   * The key that pages of `domain` are verified with. A domain's number must mean the same domain in every run.
   * @param domain 0 to 2^32 - 1
   * @param key 1 to 64 bytes; empty: forget it
   */
  setKey(domain: number, key: Uint8Array): void {
    if (key.length > 64) throw new PagetideError('PT_BAD_ARGUMENT', 'a domain’s key has 1 to 64 bytes');
    native().cacheKey(this.id, checkDomain(domain), key);
  }

  /** The same from a key of which only native code has the bytes. It may be closed afterwards. */
  useKey(domain: number, key: DomainKey): void {
    native().cacheUseKey(this.id, checkDomain(domain), key.id);
  }

  /**
   * Copies the page at `pages[pageOffset]`, verifies the copy against the tag at `tags[tagOffset]`, and keeps it,
   * evicting another where the cache is full.
   * @param value 0 to {@link MAX_VALUE}: how long it is worth keeping without being used
   */
  insert(domain: number, tags: Uint8Array, tagOffset: number, pages: Uint8Array, pageOffset = 0, value = 0): Insertion {
    return native().cacheInsert(this.id, domain, tags, tagOffset, pages, pageOffset, value);
  }

  /** Copies a page out to `into[offset]`; false where it is not there. Counts as a lookup. */
  read(tags: Uint8Array, tagOffset: number, into: Uint8Array, offset = 0): boolean {
    return native().cacheRead(this.id, tags, tagOffset, into, offset);
  }

  /**
   * Which of the tags are there: `present[i]` becomes 1 or 0. Returns how many are. Counts nothing, and is no promise: a page
   * may be evicted a moment later unless it is pinned, or be found damaged at its first use.
   */
  has(tags: Uint8Array, present: Uint8Array): number {
    return native().cacheHas(this.id, checkTags(tags), present);
  }

  /** Gives pages another value; returns how many of them are there. */
  setValue(tags: Uint8Array, value: number): number {
    if (!Number.isInteger(value) || value < 0 || value > MAX_VALUE) {
      throw new PagetideError('PT_BAD_ARGUMENT', `a page's value is 0 to ${MAX_VALUE}, not ${value}`);
    }
    return native().cacheSetValue(this.id, checkTags(tags), value);
  }

  /** For one migration. Pins live in memory only: a crash takes them with it. */
  pins(): Pins {
    const { id } = this;
    const set = ++lastPinSet;
    let released = false;
    return {
      add: (tags) => {
        if (released) throw new PagetideError('PT_INTERNAL', 'these pins were released');
        return native().cachePin(id, set, checkTags(tags));
      },
      release: () => {
        if (released) return;
        released = true;
        native().cacheUnpin(id, set);
      },
    };
  }

  /**
   * Erases every page of the domain from the file, pinned or not; returns how many. Forget its key first ({@link setKey}): what
   * other threads insert meanwhile is refused then. @throws PagetideError `PT_CACHE_FILE` where the file was cut off, so that it could not be erased
   */
  removeDomain(domain: number): number {
    return native().cacheRemoveDomain(this.id, checkDomain(domain));
  }

  /** Erases every page; returns how many. @throws PagetideError `PT_CACHE_FILE` as {@link removeDomain} */
  clear(): number {
    return native().cacheClear(this.id);
  }

  stats(): CacheStats {
    return native().cacheStats(this.id);
  }

  /**
   * Closes it for every thread. The file's lock is free once the calls that are under way have ended. Idempotent.
   */
  close(): void {
    native().destroyCache(this.id);
  }
}

function checkDomain(domain: number): number {
  if (Number.isInteger(domain) && domain >= 0 && domain < 2 ** 32) return domain;
  throw new PagetideError('PT_BAD_ARGUMENT', `a domain is a number from 0 to 2^32 - 1, not ${domain}`);
}

function checkTags(tags: Uint8Array): Uint8Array {
  if (tags.length % TAG_BYTES === 0) return tags;
  throw new PagetideError('PT_BAD_ARGUMENT', `tags have ${TAG_BYTES} bytes each, these are ${tags.length} bytes`);
}
