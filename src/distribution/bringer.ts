/**
 * The main thread's door to the distribution worker, which brings pages of other hosts into this host's cache: slowly, and never above a peak.
 *
 *   bring(errand) ─► queue ─► distribution worker (piscina, one thread; only while there is work) ─► result
 *   setRates, standBack ─► shared memory ─► hold from its next request on
 */
import { Piscina } from 'piscina';
import { POOL_OPTIONS } from '../batch-workers.ts';
import { PagetideError, asPagetideError, errorFromJson } from '../errors.ts';
import type { DomainKey } from '../pages/tags.ts';
import type { PageCache } from '../pages/cache.ts';
import { TAG_BYTES } from '../pages/tags.ts';
import { BringControl } from './bring-control.ts';
import {
  BRING_LIMITS,
  ERRAND_TAGS,
  Outcome,
  type BringLimits,
  type BringResult,
  type BringTask,
  type Errand,
  type ErrandResult,
} from './errand.ts';
import type { Rates } from './token-bucket.ts';

export { Outcome, type Errand, type ErrandResult } from './errand.ts';

/** Errands that are under way at once; more wait here. */
const AT_ONCE = 64;
/** How long the thread is kept without work, milliseconds. */
const IDLE_MS = 10_000;
const STOPPED = 1;

export interface BringerStats {
  /** At the sockets, HTTP heads included. */
  bytesReceived: number;
  bytesSent: number;
  /** That got into the cache. */
  pages: number;
  wrongPages: number;
  standingBack: boolean;
}

export interface Bringer {
  /**
   * Brings pages into the cache, as fast as the rates allow; a tag that another errand is bringing is waited for, not asked for twice. An errand that
   * is given up (the signal, the domain's removal, {@link close}) ends within 100 ms, with `Stopped` for what is not known by then.
   * @throws PagetideError `PT_BAD_ARGUMENT`: an errand that is none; `PT_INTERNAL`: the worker's thread has died
   */
  bring(errand: Errand, signal?: AbortSignal): Promise<ErrandResult>;
  /** @throws PagetideError `PT_BAD_ARGUMENT`: see `checkRates` in wire-cost.ts */
  setRates(rates: Rates): void;
  /** A migration runs here: nothing is asked for until what this returns is called. Several may hold it back; letting go twice is letting go once. */
  standBack(): () => void;
  stats(): BringerStats;
  /** Ends the errands of a domain that is being removed, soon. What comes of it later does not get into the cache, called or not. */
  domainRemoved(domain: number): void;
  close(): Promise<void>;
}

interface Running {
  domain: number;
  stop: Int32Array;
}

export class PageBringer implements Bringer {
  readonly #cache: PageCache;
  readonly #limits: BringLimits;
  readonly #control = new BringControl();
  readonly #pool: Piscina<BringTask, BringResult>;
  readonly #running = new Set<Running>();
  readonly #ended = new Set<Promise<unknown>>();
  readonly #waiting: (() => void)[] = [];
  #busy = 0;
  #standing = 0;
  #closed = false;

