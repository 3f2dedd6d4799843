/**
 * What a worker knows of a guest's pages by name: checks what comes from elsewhere, finds what is here, and tells which
 * frames hold the same page. Nothing here allocates but the views that one check of a page needs.
 */
import { TAG_PAGE } from '../pages/tags.ts';
import { CachedPages } from './cached-pages.ts';
import { native, type FaultSession, type Outcome } from './native.ts';
import type { Serving } from './serving.ts';

/** What travels to a worker. */
export interface NamedPagesSpec {
  /** The arena (see native.ts) that holds the tags: 16 bytes a frame of 4096 bytes. Final before anything is served. */
  tags: number;
  /** Rings of frames with the same page: `next` and `first` of pages/duplicates.ts, over shared memory. Final likewise. */
  next: Uint32Array;
  first: Uint32Array;
  /** The domain key, as native code knows it. */
  key: number;
  /** The shared-page cache; 0: none. */
  cache: number;
  /** By which number the cache knows the domain. */
  domain: number;
}

/** What fault and fill service use of it. */
export interface NamedPages {
  /** Whether `page[offset …]` is what belongs into `frame`. Everything that comes over the network is asked this. */
  verify(frame: number, page: Uint8Array, offset: number): boolean;
  /** Whether the page of `frame` is the zero page. */
  isZero(frame: number): boolean;
  /**
   * Installs what is on this host already, from `frame` on, up to the first frame that is not: `Absent`. Counts where each
   * page came from. A copy in the cache was checked when it entered it.
   */
  install(session: FaultSession, frame: number, count: number, outcome: Int32Array): Outcome;
  /** The next frame with the same page, around the ring; `frame` itself where it is the only one. */
  next(frame: number): number;
  /** Names the ring: the same for all frames of one. */
  ring(frame: number): number;
  /**
   * Puts the page of `frame`, at `page[offset …]`, into the cache, for other guests and for when this one comes back. It is
   * verified there. Takes about as long as two digests: nothing for the way of a fault before it is answered.
   */
  keep(frame: number, page: Uint8Array, offset: number): void;
  /** Whether {@link keep} does anything. */
  readonly keeps: boolean;
}

class TaggedPages implements NamedPages {
  readonly keeps: boolean;
  private readonly spec: NamedPagesSpec;
  private readonly pages: CachedPages;
  /** Whether frames have one tag each. */
  private readonly single: boolean;

  constructor(spec: NamedPagesSpec, pageSize: number, serving: Serving, which: 'demand' | 'fill') {
    const { key, cache, domain } = spec;
    this.spec = spec;
    this.pages = new CachedPages({ tags: native().arenaView(spec.tags), key, cache, domain, pageSize, serving, which });
    this.keeps = this.pages.usable;
    this.single = pageSize === TAG_PAGE;
  }

  verify(frame: number, page: Uint8Array, offset: number): boolean {
    return this.pages.verify(frame, page, offset);
  }

  isZero(frame: number): boolean {
    return this.pages.isZero(frame);
  }

  /** The places of this host, one after the other: so far the cache alone. */
  install(session: FaultSession, frame: number, count: number, outcome: Int32Array): Outcome {
    return this.pages.install(session, frame, count, outcome);
  }

  keep(frame: number, page: Uint8Array, offset: number): void {
    // What comes of it matters to nobody here: a page that the cache can't take now is asked for again another time.
    if (this.keeps) this.pages.insert(frame, page, offset);
  }

  // The rings are of tags, hence of frames of 4096 bytes: a larger frame is alone in its ring, whatever its parts repeat.
  next(frame: number): number {
    return this.single ? this.spec.next[frame]! : frame;
  }

  ring(frame: number): number {
    return this.single ? this.spec.first[frame]! : frame;
  }
}

/** Opens it in this thread. `which` of the two workers counts what it installs. */
export function openNamedPages(
  spec: NamedPagesSpec,
  pageSize: number,
  serving: Serving,
  which: 'demand' | 'fill',
): NamedPages {
  return new TaggedPages(spec, pageSize, serving, which);
}
