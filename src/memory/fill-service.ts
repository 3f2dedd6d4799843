/**
 * The fill: brings, behind the faults, every page that the guest has not touched; and before that, in rounds, what the guest's
 * memory files lack while it still runs at the source.
 *
 *   choose a run (fill-order) ─ claim ─► local: install ──────────────────────────► next
 *                                     └► remote: ask for a batch ─► answer: install, mark zeros ─► next
 *
 * It never gets in front of a fault: it holds the gate for one bounded copy at a time, and while a fault waits for an
 * answer from elsewhere it asks for one small batch at a time instead of a window of large ones.
 *
 * A frame that it claimed is either installed, found dealt with, marked zero, or given back (release) when its batch
 * cannot be answered; EAGAIN means that the fault worker has an event to read first: the same pages are tried again. So
 * are pages that a memory file lacks for now, or for which there is no memory: told once, and never filled with anything
 * else. Only a page of somebody else's ends the fill.
 *
 * Where pages have names, frames with the same page are one ring, and at most one of a ring is asked for at a time. The
 * others that were claimed wait with it, *in flight* without a request of their own: whatever ends that request, its page
 * put into the whole ring, or the frame given back, ends their wait too (spread, giveBack). A fault on one of them is asked
 * for on the demand connection like any frame in flight.
 */
import { PagetideError } from '../errors.ts';
import type { AsidePages } from './aside-pages.ts';
import { FillBudget } from './fill-budget.ts';
import { FillOrder } from './fill-order.ts';
import { bit, firstWrong, rest, sortOut, type FilledBatch } from './filled-batch.ts';
import { wrongPage, type LocalPages } from './local-pages.ts';
import { FrameState, Origin, Outcome, OutcomeField, OUTCOME_FIELDS } from './native.ts';
import type { NamedPages } from './named-pages.ts';
import type { FillSide } from './peer-fill.ts';
import type { FaultSession } from './native.ts';
import type { Serving } from './serving.ts';

/** Where batches come from: the fill connection. */
export interface BatchPages {
  /**
   * Asks for the frames of `runs` ([start, count, …]); the answer comes to {@link FillService.answer}. False while not connected.
   * @param whole not as deltas; false by default
   */
  request(runs: Uint32Array, whole?: boolean): boolean;
}

/** Where batches come from besides the source: see peer-fill.ts. */
export interface PeerBatches {
  /**
   * Takes claimed frames over: they come back by {@link FillSide}. `held by nobody`: given back already, as the source is away
   * too. `nobody to ask`: they are still the caller's.
   */
  take(runs: Uint32Array): 'taken' | 'held by nobody' | 'nobody to ask';
  /** Batches of which it is not known yet who has them. */
  readonly asking: number;
  /** Gives everything back that was taken over. Idempotent. */
  stop(): void;
}

/** What kind of round it is, see above. */
export type FillRound = 'loose' | 'strict';

export interface FillOptions {
  session: FaultSession;
  /** The session is one over files, and the guest does not run here yet. */
  round?: FillRound | undefined;
  serving: Serving;
  local?: LocalPages | undefined;
  remote?: BatchPages | undefined;
  /** Where the pages have names: what is here already is taken from here, and what comes is checked. */
  named?: NamedPages | undefined;
  /** Where pages that are newer than their tags are kept for the next round. */
  aside?: AsidePages | undefined;
  /** Other hosts that may have the pages, too. */
  peers?: ((side: FillSide) => PeerBatches) | undefined;
  /** Frames a batch. */
  batchFrames: number;
  /** Batches asked for at once. */
  window: number;
  /** Bytes of pages a second, on average; 0: as fast as it goes. */
  bandwidth: number;
  /** A frame cannot be had or installed for now. Not told again before something was installed. */
  onTrouble?: (frame: number, error: PagetideError) => void;
}

/** `filled`: nothing is outstanding; after a loose round, nothing but what was set aside. */
export type FillEnd = 'filled' | 'stopped' | 'gone';

/** Frames a batch while a fault waits. */
const POLITE_FRAMES = 16;
/** While pages are in other hands (waiting faults, a lost connection) it looks again this often, milliseconds. */
const IDLE_MS = 5;
const AGAIN_MS = 1;
/** Batches that are taken from the cache in one go. */
const LOCAL_ROUNDS = 16;
/** A source that refuses is asked again after this long, milliseconds. */
const REFUSED_MS = 200;
/** So is what the kernel or a memory file refuses. */
const TROUBLE_MS = 200;

