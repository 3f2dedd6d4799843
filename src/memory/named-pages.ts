/**
 * What a worker knows of a guest's pages by name: checks what comes from elsewhere, finds what is here, and tells which
 * frames hold the same page. Nothing here allocates but the views that one check of a page needs.
 */
import { TAG_BYTES } from '../pages/tags.ts';
import { native, Outcome, OutcomeField, type FaultSession } from './native.ts';

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
}

/** What fault and fill service use of it. */
export interface NamedPages {
  /** Whether `page[offset …]` is what belongs into `frame`. Everything that comes over the network is asked this. */
  verify(frame: number, page: Uint8Array, offset: number): boolean;
  /** Whether the page of `frame` is the zero page. */
  isZero(frame: number): boolean;
  /**
   * Installs from the cache, from `frame` on, up to the first frame that it lacks: `Absent`. Its copy was checked when it
   * entered the cache.
   */
  install(session: FaultSession, frame: number, count: number, outcome: Int32Array): Outcome;
  /** The next frame with the same page, around the ring; `frame` itself where it is the only one. */
  next(frame: number): number;
  /** Names the ring: the same for all frames of one. */
  ring(frame: number): number;
}

/** Bytes of a page that has a tag, whatever the guest's page size. */
const TAGGED = 4096;

class TaggedPages implements NamedPages {
  private readonly spec: NamedPagesSpec;
  private readonly tags: Uint8Array;
  private readonly pageSize: number;
  /** Tags of one frame. */
  private readonly parts: number;

  constructor(spec: NamedPagesSpec, pageSize: number) {
    this.spec = spec;
    this.tags = native().arenaView(spec.tags);
    this.pageSize = pageSize;
    this.parts = pageSize / TAGGED;
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

  install(session: FaultSession, frame: number, count: number, outcome: Int32Array): Outcome {
    return session.installFromCache(frame, count, this.tags, this.spec.cache, outcome);
  }

  // The rings are of tags, hence of frames of 4096 bytes: a larger frame is alone in its ring, whatever its parts repeat.
  next(frame: number): number {
    return this.parts === 1 ? this.spec.next[frame]! : frame;
  }

  ring(frame: number): number {
    return this.parts === 1 ? this.spec.first[frame]! : frame;
  }

  /** Whether there is a cache that can serve this guest: its pages are of 4096 bytes. */
  get hasCache(): boolean {
    return this.spec.cache !== 0 && this.pageSize === TAGGED;
  }
}

/** Opens it in this thread. */
export function openNamedPages(spec: NamedPagesSpec, pageSize: number): NamedPages {
  const pages = new TaggedPages(spec, pageSize);
  return pages.hasCache ? pages : withoutCache(pages);
}

function withoutCache(pages: TaggedPages): NamedPages {
  return {
    verify: (frame, page, offset) => pages.verify(frame, page, offset),
    isZero: (frame) => pages.isZero(frame),
    install: (_session, frame, _count, outcome) => absent(frame, outcome),
    next: (frame) => pages.next(frame),
    ring: (frame) => pages.ring(frame),
  };
}

function absent(frame: number, outcome: Int32Array): Outcome {
  outcome[OutcomeField.Installed] = 0;
  outcome[OutcomeField.Skipped] = 0;
  outcome[OutcomeField.Next] = frame;
  return Outcome.Absent;
}
