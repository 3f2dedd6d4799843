/**
 * How much the fill may ask for: bytes of pages a second, on average. What was asked for beyond that is waited for, and never more than
 * a tenth of a second's worth is saved up.
 */
export class FillBudget {
  #bandwidth: number;
  #left = 0;
  #at = performance.now();

  /** @param bandwidth bytes a second; 0: no limit */
  constructor(bandwidth: number) {
    this.#bandwidth = bandwidth;
  }

  /** From now on another limit, as for the constructor. What was asked for beyond the old one is still waited for, at the new one. */
  limit(bandwidth: number): void {
    // what was asked for while there was no limit is not counted
    if (this.#bandwidth === 0) this.#left = 0;
    this.#bandwidth = bandwidth;
    this.#at = performance.now();
  }

  /** Whether more may be asked for now. */
  isOpen(): boolean {
    if (this.#bandwidth === 0) return true;
    const now = performance.now();
    this.#left = refill(this.#left, now - this.#at, this.#bandwidth);
    this.#at = now;
    return this.#left >= 0;
  }

  /** @param runs of frames, [start, count, …] */
  spend(runs: ArrayLike<number>, pageSize: number): void {
    if (this.#bandwidth === 0) return;
    for (let i = 1; i < runs.length; i += 2) this.#left -= runs[i]! * pageSize;
  }
}

/**
 * What is left of a budget after `elapsed` milliseconds, in bytes: at most what `savedMs` are worth, a tenth of a second by default.
 *
 * @param left bytes; negative: asked for beyond the limit
 * @param bandwidth bytes a second
 */
export function refill(left: number, elapsed: number, bandwidth: number, savedMs = 100): number {
  return Math.min((bandwidth * savedMs) / 1000, left + (elapsed * bandwidth) / 1000);
}
