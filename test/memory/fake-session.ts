/**
 * A fault session without a kernel: the page table's rules in plain code, content a page, threads that sleep on a frame.
 * Tests let the guest touch and remove, make calls fail where they like, and look at what became of every frame.
 */
import {
  FrameState,
  Outcome,
  OutcomeField,
  WaitField,
  WaitFlag,
  type FaultSession,
  type SessionCounts,
} from '../../src/memory/native.ts';

/** Bytes: small, nothing here depends on it. */
export const FAKE_PAGE = 16;

/** The content that belongs into `frame`. */
export function pageOf(frame: number): Uint8Array {
  const page = new Uint8Array(FAKE_PAGE);
  new DataView(page.buffer).setUint32(0, frame + 1, true);
  return page;
}

interface Round {
  frames: number[];
  flags: number;
}

const needsContent = (state: number): boolean =>
  state === FrameState.Missing || state === FrameState.Wanted || state === FrameState.InFlight;

export class FakeSession implements FaultSession {
  readonly id = 1;
  readonly frames: number;
  readonly pageSize = FAKE_PAGE;
  readonly table: Uint8Array;
  /** What the guest has at each frame: its page, zeros, or nothing. */
  readonly memory: (Uint8Array | undefined)[];
  /** How often content was put into each frame. */
  readonly installs: number[];
  /** Threads asleep, a frame. */
  readonly asleep = new Map<number, number>();
  /** What an install of `frame` comes to, where not what it should. */
  inject: (frame: number) => Outcome | undefined = () => undefined;
  errno = 5;
  /** Microseconds; goes on by a millisecond with each wait that finds nothing. */
  now = 0;
  isStopped = false;
  private readonly rounds: Round[] = [];

  constructor(frames: number) {
    this.frames = frames;
    this.table = new Uint8Array(frames);
    this.memory = new Array<Uint8Array | undefined>(frames).fill(undefined);
    this.installs = new Array<number>(frames).fill(0);
  }

  // --- the guest

  /** A thread touches each frame; those without a page fault, in one read. */
  touch(...frames: number[]): void {
    const faults = frames.filter((frame) => this.memory[frame] === undefined);
    for (const frame of faults) this.asleep.set(frame, (this.asleep.get(frame) ?? 0) + 1);
    if (faults.length > 0) this.rounds.push({ frames: faults, flags: 0 });
  }
  /** `MADV_DONTNEED` on private memory, as far as the reader of its event has come. */
  remove(frame: number): void {
    this.table[frame] = FrameState.Removed;
    this.memory[frame] = undefined;
    this.rounds.push({ frames: [], flags: WaitFlag.Removed });
  }
  hangup(): void {
    this.rounds.push({ frames: [], flags: WaitFlag.Hangup });
  }
  /** What `frame` reads as: 0 for zeros, frame + 1 for its own page, undefined while it has none. */
  reads(frame: number): number | undefined {
    const page = this.memory[frame];
    return page === undefined ? undefined : new DataView(page.buffer, page.byteOffset).getUint32(0, true);
  }

  // --- FaultSession

