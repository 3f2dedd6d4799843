/**
 * A plan: what this host brings next, over all domains together.
 *
 *   gather a domain ──► held pages: still in the cache? ──► candidates ──► choose ──► leaving pages let go, a queue a domain
 *     │ directory away
 *     ╰──► the domain's plan before goes on; what it holds and queued is off the budget
 *
 * A held page that a directory does not tell of keeps the likelihood that it had for LINGER_MS: a directory that was emptied is told again within
 * minutes, and a page let go of for that would have lost its place. After that nobody elsewhere holds it, or a guest here does.
 *
 * A page that leaves stays in the cache as an ordinary page of no value, until the cache wants its place.
 */
import { TAG_WORDS } from '../directory/tag-words.ts';
import { asPagetideError, type PagetideError } from '../errors.ts';
import type { Domain } from '../migration/domains.ts';
import type { PageCache } from '../pages/cache.ts';
import type { Surroundings } from './bringing.ts';
import { BRING, CACHED, DomainCandidates, KEEP, LEAVE, SKIP } from './candidates.ts';
import { gather, MOST_CANDIDATES } from './gather.ts';
import { HELD, HELD_BYTES, UNPAID, type HeldPages } from './held-pages.ts';
import type { Hint } from '../directory/hint.ts';
import { choosing, importance, logMiss, SHARED_LIFE_MS, stability, type Candidates } from './importance.ts';
import type { DistributionSettings } from './info.ts';
import { Turns } from './pieces.ts';
import { pageClassOf, type PageClass, type Score } from './score.ts';
import { WireMeans } from './wire-means.ts';

/** So long a held page stays as it was when its directory stops telling of it. */
export const LINGER_MS = 10 * 60_000;
/** Rows between two looks at the time; whole segments of a table have a multiple of it. */
const SOME = 1024;

/** What a plan says of one domain. */
export class DomainPlan {
  /** Rows of the table to be brought, the most important first, from {@link at} on. */
  queue = new Uint32Array(0);
  /** Of each. */
  importance = new Float32Array(0);
  at = 0;
  /** The domain is no more. */
  gone = false;
  #cleared = false;

  readonly domain: Domain;
  readonly table: DomainCandidates;
  readonly hints: readonly Hint[];
  /** Unix milliseconds. */
  readonly madeAt: number;

  constructor(domain: Domain, table: DomainCandidates, hints: readonly Hint[], madeAt: number) {
    this.domain = domain;
    this.table = table;
    this.hints = hints;
    this.madeAt = madeAt;
  }

  get queued(): number {
    return this.queue.length - this.at;
  }

  /** Nothing more is brought until the next plan. */
  clear(): void {
    this.#cleared = true;
    this.at = this.queue.length;
  }

  /** What it says about a row of the table now. */
  decision(row: number): number {
    const decision = this.table.decision(row);
    return decision === BRING && this.#cleared ? SKIP : decision;
  }

  /**
   * Rows that were taken off the queue and not brought come first again, unless it was cleared. They find room before {@link at}, as all
   * there were taken.
   */
  putBack(rows: readonly number[]): void {
    if (this.#cleared) return;
    // those of one errand are about as important as the next one is
    const importance = this.importance[Math.min(this.at, this.queue.length - 1)]!;
    for (const row of rows.toReversed()) {
      this.queue[--this.at] = row;
      this.importance[this.at] = Math.max(importance, this.importance[this.at]!);
    }
  }
}

export interface PlannerParts {
  around: Surroundings;
  cache: Pick<PageCache, 'has' | 'setValue'>;
  held: HeldPages;
  score: Score;
  means: WireMeans;
  settings: Pick<DistributionSettings, 'horizonMs' | 'moves' | 'prices'>;
  nowMs: () => number;
  unixMs: () => number;
  /** Candidates of one plan at most. */
  most?: number;
  /** For tests, which watch how long it goes without a look at the time. */
  turns?: Turns;
}

export interface Planned {
  plans: Map<number, DomainPlan>;
  candidates: number;
  chosen: number;
  bring: number;
  leaving: number;
  evicted: number;
  /** Domains whose directory did not answer. */
  away: { domain: string; error: PagetideError }[];
  /** Guests whose tags could not be had. */
  missed: { guest: string; host: string; error: Error }[];
  complete: boolean;
}

/** One making of a plan. */
class Making {
  readonly turns: Turns;
  readonly fresh: DomainPlan[] = [];
  readonly old: DomainPlan[] = [];
  readonly #parts: PlannerParts;
  readonly #now: number;
  readonly planned: Planned;

  constructor(parts: PlannerParts) {
    this.#parts = parts;
    this.turns = parts.turns ?? new Turns();
    this.#now = parts.nowMs();
    this.planned = {
      ...{ plans: new Map<number, DomainPlan>(), candidates: 0, chosen: 0, bring: 0, leaving: 0, evicted: 0 },
      ...{ away: [], missed: [], complete: true },
    };
  }

