/**
 * The tags of a guest that runs here, followed as it writes: its memory files, its manifest, and what is known of each frame.
 *
 *                    written, or never tagged                 tag is another than before
 *   scan, markAll ───────────────────────────► due ── tagDue ───────────────────────────► changed
 *                                                     │
 *                                                     └──► listed in the resident index
 *
 * Track first, then read: a frame is armed by the scan that makes it due, and read after that, so whatever is written after the
 * reading is reported by the next scan. A frame stops being due before it is read, for the same reason. So a manifest is that of
 * the memory once a scan, of a guest that stands still, was followed by {@link GuestTags.tagDue} to its end; and until then the tags
 * of frames that are due are worth nothing but a guess.
 *
 * What changes a memory file other than by a mapping is not tracked: above all a page that is punched out, which reads as zeros then and is
 * neither written nor, once it was read, a hole. The kernel tells that something of the kind was done to a file, not where. So then all of its frames are
 * due: right, and slow only for guests that give memory back. The scan comes first and the question after it, for the reason above: a change that is
 * told is made before frames are read, and one that is told later makes them due again. A guest that stands still has no such call under way.
 *
 * Whoever follows a guest hands this object on to the next, with tracker, manifest and all (see guest-watch.ts and
 * ../migration/guest-scan.ts): what was tagged once is not tagged again. One call at a time.
 */
import { closeSync, openSync } from 'node:fs';
import type { Logger } from 'pino';
import { asPagetideError, PagetideError } from '../errors.ts';
import type { GuestRecord } from '../guests/driver.ts';
import { findRegions } from '../guests/qemu/memory-map.ts';
import { native } from '../memory/native.ts';
import { WriteTracker } from '../memory/write-tracker.ts';
import { Manifest } from './manifest.ts';
import type { ResidentFile, ResidentIndex } from './resident.ts';
import type { TagPool } from './tag-pool.ts';
import { isZeroTag, sameTag } from './tag-runs.ts';
import { HASH_BYTES, TAG_BYTES, TAG_PAGE, type DomainKey } from './tags.ts';

/** Frames in one native call: a batch is the unit in which it reads. */
const BATCH = 512;
/** Frames that are handed to the workers at once, and listed when they come back. */
const PIECE = 1 << 16;
/** Frames that are listed at once: under a millisecond. */
const PIECE_LISTED = 4096;
/** Frames in a row that are tagged in this thread at once; more go to the workers. */
const HERE = 2048;
/** The same where somebody paces it: this thread is to be held up for less than a millisecond. */
const HERE_PACED = 64;
/** Short runs, tagged here, between two pauses. */
const RUNS_A_PAUSE = 32;
const SCRATCH_BYTES = 256 << 10;

export interface GuestTagsOptions {
  record: GuestRecord;
  /** Closed with this object. */
  key: DomainKey;
  pool: TagPool;
  log: Logger;
  /** Lists what is tagged, until this object is closed. */
  resident?: { index: ResidentIndex; domain: number };
  /** What the memory held a while ago, made with that key; taken over. Guesses: every frame is due all the same. */
  guesses?: Manifest;
}

/** How {@link GuestTags.tagDue} goes about it. */
export interface Pace {
  /** Awaited after each piece of work, with what it took in milliseconds; false ends the call, and the rest stays due. */
  pause: (busyMs: number) => Promise<boolean>;
}

interface OpenFile {
  fd: number;
  /** First frame and frames, of 4096 bytes. */
  first: number;
  frames: number;
  listing: ResidentFile | undefined;
  /** While writes are tracked: its changes by other ways, and how many are known. */
  changes: { watch: number; known: number } | undefined;
}

export class GuestTags {
  readonly manifest: Manifest;
  /** A byte a frame, 1: its tag has become another one. For whoever tells them on; only that one sets them back. */
  readonly changed: Uint8Array;
  readonly record: GuestRecord;
  readonly #key: DomainKey;
  readonly #pool: TagPool;
  readonly #log: Logger;
  readonly #files: OpenFile[] = [];
  readonly #abort = new AbortController();
  readonly #scratch = Buffer.allocUnsafeSlow(SCRATCH_BYTES);
  /** A byte a frame, 1: its tag has to be made. */
  readonly #due: Uint8Array;
  #tracker: WriteTracker | undefined;
  #remoteFd = -1;
  #unlocated = 0;
  #tagging: Promise<unknown> = Promise.resolve();
  #closed = false;

