/**
 * Deltas at the destination: pages that changed since an earlier round are asked for as the blocks that differ from what stands in the
 * guest's memory files, or was set aside (aside-pages.ts).
 *
 *   frames that are claimed ─► read what is there ─► digests of its blocks ─► the source: blocks that differ
 *                                                                                          │
 *   compared with its tag, as any page (fill-service.ts) ◄─ page ◄─ read it again ◄────────╯
 *
 * Why no wrong page comes of it: what is made here is a page like one that came whole, and is installed only where it has its frame's
 * tag. So nothing has to be true of what is there, nor of the digests, for a page to be right; they decide only how many bytes
 * it takes. All the same it stays as it is between the two reads: the guest does not run here yet, there is no fault worker during a
 * round, tags are taken over between rounds only, and within one a frame is written by whoever has claimed it, which is the request
 * that this is about. What a page was while the source read it is one thing, too: digests and blocks are of one copy of it. One that the
 * guest wrote meanwhile, or that is torn, has another tag; it is set aside and comes in the next round. So is one of which a digest
 * of 16 bits took two blocks for the same; when the guest stands still such a page is asked for again, whole.
 *
 * A digest costs bytes, too, and pages that are written all over give nothing back. So the source is asked, for one request in some, what
 * whole pages would have taken; while that is less, one request a round goes on trying, and the others are for whole pages.
 */
import { randomBytes } from 'node:crypto';
import { closeSync, openSync, readSync } from 'node:fs';
import { PagetideError } from '../errors.ts';
import { DELTA_DIGESTS, DELTA_PAGE, protocolError } from '../transport/wire.ts';
import type { DeltaRequest, Deltas } from '../transport/page-client.ts';
import { native, Origin, type FaultSession } from './native.ts';
import type { AsidePages } from './aside-pages.ts';
import type { FillRound } from './fill-service.ts';
import type { OwnFile } from './own-pages.ts';
import type { Serving } from './serving.ts';

/** Of so many requests one is measured, by chance: neighbours are alike. */
const MEASURED = 4;

/** A request, and whether the source is to tell what whole pages would have taken. */
export interface DeltaAsk {
  request: DeltaRequest;
  measure: boolean;
}

export class DeltaPages {
  readonly #session: FaultSession;
  readonly #serving: Serving;
  readonly #aside: AsidePages;
  readonly #random: () => number;
  readonly #files: (OwnFile & { fd: number })[] = [];
  /** Older versions for the next request, and pages of the last answer: making a request must not touch those. */
  #bases = Buffer.alloc(0);
  #pages = Buffer.alloc(0);
  #digests = Buffer.alloc(0);
  #round: FillRound = 'loose';
  /** Of what was measured: what it took with its digests, and would have taken whole. Rounds that are long past count less and less. */
  #cost = 0;
  #whole = 0;
  #hasTried = false;

  /**
   * @param files the guest's memory
   * @param session over these files
   * @param aside pages that are newer than what stands in the files
   * @param random 0 … 1
   * @throws PagetideError `PT_MEMORY_FILE`
   */
  constructor(
    files: readonly OwnFile[],
    session: FaultSession,
    aside: AsidePages,
    serving: Serving,
    random = Math.random,
  ) {
    this.#aside = aside;
    this.#session = session;
    this.#serving = serving;
    this.#random = random;
    try {
      for (const file of files) this.#files.push({ ...file, fd: openSync(file.path, 'r') });
    } catch (cause) {
      this.close();
      throw new PagetideError('PT_MEMORY_FILE', "cannot read the guest's own memory file", { cause });
    }
  }

  /** A round begins. */
  begin(round: FillRound): void {
    this.#round = round;
    this.#cost /= 2;
    this.#whole /= 2;
    this.#hasTried = false;
  }

