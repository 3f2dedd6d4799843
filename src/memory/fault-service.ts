/**
 * The fault service: what the fault worker of one guest does from the first fault to the last.
 *
 *                         ┌────────────────────────────── wait (spin, then sleep) ◄──────────────┐
 *                         ▼                                                                       │
 *   read faults ──► state of the frame?                                                           │
 *                     Zero, Removed, Present ──► zero page, or wake where a page is there ────────┤
 *                     Missing, In flight ──► local pages? ── yes ──► install (hit) ───────────────┤
 *                     │                                  └─ no ───► claim, ask on the demand ─────┤
 *                     │                                             connection (miss)             │
 *                     Installing ──► park: whoever installs it wakes the guest, or gives it back ─┤
 *                                                                                                 │
 *   answer (event loop) ──► install, or zero page ──► record the stall ───────────────────────────┤
 *   EAGAIN anywhere ──► park with the content; the next wait drains the event, then again ────────┤
 *   nothing to do ──► one page that came from elsewhere into the cache (keep-queue.ts) ───────────┘
 *
 * The hit way allocates nothing, awaits nothing, logs nothing: one native call waits, one installs.
 *
 * The thread's own event loop (the demand connection, timers, messages) runs only when `wait` says that it has work, or
 * after each sleep that timed out; `wait` has the loop's descriptor in its poll set, so that neither waits for the other.
 *
 * Why no fault is ever lost: a fault is either answered in the same round, or in `waiting` (an answer will come; asked
 * for again after a reconnect), or in `parked` (looked at again after at most 1 ms). A frame leaves those two only when
 * its page is in, or a zero page is, or a page was found there and the guest was woken.
 */
import { PagetideError } from '../errors.ts';
import { MOST_UNITS, toUnits } from './histogram.ts';
import { KeepQueue } from './keep-queue.ts';
import { wrongPage, type LocalPages } from './local-pages.ts';
import { FrameState, Outcome, OutcomeField, OUTCOME_FIELDS, WaitField, WaitFlag, WAIT_FIELDS } from './native.ts';
import type { FaultSession } from './native.ts';
import type { NamedPages } from './named-pages.ts';
import type { Serving } from './serving.ts';

/** Where pages come from that this host lacks: the demand connection. */
export interface DemandPages {
  /**
   * Asks for one page; the answer comes to {@link FaultService.answer} or {@link FaultService.refused}.
   * @returns false when it can't be asked for now (not connected, too many under way)
   */
  request(frame: number): boolean;
  /** A descriptor to poll with the userfaultfd, so that an answer needs no turn of the event loop; -1 or absent: none. */
  readonly directFd?: number;
  /** Takes in the answers on {@link directFd}. Returns false when the connection has ended. */
  readDirect?(): boolean;
}

export type FaultServiceEvent =
  /** A page that nobody here installed stood in the way; its frame is left missing and its thread asleep. */
  | { event: 'foreign'; frame: number }
  /**
   * The source cannot give a page (short file) or the kernel refuses it; tried again until it works. Told once, until
   * every frame that had trouble has been served.
   */
  | { event: 'trouble'; frame: number; error: PagetideError };

export interface FaultServiceOptions {
  session: FaultSession;
  serving: Serving;
  local?: LocalPages | undefined;
  demand?: DemandPages | undefined;
  /** Where the pages have names: what is here already is taken from here, and what comes is checked. */
  named?: NamedPages | undefined;
  /** How long to look for the next fault before going to sleep, microseconds. */
  spinMicros: number;
  onEvent: (event: FaultServiceEvent) => void;
}

/** How a service ended. */
export type FaultServiceEnd = 'stopped' | 'gone';

interface Parked {
  since: number;
  /** Content that came for the frame already; it need not be asked for again. */
  page: Uint8Array | undefined;
  /** Not to be tried before this moment, microseconds: a source that refuses is not asked a thousand times a second. */
  notBefore: number;
}

