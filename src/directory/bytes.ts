/** Writing and reading the binary forms of a directory: little-endian, each length before what it measures. */
import { PagetideError } from '../errors.ts';

const FIRST_BYTES = 512;

/** Collects what is written. What is given is copied at once, so it may change afterwards. */
export class ByteWriter {
  readonly #pieces: Uint8Array[] = [];
  #buffer = Buffer.alloc(FIRST_BYTES);
  #used = 0;

  u8(value: number): void {
    this.#room(1);
    this.#used = this.#buffer.writeUInt8(value, this.#used);
  }

  u16(value: number): void {
    this.#room(2);
    this.#used = this.#buffer.writeUInt16LE(value, this.#used);
  }

  u32(value: number): void {
    this.#room(4);
    this.#used = this.#buffer.writeUInt32LE(value, this.#used);
  }

  /** A whole number from 0 to 2^53 - 1. */
  whole(value: number): void {
    this.#room(8);
    this.#used = this.#buffer.writeBigUInt64LE(BigInt(value), this.#used);
  }

  /** ASCII, 255 characters at most. */
  text(text: string): void {
    this.u8(text.length);
    this.#room(text.length);
    this.#used += this.#buffer.write(text, this.#used, 'latin1');
  }

  /** Without their length. */
  raw(bytes: Uint8Array): void {
    if (bytes.length <= FIRST_BYTES) {
      this.#room(bytes.length);
      this.#buffer.set(bytes, this.#used);
      this.#used += bytes.length;
      return;
    }
    this.#flush();
    this.#pieces.push(new Uint8Array(bytes)); // not `slice`, which of a Buffer copies nothing
  }

  /** The items of an array of numbers, as they lie in memory, without their count. */
  items(array: Uint8Array | Uint16Array | Uint32Array): void {
    this.raw(new Uint8Array(array.buffer, array.byteOffset, array.byteLength));
  }

  /** Count and words. */
  words(array: Uint32Array): void {
    this.u32(array.length);
    this.items(array);
  }

  /** All that was written, in pieces. */
  pieces(): Uint8Array[] {
    this.#flush();
    return this.#pieces;
  }

  /** The same in one. */
  joined(): Buffer {
    return Buffer.concat(this.pieces());
  }

  #room(bytes: number): void {
    if (this.#used + bytes <= this.#buffer.length) return;
    this.#flush();
    this.#buffer = Buffer.alloc(Math.max(2 * this.#buffer.length, bytes));
  }

  #flush(): void {
    if (this.#used > 0) this.#pieces.push(this.#buffer.subarray(0, this.#used));
    this.#buffer = this.#buffer.subarray(this.#used);
    this.#used = 0;
  }
}

/** Reads what a {@link ByteWriter} wrote. Every method throws `PT_PROTOCOL` where there is less left; nothing is allocated before that is sure. */
export class ByteReader {
  readonly #bytes: Buffer;
  #at = 0;

  constructor(bytes: Uint8Array) {
    this.#bytes = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  }

  get left(): number {
    return this.#bytes.length - this.#at;
  }

  u8(): number {
    return this.#bytes.readUInt8(this.#take(1));
  }

  u16(): number {
    return this.#bytes.readUInt16LE(this.#take(2));
  }

  u32(): number {
    return this.#bytes.readUInt32LE(this.#take(4));
  }

  whole(): number {
    const value = this.#bytes.readBigUInt64LE(this.#take(8));
    if (value > BigInt(Number.MAX_SAFE_INTEGER)) throw malformed(`${value} is too large a number`);
    return Number(value);
  }

  flag(): boolean {
    const value = this.u8();
    if (value > 1) throw malformed(`${value} is neither yes nor no`);
    return value === 1;
  }

  text(): string {
    const length = this.u8();
    const at = this.#take(length);
    return this.#bytes.toString('latin1', at, at + length);
  }

  /** A view. */
  raw(length: number): Uint8Array {
    const at = this.#take(length);
    return new Uint8Array(this.#bytes.buffer, this.#bytes.byteOffset + at, length);
  }

  /** Copies, as numbers need their place in memory. */
  u16s(count: number): Uint16Array<ArrayBuffer> {
    const bytes = this.raw(2 * count);
    const items = new Uint16Array(count);
    new Uint8Array(items.buffer).set(bytes);
    return items;
  }

  u32s(count: number): Uint32Array<ArrayBuffer> {
    const bytes = this.raw(4 * count);
    const items = new Uint32Array(count);
    new Uint8Array(items.buffer).set(bytes);
    return items;
  }

  /** Count and words. */
  words(): Uint32Array<ArrayBuffer> {
    return this.u32s(this.u32());
  }

  /** Throws where something is left. */
  end(): void {
    if (this.left > 0) throw malformed(`${this.left} bytes too many`);
  }

  #take(bytes: number): number {
    if (bytes > this.left) throw malformed(`${bytes} bytes are to follow, ${this.left} do`);
    this.#at += bytes;
    return this.#at - bytes;
  }
}

export function malformed(why: string): PagetideError {
  return new PagetideError('PT_PROTOCOL', `not a directory's message: ${why}`);
}