  /** @param limits for tests @throws PagetideError `PT_BAD_ARGUMENT`: rates that are none */
  constructor(parts: { cache: PageCache; rates: Rates; limits?: Partial<BringLimits> }) {
    this.#cache = parts.cache;
    this.#limits = { ...BRING_LIMITS, ...parts.limits };
    this.#control.setRates(parts.rates);
    this.#pool = new Piscina<BringTask, BringResult>({
      filename: new URL('../../workers/distribution-worker.js', import.meta.url).href,
      minThreads: 0,
      maxThreads: 1,
      concurrentTasksPerWorker: AT_ONCE,
      maxQueue: AT_ONCE,
      idleTimeout: IDLE_MS,
      ...POOL_OPTIONS,
    });
  }

  bring(errand: Errand, signal?: AbortSignal): Promise<ErrandResult> {
    const ended = this.#bring(errand, signal);
    this.#ended.add(ended);
    const forget = (): void => void this.#ended.delete(ended);
    ended.then(forget, forget);
    return ended;
  }

  setRates(rates: Rates): void {
    this.#control.setRates(rates);
  }

  standBack(): () => void {
    this.#control.standBack(1);
    this.#standing++;
    let holds = true;
    return () => {
      if (!holds) return;
      holds = false;
      this.#standing--;
      this.#control.standBack(-1);
    };
  }

  stats(): BringerStats {
    return { ...this.#control.counts, standingBack: this.#standing > 0 };
  }

  domainRemoved(domain: number): void {
    for (const running of this.#running) if (running.domain === domain) Atomics.store(running.stop, 0, STOPPED);
  }

  async close(): Promise<void> {
    this.#closed = true;
    for (const { stop } of this.#running) Atomics.store(stop, 0, STOPPED);
    for (const go of this.#waiting.splice(0)) go();
    await Promise.allSettled([...this.#ended]);
    await this.#pool.destroy();
  }

  async #bring(errand: Errand, signal: AbortSignal | undefined): Promise<ErrandResult> {
    const count = checkErrand(errand);
    // by name: what else the caller's object has does not go to another thread
    const { domain, urls, tags, first, holder, value } = errand;
    const wants = { urls, tags, first, holder, value };
    const running: Running = { domain: domain.id, stop: new Int32Array(new SharedArrayBuffer(4)) };
    const isOver = (): boolean => this.#closed || signal?.aborted === true || running.stop[0] !== 0;
    let key: DomainKey | undefined;
    this.#running.add(running);
    const abort = (): void => void Atomics.store(running.stop, 0, STOPPED);
    signal?.addEventListener('abort', abort, { once: true });
    await this.#turn(signal);
    try {
      if (isOver()) return nothingOf(count);
      try {
        key = domain.openKey();
      } catch {
        // removed meanwhile
        return nothingOf(count);
      }
      const result = await this.#pool.run({
        ...wants,
        control: this.#control.shared,
        limits: this.#limits,
        stop: running.stop,
        cache: this.#cache.id,
        domain: domain.id,
        mark: domain.mark,
        key: key.id,
      });
      if ('error' in result) throw errorFromJson(result.error);
      return result;
    } catch (error) {
      throw asPagetideError(error, 'PT_INTERNAL', 'the distribution worker failed');
    } finally {
      signal?.removeEventListener('abort', abort);
      this.#running.delete(running);
      key?.close();
      this.#busy--;
      this.#waiting.shift()?.();
    }
  }

  /** Waits until there is room for one more, or it is given up; counts it as busy then. */
  async #turn(signal: AbortSignal | undefined): Promise<void> {
    if (this.#busy >= AT_ONCE && !this.#closed && signal?.aborted !== true)
      await new Promise<void>((resolve) => {
        const go = (): void => {
          signal?.removeEventListener('abort', leave);
          resolve();
        };
        const leave = (): void => {
          this.#waiting.splice(this.#waiting.indexOf(go), 1);
          go();
        };
        this.#waiting.push(go);
        signal?.addEventListener('abort', leave, { once: true });
      });
    this.#busy++;
  }
}

function nothingOf(count: number): ErrandResult {
  const outcome = new Uint8Array(count).fill(Outcome.Stopped);
  return { outcome, wireBytes: new Uint16Array(count), wrong: [], unreachable: [] };
}

/** @returns how many tags @throws PagetideError `PT_BAD_ARGUMENT` */
function checkErrand({ tags, first, holder, urls, value }: Errand): number {
  const count = tags.length / TAG_BYTES;
  const bad = (what: string): never => {
    throw new PagetideError('PT_BAD_ARGUMENT', what);
  };
  if (!Number.isInteger(count) || count > ERRAND_TAGS) bad(`an errand has ${ERRAND_TAGS} whole tags at most`);
  if (first.length !== count + 1 || first[0] !== 0 || first[count] !== holder.length)
    bad('an errand says of each tag which holders have it');
  for (let i = 0; i < count; i++)
    if (first[i]! > first[i + 1]!) bad('an errand has its holders in the order of its tags');
  for (const at of holder) if (at >= urls.length) bad(`an errand has no holder ${at}`);
  if (!Number.isInteger(value) || value < 0 || value > 15) bad('a page’s value is 0 to 15');
  return count;
}