  /** How to ask for these frames, which are claimed; undefined: whole. What it gives is valid until the next call. */
  ask(runs: Uint32Array): DeltaAsk | undefined {
    const isStrict = this.#round === 'strict';
    const pays = this.#whole === 0 || this.#cost < this.#whole;
    if (!pays && (this.#hasTried || isStrict)) return undefined;
    const total = this.#framesWorth(runs);
    if (total === 0) return undefined;
    if (this.#bases.length < total * DELTA_PAGE) {
      this.#bases = Buffer.allocUnsafeSlow(total * DELTA_PAGE);
      this.#digests = Buffer.allocUnsafeSlow(total * DELTA_DIGESTS);
    }
    if (!this.#read(runs, this.#bases)) return undefined;
    this.#hasTried = true;
    const digests = this.#digests.subarray(0, total * DELTA_DIGESTS);
    const seed = randomBytes(8).readBigUInt64LE();
    native().digestBlocks(seed, this.#bases, total, digests);
    const measure = !isStrict && (!pays || this.#whole === 0 || this.#random() * MEASURED < 1);
    return { request: { seed, runs, digests }, measure };
  }

  /**
   * The pages of an answer, back to back; valid until the next call.
   * @throws PagetideError `PT_PROTOCOL`: they are no deltas of these frames
   */
  make(runs: Uint32Array, { total, deltas, whole, bodyBytes }: Deltas): Buffer {
    const digestBytes = total * DELTA_DIGESTS;
    this.#serving.addDeltas(total, bodyBytes, digestBytes, whole);
    if (whole > 0) {
      this.#cost += bodyBytes + digestBytes;
      this.#whole += whole;
    }
    if (this.#pages.length < total * DELTA_PAGE) this.#pages = Buffer.alloc(total * DELTA_PAGE);
    // where nothing can be read any more it makes no page of it: the tags tell
    this.#read(runs, this.#pages);
    const pages = this.#pages.subarray(0, total * DELTA_PAGE);
    if (!native().applyDeltas(pages, total, deltas)) throw protocolError(`these are no deltas of ${total} pages`);
    return pages;
  }

  close(): void {
    for (const { fd } of this.#files.splice(0)) closeSync(fd);
  }

  /** How many frames these are; 0 where most of them have no older version. */
  #framesWorth(runs: Uint32Array): number {
    const { origins } = this.#session;
    let total = 0;
    let known = 0;
    for (let i = 0; i < runs.length; i += 2) {
      const end = runs[i]! + runs[i + 1]!;
      total += runs[i + 1]!;
      for (let frame = runs[i]!; frame < end; frame++)
        if (origins?.[frame] !== Origin.None || this.#aside.has(frame)) known++;
    }
    return known * 2 < total ? 0 : total;
  }

  /** Reads what there is of these frames, back to back. False: it can't be read. */
  #read(runs: Uint32Array, into: Buffer): boolean {
    let at = 0;
    for (let i = 0; i < runs.length; i += 2) {
      const bytes = runs[i + 1]! * DELTA_PAGE;
      if (!this.#readRun(runs[i]! * DELTA_PAGE, bytes, into, at)) return false;
      if (this.#aside.size > 0) this.#overlay(runs[i]!, runs[i + 1]!, into, at);
      at += bytes;
    }
    return true;
  }

  #overlay(first: number, count: number, into: Buffer, offset: number): void {
    for (let i = 0; i < count; i++) this.#aside.copy(first + i, into, offset + i * DELTA_PAGE);
  }

  /** By `read`, never through a mapping: that would create the pages that are not there. A run may go over the end of a file. */
  #readRun(from: number, bytes: number, into: Buffer, offset: number): boolean {
    let at = from;
    const end = from + bytes;
    for (const { fd, offset: begin, size } of this.#files) {
      while (at < end && at >= begin && at < begin + size) {
        const length = Math.min(end, begin + size) - at;
        let read = 0;
        try {
          read = readSync(fd, into, offset + at - from, length, at - begin);
        } catch {
          return false;
        }
        if (read <= 0) return false;
        at += read;
      }
    }
    return at === end;
  }
}
