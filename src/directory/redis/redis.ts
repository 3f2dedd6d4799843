/**
 * The directory in a Redis (7.0 or later) or Valkey, one server or a cluster, for as many agents as connect to it.
 *
 *   agent                     registry: one slot                  shards: 128 a domain, a slot each
 *     report 5 ─── open ────►  next one? lease, incarnation, view
 *                 apply ────────────────────────────────────────►  each shard's part at once, all of it or nothing
 *                commit ────►  report 5 is complete
 *                wanted ────────────────────────────────────────►  where it is asked for something
 *
 * A shard does what domain.ts does, to its own tags: filters, records, questions. So its argument holds here a shard at a time. What is
 * different is that a report is applied in parts, any of which may be lost or come again, and that any node may lose the last it was told.
 *
 *  (1) *Repeated parts change nothing.* A shard knows for each incarnation the number of the last report that changed it, and does a part
 *      only where its own number is greater. It is one script, so a part is done with its number, or not at all; that goes for what a
 *      replica has of it, too. A report is complete when all of its parts are done, and only then the registry takes the next one. So a
 *      part that comes late, when another try has done it, is skipped. A report of which the agent doesn't know what became is sent again: the
 *      same parts, the same numbers.
 *  (2) *Lost parts are noticed.* The registry keeps for each incarnation and shard the number of the last complete report that
 *      changed it. It goes along with the next part, and the shard must have just that. Replication is a prefix: a node that took over has
 *      what the last number says, and all before it. Where it has less, or nothing, the host begins anew, and everything it told before is void.
 *      Each report and heartbeat looks at some more shards of the host in the same way, and at all of them after a
 *      connection was lost: so shards that are changed no more are noticed, too. What another host lost by the same fail-over,
 *      that one notices.
 *  (3) *A lost registry is noticed.* An agent whose last report is not known there has a gap, names a later sequence in its heartbeat, or
 *      isn't known: it begins anew.
 *  (4) *What is void counts no more*, without looking for it. Beginning anew makes an incarnation; cells, filters and questions
 *      belong to one. Readers count those of the *view*, which the registry gave before. An incarnation is a counter that only grows (it is the
 *      time, so also where the last ones were lost) and a random number (so never another's). One that is not in the view and not later than it is dead for
 *      good. A shard that learns so writes it down first: a late part of it finds itself lost. Only then its cells go, in passing or
 *      by the sweep; its short number is given to another when the sweep has been through all records since.
 *      One that is later than the view is left alone, and taken for living when a tag is looked up in filters.
 *  (5) *Questions are found.* The record in the shard is what says that a host is asked. The list of them is beside it; a mark in the registry
 *      tells the host where to look, and is set with the report that asked. Where that one is never completed, its host's repetition
 *      sets it. Where nobody repeats it, the mark is missing; the check of (2) looks for questions as well.
 *  (6) *A mark that is taken off has no question.* It is versioned, and taken off only as it was read, before the list was found empty.
 *
 * Between open and commit readers see some parts done and others not: no more than there are. A report answered with `anew` may have been
 * applied in parts; they belong to an incarnation that takes no other report, and count only until its host begins anew.
 *
 * Memory: evicting keys would lose records unseen. The server must not: `maxmemory-policy noeviction`, or one of `volatile-…`, as no
 * key here expires by itself. When memory is full it refuses scripts before they change anything.
 */
import { randomBytes } from 'node:crypto';
import { PagetideError } from '../../errors.ts';
import { TAG_BYTES } from '../../pages/tags.ts';
import {
  checkNumber,
  checkReport,
  checkTags,
  MOST_QUERY_TAGS,
  MOST_WANTED,
  type Directory,
  type Holders,
  type HostInfo,
  type LackingPage,
  type Report,
  type ReportAnswer,
  type Wanted,
} from '../directory.ts';
import type { Hint, HintSubject } from '../hint.ts';
import { checkHost, checkName } from '../names.ts';
import { Connection, type RedisAddress, type RedisClient } from './connection.ts';
import { RedisHints } from './hints.ts';
import { mix, shardOf, SHARDS } from './mix.ts';
import { operationsOf } from './operations.ts';
import { Registry, type Applied, type From, type Opened } from './registry.ts';
import { assemble, placeOf, Shards, type Cells } from './shards.ts';

export interface RedisOptions extends Partial<RedisAddress> {
  /** Instead of an address: one that others use, too. It is theirs to close. */
  client?: RedisClient;
  /** What all keys begin with; default `pagetide:`. Directories with different ones don't meet, and each has its registry elsewhere. */
  prefix?: string;
  /** Milliseconds, without a report or a heartbeat, after which a host is taken out. All agents should have the same. */
  leaseMs: number;
  /** Milliseconds between sweeps of some shards, by whichever agent comes first; 0: never by itself. Default 1000. */
  sweepMs?: number;
  /** Tags that an answer may want, now; default {@link MOST_WANTED}, which is the most. */
  mostWanted?: () => number;
  /** For tests: milliseconds, instead of the server's clock. */
  clock?: () => number;
}

