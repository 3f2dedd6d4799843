/**
 * The manifest of a guest that leaves, made while it runs and finished while it stands still.
 *
 *   open ──► begin ──► offer ──► complete ──► tell ──► catchUp ──────────► finish ──► untrack, close
 *            arm, and tag        what begin     │      what was written    guest paused: the rest,
 *            every frame         left out       │      since, some passes  and the end of the manifest
 *                                               │                            ▲
 *                                               └─► tellAll ─► rescan ─┬─► tellChanged ─┐   where memory is copied in rounds (copying.ts):
 *                                                                ▲     │                │   each round is told as a manifest of its own, with its end
 *                                                                └─────│────────────────┘
 *                                                                      └──► catchUp or finish
 *
 * Tags that a watch has kept fresh ({@link GuestWatch.handOver}) are taken over with their tracker. Where the guest's devices are always
 * the same, what was tagged then and not written since is not tagged again. Elsewhere a disk that wrote behind the tracking may have
 * been plugged in and out again since, and left a tag that is old; an old tag would bring the old page from a cache. What is there now
 * is asked for first, so tagging every frame once more, after a scan and while the guest runs, makes them right. That takes as long as the
 * destination takes to get ready, so it is offered the old tags meanwhile, as the guess that they are.
 *
 * Why no tag that is old is left at the switch:
 *
 *   written after its frame was read    the scan that armed it came before the reading, so a later one reports it: the last of them,
 *   (also right before the pause)       in `finish`, when the guest stands still and every write has been made. It is read after that
 *   old when it was handed over         every frame is due (`begin`) before the old tags are offered, and nothing but `tagDue` takes that back,
 *                                       as it reads the frame; `finish` reads what is due still, also where `complete` failed or never ran
 *   a device that wrote behind it       it was unplugged before the scan in `begin`, its I/O waited for, and `complete` reads later than that;
 *                                       or it is seen after this scan or the next one, as below
 *   offered, then another               `changed` is set for all that becomes another tag since the first offer, whether the destination knows
 *                                       the chunk of that offer or of one that was repeated meanwhile; what it doesn't know is told whole
 *
 * The digest of the last manifest, which both sides make, tells if one was lost. Why no write is lost is argued in ../pages/guest-tags.ts.
 * So the last manifest is that of the memory that the destination gets, however many rounds were told before.
 *
 * Frames that lost their page (holes punched into the file) are not reported as written. That something of the kind was done to a file makes all of
 * its frames due ({@link GuestTags.scan}), and what is due is read: a hole as zeros.
 *
 * A round tells what differs from what was told before, no more: {@link GuestTags.changed} is set where a tag becomes another one, and set back only
 * where it is told. So what a round leaves out, because it ends in the switch, goes with the last pass.
 *
 * Where a disk may write guest memory behind the tracking (`tracking: 'hints'`, see ../guests/tracking.ts), a write by DMA that is
 * under way while the guest is scanned is reported by no later scan. A guest that was stopped has no I/O under way. So then:
 *
 *   with `drained`   it is stopped for each scan, for as long as that takes, and every frame is tagged after the first of them:
 *                    no I/O spans a scan, so what is not reported was not written
 *   without          what was tagged while it ran tells the destination what to expect, and every frame is tagged in the last pass
 *
 * Disks come and go while a guest is copied for minutes. So each scan is followed by the question what tracking is worth, and only then are frames read: a
 * disk that wrote during the scan is either still there, and the guest is drained and scanned once more before its frames are read; or
 * it was unplugged, which waits for its I/O, and what it wrote is there to be read. Once hints, always hints.
 *
 * Where writes can't be tracked (the kernel, or the right to look into the process, is missing), every frame is tagged in
 * each round and in the last pass, too: right all the same, and the guest stands still for longer.
 */
import { PagetideError } from '../errors.ts';
import type { WriteTracking } from '../guests/tracking.ts';
import type { GuestTags } from '../pages/guest-tags.ts';
import { CHUNK_FRAMES, type Manifest } from '../pages/manifest.ts';
import { isZeroTag } from '../pages/tag-runs.ts';
import { encodeChangedTags, encodeChunks, encodeManifestEnd } from '../transport/wire-tags.ts';

/** Passes of one {@link GuestScan.catchUp}, at most. */
const PASSES = 4;
/** So few frames written in a pass that another would not make the last one shorter. */
const FEW = 512;

