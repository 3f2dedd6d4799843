/** A naive directory, maps of sets, and agents that talk to a real one over a network that loses, repeats and reorders. */
import { TAG_BYTES } from '../../src/pages/tags.ts';
import type { Directory, GuestChange, Held, Report, Wanted } from '../../src/directory/directory.ts';

/** Tags by guest. */
type Guests = Map<string, Set<number>>;
/** By domain. */
type Told = Map<string, Guests>;

export function tagsOf(...numbers: number[]): Uint8Array {
  const tags = Buffer.alloc(numbers.length * TAG_BYTES);
  numbers.forEach((number, i) => tags.writeUInt32LE(number + 1, i * TAG_BYTES + 4));
  return new Uint8Array(tags);
}

export function numbersOf(tags: Uint8Array): number[] {
  const view = Buffer.from(tags);
  return Array.from({ length: tags.length / TAG_BYTES }, (_, i) => view.readUInt32LE(i * TAG_BYTES + 4) - 1);
}

export function guestsHolding(told: Told, domain: string, tag: number): number {
  let count = 0;
  for (const tags of told.get(domain)?.values() ?? []) if (tags.has(tag)) count++;
  return count;
}

function applyTo(told: Told, { domain, guest, added, removed, gone = false }: GuestChange): void {
  const guests: Guests = told.get(domain) ?? new Map<string, Set<number>>();
  told.set(domain, guests);
  const tags = guests.get(guest) ?? new Set<number>();
  for (const tag of numbersOf(removed)) tags.delete(tag);
  for (const tag of numbersOf(added)) tags.add(tag);
  if (gone) guests.delete(guest);
  else guests.set(guest, tags);
}

interface ModelHost {
  epoch: number;
  sequence: number;
  /** Undefined: gone. */
  told: Told | undefined;
  leaseEnd: number;
  lost: Set<string>;
}

export class Model {
  readonly hosts = new Map<string, ModelHost>();
  now = 0;
  readonly #leaseMs: number;

  constructor(leaseMs: number) {
    this.#leaseMs = leaseMs;
  }

  expire(): void {
    for (const host of this.hosts.values()) if (host.leaseEnd <= this.now) host.told = undefined;
  }

  report({ host: name, epoch, sequence, begins = false, changes }: Report): 'applied' | 'anew' | 'PT_SUPERSEDED' {
    this.expire();
    const old = this.hosts.get(name);
    if (old !== undefined && old.epoch > epoch) return 'PT_SUPERSEDED';
    const same = old?.epoch === epoch ? old : undefined;
    if (same?.told !== undefined) same.leaseEnd = this.now + this.#leaseMs;
    if (same !== undefined && sequence <= same.sequence) return same.told === undefined ? 'anew' : 'applied';
    let host = same;
    if (begins) {
      host = { epoch, sequence, told: new Map(), leaseEnd: this.now + this.#leaseMs, lost: new Set() };
      this.hosts.set(name, host);
    } else if (host?.told === undefined || sequence !== host.sequence + 1) return 'anew';
    else if (changes.some(({ domain, added }) => added.length > 0 && same!.lost.has(domain))) return 'anew';
    host.sequence = sequence;
    for (const change of changes) if (!host.lost.has(change.domain)) applyTo(host.told!, change);
    return 'applied';
  }

  removeDomain(domain: string): void {
    this.expire();
    for (const host of this.hosts.values()) if (host.told?.delete(domain) === true) host.lost.add(domain);
  }

  removeHost(name: string): void {
    const host = this.hosts.get(name);
    if (host !== undefined) host.told = undefined;
  }

  empty(): void {
    for (const host of this.hosts.values()) host.told = undefined;
  }

  held(name: string, domain: string, tag: number): number {
    const told = this.hosts.get(name)?.told;
    return told === undefined ? 0 : guestsHolding(told, domain, tag);
  }
}

/** What becomes of a report on its way. */
export type Fate = 'arrives' | 'request lost' | 'answer lost' | 'twice';

export class Agent {
  readonly host: string;
  epoch = 1;
  /** Reported state: as the last report that was made leaves it. */
  told: Told = new Map();
  sequence = 0;
  wanted: Wanted[] = [];
  outstanding: Report | undefined;
  mustBegin = true;

  constructor(host: string) {
    this.host = host;
  }

  restart(): void {
    this.epoch++;
    this.sequence = 0;
    this.#beginNext();
  }

  get isSettled(): boolean {
    return !this.mustBegin && this.outstanding === undefined && this.wanted.length === 0;
  }

  /** The outstanding report, else a new one. Tags that a guest has, or lacks, already are left out, as differences ask. */
  next(wish?: { domain: string; guest: string; add: number[]; remove: number[]; gone: boolean }): Report {
    if (this.outstanding !== undefined) return this.outstanding;
    const changes: GuestChange[] = [];
    if (wish !== undefined) {
      const { domain, guest, gone } = wish;
      const has = this.told.get(domain)?.get(guest) ?? new Set<number>();
      const removed = gone ? [...has] : [...new Set(wish.remove)].filter((tag) => has.has(tag));
      const added = gone ? [] : [...new Set(wish.add)].filter((tag) => !has.has(tag));
      changes.push({ domain, guest, added: tagsOf(...added), removed: tagsOf(...removed), gone });
      applyTo(this.told, changes[0]!);
    }
    const held = this.wanted.map(({ domain, tags }): Held => ({
      domain,
      tags,
      guests: Uint16Array.from(numbersOf(tags), (tag) => guestsHolding(this.told, domain, tag)),
    }));
    const report: Report = { host: this.host, epoch: this.epoch, sequence: ++this.sequence, changes, held };
    if (this.mustBegin) {
      report.begins = true;
      report.changes = [...this.told].flatMap(([domain, guests]) =>
        [...guests].map(([guest, tags]) => ({ domain, guest, added: tagsOf(...tags), removed: tagsOf() })),
      );
    }
    this.mustBegin = false;
    return (this.outstanding = report);
  }

  heard(answer: { state: 'applied' | 'anew'; wanted: Wanted[] }): void {
    this.wanted = answer.wanted;
    if (answer.state === 'anew') this.#beginNext();
    else this.outstanding = undefined;
  }

  #beginNext(): void {
    this.outstanding = undefined;
    this.mustBegin = true;
    this.wanted = [];
  }
}

/** Sends a report both to the directory and to the model; returns what either said. */
export async function tell(
  directory: Directory,
  model: Model,
  report: Report,
): Promise<{ real: string; naive: string; wanted: Wanted[] }> {
  const naive = model.report(report);
  try {
    const { state, wanted } = await directory.report(report);
    return { real: state, naive, wanted };
  } catch (error) {
    return { real: (error as { code: string }).code, naive, wanted: [] };
  }
}