export class FillService implements FillSide {
  private readonly options: FillOptions;
  private readonly peers: PeerBatches | undefined;
  private readonly order: FillOrder;
  private readonly outcome = new Int32Array(OUTCOME_FIELDS);
  /** Runs asked for and not answered. */
  private readonly inFlight = new Set<Uint32Array>();
  private readonly again: FilledBatch[] = [];
  /** Rings of which a frame is asked for. */
  private readonly rings = new Set<number>();
  private wake: (() => void) | undefined;
  private stopped = false;
  private gone = false;
  private failure: PagetideError | undefined;
  private troubled = false;
  private pausedUntil = 0;
  private readonly budget: FillBudget;

  constructor(options: FillOptions) {
    this.options = options;
    this.budget = new FillBudget(options.bandwidth);
    this.order = new FillOrder(options.session, options.serving);
    this.peers = options.peers?.(this);
  }

  /**
   * Fills until nothing is outstanding. Nothing stays claimed by it, however it ends.
   * @throws PagetideError `PT_FOREIGN_PAGE`; of a round, `PT_NO_SPACE` and whatever else keeps a page from being written
   */
  async run(): Promise<FillEnd> {
    const { session, round } = this.options;
    // what the last round has set aside
    if (round !== undefined) session.release(0, session.frames, FrameState.Wanted);
    try {
      return await this.work();
    } finally {
      this.stopped = true;
      this.peers?.stop();
      this.disconnected();
      for (const batch of this.again.splice(0)) this.giveBack(batch.runs);
    }
  }

  private async work(): Promise<FillEnd> {
    const { local } = this.options;
    for (;;) {
      if (this.failure !== undefined) throw this.failure;
      if (this.gone) return 'gone';
      if (this.stopped) return 'stopped';
      if (this.again.length > 0) {
        for (const batch of this.again.splice(0)) this.install(batch);
        if (this.again.length > 0) await this.pause(this.troubled ? TROUBLE_MS : AGAIN_MS);
        continue;
      }
      let idle = true;
      if (local === undefined) this.ask();
      else idle = !(await this.fillLocal(local));
      // before the pause: where all that was lacking was here, nobody would end it
      if (this.isFilled()) return 'filled';
      if (idle) await this.pause(IDLE_MS);
    }
  }

  /** The table is the truth: frames that faults wait for are outstanding too, and not ours. */
  private isFilled(): boolean {
    const { session, round } = this.options;
    if (this.isOver() || this.again.length > 0 || this.inFlight.size > 0 || session.nextMissing(0) >= 0) return false;
    const { outstanding, wanted } = session.counts();
    return outstanding === (round === 'loose' ? wanted : 0);
  }

  stop(): void {
    this.stopped = true;
    this.wake?.();
  }

  /** From now on: bytes of pages a second, on average; 0: as fast as it goes. */
  limit(bandwidth: number): void {
    this.budget.limit(bandwidth);
    this.wake?.();
  }

  /** An answer on the fill connection. */
  answer(asked: Uint32Array, batch: FilledBatch): void {
    this.inFlight.delete(asked);
    if (this.isOver()) {
      this.giveBack(batch.runs);
      return;
    }
    const { named } = this.options;
    if (named !== undefined && firstWrong(named, batch, this.options.session.pageSize) >= 0) {
      this.answerInPart(named, batch);
      return;
    }
    this.install(batch);
    this.ask();
    // when the guest has its pages, and the next ones are on their way
    if (named !== undefined && this.isWorthKeeping(named)) this.keep(named, batch);
    if (this.again.length > 0 || this.inFlight.size === 0) this.wake?.();
  }

