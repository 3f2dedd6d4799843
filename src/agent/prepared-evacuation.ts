/**
 * An evacuation that begins once its targets have brought what they will (evacuation-preparation.ts). Until then it is the plan that was
 * made at first, with the state `preparing`; then it is planned anew, with what the targets have by then.
 */
import { setTimeout as delay } from 'node:timers/promises';
import type { Logger } from 'pino';
import { asPagetideError } from '../errors.ts';
import type { Evacuation } from './evacuation.ts';
import type { EvacuationCounts } from './evacuation-totals.ts';
import type { Preparation } from './evacuation-preparation.ts';
import type { EvacuationInfo } from './service.ts';

/** An agent that ends waits so long for directories to withdraw the plan. Milliseconds. */
const CLOSE_MS = 3_000;

export class PreparedEvacuation {
  readonly #preparation: Preparation;
  readonly #again: () => Promise<Evacuation>;
  readonly #keepPlan: boolean;
  readonly #log: Logger;
  #evacuation: Evacuation;
  #isPreparing = true;
  /** Who is on its way is to come back. */
  #isCancelled = false;
  #isClosed = false;
  #isReleasing = false;
  #isReleased: boolean;
  #onChange: (() => void) | undefined;

  /**
   * @param planned nothing of it has begun
   * @param again plans anew. Where that fails (a target is not reached any more) the first plan counts
   * @param keepPlan the plan to evacuate this host stays in force when it has ended
   */
  constructor(
    planned: Evacuation,
    preparation: Preparation,
    again: () => Promise<Evacuation>,
    keepPlan: boolean,
    log: Logger,
  ) {
    this.#evacuation = planned;
    this.#preparation = preparation;
    this.#again = again;
    this.#keepPlan = keepPlan;
    this.#isReleased = keepPlan;
    this.#log = log;
  }

  onChange(callback: () => void): void {
    this.#onChange = callback;
    this.#preparation.onChange(callback);
  }

  /** When nothing of it is left, the plan to evacuate this host neither. */
  get ended(): boolean {
    return this.#isClosed || (!this.#isPreparing && this.#evacuation.ended && this.#isReleased);
  }

  begin(): void {
    void this.#run();
  }

  stop(cancel: boolean): void {
    if (!this.#isPreparing) {
      this.#evacuation.stop(cancel);
      return;
    }
    // none of it has begun, and none will; but an earlier command may have
    this.#isCancelled ||= cancel;
    this.#preparation.stop();
  }

  /** The agent ends. The plan is withdrawn as the evacuation is forgotten; where a directory does not answer soon, it expires. Never rejects. */
  async close(): Promise<void> {
    this.#isClosed = true;
    this.#preparation.stop();
    this.#evacuation.close();
    if (this.#keepPlan) return;
    const answered = new AbortController();
    const patience = delay(CLOSE_MS, undefined, { signal: answered.signal }).catch(() => undefined);
    await Promise.race([this.#preparation.release(), patience]);
    answered.abort();
  }

  info(): EvacuationInfo {
    const info = this.#evacuation.info();
    const preparation = this.#preparation.info();
    if (this.#isPreparing) return { ...info, state: 'preparing', elapsedMs: preparation.elapsedMs, preparation };
    const elapsedMs = info.elapsedMs + preparation.elapsedMs;
    // whoever is told that it has ended finds the plan withdrawn
    const state = info.state === 'ended' && !this.ended ? 'stopping' : info.state;
    return { ...info, state, elapsedMs, preparation };
  }

  counts(): EvacuationCounts {
    return this.#evacuation.counts();
  }

  async #run(): Promise<void> {
    const how = await this.#preparation.wait();
    if (how !== 'stopped' && !this.#isClosed) await this.#planAgain();
    if (this.#isClosed) return;
    const evacuation = this.#evacuation;
    evacuation.onChange(() => this.#changed());
    this.#isPreparing = false;
    // stop may have been asked for while it was planned
    if (this.#preparation.isStopped) evacuation.stop(this.#isCancelled);
    else evacuation.begin();
  }

  async #planAgain(): Promise<void> {
    try {
      const evacuation = await this.#again();
      evacuation.check();
      this.#evacuation = evacuation;
    } catch (thrown) {
      const { code, message } = asPagetideError(thrown);
      this.#log.warn({ code }, `the evacuation goes by the plan from before its preparation: ${message}`);
    }
  }

  #changed(): void {
    if (this.#evacuation.ended && !this.#keepPlan && !this.#isReleasing) {
      this.#isReleasing = true;
      void this.#preparation.release().then(() => {
        this.#isReleased = true;
        this.#onChange?.();
      });
    }
    this.#onChange?.();
  }
}
