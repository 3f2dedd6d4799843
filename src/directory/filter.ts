/**
 * The doorkeeper of one host in one domain: which tags that host has reported that have no record. A few bits a tag.
 *
 * A Bloom filter that grows by layers (Almeida and others, "Scalable Bloom Filters", 2007): each layer has twice the bits of the
 * one before and 7/8 of its false-positive rate, so all of them together stay below {@link FALSE_POSITIVES}, however many there are:
 *
 *   rate = p + 7/8 p + (7/8)² p + … ≤ 8 p        with p = 2^-13 for the first
 *
 * A tag that was added is always found. One that was not is found at that rate: why that does no harm is argued in domain.ts.
 * Nothing can be taken out, so what a host has withdrawn is found too, until the host begins anew and its filter with it.
 */
import { malformed, type ByteReader, type ByteWriter } from './bytes.ts';
import { hashTag } from './tag-words.ts';

/** Most that may be found of tags never added, as long as the filter lasts. */
export const FALSE_POSITIVES = 2 ** -10;
const FIRST_RATE = FALSE_POSITIVES / 8;
const TIGHTER = 7 / 8;
const FIRST_BITS = 2 ** 13;
const MOST_BITS = 2 ** 30;
const SEED_A = 0x9e3779b9;
const SEED_B = 0x7f4a7c15;

interface Layer {
  bits: Uint32Array;
  mask: number;
  hashes: number;
  capacity: number;
}

export class TagFilter {
  /** Tags added. */
  added = 0;
  readonly #layers: Layer[] = [];
  #room = 0;

  /** Bytes of memory. */
  get bytes(): number {
    return this.#layers.reduce((sum, { bits }) => sum + bits.byteLength, 0);
  }

  /** Whether the tag at word `at` was added, or is taken for one that was. Allocates nothing. */
  has(words: Uint32Array, at: number): boolean {
    return this.hasHash(hashTag(words, at, SEED_A), hashTag(words, at, SEED_B));
  }

  /** The same with {@link hashA} and {@link hashB}, for whoever asks many filters. */
  hasHash(a: number, b: number): boolean {
    // the last layer holds half of all
    for (let i = this.#layers.length - 1; i >= 0; i--) if (isIn(this.#layers[i]!, a, b)) return true;
    return false;
  }

  /** Adds the tag at word `at`, unless it is found already. Allocates nothing but a new layer. */
  add(words: Uint32Array, at: number): void {
    const a = hashTag(words, at, SEED_A);
    const b = hashTag(words, at, SEED_B);
    if (this.hasHash(a, b)) return;
    if (this.#room === 0) this.#grow();
    const { bits, mask, hashes } = this.#layers[this.#layers.length - 1]!;
    let bit = a;
    let step = b;
    for (let i = 0; i < hashes; i++) {
      const place = bit & mask;
      bits[place >>> 5]! |= 1 << (place & 31);
      bit = (bit + step) | 0;
      step = (step + i + 1) | 0;
    }
    this.added++;
    this.#room--;
  }

  save(to: ByteWriter): void {
    to.whole(this.added);
    to.whole(this.#room);
    to.u8(this.#layers.length);
    for (const { bits } of this.#layers) to.items(bits);
  }

  /** @throws PagetideError `PT_PROTOCOL` */
  static load(from: ByteReader): TagFilter {
    const filter = new TagFilter();
    filter.added = from.whole();
    const room = from.whole();
    const layers = from.u8();
    for (let number = 0; number < layers; number++) {
      // a whole layer has to follow before its room is taken
      if (from.left < bitsOf(number) / 8) throw malformed('a filter is cut short');
      filter.#grow();
      filter.#layers[number]!.bits.set(from.u32s(bitsOf(number) / 32));
    }
    filter.#room = room;
    return filter;
  }

  #grow(): void {
    const number = this.#layers.length;
    const bits = bitsOf(number);
    const each = -Math.log2(FIRST_RATE * TIGHTER ** number);
    const capacity = Math.floor((bits * Math.LN2) / each);
    this.#layers.push({ bits: new Uint32Array(bits / 32), mask: bits - 1, hashes: Math.ceil(each), capacity });
    this.#room = capacity;
  }
}

function bitsOf(layer: number): number {
  return Math.min(MOST_BITS, FIRST_BITS * 2 ** layer);
}

export function hashA(words: Uint32Array, at: number): number {
  return hashTag(words, at, SEED_A);
}

export function hashB(words: Uint32Array, at: number): number {
  return hashTag(words, at, SEED_B);
}

/** Enhanced double hashing (Dillinger and Manolios, 2004): the step grows, so that no two tags share all bits by sharing both hashes' low ones. */
function isIn({ bits, mask, hashes }: Layer, a: number, b: number): boolean {
  let bit = a;
  let step = b;
  for (let i = 0; i < hashes; i++) {
    const place = bit & mask;
    if ((bits[place >>> 5]! & (1 << (place & 31))) === 0) return false;
    bit = (bit + step) | 0;
    step = (step + i + 1) | 0;
  }
  return true;
}