const FAULTS_A_READ = 64;
/** Frames that get a page with the one that faulted, where they have the same. */
const SPREAD = 32;
/** Parked faults are looked at this often, milliseconds. */
const PARKED_MS = 1;
/** What met trouble (a refusing source, no memory) is tried again after this long, microseconds. */
const TROUBLE_MICROS = 100_000;
/** Longest sleep: timers of this thread's event loop are this late at most, milliseconds. */
const SLEEP_MS = 50;
/** A page that has not come for this long is asked for again, microseconds. */
const ASK_AGAIN_MICROS = 5_000_000;
/** So are they where the guest never lets it sleep, microseconds. */
const TURN_MICROS = 50_000;

/** Microseconds: when the faults of this round were read, and when the event loop ran last. */
const TimeField = { RoundRead: 0, Turned: 1 } as const;

const turn = (): Promise<void> => new Promise((resolve) => setImmediate(resolve));

export class FaultService {
  private readonly session: FaultSession;
  private readonly serving: Serving;
  private readonly local: LocalPages | undefined;
  private readonly demand: DemandPages | undefined;
  private readonly named: NamedPages | undefined;
  private readonly keeping: KeepQueue | undefined;
  private readonly spinMicros: number;
  private readonly onEvent: (event: FaultServiceEvent) => void;

  private readonly table: Uint8Array;
  private readonly frames = new Uint32Array(FAULTS_A_READ);
  private readonly status = new Float64Array(WAIT_FIELDS);
  private readonly outcome = new Int32Array(OUTCOME_FIELDS);

  /** Frames asked for on the demand connection, and when their fault was read (microseconds). */
  private readonly waiting = new Map<number, number>();
  private readonly parked = new Map<number, Parked>();
  /** Frames, parked or asked for again, that met trouble and are not served yet. */
  private readonly troubled = new Set<number>();
  /** Faults of the last round that were served on the spot, and when that round was read. */
  private hits = 0;
  /** {@link TimeField}. An array, because a time that is kept in a field of its own is an object made at each store. */
  private readonly times = new Float64Array(2);
  private asked = 0;
  private gone = false;

  constructor(options: FaultServiceOptions) {
    this.session = options.session;
    this.serving = options.serving;
    this.local = options.local;
    this.demand = options.demand;
    this.named = options.named;
    if (this.named?.keeps === true) this.keeping = new KeepQueue(this.named, this.session.pageSize);
    this.spinMicros = options.spinMicros;
    this.onEvent = options.onEvent;
    this.table = this.session.table;
  }

  /** Serves until the session is stopped or the guest's process is gone. */
  async run(): Promise<FaultServiceEnd> {
    for (;;) {
      const next = this.serve();
      if (next !== 'turn') {
        this.keeping?.drain();
        return next;
      }
      await turn();
    }
  }

  /**
   * Round after round, until the thread's event loop has to run or all is over. A plain function on purpose: the loop of
   * an async one is never optimized, and would make an object of each time that it reads.
   */
  private serve(): FaultServiceEnd | 'turn' {
    const { session, status, frames, demand, keeping } = this;
    for (;;) {
      const kept = keeping !== undefined && keeping.size > 0;
      const sleep = kept ? 0 : this.parked.size > 0 ? PARKED_MS : SLEEP_MS;
      // While an answer from elsewhere is awaited, spinning would only take the CPU from whoever brings it.
      const spin = kept || this.waiting.size > 0 ? 0 : this.spinMicros;
      const faults = session.wait(frames, status, sleep, spin, demand?.directFd ?? -1);
      const flags = status[WaitField.Flags]!;
      if (this.hits > 0) this.recordHits();
      this.times[TimeField.RoundRead] = status[WaitField.Now]!;
      // Faults first: what they ask for is on its way while the answers to earlier ones are installed.
      for (let i = 0; i < faults; i++) this.fault(frames[i]!);
      const ended = (flags & WaitFlag.Socket) !== 0 && demand?.readDirect?.() === false;
      if (this.gone || (flags & WaitFlag.Hangup) !== 0) return 'gone';
      if ((flags & WaitFlag.Stop) !== 0) return 'stopped';
      if (this.parked.size > 0) this.retryParked();
      const idle = faults === 0 && flags === 0 && !kept;
      if (kept && faults === 0 && flags === 0) keeping.keepOne();
      if (idle) this.askAgain();
      if (idle || ended || (flags & WaitFlag.Loop) !== 0 || this.isTurnDue()) {
        this.times[TimeField.Turned] = this.roundRead;
        return 'turn';
      }
    }
  }

