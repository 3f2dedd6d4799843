/**
 * The manifest of a guest that leaves, made while it runs and finished while it stands still.
 *
 *   open ──► build ────────────────► catchUp ──────────► finish ──► close
 *            arm, tag every frame    what was written    guest paused: the rest,
 *                                    since, some passes  and the end of the manifest
 *
 * Tags that a watch has kept fresh ({@link GuestWatch.handOver}) are taken over with their tracker. Where the guest's devices are always
 * the same, what was tagged then and not written since is not tagged again. Elsewhere a disk that wrote behind the tracking may have
 * been plugged in and out again since, and left a tag that is old; an old tag would bring the old page from a cache. What is there now
 * is asked for first, so tagging every frame once more, after a scan and while the guest runs, makes them right. Why no write is lost is argued in ../pages/guest-tags.ts: the last pass runs while the guest
 * stands still, hence its manifest is that of the memory that the destination gets. Frames that lost their page (a balloon, holes
 * punched into the file) are not reported as written; the last pass compares the holes.
 *
 * Where a disk may write guest memory behind the tracking (`tracking: 'hints'`, see ../guests/tracking.ts), a write by DMA that is
 * under way while the guest is scanned is reported by no later scan. A guest that was stopped has no I/O under way. So then:
 *
 *   with `drained`   it is stopped for each scan, for as long as that takes, and every frame is tagged after the first of them:
 *                    no I/O spans a scan, so what is not reported was not written
 *   without          what was tagged while it ran tells the destination what to expect, and every frame is tagged in the last pass
 *
 * Where writes can't be tracked (the kernel, or the right to look into the process, is missing), every frame is tagged in
 * the last pass, too: right all the same, and the guest stands still for longer.
 */
import { PagetideError } from '../errors.ts';
import type { WriteTracking } from '../guests/tracking.ts';
import type { GuestTags } from '../pages/guest-tags.ts';
import type { Manifest } from '../pages/manifest.ts';
import { encodeChunks, encodeManifestEnd, encodeTags } from '../transport/wire-tags.ts';

/** Passes of one {@link GuestScan.catchUp}, at most. */
const PASSES = 4;
/** So few frames written in a pass that another would not make the last one shorter. */
const FEW = 512;

export interface GuestScanOptions {
  /** Asked when {@link GuestScan.build} begins. Without it: `hints`, which is right for every guest. */
  tracking?: () => Promise<WriteTracking>;
  /** Stops the guest, which drains its I/O, calls `work`, and lets it run on. Used where tracking gives hints only. */
  drained?: (work: () => void) => Promise<void>;
  /** What tracking is worth, it was worth since the tags were begun: see {@link Vmm.constantDevices}. Without it: nobody knows. */
  constant?: boolean;
}

export class GuestScan {
  readonly manifest: Manifest;
  readonly #tags: GuestTags;
  readonly #options: GuestScanOptions;
  #tracking: WriteTracking = 'hints';

  /** @param tags of the guest, new or handed over by a watch; closed with this object */
  constructor(tags: GuestTags, options: GuestScanOptions = {}) {
    this.#tags = tags;
    this.#options = options;
    this.manifest = tags.manifest;
  }

  /** Makes the manifest while the guest runs. @throws PagetideError also `PT_CANCELLED` when it is closed meanwhile */
  async build(): Promise<void> {
    const tags = this.#tags;
    this.#tracking = (await this.#options.tracking?.()) ?? 'hints';
    if (!tags.tracked) {
      await tags.track(this.#drained);
    } else if (this.#drained !== undefined) {
      // what was tagged so far may be behind what devices wrote
      await this.#scan();
      tags.markAll();
    } else if (this.#options.constant !== true) {
      tags.scan();
      tags.markAll();
    }
    await tags.tagDue();
    await this.catchUp();
  }

  /** Tags what was written meanwhile, until there is little of it: right before the guest is paused, which then stands still for less. */
  async catchUp(): Promise<void> {
    // each drained pass stops the guest
    const passes = this.#drained === undefined ? PASSES : 1;
    for (let pass = 0; pass < passes && this.#tags.tracked; pass++) {
      const written = await this.#scan();
      await this.#tags.tagDue();
      if (written <= FEW) break;
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
    this.#tags.changed.fill(0);
    return encodeChunks(this.manifest, wanted);
  }

  /** The guest stands still: the frames that make the destination's manifest this one. Ends tracking. */
  async finish(): Promise<Buffer[]> {
    const tags = this.#tags;
    tags.scan();
    if (this.#tracking === 'hints' && this.#drained === undefined) tags.markAll();
    await tags.tagDue();
    tags.dropHoles();
    tags.untrack();
    const frames: Buffer[] = [];
    const { changed } = tags;
    for (let first = changed.indexOf(1); first >= 0; first = changed.indexOf(1, first)) {
      let end = changed.indexOf(0, first);
      if (end < 0) end = changed.length;
      frames.push(...encodeTags(this.manifest, first, end - first));
      first = end;
    }
    frames.push(encodeManifestEnd(this.manifest));
    return frames;
  }

  /** After {@link finish}, as long as the guest stands still: see {@link GuestTags.isAsTagged}. */
  isAsTagged(first: number, count: number): Promise<boolean> {
    return this.#tags.isAsTagged(first, count);
  }

  /** Ends whatever is under way. Idempotent. */
  close(): void {
    this.#tags.close();
  }

  /** How a scan stops the guest; undefined where it doesn't, or can't. */
  get #drained(): GuestScanOptions['drained'] {
    return this.#tracking === 'hints' ? this.#options.drained : undefined;
  }

  async #scan(): Promise<number> {
    let written = 0;
    const scan = (): void => {
      written = this.#tags.scan();
    };
    if (this.#drained === undefined) scan();
    else await this.#drained(scan);
    return written;
  }
}