  /** Every frame is due. @throws PagetideError `PT_MEMORY_FILE`; `PT_NO_SPACE` where the resident index is full. The key is closed then */
  constructor({ record, key, pool, log, resident, guesses }: GuestTagsOptions) {
    this.record = record;
    this.#key = key;
    this.#pool = pool;
    this.#log = log;
    const frames = record.description.memory.size / TAG_PAGE;
    this.manifest = guesses?.frames === frames ? guesses : new Manifest(frames);
    this.changed = new Uint8Array(frames);
    this.#due = new Uint8Array(frames).fill(1);
    try {
      for (const { path, size, offset } of record.files) {
        const file: OpenFile = {
          fd: openFile(path),
          first: offset / TAG_PAGE,
          frames: size / TAG_PAGE,
          listing: undefined,
          changes: undefined,
        };
        this.#files.push(file);
        if (resident !== undefined) file.listing = resident.index.add({ ...file, domain: resident.domain, key });
      }
    } catch (error) {
      this.close();
      throw error;
    }
  }

  /** Whether writes are tracked: without it every scan makes every frame due. */
  get tracked(): boolean {
    return this.#tracker !== undefined;
  }

  /** Frames that the last scan made due because their file was changed, and not in a way that tells where: see above. */
  get unlocated(): number {
    return this.#unlocated;
  }

  /** Whether some frame is. */
  get isDue(): boolean {
    return this.#due.includes(1);
  }

