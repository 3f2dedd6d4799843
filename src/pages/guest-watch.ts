/**
 * Keeps the manifest of a running guest fresh in the background, at a bounded share of one CPU, so that a migration has to tag only
 * what was written last, and so that other guests of its domain find its pages in the resident index.
 *
 *   start ──► track ──► ┌─► scan ──► tag what is due, a piece at a time ──► seen ──► wait ─┐──► handOver: GuestTags, tracker and all
 *                       │           a turn of the agent's CpuShare each                     │──► close: nothing is left in the guest
 *                       └───────────────────────────────────────────────────────────────────┘──► the guest is gone, an error: closed
 *
 * All watches of an agent have one share of one CPU (cpu-share.ts), and wait for their turns at it.
 *
 * It never stops the guest. Every `slowMs` it compares holes, and tags every frame again where writes aren't tracked, or where a disk
 * may write behind the tracking (`hints`, see ../guests/tracking.ts): the tags are guesses then, good enough for the resident index,
 * which verifies, and for a migration, which knows (../migration/guest-scan.ts).
 *
 * For guests that have a domain: its key is given by the caller. Not for a guest that is arriving: its memory belongs to the
 * userfaultfd that brings its pages; start when it is complete.
 */
import { setTimeout as delay } from 'node:timers/promises';
import { asPagetideError, PagetideError } from '../errors.ts';
import { isAlive } from '../guests/process.ts';
import type { WriteTracking } from '../guests/tracking.ts';
import { CpuShare } from './cpu-share.ts';
import type { Manifest } from './manifest.ts';
import { GuestTags, type GuestTagsOptions, type Pace } from './guest-tags.ts';

export interface WatchSettings {
  /** Share of one CPU, above 0 to 1, of all watches of the agent. */
  cpu: number;
  /** From the end of one pass to the beginning of the next, milliseconds. */
  intervalMs: number;
  /** Between two looks at what scans don't report, milliseconds. */
  slowMs: number;
}

export const WATCH_SETTINGS: Readonly<WatchSettings> = { cpu: 0.05, intervalMs: 2_000, slowMs: 600_000 };

export interface GuestWatchOptions extends GuestTagsOptions {
  /** Asked before each slow look, as devices come and go. Without it: `hints`. */
  tracking?: () => Promise<WriteTracking>;
  settings?: Partial<WatchSettings>;
  /** Of all watches; its `cpu` is that of the settings. Without it: one of its own. */
  share?: CpuShare;
  /**
   * Called after each pass that has looked at the guest, and before the first one with the guesses, where there are any. `changed`: a byte a frame, 1: its tag has
   * become another one since the call before; whoever is called sets it back. Returns work, in pieces of about a millisecond, which is done before the next pass; or not
   * to its end, where the watch ends.
   */
  seen?: (manifest: Manifest, changed: Uint8Array) => Iterator<void>;
}

export interface WatchStats {
  /** Passes that came to their end. */
  passes: number;
  /** Frames tagged, in all. */
  tagged: number;
  /** Milliseconds of work, in all. */
  busyMs: number;
  tracked: boolean;
}

const DAY_MS = 86_400_000;
/** What is told in one turn, milliseconds, and one piece. */
const TELL_MS = 1;

