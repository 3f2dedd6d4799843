/** Tags that a host is asked for, in order, packed. A question stays until it is answered, so a lost answer is asked again. */
import type { ByteReader, ByteWriter } from './bytes.ts';
import { TAG_WORDS } from './tag-words.ts';

export class WantedQueue {
  #words: Uint32Array = new Uint32Array(0);
  #head = 0;
  #end = 0;

  get length(): number {
    return (this.#end - this.#head) / TAG_WORDS;
  }

  get bytes(): number {
    return this.#words.byteLength;
  }

  push(words: Uint32Array, at: number): void {
    if (this.#end === this.#words.length) this.#makeRoom();
    for (let i = 0; i < TAG_WORDS; i++) this.#words[this.#end + i] = words[at + i]!;
    this.#end += TAG_WORDS;
  }

  /** Takes the first one out where it is the tag at word `at`. */
  shiftIf(words: Uint32Array, at: number): boolean {
    if (this.#head === this.#end) return false;
    for (let i = 0; i < TAG_WORDS; i++) if (this.#words[this.#head + i] !== words[at + i]) return false;
    this.#head += TAG_WORDS;
    if (this.#head === this.#end) {
      this.#words = new Uint32Array(0);
      this.#head = this.#end = 0;
    }
    return true;
  }

  /** The first ones, packed: a copy. */
  first(most: number): Uint8Array {
    const end = Math.min(this.#end, this.#head + most * TAG_WORDS);
    return new Uint8Array(this.#words.slice(this.#head, end).buffer);
  }

  /** All of them, as words: a view. */
  all(): Uint32Array {
    return this.#words.subarray(this.#head, this.#end);
  }

  save(to: ByteWriter): void {
    to.words(this.all());
  }

  /** @throws PagetideError `PT_PROTOCOL` */
  static load(from: ByteReader): WantedQueue {
    const queue = new WantedQueue();
    queue.#words = from.words();
    queue.#end = queue.#words.length;
    return queue;
  }

  #makeRoom(): void {
    const used = this.#end - this.#head;
    const words = used * 2 >= this.#words.length ? new Uint32Array(Math.max(64, used * 2)) : this.#words;
    if (words === this.#words) words.copyWithin(0, this.#head, this.#end);
    else words.set(this.all());
    this.#words = words;
    this.#head = 0;
    this.#end = used;
  }
}
