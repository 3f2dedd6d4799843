/**
 * The fill's pages from other hosts than the source.
 *
 *   frames that are claimed and not here ─► ask every near peer: which of these? ─┬─ held ──► that peer: pages ─► right ─► install
 *                                             (all at once, a bounded wait)       │                    └─ wrong, or not there ─┐
 *                                                                                 └─ by nobody ─► the source ◄── missing again ┘
 *
 * A page that a peer turned out not to have, or to have wrong, is not asked of that peer again: so each is tried once a peer at
 * most, and then is the source's, whatever peers say. While the source is away, what nobody has stays missing.
 *
 * Every frame that this took over ends in one of the four: installed, handed to the source, given back when its request failed,
 * or given back by {@link PeerFill.stop}. What comes after that is dropped. What a peer sends is compared with the frame's tag
 * before anything is done with it.
 */
import { TAG_BYTES } from '../pages/tags.ts';
import { isSet, type TagPages } from '../transport/wire-tag-pages.ts';
import type { PeerBatches } from './fill-service.ts';
import type { FilledBatch } from './filled-batch.ts';
import type { NamedPages } from './named-pages.ts';
import type { Peer } from './peer.ts';
import type { Peers } from './peers.ts';
import type { Serving } from './serving.ts';

/** The fill service, as this uses it. */
export interface FillSide {
  /** Pages that are right, of consecutive frames each; their memory is the caller's again when this returns. */
  fromPeers(batches: readonly FilledBatch[]): void;
  /** Asks the source for frames that were taken over; false, and given back, where it can't be asked. */
  fromSource(runs: Uint32Array): boolean;
  /** The frames are missing again. */
  giveBack(runs: Uint32Array): void;
  /** There is room for more to be asked. */
  more(): void;
}

export interface PeerFillOptions {
  peers: Peers;
  named: NamedPages;
  /** 16 bytes a frame. */
  tags: Uint8Array;
  frames: number;
  /** Of the guest: that of a tag. Less in tests. */
  pageSize: number;
  serving: Serving;
  side: FillSide;
  isSourceUp: () => boolean;
  /** Who has not said what he has by then is not waited for, milliseconds; {@link HAVE_MS} if not given. */
  haveMs?: number;
}

/** Batches that a peer is asked for at once. */
const WINDOW = 4;
/** See {@link PeerFillOptions.haveMs}. */
const HAVE_MS = 50;
/** While the source is away, peers are asked again for what they did not have this long after, milliseconds. */
const AGAIN_MS = 10_000;

/** A question that is under way. */
interface Question {
  frames: Uint32Array;
  /** A bit a peer that has it, for each frame. */
  holders: Uint8Array;
  unanswered: number;
  askedAt: number;
}

export class PeerFill implements PeerBatches {
  readonly #options: PeerFillOptions;
  readonly #haveMs: number;
  /** By ring of frames that are alike: a bit for each peer that does not have the page, or did not have the right one. */
  readonly #lacking: Uint8Array;
  readonly #questions = new Set<Question>();
  readonly #requests = new Map<Uint32Array, Peer>();
  readonly #timer: NodeJS.Timeout;
  #clearedAt = performance.now();
  #stopped = false;

  constructor(options: PeerFillOptions) {
    this.#options = options;
    this.#haveMs = options.haveMs ?? HAVE_MS;
    this.#lacking = new Uint8Array(options.frames);
    this.#timer = setInterval(() => this.#look(), this.#haveMs / 5);
    this.#timer.unref();
    options.peers.start();
  }

  get asking(): number {
    return this.#questions.size;
  }

  /** A peer has come: what it lacked an hour ago it may have now. */
  changed(): void {
    this.#lacking.fill(0);
  }

