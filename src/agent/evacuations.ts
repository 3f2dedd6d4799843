/** The one evacuation that an agent may have under way, and the last one that it had. */
import { PagetideError } from '../errors.ts';
import { Evacuation, type EvacuationParts } from './evacuation.ts';
import { Preparation, type Preparer } from './evacuation-preparation.ts';
import { countsOf, type EvacuationCounts } from './evacuation-totals.ts';
import { survey, type SurveyParts } from './evacuation-survey.ts';
import { PreparedEvacuation } from './prepared-evacuation.ts';
import type { EvacuateRequest, EvacuationInfo } from './service.ts';

/** A watcher is told at most this often, milliseconds: guests change many times a second, and each time all of them are told. */
const TELL_MS = 200;

/** What this agent's evacuations came to since it started. */
export interface EvacuationFigures {
  underWay: boolean;
  /** Of the one that is under way; what is over counts in the sums alone. */
  guests: Pick<EvacuationCounts, 'waiting' | 'moving'>;
  /** Of all of them together. */
  outcomes: Pick<EvacuationCounts, 'moved' | 'left' | 'failed'>;
}

export interface EvacuationsParts extends EvacuationParts, SurveyParts {
  /** Of an agent that takes part in distribution. Asked for when it is needed. */
  preparer?: () => Preparer | undefined;
}

export class Evacuations {
  readonly #parts: EvacuationsParts;
  #last: Evacuation | PreparedEvacuation | undefined;
  /** One is being begun. */
  #isBeginning = false;
  #isClosed = false;
  /** Of those before the last. */
  #earlier: EvacuationFigures['outcomes'] = { moved: 0, left: 0, failed: 0 };
  readonly #watchers = new Set<() => void>();

  constructor(parts: EvacuationsParts) {
    this.#parts = parts;
  }

  /** What would be done now. */
  async plan(request: EvacuateRequest): Promise<EvacuationInfo> {
    const planned = await this.#survey(request);
    planned.check();
    return planned.info();
  }

  /** @throws PagetideError `PT_EVACUATING`, `PT_BAD_ARGUMENT`, `PT_NO_TARGET`, why a target can't be asked: nothing has begun then */
  async start(request: EvacuateRequest): Promise<EvacuationInfo> {
    if (this.#isBeginning || this.#last?.ended === false)
      throw new PagetideError('PT_EVACUATING', 'this host is being evacuated already');
    this.#isBeginning = true;
    try {
      const planned = await this.#survey(request);
      planned.check();
      const evacuation =
        request.prepareMs === undefined ? planned : await this.#prepare(planned, request, request.prepareMs);
      if (this.#isClosed) {
        // what was prepared is put back
        await evacuation.close();
        throw new PagetideError('PT_CANCELLED', 'the agent is ending');
      }
      evacuation.onChange(() => {
        for (const told of [...this.#watchers]) told();
      });
      // what has become of a guest by its end is final
      this.#earlier = this.figures().outcomes;
      this.#last = evacuation;
      evacuation.begin();
      return evacuation.info();
    } finally {
      this.#isBeginning = false;
    }
  }

  async #survey(request: EvacuateRequest): Promise<Evacuation> {
    return new Evacuation(this.#parts, request, await survey(this.#parts, request));
  }

  /** @throws PagetideError `PT_NOT_CONFIGURED`; why there can't be a plan: nothing has begun then */
  async #prepare(planned: Evacuation, request: EvacuateRequest, prepareMs: number): Promise<PreparedEvacuation> {
    const preparer = this.#parts.preparer?.();
    if (preparer === undefined)
      throw new PagetideError(
        'PT_NOT_CONFIGURED',
        'this agent does not take part in distribution: nothing can be prepared',
      );
    const { log, guests } = this.#parts;
    const named = guests.all().filter(({ vmm }) => vmm.record.domain !== undefined);
    const preparation = new Preparation(
      preparer,
      named.map(({ name }) => name),
      request.to,
      prepareMs,
      log,
    );
    await preparation.begin();
    return new PreparedEvacuation(planned, preparation, () => this.#survey(request), request.keepPlan === true, log);
  }

  /** @throws PagetideError `PT_EVACUATION_UNKNOWN`, as the next two */
  show(): EvacuationInfo {
    return this.#need().info();
  }

  figures(): EvacuationFigures {
    const last = this.#last;
    const { waiting, moving, moved, left, failed } = last?.counts() ?? countsOf([]);
    const earlier = this.#earlier;
    return {
      underWay: last?.ended === false,
      guests: { waiting, moving },
      outcomes: { moved: earlier.moved + moved, left: earlier.left + left, failed: earlier.failed + failed },
    };
  }

  async *watch(signal: AbortSignal): AsyncIterable<EvacuationInfo> {
    const evacuation = this.#need();
    for (;;) {
      const info = evacuation.info();
      yield info;
      if (info.state === 'ended' || signal.aborted) return;
      await this.#nextChange(signal, evacuation);
    }
  }

  stop(cancel: boolean): EvacuationInfo {
    const evacuation = this.#need();
    evacuation.stop(cancel);
    return evacuation.info();
  }

  /** Never rejects. */
  async close(): Promise<void> {
    this.#isClosed = true;
    await this.#last?.close();
  }

  #need(): Evacuation | PreparedEvacuation {
    if (this.#last === undefined)
      throw new PagetideError('PT_EVACUATION_UNKNOWN', 'this agent knows of no evacuation since it started');
    return this.#last;
  }

  /** Resolves at its end, and otherwise after a moment in which it may have changed. */
  #nextChange(signal: AbortSignal, evacuation: Pick<Evacuation, 'ended'>): Promise<void> {
    return new Promise((resolve) => {
      const done = (): void => {
        clearTimeout(timer);
        this.#watchers.delete(look);
        signal.removeEventListener('abort', done);
        resolve();
      };
      const look = (): void => {
        if (evacuation.ended) done();
      };
      const timer = setTimeout(done, TELL_MS);
      this.#watchers.add(look);
      signal.addEventListener('abort', done, { once: true });
    });
  }
}