export interface GuestScanOptions {
  /** Asked after each scan. Without it: `hints`, which is right for every guest. */
  tracking?: () => Promise<WriteTracking>;
  /** Stops the guest, which drains its I/O, calls `work`, and lets it run on. Used where tracking gives hints only. */
  drained?: (work: () => void) => Promise<void>;
  /** What tracking is worth, it was worth since the tags were begun: see {@link Vmm.constantDevices}. Without it: nobody knows. */
  constant?: boolean;
}

/** What a scan between two rounds has found. Frames are of 4096 bytes. */
export interface Rescan {
  /** Frames that had to be tagged: written since the last scan, or all. */
  tagged: number;
  /** Those among them that were tagged only because memory of their file was given back, nobody knows where: {@link GuestTags.unlocated}. */
  unlocated: number;
  /** Frames whose tag is another than what was told last, and those among them that are zero now. */
  changed: number;
  zero: number;
  /** From the last scan to this one, milliseconds. */
  sinceMs: number;
  /** How long scan and tagging took, milliseconds. */
  tagMs: number;
}

export class GuestScan {
  readonly manifest: Manifest;
  readonly #tags: GuestTags;
  readonly #options: GuestScanOptions;
  /** Undefined: nobody has asked yet. */
  #tracking: WriteTracking | undefined;
  #isOffered = false;
  #scannedAt = 0;
  #unlocated = 0;
  #tagged = { frames: 0, ms: 0 };

  /** @param tags of the guest, new or handed over by a watch; closed with this object */
  constructor(tags: GuestTags, options: GuestScanOptions = {}) {
    this.#tags = tags;
    this.#options = options;
    this.manifest = tags.manifest;
  }

  /** Makes the manifest while the guest runs. @throws PagetideError also `PT_CANCELLED` when it is closed meanwhile */
  async build(): Promise<void> {
    await this.begin();
    await this.complete();
  }

