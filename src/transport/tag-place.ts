/**
 * Where a host finds the pages of a domain by tag: in its shared-page cache, in the guests that run on it, in snapshots that it shares. Used by the
 * page server's thread and its batch workers; only numbers by which native code knows the places cross threads.
 */
import { native } from '../memory/native.ts';
import { TAG_BYTES, TAG_PAGE, isZeroTag } from '../pages/tags.ts';

export interface TagPlace {
  /** The domain key. */
  key: number;
  /** The shared-page cache; 0: none. */
  cache: number;
  /** Lookups of the domain in the resident index; 0: none. */
  resident: number;
  /** Likewise in the index of memory files that are shared as snapshots: on disks, most likely. 0: none. */
  files: number;
}

/**
 * Copies the page of tag number `index` to `into[offset]`; false where it is not here.
 *
 * The cache has pages of all domains. That the page which leaves is one of this domain is shown by its tag: nothing but its
 * own key gives it. The same digest finds one that has rotted in the cache's memory.
 */
export function readByTag(place: TagPlace, tags: Uint8Array, index: number, into: Uint8Array, offset: number): boolean {
  const { key, cache, resident } = place;
  if (isZeroTag(tags, index)) return false;
  const at = index * TAG_BYTES;
  if (cache !== 0 && native().cacheRead(cache, tags, at, into, offset)) {
    const page = into.subarray(offset, offset + TAG_PAGE);
    if (native().verifyPage(key, page, tags.subarray(at, at + TAG_BYTES))) return true;
  }
  return resident !== 0 && native().residentCopy(resident, tags, index, into, offset);
}

/** The same in snapshots; may wait for a disk. */
export function readFromFiles(
  { files }: TagPlace,
  tags: Uint8Array,
  index: number,
  into: Uint8Array,
  offset: number,
): boolean {
  return files !== 0 && !isZeroTag(tags, index) && native().residentCopy(files, tags, index, into, offset);
}

/** Which of the tags seem to be here: a byte each, 1 or 0. No promise. */
export function hasTags({ cache, resident, files }: TagPlace, tags: Uint8Array): Uint8Array {
  const present = new Uint8Array(tags.length / TAG_BYTES);
  if (cache !== 0) native().cacheHas(cache, tags, present);
  if (resident !== 0) native().residentHas(resident, tags, present);
  if (files !== 0) native().residentHas(files, tags, present);
  return present;
}