  /**
   * An answer from the demand connection: the page of `frame` lies in `page` at `offset`, or is all zero. One of a peer has been
   * compared with the frame's tag already.
   */
  answer(frame: number, page: Uint8Array, offset: number, zero: boolean, from: 'source' | 'peer' = 'source'): void {
    const { session, outcome, named } = this;
    if (from === 'source' && named !== undefined && !(zero ? named.isZero(frame) : named.verify(frame, page, offset))) {
      this.mismatch(frame);
      return;
    }
    if (zero) {
      session.markZero(frame, 1);
      this.serving.addPages('demand', 0, session.pageSize, 0);
      this.finishZero(frame);
      return;
    }
    const result = session.install(frame, 1, page, offset, outcome);
    const installed = outcome[OutcomeField.Installed]!;
    this.serving.addPages('demand', session.pageSize, session.pageSize, from === 'source' ? installed : 0);
    if (from === 'peer') this.serving.addFromPeer('demand', installed);
    if (result === Outcome.Done && outcome[OutcomeField.Installed] === 1) {
      this.finish(frame);
      if (named !== undefined) this.spread(named, frame, page, offset);
      this.keeping?.push(frame, page, offset);
    } else if (result === Outcome.Done) {
      // Nothing to install any more: the fill was first, or the guest gave the frame up meanwhile.
      this.finishZero(frame);
    } else {
      const copy = Uint8Array.prototype.slice.call(page, offset, offset + session.pageSize);
      this.setBack(frame, result, this.sinceOf(frame), copy);
    }
  }

  /**
   * The same page for the next few frames that have it: whoever waits there needs no answer of its own. Not for all of
   * them, which may be all of the guest's: other faults wait meanwhile, and the fill does the rest.
   */
  private spread(named: NamedPages, frame: number, page: Uint8Array, offset: number): void {
    const { session, outcome } = this;
    let other = named.next(frame);
    for (let i = 0; i < SPREAD && other !== frame; i++) {
      if (session.install(other, 1, page, offset, outcome) !== Outcome.Done) return;
      if (outcome[OutcomeField.Installed] === 1) {
        this.serving.addRepeated('demand', 1);
        this.finish(other);
      }
      other = named.next(other);
    }
  }

  /** A page came that is not this frame's. It is asked for again; the guest waits, and never sees it. */
  private mismatch(frame: number): void {
    this.serving.mismatched();
    if (!this.waiting.has(frame) && !this.parked.has(frame)) return;
    this.park(frame, this.sinceOf(frame), undefined);
    this.trouble(frame, new PagetideError('PT_PAGE_MISMATCH', `the page of frame ${frame} is not the one of its tag`));
  }

  /** The demand connection is up (again): everything that waits is asked for once more. */
  connected(): void {
    const { demand } = this;
    if (demand === undefined) return;
    for (const [frame, since] of [...this.waiting]) if (!demand.request(frame)) this.park(frame, since, undefined);
  }

  /** The demand connection is gone: what waits for it is asked for elsewhere, where there is somebody. */
  reroute(): void {
    // where nobody can be asked it goes on waiting for the source
    for (const frame of [...this.waiting.keys()]) this.demand?.request(frame);
  }

  /** Nobody that can be asked has this page; it is asked for again later. */
  unheld(frame: number): void {
    if (!this.waiting.has(frame) && !this.parked.has(frame)) return;
    this.park(frame, this.sinceOf(frame), undefined);
    const error = new PagetideError('PT_PAGE_UNHELD', `nobody who can be asked has the page of frame ${frame}`);
    this.trouble(frame, error);
  }

  /**
   * An answer that stays away for long on a connection that lives is asked for once more: the guest stands still for it,
   * and a second answer costs nothing.
   */
  private askAgain(): void {
    if (this.waiting.size === 0 || this.roundRead - this.asked < ASK_AGAIN_MICROS) return;
    this.asked = this.roundRead;
    for (const [frame, since] of [...this.waiting]) {
      if (this.roundRead - since > ASK_AGAIN_MICROS && this.demand?.request(frame) !== true)
        this.park(frame, since, undefined);
    }
  }

