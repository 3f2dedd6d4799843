/**
 * What a worker knows of a guest's pages by name: checks what comes from elsewhere, finds what is here, and tells which
 * frames hold the same page. Nothing here allocates but the views that one check of a page needs.
 */
import { TAG_BYTES } from '../pages/tags.ts';
import { native, Outcome, OutcomeField, type FaultSession } from './native.ts';
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

/** Bytes of a page that has a tag, whatever the guest's page size. */
const TAGGED = 4096;

class TaggedPages implements NamedPages {
  private readonly spec: NamedPagesSpec;
  private readonly tags: Uint8Array;
  private readonly serving: Serving;
  private readonly which: 'demand' | 'fill';
  /** Tags of one frame. */
  private readonly parts: number;
  /** Whether there is a cache that can serve this guest: its pages are of 4096 bytes. */
  readonly keeps: boolean;

  constructor(spec: NamedPagesSpec, pageSize: number, serving: Serving, which: 'demand' | 'fill') {
    this.spec = spec;
    this.tags = native().arenaView(spec.tags);
    this.parts = pageSize / TAGGED;
    this.keeps = spec.cache !== 0 && pageSize === TAGGED;
    this.serving = serving;
    this.which = which;
  }

  verify(frame: number, page: Uint8Array, offset: number): boolean {
    for (let part = 0; part < this.parts; part++) {
      const at = (frame * this.parts + part) * TAG_BYTES;
      const from = offset + part * TAGGED;
      const content = page.subarray(from, from + TAGGED);
      if (!native().verifyPage(this.spec.key, content, this.tags.subarray(at, at + TAG_BYTES))) return false;
    }
    return true;
  }

  isZero(frame: number): boolean {
    const from = frame * this.parts * TAG_BYTES;
    for (let at = from; at < from + this.parts * TAG_BYTES; at++) if (this.tags[at] !== 0) return false;
    return true;
  }

  /** The places of this host, one after the other: so far the cache alone. */
  install(session: FaultSession, frame: number, count: number, outcome: Int32Array): Outcome {
    if (!this.keeps) return absent(frame, outcome);
    const result = session.installFromCache(frame, count, this.tags, this.spec.cache, outcome);
    const installed = outcome[OutcomeField.Installed]!;
    if (installed > 0) this.serving.addCached(this.which, installed);
    return result;
  }

  keep(frame: number, page: Uint8Array, offset: number): void {
    if (!this.keeps) return;
    const { cache, domain } = this.spec;
    // What comes of it matters to nobody here: a page that the cache can't take now is asked for again another time.
    native().cacheInsert(cache, domain, this.tags, frame * TAG_BYTES, page, offset, 0);
  }

  // The rings are of tags, hence of frames of 4096 bytes: a larger frame is alone in its ring, whatever its parts repeat.
  next(frame: number): number {
    return this.parts === 1 ? this.spec.next[frame]! : frame;
  }

  ring(frame: number): number {
    return this.parts === 1 ? this.spec.first[frame]! : frame;
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

function absent(frame: number, outcome: Int32Array): Outcome {
  outcome[OutcomeField.Installed] = 0;
  outcome[OutcomeField.Skipped] = 0;
  outcome[OutcomeField.Next] = frame;
  return Outcome.Absent;
}
