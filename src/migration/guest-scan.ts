/**
 * The manifest of a guest that runs here, made while it runs and finished while it stands still.
 *
 *   open ──► build ────────────────► catchUp ──────────► finish ──► close
 *            arm, tag every frame    what was written    guest paused: the rest,
 *                                    since, some passes  and the end of the manifest
 *
 * Track first, then read: a frame is armed before its content is tagged, so whatever is written after the reading is
 * reported by the next pass. The last pass runs while the guest stands still, hence its manifest is that of the memory that
 * the destination gets. Frames that lost their page (a balloon, holes punched into the file) are not reported as written;
 * the last pass compares the holes.
 *
 * Where writes can't be tracked (the kernel, or the right to look into the process, is missing), every frame is tagged in
 * the last pass instead: right all the same, and the guest stands still for longer.
 */
import { closeSync, openSync } from 'node:fs';
import type { Logger } from 'pino';
import { asPagetideError, PagetideError } from '../errors.ts';
import type { GuestRecord } from '../guests/driver.ts';
import { findRegions } from '../guests/qemu/memory-map.ts';
import { native } from '../memory/native.ts';
import { WriteTracker } from '../memory/write-tracker.ts';
import { Manifest } from '../pages/manifest.ts';
import type { TagPool } from '../pages/tag-pool.ts';
import { isZeroTag } from '../pages/tag-runs.ts';
import { TAG_BYTES, TAG_PAGE, type DomainKey } from '../pages/tags.ts';
import { encodeChunks, encodeManifestEnd, encodeTags } from '../transport/wire-tags.ts';

/** Passes of one {@link GuestScan.catchUp}, at most. */
const PASSES = 4;
/** So few frames written in a pass that another would not make the last one shorter. */
const FEW = 512;
/** Frames in one native call: a batch is the unit in which it reads. */
const BATCH = 512;
/** Frames that are tagged in this thread at once; more go to the workers. */
const HERE = 2048;
const SCRATCH_BYTES = 256 << 10;

interface OpenFile {
  fd: number;
  /** First frame and frames, of 4096 bytes. */
  first: number;
  frames: number;
}

export class GuestScan {
  readonly manifest: Manifest;
  readonly #record: GuestRecord;
  readonly #key: DomainKey;
  readonly #pool: TagPool;
  readonly #log: Logger;
  readonly #files: OpenFile[] = [];
  readonly #abort = new AbortController();
  readonly #scratch = Buffer.allocUnsafeSlow(SCRATCH_BYTES);
  /** A bit would do; a byte a frame is simpler. 1: its tag has changed since the destination was told. */
  readonly #untold: Uint8Array;
  #tracker: WriteTracker | undefined;
  #remoteFd = -1;
  #closed = false;

  /** @throws PagetideError `PT_MEMORY_FILE` */
  constructor(record: GuestRecord, key: DomainKey, pool: TagPool, log: Logger) {
    this.#record = record;
    this.#key = key;
    this.#pool = pool;
    this.#log = log;
    const frames = record.description.memory.size / TAG_PAGE;
    this.manifest = new Manifest(frames);
    this.#untold = new Uint8Array(frames);
    try {
      for (const { path, size, offset } of record.files)
        this.#files.push({ fd: openSync(path, 'r'), first: offset / TAG_PAGE, frames: size / TAG_PAGE });
    } catch (cause) {
      this.close();
      throw new PagetideError('PT_MEMORY_FILE', "cannot read the guest's memory", { cause });
    }
  }

