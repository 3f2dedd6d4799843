/** What a guest's memory holds that a host lacks, counted apart from the program that moves it. */
import { randomBytes } from 'node:crypto';
import { closeSync, openSync, readSync } from 'node:fs';
import { compressSync } from 'lz4-napi';
import type { MemoryFile } from '../../src/guests/driver.ts';
import { PagetideError } from '../../src/errors.ts';
import { native } from '../../src/memory/native.ts';
import { DOMAIN_KEY_BYTES, DomainKey, isZeroTag, TAG_BYTES, TAG_PAGE } from '../../src/pages/tags.ts';

/** Pages that are read and tagged in one go. */
const BATCH = 512;
/** Pages in one LZ4 block: as many as the fill's batches have by default. */
const BLOCK = 64;

/** Pages of 4096 bytes. A repeated page counts once, except in `frames` and `zero`. */
export interface PageSurvey {
  frames: number;
  zero: number;
  distinct: number;
  /** Of the distinct ones, pages that no survey before found: of the test guest's own data, and all others (its kernel's, mostly). */
  missingData: number;
  missingOther: number;
  /** These in LZ4 blocks of 64 pages, bytes; without what names them. */
  packedData: number;
  packedOther: number;
}

/** Puts pages into LZ4 blocks, and counts. */
class Packer {
  pages = 0;
  #bytes = 0;
  #inBlock = 0;
  readonly #block = Buffer.alloc(BLOCK * TAG_PAGE);

  add(page: Uint8Array): void {
    this.#block.set(page, this.#inBlock * TAG_PAGE);
    this.pages++;
    if (++this.#inBlock === BLOCK) this.#pack();
  }

  end(): number {
    if (this.#inBlock > 0) this.#pack();
    return this.#bytes;
  }

  #pack(): void {
    const raw = this.#block.subarray(0, this.#inBlock * TAG_PAGE);
    this.#bytes += Math.min(raw.length, compressSync(raw).length);
    this.#inBlock = 0;
  }
}

/** Surveys guests one after the other, each against all before it. */
export class PageSurveyor {
  readonly #key = new DomainKey(randomBytes(DOMAIN_KEY_BYTES));
  #known = new Set<string>();

  /** Reads the memory files of a guest, all of whose pages are there. It may run: a page is counted as it was when it was read. */
  survey(files: readonly MemoryFile[]): PageSurvey {
    const seen = new Set<string>();
    const data = new Packer();
    const other = new Packer();
    let frames = 0;
    let zero = 0;
    eachPage(files, this.#key, (page, tag) => {
      frames++;
      if (tag === undefined) {
        zero++;
        return;
      }
      if (seen.has(tag)) return;
      seen.add(tag);
      if (!this.#known.has(tag)) (isTestData(page) ? data : other).add(page);
    });
    for (const tag of seen) this.#known.add(tag);
    return {
      frames,
      zero,
      distinct: seen.size,
      missingData: data.pages,
      missingOther: other.pages,
      packedData: data.end(),
      packedOther: other.end(),
    };
  }

  /** A host that has nothing. */
  forget(): void {
    this.#known = new Set();
  }

  close(): void {
    this.#key.close();
  }
}

/** `tag` is undefined where the page is zero. The page is valid during the call only. */
function eachPage(
  files: readonly MemoryFile[],
  key: DomainKey,
  take: (page: Buffer, tag: string | undefined) => void,
): void {
  const pages = Buffer.alloc(BATCH * TAG_PAGE);
  const tags = Buffer.alloc(BATCH * TAG_BYTES);
  for (const { path, size } of files) {
    const fd = openSync(path, 'r');
    try {
      for (let at = 0; at < size; at += pages.length) {
        const length = Math.min(pages.length, size - at);
        // of a mapping, reading would make pages: see docs/pages.md
        if (readSync(fd, pages, 0, length, at) !== length)
          throw new PagetideError('PT_MEMORY_FILE', `${path} is short`);
        native().tagPages(key.id, pages, length / TAG_PAGE, tags);
        for (let i = 0; i < length / TAG_PAGE; i++) {
          const tag = isZeroTag(tags, i) ? undefined : tags.toString('latin1', i * TAG_BYTES, (i + 1) * TAG_BYTES);
          take(pages.subarray(i * TAG_PAGE, (i + 1) * TAG_PAGE), tag);
        }
      }
    } finally {
      closeSync(fd);
    }
  }
}

/** As test/qemu-guest/init.c writes them: the second half is one word, not zero, over and over; the first half is not. */
function isTestData(page: Buffer): boolean {
  const half = TAG_PAGE / 2;
  const word = page.subarray(half, half + 8);
  if (page.compare(page, half, TAG_PAGE - 8, half + 8, TAG_PAGE) !== 0 || page.compare(word, 0, 8, 0, 8) === 0)
    return false;
  return word.some((byte) => byte !== 0);
}
