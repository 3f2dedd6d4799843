/**
 * The destination's rounds: what is copied into the guest's memory files while the guest still runs at the source, and at last, when
 * it stands still.
 *
 *   copy(n) ─► the state stream has told round n ─► taken over (arriving-names.ts) ─► the fill worker's round ─► figures
 *   load    ─► no round goes on ─► the manifest is final ─► taken over ─┬─ rest copy:  a strict round, all is here
 *                                                                       └─ rest serve: what is not here is missing (arrival.ts)
 *
 * Why every page of the files is right in the end: a page is written only after it was compared with its frame's tag in the live
 * manifest, which changes between rounds alone, when nothing is asked for or written; a frame whose tag changes is Missing or Zero from
 * then on, whatever its file holds; and answers to an earlier round are dropped. So a frame that is Present has the page of its tag as it
 * is now, and after the final manifest was taken over, whose digest was compared with the source's, the page that the guest had when it
 * was stopped.
 *
 * A round may be asked for any number of times, as answers get lost: one that is done is answered as it was. Nothing here gives the
 * migration up: who asks hears why a round failed, and decides.
 */
import { PagetideError } from '../errors.ts';
import type { GuestService } from '../memory/guest-service.ts';
import type { FaultSession } from '../memory/native.ts';
import type { ArrivingNames } from './arriving-names.ts';
import type { StateChannel } from './state-channel.ts';
import { ROUND_ANSWER_MS, type CopiedRound } from './types.ts';

export interface CopyingOptions {
  /** Over the guest's memory files. */
  copy: FaultSession;
  names: ArrivingNames;
  service: Pick<GuestService, 'round' | 'halt' | 'figures' | 'wireBytes'>;
  channel: Pick<StateChannel, 'told'>;
  /** After this a round that still goes on is answered without its figures, milliseconds; {@link ROUND_ANSWER_MS} by default. */
  answerMs?: number;
}

interface UnderWay {
  round: number;
  copied: Promise<CopiedRound>;
}

export class Copying {
  readonly #options: CopyingOptions;
  #last: CopiedRound | undefined;
  #underWay: UnderWay | undefined;
  /** No round begins any more. */
  #over = false;
  #endWait!: (over: false) => void;
  #hasTaken = false;
  /** Resolves when no round is to go on: what one waits for may never come. */
  readonly #ended = new Promise<false>((resolve) => (this.#endWait = resolve));

  constructor(options: CopyingOptions) {
    this.#options = options;
  }

  /** Whether it is known what the files lack: before that all of the table is Zero, as the manifest is. */
  get hasTaken(): boolean {
    return this.#hasTaken;
  }

  /**
   * Copies what is lacking of the manifest of this round (1: the first), or goes on with that. Resolves to undefined when it takes
   * longer than an answer may.
   * @throws PagetideError `PT_PROTOCOL` for a round that is not the next; why copying failed: it may be asked for again then
   */
  async round(round: number): Promise<CopiedRound | undefined> {
    if (this.#last?.round === round) return this.#last;
    const underWay = (this.#underWay ??= this.#begin(round));
    if (underWay.round !== round)
      throw new PagetideError('PT_PROTOCOL', `round ${round} was asked for during round ${underWay.round}`);
    let timer: NodeJS.Timeout | undefined;
    const late = new Promise<undefined>((resolve) => {
      timer = setTimeout(() => resolve(undefined), this.#options.answerMs ?? ROUND_ANSWER_MS);
    });
    try {
      return await Promise.race([underWay.copied, late]);
    } finally {
      clearTimeout(timer);
    }
  }

  /** Ends the round that is under way, and lets none begin: resolves when nothing is copied any more. */
  async end(): Promise<void> {
    this.#over = true;
    this.#endWait(false);
    this.#options.service.halt();
    await this.#underWay?.copied.catch(() => undefined);
  }

  /** Takes the final manifest over. After {@link end}, and once the state stream is settled. */
  settle(): void {
    this.#options.names.takeTold(this.#options.copy);
  }

  /**
   * Copies all that is left of a guest that stands still. After {@link settle}.
   * @throws PagetideError why it failed
   */
  async rest(): Promise<void> {
    // a pass over the table is cheaper than a message there and back
    if (this.#options.copy.counts().outstanding === 0) return;
    if (!(await this.#options.service.round('strict')))
      throw new PagetideError('PT_CANCELLED', 'the copying was ended');
  }

  #begin(round: number): UnderWay {
    const next = (this.#last?.round ?? 0) + 1;
    // A later one is as good: whatever a skipped round has told is told with it.
    if (round < next) throw new PagetideError('PT_PROTOCOL', `round ${round} is over: the next is ${next}`);
    if (this.#over) throw new PagetideError('PT_PROTOCOL', `round ${round} was asked for after the last`);
    const copied = (async () => {
      try {
        return (this.#last = await this.#copy(round));
      } finally {
        this.#underWay = undefined;
      }
    })();
    copied.catch(() => undefined); // whoever asked may have been answered already
    return { round, copied };
  }

  async #copy(round: number): Promise<CopiedRound> {
    const { channel, copy, names, service } = this.#options;
    const isTold = await Promise.race([channel.told(round).then(() => true), this.#ended]);
    if (!isTold || this.#over) throw new PagetideError('PT_CANCELLED', 'the round was ended');
    const begun = performance.now();
    const before = service.figures();
    const wireBefore = service.wireBytes();
    const { zero } = names.takeTold(copy);
    this.#hasTaken = true;
    if (!(await service.round('loose'))) throw new PagetideError('PT_CANCELLED', 'the round was ended');
    const after = service.figures();
    return {
      round,
      lacking: after.counts.outstanding,
      frames: {
        zero: round === 1 ? after.counts.zero : zero,
        cache: after.cached - before.cached,
        resident: after.resident - before.resident,
        duplicate: after.repeated - before.repeated,
        peer: after.fromPeers - before.fromPeers,
        source: after.installed - before.installed,
      },
      wireBytes: service.wireBytes() - wireBefore,
      ms: performance.now() - begun,
    };
  }
}