export class GuestWatch {
  /** Resolves when it watches no more: to the error that ended it (`PT_VMM_GONE`: the guest has ended), undefined where it was asked to. */
  readonly ended: Promise<PagetideError | undefined>;
  /** Resolves to true when the first pass is done, and with it every frame is tagged; to false when it ends before. */
  readonly tagged: Promise<boolean>;
  readonly #options: GuestWatchOptions;
  readonly #settings: WatchSettings;
  readonly #tags: GuestTags;
  readonly #share: CpuShare;
  readonly #stop = new AbortController();
  readonly #stopping = new Promise<undefined>((resolve) => {
    this.#stop.signal.addEventListener('abort', () => resolve(undefined), { once: true });
  });
  readonly #waiters: (() => void)[] = [];
  #passes = 0;
  #tagged = 0;
  #busyMs = 0;
  /** Whose the tags are at the end. */
  #tagsGo: 'closed' | 'handed-over' = 'closed';
  #slowAt = 0;
  /** While it has a turn. */
  #turnBegan: number | undefined;

  /**
   * Begins at once.
   * @throws PagetideError `PT_BAD_ARGUMENT`, and what {@link GuestTags} throws; the key is closed then
   */
  constructor(options: GuestWatchOptions) {
    this.#options = options;
    this.#settings = { ...WATCH_SETTINGS, ...options.settings };
    try {
      checkSettings(this.#settings);
      this.#share = options.share ?? new CpuShare(this.#settings.cpu);
    } catch (error) {
      options.key.close();
      throw error;
    }
    this.#tags = new GuestTags(options);
    const first = new Promise<void>((resolve) => this.#waiters.push(resolve));
    this.ended = this.#run();
    this.tagged = Promise.race([first, this.ended]).then(() => this.#passes > 0);
  }

  /** What its memory was when it was last looked at; undefined until every frame was tagged once. Goes on changing. */
  get manifest(): Manifest | undefined {
    return this.#passes > 0 && !this.#stopped ? this.#tags.manifest : undefined;
  }

  get stats(): WatchStats {
    return { passes: this.#passes, tagged: this.#tagged, busyMs: this.#busyMs, tracked: this.#tags.tracked };
  }

  /** Resolves after a pass that began later than this call, or when it watches no more. */
  async fresh(): Promise<void> {
    // the one that is under way may have looked at the guest before
    for (let pass = 0; pass < 2; pass++) {
      await Promise.race([this.ended, new Promise<void>((resolve) => this.#waiters.push(resolve))]);
    }
  }

  /**
   * Ends the watch and gives away what it knows, within a piece of work of 2 MiB: the caller closes it. Undefined where the watch has
   * ended before. Frames that are due are still so.
   */
  async handOver(): Promise<GuestTags | undefined> {
    if (this.#stop.signal.aborted) return undefined;
    this.#tagsGo = 'handed-over';
    this.#stop.abort();
    await this.ended;
    return this.#given();
  }

  /** Ends it; neither guest nor resident index hold anything of it when this resolves. Idempotent; after {@link handOver} without effect. */
  async close(): Promise<void> {
    this.#stop.abort();
    if (this.#given() === undefined) this.#tags.close(); // ends the piece that is under way
    await this.ended;
  }

  async #run(): Promise<PagetideError | undefined> {
    let failure: PagetideError | undefined;
    try {
      const tags = this.#tags;
      if (this.#options.guesses !== undefined) {
        await this.#working(() => tags.listGuesses(this.#pace));
        if (this.#options.guesses === tags.manifest) await this.#tell();
      }
      await this.#working(() => tags.track());
      this.#slowAt = Date.now() + this.#settings.slowMs;
      while (!this.#stopped) {
        if (await this.#pass()) {
          this.#passes++;
          for (const resolve of this.#waiters.splice(0)) resolve();
        }
        await this.#wait(this.#settings.intervalMs);
        if (!isAlive(this.#options.record)) throw new PagetideError('PT_VMM_GONE', 'the guest has ended');
      }
    } catch (cause) {
      if (!this.#stopped) failure = asPagetideError(cause);
      // a tracker whose guest is gone, or tags that could not be made, are of no use to the next
      this.#tagsGo = 'closed';
    }
    this.#stop.abort();
    if (this.#given() === undefined) this.#tags.close();
    return failure;
  }

  #given(): GuestTags | undefined {
    return this.#tagsGo === 'handed-over' ? this.#tags : undefined;
  }

  get #stopped(): boolean {
    return this.#stop.signal.aborted;
  }

  /** Whether it came to its end. */
  async #pass(): Promise<boolean> {
    const tags = this.#tags;
    // where writes aren't tracked only a slow look is one
    let looked = tags.tracked || this.#passes === 0;
    if (Date.now() >= this.#slowAt) {
      await this.#lookSlowly();
      looked = true;
    }
    await this.#working(() => this.#tagDue());
    if (looked && !this.#stopped) await this.#tell();
    return !this.#stopped;
  }

  async #tagDue(): Promise<void> {
    // without tracking a scan makes everything due: that is for the slow look
    if (this.#tags.tracked) {
      this.#tags.scan();
      if (!(await this.#pace.pause(0))) return;
    }
    this.#tagged += await this.#tags.tagDue(this.#pace);
  }

  async #lookSlowly(): Promise<void> {
    this.#slowAt = Date.now() + this.#settings.slowMs;
    const tags = this.#tags;
    await this.#working(() => tags.dropHoles());
    if (!tags.tracked) {
      await this.#working(() => tags.track());
    } else if ((await this.#tracking()) === 'hints' && !this.#stopped) tags.markAll();
  }

  async #tracking(): Promise<WriteTracking> {
    try {
      // a VMM that takes its time holds up nobody who waits for the end of this
      return (await Promise.race([this.#options.tracking?.(), this.#stopping])) ?? 'hints';
    } catch (error) {
      // a VMM that doesn't answer just now: what is always right
      this.#options.log.debug({ error: asPagetideError(error).message }, 'the VMM did not tell of its disks');
      return 'hints';
    }
  }

  /** Tells what was seen, as long as nothing of it changes: before the next pass. */
  async #tell(): Promise<void> {
    const work = this.#options.seen?.(this.#tags.manifest, this.#tags.changed);
    if (work === undefined) return;
    await this.#working(async () => {
      while (work.next().done !== true) {
        if (performance.now() - this.#turnBegan! > TELL_MS && !(await this.#pace.pause(0))) return;
      }
    });
  }

  /** Does it in a turn; not at all, where the watch is asked to end before. */
  async #working(work: () => Promise<void> | void): Promise<void> {
    if (!(await this.#take())) return;
    try {
      await work();
    } finally {
      this.#give();
    }
  }

  async #take(): Promise<boolean> {
    if (!(await this.#share.take(this.#stop.signal, this.#passes === 0))) return false;
    this.#turnBegan = performance.now();
    if (this.#stopped) this.#give();
    return !this.#stopped;
  }

  #give(): void {
    if (this.#turnBegan === undefined) return;
    const busyMs = performance.now() - this.#turnBegan;
    this.#turnBegan = undefined;
    this.#busyMs += busyMs;
    this.#share.give(busyMs);
  }

  /** Within {@link #working}: the next turn. What it took is known here better than there. */
  readonly #pace: Pace = {
    pause: () => {
      this.#give();
      return this.#take();
    },
  };

  async #wait(ms: number): Promise<void> {
    if (this.#stopped) return;
    const wait = delay(Math.min(ms, DAY_MS), undefined, { signal: this.#stop.signal });
    await wait.catch(() => undefined); // stopped
  }
}

function checkSettings({ cpu, intervalMs, slowMs }: WatchSettings): void {
  if (!(cpu > 0 && cpu <= 1))
    throw new PagetideError('PT_BAD_ARGUMENT', `a watch takes above 0 to 1 of a CPU, not ${cpu}`);
  for (const ms of [intervalMs, slowMs]) {
    if (!Number.isFinite(ms) || ms < 0 || ms > DAY_MS)
      throw new PagetideError('PT_BAD_ARGUMENT', `a watch waits 0 ms to a day between two passes, not ${ms}`);
  }
}