  /** Makes the manifest while the guest runs. @throws PagetideError also `PT_CANCELLED` when it is closed meanwhile */
  async build(): Promise<void> {
    await this.#track();
    for (const file of this.#files) await this.#tag(file, 0, file.frames);
    this.manifest.touch(0, this.manifest.frames);
    await this.catchUp();
  }

  /** Tags what was written meanwhile, until there is little of it: right before the guest is paused, which then stands still for less. */
  async catchUp(): Promise<void> {
    for (let pass = 0; pass < PASSES && this.#tracker !== undefined; pass++) {
      if ((await this.#refresh(this.#tracker)) <= FEW) break;
    }
  }

  /** Frames that tell the destination the chunks that it asked for: [first chunk, count, …], in order. Once, after {@link build}.
   * @throws PagetideError `PT_PEER_FAILED` */
  tell(wanted: readonly number[]): Buffer[] {
    // from outside: what is in order is at most all chunks, once
    let end = 0;
    for (let i = 0; i < wanted.length; i += 2) {
      const [first, count] = [wanted[i]!, wanted[i + 1] ?? 0];
      if (first < end || count < 1 || first + count > this.manifest.chunks)
        throw new PagetideError('PT_PEER_FAILED', 'the destination asks for chunks that this manifest lacks');
      end = first + count;
    }
    this.#untold.fill(0);
    return encodeChunks(this.manifest, wanted);
  }

  /** The guest stands still: the frames that make the destination's manifest this one. Ends tracking. */
  async finish(): Promise<Buffer[]> {
    if (this.#tracker !== undefined) await this.#refresh(this.#tracker);
    else await this.#tagAllAgain();
    this.#dropHoles();
    this.#untrack();
    const frames: Buffer[] = [];
    for (let first = this.#untold.indexOf(1); first >= 0; first = this.#untold.indexOf(1, first)) {
      let end = this.#untold.indexOf(0, first);
      if (end < 0) end = this.#untold.length;
      frames.push(...encodeTags(this.manifest, first, end - first));
      first = end;
    }
    frames.push(encodeManifestEnd(this.manifest));
    return frames;
  }

  /** Ends whatever is under way. Idempotent. */
  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#abort.abort();
    this.#untrack();
    // a worker may be reading from them still
    void this.#tagging.finally(() => {
      for (const { fd } of this.#files) closeSync(fd);
      this.#key.close();
    });
  }

  #tagging: Promise<unknown> = Promise.resolve();

  async #track(): Promise<void> {
    const { pid, files, pageSize } = this.#record;
    try {
      const regions = await findRegions(pid, files);
      if (this.#closed) return; // nobody would take it out of the guest again
      const { tracker, remoteFd } = WriteTracker.attach({ pid, regions, pageSize });
      this.#tracker = tracker;
      this.#remoteFd = remoteFd;
      tracker.scan(() => undefined); // reports every frame, and arms them
    } catch (error) {
      this.#untrack();
      const why = asPagetideError(error);
      this.#log.warn(
        { code: why.code },
        `writes of the guest can't be tracked, it will stand still for longer: ${why.message}`,
      );
    }
  }

  #untrack(): void {
    this.#tracker?.close();
    this.#tracker = undefined;
    if (this.#remoteFd < 0) return;
    try {
      native().closeRemote(this.#record.pid, this.#remoteFd);
    } catch (error) {
      // its process has ended, or does so: nothing to close then
      this.#log.debug({ error: asPagetideError(error).message }, 'the userfaultfd for tracking could not be closed');
    }
    this.#remoteFd = -1;
  }

  /** Tags what was written since the last pass; resolves to how many frames that were. */
  async #refresh(tracker: WriteTracker): Promise<number> {
    const parts = this.#record.pageSize / TAG_PAGE;
    const runs: number[] = [];
    const count = tracker.scan((first, frames) => runs.push(first * parts, frames * parts));
    for (const file of this.#files) {
      for (let i = 0; i < runs.length; i += 2) {
        const first = Math.max(0, runs[i]! - file.first);
        const end = Math.min(file.frames, runs[i]! + runs[i + 1]! - file.first);
        if (first < end) await this.#tagAgain(file, first, end - first);
      }
    }
    return count * parts;
  }

  async #tagAllAgain(): Promise<void> {
    for (const file of this.#files) await this.#tagAgain(file, 0, file.frames);
  }

  /** Tags frames [first, first + count) of a file, and notes which tags have changed. */
  async #tagAgain(file: OpenFile, first: number, count: number): Promise<void> {
    const from = file.first + first;
    const before = this.manifest.tags.slice(from * TAG_BYTES, (from + count) * TAG_BYTES);
    if (count > HERE) await this.#tag(file, first, count);
    else this.#tagHere(file, first, count);
    const after = this.manifest.tags.subarray(from * TAG_BYTES, (from + count) * TAG_BYTES);
    if (Buffer.compare(before, after) === 0) return;
    for (let i = 0; i < count; i++) {
      const at = i * TAG_BYTES;
      if (Buffer.compare(before.subarray(at, at + TAG_BYTES), after.subarray(at, at + TAG_BYTES)) !== 0)
        this.#untold[from + i] = 1;
    }
    this.manifest.touch(from, count);
  }

  #tagHere(file: OpenFile, first: number, count: number): void {
    for (let at = first; at < first + count; at += BATCH) {
      const some = Math.min(BATCH, first + count - at);
      const { tags } = this.manifest;
      native().tagFile(this.#key.id, file.fd, at * TAG_PAGE, some, tags, file.first + at, this.#scratch);
    }
  }

  #tag(file: OpenFile, first: number, count: number): Promise<unknown> {
    const tags = this.manifest.tags.subarray(file.first * TAG_BYTES, (file.first + file.frames) * TAG_BYTES);
    const tagging = this.#pool.tag({ key: this.#key, fd: file.fd, first, count, tags, signal: this.#abort.signal });
    this.#tagging = tagging.catch(() => undefined);
    return tagging;
  }

  /** Frames whose page is gone read as zero. */
  #dropHoles(): void {
    for (const file of this.#files) {
      const extents = native().dataExtents(file.fd, 0, file.frames * TAG_PAGE);
      let at = 0;
      const holes = (until: number): void => {
        for (; at < until; at++) {
          const frame = file.first + at;
          if (isZeroTag(this.manifest.tags, frame)) continue;
          this.manifest.tags.fill(0, frame * TAG_BYTES, (frame + 1) * TAG_BYTES);
          this.manifest.touch(frame, 1);
          this.#untold[frame] = 1;
        }
      };
      for (const { offset, length } of extents) {
        holes(Math.floor(offset / TAG_PAGE));
        at = Math.max(at, Math.ceil((offset + length) / TAG_PAGE));
      }
      holes(file.frames);
    }
  }
}
