/**
 * What a keep worker does: puts pages of memory files into the shared-page cache, of a guest that has left, or of one that
 * runs or a file that the cache is warmed from; and writes the manifest of the one that has left.
 *
 * Files are read with `pread`, and only where they hold data: reading a hole through a mapping would create a page. Each
 * page is read once, and what the cache takes in is that copy, checked against its tag: a page that its guest changes
 * meanwhile is refused, or, where the tags are made here, kept as it was read.
 */
import { readSync } from 'node:fs';
import { asPagetideError, PagetideError, type ErrorJson } from '../errors.ts';
import { Insertion, native } from '../memory/native.ts';
import { History, type HistoryLimits } from './history.ts';
import { Manifest } from './manifest.ts';
import { isZeroTag } from './tag-runs.ts';
import { TAG_BYTES, TAG_PAGE } from './tags.ts';

/** Pages that are read at once. */
const BATCH = 64;
/** Insertions in a row that found no slot: the rest will not find one either. */
const HOPELESS = 256;

export interface KeepTask {
  /** The cache; 0: none, only the manifest is kept. */
  cache: number;
  domain: number;
  /** How long the pages are worth keeping without being used; see PageCache.insert. */
  value: number;
  /** Pages that are inserted at most. */
  budget: number;
  /** Open in this process until the task has ended. `first` frame and `frames`, of 4096 bytes. */
  files: { fd: number; first: number; frames: number }[];
  /** Over shared memory, 16 bytes a frame; or the number of the key that they are made with. */
  tags: { known: Uint8Array } | { key: number };
  history?: { folder: string; limits: HistoryLimits; domain: string; guest: string };
  /** Over shared memory. Not 0: end soon. */
  stop: Int32Array;
}

export interface Kept {
  /** Pages that hold data, not all zero. */
  pages: number;
  inserted: number;
  /** Were there already. */
  present: number;
  /** Changed while they were read, or found no room. */
  refused: number;
}

/** Errors travel as JSON: a thrown one would lose its code between threads. */
export type KeepResult = Kept | { error: ErrorJson };

/** Never throws. */
export function keepPages(task: KeepTask): KeepResult {
  try {
    const { history, tags } = task;
    if (history !== undefined && 'known' in tags) {
      const manifest = new Manifest(tags.known.length / TAG_BYTES, tags.known);
      new History(history.folder, history.limits).keep(history.domain, history.guest, manifest);
    }
    return new Keeper(task).run();
  } catch (error) {
    return { error: asPagetideError(error).toJSON() };
  }
}

class Keeper {
  readonly #task: KeepTask;
  readonly #kept: Kept = { pages: 0, inserted: 0, present: 0, refused: 0 };
  readonly #pages = Buffer.allocUnsafeSlow(BATCH * TAG_PAGE);
  readonly #tags = new Uint8Array(BATCH * TAG_BYTES);
  readonly #there = new Uint8Array(BATCH);
  #hopeless = 0;

  constructor(task: KeepTask) {
    this.#task = task;
  }

  run(): Kept {
    const { cache, files } = this.#task;
    if (cache === 0) return this.#kept;
    for (const file of files) {
      for (const { offset, length } of native().dataExtents(file.fd, 0, file.frames * TAG_PAGE)) {
        const end = Math.floor((offset + length) / TAG_PAGE);
        for (let at = Math.ceil(offset / TAG_PAGE); at < end; at += BATCH) {
          if (this.#isOver()) return this.#kept;
          this.#batch(file.fd, at, file.first + at, Math.min(BATCH, end - at));
        }
      }
    }
    return this.#kept;
  }

  #isOver(): boolean {
    const { stop, budget } = this.#task;
    return Atomics.load(stop, 0) !== 0 || this.#kept.inserted >= budget || this.#hopeless >= HOPELESS;
  }

  #batch(fd: number, at: number, frame: number, count: number): void {
    const { cache, domain, value, tags } = this.#task;
    const bytes = count * TAG_PAGE;
    if ('known' in tags) {
      this.#tags.set(tags.known.subarray(frame * TAG_BYTES, (frame + count) * TAG_BYTES));
      native().cacheHas(cache, this.#tags.subarray(0, count * TAG_BYTES), this.#there);
      if (this.#hasAll(count)) return; // most of a guest that came from here before: nothing is read
    }
    for (let got = 0; got < bytes;) {
      const some = readSync(fd, this.#pages, got, bytes - got, at * TAG_PAGE + got);
      if (some === 0) throw new PagetideError('PT_MEMORY_FILE', `the memory file ends before frame ${frame + count}`);
      got += some;
    }
    if ('key' in tags) {
      native().tagPages(tags.key, this.#pages, count, this.#tags);
      native().cacheHas(cache, this.#tags.subarray(0, count * TAG_BYTES), this.#there);
    }
    for (let i = 0; i < count; i++) {
      if (isZeroTag(this.#tags, i)) continue;
      this.#kept.pages++;
      if (this.#there[i] === 1) this.#kept.present++;
      else if (this.#kept.inserted < this.#task.budget)
        this.#take(native().cacheInsert(cache, domain, this.#tags, i * TAG_BYTES, this.#pages, i * TAG_PAGE, value));
    }
  }

  /** Whether each of these pages is zero or in the cache already; counts them then. */
  #hasAll(count: number): boolean {
    let there = 0;
    for (let i = 0; i < count; i++) {
      if (isZeroTag(this.#tags, i)) continue;
      if (this.#there[i] !== 1) return false;
      there++;
    }
    this.#kept.pages += there;
    this.#kept.present += there;
    return true;
  }

  #take(insertion: Insertion): void {
    const { Inserted, Present, Full, Lost, Unverified } = Insertion;
    if (insertion === Inserted) this.#kept.inserted++;
    else if (insertion === Present) this.#kept.present++;
    else this.#kept.refused++;
    if (insertion === Full) this.#hopeless++;
    else if (insertion === Lost || insertion === Unverified) this.#hopeless = HOPELESS;
    else this.#hopeless = 0;
  }
}
