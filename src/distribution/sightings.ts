/**
 * Sightings: what of the guests of this host is stable, and what of that the directory was told. A guest's *reported state* is a set of tags, each once
 * however many frames have it, never the zero tag.
 *
 *   watch ── pass ──► StableTags, one a guest ──► TagTable: held │ told ── take ──► Reporter, one a domain ──► directory
 *   guest gone ── gone ──► nothing is held                       ╰──── holding ──►
 *
 * The difference between held and told is never kept as a list: it is two states of entries. So however long the directory is away, it takes no
 * memory but that of the tags held, and those told that aren't any more.
 *
 * Order of a report, all in one go, without anything between: {@link Sightings.take} tells, then {@link Sightings.holding} answers of the state
 * after it. What is held and not told yet does not count in an answer: it will be told as added.
 */
import { MOST_CHANGES, type GuestChange } from '../directory/directory.ts';
import { TAG_WORDS, toWords } from '../directory/tag-words.ts';
import { PagetideError } from '../errors.ts';
import type { Manifest } from '../pages/manifest.ts';
import { TAG_BYTES } from '../pages/tags.ts';
import { MOST_PASSES, StableTags } from './stable-tags.ts';
import { EntryState } from './tag-table.ts';

export interface SightingsOptions {
  /** Passes of its watch that have to see a page unchanged, 1 to 200. */
  passes?: number;
  /** Milliseconds, never backwards; default `performance.now`. */
  clock?: () => number;
}

export const STABLE_PASSES = 3;

export type Difference = Omit<GuestChange, 'domain'>;

export interface SightingsStats {
  guests: number;
  /** Tags of all guests: held, told, and to be told. */
  held: number;
  told: number;
  pending: number;
  /** Of memory. */
  bytes: number;
}

/** What a {@link Reporter} asks, of one domain. */
export interface ReportSource {
  /** See {@link Sightings.take} and the others. */
  take(most: number): Difference[];
  holding(tags: Uint8Array): Uint16Array;
  untell(): void;
  stats(): Pick<SightingsStats, 'told' | 'pending'>;
}

interface Sighted {
  readonly stable: StableTags;
  here: boolean;
  /** The directory was told of it. */
  known: boolean;
}

export class Sightings {
  readonly #passes: number;
  readonly #clock: () => number;
  readonly #began: number;
  /** By domain and guest. Those that weren't reached by the last report come first. */
  readonly #domains = new Map<string, Map<string, Sighted>>();

  /** @throws PagetideError `PT_BAD_ARGUMENT` */
  constructor({ passes = STABLE_PASSES, clock = () => performance.now() }: SightingsOptions = {}) {
    if (!Number.isInteger(passes) || passes < 1 || passes > MOST_PASSES)
      throw new PagetideError('PT_BAD_ARGUMENT', `a page is stable after 1 to ${MOST_PASSES} passes, not ${passes}`);
    this.#passes = passes;
    this.#clock = clock;
    this.#began = clock();
  }

