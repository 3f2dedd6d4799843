/**
 * What of one guest is stable: frames whose page stayed the same over some passes of its watch.
 *
 *                         pass: its tag is another one
 *   stable ────────────────────────────────────────────► waiting, N passes to go ◄─╮ pass: another one again
 *     ▲                                                    │   ╰────────────────────╯
 *     ╰────────────────────────────────────────────────────╯ N passes saw the same tag; not the zero tag
 *
 *   frame   passes to go 1 byte, 0: none │ entry of its stable tag 4 bytes, 0: none          see tag-table.ts for entries
 *
 * A pass costs a look at two bytes of each frame, four frames at once, and work for those that changed or wait. So a page that
 * flickers is out with the first change, and has to be stable anew. A manifest that this has not seen before (another watch of the guest) is compared
 * as a whole: what is the same stays stable.
 */
import { TAG_WORDS } from '../directory/tag-words.ts';
import type { Manifest } from '../pages/manifest.ts';
import { TagTable } from './tag-table.ts';

/** Frames that change something, between two pauses. About a millisecond. */
const PIECE = 4096;
/** Frames that are looked at, between two pauses. */
const PIECE_LOOKED = 1 << 20;
/** The most passes that can be asked for: they are counted in a byte. */
export const MOST_PASSES = 200;

export class StableTags {
  readonly table = new TagTable();
  readonly #passes: number;
  readonly #now: () => number;
  #manifest: Manifest | undefined;
  /** The manifest that all frames were compared with, or followed since. */
  #compared: Manifest | undefined;
  #words: Uint32Array = new Uint32Array(0);
  #entries = new Uint32Array(0);
  #toGo = new Uint8Array(0);
  /** When the last passes began, seconds, the latest first: as many as it takes to be stable. */
  #begun: number[] = [];

  /** @param passes that have to see the same, 1 to {@link MOST_PASSES} @param now seconds, from 0 on */
  constructor(passes: number, now: () => number) {
    this.#passes = passes;
    this.#now = now;
  }

  /** Of memory. */
  get bytes(): number {
    return this.table.bytes + 5 * this.#entries.length;
  }

  /**
   * Takes in what a pass has seen. A generator, a piece a step: between two steps, and when it is left alone for good, this is whole, and each
   * frame counts as this pass or the one before saw it.
   * @param changed a byte a frame, 1: its tag is another one than at the pass before; set back here
   */
  *pass(manifest: Manifest, changed: Uint8Array): Generator<void, void> {
    const anew = manifest !== this.#compared;
    if (anew) this.#take(manifest);
    this.#begun = [Math.floor(this.#now()), ...this.#begun.slice(0, this.#passes)];
    for (let first = 0; first < manifest.frames;) {
      first = this.#piece(first, changed, anew);
      yield;
      // the guest is gone, or another watch has told
      if (this.#manifest !== manifest) return;
    }
    this.#compared = manifest;
  }

  /** The guest is gone: nothing is held, and its frames are forgotten. */
  clear(): void {
    this.table.releaseAll();
    this.#manifest = this.#compared = undefined;
    this.#words = new Uint32Array(0);
    this.#entries = new Uint32Array(0);
    this.#toGo = new Uint8Array(0);
    this.#begun = [];
  }

  #take(manifest: Manifest): void {
    const { frames, tags } = manifest;
    if (this.#entries.length !== frames) {
      this.table.releaseAll();
      this.#entries = new Uint32Array(frames);
      this.#toGo = new Uint8Array(frames);
      this.#begun = [];
    }
    this.#manifest = manifest;
    this.#compared = undefined;
    // a manifest's table begins at a whole page of its own
    this.#words = new Uint32Array(tags.buffer, tags.byteOffset, frames * TAG_WORDS);
  }

  /** A piece of a pass, from a frame that is a multiple of four; returns where the next one begins. Allocates nothing but for entries. */
  #piece(from: number, changed: Uint8Array, anew: boolean): number {
    const toGo = this.#toGo;
    const frames = toGo.length;
    const words = frames >>> 2;
    const changes = new Uint32Array(changed.buffer, changed.byteOffset, words);
    const waits = new Uint32Array(toGo.buffer, 0, words);
    const until = Math.min(frames, from + PIECE_LOOKED);
    let first = from;
    for (let work = 0; first < until && work < PIECE; first += 4) {
      const word = first >>> 2;
      // the last few are no whole word
      if (!anew && word < words && (changes[word]! | waits[word]!) === 0) continue;
      const end = Math.min(frames, first + 4);
      for (let frame = first; frame < end; frame++)
        if (anew || changed[frame] === 1 ? this.#changed(frame, changed) : this.#waited(frame)) work++;
    }
    return first;
  }

  /** Whether it did anything. */
  #changed(frame: number, changed: Uint8Array): boolean {
    changed[frame] = 0;
    const entry = this.#entries[frame]!;
    if (entry !== 0) {
      if (this.table.isTag(entry, this.#words, frame * TAG_WORDS)) return true; // it is as it was
      this.table.release(entry);
      this.#entries[frame] = 0;
    }
    const wasWaiting = this.#toGo[frame] !== 0;
    this.#toGo[frame] = this.#isZero(frame) ? 0 : this.#passes;
    return entry !== 0 || wasWaiting || this.#toGo[frame] !== 0;
  }

  #waited(frame: number): boolean {
    if (this.#toGo[frame] === 0) return false;
    if (--this.#toGo[frame]! > 0) return true;
    const since = this.#begun[this.#passes] ?? this.#begun.at(-1)!;
    this.#entries[frame] = this.table.hold(this.#words, frame * TAG_WORDS, since);
    return true;
  }

  #isZero(frame: number): boolean {
    const words = this.#words;
    const at = frame * TAG_WORDS;
    return (words[at]! | words[at + 1]! | words[at + 2]! | words[at + 3]!) === 0;
  }
}
