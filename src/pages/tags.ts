/**
 * Tags: the names of pages. A tag is the first 16 bytes of SHA-256(domain key ‖ page) of a page of 4096 bytes, whatever the
 * guest's own page size; a page of zeros has the tag of 16 zero bytes. Digests are made natively (native/core/tags.h);
 * this is what JavaScript needs to handle them.
 *
 * Many tags lie one after the other in a `Uint8Array`, often over shared memory: number `i` is bytes [16·i, 16·i + 16).
 */
import { PagetideError } from '../errors.ts';
import { native } from '../memory/native.ts';

/** Of the scheme above. Goes wherever tags are stored or sent; sides with different versions share nothing. */
export const TAG_VERSION = 1;
/** Bytes of a tag. */
export const TAG_BYTES = 16;
/** Of a page hash (native/core/page_hash.h): it tells the resident index that a page is still the one that was tagged. */
export const HASH_BYTES = 8;
/** Bytes of what a tag names. */
export const TAG_PAGE = 4096;
/** Bytes of a domain's secret. */
export const DOMAIN_KEY_BYTES = 32;

/** The tag of a page of zeros; a fresh copy, as a typed array can't be frozen. */
export function zeroTag(): Uint8Array {
  return new Uint8Array(TAG_BYTES);
}

function checkIndex(tags: Uint8Array, index: number): void {
  if (!Number.isInteger(index) || index < 0 || (index + 1) * TAG_BYTES > tags.length)
    throw new PagetideError('PT_BAD_ARGUMENT', `no tag ${index} among ${Math.floor(tags.length / TAG_BYTES)}`);
}

function checkTag(tag: Uint8Array): void {
  if (tag.length !== TAG_BYTES)
    throw new PagetideError('PT_BAD_ARGUMENT', `a tag has ${TAG_BYTES} bytes, not ${tag.length}`);
}

/** Tag number `index` of many: a view, not a copy. @throws PT_BAD_ARGUMENT */
export function tagAt(tags: Uint8Array, index: number): Uint8Array {
  checkIndex(tags, index);
  return tags.subarray(index * TAG_BYTES, (index + 1) * TAG_BYTES);
}

/** Whether tag number `a` of `left` is tag number `b` of `right`. Allocates nothing. @throws PT_BAD_ARGUMENT */
export function tagsEqual(left: Uint8Array, a: number, right: Uint8Array, b: number): boolean {
  checkIndex(left, a);
  checkIndex(right, b);
  for (let i = 0; i < TAG_BYTES; i++) {
    if (left[a * TAG_BYTES + i] !== right[b * TAG_BYTES + i]) return false;
  }
  return true;
}

/** Whether tag number `index` says that its page is zero. Allocates nothing. @throws PT_BAD_ARGUMENT */
export function isZeroTag(tags: Uint8Array, index = 0): boolean {
  checkIndex(tags, index);
  for (let i = index * TAG_BYTES; i < (index + 1) * TAG_BYTES; i++) {
    if (tags[i] !== 0) return false;
  }
  return true;
}

/** Order of tags by their bytes: negative, 0 or positive. @throws PT_BAD_ARGUMENT */
export function compareTags(a: Uint8Array, b: Uint8Array): number {
  checkTag(a);
  checkTag(b);
  return Buffer.compare(a, b);
}

/** 32 lower-case hex digits: for logs, keys of maps and the control API. @throws PT_BAD_ARGUMENT */
export function tagToHex(tag: Uint8Array): string {
  checkTag(tag);
  return Buffer.from(tag.buffer, tag.byteOffset, TAG_BYTES).toString('hex');
}

/** The other way round. @throws PT_BAD_ARGUMENT */
export function tagFromHex(text: string): Uint8Array {
  if (!/^[0-9a-f]{32}$/.test(text))
    throw new PagetideError('PT_BAD_ARGUMENT', `a tag is 32 lower-case hex digits, not ${JSON.stringify(text)}`);
  return new Uint8Array(Buffer.from(text, 'hex'));
}

/**
 * A domain's secret in native memory, known by number in every thread. Whoever opens it closes it; the bytes given are
 * the caller's to wipe.
 */
export class DomainKey {
  /** For `native().tagPages` and its kin, and for tasks of other threads. */
  readonly id: number;

  /** @param secret 32 bytes @throws PT_BAD_ARGUMENT */
  constructor(secret: Uint8Array) {
    this.id = native().openDomainKey(secret);
  }

  /** Whether a page of 4096 bytes has this tag: for the way of an install, where nothing is allocated. */
  verify(page: Uint8Array, tag: Uint8Array): boolean {
    return native().verifyPage(this.id, page, tag);
  }

  /** The secret is wiped when the last call that uses it has ended. Idempotent. */
  close(): void {
    native().closeDomainKey(this.id);
  }
}