  /** The same, but for what {@link complete} does: it is quick where the tags were handed over. */
  async begin(): Promise<void> {
    const tags = this.#tags;
    let isAgain = false;
    if (!tags.tracked) {
      await tags.track();
      this.#scannedAt = performance.now();
      await this.#ask();
      if (this.#drained !== undefined) await this.#scan();
    } else {
      await this.#scan();
      // what was tagged so far may be behind what devices wrote
      isAgain = this.#drained !== undefined || this.#options.constant !== true;
    }
    // where the last pass reads all, how long that takes has to be known
    if (isAgain && this.readsAll) tags.markAll();
    await this.#tagDue();
    if (isAgain && !this.readsAll) tags.markAll();
    else await this.catchUp();
  }

  /**
   * Tags of all chunks, as far as they are known; {@link tell} tells what has become another one since this was called first. Also while
   * {@link complete} is under way: a chunk that is half tagged has a tag that is known nowhere, or one that its frames did have. After {@link begin}.
   */
  offer(): Uint8Array {
    const tags = this.manifest.chunkTags();
    if (!this.#isOffered) this.#tags.changed.fill(0);
    this.#isOffered = true;
    return tags;
  }

  /** What {@link begin} left out, while the guest runs. @throws PagetideError as {@link build} */
  async complete(): Promise<void> {
    if (!this.#tags.isDue) return;
    await this.#tagDue();
    await this.catchUp();
  }

  /** Whether the last pass has to read all of memory, while the guest stands still. After {@link build}. */
  get readsAll(): boolean {
    return !this.#tags.tracked || (this.#tracking !== 'exact' && this.#drained === undefined);
  }

  /** Frames of 4096 bytes that were tagged in a millisecond, of what was tagged so far; undefined where that is nothing. */
  get tagsAMs(): number | undefined {
    const { frames, ms } = this.#tagged;
    return frames === 0 ? undefined : frames / Math.max(ms, 0.001);
  }

  /** Tags what was written meanwhile, until there is little of it: right before the guest is paused, which then stands still for less. */
  async catchUp(): Promise<void> {
    // each drained pass stops the guest
    const passes = this.#drained === undefined ? PASSES : 1;
    for (let pass = 0; pass < passes && this.#tags.tracked; pass++) {
      const written = await this.#scan();
      await this.#tagDue();
      if (written <= FEW) break;
    }
  }

  /**
   * Frames that tell the destination the chunks that it asked for, [first chunk, count, …] in order, and what of the others is not as it was
   * offered. Once, after {@link complete}.
   * @throws PagetideError `PT_PEER_FAILED`
   */
  tell(wanted: readonly number[]): Buffer[] {
    // from outside: what is in order is at most all chunks, once
    let end = 0;
    for (let i = 0; i < wanted.length; i += 2) {
      const [first, count] = [wanted[i]!, wanted[i + 1] ?? 0];
      if (first < end || count < 1 || first + count > this.manifest.chunks)
        throw new PagetideError('PT_PEER_FAILED', 'the destination asks for chunks that this manifest lacks');
      end = first + count;
    }
    const { changed } = this.#tags;
    for (let i = 0; i < wanted.length; i += 2)
      changed.fill(0, wanted[i]! * CHUNK_FRAMES, (wanted[i]! + wanted[i + 1]!) * CHUNK_FRAMES);
    const frames = [...encodeChunks(this.manifest, wanted), ...encodeChangedTags(this.manifest, changed)];
    changed.fill(0);
    return frames;
  }

  /** The same with the end of this manifest: the first round. @throws PagetideError `PT_PEER_FAILED` */
  tellAll(wanted: readonly number[]): Buffer[] {
    return [...this.tell(wanted), encodeManifestEnd(this.manifest)];
  }

  /** While the guest runs: tags what was written since the last scan. @throws PagetideError also `PT_CANCELLED` when it is closed meanwhile */
  async rescan(): Promise<Rescan> {
    const tags = this.#tags;
    const before = this.#scannedAt;
    const began = performance.now();
    await this.#scan();
    const sinceMs = this.#scannedAt - before;
    const tagged = await this.#tagDue();
    const { changed } = tags;
    const unlocated = this.#unlocated;
    const found: Rescan = { tagged, unlocated, changed: 0, zero: 0, sinceMs, tagMs: performance.now() - began };
    for (let frame = changed.indexOf(1); frame >= 0; frame = changed.indexOf(1, frame + 1)) {
      found.changed++;
      if (isZeroTag(this.manifest.tags, frame)) found.zero++;
    }
    return found;
  }

  /** After {@link rescan}, or {@link catchUp}: the frames that make the destination's manifest, as it was told last, this one. */
  tellChanged(): Buffer[] {
    const frames = this.#changes();
    this.#tags.changed.fill(0);
    return frames;
  }

  /**
   * The guest stands still: the frames that make the destination's manifest this one. Tracking goes on, for nothing: it is ended when the
   * guest doesn't wait for that ({@link untrack}).
   */
  async finish(): Promise<Buffer[]> {
    const tags = this.#tags;
    const readsAll = this.readsAll;
    tags.scan();
    if (readsAll) tags.markAll();
    await this.#tagDue();
    return this.#changes();
  }

  /** Ends tracking. After {@link finish}. */
  untrack(): void {
    this.#tags.untrack();
  }

  /** After {@link finish}, as long as the guest stands still: see {@link GuestTags.isAsTagged}. */
  isAsTagged(first: number, count: number): Promise<boolean> {
    return this.#tags.isAsTagged(first, count);
  }

  /** Ends whatever is under way. Idempotent. */
  close(): void {
    this.#tags.close();
  }

  /** How a scan stops the guest; undefined where it doesn't, or can't, or where the last pass reads all anyway. */
  get #drained(): GuestScanOptions['drained'] {
    return this.#tracking === 'hints' && this.#tags.tracked ? this.#options.drained : undefined;
  }

  async #ask(): Promise<void> {
    if (this.#tracking !== 'hints') this.#tracking = (await this.#options.tracking?.()) ?? 'hints';
  }

  async #scan(): Promise<number> {
    let written = 0;
    this.#unlocated = 0;
    const scan = (): void => {
      written += this.#tags.scan();
      this.#unlocated = Math.max(this.#unlocated, this.#tags.unlocated);
      this.#scannedAt = performance.now();
    };
    if (this.#drained === undefined) {
      scan();
      await this.#ask();
    }
    if (this.#drained !== undefined) await this.#drained(scan);
    return written;
  }

  async #tagDue(): Promise<number> {
    const began = performance.now();
    const frames = await this.#tags.tagDue();
    this.#tagged.frames += frames;
    this.#tagged.ms += performance.now() - began;
    return frames;
  }

  #changes(): Buffer[] {
    return [...encodeChangedTags(this.manifest, this.#tags.changed), encodeManifestEnd(this.manifest)];
  }
}
