/**
 * What the fault worker, the fill worker and the main thread of one guest share: counters, the stall histogram, and the
 * ring by which the fault worker tells the fill where the guest is touching. One SharedArrayBuffer, laid out here.
 *
 * Every counter has one writing thread, so plain stores do; readers get values that are at most a moment old. Only the
 * hint ring's head and `DemandWaiting` steer anything, and both through Atomics.
 */
import { HISTOGRAM_BUCKETS, recordUnits } from './histogram.ts';

/** A power of two, so that the ring goes on when its head, an int32, wraps around. */
const HINTS = 256;

/** Int32 fields. */
const I = {
  DemandWaiting: 0,
  HintHead: 1,
  FaultsServed: 2,
  Parked: 3,
  Alarms: 4,
  Reconnects: 5,
  FillInFlight: 6,
  Mismatches: 7,
  PeerMismatches: 8,
} as const;
/** Float64 fields, written by the fault worker (Demand…, MaxUs, Zero…) or the fill worker (Fill…). */
const F = {
  MaxUs: 0,
  DemandIn: 1,
  DemandOut: 2,
  FillIn: 3,
  FillOut: 4,
  DemandPages: 5,
  FillPages: 6,
  FillRaw: 7,
  DemandRaw: 8,
  DemandInstalled: 9,
  FillInstalled: 10,
  DemandCached: 11,
  FillCached: 12,
  DemandRepeated: 13,
  FillRepeated: 14,
  DemandResident: 15,
  FillResident: 16,
  DemandPeer: 17,
  FillPeer: 18,
  DeltaFrames: 19,
  DeltaBytes: 20,
  DigestBytes: 21,
  MeasuredBytes: 22,
  WholeBytes: 23,
} as const;

const INTS = 16;
const FLOATS = 24;
/** Where the ring's head lies, bytes from the start; for tests. */
export const HINT_HEAD_AT = FLOATS * 8 + I.HintHead * 4;
const BYTES = (INTS + HINTS + HISTOGRAM_BUCKETS + 1) * 4 + FLOATS * 8 + 8;

/** Bytes on the wire and pages of one of the two page connections. */
export interface Traffic {
  in: number;
  out: number;
  /** Page payload as it came over the wire, bytes. */
  pages: number;
  /** The same before compression, bytes. */
  raw: number;
  /** Frames that this connection's answers filled. */
  installed: number;
}

/** Frames whose page was asked for as a delta (delta-pages.ts). */
export interface DeltaBytes {
  /** How many. */
  frames: number;
  /** Their deltas as they came over the wire, bytes; counted with the pages, too. */
  bytes: number;
  /** Digests that were sent for them, bytes. */
  digests: number;
  /** What whole pages would have taken in place of `bytes`: as it was for the part that was measured. */
  whole: number;
}

export class Serving {
  readonly buffer: SharedArrayBuffer;
  readonly histogram: Int32Array;
  private readonly ints: Int32Array;
  private readonly hints: Int32Array;
  private readonly floats: Float64Array;

  constructor(buffer: SharedArrayBuffer = new SharedArrayBuffer(BYTES)) {
    this.buffer = buffer;
    this.floats = new Float64Array(buffer, 0, FLOATS);
    this.ints = new Int32Array(buffer, FLOATS * 8, INTS);
    this.hints = new Int32Array(buffer, FLOATS * 8 + INTS * 4, HINTS);
    this.histogram = new Int32Array(buffer, FLOATS * 8 + (INTS + HINTS) * 4, HISTOGRAM_BUCKETS);
  }

  // --- fault worker

  /** The guest touched `frame`: the fill fetches its neighbours next. Overwrites the oldest hint. */
  hint(frame: number): void {
    const head = this.ints[I.HintHead]!;
    this.hints[head & (HINTS - 1)] = frame;
    Atomics.store(this.ints, I.HintHead, (head + 1) | 0);
  }
  setDemandWaiting(frames: number): void {
    Atomics.store(this.ints, I.DemandWaiting, frames);
  }
  setParked(frames: number): void {
    this.ints[I.Parked] = frames;
  }
  /** A fault was served after `units` of 0.25 µs: whole numbers, see {@link recordUnits}. */
  served(units: number): void {
    recordUnits(this.histogram, units);
    this.ints[I.FaultsServed]!++;
    if (units > this.floats[F.MaxUs]! * 4) this.floats[F.MaxUs] = units / 4;
  }
  alarm(): void {
    Atomics.add(this.ints, I.Alarms, 1);
  }
  reconnected(): void {
    Atomics.add(this.ints, I.Reconnects, 1);
  }

  // --- fill worker

  /** Hints since `from` (a value that this returned before, 0 at first), oldest first, into `into`. */
  takeHints(from: number, into: number[]): number {
    const head = Atomics.load(this.ints, I.HintHead);
    // Both wrap around: only their distance means anything, and beyond the ring's size the rest is overwritten.
    const since = (head - from) | 0;
    const count = since < 0 || since > HINTS ? HINTS : since;
    for (let at = head - count; at < head; at++) into.push(this.hints[at & (HINTS - 1)]!);
    return head;
  }

