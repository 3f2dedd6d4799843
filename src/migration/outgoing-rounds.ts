/** Copying in rounds, as a source's migration goes about it: what it knows beforehand, and what comes of it, as events of its machine. */
import type { Logger } from 'pino';
import { formatMillis } from '../agent/units.ts';
import { asPagetideError, PagetideError } from '../errors.ts';
import { copyInRounds, downtimeBeforehand } from './copying.ts';
import type { Plan } from './modes.ts';
import type { OutgoingMemory } from './outgoing-memory.ts';
import type { OutgoingPeer } from './outgoing-peer.ts';
import type { SourceEvent } from './ownership/index.ts';
import type { Departure } from './report.ts';
import type { CopyingProgress, IncomingStatus, Rest } from './types.ts';

export interface OutgoingRoundsOptions {
  /** Undefined after a restart, when all of that is over. */
  plan: Plan | undefined;
  memory: OutgoingMemory;
  peer: OutgoingPeer;
  /** Rounds and notes are kept there, for the journal and the report. */
  details: Departure;
  log: Logger;
  /** Whether the migration is at it still. */
  isCopying: () => boolean;
  onStatus: (status: IncomingStatus) => void;
  changed: () => void;
}

export class OutgoingRounds {
  readonly #options: OutgoingRoundsOptions;
  #isBegun = false;
  #progress: CopyingProgress | undefined;
  #rest: Rest = 'serve';

  constructor(options: OutgoingRoundsOptions) {
    this.#options = options;
  }

  /** Where it is; undefined before the first. */
  get progress(): CopyingProgress | undefined {
    return this.#progress;
  }

  /** What comes of what is left at the switch. */
  get rest(): Rest {
    return this.#rest;
  }

  /**
   * Once the manifest is made, before the destination is asked: where writes can't be tracked, the downtime is known, and said.
   * @throws PagetideError `PT_NOT_CONVERGING` where the operator allows for less
   */
  look(): void {
    const { plan, memory, details, changed } = this.#options;
    const downtimeMs = memory.scan === undefined ? undefined : downtimeBeforehand(memory.scan);
    if (plan?.copying === undefined || downtimeMs === undefined) return;
    const { isStrict, maxDowntimeMs } = plan.copying;
    const words = `the guest's writes can't be tracked, so all of its memory is read again while it stands still, for about ${formatMillis(downtimeMs)}`;
    if (isStrict && downtimeMs > maxDowntimeMs)
      throw new PagetideError('PT_NOT_CONVERGING', `${words}; ${formatMillis(maxDowntimeMs)} are allowed`, {
        hint: 'Raise --max-downtime, or see `pagetide doctor`: tracking writes needs Linux 6.7.',
      });
    details.note = words;
    changed();
  }

  /** Copies, once: asked for again it goes on as it does. @param dispatch takes `copied`, or `failed` */
  begin(dispatch: (event: SourceEvent) => void): void {
    if (this.#isBegun) return;
    this.#isBegun = true;
    void this.#run().then(
      () => dispatch({ type: 'copied' }),
      (thrown: unknown) => {
        // cancelled, refused or lost meanwhile: that was dispatched, and this is but what came of it
        if (this.#options.isCopying()) dispatch({ type: 'failed', error: asPagetideError(thrown).toJSON() });
      },
    );
  }

  async #run(): Promise<void> {
    const { plan, memory, peer, details, log, isCopying, onStatus, changed } = this.#options;
    const { scan } = memory;
    if (scan === undefined || plan === undefined) throw new PagetideError('PT_INTERNAL', 'there is nothing to copy');
    const end = await copyInRounds(
      {
        scan,
        tell: (frames) => memory.tellFrames(frames),
        copy: (round) => peer.copy(round, isCopying, onStatus),
        onProgress: (progress) => {
          this.#progress = progress;
          changed();
        },
        onRound: (round) => (details.rounds ??= []).push(round),
      },
      plan,
    );
    this.#rest = end.rest;
    if (end.note === undefined) return;
    details.note = end.note;
    log.warn(end.note);
  }
}