const SWEEP_MS = 1000;
/** Shards that one turn of the sweep looks at, and calls for each at most. */
const SWEPT_SHARDS = 16;
const SWEPT_CALLS = 16;
/** Calls under way at once for one report or query. */
const AT_ONCE = 256;
/** Shards that a page asks at once, once it has seen that there is little in each. */
const MOST_AHEAD = 32;
const CURSOR = /^[0-9a-f]{1,10}$/;
const HALF = 2 ** 32;

export class RedisDirectory implements Directory {
  readonly #connection: Connection;
  readonly #registry: Registry;
  readonly #shards: Shards;
  readonly #hints: RedisHints;
  readonly #sweepMs: number;
  readonly #mostWanted: () => number;
  readonly #timer: NodeJS.Timeout | undefined;
  #sweeping = false;
  /** By host: what to check next, and how often the connection was broken when all was checked last. */
  readonly #checks = new Map<string, { next: number; breaks: number }>();

  /** Connects in the background. @throws PagetideError `PT_BAD_ARGUMENT` */
  constructor({ prefix = 'pagetide:', leaseMs, sweepMs = SWEEP_MS, mostWanted, clock, ...where }: RedisOptions) {
    checkNumber(leaseMs, 'a lease');
    if (!/^[\x21-\x7a]{0,64}$/.test(prefix))
      throw new PagetideError('PT_BAD_ARGUMENT', `${JSON.stringify(prefix)} cannot be what keys begin with`);
    this.#connection = new Connection(where.client ?? { urls: [], ...where });
    this.#registry = new Registry(this.#connection, prefix, leaseMs, clock);
    this.#shards = new Shards(this.#connection, prefix);
    this.#hints = new RedisHints(this.#connection, this.#registry.key, clock);
    this.#sweepMs = sweepMs;
    this.#mostWanted = mostWanted ?? (() => MOST_WANTED);
    if (sweepMs > 0)
      this.#timer = setInterval(() => {
        if (!this.#sweeping) this.sweep(this.#sweepMs).catch(() => undefined); // the next one may do
      }, sweepMs).unref();
  }

  async report(report: Report): Promise<ReportAnswer> {
    checkReport(report);
    const { host, sequence, changes, held = [] } = report;
    const changed = new Map<string, boolean>();
    for (const { domain, added } of changes) changed.set(domain, changed.get(domain) === true || added.length > 0);
    const answered = [...new Set(held.map(({ domain }) => domain))].filter((domain) => !changed.has(domain));
    const breaks = this.#connection.breaks;
    const from = this.#from(host);
    const which = { ...report, begins: report.begins === true };
    const opened = await this.#registry.open(which, from, randomBytes(8).toString('hex'), changed, answered);
    if (opened === 'anew') return ANEW();
    if (opened.state === 'applied') return this.#answer(host, opened, from, breaks);

    const parts = await this.#apply(report, opened);
    if (parts === undefined) return this.#lost(host, opened.incarnation);
    const guests = changes.flatMap(({ domain, guest, gone = false }) => {
      const generation = opened.domains.get(domain)?.generation;
      return generation === undefined ? [] : [{ domain, generation, guest, gone }];
    });
    const { incarnation } = opened;
    const done = await this.#registry.commit({ host, incarnation, sequence, guests, ...parts }, from);
    return done === 'anew' ? ANEW() : this.#answer(host, done, from, breaks);
  }

  async heartbeat(host: string, epoch: number, sequence?: number): Promise<ReportAnswer> {
    checkHost(host);
    checkNumber(epoch, 'an epoch');
    if (sequence !== undefined) checkNumber(sequence, 'a sequence');
    const breaks = this.#connection.breaks;
    const from = this.#from(host);
    const beat = await this.#registry.beat(host, epoch, sequence ?? 0, from);
    return beat === 'anew' ? ANEW() : this.#answer(host, beat, from, breaks);
  }

  async holders(domain: string, tags: Uint8Array): Promise<Holders> {
    checkName(domain, 'domain');
    const count = checkTags(tags, MOST_QUERY_TAGS);
    const { view, generation } = await this.#registry.view(domain);
    if (generation === undefined) return assemble(view.names, new Array<[Cells, number]>(count).fill([NONE, 0]));
    const mixed = mix(tags);
    const places: number[][] = Array.from({ length: SHARDS }, () => []);
    for (let i = 0; i < count; i++) places[shardOf(mixed, i * TAG_BYTES)]!.push(i);
    const order = new Array<[Cells, number]>(count);
    await inWaves([...places.keys()], async (shard) => {
      const own = places[shard]!;
      if (own.length === 0) return;
      const asked = new Uint8Array(own.length * TAG_BYTES);
      own.forEach((i, at) => asked.set(mixed.subarray(i * TAG_BYTES, (i + 1) * TAG_BYTES), at * TAG_BYTES));
      const cells = await this.#shards.holders(placeOf(domain, generation, shard), view, asked);
      own.forEach((i, at) => (order[i] = [cells, at]));
    });
    return assemble(view.names, order);
  }

  async lacking(
    domain: string,
    host: string,
    { limit, cursor = '0' }: { limit: number; cursor?: string },
  ): Promise<LackingPage> {
    checkName(domain, 'domain');
    checkHost(host);
    checkNumber(limit, 'a limit');
    if (limit > MOST_QUERY_TAGS) throw new PagetideError('PT_BAD_ARGUMENT', `${limit} tags in a page`);
    if (!CURSOR.test(cursor)) throw new PagetideError('PT_BAD_ARGUMENT', `${JSON.stringify(cursor)} is no cursor`);
    const { view, generation } = await this.#registry.view(domain);
    const own = view.incarnations[view.names.indexOf(host)] ?? '';
    const tags: Uint8Array[] = [];
    const order: [Cells, number][] = [];
    let place = Number.parseInt(cursor, 16); // shard, and position in it
    // one after the other in their order: a position is passed once, and what it stands for doesn't change
    for (let ahead = 1; generation !== undefined && place < SHARDS * HALF && order.length < limit;) {
      const from = Math.floor(place / HALF);
      const shards = Array.from({ length: Math.min(ahead, SHARDS - from) }, (_, i) => from + i);
      const room = limit - order.length;
      const found = await Promise.all(
        shards.map((shard) =>
          this.#shards.lacking(placeOf(domain, generation, shard), view, own, shard === from ? place % HALF : 0, room),
        ),
      );
      const before = order.length;
      for (const [i, part] of found.entries()) {
        const count = part.tags.length / TAG_BYTES;
        if (i > 0 && order.length + count > limit) break; // asked again with the next page
        tags.push(part.tags);
        for (let at = 0; at < count; at++) order.push([part.cells, at]);
        place = part.next === undefined ? (shards[i]! + 1) * HALF : shards[i]! * HALF + part.next;
        if (part.next !== undefined) break;
      }
      if (place % HALF !== 0) break;
      if (order.length - before < room / 4) ahead = Math.min(MOST_AHEAD, ahead * 2);
    }
    const page = { tags: new Uint8Array(Buffer.concat(tags)), ...assemble(view.names, order) };
    return generation !== undefined && place < SHARDS * HALF ? { ...page, cursor: place.toString(16) } : page;
  }

  async hosts(): Promise<HostInfo[]> {
    return this.#registry.hosts();
  }

  async removeHost(host: string): Promise<void> {
    checkHost(host);
    await this.#registry.remove('removeHost', host);
  }

  async removeDomain(domain: string): Promise<void> {
    checkName(domain, 'domain');
    await this.#registry.remove('removeDomain', domain);
  }

  async hints(domain: string): Promise<Hint[]> {
    return this.#hints.list(domain);
  }

  async hint(domain: string, hint: Hint): Promise<void> {
    await this.#hints.set(domain, hint);
  }

  async withdraw(domain: string, subject: HintSubject): Promise<boolean> {
    return this.#hints.withdraw(domain, subject);
  }

  async empty(): Promise<void> {
    await this.#registry.empty();
  }

  /**
   * Deletes all of a domain that is gone, where it alone is behind the prefix. Reports that are on their way may bring some of it back.
   * @returns whether nothing is left; false: to be done again, for some ten minutes, until none can be on its way
   */
  async erase(domain: string): Promise<boolean> {
    await this.empty();
    await this.removeDomain(domain);
    for (let more = true; more;) {
      more = false;
      const turn = await this.#registry.turn(0, 0);
      for (const [place, isLast] of turn?.removed ?? []) {
        for (let shard = 0; shard < SHARDS; shard++) while (await this.#shards.bury(`${place}:${shard}`, turn!.view));
        if (isLast) await this.#registry.buried(place);
        more ||= isLast; // others may have waited behind it
      }
    }
    return this.#registry.erase();
  }

  /** What is under way is given up; it may have been done all the same. */
  async close(): Promise<void> {
    clearInterval(this.#timer);
    this.#connection.close();
    return Promise.resolve();
  }

  /**
   * Takes out, of some shards, what hosts that are gone told, and deletes shards of domains that were removed. Agents do so by themselves.
   * @param pauseMs nothing is done where any agent did less than so long ago
   * @param shards to look at
   */
  async sweep(pauseMs = 0, shards = SWEPT_SHARDS): Promise<void> {
    this.#sweeping = true;
    try {
      const turn = await this.#registry.turn(pauseMs, shards);
      if (turn === undefined) return;
      for (const place of turn.places)
        for (let i = 0; i < SWEPT_CALLS && (await this.#shards.sweep(place, turn.view)); i++);
      for (const [place, isLast] of turn.removed) {
        for (let shard = 0; shard < SHARDS; shard++) while (await this.#shards.bury(`${place}:${shard}`, turn.view));
        if (isLast) await this.#registry.buried(place);
      }
    } finally {
      this.#sweeping = false;
    }
  }

  /** Undefined: something was lost. */
  async #apply(
    report: Report,
    opened: Opened,
  ): Promise<
    | {
        worn: boolean;
        touched: { domain: string; generation: string; shards: Uint8Array }[];
        asked: [string, string][];
      }
    | undefined
  > {
    const { domains, view, incarnation, number } = opened;
    const touched = new Map(
      [...domains].map(([domain, { generation }]) => [domain, { domain, generation, shards: new Uint8Array(SHARDS) }]),
    );
    const asked: [string, string][] = [];
    const state = { worn: false, lost: false };
    await inWaves(operationsOf(report, domains), async (operations) => {
      const { domain, shard } = operations;
      const { generation, numbers } = domains.get(domain)!;
      const place = placeOf(domain, generation, shard);
      const done = await this.#shards.apply(place, view, incarnation, number, numbers[shard]!, operations);
      if (done === undefined) {
        state.lost = true;
        return;
      }
      touched.get(domain)!.shards[shard] = 1;
      state.worn ||= done.worn;
      for (const other of done.asked) asked.push([other, place]);
    });
    return state.lost ? undefined : { worn: state.worn, touched: [...touched.values()], asked };
  }

  /** Looks where it may be asked for something, and whether all is there that it told. */
  async #answer(
    host: string,
    { incarnation, view, marks, checks }: Applied,
    from: From,
    breaks: number,
  ): Promise<ReportAnswer> {
    const asked = new Map<string, { before: number; version?: string }>();
    for (const { domain, generation, first, numbers } of checks)
      numbers.forEach((before, i) => {
        if (before > 0) asked.set(placeOf(domain, generation, first + i), { before });
      });
    for (const [place, version] of marks) asked.set(place, { before: asked.get(place)?.before ?? 0, version });
    const wantedNow = Math.min(MOST_WANTED, this.#mostWanted());
    const most = Math.max(16, Math.floor(wantedNow / Math.max(1, marks.length)));
    const found = new Map<string, Uint8Array[]>();
    const empty: [string, string][] = [];
    let room = wantedNow * TAG_BYTES;
    const lost: string[] = [];
    await inWaves([...asked], async ([place, { before, version }]) => {
      const tags = await this.#shards.wanted(place, view, incarnation, before, most);
      if (tags === undefined) lost.push(place);
      else if (tags.length === 0) {
        if (version !== undefined) empty.push([place, version]);
      } else if (room > 0) {
        const domain = place.slice(0, place.lastIndexOf('.'));
        const part = tags.subarray(0, room);
        room -= part.length;
        found.set(domain, [...(found.get(domain) ?? []), part]);
      }
    });
    if (lost.length > 0) return this.#lost(host, incarnation);
    await this.#registry.unmark(incarnation, empty);
    if (from === 'all') this.#checks.set(host, { next: 0, breaks });
    const wanted = [...found].map(([domain, parts]): Wanted => ({
      domain,
      tags: new Uint8Array(Buffer.concat(parts)),
    }));
    return { state: 'applied', wanted };
  }

  async #lost(host: string, incarnation: string): Promise<ReportAnswer> {
    await this.#registry.spoil(host, incarnation);
    return ANEW();
  }

  /** Which shards to check with the next answer: all of them where the connection was lost since that was done last. */
  #from(host: string): From {
    const own = this.#checks.get(host) ?? { next: 0, breaks: this.#connection.breaks };
    this.#checks.set(host, { ...own, next: own.next + 1 });
    return own.breaks === this.#connection.breaks ? own.next : 'all';
  }
}

const NONE: Cells = { first: [0, 0], host: [], held: [] };
const ANEW = (): ReportAnswer => ({ state: 'anew', wanted: [] });

/** Some at once; all of a wave have ended when one has failed. */
async function inWaves<T>(all: readonly T[], work: (one: T) => Promise<void>): Promise<void> {
  for (let at = 0; at < all.length; at += AT_ONCE) {
    const done = await Promise.allSettled(all.slice(at, at + AT_ONCE).map(work));
    for (const one of done) if (one.status === 'rejected') throw one.reason;
  }
}
