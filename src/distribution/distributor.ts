/**
 * Distribution at this host: decides what is brought here, has it brought, and keeps the account.
 *
 *                     no cache, or no budget
 *   off ◄──────────────────────────────────────────── any
 *
 *             plan is due                    queue                         queue empty
 *   idle ───────────────────► planning ──────────────► bringing ───────────────────────► idle
 *     │                          │ no directory answered,   │  ▲                            or directory-away, where no directory answered
 *     │                          │ nothing queued           │  │ the migration has ended
 *     │                          ╰──► directory-away        ▼  │
 *     │ pause                         (plans again)     standing-back: a migration runs here (the bringer waits)
 *     ▼
 *   paused ── resume ──► planning
 *
 * One loop does it, a plan at a time or two errands: the next errand is made while one is under way. A plan waits for their end. A plan is due an interval after the last one, and soon when a hint comes or goes, when domains
 * change, and when the budget is set. All of it is in the agent's main thread, in turns of a few milliseconds.
 *
 * What is held is known across a restart (held-file.ts), so the first plan of a new run is what the last one had left.
 */
import type { Logger } from 'pino';
import { asPagetideError, PagetideError } from '../errors.ts';
import type { PageCache } from '../pages/cache.ts';
import { MOST_QUERY_TAGS } from '../directory/directory.ts';
import type { Manifest } from '../pages/manifest.ts';
import type { ResidentIndex } from '../pages/resident.ts';
import type { ErrandBringer, Surroundings } from './bringing.ts';
import type { ErrandResult } from './errand.ts';
import { systemClock, type Clock } from './clock.ts';
import { explainPages } from './explain-pages.ts';
import { HELD_BYTES } from './held-pages.ts';
import { HINTS_MS, watchHints } from './hint-watch.ts';
import type { DistributionInfo, DistributionSettings, HostExplanation } from './info.ts';
import { Kept } from './kept.ts';
import { makeErrand, MOST_ERRAND, nextPlan, type RowErrand } from './make-errand.ts';
import { makePlan, type DomainPlan } from './planner.ts';
import { serveArrival } from './serve-arrival.ts';
import { shrinkTo } from './shrink.ts';
import { statusOf } from './status.ts';
import { takeErrand } from './take-errand.ts';
import type { Rates } from './token-bucket.ts';
import { checkRates } from './wire-cost.ts';
import { WireMeans } from './wire-means.ts';

/** Errands under way at once: the next is made while one is, so that its end is no pause. */
const ERRANDS = 2;
/** Between two plans, in times that the first took: tags of guests that are asked for have their own pace, and no pages come while a plan is made. */
const PLANNING = 4;
/** An errand is for so many milliseconds of the average rate, so that what changes meanwhile is soon seen. */
const ERRAND_MS = 2000;
const LEAST_ERRAND = 16;

export interface DistributorParts {
  around: Surroundings;
  cache: Pick<PageCache, 'has' | 'setValue' | 'stats'> | undefined;
  resident: ResidentIndex | undefined;
  bringer: ErrandBringer;
  settings: DistributionSettings;
  /** `<state>/distribution`. */
  folder: string;
  log: Logger;
  clock?: Clock;
}