  /**
   * Begins to track writes, where that is possible, and says why not elsewhere; every frame is due.
   * @param arm calls its argument, which makes the first scan, while no device may write; without it, it is called at once
   */
  async track(arm: (scan: () => void) => Promise<void> | void = (scan) => scan()): Promise<void> {
    this.#untrack();
    this.markAll();
    const { pid, files, pageSize } = this.record;
    try {
      const regions = await findRegions(pid, files);
      if (this.#closed) return; // nobody would take it out of the guest again
      for (const file of this.#files) file.changes = watchChanges(file.fd);
      const { tracker, remoteFd } = WriteTracker.attach({ pid, regions, pageSize });
      this.#tracker = tracker;
      this.#remoteFd = remoteFd;
      // reports every frame, and arms them
      await arm(() => void tracker.scan(() => undefined));
    } catch (error) {
      this.#untrack();
      const why = asPagetideError(error);
      this.#log.warn(
        { code: why.code },
        `writes of the guest can't be tracked, all of its memory is read each time: ${why.message}`,
      );
    }
  }

  /** Ends tracking; nothing of it is left in the guest. */
  untrack(): void {
    this.#untrack();
  }

  /**
   * Makes due what was written since the last scan; everything, where that is not known. A tracker that fails is given up.
   * @returns frames that the guest has written, or all
   * @throws PagetideError `PT_VMM_GONE`
   */
  scan(): number {
    this.#unlocated = 0;
    if (this.#tracker === undefined) return this.markAll();
    const parts = this.record.pageSize / TAG_PAGE;
    try {
      const due = (first: number, count: number) => this.#due.fill(1, first * parts, (first + count) * parts);
      return parts * this.#tracker.scan(due) + this.#markChanged();
    } catch (cause) {
      this.#untrack();
      const error = asPagetideError(cause);
      if (error.code === 'PT_VMM_GONE') throw error;
      this.#log.warn({ code: error.code }, `tracking the guest's writes failed: ${error.message}`);
      return this.markAll();
    }
  }

  /** Makes every frame due: returns how many. */
  markAll(): number {
    this.#due.fill(1);
    return this.#due.length;
  }

  /**
   * Tags what is due.
   * @returns frames tagged
   * @throws PagetideError `PT_CANCELLED` when it is closed meanwhile, and what {@link TagPool.tag} throws: what was not tagged stays due
   */
  async tagDue(pace?: Pace): Promise<number> {
    let tagged = 0;
    let busyMs = 0;
    let runs = 0;
    const most = pace === undefined ? PIECE : BATCH;
    const here = pace === undefined ? HERE : HERE_PACED;
    for (const file of this.#files) {
      const end = file.first + file.frames;
      for (let at = this.#nextDue(file.first, end); at < end; at = this.#nextDue(at, end)) {
        const until = this.#due.indexOf(0, at);
        const count = Math.min(most, (until < 0 ? end : Math.min(until, end)) - at);
        const began = performance.now();
        await this.#tag(file, at - file.first, count, count <= here);
        busyMs += performance.now() - began;
        tagged += count;
        at += count;
        if (pace === undefined || (count <= here && ++runs < RUNS_A_PAUSE)) continue;
        if (!(await pace.pause(busyMs))) return tagged;
        busyMs = runs = 0;
      }
    }
    if (pace !== undefined && busyMs > 0) await pace.pause(busyMs);
    return tagged;
  }

  /**
   * Lists the guesses that this began with, so that other guests need not wait until all of this one's memory was tagged: whoever looks
   * a page up compares it with its tag, and a guess that is wrong costs a miss and goes. Before anything is tagged.
   */
  async listGuesses(pace: Pace): Promise<void> {
    for (const { first, frames, listing } of this.#files) {
      for (let at = 0; at < frames; at += PIECE_LISTED) {
        const began = performance.now();
        listing?.set(at, Math.min(PIECE_LISTED, frames - at), this.manifest.tags, first + at);
        if (!(await pace.pause(performance.now() - began))) return;
      }
    }
  }

  /** Frames whose page is gone read as zero, and no scan reports them. */
  dropHoles(): void {
    for (const file of this.#files) {
      const extents = native().dataExtents(file.fd, 0, file.frames * TAG_PAGE);
      let at = 0;
      const holes = (until: number): void => {
        for (; at < until; at++) {
          const frame = file.first + at;
          if (isZeroTag(this.manifest.tags, frame)) continue;
          this.manifest.tags.fill(0, frame * TAG_BYTES, (frame + 1) * TAG_BYTES);
          this.manifest.touch(frame, 1);
          this.changed[frame] = 1;
          file.listing?.set(at, 1, this.manifest.tags, frame);
        }
      };
      for (const { offset, length } of extents) {
        holes(Math.floor(offset / TAG_PAGE));
        at = Math.max(at, Math.ceil((offset + length) / TAG_PAGE));
      }
      holes(file.frames);
    }
  }

  /**
   * Reads frames again and compares them with the manifest, which stays as it is: for a guest that stands still.
   * @param first frame, of 4096 bytes
   * @returns false where the page of one of them is not that of its tag
   * @throws PagetideError `PT_CANCELLED` when it is closed meanwhile, and what {@link TagPool.tag} throws
   */
  async isAsTagged(first: number, count: number): Promise<boolean> {
    const found = new Uint8Array(new SharedArrayBuffer(count * TAG_BYTES));
    for (const file of this.#files) {
      const from = Math.max(first, file.first);
      const frames = Math.min(first + count, file.first + file.frames) - from;
      if (frames <= 0) continue;
      if (this.#closed) throw new PagetideError('PT_CANCELLED', 'tagging was cancelled');
      const tagging = this.#pool.tag({
        key: this.#key,
        fd: file.fd,
        fileOffset: (from - file.first) * TAG_PAGE,
        first: 0,
        count: frames,
        tags: found.subarray((from - first) * TAG_BYTES),
        signal: this.#abort.signal,
      });
      this.#tagging = tagging.catch(() => undefined);
      await tagging;
    }
    return Buffer.compare(found, this.manifest.tags.subarray(first * TAG_BYTES, (first + count) * TAG_BYTES)) === 0;
  }

  /** Takes the guest out of the resident index, and lists nothing of it any more. When this returns, nobody reads from it. */
  unlist(): void {
    for (const file of this.#files) {
      file.listing?.remove();
      file.listing = undefined;
    }
  }

  /** Ends whatever is under way, and tracking; takes the guest out of the resident index; closes the key. Idempotent. */
  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#abort.abort();
    this.#untrack();
    this.unlist();
    // a worker may be reading from them still
    void this.#tagging.finally(() => {
      for (const { fd } of this.#files) closeSync(fd);
      this.#key.close();
    });
  }

  /** Makes due all frames of files that were changed other than by a mapping. After the tracker's scan. */
  #markChanged(): number {
    let frames = 0;
    for (const file of this.#files) {
      const changes = file.changes!;
      const count = native().countChanges(changes.watch);
      if (count === changes.known) continue;
      changes.known = count;
      this.#due.fill(1, file.first, file.first + file.frames);
      frames += file.frames;
    }
    this.#unlocated = frames;
    return frames;
  }

  #nextDue(from: number, end: number): number {
    const at = this.#due.indexOf(1, from);
    return at < 0 ? end : at;
  }

  #untrack(): void {
    this.#tracker?.close();
    this.#tracker = undefined;
    for (const file of this.#files) {
      if (file.changes !== undefined) native().unwatchChanges(file.changes.watch);
      file.changes = undefined;
    }
    if (this.#remoteFd < 0) return;
    try {
      native().closeRemote(this.record.pid, this.#remoteFd);
    } catch (error) {
      // its process has ended, or does so: nothing to close then
      this.#log.debug({ error: asPagetideError(error).message }, 'the userfaultfd for tracking could not be closed');
    }
    this.#remoteFd = -1;
  }

  /** Tags frames [first, first + count) of a file, notes which tags have changed, and lists them. */
  async #tag(file: OpenFile, first: number, count: number, here: boolean): Promise<void> {
    const from = file.first + first;
    const { manifest } = this;
    const before = new Uint8Array(manifest.tags.subarray(from * TAG_BYTES, (from + count) * TAG_BYTES));
    const hashes = file.listing && new Uint8Array(new SharedArrayBuffer(count * HASH_BYTES));
    this.#due.fill(0, from, from + count);
    try {
      if (this.#closed) throw new PagetideError('PT_CANCELLED', 'tagging was cancelled');
      if (here) this.#tagHere(file, first, count, hashes);
      else await this.#tagByWorkers(file, first, count, hashes);
    } catch (error) {
      // some of them may have been written
      this.#due.fill(1, from, from + count);
      this.changed.fill(1, from, from + count);
      manifest.touch(from, count);
      throw error;
    }
    const after = manifest.tags.subarray(from * TAG_BYTES, (from + count) * TAG_BYTES);
    // also where no tag has changed: the index drops frames that it met while they were being written
    file.listing?.set(first, count, after, 0, hashes);
    if (Buffer.compare(before, after) === 0) return;
    for (let i = 0; i < count; i++) if (!sameTag(before, i, after, i)) this.changed[from + i] = 1;
    manifest.touch(from, count);
  }

  #tagHere(file: OpenFile, first: number, count: number, hashes: Uint8Array | undefined): void {
    for (let at = first; at < first + count; at += BATCH) {
      const some = Math.min(BATCH, first + count - at);
      const { tags } = this.manifest;
      const ours = hashes?.subarray((at - first) * HASH_BYTES, (at - first + some) * HASH_BYTES);
      native().tagFile(this.#key.id, file.fd, at * TAG_PAGE, some, tags, file.first + at, this.#scratch, ours);
    }
  }

  async #tagByWorkers(file: OpenFile, first: number, count: number, hashes: Uint8Array | undefined): Promise<void> {
    const tags = this.manifest.tags.subarray(file.first * TAG_BYTES, (file.first + file.frames) * TAG_BYTES);
    const range = { key: this.#key, fd: file.fd, first, count, tags, signal: this.#abort.signal };
    const tagging = this.#pool.tag(hashes === undefined ? range : { ...range, hashes });
    this.#tagging = tagging.catch(() => undefined);
    await tagging;
  }
}

function watchChanges(fd: number): { watch: number; known: number } {
  const watch = native().watchChanges(fd);
  return { watch, known: native().countChanges(watch) };
}

function openFile(path: string): number {
  try {
    return openSync(path, 'r');
  } catch (cause) {
    throw new PagetideError('PT_MEMORY_FILE', "cannot read the guest's memory", { cause });
  }
}