  /** What a pass of a guest's watch has seen: work in pieces, see {@link StableTags.pass}. */
  *pass(guest: string, domain: string, manifest: Manifest, changed: Uint8Array): Generator<void, void> {
    for (const name of this.#domains.keys()) if (name !== domain) this.#clear(name, guest);
    const guests = this.#domains.get(domain) ?? new Map<string, Sighted>();
    this.#domains.set(domain, guests);
    let sighted = guests.get(guest);
    if (sighted === undefined) {
      sighted = { stable: new StableTags(this.#passes, () => this.#seconds), here: true, known: false };
      guests.set(guest, sighted);
    }
    sighted.here = true;
    yield* sighted.stable.pass(manifest, changed);
  }

  /** The guest is no longer here, or of no domain: its tags are to be taken out. Idempotent. */
  gone(guest: string): void {
    for (const domain of this.#domains.keys()) this.#clear(domain, guest);
  }

  /**
   * The stable tags of a guest that is here, packed, each once; and for how many seconds the guest has held each, at least. Undefined: nothing was
   * seen of it.
   */
  stableTags(guest: string): { domain: string; tags: Uint8Array; unchangedS: Uint32Array } | undefined {
    for (const [domain, guests] of this.#domains) {
      const sighted = guests.get(guest);
      if (sighted?.here !== true) continue;
      const { tags, since } = sighted.stable.table.heldTags();
      const now = Math.floor(this.#seconds);
      return { domain, tags, unchangedS: since.map((began) => Math.max(0, now - began)) };
    }
    return undefined;
  }

  /** The guests of a domain that are here, by name, as far as they were seen. */
  guests(domain: string): string[] {
    return [...(this.#domains.get(domain) ?? [])].flatMap(([guest, { here }]) => (here ? [guest] : []));
  }

  /** Differences between what is held and what is told, at most `most` tags; they are told with this. */
  take(domain: string, most: number): Difference[] {
    const guests = this.#domains.get(domain) ?? new Map<string, Sighted>();
    const differences: Difference[] = [];
    let room = most;
    for (const [guest, sighted] of [...guests]) {
      if (differences.length === MOST_CHANGES || room === 0) break;
      // those that were not reached come first the next time
      guests.delete(guest);
      const { table } = sighted.stable;
      const removed = table.tell(EntryState.Gone, room);
      room -= removed.length / TAG_BYTES;
      const added = table.tell(EntryState.Untold, room);
      room -= added.length / TAG_BYTES;
      const gone = !sighted.here && table.told === 0;
      if (!gone) guests.set(guest, sighted);
      if (added.length + removed.length === 0 && !(gone && sighted.known)) continue;
      sighted.known = true;
      differences.push(gone ? { guest, added, removed, gone } : { guest, added, removed });
    }
    this.#dropEmpty(domain);
    return differences;
  }

  /** Of how many guests' reported state each of these tags is. */
  holding(domain: string, tags: Uint8Array): Uint16Array {
    const words = toWords(tags);
    const guests = new Uint16Array(words.length / TAG_WORDS);
    for (const { stable } of this.#domains.get(domain)?.values() ?? []) {
      const { table } = stable;
      if (table.told === 0) continue;
      for (let i = 0; i < guests.length; i++) {
        const entry = table.find(words, i * TAG_WORDS);
        if (entry !== 0 && table.isTold(entry) && guests[i]! < 0xffff) guests[i]!++;
      }
    }
    return guests;
  }

  /** Nothing of the domain is told any more: the directory is to be told all anew, or never again. */
  untell(domain: string): void {
    const guests = this.#domains.get(domain);
    for (const [guest, sighted] of guests ?? []) {
      sighted.stable.table.untell();
      sighted.known = false;
      if (!sighted.here) guests!.delete(guest);
    }
    this.#dropEmpty(domain);
  }

  /** Of one domain, or of all. */
  stats(domain?: string): SightingsStats {
    const stats: SightingsStats = { guests: 0, held: 0, told: 0, pending: 0, bytes: 0 };
    for (const [name, guests] of this.#domains) {
      if (domain !== undefined && name !== domain) continue;
      for (const { stable, here, known } of guests.values()) {
        const { table } = stable;
        if (here) stats.guests++;
        stats.held += table.held;
        stats.told += table.told;
        stats.pending += table.pending + (!here && known && table.told === 0 ? 1 : 0);
        stats.bytes += stable.bytes;
      }
    }
    return stats;
  }

  /** One domain, for its reporter. */
  of(domain: string): ReportSource {
    return {
      take: (most) => this.take(domain, most),
      holding: (tags) => this.holding(domain, tags),
      untell: () => this.untell(domain),
      stats: () => this.stats(domain),
    };
  }

  get #seconds(): number {
    return (this.#clock() - this.#began) / 1000;
  }

  #clear(domain: string, guest: string): void {
    const guests = this.#domains.get(domain)!;
    const sighted = guests.get(guest);
    if (sighted === undefined) return;
    sighted.here = false;
    sighted.stable.clear();
    if (!sighted.known) guests.delete(guest);
    this.#dropEmpty(domain);
  }

  #dropEmpty(domain: string): void {
    if (this.#domains.get(domain)?.size === 0) this.#domains.delete(domain);
  }
}
