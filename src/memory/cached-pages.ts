/**
 * Pages by their tags, as one worker asks the shared-page cache for them: the one way in which a guest's pages are checked,
 * taken from the cache and put into it, whether they otherwise come from a source host (named-pages.ts) or from a memory file
 * (cached-file.ts).
 *
 * A guest whose pages are larger than 4096 bytes has several tags a frame. Its pages are checked part by part; the cache, which
 * has pages of 4096 bytes, cannot serve it.
 *
 * Installing allocates nothing; checking a page needs two views.
 */
import { TAG_BYTES, TAG_PAGE } from '../pages/tags.ts';
import { Insertion, native, Outcome, OutcomeField, type FaultSession } from './native.ts';
import type { Serving } from './serving.ts';

export interface CachedPagesOptions {
  /** 16 bytes for each 4096 of the guest's memory. Final. */
  tags: Uint8Array;
  /** The domain key, as native code knows it. */
  key: number;
  /** The shared-page cache; 0: none. */
  cache: number;
  /** By which number the cache knows the domain. */
  domain: number;
  /** Of the guest. */
  pageSize: number;
  /** Counts what came from the cache, as `which` of the two workers. */
  serving: Serving;
  which: 'demand' | 'fill';
}

export class CachedPages {
  /** Whether there is a cache, and it can serve this guest. */
  readonly usable: boolean;
  private readonly tags: Uint8Array;
  private readonly key: number;
  private readonly cache: number;
  private readonly domain: number;
  private readonly serving: Serving;
  private readonly which: 'demand' | 'fill';
  /** Tags of one frame. */
  private readonly parts: number;

  constructor({ tags, key, cache, domain, pageSize, serving, which }: CachedPagesOptions) {
    this.tags = tags;
    this.key = key;
    this.cache = cache;
    this.domain = domain;
    this.serving = serving;
    this.which = which;
    this.parts = pageSize / TAG_PAGE;
    this.usable = cache !== 0 && this.parts === 1;
  }

  /** Whether `page[offset …]` is what belongs into `frame`. */
  verify(frame: number, page: Uint8Array, offset: number): boolean {
    for (let part = 0; part < this.parts; part++) {
      const at = (frame * this.parts + part) * TAG_BYTES;
      const from = offset + part * TAG_PAGE;
      const content = page.subarray(from, from + TAG_PAGE);
      if (!native().verifyPage(this.key, content, this.tags.subarray(at, at + TAG_BYTES))) return false;
    }
    return true;
  }

  /** Whether the page of `frame` is the zero page. */
  isZero(frame: number): boolean {
    const from = frame * this.parts * TAG_BYTES;
    for (let at = from; at < from + this.parts * TAG_BYTES; at++) if (this.tags[at] !== 0) return false;
    return true;
  }

  /** Installs from `frame` on, zero pages too, up to the first frame that the cache lacks: `Absent`. */
  install(session: FaultSession, frame: number, count: number, outcome: Int32Array): Outcome {
    if (!this.usable) {
      outcome[OutcomeField.Installed] = 0;
      outcome[OutcomeField.Skipped] = 0;
      outcome[OutcomeField.Next] = frame;
      return Outcome.Absent;
    }
    const result = session.installFromCache(frame, count, this.tags, this.cache, outcome);
    const installed = outcome[OutcomeField.Installed]!;
    if (installed > 0) this.serving.addCached(this.which, installed);
    return result;
  }

  /**
   * Which of `count` frames the cache seems to have, from `frame` on: `present[i]` becomes 1 or 0. Only of a cache that is
   * {@link usable}; no promise, and nothing is counted.
   */
  has(frame: number, count: number, present: Uint8Array): void {
    native().cacheHas(this.cache, this.tags.subarray(frame * TAG_BYTES, (frame + count) * TAG_BYTES), present);
  }

  /**
   * Puts the page of `frame`, at `page[offset …]`, into a cache that is {@link usable}. It is checked first of all, so that
   * whatever comes of it but `Rejected` and `Unverified` says that the page is right. Takes about as long as two digests.
   */
  insert(frame: number, page: Uint8Array, offset: number): Insertion {
    return native().cacheInsert(this.cache, this.domain, this.tags, frame * TAG_BYTES, page, offset, 0);
  }
}