  /** The source can't give this page now. The fault stays; it is asked for again later. */
  refused(frame: number, error: PagetideError): void {
    if (!this.waiting.has(frame)) return;
    this.park(frame, this.sinceOf(frame), undefined);
    this.trouble(frame, error);
  }

  /** Faults that are not answered yet. */
  get unanswered(): number {
    return this.waiting.size + this.parked.size;
  }

  private fault(frame: number): void {
    const { session, outcome } = this;
    const state = this.table[frame];
    if (this.waiting.has(frame) || this.parked.has(frame)) {
      // Another thread of the guest on the same frame, or the same one again after a wake: one answer serves all.
      return;
    }
    if (state === FrameState.Missing || state === FrameState.InFlight || state === FrameState.Wanted) {
      if (this.local !== undefined) {
        const result = this.local.install(session, frame, 1, outcome);
        if (result === Outcome.Done && outcome[OutcomeField.Installed] === 1) {
          this.hits++;
          this.serving.hint(frame);
          return;
        }
        // Done, and nothing installed: the fill or a remove came in between. Its new state tells what to do, below.
        if (result !== Outcome.Done) {
          this.setBack(frame, result, this.roundRead, undefined);
          return;
        }
      } else {
        const result = this.named?.install(session, frame, 1, outcome) ?? Outcome.Absent;
        if (result === Outcome.Absent) {
          this.miss(frame, this.roundRead);
          return;
        }
        if (result !== Outcome.Done) {
          this.setBack(frame, result, this.roundRead, undefined);
          return;
        }
        if (outcome[OutcomeField.Installed] === 1) {
          this.hits++;
          this.serving.hint(frame);
          return;
        }
      }
    }
    const now = this.table[frame];
    if (now === FrameState.Zero || now === FrameState.Removed || now === FrameState.Present) {
      const result = session.installZero(frame, 1, outcome);
      if (result === Outcome.Done) this.hits++;
      else this.setBack(frame, result, this.roundRead, undefined);
      return;
    }
    // Being installed by the fill right now, which may yet have to give it back: look again.
    this.park(frame, this.roundRead, undefined);
  }

  private miss(frame: number, since: number): void {
    this.session.claim(frame, 1, FrameState.Wanted);
    this.serving.hint(frame);
    if (this.demand?.request(frame) !== true) {
      this.park(frame, since, undefined);
      return;
    }
    if (this.parked.delete(frame)) this.serving.setParked(this.parked.size);
    this.waiting.set(frame, since);
    this.serving.setDemandWaiting(this.waiting.size);
  }

  /** The frame reads as zero, or has its page already: a zero page where there is none, a wake where there is one. */
  private finishZero(frame: number): void {
    const since = this.sinceOf(frame);
    const result = this.session.installZero(frame, 1, this.outcome);
    const state = this.table[frame];
    if (result === Outcome.Done && (state === FrameState.Present || state === FrameState.Removed)) this.finish(frame);
    else this.setBack(frame, result, since, undefined);
  }

  private sinceOf(frame: number): number {
    return this.waiting.get(frame) ?? this.parked.get(frame)?.since ?? this.roundRead;
  }

  /** The fault on `frame` is served. */
  private finish(frame: number): void {
    const known = this.waiting.has(frame) || this.parked.has(frame);
    const since = this.sinceOf(frame);
    if (this.waiting.delete(frame)) this.serving.setDemandWaiting(this.waiting.size);
    if (this.parked.delete(frame)) this.serving.setParked(this.parked.size);
    this.troubled.delete(frame);
    // A second answer, after a reconnect: it served nobody.
    if (!known) return;
    this.session.clock(this.status);
    const micros = this.status[WaitField.Now]! - since;
    this.serving.served(toUnits(micros));
  }

