/**
 * The destination's doubts: frames whose page came and was not the one of their tag. They are asked for again as long as they are
 * missing; meanwhile the source is asked to look at its memory, once a second, until they are in.
 *
 *   mismatch ──► in doubt ──ask──► right at the source: damaged on its way
 *                   │         ├──► changed there: ALARM, as long as the frame is missing
 *                   │         └──► unknown: the source was restarted, and can't tell. An alarm that was raised stays
 *                   └── the page is in ──► no doubt; a source that has an alarm is told
 */
import type { Logger } from 'pino';
import { asPagetideError, type ErrorJson } from '../errors.ts';
import { damagedPage, RECHECK_MS } from './recheck.ts';
import { MOST_DOUBTS, type Finding } from './types.ts';

export interface DoubtsOptions {
  /** Asks the source. Resolves to a finding a frame. */
  ask: (frames: number[]) => Promise<Finding[]>;
  /** Whether the frame still lacks its page. */
  isMissing: (frame: number) => boolean;
  /** What the doubts say has changed. */
  onChange: () => void;
  log: Logger;
  /** Shortest time between two requests, milliseconds. */
  everyMs?: number;
}

export class Doubts {
  readonly #options: DoubtsOptions;
  readonly #everyMs: number;
  readonly #frames = new Map<number, Finding | undefined>();
  #timer: NodeJS.Timeout | undefined;
  #busy = false;
  #last = -Infinity;
  /** The source knows of frames that are altered there. */
  #told = false;
  #failed: string | undefined;
  #alarms = 0;
  #closed = false;

  constructor(options: DoubtsOptions) {
    this.#options = options;
    // a little more than the source insists on: its clock may differ
    this.#everyMs = options.everyMs ?? RECHECK_MS * 1.05;
  }

  /** Frames for which there was an alarm so far. */
  get alarms(): number {
    return this.#alarms;
  }

  /** The alarm, as long as it lasts. */
  get error(): ErrorJson | undefined {
    const damaged = this.#missing('changed');
    return damaged.length === 0 ? undefined : damagedPage(damaged).toJSON();
  }

  /** What an operator should know; undefined: nothing. */
  get note(): string | undefined {
    const [damaged, unknown, right] = [this.#missing('changed'), this.#missing('unknown'), this.#missing('right')];
    if (damaged.length > 0) return `${damagedPage(damaged).message}; the guest waits where it needs it`;
    if (unknown.length > 0)
      return `frame ${unknown[0]} does not come as it was, and the source cannot tell why, as it was restarted`;
    if (right.length > 0) return `frame ${right[0]} came damaged and is right at the source: it is asked for again`;
    return undefined;
  }

  /** A page of `frame` came that is not the one of its tag. More frames than can be asked about are told again another time. */
  add(frame: number): void {
    if (this.#closed || this.#frames.has(frame)) return;
    if (this.#frames.size >= MOST_DOUBTS) this.#settle();
    if (this.#frames.size >= MOST_DOUBTS) return;
    this.#frames.set(frame, undefined);
    this.#schedule();
  }

  /** Every page is in. */
  clear(): void {
    this.#frames.clear();
  }

  /** Asks nothing any more. */
  close(): void {
    this.#closed = true;
    clearTimeout(this.#timer);
    this.#frames.clear();
  }

  #missing(finding: Finding): number[] {
    const frames = [...this.#frames].filter(([frame, found]) => found === finding && this.#options.isMissing(frame));
    return frames.map(([frame]) => frame);
  }

  #settle(): void {
    for (const frame of this.#frames.keys()) if (!this.#options.isMissing(frame)) this.#frames.delete(frame);
  }

  #schedule(): void {
    if (this.#busy || this.#timer !== undefined || this.#closed) return;
    const wait = Math.max(0, this.#last + this.#everyMs - performance.now());
    this.#timer = setTimeout(() => {
      this.#timer = undefined;
      void this.#ask();
    }, wait);
    this.#timer.unref();
  }

  async #ask(): Promise<void> {
    const before = this.#frames.size;
    this.#settle();
    if (this.#frames.size < before) this.#options.onChange();
    const frames = [...this.#frames.keys()];
    if (frames.length === 0 && !this.#told) return;
    this.#busy = true;
    try {
      const findings = await this.#options.ask(frames);
      this.#told = findings.includes('changed');
      this.#failed = undefined;
      this.#learn(frames, findings);
    } catch (thrown) {
      const error = asPagetideError(thrown);
      if (frames.length === 0)
        this.#told = false; // it has no more to do with it
      // once a reason, not once a second
      else if (error.code !== this.#failed)
        this.#options.log.warn({ code: error.code, frames }, `the source does not look at its pages: ${error.message}`);
      this.#failed = error.code;
    } finally {
      this.#busy = false;
      this.#last = performance.now();
    }
    if (this.#closed) return;
    this.#options.onChange();
    if (this.#frames.size > 0 || this.#told) this.#schedule();
  }

  #learn(frames: readonly number[], findings: readonly Finding[]): void {
    const { log } = this.#options;
    const damaged: number[] = [];
    for (const [i, frame] of frames.entries()) {
      const found = findings[i]!;
      const before = this.#frames.get(frame);
      if (!this.#frames.has(frame) || found === before) continue;
      if (found === 'unknown' && before === 'changed') continue;
      this.#frames.set(frame, found);
      if (found === 'changed') damaged.push(frame);
      else
        log.warn(
          { code: 'PT_PAGE_MISMATCH', frame, found },
          'the source looked again at a page that did not come as it was',
        );
    }
    if (damaged.length === 0) return;
    this.#alarms += damaged.length;
    const error = damagedPage(damaged);
    log.fatal({ code: error.code, frames: damaged }, error.message);
  }
}
