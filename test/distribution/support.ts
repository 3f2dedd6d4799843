/** A host with distribution, in memory: a directory, a cache and a bringer that are told what to do. */
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setImmediate } from 'node:timers/promises';
import pino from 'pino';
import type { Test } from 'tap';
import { EmbeddedDirectory } from '../../src/directory/embedded.ts';
import type { ErrandBringer, Surroundings } from '../../src/distribution/bringing.ts';
import { Outcome, type Errand, type ErrandResult } from '../../src/distribution/errand.ts';
import type { Clock } from '../../src/distribution/clock.ts';
import { Distributor, type DistributorParts } from '../../src/distribution/distributor.ts';
import type { Hint } from '../../src/directory/hint.ts';
import { DISTRIBUTION_DEFAULTS, type DistributionSettings } from '../../src/distribution/info.ts';
import { PagetideError } from '../../src/errors.ts';
import type { Domain } from '../../src/migration/domains.ts';

/** Packed tags of numbers. */
export function tagsOf(...numbers: number[]): Uint8Array {
  const tags = Buffer.alloc(numbers.length * 16);
  for (const [i, number] of numbers.entries()) {
    tags.writeUInt32LE(number, i * 16);
    tags.writeUInt32LE(0xabcd, i * 16 + 12);
  }
  return new Uint8Array(tags);
}

export function range(from: number, count: number): number[] {
  return Array.from({ length: count }, (_, i) => from + i);
}

export class FakeClock implements Clock {
  now = 1000;
  #waits: { at: number; done: () => void }[] = [];

  nowMs = (): number => this.now;
  unixMs = (): number => 1_700_000_000_000 + this.now;

  async wait(ms: number, signal: AbortSignal): Promise<void> {
    if (signal.aborted) return setImmediate();
    return new Promise((resolve) => {
      const done = (): void => {
        signal.removeEventListener('abort', done);
        resolve();
      };
      this.#waits.push({ at: this.now + ms, done });
      signal.addEventListener('abort', done);
    });
  }

  /** May be negative: then nobody's time has come. */
  advance(ms: number): void {
    this.now += ms;
    const due = this.#waits.filter(({ at }) => at <= this.now);
    this.#waits = this.#waits.filter(({ at }) => at > this.now);
    for (const { done } of due) done();
  }
}

export class FakeCache {
  readonly pages = new Set<string>();
  readonly values = new Map<string, number>();
  slots = 10_000;

  has(tags: Uint8Array, present: Uint8Array): number {
    let count = 0;
    for (const [i, key] of keysOf(tags).entries()) count += present[i] = this.pages.has(key) ? 1 : 0;
    return count;
  }

  setValue(tags: Uint8Array, value: number): number {
    for (const key of keysOf(tags)) this.values.set(key, value);
    return 0;
  }

  stats(): never {
    return { slots: this.slots } as never;
  }
}

export function keysOf(tags: Uint8Array): string[] {
  return Array.from({ length: tags.length / 16 }, (_, i) =>
    Buffer.from(tags.subarray(i * 16, i * 16 + 16)).toString('hex'),
  );
}

export class FakeBringer implements ErrandBringer {
  readonly errands: Errand[] = [];
  rates: unknown;
  /** Tags that no holder has. */
  readonly absent = new Set<string>();
  /** Until this resolves an errand is on its way. */
  gate: Promise<void> | undefined;
  standingBack = false;
  /** Pages that the cache has room for. */
  room = Infinity;
  readonly #cache: FakeCache;

  constructor(cache: FakeCache) {
    this.#cache = cache;
  }

  async bring(errand: Errand, signal: AbortSignal): Promise<ErrandResult> {
    this.errands.push(errand);
    const aborted = new Promise<void>((resolve) => signal.addEventListener('abort', () => resolve(), { once: true }));
    if (this.gate !== undefined) await Promise.race([this.gate, aborted]);
    await setImmediate();
    const outcome = Uint8Array.from(keysOf(errand.tags), (key) => {
      if (signal.aborted) return Outcome.Stopped;
      if (this.#cache.pages.has(key)) return Outcome.Present;
      if (this.absent.has(key)) return Outcome.Absent;
      if (this.room === 0) return Outcome.Full;
      this.room--;
      this.#cache.pages.add(key);
      return Outcome.Brought;
    });
    return { outcome, wireBytes: new Uint16Array(outcome.length).fill(2000), wrong: [], unreachable: [] };
  }

  setRates(rates: unknown): void {
    this.rates = rates;
  }

  stats(): { standingBack: boolean } {
    return { standingBack: this.standingBack };
  }
}

export class World {
  readonly clock = new FakeClock();
  readonly cache = new FakeCache();
  readonly bringer = new FakeBringer(this.cache);
  readonly directory = new EmbeddedDirectory({ leaseMs: 1e12, clock: () => 0 });
  readonly hints: Hint[] = [];
  readonly domains: Domain[] = [];
  /** Domains whose directory does not answer. */
  readonly away = new Set<string>();
  /** Tags of guests by name: `host/guest`. */
  readonly guests = new Map<string, Uint8Array>();
  /** Where the agents of other hosts are. */
  readonly urls = new Map(['a', 'b'].map((host) => [host, `http://${host}`]));
  readonly #sequences = new Map<string, number>();
  #epoch = 1;
  readonly folder: string;
  readonly #t: Test;

