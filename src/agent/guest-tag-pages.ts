/** A guest's tags in pages, that stay whole whatever comes or goes between two of them. */
import { MOST_QUERY_TAGS } from '../directory/directory.ts';
import { TAG_BYTES } from '../pages/tags.ts';

/** First words of tags: 0 to 2^32. */
const END = 2 ** 32;
/** How full a page is meant to be: tags are digests, so their first words are spread evenly. */
const FULL = 0.9;

export interface TagPage {
  /** Packed. */
  tags: Uint8Array;
  /** The cursor of the next page; 0: this was the last. */
  next: number;
}

/**
 * Those whose first word is `cursor` or more, up to where a page is full: so a tag that is there from the first page to the last is given
 * exactly once. Of more than a page's tags with one first word, which no digests have, some are left out.
 * @param tags packed, in any order
 */
export function tagsFrom(tags: Uint8Array, cursor: number): TagPage {
  const view = new DataView(tags.buffer, tags.byteOffset, tags.byteLength);
  const all = tags.length / TAG_BYTES;
  let width = all <= MOST_QUERY_TAGS ? END : Math.floor((END * FULL * MOST_QUERY_TAGS) / all);
  for (; ; width = Math.ceil(width / 2)) {
    const end = Math.min(END, cursor + width);
    let count = 0;
    for (let at = 0; at < tags.length; at += TAG_BYTES) {
      const word = view.getUint32(at);
      if (word >= cursor && word < end) count++;
    }
    if (count > MOST_QUERY_TAGS && width > 1) continue;
    const page = Buffer.alloc(Math.min(count, MOST_QUERY_TAGS) * TAG_BYTES);
    let to = 0;
    for (let at = 0; at < tags.length && to < page.length; at += TAG_BYTES) {
      const word = view.getUint32(at);
      if (word < cursor || word >= end) continue;
      page.set(tags.subarray(at, at + TAG_BYTES), to);
      to += TAG_BYTES;
    }
    return { tags: page, next: end === END ? 0 : end };
  }
}