  /**
   * An answer of which not every page is what belongs there: the others are installed. Those that are not are missing again, and
   * asked for again after a while, as the source may not have them right either.
   */
  private answerInPart(named: NamedPages, batch: FilledBatch): void {
    const { session, serving, round, aside } = this.options;
    const { right, wrong, wrongAt } = sortOut(named, batch, session.pageSize);
    // the pages that are right are counted as they are installed
    const rightBytes = right.reduce((sum, part) => sum + part.pages.length, 0);
    serving.addPages('fill', batch.wireBytes, batch.pages.length - rightBytes, 0);
    for (const part of right) this.install(part);
    if (round === 'loose') {
      for (const [i, frame] of wrong.entries()) {
        if (wrongAt[i]! >= 0) aside?.put(frame, batch.pages, wrongAt[i]!);
        session.claim(frame, 1, FrameState.Wanted);
        // of those with the same tag another may be as it was
        this.leaveRing(named, frame);
      }
      this.ask();
      this.wake?.();
      if (named.keeps) for (const part of right) this.keep(named, part);
      return;
    }
    if (batch.ofDeltas === true) {
      // no doubt about the source yet: a digest of a few bits may have taken two blocks for the same
      this.fromSource(Uint32Array.from(wrong.flatMap((frame) => [frame, 1])), true);
      this.ask();
      this.wake?.();
      return;
    }
    for (const frame of wrong) {
      serving.mismatched();
      this.trouble(
        frame,
        new PagetideError('PT_PAGE_MISMATCH', `the page of frame ${frame} is not the one of its tag`),
      );
      this.giveBack(Uint32Array.of(frame, 1));
    }
    this.pausedUntil = performance.now() + REFUSED_MS;
    if (this.isWorthKeeping(named)) for (const part of right) this.keep(named, part);
    this.wake?.();
  }

  /** While the guest stands still for a round it waits for that, not for what other guests may want later. */
  private isWorthKeeping(named: NamedPages): boolean {
    return named.keeps && this.options.round !== 'strict';
  }

  /** See {@link FillSide}. */
  fromPeers(batches: readonly FilledBatch[]): void {
    for (const batch of batches) {
      if (this.isOver()) this.giveBack(batch.runs);
      else this.install(batch);
    }
    if (this.isOver()) return;
    this.ask();
    const { named } = this.options;
    if (named !== undefined && this.isWorthKeeping(named)) for (const batch of batches) this.keep(named, batch);
    this.wake?.();
  }

  /** See {@link FillSide}. */
  more(): void {
    if (!this.isOver()) this.ask();
  }

  /** See {@link FillSide}. */
  fromSource(runs: Uint32Array, whole = false): boolean {
    if (!this.isOver() && this.options.remote?.request(runs, whole) === true) {
      this.inFlight.add(runs);
      return true;
    }
    this.giveBack(runs);
    return false;
  }

  /** The fill connection is gone: what it was asked for is missing again. */
  disconnected(): void {
    for (const runs of this.inFlight) this.giveBack(runs);
    this.inFlight.clear();
  }

  /** The fill connection is up (again). */
  connected(): void {
    this.wake?.();
  }

  /** The source can't give a batch now; what was asked for is missing again, and asked for after a while. */
  refused(asked: Uint32Array): void {
    this.inFlight.delete(asked);
    this.giveBack(asked);
    this.pausedUntil = performance.now() + REFUSED_MS;
  }

  /** See {@link FillSide}: missing again, for whoever comes next. */
  giveBack(runs: Uint32Array): void {
    const { session, named } = this.options;
    for (let i = 0; i < runs.length; i += 2) {
      session.release(runs[i]!, runs[i + 1]!, FrameState.InFlight);
      if (named !== undefined)
        for (let frame = runs[i]!; frame < runs[i]! + runs[i + 1]!; frame++) this.leaveRing(named, frame);
    }
  }

  /** The frame of this ring that was asked for did not come: the others are missing again. */
  private leaveRing(named: NamedPages, frame: number): void {
    if (named.next(frame) === frame || !this.rings.delete(named.ring(frame))) return;
    for (let other = named.next(frame); other !== frame; other = named.next(other))
      this.options.session.release(other, 1, FrameState.InFlight);
  }

  /**
   * Of frames that were claimed, those to ask for: not what the cache has, nor what is on its way for another frame.
   * Undefined: the cache could not be asked now; all was given back.
   */
  private wanted(claimed: readonly number[]): Uint32Array | undefined {
    const { session, named } = this.options;
    if (named === undefined) return Uint32Array.from(claimed);
    const runs: number[] = [];
    for (let i = 0; i < claimed.length; i += 2) {
      let frame = claimed[i]!;
      const end = frame + claimed[i + 1]!;
      while (frame < end) {
        const result = named.install(session, frame, end - frame, this.outcome);
        const installed = this.outcome[OutcomeField.Installed]!;
        if (installed > 0) this.troubled = false;
        frame = this.outcome[OutcomeField.Next]!;
        if (result === Outcome.Done) continue;
        if (result !== Outcome.Absent) {
          // missing again for the next round, by which the event has been read, or told as trouble
          session.release(frame, end - frame, FrameState.InFlight);
          this.giveBack(Uint32Array.from(runs));
          for (let j = i + 2; j < claimed.length; j += 2)
            session.release(claimed[j]!, claimed[j + 1]!, FrameState.InFlight);
          if (result !== Outcome.Again) this.settle(result, frame);
          return undefined;
        }
        if (!this.installAside(named, frame)) this.want(named, frame, runs);
        frame++;
      }
    }
    return Uint32Array.from(runs);
  }

