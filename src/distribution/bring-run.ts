/** An errand under way, and the pages that it waits for together with others. */
import { TAG_BYTES, isZeroTag } from '../pages/tags.ts';
import { Outcome, type BringTask, type ErrandResult } from './errand.ts';
import type { Holder } from './holder.ts';

/** A page that is wanted: one for all errands that want it, so that nobody is asked for it twice. */
export class Wanted {
  /** Mark of the domain's secret and tag. */
  readonly name: string;
  readonly tag: Uint8Array;
  /** As the cache numbers it. */
  readonly domain: number;
  value: number;
  /** Of all errands that want it. */
  readonly holders: Holder[] = [];
  /** Those that turned out not to have it, or failed. */
  readonly tried = new Set<Holder>();
  isAsked = false;
  isDone = false;
  waiting: { run: BringRun; index: number }[] = [];

  constructor(name: string, tag: Uint8Array, { domain, value }: BringTask) {
    this.name = name;
    this.tag = tag;
    this.domain = domain;
    this.value = value;
  }

  join(run: BringRun, index: number, holders: readonly Holder[]): void {
    this.waiting.push({ run, index });
    this.value = Math.max(this.value, run.task.value);
    for (const holder of holders) if (!this.holders.includes(holder)) this.holders.push(holder);
  }

  /** Whether it may still be there. */
  mayHave(holder: Holder): boolean {
    return !this.tried.has(holder) && this.holders.includes(holder);
  }

  finish(outcome: Outcome, wireBytes = 0): void {
    this.isDone = true;
    for (const { run, index } of this.waiting) run.finish(index, outcome, wireBytes);
    this.waiting = [];
  }
}

export class BringRun {
  readonly task: BringTask;
  readonly holders: readonly Holder[];
  /** Not asked for yet, in the errand's order; done ones among them. */
  open: Wanted[] = [];
  readonly #outcome: Uint8Array;
  readonly #wireBytes: Uint16Array;
  readonly #wrong = new Map<string, number>();
  readonly #done: (result: ErrandResult) => void;
  #left: number;

  constructor(task: BringTask, holders: readonly Holder[], done: (result: ErrandResult) => void) {
    this.task = task;
    this.holders = holders;
    this.#done = done;
    this.#left = task.tags.length / TAG_BYTES;
    this.#outcome = new Uint8Array(this.#left);
    this.#wireBytes = new Uint16Array(this.#left);
  }

  get isOver(): boolean {
    return this.#left === 0;
  }

  /** Each tag that is not here, with its holders. @param present of all tags, a byte each */
  eachMissing(present: Uint8Array, take: (index: number, tag: Uint8Array, holders: Holder[]) => void): void {
    const { tags, first, holder } = this.task;
    for (let i = 0; i < present.length; i++) {
      if (present[i] === 1 || isZeroTag(tags, i)) this.finish(i, Outcome.Present);
      else {
        const those = Array.from(holder.subarray(first[i], first[i + 1]), (at) => this.holders[at]!);
        take(i, tags.subarray(i * TAG_BYTES, (i + 1) * TAG_BYTES), those);
      }
    }
  }

  finish(index: number, outcome: Outcome, wireBytes = 0): void {
    if (this.#outcome[index] !== 0) return;
    this.#outcome[index] = outcome;
    this.#wireBytes[index] = wireBytes;
    this.#left--;
  }

  sentWrong(url: string): void {
    this.#wrong.set(url, (this.#wrong.get(url) ?? 0) + 1);
  }

  /** Ends it; what is not known of it was `outcome`. */
  end(outcome: Outcome): void {
    for (let i = 0; i < this.#outcome.length; i++) this.finish(i, outcome);
    this.tell();
  }

  tell(): void {
    const unreachable = this.holders.filter(({ state }) => state === 'resting').map(({ url }) => url);
    this.#done({
      outcome: this.#outcome,
      wireBytes: this.#wireBytes,
      wrong: [...this.#wrong].map(([url, pages]) => ({ url, pages })),
      unreachable: unreachable.filter((url) => !this.#wrong.has(url)),
    });
  }
}
