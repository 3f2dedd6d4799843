/**
 * Which guests of this host are watched (../pages/guest-watch.ts): those of a domain that run here and are in no migration.
 *
 *   guest made, attached, found again, arrived to its end ──► follow ──► watched: its pages are in the resident index
 *        what its memory was when it began to run here is listed at once, as a guess
 *   guest removed, ended, its domain gone ──────────────────► follow ──► closed: nothing is left in guest nor index
 *   guest leaves ───────────────────────────────────────────► handOver ─► its migration has tags and tracker, the index nothing
 *   migration given up ──► its scan closed ─────────────────► follow ──► watched anew
 *   watch ended on an error ──► 1 s, 2 s, 4 s … 60 s ─────────────────► watched anew, as long as nothing of the above comes between
 *
 * One tracker a guest, as the kernel has it: memory that another userfaultfd write-protects can't be registered. So:
 *
 *  * A guest that is arriving is not watched: its memory belongs to the userfaultfd that brings its pages. It becomes free when its
 *    migration has ended, which is after that one has let go of its memory.
 *  * A guest that a migration holds, and that is watched still, stays so until the migration asks for what is known: closing it
 *    before would take away what the migration is about to ask for. Nobody else takes it: it is out of the list, synchronously, when
 *    `handOver` is called; `follow` begins no other while the guest is in a migration.
 *  * A migration that is given up closes its scan, and with it the tracker, before it tells of its change (`MachineRunner` performs
 *    what goes with a change first), hence before `follow` is called for it.
 *
 *  * A watch that ended has let go of its tracker before it says so. The next is begun by a timer, which goes when the guest goes out
 *    of the list: so never after `handOver`, and before it the old watch might be there just as well.
 *
 * `follow` is called after every change of guests or migrations, and does nothing where nothing has changed.
 */
import type { Logger } from 'pino';
import { asPagetideError, type PagetideError } from '../errors.ts';
import type { Vmm } from '../guests/driver.ts';
import { isAlive } from '../guests/process.ts';
import type { Domain } from '../migration/domains.ts';
import type { SharedPages } from '../migration/shared-pages.ts';
import type { GuestTags } from '../pages/guest-tags.ts';
import { Manifest } from '../pages/manifest.ts';
import { CpuShare } from '../pages/cpu-share.ts';
import { GuestWatch, WATCH_SETTINGS, type WatchSettings } from '../pages/guest-watch.ts';
import type { TagPool } from '../pages/tag-pool.ts';

export interface FollowedGuest {
  name: string;
  vmm: Vmm;
  /** In no migration, and its VMM is well. */
  free: boolean;
}

/** A watch that ended on an error begins again after `firstMs`, then after twice as long each time, up to `mostMs`. */
export interface WatchBackoff {
  firstMs: number;
  mostMs: number;
}

export const WATCH_BACKOFF: Readonly<WatchBackoff> = { firstMs: 1_000, mostMs: 60_000 };

interface Watched {
  guest: string;
  domain: Domain;
  /** Undefined: it has ended, or could not begin. */
  watch: GuestWatch | undefined;
  /** When the watch had tagged all pages, by `performance.now()`. */
  wellSince: number | undefined;
  /** Failures in a row, told of once: a watch that goes well for `mostMs` begins a new row. */
  failures: number;
  /** That all pages are tagged was told, since the failure that was. */
  taggedTold: boolean;
  again: NodeJS.Timeout | undefined;
}

export interface GuestWatchesParts {
  shared: SharedPages;
  tagPool: TagPool;
  log: Logger;
  /** `cpu` 0: no guest is watched. */
  settings: Partial<WatchSettings>;
  backoff?: WatchBackoff;
  /** Told what watches see. */
  sightings?: SightingsFeed;
}

/** Of ../distribution/sightings.ts. */
export interface SightingsFeed {
  /** See `seen` of {@link GuestWatch}. */
  pass(guest: string, domain: string, manifest: Manifest, changed: Uint8Array): Iterator<void>;
  /** It is no longer here, or not of that domain. A guest that a migration has is still here. */
  gone(guest: string): void;
}

export class GuestWatches {
  readonly #parts: GuestWatchesParts;
  readonly #share: CpuShare | undefined;
  /** Whose sightings were told. */
  readonly #seen = new Map<Vmm, { guest: string; domain: number }>();
  /** By VMM, not by name: another guest of that name is another guest. */
  readonly #watched = new Map<Vmm, Watched>();
  /** What guests came with that are not watched yet. */
  readonly #arrived = new Map<Vmm, { domain: number; manifest: Manifest }>();
  readonly #ending = new Set<Promise<unknown>>();
  #closed = false;

  constructor(parts: GuestWatchesParts) {
    this.#parts = parts;
    const { cpu = WATCH_SETTINGS.cpu } = parts.settings;
    if (cpu > 0) this.#share = new CpuShare(cpu);
  }

