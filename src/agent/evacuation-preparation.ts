/**
 * Before an evacuation: the hosts that are to take the guests bring their pages.
 *
 *   plan to evacuate this host is in force ──► each target plans anew ──► brings ──► nothing is left in its queue ──► over
 *                                                                       ╰─► the time is over ─────────────────────► over
 *
 * Whether a target plans with it can't be seen from its queue, which is empty before it has looked, too. So it is waited for until a plan of
 * it began after this one was in the directory: a target tells the age of its last plan, a duration, so that clocks need not agree; and
 * it is measured against the moment *before* it was asked, so what the answer takes only makes it wait longer.
 *
 * A target that is not of a guest's domain, does not bring (off, paused) or does not answer is not waited for.
 */
import { setTimeout as delay } from 'node:timers/promises';
import type { Logger } from 'pino';
import { asPagetideError } from '../errors.ts';
import { sameOrigin } from './distribution-plans.ts';
import type { ExplainedGuest, ExplainedHost } from './distribution-service.ts';

const PAGE = 4096;
/** Between two rounds of asking, at least. Milliseconds. */
const LOOK_MS = 2_000;
/** The plan is in force for so long beyond the preparation: for the evacuation itself. Milliseconds. */
const EVACUATION_MS = 2 * 3_600_000;

export interface Preparer {
  /** Sees to it that the plan is in force so long, milliseconds; what it returns puts things back. @throws PagetideError: nothing is planned */
  hold(forMs: number): Promise<() => Promise<void>>;
  /** Of a guest, at hosts with these URLs. @throws PagetideError: nothing is known of it */
  explain(guest: string, urls: readonly string[]): Promise<ExplainedGuest>;
}

/** Of pages of all guests at all targets of their domains. */
export interface PreparationInfo {
  elapsedMs: number;
  mostMs: number;
  pages: number;
  /** Pages that are there. */
  there: number;
  /** Bytes of pages that are still to be brought, before compression. */
  queuedBytes: number;
  /** Targets that have not planned with it yet. */
  planning: number;
  /** Targets that did not answer. */
  silent: string[];
  /** `brought`: nothing is left to be brought; `time`: time was over; `stopped`. Null: it goes on. */
  ended: 'brought' | 'time' | 'stopped' | null;
}

