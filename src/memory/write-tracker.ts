/**
 * Which frames of a running guest were written since the last scan, without stopping it: a typed face of
 * native/core/write_tracking.h, where the argument stands why nothing is lost.
 *
 * The order that callers keep: scan first, read the frames then. Whatever is written after a frame was armed again is in the next
 * pass; read before, it would be missed.
 *
 * What it doesn't see, and who therefore refuses it: writes by other processes or by `write(2)` (vhost-user), DMA that was
 * under way (O_DIRECT: stop the guest, then scan), holes punched into shared memory, also where a page of zeros has been read in there
 * since (`countChanges` tells that there were any).
 */
import { PagetideError } from '../errors.ts';
import { native, type MemoryRegion, type NativeWriteTracker, type UserfaultProbe } from './native.ts';

export interface WriteTrackerOptions {
  /** The guest's process. */
  pid: number;
  /**
   * A userfaultfd in that process, made with {@link trackingFeatures} (`native().attach(pid, trackingFeatures())`), for tracking
   * alone: registering takes memory away from whatever else it served. The tracker owns it from now on, unless the constructor
   * throws.
   */
  uffd: number;
  /** As for a session: disjoint, without gaps in offset. */
  regions: readonly MemoryRegion[];
  /** Bytes: 4096 or 2 MiB. Runs count frames of this size. */
  pageSize: number;
}

/** Features to negotiate for the userfaultfd of a {@link WriteTracker}. */
export function trackingFeatures(): bigint {
  return native().trackingFeatures;
}

/**
 * Refuses a host whose kernel can't track writes, with a hint. Where this process may not create a userfaultfd at all, only the
 * scan is looked at: a guest's own may still do.
 * @throws PT_UNSUPPORTED_HOST
 */
export function requireTracking({ features, pagemapScan }: UserfaultProbe = native().probe()): void {
  const lacks: string[] = [];
  if (!pagemapScan) lacks.push('PAGEMAP_SCAN');
  const missing = features === undefined ? 0n : trackingFeatures() & ~features;
  if (missing !== 0n) lacks.push(`userfaultfd features 0x${missing.toString(16)}`);
  if (lacks.length === 0) return;
  throw new PagetideError('PT_UNSUPPORTED_HOST', `this kernel can't track writes: it lacks ${lacks.join(' and ')}`, {
    hint: 'Tracking writes needs Linux 6.7 or newer; without it every frame has to be read again.',
  });
}

/** Runs that one native call can report, unless the constructor was told another number. */
const RUNS = 4096;

export class WriteTracker {
  /** Frames in all regions. */
  readonly frames: number;
  readonly #native: NativeWriteTracker;
  readonly #runs: Uint32Array;

  /**
   * Begins to track. The first {@link scan} reports every frame.
   * @param capacity runs (pairs) that {@link scan} gives at once, 1 to 2^20
   * @throws PT_UNSUPPORTED_HOST without the kernel's help (Linux 6.7), PT_VMM_GONE where the process is gone, PT_BAD_ARGUMENT
   * where regions, process and userfaultfd don't fit together, PT_NO_PERMISSION
   */
  constructor({ pid, uffd, regions, pageSize }: WriteTrackerOptions, capacity = RUNS) {
    if (!Number.isInteger(capacity) || capacity < 1 || capacity > 2 ** 20)
      throw new PagetideError('PT_BAD_ARGUMENT', `a scan gives 1 to 2^20 runs at once, not ${capacity}`);
    if (!Number.isInteger(pid) || pid < 1 || pid >= 2 ** 31)
      throw new PagetideError('PT_BAD_ARGUMENT', `no process ${pid}`);
    if (!Number.isInteger(uffd) || uffd < 0 || uffd >= 2 ** 31)
      throw new PagetideError('PT_BAD_ARGUMENT', `no descriptor ${uffd}`);
    if (pageSize !== 4096 && pageSize !== 2 ** 21)
      throw new PagetideError('PT_BAD_ARGUMENT', `page size must be 4096 or 2097152, not ${pageSize}`);
    this.#runs = new Uint32Array(2 * capacity);
    const flat = Float64Array.from(regions.flatMap(({ hostAddress, size, offset }) => [hostAddress, size, offset]));
    this.#native = native().createWriteTracker(pid, uffd, pageSize, flat);
    this.frames = this.#native.frames;
  }

  /**
   * Tracks a process that is no child of this one, through a userfaultfd made inside it; see native/core/attach.h.
   * @returns the tracker, and the userfaultfd's number in the process: `native().closeRemote(pid, remoteFd)` after `close()`
   * removes it there
   * @throws as the constructor and `native().attach`; nothing is left in the process then
   */
  static attach(options: Omit<WriteTrackerOptions, 'uffd'>): { tracker: WriteTracker; remoteFd: number } {
    requireTracking();
    const { fd, remoteFd } = native().attach(options.pid, trackingFeatures());
    try {
      return { tracker: new WriteTracker({ ...options, uffd: fd }), remoteFd };
    } catch (error) {
      native().close(fd);
      try {
        native().closeRemote(options.pid, remoteFd);
      } catch {
        // the process has gone, and its descriptors with it; what went wrong first says more
      }
      throw error;
    }
  }

  /**
   * One whole pass: every frame written since it was last reported, as disjoint runs. Each frame is armed again when it is
   * reported.
   * @param take called for each run: first frame, number of frames. It may read the frames at once; when it throws, the rest
   * of what was armed is lost, and so is the tracker.
   * @returns frames reported
   * @throws PT_VMM_GONE when the process has ended; PT_SYSCALL when the memory was mapped anew. The tracker is worth nothing then: make
   * another one, whose first pass reports everything.
   */
  scan(take: (first: number, count: number) => void): number {
    let frames = 0;
    for (;;) {
      const got = this.#native.scan(this.#runs);
      const runs = got < 0 ? -1 - got : got;
      for (let i = 0; i < 2 * runs; i += 2) {
        frames += this.#runs[i + 1]!;
        take(this.#runs[i]!, this.#runs[i + 1]!);
      }
      if (got >= 0) return frames;
    }
  }

  /** Ends tracking and closes the userfaultfd here (the one inside the guest: `closeRemote`). The guest isn't touched. Idempotent. */
  close(): void {
    this.#native.close();
  }
}
