/**
 * The resident index: pages of the guests that run on this host, by tag. A source of pages that costs no memory but the index,
 * 32 bytes a frame.
 *
 *   whoever tags a guest                        fault and fill workers of another guest of that domain
 *   ResidentIndex.open()
 *     add({ domain, key, fd, frames })          session.installFromResident(frame, count, tags, lookups, outcome)
 *       set(first, count, tags)                 copyResident(lookups, …)
 *       remove()                                  copied, verified, used; or a miss
 *
 * The index is native and process-wide. A guest may change a listed page at any moment: that costs whoever asks for it a miss, and
 * the entry. Why it can't cost more is argued in native/core/resident_index.h.
 */
import { totalmem } from 'node:os';
import { PagetideError } from '../errors.ts';
import { native, type ResidentStats } from '../memory/native.ts';
import { TAG_PAGE, type DomainKey } from './tags.ts';

export type { ResidentStats } from '../memory/native.ts';

/** Frames that an index can have room for: 4 TiB. */
const MOST_FRAMES = 2 ** 30;

export interface ResidentFileOptions {
  /** 0 to 2^32 - 1. */
  domain: number;
  /** The domain's; the index keeps hold of it by itself. */
  key: DomainKey;
  /** A guest's memory file, open for reading: frame n is at byte 4096 n. Duplicated: the caller closes its own. */
  fd: number;
  /** Of 4096 bytes. */
  frames: number;
}

/** One memory file of a guest. */
export class ResidentFile {
  readonly frames: number;
  readonly #index: number;
  readonly #file: number;
  #removed = false;

  /** By {@link ResidentIndex.add}. */
  constructor(index: number, { domain, key, fd, frames }: ResidentFileOptions) {
    this.#index = index;
    this.#file = native().residentAdd(index, fd, frames, checkDomain(domain), key.id);
    this.frames = frames;
  }

  /**
   * Lists frames [first, first + count) under the tags from number `firstTag` of `tags`, instead of what they were listed under;
   * the zero tag takes a frame out. Where the guest is itself arriving on userfaultfd, only frames that are known to be present
   * are of any use. Does nothing once the file was removed, by itself or with its domain.
   * @param hashes of these frames, 8 bytes each, as tagging gave them together with the tags: then a copy need not be digested
   */
  set(first: number, count: number, tags: Uint8Array, firstTag = first, hashes?: Uint8Array): void {
    if (this.#removed) return;
    native().residentSet(this.#index, this.#file, first, count, tags, firstTag, hashes);
  }

  /** Takes the file out. Lookups that are reading from it end first, each after one page. Idempotent. */
  remove(): void {
    this.#removed = true;
    native().residentRemove(this.#index, this.#file);
  }
}

export class ResidentIndex {
  readonly #id: number;
  readonly #lookups = new Map<number, number>();

  private constructor(id: number) {
    this.#id = id;
  }

  /**
   * @param frames of all guests together; by default those of this host's memory. Address space only, until they are listed
   * @throws PagetideError `PT_BAD_ARGUMENT`, `PT_NO_MEMORY` or `PT_SYSCALL`
   */
  static open(frames = Math.min(MOST_FRAMES, Math.ceil(totalmem() / TAG_PAGE))): ResidentIndex {
    if (!Number.isInteger(frames) || frames < 1 || frames > MOST_FRAMES)
      throw new PagetideError('PT_BAD_ARGUMENT', `a resident index has room for 1 to 2^30 frames, not ${frames}`);
    return new ResidentIndex(native().createResident(frames));
  }

  /**
   * What a thread that serves a guest of `domain` looks up with: a number, valid in every thread until {@link close}. It finds
   * pages of that domain alone.
   */
  lookups(domain: number): number {
    let lookups = this.#lookups.get(checkDomain(domain));
    if (lookups === undefined) this.#lookups.set(domain, (lookups = native().residentLookups(this.#id, domain)));
    return lookups;
  }

  /** Registers a guest's memory file; none of its frames is listed yet. @throws PagetideError `PT_NO_SPACE` where there is no room */
  add(options: ResidentFileOptions): ResidentFile {
    const { fd, frames } = options;
    if (!Number.isInteger(fd) || fd < 0) throw new PagetideError('PT_BAD_ARGUMENT', `no descriptor ${fd}`);
    if (!Number.isInteger(frames) || frames < 1 || frames > MOST_FRAMES)
      throw new PagetideError('PT_BAD_ARGUMENT', `a memory file of ${frames} frames`);
    return new ResidentFile(this.#id, options);
  }

  /** Takes out every file of a domain: when this returns, nobody reads from them. Returns how many there were. */
  removeDomain(domain: number): number {
    return native().residentRemoveDomain(this.#id, checkDomain(domain));
  }

  stats(): ResidentStats {
    return native().residentStats(this.#id);
  }

  /** Takes out every file; whoever still looks up finds nothing. Idempotent. */
  close(): void {
    native().destroyResident(this.#id);
    for (const lookups of this.#lookups.values()) native().closeResidentLookups(lookups);
    this.#lookups.clear();
  }
}

/**
 * Copies the page of tag number `firstTag` out to `into[offset]`, verified; false where no guest of the domain has it (and `into`
 * then holds anything). `into` must not be written by another thread meanwhile.
 */
export function copyResident(
  lookups: number,
  tags: Uint8Array,
  firstTag: number,
  into: Uint8Array,
  offset = 0,
): boolean {
  return native().residentCopy(lookups, tags, firstTag, into, offset);
}

function checkDomain(domain: number): number {
  if (Number.isInteger(domain) && domain >= 0 && domain < 2 ** 32) return domain;
  throw new PagetideError('PT_BAD_ARGUMENT', `a domain is a number from 0 to 2^32 - 1, not ${domain}`);
}