  /** What to do with a fault that the call did not settle. */
  private setBack(frame: number, result: Outcome, since: number, page: Uint8Array | undefined): void {
    const { outcome } = this;
    switch (result) {
      case Outcome.Gone:
        this.gone = true;
        return;
      case Outcome.Foreign:
        // Its thread stays asleep, and the frame missing: nobody may read what stands there.
        if (this.waiting.delete(frame)) this.serving.setDemandWaiting(this.waiting.size);
        if (this.parked.delete(frame)) this.serving.setParked(this.parked.size);
        this.troubled.delete(frame);
        this.serving.alarm();
        this.onEvent({ event: 'foreign', frame });
        return;
      case Outcome.Short:
        this.park(frame, since, page);
        this.trouble(frame, new PagetideError('PT_MEMORY_FILE', `the memory file ends before frame ${frame}`));
        return;
      case Outcome.Wrong:
        this.park(frame, since, page);
        this.trouble(frame, wrongPage(frame));
        return;
      case Outcome.Failed: {
        this.park(frame, since, page);
        const errno = outcome[OutcomeField.Errno]!;
        const code = errno === 12 ? 'PT_NO_MEMORY' : errno === 28 ? 'PT_NO_SPACE' : 'PT_SYSCALL';
        this.trouble(frame, new PagetideError(code, `installing frame ${frame} failed with errno ${errno}`));
        return;
      }
      case Outcome.Absent:
      case Outcome.Again:
      case Outcome.Done:
        this.park(frame, since, page);
    }
  }

  private park(frame: number, since: number, page: Uint8Array | undefined): void {
    if (this.waiting.delete(frame)) this.serving.setDemandWaiting(this.waiting.size);
    const before = this.parked.get(frame);
    if (before === undefined) this.parked.set(frame, { since, page, notBefore: 0 });
    else before.page ??= page;
    this.serving.setParked(this.parked.size);
  }

  /** Told once, not at every attempt nor for every thread of the guest; and the next attempt waits. */
  private trouble(frame: number, error: PagetideError): void {
    const parked = this.parked.get(frame);
    if (parked === undefined) return;
    this.session.clock(this.status);
    parked.notBefore = this.status[WaitField.Now]! + TROUBLE_MICROS;
    // of each page that is not right the source has to be asked whether it is there
    const told = error.code === 'PT_PAGE_MISMATCH' ? this.troubled.has(frame) : this.troubled.size > 0;
    this.troubled.add(frame);
    if (!told) this.onEvent({ event: 'trouble', frame, error });
  }

  /** Looks at every parked fault again: its frame's state may have changed in any way since. */
  private retryParked(): void {
    const { session, outcome } = this;
    for (const [frame, fault] of [...this.parked]) {
      if (this.gone) return;
      if (fault.notBefore > this.roundRead) continue;
      const state = this.table[frame];
      if (state === FrameState.Missing || state === FrameState.InFlight || state === FrameState.Wanted) {
        let result: Outcome;
        if (fault.page !== undefined) result = session.install(frame, 1, fault.page, 0, outcome);
        else if (this.local !== undefined) result = this.local.install(session, frame, 1, outcome);
        else {
          this.miss(frame, fault.since);
          continue;
        }
        if (result === Outcome.Done && outcome[OutcomeField.Installed] === 1) this.finish(frame);
        else this.setBack(frame, result, fault.since, fault.page);
      } else if (state === FrameState.Zero || state === FrameState.Removed || state === FrameState.Present) {
        this.finishZero(frame);
      }
    }
    this.serving.setParked(this.parked.size);
  }

  private get roundRead(): number {
    return this.times[TimeField.RoundRead]!;
  }

  private isTurnDue(): boolean {
    return this.times[TimeField.RoundRead]! - this.times[TimeField.Turned]! > TURN_MICROS;
  }

  /** Hits of the last round ended when the next wait began. */
  private recordHits(): void {
    const micros = this.status[WaitField.Entered]! - this.times[TimeField.RoundRead]!;
    // As in toUnits(), written out: a call would make an object of the time where it isn't inlined.
    const units = micros <= 0 ? 0 : Math.min(MOST_UNITS, micros * 4) | 0;
    for (; this.hits > 0; this.hits--) this.serving.served(units);
  }
}