export class Preparation {
  readonly #preparer: Preparer;
  readonly #guests: readonly string[];
  readonly #urls: readonly string[];
  readonly #mostMs: number;
  readonly #log: Logger;
  readonly #lookMs: number;
  readonly #stopped = new AbortController();
  readonly #startedAt = performance.now();
  #release: (() => Promise<void>) | undefined;
  #released: Promise<void> | undefined;
  #figures: Omit<PreparationInfo, 'elapsedMs' | 'mostMs' | 'ended'> = {
    pages: 0,
    there: 0,
    queuedBytes: 0,
    planning: 0,
    silent: [],
  };
  #ended: PreparationInfo['ended'] = null;
  #elapsedMs: number | undefined;
  #onChange: (() => void) | undefined;

  /** @param guests of a domain @param urls of the targets @param mostMs milliseconds */
  constructor(
    preparer: Preparer,
    guests: readonly string[],
    urls: readonly string[],
    mostMs: number,
    log: Logger,
    lookMs = LOOK_MS,
  ) {
    this.#preparer = preparer;
    this.#guests = guests;
    this.#urls = urls;
    this.#mostMs = mostMs;
    this.#log = log;
    this.#lookMs = lookMs;
  }

  onChange(callback: () => void): void {
    this.#onChange = callback;
  }

  /** The plan is in force then. @throws PagetideError: nothing is */
  async begin(): Promise<void> {
    this.#release = await this.#preparer.hold(this.#mostMs + EVACUATION_MS);
  }

  /** Resolves when it is over. Never rejects. */
  async wait(): Promise<'brought' | 'time' | 'stopped'> {
    const plannedAt = performance.now();
    const end = this.#startedAt + this.#mostMs;
    for (;;) {
      const lookedAt = performance.now();
      const isOver = await this.#look(plannedAt, end);
      if (this.#stopped.signal.aborted) return this.#end('stopped');
      if (isOver) return this.#end('brought');
      const left = end - performance.now();
      if (left <= 0) return this.#end('time');
      this.#onChange?.();
      // all tags of all guests go to all targets each time: a tenth of the time at most
      const pause = Math.max(this.#lookMs, 9 * (performance.now() - lookedAt));
      await delay(Math.min(left, pause), undefined, { signal: this.#stopped.signal }).catch(() => undefined);
    }
  }

  /** Puts the plan back to what it was, once. Resolves when that is done; never rejects. */
  release(): Promise<void> {
    return (this.#released ??= this.#putBack());
  }

  async #putBack(): Promise<void> {
    await this.#release?.().catch((thrown: unknown) => {
      const { code, message } = asPagetideError(thrown);
      this.#log.warn({ code }, `the plan to evacuate this host stays until it expires: ${message}`);
    });
  }

  stop(): void {
    this.#stopped.abort();
  }

  get isStopped(): boolean {
    return this.#stopped.signal.aborted;
  }

  info(): PreparationInfo {
    const elapsedMs = this.#elapsedMs ?? performance.now() - this.#startedAt;
    return { ...this.#figures, elapsedMs, mostMs: this.#mostMs, ended: this.#ended };
  }

  #end(how: 'brought' | 'time' | 'stopped'): typeof how {
    this.#ended = how;
    this.#elapsedMs = performance.now() - this.#startedAt;
    const { pages, there, queuedBytes } = this.#figures;
    this.#log.info({ pages, there, queuedBytes, how }, 'the preparation of the evacuation is over');
    return how;
  }

  /** Whether nothing is left to be brought. A look that is not done at the end tells nothing: targets that are slow may take long. */
  async #look(plannedAt: number, end: number): Promise<boolean> {
    const done = new AbortController();
    const signal = AbortSignal.any([this.#stopped.signal, done.signal]);
    const over = delay(Math.max(0, end - performance.now()), 'over' as const, { signal }).catch(() => 'over' as const);
    try {
      return await this.#lookAt(plannedAt, over);
    } finally {
      done.abort();
    }
  }

  async #lookAt(plannedAt: number, over: Promise<'over'>): Promise<boolean> {
    const figures = { pages: 0, there: 0, queuedBytes: 0 };
    const silent = new Set<string>();
    const planning = new Set<string>();
    for (const guest of this.#guests) {
      const askedAt = performance.now();
      // one of which nothing is known is not waited for: it may have ended, or was never watched
      const explaining = this.#preparer.explain(guest, this.#urls).catch(() => undefined);
      const explained = await Promise.race([explaining, over]);
      if (explained === 'over') return false;
      for (const host of explained?.hosts ?? []) {
        if (!this.#urls.some((url) => sameOrigin(url, host.url))) continue;
        const { explanation, state } = host;
        if (explanation === null || state === null) {
          silent.add(host.url);
          continue;
        }
        figures.pages += explanation.pages;
        figures.there += Math.max(0, explanation.pages - explanation.queued - explanation.missing);
        if (state === 'off' || state === 'paused') continue;
        figures.queuedBytes += explanation.queued * PAGE;
        if (!hasPlanned(host, askedAt - plannedAt)) planning.add(host.url);
      }
    }
    this.#figures = { ...figures, planning: planning.size, silent: [...silent] };
    return planning.size === 0 && figures.queuedBytes === 0;
  }
}

/** @param sinceMs from the plan being in force until the host was asked */
function hasPlanned({ planAgeMs }: ExplainedHost, sinceMs: number): boolean {
  return planAgeMs !== null && planAgeMs < sinceMs;
}