  async gather(before: ReadonlyMap<number, DomainPlan>): Promise<void> {
    const { around, settings, nowMs, unixMs, most = MOST_CANDIDATES } = this.#parts;
    const { planned } = this;
    let room = most;
    for (const domain of around.domains()) {
      const place = around.directory(domain.name);
      const last = before.get(domain.id);
      if (place === undefined) {
        if (last !== undefined) this.old.push(last);
        continue;
      }
      try {
        const { table, hints, complete } = await gather({
          ...{ domain: domain.name, place, around, moves: settings.moves, room, before: last?.table, nowMs },
          turns: this.turns,
          missed: (guest, host, error) => planned.missed.push({ guest, host, error }),
        });
        room -= table.size;
        planned.complete &&= complete;
        this.fresh.push(new DomainPlan(domain, table, hints, unixMs()));
      } catch (error) {
        planned.away.push({ domain: domain.name, error: asPagetideError(error) });
        if (last !== undefined) this.old.push(last);
      }
    }
  }

  /** Held pages: those that the cache evicted go; the others are candidates, where their domain's directory answered. */
  async takeHeld(): Promise<void> {
    const { held, cache } = this.#parts;
    await this.turns.run(held.forget(this.#now));
    const byDomain = new Map(this.fresh.map((plan) => [plan.domain.id, plan]));
    const present = new Uint8Array(SOME);
    for (let from = 0; from < held.index.rows; from += SOME) {
      await this.turns.next();
      const words = held.index.wordsFrom(from, SOME);
      cache.has(bytesOf(words), present.fill(0));
      for (let at = 0; at < words.length; at += TAG_WORDS) {
        const row = from + at / TAG_WORDS;
        if (held.state(row) !== HELD) continue;
        if (present[row - from] !== 1) {
          held.leave(row, this.#now);
          this.planned.evicted++;
          continue;
        }
        const plan = byDomain.get(held.domain(row));
        if (plan !== undefined) this.#takeRow(plan.table, row, words, at);
      }
    }
  }

  #takeRow(table: DomainCandidates, heldRow: number, words: Uint32Array, at: number): void {
    const { held } = this.#parts;
    const listed = table.index.find(words, at);
    if (listed >= 0) {
      held.listed(heldRow, table.likelihood(listed));
      table.setHeld(listed, held.isUnpaid(heldRow));
      return;
    }
    const lingers = this.#now - held.unlisted(heldRow, this.#now) < LINGER_MS;
    const row = table.row(words, at, held.sinceMs(heldRow), undefined);
    table.setHeld(row, held.isUnpaid(heldRow));
    table.setGuests(row, held.guests(heldRow), lingers ? logMiss(held.likelihood(heldRow)) : 0);
  }

  /** Marks pages that never paid, and those that are in the cache anyway. */
  async mark(): Promise<void> {
    const { held, cache } = this.#parts;
    const present = new Uint8Array(SOME);
    for (const { domain, table } of this.fresh) {
      for (let from = 0; from < table.index.rows; from += SOME) {
        await this.turns.next();
        const words = table.index.wordsFrom(from, SOME);
        cache.has(bytesOf(words), present.fill(0));
        for (let at = 0; at < words.length; at += TAG_WORDS) {
          const row = from + at / TAG_WORDS;
          if (table.isHeld(row)) continue;
          if (present[row - from] === 1) table.decide(row, CACHED);
          const known = held.unpaid === 0 ? -1 : held.find(domain.id, words, at);
          if (known >= 0 && held.state(known) === UNPAID) table.setUnpaid(row);
        }
      }
    }
  }

  async choose(budgetBytes: number): Promise<void> {
    const { held, settings } = this.#parts;
    // what a domain whose directory is away holds and queued, and what is held of one that can't be planned for at all
    let taken = held.bytes;
    for (const { domain } of this.fresh) taken -= held.count(domain.id) * HELD_BYTES;
    for (const plan of this.old) taken += plan.queued * HELD_BYTES;
    const { pages, plan, row } = await this.#candidates();
    const count = row.length;
    const choice = await this.turns.run(choosing(pages, Math.max(0, budgetBytes - taken), settings.prices));
    const counts = new Uint32Array(this.fresh.length);
    for (let i = 0; i < count; i++) {
      if (i % SOME === SOME - 1) await this.turns.next();
      const { table } = this.fresh[plan[i]!]!;
      const wanted = choice.chosen[i] === 1;
      const decision = pages.held[i] === 1 ? (wanted ? KEEP : LEAVE) : wanted ? BRING : SKIP;
      table.decide(row[i]!, decision);
      if (wanted) this.planned.chosen++;
      if (decision === BRING) counts[plan[i]!]!++;
    }
    this.planned.candidates = count;
    this.planned.bring = choice.bring.length;
    await this.#fillQueues(choice.bring, counts, pages, plan, row);
    await this.#letGo(choice.leave, plan, row);
  }

  async #candidates(): Promise<{ pages: Candidates; plan: Uint16Array; row: Uint32Array }> {
    const { held, score, means, settings } = this.#parts;
    const most = this.fresh.reduce((sum, { table }) => sum + table.size, 0);
    const float = (): Float64Array => new Float64Array(most);
    const pages = {
      ...{ guests: new Uint32Array(most), likelihood: float(), stability: float(), wireBytes: float(), score: float() },
      ...{ holdBytes: float(), bringBytes: float(), held: new Uint8Array(most), unpaid: new Uint8Array(most) },
    };
    const plan = new Uint16Array(most);
    const row = new Uint32Array(most);
    const tag = new Uint32Array(TAG_WORDS);
    let count = 0;
    for (const [number, { domain, table }] of this.fresh.entries()) {
      const mean = means.of(domain.id);
      const factors = new Map<PageClass, number>();
      const factorOf = (pageClass: PageClass): number => {
        let factor = factors.get(pageClass);
        if (factor === undefined) factors.set(pageClass, (factor = score.factor(domain.name, pageClass)));
        return factor;
      };
      for (let at = 0; at < table.index.rows; at++) {
        if (at % SOME === SOME - 1) await this.turns.next();
        if (table.decision(at) === CACHED) continue;
        const isHeld = table.isHeld(at);
        if (isHeld) table.index.copy(at, tag, 0);
        const own = isHeld ? held.find(domain.id, tag, 0) : -1;
        // it left while this was planned
        if (isHeld && (own < 0 || held.state(own) !== HELD)) continue;
        const bytes = own < 0 ? mean : held.wireBytes(own);
        const guests = table.guests(at);
        plan[count] = number;
        row[count] = at;
        pages.guests[count] = guests;
        pages.likelihood[count] = table.likelihood(at);
        pages.stability[count] = stability(this.#now - table.sinceMs(at), settings.horizonMs, SHARED_LIFE_MS);
        pages.wireBytes[count] = bytes;
        pages.bringBytes[count] = bytes;
        pages.score[count] = factorOf(own < 0 ? pageClassOf(guests) : held.classOf(own));
        pages.holdBytes[count] = HELD_BYTES;
        pages.held[count] = isHeld ? 1 : 0;
        pages.unpaid[count] = table.isUnpaid(at) ? 1 : 0;
        count++;
      }
    }
    const cut = Object.fromEntries(
      Object.entries(pages).map(([name, array]) => [name, array.subarray(0, count)]),
    ) as unknown as Candidates;
    return { pages: cut, plan: plan.subarray(0, count), row: row.subarray(0, count) };
  }

  async #fillQueues(
    bring: Uint32Array,
    counts: Uint32Array,
    pages: Candidates,
    plan: Uint16Array,
    row: Uint32Array,
  ): Promise<void> {
    const { prices } = this.#parts.settings;
    const ends = new Uint32Array(this.fresh.length);
    for (const [number, made] of this.fresh.entries()) {
      made.queue = new Uint32Array(counts[number]!);
      made.importance = new Float32Array(counts[number]!);
    }
    for (let nth = 0; nth < bring.length; nth++) {
      if (nth % SOME === SOME - 1) await this.turns.next();
      const at = bring[nth]!;
      const made = this.fresh[plan[at]!]!;
      const end = ends[plan[at]!]!++;
      made.queue[end] = row[at]!;
      made.importance[end] = importance(pages, at, prices);
    }
  }

  /** Pages that leave: no longer held, and of no value to the cache. */
  async #letGo(leave: Uint32Array, plan: Uint16Array, row: Uint32Array): Promise<void> {
    const { held, cache } = this.#parts;
    for (let from = 0; from < leave.length; from += SOME) {
      await this.turns.next();
      const some = leave.subarray(from, from + SOME);
      const words = new Uint32Array(some.length * TAG_WORDS);
      let left = 0;
      for (const at of some) {
        const { domain, table } = this.fresh[plan[at]!]!;
        table.index.copy(row[at]!, words, left * TAG_WORDS);
        const own = held.find(domain.id, words, left * TAG_WORDS);
        if (own < 0 || held.state(own) !== HELD) continue;
        held.leave(own, this.#now);
        left++;
      }
      cache.setValue(new Uint8Array(words.buffer, 0, left * TAG_WORDS * 4), 0);
      this.planned.leaving += left;
    }
  }
}

function bytesOf(words: Uint32Array): Uint8Array {
  return new Uint8Array(words.buffer, words.byteOffset, words.byteLength);
}

/**
 * Makes a plan. Domains that are in `before` and whose directory does not answer keep their plan. It never rejects for one domain's sake.
 *
 * @param budgetBytes asked when the choice is made
 */
export async function makePlan(
  parts: PlannerParts,
  before: ReadonlyMap<number, DomainPlan>,
  budgetBytes: () => number,
): Promise<Planned> {
  const making = new Making(parts);
  await making.gather(before);
  await making.takeHeld();
  await making.mark();
  await making.choose(budgetBytes());
  const { planned, fresh, old } = making;
  const still = new Set(parts.around.domains().map(({ id }) => id));
  for (const plan of [...old, ...fresh]) if (still.has(plan.domain.id)) planned.plans.set(plan.domain.id, plan);
  return planned;
}