  /** Of a frame that is claimed: what an earlier round brought too early may be its page now. */
  private installAside(named: NamedPages, frame: number): boolean {
    const { session, aside } = this.options;
    const page = aside?.get(frame);
    if (page === undefined || !named.verify(frame, page, 0)) return false;
    if (session.install(frame, 1, page, 0, this.outcome, Origin.Source) !== Outcome.Done) return false;
    this.progress(this.outcome[OutcomeField.Installed]!);
    aside!.drop(frame);
    return true;
  }

  private want(named: NamedPages, frame: number, runs: number[]): void {
    if (named.next(frame) !== frame) {
      const ring = named.ring(frame);
      if (this.rings.has(ring)) return; // waits with the one that is asked for
      this.rings.add(ring);
    }
    if (runs.length > 0 && runs.at(-2)! + runs.at(-1)! === frame) runs[runs.length - 1]!++;
    else runs.push(frame, 1);
  }

  /** Puts the pages of `count` frames from `frame`, which lie at `pages[offset]`, into all others that have the same. */
  private spread(named: NamedPages, frame: number, count: number, pages: Uint8Array, offset: number): void {
    const { session, serving } = this.options;
    for (let i = 0; i < count; i++) {
      const at = frame + i;
      if (named.next(at) === at) continue;
      this.rings.delete(named.ring(at));
      for (let other = named.next(at); other !== at; other = named.next(other)) {
        const from = offset + i * session.pageSize;
        const result = session.install(other, 1, pages, from, this.outcome, Origin.Duplicate);
        const installed = this.outcome[OutcomeField.Installed]!;
        serving.addRepeated('fill', installed);
        if (installed > 0) this.troubled = false;
        if (result === Outcome.Done) continue;
        // not reached: asked for on its own account, when its turn comes
        session.release(other, 1, FrameState.InFlight);
        if (result !== Outcome.Again && !this.settle(result, other)) return;
      }
    }
  }

  /** Every page of a batch that was found right goes into the cache; of those that repeat, one. */
  private keep(named: NamedPages, { runs, zero, pages }: FilledBatch): void {
    const { pageSize } = this.options.session;
    let index = 0;
    let offset = 0;
    for (let i = 0; i < runs.length; i += 2) {
      for (let frame = runs[i]!; frame < runs[i]! + runs[i + 1]!; frame++) {
        if (bit(zero, index++)) continue;
        named.keep(frame, pages, offset);
        offset += pageSize;
      }
    }
  }

  /** Fills the window of requests. */
  private ask(): void {
    const { session, remote, serving, window, batchFrames } = this.options;
    if ((remote === undefined && this.peers === undefined) || this.stopped || performance.now() < this.pausedUntil)
      return;
    for (let rounds = 0; ; rounds++) {
      if (rounds > window + LOCAL_ROUNDS) {
        // what the cache has is installed at once: the event loop must have its turn all the same
        setImmediate(() => this.wake?.());
        return;
      }
      const polite = serving.demandWaiting > 0;
      const underWay = this.inFlight.size + (this.peers?.asking ?? 0);
      if (underWay >= (polite ? 1 : window) || !this.budget.isOpen()) return;
      const frames = this.order.next(polite ? Math.min(POLITE_FRAMES, batchFrames) : batchFrames);
      if (frames.length === 0) return;
      const runs = this.wanted(frames);
      if (runs === undefined) return;
      if (runs.length === 0) continue;
      const taken = this.peers?.take(runs) ?? 'nobody to ask';
      if (taken === 'held by nobody') return;
      if (taken === 'nobody to ask' && !this.fromSource(runs)) return;
      this.budget.spend(runs, session.pageSize);
    }
  }

