/**
 * A memory file whose pages have names: what the shared-page cache has is installed from there, the rest is read from the
 * file, checked, kept in the cache, and installed.
 *
 *   frame ──► in the cache? ── yes ──► install (one native call, nothing allocated)
 *                  │ no
 *                  ▼
 *             pread a run ──► has its tag? ── yes ──► into the cache ──► install
 *                  │ short         │ no
 *                  ▼               ▼
 *                Short           Wrong: the file is not what it was; nothing is installed, and the frame waits
 *
 * A snapshot is its memory and the state of its devices at one moment. A page of any other moment, also a newer one of the
 * same file, would be memory that this guest never had. So a page that does not have its tag is never installed, and the
 * tag is looked for again: the cache may get the page from elsewhere, or the file be put back. Hence also: what the file
 * holds by now does not matter for a frame whose page is in the cache.
 *
 * Why what is installed from the file is what was checked: it was read into memory of this thread alone, which the cache
 * copies from, checks, and this installs from. Nobody writes to it in between.
 *
 * Guests with pages of 2 MiB are served from the file, each part checked; the cache cannot serve them.
 */
import { closeSync, openSync, readSync } from 'node:fs';
import { PagetideError } from '../errors.ts';
import { TAG_PAGE } from '../pages/tags.ts';
import { CachedPages } from './cached-pages.ts';
import type { LocalPages } from './local-pages.ts';
import { Insertion, Outcome, OutcomeField, type FaultSession } from './native.ts';
import type { Serving } from './serving.ts';

/** What travels to a worker. */
export interface CachedFileSpec {
  kind: 'cached-file';
  path: string;
  /** Over shared memory: 16 bytes a frame of 4096 bytes. Final. */
  tags: Uint8Array;
  /** The domain key, as native code knows it. */
  key: number;
  /** The cache, and the number by which it knows the domain; it has the key. */
  cache: number;
  domain: number;
}

/** Frames that are read at once: what one `UFFDIO_COPY` may move. */
const RUN = 16;

class CachedFile implements LocalPages {
  private readonly cached: CachedPages;
  private readonly serving: Serving;
  private readonly fd: number;
  private readonly present = new Uint8Array(RUN);
  /** Pages from the file, until they are installed. */
  private pages = Buffer.allocUnsafeSlow(RUN * TAG_PAGE);
  /** Frames that were found wrong and are not right again: each is counted once. */
  private readonly wrong = new Set<number>();

  constructor(spec: CachedFileSpec, pageSize: number, serving: Serving, which: 'demand' | 'fill') {
    const { path, tags, key, cache, domain } = spec;
    this.cached = new CachedPages({ tags, key, cache, domain, pageSize, serving, which });
    this.serving = serving;
    try {
      this.fd = openSync(path, 'r');
    } catch (cause) {
      throw new PagetideError('PT_MEMORY_FILE', `cannot read ${path}`, { cause });
    }
  }

  /**
   * As every local source does. Where a page is wrong, the others behind it are installed all the same; `outcome[Next]` is
   * the first that is wrong.
   */
  install(session: FaultSession, frame: number, count: number, outcome: Int32Array): Outcome {
    if (!this.cached.usable) return this.installLarge(session, frame, count, outcome);
    const result = this.cached.install(session, frame, count, outcome);
    return result === Outcome.Absent ? this.fetch(session, frame + count, outcome) : result;
  }

  close(): void {
    closeSync(this.fd);
  }

  /** The cache lacks frame `outcome[Next]`: goes on from there to `end`, from the file and the cache in turn. */
  private fetch(session: FaultSession, end: number, outcome: Int32Array): Outcome {
    let at = outcome[OutcomeField.Next]!;
    let installed = outcome[OutcomeField.Installed]!;
    let skipped = outcome[OutcomeField.Skipped]!;
    let firstWrong = -1;
    let result: Outcome = Outcome.Absent;
    while (result === Outcome.Absent) {
      const read = this.read(at, this.lacking(at, end), outcome);
      if (read <= 0) {
        outcome[OutcomeField.Next] = at;
        result = read === 0 ? Outcome.Short : Outcome.Failed;
        outcome[OutcomeField.Installed] = outcome[OutcomeField.Skipped] = 0;
      } else {
        const right = this.take(at, read);
        result = right > 0 ? session.install(at, right, this.pages, 0, outcome) : nothing(at, outcome);
        // this one is left alone, and those behind it are not made to wait for it
        if (result === Outcome.Done && right < read) {
          if (firstWrong < 0) firstWrong = at + right;
          outcome[OutcomeField.Next] = at + right + 1;
        }
      }
      at = outcome[OutcomeField.Next]!;
      installed += outcome[OutcomeField.Installed]!;
      skipped += outcome[OutcomeField.Skipped]!;
      if (result !== Outcome.Done || at >= end) break;
      result = this.cached.install(session, at, end - at, outcome);
      at = outcome[OutcomeField.Next]!;
      installed += outcome[OutcomeField.Installed]!;
      skipped += outcome[OutcomeField.Skipped]!;
    }
    if (firstWrong >= 0) {
      // What else is in the way is met again when the rest is tried again, from the wrong frame on.
      if (result !== Outcome.Gone) result = Outcome.Wrong;
      at = firstWrong;
    }
    outcome[OutcomeField.Installed] = installed;
    outcome[OutcomeField.Skipped] = skipped;
    outcome[OutcomeField.Next] = at;
    return result;
  }

