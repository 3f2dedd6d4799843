/**
 * The source's second look at pages that came to the destination as others than their tags say. The guest stands still here,
 * so its memory must be what the final manifest names: a frame that isn't was altered, by a program or by failing memory, and
 * nobody has its page any more. That is an alarm; a frame that is right here was damaged on its way, and is asked for again.
 */
import { PagetideError } from '../errors.ts';
import type { Finding } from './types.ts';

/** Shortest time between two requests of a migration, milliseconds. */
export const RECHECK_MS = 1_000;

export interface RecheckOptions {
  /** Frames that were found altered and were not the last time, or the other way round. */
  onAlarm: (frames: readonly number[]) => void;
  onMended: (frames: readonly number[]) => void;
  /** Shortest time between two requests, milliseconds. */
  everyMs?: number;
}

export class Recheck {
  readonly #options: RecheckOptions;
  #busy = false;
  #last = -Infinity;
  #damaged: readonly number[] = [];
  #alarms = 0;

  constructor(options: RecheckOptions) {
    this.#options = options;
  }

  /** Frames that were altered when the destination asked last. */
  get damaged(): readonly number[] {
    return this.#damaged;
  }

  /** Frames for which there was an alarm so far. */
  get alarms(): number {
    return this.#alarms;
  }

  /**
   * Looks at frames again: all that the destination has doubts about now, none when it has none any more.
   * @param isRight reads a frame and compares; undefined where the manifest isn't known (any more)
   * @param standsStill asked when all were read: of a guest that was resumed meanwhile the reading says nothing
   * @returns a finding a frame
   * @throws PagetideError `PT_TOO_SOON`, `PT_MIGRATION_UNKNOWN`
   */
  async run(
    frames: readonly number[],
    isRight: ((frame: number) => Promise<boolean>) | undefined,
    standsStill: () => boolean,
  ): Promise<Finding[]> {
    const now = performance.now();
    if (this.#busy || now - this.#last < (this.#options.everyMs ?? RECHECK_MS))
      throw new PagetideError('PT_TOO_SOON', 'the pages of this migration were looked at just now');
    this.#busy = true;
    this.#last = now;
    try {
      const findings: Finding[] = [];
      for (const frame of frames)
        findings.push(isRight === undefined ? 'unknown' : (await isRight(frame)) ? 'right' : 'changed');
      if (!standsStill())
        throw new PagetideError('PT_MIGRATION_UNKNOWN', 'the guest does not stand still here any more');
      this.#take(frames.filter((_, i) => findings[i] === 'changed'));
      return findings;
    } finally {
      this.#busy = false;
    }
  }

  #take(damaged: readonly number[]): void {
    const before = this.#damaged;
    this.#damaged = damaged;
    const fresh = damaged.filter((frame) => !before.includes(frame));
    const mended = before.filter((frame) => !damaged.includes(frame));
    this.#alarms += fresh.length;
    if (fresh.length > 0) this.#options.onAlarm(fresh);
    if (mended.length > 0) this.#options.onMended(mended);
  }
}

/** What both sides say of frames that were altered at the source; there is at least one. */
export function damagedPage(frames: readonly number[]): PagetideError {
  const others = frames.length === 1 ? '' : ` and ${frames.length - 1} more`;
  return new PagetideError(
    'PT_PAGE_DAMAGED',
    `frame ${frames[0]}${others} of the paused guest is not what it was when the guest was stopped: it is not installed`,
  );
}
