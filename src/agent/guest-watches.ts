/**
 * Which guests of this host are watched (../pages/guest-watch.ts): those of a domain that run here and are in no migration.
 *
 *   guest made, attached, found again, arrived to its end ──► follow ──► watched: its pages are in the resident index
 *   guest removed, ended, its domain gone ──────────────────► follow ──► closed: nothing is left in guest nor index
 *   guest leaves ───────────────────────────────────────────► handOver ─► its migration has tags and tracker, the index nothing
 *   migration given up ──► its scan closed ─────────────────► follow ──► watched anew
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
 * `follow` is called after every change of guests or migrations, and does nothing where nothing has changed.
 */
import type { Logger } from 'pino';
import { asPagetideError } from '../errors.ts';
import type { Vmm } from '../guests/driver.ts';
import type { Domain } from '../migration/domains.ts';
import type { SharedPages } from '../migration/shared-pages.ts';
import type { GuestTags } from '../pages/guest-tags.ts';
import { GuestWatch, type WatchSettings } from '../pages/guest-watch.ts';
import type { TagPool } from '../pages/tag-pool.ts';

export interface FollowedGuest {
  name: string;
  vmm: Vmm;
  /** In no migration, and its VMM is well. */
  free: boolean;
}

interface Watched {
  domain: number;
  /** Undefined: it could not be watched, which was told. */
  watch: GuestWatch | undefined;
}

export interface GuestWatchesParts {
  shared: SharedPages;
  tagPool: TagPool;
  log: Logger;
  /** `cpu` 0: no guest is watched. */
  settings: Partial<WatchSettings>;
}

export class GuestWatches {
  readonly #parts: GuestWatchesParts;
  /** By VMM, not by name: another guest of that name is another guest. */
  readonly #watched = new Map<Vmm, Watched>();
  readonly #ending = new Set<Promise<unknown>>();
  #closed = false;

  constructor(parts: GuestWatchesParts) {
    this.#parts = parts;
  }

  /** Brings what is watched in line with the guests that are here: all of them. */
  follow(guests: readonly FollowedGuest[]): void {
    if (this.#closed || this.#parts.settings.cpu === 0) return;
    const domains = new Map<Vmm, Domain>();
    for (const { vmm } of guests) {
      const domain = this.#parts.shared.domain(vmm.record.domain);
      if (domain !== undefined) domains.set(vmm, domain);
    }
    for (const [vmm, { domain }] of this.#watched) if (domains.get(vmm)?.id !== domain) this.#end(vmm);
    for (const { name, vmm, free } of guests) {
      const domain = domains.get(vmm);
      if (free && domain !== undefined && !this.#watched.has(vmm)) this.#begin(name, vmm, domain);
    }
  }

  /**
   * What is known of a guest that leaves, for whoever closes it: of that domain, and out of the resident index. Undefined where it is
   * not watched. Waits for the piece of 2 MiB that is being tagged, not for the VMM.
   */
  async handOver(vmm: Vmm, domain: Domain): Promise<GuestTags | undefined> {
    const watched = this.#watched.get(vmm);
    if (watched?.watch === undefined || watched.domain !== domain.id) {
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
    for (const vmm of [...this.#watched.keys()]) this.#end(vmm);
    await Promise.all(this.#ending);
  }

  #begin(guest: string, vmm: Vmm, domain: Domain): void {
    const { shared, tagPool: pool, log, settings } = this.#parts;
    const watched: Watched = { domain: domain.id, watch: undefined };
    // also where it fails: it would at each change again
    this.#watched.set(vmm, watched);
    const { resident: index } = shared;
    try {
      const watch = new GuestWatch({
        record: vmm.record,
        key: domain.openKey(),
        pool,
        log,
        settings,
        tracking: () => vmm.tracking?.() ?? Promise.resolve('hints'),
        ...(index === undefined ? {} : { resident: { index, domain: domain.id } }),
      });
      watched.watch = watch;
      void watch.tagged.then((tagged) => {
        if (tagged) log.info({ guest, ...watch.stats }, 'all pages of this guest are tagged');
      });
    } catch (error) {
      const { code, message } = asPagetideError(error);
      log.warn({ guest, code }, `this guest is not watched: ${message}`);
    }
  }

  /** When this returns, nothing of it is in guest or index; workers may be reading from the memory file for a moment. */
  #end(vmm: Vmm): void {
    const watch = this.#watched.get(vmm)?.watch;
    this.#watched.delete(vmm);
    if (watch === undefined) return;
    this.#await(watch.close());
  }

  /** {@link close} waits for it. */
  #await(ending: Promise<unknown>): void {
    this.#ending.add(ending);
    void ending.finally(() => this.#ending.delete(ending));
  }
}
