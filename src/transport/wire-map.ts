/**
 * The frame map: which frames hold content at the switch, and which are zero.
 *
 * Runs of u32: bit 31 set: data; clear: zero; bits 0–30: how many frames, at least one. The pieces of a map follow each
 * other without a gap from frame 0, and the piece with the END flag comes to exactly the guest's frames.
 */
import { PagetideError } from '../errors.ts';
import { FrameFlag, FrameType, HEADER_SIZE, WireLimit, protocolError, readU32, writeHeader, writeU32 } from './wire.ts';

const DATA = 0x8000_0000;

/** Runs as they go over the wire: see {@link mapRun}, {@link runCount}, {@link runHasData}. */
export type MapRuns = Uint32Array;

/** One run as a number. */
export function mapRun(count: number, hasData: boolean): number {
  return (hasData ? count | DATA : count) >>> 0;
}
/** Frames of a run. */
export function runCount(run: number): number {
  return run & 0x7fff_ffff;
}
/** Whether a run's frames hold content. */
export function runHasData(run: number): boolean {
  return run >= DATA;
}

/**
 * The map of a guest from where its memory files hold data (`SEEK_DATA`): holes are zero.
 * @param extents bytes in guest memory space; any order, may overlap. A frame that an extent touches counts as data.
 * @param frames frames of the guest
 */
export function mapFromExtents(
  extents: readonly { offset: number; length: number }[],
  frames: number,
  pageSize: number,
): MapRuns {
  const runs: number[] = [];
  let at = 0;
  const add = (count: number, hasData: boolean): void => {
    const last = runs.at(-1);
    if (count === 0) return;
    if (last !== undefined && runHasData(last) === hasData)
      runs[runs.length - 1] = mapRun(runCount(last) + count, hasData);
    else runs.push(mapRun(count, hasData));
    at += count;
  };
  for (const extent of [...extents].sort((a, b) => a.offset - b.offset)) {
    if (extent.length <= 0) continue;
    const first = Math.max(at, Math.floor(extent.offset / pageSize));
    const end = Math.ceil((extent.offset + extent.length) / pageSize);
    if (end > frames || extent.offset < 0)
      throw new PagetideError('PT_BAD_ARGUMENT', 'an extent lies outside guest memory');
    if (end <= at) continue;
    add(first - at, false);
    add(end - first, true);
  }
  add(frames - at, false);
  return Uint32Array.from(runs);
}

/** Frames that a map covers. */
export function mapFrames(runs: MapRuns): number {
  let sum = 0;
  for (const run of runs) sum += runCount(run);
  return sum;
}

/**
 * A map as frames, each with at most {@link WireLimit.mapRuns} runs.
 * @throws PagetideError `PT_BAD_ARGUMENT` when it doesn't come to `frames`.
 */
export function encodeMap(runs: MapRuns, frames: number): Buffer[] {
  if (mapFrames(runs) !== frames || runs.some((run) => runCount(run) === 0)) {
    throw new PagetideError('PT_BAD_ARGUMENT', `a frame map must cover exactly ${frames} frames`);
  }
  const pieces: Buffer[] = [];
  let first = 0;
  for (let at = 0; at < runs.length; at += WireLimit.mapRuns) {
    const part = runs.subarray(at, at + WireLimit.mapRuns);
    const piece = Buffer.allocUnsafe(HEADER_SIZE + part.length * 4);
    const flags = at + part.length === runs.length ? FrameFlag.End : 0;
    writeHeader(piece, 0, part.length * 4, FrameType.Map, flags, 0, first);
    for (let i = 0; i < part.length; i++) writeU32(piece, HEADER_SIZE + i * 4, part[i]!);
    pieces.push(piece);
    first += mapFrames(part);
  }
  return pieces;
}

/** Checks that the pieces of one map follow each other; a new one for each connection, as each begins from the start. */
export class MapReader {
  readonly #frames: number;
  #at = 0;
  #ended = false;

  constructor(frames: number) {
    this.#frames = frames;
  }

  get ended(): boolean {
    return this.#ended;
  }

  /**
   * One piece's payload; `first` is its argument.
   * @returns its runs, which begin at frame `first`
   * @throws PagetideError `PT_PROTOCOL`
   */
  read(payload: Uint8Array, flags: number, first: number): MapRuns {
    if (this.#ended) throw protocolError('a frame map goes on after its end');
    if (first !== this.#at) throw protocolError(`a piece of the frame map begins at ${first} instead of ${this.#at}`);
    const runs = new Uint32Array(payload.length / 4);
    for (let i = 0; i < runs.length; i++) {
      const run = readU32(payload, i * 4);
      const count = runCount(run);
      this.#at += count;
      if (count === 0 || this.#at > this.#frames) throw protocolError('a frame map does not fit the guest');
      runs[i] = run;
    }
    if ((flags & FrameFlag.End) !== 0) {
      if (this.#at !== this.#frames) throw protocolError(`a frame map ends at ${this.#at} of ${this.#frames} frames`);
      this.#ended = true;
    }
    return runs;
  }
}
