/**
 * In which order the fill brings frames: around the guest's latest faults first, then one sweep over everything.
 *
 * A run is claimed (Missing → In flight) as it is chosen, so that no frame is asked for twice, and a fault that comes
 * later on one of them is asked for again on the demand connection: the first answer wins.
 */
import { FrameState } from './native.ts';
import type { FaultSession } from './native.ts';
import type { Serving } from './serving.ts';

/** Frames behind and before a fault that are worth fetching with it. */
const AFTER = 24;
const BEFORE = 8;

export class FillOrder {
  private cursor = 0;
  private hintsRead = 0;
  private readonly hints: number[] = [];
  private readonly session: FaultSession;
  private readonly serving: Serving;

  constructor(session: FaultSession, serving: Serving) {
    this.session = session;
    this.serving = serving;
  }

  /**
   * Claims up to `limit` missing frames.
   * @returns runs [start, count, …]; empty when nothing is missing right now
   */
  next(limit: number): number[] {
    const runs: number[] = [];
    let left = limit;
    this.hintsRead = this.serving.takeHints(this.hintsRead, this.hints);
    // The latest fault first: it tells best where the guest is.
    while (left > 0 && this.hints.length > 0) {
      const frame = this.hints.pop()!;
      left -= this.claimAround(frame, left, runs);
    }
    // What was not taken is old news by the time of the next batch, but still a better guess than the sweep.
    if (this.hints.length > 64) this.hints.splice(0, this.hints.length - 64);
    while (left > 0) {
      let start = this.session.nextMissing(this.cursor);
      if (start < 0) {
        // Frames may have been given back behind the cursor.
        start = this.cursor === 0 ? -1 : this.session.nextMissing(0);
        if (start < 0) break;
      }
      const claimed = this.claim(start, left, runs);
      this.cursor = start + Math.max(1, claimed);
      left -= claimed;
      if (this.cursor >= this.session.frames) this.cursor = 0;
    }
    return runs;
  }

  private claimAround(frame: number, limit: number, runs: number[]): number {
    const { session } = this;
    const end = Math.min(session.frames, frame + 1 + AFTER);
    let claimed = 0;
    for (let at = frame + 1; at < end && claimed < limit;) {
      const got = this.claim(at, Math.min(limit - claimed, end - at), runs);
      claimed += got;
      at += Math.max(1, got);
    }
    for (let at = Math.max(0, frame - BEFORE); at < frame && claimed < limit;) {
      const got = this.claim(at, Math.min(limit - claimed, frame - at), runs);
      claimed += got;
      at += Math.max(1, got);
    }
    return claimed;
  }

  private claim(start: number, limit: number, runs: number[]): number {
    const count = Math.min(limit, this.session.frames - start);
    const got = this.session.claim(start, count, FrameState.InFlight);
    if (got > 0) runs.push(start, got);
    return got;
  }
}