  // --- either

  setTraffic(which: 'demand' | 'fill', bytesIn: number, bytesOut: number): void {
    this.floats[which === 'demand' ? F.DemandIn : F.FillIn] = bytesIn;
    this.floats[which === 'demand' ? F.DemandOut : F.FillOut] = bytesOut;
  }
  addPages(which: 'demand' | 'fill', wire: number, raw: number, installed: number): void {
    const demand = which === 'demand';
    this.floats[demand ? F.DemandPages : F.FillPages]! += wire;
    this.floats[demand ? F.DemandRaw : F.FillRaw]! += raw;
    this.floats[demand ? F.DemandInstalled : F.FillInstalled]! += installed;
  }

  /** Frames whose page came from the shared-page cache. */
  addCached(which: 'demand' | 'fill', frames: number): void {
    this.floats[which === 'demand' ? F.DemandCached : F.FillCached]! += frames;
  }
  /** Frames whose page came from a guest that runs on this host. */
  addResident(which: 'demand' | 'fill', frames: number): void {
    this.floats[which === 'demand' ? F.DemandResident : F.FillResident]! += frames;
  }
  /** Frames whose page came from another host that has the domain. */
  addFromPeer(which: 'demand' | 'fill', frames: number): void {
    this.floats[which === 'demand' ? F.DemandPeer : F.FillPeer]! += frames;
  }
  /** Frames that got the page which another frame of this guest was sent. */
  addRepeated(which: 'demand' | 'fill', frames: number): void {
    this.floats[which === 'demand' ? F.DemandRepeated : F.FillRepeated]! += frames;
  }
  /**
   * Deltas came: of so many frames, in so many bytes, for so many of digests. `whole`: bytes that whole pages would have taken; 0: not
   * measured. Of the fill worker.
   */
  addDeltas(frames: number, bytes: number, digests: number, whole: number): void {
    this.floats[F.DeltaFrames]! += frames;
    this.floats[F.DeltaBytes]! += bytes;
    this.floats[F.DigestBytes]! += digests;
    if (whole > 0) this.floats[F.MeasuredBytes]! += bytes;
    this.floats[F.WholeBytes]! += whole;
  }
  /** A page came that does not have the tag of its frame. */
  mismatched(): void {
    Atomics.add(this.ints, I.Mismatches, 1);
  }

  /** So did pages of peers. */
  peerMismatched(pages: number): void {
    Atomics.add(this.ints, I.PeerMismatches, pages);
  }

  // --- readers

  /** Undefined where none was asked for. */
  get deltas(): DeltaBytes | undefined {
    const frames = this.floats[F.DeltaFrames]!;
    if (frames === 0) return undefined;
    const bytes = this.floats[F.DeltaBytes]!;
    const measured = this.floats[F.MeasuredBytes]!;
    const whole = measured === 0 ? bytes : Math.round((bytes * this.floats[F.WholeBytes]!) / measured);
    return { frames, bytes, digests: this.floats[F.DigestBytes]!, whole };
  }
  get fromPeers(): number {
    return this.floats[F.DemandPeer]! + this.floats[F.FillPeer]!;
  }
  get peerMismatches(): number {
    return Atomics.load(this.ints, I.PeerMismatches);
  }
  get cached(): number {
    return this.floats[F.DemandCached]! + this.floats[F.FillCached]!;
  }
  get resident(): number {
    return this.floats[F.DemandResident]! + this.floats[F.FillResident]!;
  }
  get repeated(): number {
    return this.floats[F.DemandRepeated]! + this.floats[F.FillRepeated]!;
  }
  get mismatches(): number {
    return Atomics.load(this.ints, I.Mismatches);
  }

  /** Faults that wait for an answer from elsewhere right now. The fill stands back while there are any. */
  get demandWaiting(): number {
    return Atomics.load(this.ints, I.DemandWaiting);
  }
  get faultsServed(): number {
    return this.ints[I.FaultsServed]! >>> 0;
  }
  get parked(): number {
    return this.ints[I.Parked]!;
  }
  get alarms(): number {
    return Atomics.load(this.ints, I.Alarms);
  }
  get reconnects(): number {
    return Atomics.load(this.ints, I.Reconnects);
  }
  get maxUs(): number {
    return this.floats[F.MaxUs]!;
  }
  traffic(which: 'demand' | 'fill'): Traffic {
    const demand = which === 'demand';
    return {
      in: this.floats[demand ? F.DemandIn : F.FillIn]!,
      out: this.floats[demand ? F.DemandOut : F.FillOut]!,
      pages: this.floats[demand ? F.DemandPages : F.FillPages]!,
      raw: this.floats[demand ? F.DemandRaw : F.FillRaw]!,
      installed: this.floats[demand ? F.DemandInstalled : F.FillInstalled]!,
    };
  }
}