  /** Frames from `frame` on that the cache seems to lack, at least one: what is read at once. */
  private lacking(frame: number, end: number): number {
    const most = Math.min(RUN, end - frame);
    if (most === 1) return 1;
    this.cached.has(frame, most, this.present);
    let count = 1;
    while (count < most && this.present[count] === 0 && !this.cached.isZero(frame + count)) count++;
    return count;
  }

  /** Reads whole pages; returns how many, -1 where reading failed with `outcome[Errno]`. */
  private read(frame: number, count: number, outcome: Int32Array): number {
    const { pages } = this;
    const size = count * TAG_PAGE;
    let done = 0;
    try {
      while (done < size) {
        const bytes = readSync(this.fd, pages, done, size - done, frame * TAG_PAGE + done);
        if (bytes === 0) break;
        done += bytes;
      }
    } catch (error) {
      outcome[OutcomeField.Errno] = Math.abs((error as NodeJS.ErrnoException).errno ?? 5);
      if (done < TAG_PAGE) return -1;
    }
    return Math.floor(done / TAG_PAGE);
  }

  /** Puts pages that were read into the cache, up to the first that does not have its tag; returns how many had theirs. */
  private take(frame: number, count: number): number {
    for (let i = 0; i < count; i++) {
      const at = frame + i;
      const result = this.cached.insert(at, this.pages, i * TAG_PAGE);
      // The page is checked before anything else: a cache that is full, or was cut off, has found it right.
      if (result === Insertion.Rejected || result === Insertion.Unverified) {
        this.isWrong(at);
        return i;
      }
      if (this.wrong.size > 0) this.wrong.delete(at);
    }
    return count;
  }

  private isWrong(frame: number): void {
    if (!this.wrong.has(frame)) this.serving.mismatched();
    this.wrong.add(frame);
  }

  /** Frames of 2 MiB, one by one. */
  private installLarge(session: FaultSession, frame: number, count: number, outcome: Int32Array): Outcome {
    const { pageSize } = session;
    const parts = pageSize / TAG_PAGE;
    if (this.pages.length < pageSize) this.pages = Buffer.allocUnsafeSlow(pageSize);
    let installed = 0;
    let skipped = 0;
    let at = frame;
    let result: Outcome = Outcome.Done;
    while (at < frame + count && result === Outcome.Done) {
      const read = this.read(at * parts, parts, outcome);
      if (read < parts) {
        result = read < 0 ? Outcome.Failed : Outcome.Short;
      } else if (!this.cached.verify(at, this.pages, 0)) {
        this.isWrong(at);
        result = Outcome.Wrong;
      } else {
        if (this.wrong.size > 0) this.wrong.delete(at);
        result = session.install(at, 1, this.pages, 0, outcome);
        installed += outcome[OutcomeField.Installed]!;
        skipped += outcome[OutcomeField.Skipped]!;
        at = outcome[OutcomeField.Next]!;
      }
    }
    outcome[OutcomeField.Installed] = installed;
    outcome[OutcomeField.Skipped] = skipped;
    outcome[OutcomeField.Next] = at;
    return result;
  }
}

/** Nothing was tried from `frame` on. */
function nothing(frame: number, outcome: Int32Array): Outcome {
  outcome[OutcomeField.Installed] = 0;
  outcome[OutcomeField.Skipped] = 0;
  outcome[OutcomeField.Next] = frame;
  return Outcome.Done;
}

/** Opens it in this thread. @throws PagetideError `PT_MEMORY_FILE` */
export function openCachedFile(
  spec: CachedFileSpec,
  pageSize: number,
  serving: Serving,
  which: 'demand' | 'fill',
): LocalPages {
  return new CachedFile(spec, pageSize, serving, which);
}
