/**
 * Drives one ownership machine: feeds it events one at a time, carries its actions out, and feeds what comes of them
 * back. What is common to both sides; the sides themselves are outgoing.ts and incoming.ts.
 *
 * Order: journal appends are made in the order asked for (the journal keeps it); VMM actions run one after the other;
 * messages are sent at once. Retries come with a growing pause, which a change of state resets.
 */
import { PagetideError } from '../errors.ts';
import type { Step } from './ownership/index.ts';

const RETRY_FIRST_MS = 100;
const RETRY_LAST_MS = 3_000;

export abstract class MachineRunner<State extends { at: string }, Event, Action> {
  #state: State;
  readonly #events: Event[] = [];
  #stepping = false;
  #vmm: Promise<void> = Promise.resolve();
  #retry: NodeJS.Timeout | undefined;
  #retryMs = RETRY_FIRST_MS;
  #closed = false;
  readonly #changed = new Set<() => void>();

  constructor(state: State) {
    this.#state = state;
  }

  get state(): State {
    return this.#state;
  }

  /** Calls back after every change of state or progress; returns how to stop that. */
  onChange(callback: () => void): () => void {
    this.#changed.add(callback);
    return () => void this.#changed.delete(callback);
  }

  /** Feeds an event; its actions are begun before this returns, unless it is called from within one. */
  dispatch(event: Event): void {
    if (this.#closed) return;
    this.#events.push(event);
    if (!this.#stepping) this.#drain();
  }

  #drain(): void {
    this.#stepping = true;
    try {
      for (let next = this.#events.shift(); next !== undefined; next = this.#events.shift()) {
        this.#take(this.step(this.#state, next));
      }
    } finally {
      this.#stepping = false;
    }
  }

  /** Carries out the actions that a new or recovered machine begins with. */
  begin(actions: readonly Action[]): void {
    this.#stepping = true;
    for (const action of actions) this.perform(action);
    this.#drain(); // what the actions fed back meanwhile
    this.changed();
  }

  /** Stops feeding events and timers; the machine stays where it is, and so does its journal. */
  close(): void {
    this.#closed = true;
    clearTimeout(this.#retry);
    this.#changed.clear();
  }

  /** Lets go of what only driving needs, once the machine has ended: it stays to be looked at, perhaps for days. Idempotent. */
  abstract shed(): void;

  get closed(): boolean {
    return this.#closed;
  }

  protected abstract step(state: State, event: Event): Step<State, Action>;
  /** Begins an action. Must not throw; what comes of it is dispatched. */
  protected abstract perform(action: Action): void;
  protected abstract readonly retryEvent: Event;

  protected changed(): void {
    for (const callback of [...this.#changed]) callback();
  }

  /** Runs VMM work after all VMM work before it. Its outcome is dispatched, unless undefined. */
  protected onVmm(work: () => Promise<Event | undefined>, failed: (error: unknown) => Event | undefined): void {
    this.#vmm = this.#vmm.then(async () => {
      if (this.#closed) return;
      let event: Event | undefined;
      try {
        event = await work();
      } catch (error) {
        event = failed(error);
        this.retrySoon();
      }
      if (event !== undefined) this.dispatch(event);
    });
  }

  /** Runs VMM work likewise, for whoever waits for it: nothing is dispatched. @throws what `work` does, `PT_CANCELLED` once closed */
  protected inTurn<T>(work: () => Promise<T>): Promise<T> {
    const turn = this.#vmm.then(() => {
      if (this.#closed) throw new PagetideError('PT_CANCELLED', 'the migration is not driven here any more');
      return work();
    });
    this.#vmm = turn.then(
      () => undefined,
      () => undefined,
    );
    return turn;
  }

  /** Resolves when all VMM work asked for so far is done. */
  protected vmmSettled(): Promise<void> {
    return this.#vmm;
  }

  /**
   * Feeds `retry` after a pause, once. A change of state makes the pause short again but never takes the retry away: what
   * failed before the change (telling the destination to abort, say) may be what the new state still owes.
   */
  protected retrySoon(): void {
    if (this.#retry !== undefined || this.#closed) return;
    this.#retry = setTimeout(() => {
      this.#retry = undefined;
      this.dispatch(this.retryEvent);
    }, this.#retryMs);
    this.#retryMs = Math.min(RETRY_LAST_MS, this.#retryMs * 2);
  }

  #take(step: Step<State, Action>): void {
    if (step.state.at !== this.#state.at) {
      this.#retryMs = RETRY_FIRST_MS;
      if (this.#retry !== undefined) {
        clearTimeout(this.#retry);
        this.#retry = undefined;
        this.retrySoon();
      }
    }
    this.#state = step.state;
    for (const action of step.actions) this.perform(action);
    this.changed();
  }
}