  /** Seconds of CPU that watching all guests has taken since this agent began. */
  get busyS(): number {
    return (this.#share?.busyMs ?? 0) / 1000;
  }

  /** Of one CPU, what watching all guests has taken lately ({@link CpuShare.load}). */
  get load(): number {
    return this.#share?.load ?? 0;
  }

  /** Brings what is watched in line with the guests that are here: all of them. */
  follow(guests: readonly FollowedGuest[]): void {
    if (this.#idle) return;
    const domains = new Map<Vmm, Domain>();
    for (const { vmm } of guests) {
      const domain = this.#parts.shared.domain(vmm.record.domain);
      if (domain !== undefined) domains.set(vmm, domain);
    }
    for (const vmm of this.#arrived.keys()) if (!domains.has(vmm)) this.#arrived.delete(vmm);
    for (const [vmm, { domain }] of this.#watched) if (domains.get(vmm)?.id !== domain.id) this.#end(vmm);
    for (const [vmm, { guest, domain }] of this.#seen) {
      if (domains.get(vmm)?.id === domain) continue;
      // its watch has ended, or is asked to and tells nothing any more
      this.#seen.delete(vmm);
      this.#parts.sightings?.gone(guest);
    }
    for (const { name, vmm, free } of guests) {
      const domain = domains.get(vmm);
      if (!free || domain === undefined || this.#watched.has(vmm)) continue;
      const none = { watch: undefined, wellSince: undefined, failures: 0, taggedTold: false, again: undefined };
      const watched: Watched = { guest: name, domain, ...none };
      this.#watched.set(vmm, watched);
      this.#begin(vmm, watched);
    }
  }

  /**
   * The manifest that a guest came with, for when it is watched. It has run since, and nobody has tracked its writes: guesses, good
   * enough for the resident index.
   */
  arrived(vmm: Vmm, domain: number, { frames, tags }: Manifest): void {
    if (this.#idle) return;
    const manifest = new Manifest(frames);
    manifest.tags.set(tags);
    this.#arrived.set(vmm, { domain, manifest });
  }

  /** What is known of a guest that is watched, as long as it is; undefined: nothing yet. */
  manifestOf(vmm: Vmm): Manifest | undefined {
    return this.#watched.get(vmm)?.watch?.manifest;
  }

  /**
   * What is known of a guest that leaves, for whoever closes it: of that domain, and out of the resident index. Undefined where it is
   * not watched. Waits for the piece of 2 MiB that is being tagged, not for the VMM.
   */
  async handOver(vmm: Vmm, domain: Domain): Promise<GuestTags | undefined> {
    const watched = this.#watched.get(vmm);
    if (watched?.watch === undefined || watched.domain.id !== domain.id) {
      this.#end(vmm);
      return undefined;
    }
    this.#watched.delete(vmm);
    const handing = watched.watch.handOver();
    this.#await(handing);
    const tags = await handing;
    // its memory is about to be another host's: nobody here should be given pages of it any more
    tags?.unlist();
    return tags;
  }

  /** Ends them all. Idempotent. */
  async close(): Promise<void> {
    this.#closed = true;
    this.#arrived.clear();
    for (const vmm of [...this.#watched.keys()]) this.#end(vmm);
    await Promise.all(this.#ending);
  }

  get #idle(): boolean {
    return this.#closed || this.#parts.settings.cpu === 0;
  }

  #begin(vmm: Vmm, watched: Watched): void {
    const { shared, tagPool: pool, log, settings, sightings } = this.#parts;
    const { guest, domain } = watched;
    const { resident: index } = shared;
    watched.wellSince = undefined;
    const came = this.#arrived.get(vmm);
    this.#arrived.delete(vmm);
    let watch: GuestWatch;
    try {
      watch = new GuestWatch({
        record: vmm.record,
        key: domain.openKey(),
        pool,
        log,
        settings,
        ...(this.#share === undefined ? {} : { share: this.#share }),
        ...(sightings === undefined
          ? {}
          : { seen: (manifest, changed) => sightings.pass(guest, domain.name, manifest, changed) }),
        tracking: () => vmm.tracking?.() ?? Promise.resolve('hints'),
        ...(index === undefined ? {} : { resident: { index, domain: domain.id } }),
        ...(came?.domain === domain.id ? { guesses: came.manifest } : {}),
      });
    } catch (error) {
      this.#failed(vmm, watched, asPagetideError(error));
      return;
    }
    watched.watch = watch;
    if (sightings !== undefined) this.#seen.set(vmm, { guest, domain: domain.id });
    void watch.tagged.then((tagged) => {
      if (!tagged) return;
      watched.wellSince = performance.now();
      if (watched.taggedTold) return;
      watched.taggedTold = true;
      log.info({ guest, ...watch.stats }, 'all pages of this guest are tagged');
    });
    void watch.ended.then((error) => {
      // given away, or ended by us
      if (error === undefined || this.#watched.get(vmm) !== watched) return;
      watched.watch = undefined;
      this.#failed(vmm, watched, error);
    });
  }

  /** It is not watched for now: again after a while, unless the guest has ended. */
  #failed(vmm: Vmm, watched: Watched, { code, message }: PagetideError): void {
    const { log, backoff = WATCH_BACKOFF } = this.#parts;
    const { guest } = watched;
    if (code === 'PT_VMM_GONE' || !isAlive(vmm.record)) {
      log.info({ guest, code }, `this guest is watched no more: ${message}`);
      return; // it goes out of the list with its guest
    }
    if (watched.wellSince !== undefined && performance.now() - watched.wellSince > backoff.mostMs) watched.failures = 0;
    const waitMs = Math.min(backoff.mostMs, backoff.firstMs * 2 ** watched.failures);
    if (watched.failures++ === 0) {
      watched.taggedTold = false;
      log.warn({ guest, code }, `this guest is not watched for now, which is tried again: ${message}`);
    }
    watched.again = setTimeout(() => {
      watched.again = undefined;
      this.#begin(vmm, watched);
    }, waitMs);
    watched.again.unref();
  }

  /** When this returns, nothing of it is in guest or index; workers may be reading from the memory file for a moment. */
  #end(vmm: Vmm): void {
    const watched = this.#watched.get(vmm);
    this.#watched.delete(vmm);
    clearTimeout(watched?.again);
    if (watched?.watch !== undefined) this.#await(watched.watch.close());
  }

  /** {@link close} waits for it. */
  #await(ending: Promise<unknown>): void {
    this.#ending.add(ending);
    void ending.finally(() => this.#ending.delete(ending));
  }
}
