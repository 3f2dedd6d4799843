/**
 * An evacuation that begins once its targets have brought what they will (evacuation-preparation.ts). Until then it is the plan that was
 * made at first, with the state `preparing`; then it is planned anew, with what the targets have by then.
 */
import type { Logger } from 'pino';
import { asPagetideError } from '../errors.ts';
import type { Evacuation } from './evacuation.ts';
import type { EvacuationCounts } from './evacuation-totals.ts';
import type { Preparation } from './evacuation-preparation.ts';
import type { EvacuationInfo } from './service.ts';

export class PreparedEvacuation {
  readonly #preparation: Preparation;
  readonly #again: () => Promise<Evacuation>;
  readonly #keepPlan: boolean;
  readonly #log: Logger;
  #evacuation: Evacuation;
  #isPreparing = true;
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
    // while it prepares none has begun, and none will
    if (this.#isPreparing) this.#preparation.stop();
    else this.#evacuation.stop(cancel);
  }

  close(): void {
    this.#isClosed = true;
    this.#preparation.stop();
    this.#evacuation.close();
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
    if (this.#isClosed) return;
    if (how !== 'stopped') await this.#planAgain();
    if (this.#isClosed) return;
    const evacuation = this.#evacuation;
    evacuation.onChange(() => this.#changed());
    this.#isPreparing = false;
    // stop may have been asked for while it was planned
    if (this.#preparation.isStopped) evacuation.stop(false);
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