  take(runs: Uint32Array): 'taken' | 'held by nobody' | 'nobody to ask' {
    const { peers, side, tags, named, isSourceUp } = this.#options;
    const source = isSourceUp();
    // a source that is away makes every peer worth asking
    const near = peers.near().filter((peer) => !source || peer.isWorthAsking);
    if (near.length === 0) return 'nobody to ask';
    let mask = 0;
    for (const peer of near) mask |= this.#bit(peer);
    const frames: number[] = [];
    const rest: number[] = [];
    eachFrame(runs, (frame) => ((mask & ~this.#lacking[named.ring(frame)]!) === 0 ? rest : frames).push(frame));
    if (frames.length === 0 && source) return 'nobody to ask';
    if (rest.length > 0) side.fromSource(toRuns(rest));
    if (frames.length === 0) return 'held by nobody';
    const question: Question = {
      frames: Uint32Array.from(frames),
      holders: new Uint8Array(frames.length),
      unanswered: 0,
      askedAt: performance.now(),
    };
    const wanted = gather(tags, question.frames);
    this.#questions.add(question);
    for (const peer of near) {
      const asked = peer.have(wanted, (present) => this.#answered(question, peer, present));
      if (asked) question.unanswered++;
    }
    if (question.unanswered === 0) this.#settle(question);
    return 'taken';
  }

  /** Gives everything back. Peers may be closed then. */
  stop(): void {
    if (this.#stopped) return;
    this.#stopped = true;
    clearInterval(this.#timer);
    const { side } = this.#options;
    for (const { frames } of this.#questions) side.giveBack(toRuns(frames));
    for (const frames of this.#requests.keys()) side.giveBack(toRuns(frames));
    this.#questions.clear();
    this.#requests.clear();
  }

  #look(): void {
    const now = performance.now();
    const late = [...this.#questions].filter((question) => now - question.askedAt > this.#haveMs);
    for (const question of late) this.#settle(question);
    if (late.length > 0) this.#options.side.more();
    if (this.#options.isSourceUp()) this.#clearedAt = now;
    else if (now - this.#clearedAt > AGAIN_MS) {
      this.#clearedAt = now;
      this.changed();
    }
  }

  #answered(question: Question, peer: Peer, present: Uint8Array | undefined): void {
    if (!this.#questions.has(question)) return;
    const bit = this.#bit(peer);
    if (present !== undefined) {
      for (let i = 0; i < question.frames.length; i++) {
        if (isSet(present, i)) question.holders[i]! |= bit;
        else this.#lacking[this.#options.named.ring(question.frames[i]!)]! |= bit;
      }
    }
    if (--question.unanswered > 0) return;
    this.#settle(question);
    this.#options.side.more();
  }

  /** Who has what is known, or has to do: each frame goes to one of those that have it. */
  #settle(question: Question): void {
    this.#questions.delete(question);
    const { frames, holders } = question;
    const { named } = this.#options;
    const shares = new Map<Peer, number[]>();
    const chosen = new Map<number, Peer | undefined>();
    const rest: number[] = [];
    for (let i = 0; i < frames.length; i++) {
      const frame = frames[i]!;
      const mask = holders[i]! & ~this.#lacking[named.ring(frame)]!;
      if (!chosen.has(mask)) chosen.set(mask, this.#choose(mask));
      const peer = chosen.get(mask);
      if (peer === undefined) rest.push(frame);
      else if (shares.get(peer)?.push(frame) === undefined) shares.set(peer, [frame]);
    }
    for (const [peer, share] of shares) if (!this.#request(peer, Uint32Array.from(share))) rest.push(...share);
    // in order again: runs are of consecutive frames
    if (rest.length > 0) this.#options.side.fromSource(toRuns(rest.sort((a, b) => a - b)));
  }

  /** The one with the least to do. Undefined: nobody has it, or they all have enough to do. */
  #choose(mask: number): Peer | undefined {
    let best: Peer | undefined;
    for (const peer of this.#options.peers.all) {
      if ((mask & this.#bit(peer)) === 0 || !peer.isUp || peer.outstanding >= 2 * WINDOW) continue;
      if (best === undefined || peer.outstanding < best.outstanding) best = peer;
    }
    return best;
  }

  #request(peer: Peer, frames: Uint32Array): boolean {
    const asked = peer.pages(gather(this.#options.tags, frames), (pages) => {
      if (!this.#requests.delete(frames)) return;
      if (pages === undefined) this.#options.side.giveBack(toRuns(frames));
      else this.#arrived(peer, frames, pages);
    });
    if (asked) this.#requests.set(frames, peer);
    return asked;
  }

  #arrived(peer: Peer, frames: Uint32Array, { present, pages, bodyBytes }: TagPages): void {
    const { named, serving, side, pageSize } = this.#options;
    const bit = this.#bit(peer);
    const missing: number[] = [];
    const right: { frame: number; count: number; offset: number }[] = [];
    let offset = 0;
    let wrong = 0;
    for (let i = 0; i < frames.length; i++) {
      const frame = frames[i]!;
      const there = isSet(present, i);
      if (there && named.verify(frame, pages, offset)) {
        const last = right.at(-1);
        const follows = last !== undefined && last.frame + last.count === frame;
        if (follows && last.offset + last.count * pageSize === offset) last.count++;
        else right.push({ frame, count: 1, offset });
      } else {
        if (there) wrong++;
        this.#lacking[named.ring(frame)]! |= bit;
        missing.push(frame);
      }
      if (there) offset += pageSize;
    }
    if (wrong > 0) {
      serving.peerMismatched(wrong);
      peer.sentWrong(wrong);
    }
    if (missing.length > 0) side.giveBack(toRuns(missing));
    serving.addPages('fill', bodyBytes, offset, 0);
    side.fromPeers(
      right.map(({ frame, count, offset: at }) => ({
        runs: Uint32Array.of(frame, count),
        zero: new Uint8Array((count + 7) >> 3),
        pages: pages.subarray(at, at + count * pageSize),
        wireBytes: 0,
        from: 'peer',
      })),
    );
  }

  #bit(peer: Peer): number {
    return 1 << this.#options.peers.all.indexOf(peer);
  }
}

function eachFrame(runs: Uint32Array, take: (frame: number) => void): void {
  for (let i = 0; i < runs.length; i += 2)
    for (let frame = runs[i]!; frame < runs[i]! + runs[i + 1]!; frame++) take(frame);
}

/** [first, count, …] of frames in ascending order, or nearly so. */
function toRuns(frames: ArrayLike<number>): Uint32Array {
  const runs: number[] = [];
  for (let i = 0; i < frames.length; i++) {
    const frame = frames[i]!;
    if (runs.length > 0 && runs.at(-2)! + runs.at(-1)! === frame) runs[runs.length - 1]!++;
    else runs.push(frame, 1);
  }
  return Uint32Array.from(runs);
}

function gather(tags: Uint8Array, frames: Uint32Array): Uint8Array {
  const gathered = new Uint8Array(frames.length * TAG_BYTES);
  for (let i = 0; i < frames.length; i++)
    gathered.set(tags.subarray(frames[i]! * TAG_BYTES, (frames[i]! + 1) * TAG_BYTES), i * TAG_BYTES);
  return gathered;
}