  static async make(t: Test, domains: string[]): Promise<World> {
    const folder = await mkdtemp(join(tmpdir(), 'pagetide-distribution-'));
    t.teardown(async () => rm(folder, { recursive: true, force: true }));
    return new World(t, folder, domains);
  }

  private constructor(t: Test, folder: string, domains: string[]) {
    this.#t = t;
    this.folder = folder;
    for (const [id, name] of domains.entries())
      this.domains.push({ name, id: id + 1, mark: '', openKey: () => undefined as never });
  }

  /** A host's guest holds tags from now on. */
  async holds(host: string, domain: string, guest: string, tags: Uint8Array): Promise<void> {
    const sequence = (this.#sequences.get(host) ?? 0) + 1;
    this.#sequences.set(host, sequence);
    const change = { domain, guest, added: tags, removed: new Uint8Array() };
    const report = { host, epoch: this.#epoch, sequence, begins: sequence === 1, changes: [change] };
    const { state } = await this.directory.report(report);
    if (state !== 'applied') throw new Error('not applied');
  }

  /** Every host answers what it is asked: that each tag is held by one of its guests where it told so. */
  async settle(counts: ReadonlyMap<string, ReadonlyMap<string, number>>): Promise<void> {
    for (const [host, told] of this.#sequences) {
      const { wanted } = await this.directory.heartbeat(host, this.#epoch);
      if (wanted.length === 0) continue;
      this.#sequences.set(host, told + 1);
      const held = wanted.map(({ domain, tags }) => ({
        domain,
        tags,
        guests: Uint16Array.from(keysOf(tags), (key) => counts.get(host)?.get(key) ?? 0),
      }));
      await this.directory.report({ host, epoch: this.#epoch, sequence: told + 1, changes: [], held });
    }
  }

  /** So many like guests at each host hold the tags. */
  async like(domain: string, tags: Uint8Array, guests: Record<string, number>): Promise<void> {
    const counts = new Map<string, Map<string, number>>();
    for (const [host, count] of Object.entries(guests)) {
      counts.set(host, new Map(keysOf(tags).map((key) => [key, count])));
      for (let i = 0; i < count; i++) await this.holds(host, domain, `g${i}`, tags);
    }
    await this.settle(counts);
  }

  forgetReports(): void {
    this.#sequences.clear();
    this.#epoch++;
  }

  get around(): Surroundings {
    const answer = (name: string): void => {
      if (this.away.has(name)) throw new PagetideError('PT_PEER_UNREACHABLE', 'away');
    };
    return {
      domains: () => this.domains,
      members: () => [...this.urls].map(([host, url]) => ({ host, url })),
      directory: (name) => ({
        ...{ domain: name, self: 'c' },
        directory: {
          holders: async (domain, tags) => (answer(name), this.directory.holders(domain, tags)),
          lacking: async (domain, host, options) => (answer(name), this.directory.lacking(domain, host, options)),
          hints: async () => (answer(name), Promise.resolve([...this.hints])),
        },
      }),
      guestTags: async ({ host }, _domain, guest) => {
        const tags = this.guests.get(`${host}/${guest}`);
        if (tags === undefined) throw new PagetideError('PT_GUEST_UNKNOWN', 'not here');
        return Promise.resolve(tags);
      },
      guestsOf: async ({ host }) =>
        Promise.resolve([...this.guests.keys()].filter((key) => key.startsWith(`${host}/`)).map((key) => key.slice(2))),
    };
  }

  /** @param parts instead of those that are told what to do */
  async distributor(
    parts: Partial<Pick<DistributorParts, 'cache' | 'resident' | 'bringer'>> = {},
    settings: Partial<DistributionSettings> = {},
  ): Promise<Distributor> {
    const made = new Distributor({
      ...{ around: this.around, cache: this.cache, resident: undefined, bringer: this.bringer },
      settings: { ...DISTRIBUTION_DEFAULTS, ...settings },
      ...{ folder: this.folder, log: pino({ enabled: false }), clock: this.clock },
      ...parts,
    });
    this.#t.teardown(async () => made.close());
    await made.start();
    return made;
  }
}

/** Until the next plan was made and carried out. */
export async function planned(world: World, distributor: Distributor): Promise<void> {
  const { plans } = distributor.status().totals;
  world.clock.advance(60_000);
  await until(() => distributor.status().totals.plans > plans && distributor.status().queuedPages === 0);
  await until(() => ['idle', 'directory-away'].includes(distributor.status().state));
}

/** The same of the first. */
export async function began(distributor: Distributor): Promise<void> {
  await until(() => distributor.status().totals.plans > 0 && distributor.status().queuedPages === 0);
  await until(() => ['idle', 'directory-away'].includes(distributor.status().state));
}

/** Waits for it in turns of the event loop. */
export async function until(what: () => boolean): Promise<void> {
  const end = performance.now() + 20_000;
  while (!what()) {
    if (performance.now() > end) throw new Error(`never: ${what.toString()}`);
    await setImmediate();
  }
}
