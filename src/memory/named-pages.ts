/**
 * What a worker knows of a guest's pages by name: checks what comes from elsewhere, finds what is here, and tells which
 * frames hold the same page. Nothing here allocates but the views that one check of a page needs.
 */
import { TAG_PAGE } from '../pages/tags.ts';
import { CachedPages } from './cached-pages.ts';
import { native, Outcome, OutcomeField, type FaultSession } from './native.ts';
import { OwnPages, type OwnFile } from './own-pages.ts';
import type { Serving } from './serving.ts';

/** What travels to a worker. */
export interface NamedPagesSpec {
  /**
   * The tags, 16 bytes a frame of 4096 bytes, over shared memory; or the arena (see native.ts) that holds them. Final before
   * anything is served, and not changed during a round.
   */
  tags: number | Uint8Array;
  /** Rings of frames with the same page: `next` and `first` of pages/duplicates.ts, over shared memory. Final likewise. */
  next: Uint32Array;
  first: Uint32Array;
  /** The domain key, as native code knows it. */
  key: number;
  /** The shared-page cache; 0: none. */
  cache: number;
  /** Lookups of the domain in the resident index (pages/resident.ts); 0: none. */
  resident: number;
  /** By which number the cache knows the domain. */
  domain: number;
  /** The guest's own memory files, where some of its pages are there before it runs here: then they may be had from each other. */
  own?: readonly OwnFile[];
}

/** What fault and fill service use of it. */
export interface NamedPages {
  /** Whether `page[offset …]` is what belongs into `frame`. Everything that comes over the network is asked this. */
  verify(frame: number, page: Uint8Array, offset: number): boolean;
  /** Whether the page of `frame` is the zero page. */
  isZero(frame: number): boolean;
  /**
   * Installs what is on this host already, from `frame` on, up to the first frame that is not: `Absent`. Counts where each
   * page came from. A copy in the cache was checked when it entered it, one of another guest's page when it is made.
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
  /** Lets go of what it has open. */
  close?(): void;
}

class TaggedPages implements NamedPages {
  readonly keeps: boolean;
  private readonly spec: NamedPagesSpec;
  private readonly tags: Uint8Array;
  private readonly pages: CachedPages;
  private readonly serving: Serving;
  private readonly which: 'demand' | 'fill';
  /** Whether frames have one tag each. */
  private readonly single: boolean;
  /** Whether there may be guests here that have its pages. */
  private readonly hasOthers: boolean;
  /** The guest's own pages, where frames are of one tag. */
  private readonly own: OwnPages | undefined;

  constructor(spec: NamedPagesSpec, pageSize: number, serving: Serving, which: 'demand' | 'fill') {
    const { key, cache, domain } = spec;
    this.spec = spec;
    this.tags = tagsOf(spec);
    this.serving = serving;
    this.which = which;
    this.pages = new CachedPages({ tags: this.tags, key, cache, domain, pageSize, serving, which });
    this.keeps = this.pages.usable;
    this.single = pageSize === TAG_PAGE;
    this.hasOthers = spec.resident !== 0 && this.single;
    if (spec.own !== undefined && this.single) this.own = new OwnPages(spec.own, pageSize, this);
  }

  close(): void {
    this.own?.close();
  }

  verify(frame: number, page: Uint8Array, offset: number): boolean {
    return this.pages.verify(frame, page, offset);
  }

  isZero(frame: number): boolean {
    return this.pages.isZero(frame);
  }

  /**
   * The places of this host, one after the other: what the cache lacks may be in the memory of another guest, or of this one, from
   * where it costs a digest more. Each is asked up to the first frame that it lacks, from which the others go on; a frame that all
   * lack ends it.
   */
  install(session: FaultSession, frame: number, count: number, outcome: Int32Array): Outcome {
    const end = frame + count;
    let result = Outcome.Absent as Outcome;
    let at = frame;
    let installed = 0;
    let skipped = 0;
    for (;;) {
      result = this.pages.install(session, at, end - at, outcome);
      installed += outcome[OutcomeField.Installed]!;
      skipped += outcome[OutcomeField.Skipped]!;
      const lacking = (at = outcome[OutcomeField.Next]!);
      if (result !== Outcome.Absent) break;
      if (this.hasOthers) {
        result = session.installFromResident(at, end - at, this.tags, this.spec.resident, outcome);
        const resident = outcome[OutcomeField.Installed]!;
        if (resident > 0) this.serving.addResident(this.which, resident);
        installed += resident;
        skipped += outcome[OutcomeField.Skipped]!;
        at = outcome[OutcomeField.Next]!;
        if (result !== Outcome.Absent) break;
        if (at !== lacking && this.keeps) continue;
      }
      result = this.own?.install(session, at, outcome) ?? Outcome.Absent;
      if (result === Outcome.Absent) break;
      const repeated = outcome[OutcomeField.Installed]!;
      if (repeated > 0) this.serving.addRepeated(this.which, repeated);
      installed += repeated;
      skipped += outcome[OutcomeField.Skipped]!;
      at = outcome[OutcomeField.Next]!;
      if (result !== Outcome.Done || at === end) break;
    }
    outcome[OutcomeField.Installed] = installed;
    outcome[OutcomeField.Skipped] = skipped;
    outcome[OutcomeField.Next] = at;
    return result;
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

/** The tags as this thread sees them. */
export function tagsOf({ tags }: Pick<NamedPagesSpec, 'tags'>): Uint8Array {
  return typeof tags === 'number' ? native().arenaView(tags) : tags;
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