  register(): void {}
  unregister(): void {}
  wait(frames: Uint32Array, status: Float64Array): number {
    status[WaitField.Entered] = this.now;
    const round = this.rounds.shift();
    if (round === undefined) this.now += 1000;
    else this.now += 1;
    status[WaitField.Flags] = (round?.flags ?? 0) | (this.isStopped ? WaitFlag.Stop : 0);
    status[WaitField.Removes] = round?.flags === WaitFlag.Removed ? 1 : 0;
    status[WaitField.Now] = this.now;
    frames.set(round?.frames ?? []);
    return round?.frames.length ?? 0;
  }
  clock(status: Float64Array): void {
    status[WaitField.Now] = this.now;
  }
  stop(): void {
    this.isStopped = true;
  }
  claim(frame: number, count: number, as: 1 | 2): number {
    let claimed = 0;
    for (let f = frame; f < frame + count; f++) {
      const state = this.table[f];
      const fits = state === FrameState.Missing || (as === FrameState.Wanted && state === FrameState.InFlight);
      if (!fits && as === FrameState.InFlight) break;
      if (!fits) continue;
      this.table[f] = as;
      claimed++;
    }
    return claimed;
  }
  release(frame: number, count: number, from: 1 | 2): number {
    let released = 0;
    for (let f = frame; f < frame + count; f++) {
      if (this.table[f] !== from) continue;
      this.table[f] = FrameState.Missing;
      released++;
    }
    return released;
  }
  nextMissing(frame: number): number {
    return this.table.indexOf(FrameState.Missing, frame);
  }
  install(frame: number, count: number, source: Uint8Array, byteOffset: number, outcome: Int32Array): Outcome {
    return this.each(frame, count, outcome, (f) => {
      if (!needsContent(this.table[f]!)) return 'skip';
      const at = byteOffset + (f - frame) * FAKE_PAGE;
      if (at + FAKE_PAGE > source.length) throw new RangeError(`no page for frame ${f} in the source`);
      this.put(f, Uint8Array.from(source.subarray(at, at + FAKE_PAGE)));
      this.installs[f]!++;
      return 'done';
    });
  }
  installFromFile(): Outcome {
    throw new Error('not faked');
  }
  installFromArena(): Outcome {
    throw new Error('not faked');
  }
  installFromCache(): Outcome {
    throw new Error('not faked');
  }
  installFromResident(): Outcome {
    throw new Error('not faked');
  }
  installZero(frame: number, count: number, outcome: Int32Array): Outcome {
    return this.each(frame, count, outcome, (f) => {
      const state = this.table[f];
      if (state !== FrameState.Zero && state !== FrameState.Removed && state !== FrameState.Present) return 'skip';
      if (this.memory[f] !== undefined) {
        this.asleep.delete(f); // a wake
        return 'skip';
      }
      this.put(f, new Uint8Array(FAKE_PAGE));
      return 'done';
    });
  }
  markZero(frame: number, count: number): number {
    let changed = 0;
    for (let f = frame; f < frame + count; f++) {
      if (!needsContent(this.table[f]!)) continue;
      this.table[f] = FrameState.Zero;
      changed++;
    }
    return changed;
  }
  wake(frame: number, count: number): void {
    for (let f = frame; f < frame + count; f++) this.asleep.delete(f);
  }
  reset(frame: number, count: number, state: FrameState): void {
    this.table.fill(state, frame, frame + count);
  }
  adopt(): void {
    throw new Error('not faked');
  }
  /** As over files. */
  punch(frame: number, count: number, state: FrameState): void {
    this.memory.fill(undefined, frame, frame + count);
    this.reset(frame, count, state);
  }
  punchAbsent(): void {
    this.table.forEach((state, frame) => {
      if (state !== FrameState.Present) this.memory[frame] = undefined;
    });
  }
  reconcile(): number {
    return 0;
  }
  close(): void {}
  counts(): SessionCounts {
    const of = (...states: number[]) => this.table.filter((state) => states.includes(state)).length;
    const none = { installed: 0, zeroInstalled: 0, skipped: 0, faults: 0, removes: 0, foreign: 0 };
    const outstanding = of(FrameState.Missing, FrameState.Wanted, FrameState.InFlight, FrameState.Installing);
    const zero = of(FrameState.Zero, FrameState.InstallingZero);
    const [present, removed] = [of(FrameState.Present), of(FrameState.Removed)];
    const wanted = of(FrameState.Wanted);
    return { total: this.frames, outstanding, wanted, present, zero, removed, ...none };
  }

  private put(frame: number, page: Uint8Array): void {
    this.memory[frame] = page;
    this.table[frame] = FrameState.Present;
    this.asleep.delete(frame);
  }

  private each(frame: number, count: number, outcome: Int32Array, one: (frame: number) => 'done' | 'skip'): Outcome {
    outcome.fill(0);
    for (let f = frame; f < frame + count; f++) {
      outcome[OutcomeField.Next] = f;
      const injected = this.inject(f);
      if (injected !== undefined && injected !== Outcome.Done) {
        outcome[OutcomeField.Errno] = injected === Outcome.Failed ? this.errno : 0;
        return injected;
      }
      outcome[one(f) === 'done' ? OutcomeField.Installed : OutcomeField.Skipped]!++;
    }
    outcome[OutcomeField.Next] = frame + count;
    return Outcome.Done;
  }
}