  /** @returns false when nothing could be chosen */
  private async fillLocal(local: LocalPages): Promise<boolean> {
    const { session, batchFrames } = this.options;
    if (!this.budget.isOpen()) return false;
    const runs = this.order.next(batchFrames);
    this.budget.spend(runs, session.pageSize);
    for (let i = 0; i < runs.length; i += 2) {
      let frame = runs[i]!;
      const end = frame + runs[i + 1]!;
      while (frame < end) {
        const result = local.install(session, frame, end - frame, this.outcome);
        this.progress(this.outcome[OutcomeField.Installed]!);
        frame = this.outcome[OutcomeField.Next]!;
        if (result === Outcome.Done) continue;
        // The frames not reached are missing again for whoever comes next: a fault, or the next sweep.
        session.release(frame, end - frame, FrameState.InFlight);
        if (result === Outcome.Again) await this.pause(AGAIN_MS);
        else if (this.settle(result, frame)) await this.pause(TROUBLE_MS);
        break;
      }
      if (this.isOver()) {
        for (let j = i + 2; j < runs.length; j += 2) session.release(runs[j]!, runs[j + 1]!, FrameState.InFlight);
        break;
      }
    }
    // Messages (stop) come through the event loop.
    await new Promise((resolve) => setImmediate(resolve));
    return runs.length > 0;
  }

  private isOver(): boolean {
    return this.gone || this.stopped || this.failure !== undefined;
  }

  private install(batch: FilledBatch): void {
    const { session, serving, named } = this.options;
    const { runs, zero, pages } = batch;
    const size = session.pageSize;
    // a peer's were counted as they came
    if (batch.from === 'source') serving.addPages('fill', batch.wireBytes, pages.length, 0);
    let index = 0;
    let offset = 0;
    for (let i = 0; i < runs.length; i += 2) {
      const start = runs[i]!;
      const end = start + runs[i + 1]!;
      for (let frame = start; frame < end;) {
        const isZero = bit(zero, index);
        let count = 1;
        while (frame + count < end && bit(zero, index + count) === isZero) count++;
        if (isZero) {
          session.markZero(frame, count); // in no ring
        } else {
          const origin = batch.from === 'peer' ? Origin.Peer : Origin.Source;
          const result = session.install(frame, count, pages, offset, this.outcome, origin);
          this.progress(this.outcome[OutcomeField.Installed]!, batch.from);
          if (result !== Outcome.Done) {
            const done = this.outcome[OutcomeField.Next]! - frame;
            const isWorthMore = result === Outcome.Again || this.settle(result, frame + done);
            if (named !== undefined) this.spread(named, frame, done, pages, offset);
            if (isWorthMore) this.again.push(rest(batch, i, frame + done, index + done, offset + done * size));
            else this.giveBack(runs.subarray(i));
            return;
          }
          if (named !== undefined) this.spread(named, frame, count, pages, offset);
          offset += count * size;
        }
        frame += count;
        index += count;
      }
    }
  }

  private progress(installed: number, from: FilledBatch['from'] = 'source'): void {
    if (installed === 0) return;
    this.troubled = false;
    if (from === 'peer') this.options.serving.addFromPeer('fill', installed);
    else this.options.serving.addPages('fill', 0, 0, installed);
  }

  /**
   * Ends the fill, leaves an alarm to whoever watches the session, or tells the trouble.
   * @returns whether it is worth trying again
   */
  private settle(result: Outcome, frame: number): boolean {
    if (result === Outcome.Gone) {
      this.gone = true;
    } else if (result === Outcome.Foreign) {
      this.options.serving.alarm();
      this.failure = new PagetideError(
        'PT_FOREIGN_PAGE',
        `a page stands in frame ${frame} that Pagetide did not put there`,
      );
    } else if (result === Outcome.Short) {
      this.trouble(
        frame,
        new PagetideError('PT_MEMORY_FILE', `the fill waits: the memory file ends before frame ${frame}`),
      );
      return true;
    } else if (result === Outcome.Wrong) {
      this.trouble(frame, wrongPage(frame));
      return true;
    } else {
      const errno = this.outcome[OutcomeField.Errno]!;
      const code = errno === 12 ? 'PT_NO_MEMORY' : errno === 28 ? 'PT_NO_SPACE' : 'PT_SYSCALL';
      if (this.options.round !== undefined) {
        this.failure = new PagetideError(code, `writing the page of frame ${frame} failed with errno ${errno}`);
        this.wake?.();
        return false;
      }
      this.trouble(
        frame,
        new PagetideError(code, `the fill waits: installing frame ${frame} failed with errno ${errno}`),
      );
      return true;
    }
    this.wake?.();
    return false;
  }

  private trouble(frame: number, error: PagetideError): void {
    if (!this.troubled) this.options.onTrouble?.(frame, error);
    this.troubled = true;
  }

  private pause(ms: number): Promise<void> {
    return new Promise((resolve) => {
      const timer = setTimeout(done, ms);
      const wake = (): void => done();
      function done(): void {
        clearTimeout(timer);
        resolve();
      }
      this.wake = wake;
    });
  }
}
