/** A guest's tags in pages, that stay whole whatever comes or goes between two of them. */
import { MOST_QUERY_TAGS } from '../directory/directory.ts';
import { TAG_BYTES } from '../pages/tags.ts';

/** First words of tags: 0 to 2^32. */
const END = 2 ** 32;
/** How full a page is meant to be: tags are digests, so their first words are spread evenly. */
const FULL = 0.9;

/** Lists that are kept between two pages, 16 MiB each for a guest of 4 GiB, and for how long after the last page, milliseconds. */
const LISTED = 4;
const LISTED_MS = 30_000;

export interface GuestTagList {
  domain: string;
  /** Packed, each once. */
  tags: Uint8Array;
}

export interface TagPage {
  /** Packed. */
  tags: Uint8Array;
  /** The cursor of the next page; 0: this was the last. */
  next: number;
}

/** What is asked for. */
export interface TagPageAsked {
  /** 0: the first page; or what {@link TagPage.next} said. */
  cursor: number;
  /** Tags at most; as many as fit otherwise. */
  most?: number | undefined;
}

/** Lists that are being told in pages: making one anew for each page would cost as much as telling it. */
export class ListedTags {
  readonly #lists = new Map<string, { list: GuestTagList; atMs: number }>();
  readonly #nowMs: () => number;

  constructor(nowMs: () => number = () => performance.now()) {
    this.#nowMs = nowMs;
  }

  /** @param anew the list is made now; otherwise only where there is none of a short while ago */
  of(guest: string, anew: boolean, make: () => GuestTagList | undefined): GuestTagList | undefined {
    const now = this.#nowMs();
    for (const [name, { atMs }] of this.#lists) if (now - atMs > LISTED_MS) this.#lists.delete(name);
    const known = this.#lists.get(guest);
    const list = anew || known === undefined ? make() : known.list;
    this.#lists.delete(guest);
    if (list === undefined) return undefined;
    this.#lists.set(guest, { list, atMs: now });
    // the one that nobody has asked for the longest
    if (this.#lists.size > LISTED) this.#lists.delete(this.#lists.keys().next().value!);
    return list;
  }
}

/**
 * Those whose first word is `cursor` or more, up to where a page is full: so a tag that is there from the first page to the last is given
 * exactly once. Of more than a page's tags with one first word, which no digests have, some are left out.
 * @param tags packed, in any order @param most tags in a page
 */
export function tagsFrom(tags: Uint8Array, cursor: number, most = MOST_QUERY_TAGS): TagPage {
  const view = new DataView(tags.buffer, tags.byteOffset, tags.byteLength);
  const all = tags.length / TAG_BYTES;
  let width = all <= most ? END : Math.max(1, Math.floor((END * FULL * most) / all));
  for (; ; width = Math.ceil(width / 2)) {
    const end = Math.min(END, cursor + width);
    let count = 0;
    for (let at = 0; at < tags.length; at += TAG_BYTES) {
      const word = view.getUint32(at);
      if (word >= cursor && word < end) count++;
    }
    if (count > most && width > 1) continue;
    const page = Buffer.alloc(Math.min(count, most) * TAG_BYTES);
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