export class Distributor {
  readonly #parts: DistributorParts;
  readonly #clock: Clock;
  readonly #kept: Kept;
  readonly #means = new WireMeans();
  #plans = new Map<number, DomainPlan>();
  readonly #totals: DistributionInfo['totals'] = {
    ...{ broughtPages: 0, broughtBytes: 0, servedPages: 0, savedBytes: 0, leftPages: 0, evictedPages: 0 },
    ...{ absentPages: 0, wrongPages: 0, plans: 0 },
  };
  #lastPlan: DistributionInfo['lastPlan'] = null;
  /** Domains by name: whether the directory answered the last plan. */
  readonly #reachable = new Map<string, boolean>();
  #doing: 'planning' | 'bringing' | 'idle' = 'idle';
  /** When the next plan is due. */
  #planMs = 0;
  #latestMs = -Infinity;
  readonly #closed = new AbortController();
  #wake = new AbortController();
  readonly #errands = new Set<{ plan: DomainPlan; stop: AbortController }>();
  #loop: Promise<void> | undefined;
  /** Arrivals, removals and the like, one after the other. Never rejects. */
  #work: Promise<void> = Promise.resolve();

  constructor(parts: DistributorParts) {
    this.#parts = parts;
    this.#clock = parts.clock ?? systemClock;
    const { folder, log } = parts;
    this.#kept = new Kept({ folder, log, clock: this.#clock, nowMs: () => this.#now() });
  }

  /** Takes up what an earlier run left, and begins. What can't be read is said and dropped. */
  async start(): Promise<void> {
    const { log, bringer, settings } = this.#parts;
    await this.#kept.start();
    bringer.setRates(this.#kept.settings.rates ?? settings.rates);
    this.#loop = this.#run();
    void watchHints({
      ...{ plans: () => this.#plans.values(), around: this.#parts.around, clock: this.#clock, log },
      ...{ signal: this.#closed.signal, changed: () => this.nudge() },
      isIdle: () => this.#kept.settings.paused || this.#isOff,
    });
  }

  /** Stops what is on its way, and keeps what is held. Idempotent. */
  async close(): Promise<void> {
    if (!this.#closed.signal.aborted) {
      this.#closed.abort();
      this.#stopErrands();
      this.#wake.abort();
    }
    await this.#loop;
    await this.#work;
    await this.#kept.close();
  }

  /** Brings nothing until {@link resume}; outlives a restart. Resolves when that is on the disk. @throws PagetideError `PT_IO` */
  async pause(): Promise<void> {
    this.#kept.settings.paused = true;
    this.#stopErrands();
    this.#wake.abort();
    await this.#kept.saveSettings();
  }

  /** @throws PagetideError `PT_IO` */
  async resume(): Promise<void> {
    this.#kept.settings.paused = false;
    this.nudge();
    await this.#kept.saveSettings();
  }

  /** At once; outlives a restart. @throws PagetideError `PT_BAD_ARGUMENT`, `PT_IO` */
  async setRates(rates: Rates): Promise<void> {
    this.#kept.settings.rates = checkRates(rates);
    this.#parts.bringer.setRates(rates);
    await this.#kept.saveSettings();
  }

  /**
   * Bytes of the cache that brought pages may take. Where more are held, the least important leave at once. Outlives a restart. Resolves when
   * they have left. @throws PagetideError `PT_BAD_ARGUMENT`, `PT_IO`
   */
  async setBudget(bytes: number): Promise<void> {
    if (!(bytes >= 0)) throw new PagetideError('PT_BAD_ARGUMENT', `no budget in bytes: ${bytes}`);
    this.#kept.settings.budgetBytes = bytes;
    // what is queued was chosen for another budget
    for (const plan of this.#plans.values()) plan.clear();
    this.#stopErrands();
    await this.#shrink();
    this.nudge();
    await this.#kept.saveSettings();
  }

  /** A plan soon: something changed that it should know. */
  nudge(): void {
    this.#planMs = -Infinity;
    this.#wake.abort();
  }

  status(): DistributionInfo {
    return statusOf({
      around: this.#parts.around,
      ...{ cache: this.#parts.cache !== undefined, paused: this.#kept.settings.paused, doing: this.#doing },
      standingBack: this.#parts.bringer.stats().standingBack,
      ...{ rates: this.#kept.settings.rates ?? this.#parts.settings.rates, budgetBytes: this.#budget() },
      ...{
        held: this.#kept.held,
        score: this.#kept.score,
        plans: this.#plans,
        lastPlan: this.#lastPlan,
        totals: this.#totals,
      },
      reachable: this.#reachable,
    });
  }

  /**
   * Where each of some pages stands at this host, summed.
   * @param tags packed, at most 65,536
   * @throws PagetideError `PT_DOMAIN_UNKNOWN`, `PT_BAD_ARGUMENT`
   */
  async explain(name: string, tags: Uint8Array): Promise<HostExplanation> {
    const { around, cache, settings } = this.#parts;
    const domain = around.domains().find((each) => each.name === name);
    if (domain === undefined) throw new PagetideError('PT_DOMAIN_UNKNOWN', `there is no domain '${name}' here`);
    if (tags.length % 16 !== 0 || tags.length / 16 > MOST_QUERY_TAGS)
      throw new PagetideError('PT_BAD_ARGUMENT', `tags of 16 bytes, ${MOST_QUERY_TAGS} at most`);
    return explainPages({
      ...{ domain: domain.id, tags, plan: this.#plans.get(domain.id), place: around.directory(name) },
      ...{ held: this.#kept.held, cache, score: this.#kept.score, settings },
      ...{ wireMean: this.#means.of(domain.id), nowMs: this.#now() },
    });
  }

  /** How many of these pages the last plan still brings. As {@link explain}. */
  async queued(name: string, tags: Uint8Array): Promise<number> {
    return (await this.explain(name, tags)).queued;
  }

  /** A guest of the domain arrived here with these pages: what of them was brought has served. Resolves when it is counted. */
  async arrived(name: string, manifest: Pick<Manifest, 'tags'>): Promise<void> {
    const { around, cache } = this.#parts;
    const domain = around.domains().find((each) => each.name === name);
    if (domain === undefined || cache === undefined) return;
    await this.#queueWork(async () => {
      const { pages, bytes } = await serveArrival(domain, manifest.tags, this.#kept.held, this.#kept.score, cache);
      this.#totals.servedPages += pages;
      this.#totals.savedBytes += bytes;
    });
  }

  /** The domain is no more here: nothing of it is brought or counted from now on. Resolves when its rows are gone. */
  async domainRemoved({ name, id }: { name: string; id: number }): Promise<void> {
    const plan = this.#plans.get(id);
    if (plan !== undefined) {
      plan.gone = true;
      plan.clear();
    }
    this.#plans.delete(id);
    for (const errand of this.#errands)
      if (errand.plan.domain.id === id) {
        errand.plan.gone = true;
        errand.stop.abort();
      }
    this.#kept.score.forget(name);
    this.#means.forget(id);
    this.#reachable.delete(name);
    const rows = this.#kept.held.dropDomain(id);
    // its count goes with the first step, at once
    const first = rows.next();
    if (first.done !== true)
      await this.#queueWork(async () => {
        for (let step = rows.next(); step.done !== true; step = rows.next())
          await new Promise((resolve) => setImmediate(resolve));
      });
  }

  async #run(): Promise<void> {
    const { signal } = this.#closed;
    while (!signal.aborted) {
      // one for each round: what is said from here on ends the wait below
      this.#wake = new AbortController();
      this.#doing = 'idle';
      try {
        if (this.#kept.settings.paused || this.#isOff) await this.#clock.wait(HINTS_MS, this.#wake.signal);
        else if (this.#now() >= this.#planMs) await this.#plan();
        else if (nextPlan(this.#plans.values()) !== undefined) await this.#bring();
        else await this.#clock.wait(Math.max(1, Math.min(HINTS_MS, this.#planMs - this.#now())), this.#wake.signal);
      } catch (error) {
        const { code, message } = asPagetideError(error);
        this.#parts.log.error({ code }, `distribution: ${message}`);
        for (const plan of this.#plans.values()) plan.clear();
        this.#planMs = this.#now() + this.#parts.settings.intervalMs;
      }
    }
    this.#doing = 'idle';
  }

  async #plan(): Promise<void> {
    const { around, cache, settings, log } = this.#parts;
    this.#doing = 'planning';
    const beganMs = this.#now();
    const at = this.#clock.unixMs();
    // a nudge that comes from here on is for the plan after
    this.#planMs = Infinity;
    const planned = await makePlan(
      {
        ...{ around, cache: cache!, held: this.#kept.held, score: this.#kept.score, means: this.#means, settings },
        ...{ nowMs: () => this.#now(), unixMs: () => this.#clock.unixMs() },
      },
      this.#plans,
      () => this.#budget(),
    );
    this.#plans = planned.plans;
    for (const { name } of around.domains()) if (around.directory(name) !== undefined) this.#reachable.set(name, true);
    for (const { domain, error } of planned.away) {
      if (this.#reachable.has(domain)) this.#reachable.set(domain, false);
      log.debug({ domain, code: error.code }, `the directory is away: ${error.message}`);
    }
    for (const { guest, host, error } of planned.missed)
      log.debug({ guest, host }, `the tags of a guest are not known: ${error.message}`);
    this.#totals.plans++;
    this.#totals.leftPages += planned.leaving;
    this.#totals.evictedPages += planned.evicted;
    const { candidates, chosen, bring, leaving, complete } = planned;
    const away = planned.away.map(({ domain }) => domain);
    this.#lastPlan = {
      ...{ at, candidates, chosen, bring, leaving, away, complete },
      tookMs: this.#now() - beganMs,
    };
    const { tookMs } = this.#lastPlan;
    if (this.#planMs === Infinity) this.#planMs = this.#now() + Math.max(settings.intervalMs, PLANNING * tookMs);
    // set while this was made, by who nudged: what was chosen may be too much
    else if (this.#kept.held.bytes + this.#queuedPages * HELD_BYTES > this.#budget())
      for (const plan of this.#plans.values()) plan.clear();
  }

  /** Until nothing is queued, or something else is due; what is under way has ended then. */
  async #bring(): Promise<void> {
    this.#doing = 'bringing';
    const under = new Set<Promise<void>>();
    try {
      for (let plan = this.#nextPlan; plan !== undefined; plan = this.#nextPlan) {
        const one = this.#bringNext(plan).finally(() => under.delete(one));
        under.add(one);
        if (under.size === ERRANDS) await Promise.race(under);
        if (this.#kept.held.bytes > this.#budget()) await this.#shrink();
      }
      await Promise.all(under);
    } finally {
      await Promise.allSettled(under);
    }
    if (this.#kept.held.bytes > this.#budget()) await this.#shrink();
  }

  get #nextPlan(): DomainPlan | undefined {
    if (this.#closed.signal.aborted || this.#kept.settings.paused || this.#isOff || this.#now() >= this.#planMs)
      return undefined;
    return nextPlan(this.#plans.values());
  }

  #stopErrands(): void {
    for (const { stop } of this.#errands) stop.abort();
  }

  async #bringNext(plan: DomainPlan): Promise<void> {
    const { around, cache, resident, bringer, log } = this.#parts;
    const { average } = this.#kept.settings.rates ?? this.#parts.settings.rates;
    const fitting = Math.floor((average * ERRAND_MS) / 1000 / this.#means.of(plan.domain.id));
    const stop = new AbortController();
    const under = { plan, stop };
    this.#errands.add(under);
    try {
      const lookups = resident?.lookups(plan.domain.id);
      const most = Math.max(LEAST_ERRAND, Math.min(MOST_ERRAND, fitting));
      const errand = await makeErrand(plan, most, around.members(plan.domain.name), cache!, lookups);
      if (errand.rows.length === 0 || plan.gone) return;
      const result = await bringer.bring(errand, stop.signal);
      for (const { url, pages } of result.wrong) {
        this.#totals.wrongPages += pages;
        log.warn({ domain: plan.domain.name, url, pages }, 'pages that were to be brought are not what their tags say');
      }
      this.#take(errand, result);
    } finally {
      this.#errands.delete(under);
    }
  }

  /** What became of an errand. */
  #take(errand: RowErrand, result: ErrandResult): void {
    takeErrand(errand, result, {
      ...{
        held: this.#kept.held,
        score: this.#kept.score,
        means: this.#means,
        totals: this.#totals,
        nowMs: this.#now(),
      },
      // else one that is stopped again and again for a reason that nobody here knows would go round for ever
      putsBack: this.#kept.settings.paused || this.#planMs <= this.#now(),
    });
  }

  async #shrink(): Promise<void> {
    const { cache, settings } = this.#parts;
    if (cache !== undefined)
      this.#totals.leftPages += await shrinkTo(this.#budget(), this.#kept.held, cache, settings.prices, this.#now());
  }

  get #queuedPages(): number {
    let sum = 0;
    for (const plan of this.#plans.values()) sum += plan.queued;
    return sum;
  }

  #budget(): number {
    const { cache, settings } = this.#parts;
    return this.#kept.settings.budgetBytes ?? settings.budgetBytes ?? ((cache?.stats().slots ?? 0) * HELD_BYTES) / 2;
  }

  get #isOff(): boolean {
    return this.#parts.cache === undefined || this.#budget() < HELD_BYTES;
  }

  #now(): number {
    return (this.#latestMs = Math.max(this.#latestMs, this.#clock.nowMs()));
  }

  async #queueWork(work: () => Promise<void>): Promise<void> {
    this.#work = this.#work.then(work).catch((error: unknown) => {
      this.#parts.log.error({ code: asPagetideError(error).code }, asPagetideError(error).message);
    });
    await this.#work;
  }
}
