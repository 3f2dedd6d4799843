/** A peer's connection without a network: what was asked is kept, and the test answers as it likes. */
import { PagetideError } from '../../src/errors.ts';
import type { TagStream } from '../../src/memory/peer.ts';
import { TAG_BYTES } from '../../src/pages/tags.ts';
import type { HaveCallback, PagesCallback } from '../../src/transport/tag-client.ts';
import { set } from '../../src/transport/wire-tag-pages.ts';

interface Asked<Done> {
  tags: Uint8Array;
  done: Done;
}

export class FakeStream implements TagStream {
  connectMs = 0.1;
  closed = false;
  bytesReceived = 0;
  bytesSent = 0;
  onClose: TagStream['onClose'];
  readonly haves: Asked<HaveCallback>[] = [];
  readonly requests: Asked<PagesCallback>[] = [];

  get outstanding(): number {
    return this.haves.length + this.requests.length;
  }

  have(tags: Uint8Array, done: HaveCallback): boolean {
    if (this.closed) return false;
    this.bytesSent += tags.length;
    this.haves.push({ tags: Uint8Array.from(tags), done });
    return true;
  }

  pages(tags: Uint8Array, done: PagesCallback): boolean {
    if (this.closed) return false;
    this.bytesSent += tags.length;
    this.requests.push({ tags: Uint8Array.from(tags), done });
    return true;
  }

  /** Answers the oldest question. */
  answerHave(has: (tag: Uint8Array) => boolean): void {
    const { tags, done } = this.haves.shift()!;
    done(bitmapOf(tags, has), undefined);
    this.bytesReceived += 20;
  }

  /** Answers the oldest request; `page` gives the page of a tag, or undefined where it is not there. */
  answerPages(page: (tag: Uint8Array) => Uint8Array | undefined): void {
    const { tags, done } = this.requests.shift()!;
    const found: Uint8Array[] = [];
    const present = bitmapOf(tags, (tag) => {
      const content = page(tag);
      if (content !== undefined) found.push(content);
      return content !== undefined;
    });
    const pages = Buffer.concat(found);
    this.bytesReceived += 20 + pages.length;
    done({ present, pages, bodyBytes: pages.length }, undefined);
    pages.fill(0xff); // the connection's again
  }

  /** As {@link TagConnection}: the callbacks come later, then `onClose`. */
  close(error?: PagetideError): void {
    if (this.closed) return;
    this.closed = true;
    queueMicrotask(() => {
      const why = error ?? new PagetideError('PT_CANCELLED', 'closed');
      for (const { done } of this.haves.splice(0)) done(undefined, why);
      for (const { done } of this.requests.splice(0)) done(undefined, why);
      this.onClose?.(error);
    });
  }
}

function bitmapOf(tags: Uint8Array, has: (tag: Uint8Array) => boolean): Uint8Array {
  const count = tags.length / TAG_BYTES;
  const bitmap = new Uint8Array((count + 7) >> 3);
  for (let i = 0; i < count; i++) if (has(tags.subarray(i * TAG_BYTES, (i + 1) * TAG_BYTES))) set(bitmap, i);
  return bitmap;
}

/** Tags that name their frames, and back. */
export function fakeTags(frames: number): Uint8Array {
  const tags = new Uint8Array(frames * TAG_BYTES);
  for (let frame = 0; frame < frames; frame++) new DataView(tags.buffer).setUint32(frame * TAG_BYTES, frame + 1, true);
  return tags;
}

export function frameOf(tag: Uint8Array): number {
  return new DataView(tag.buffer, tag.byteOffset).getUint32(0, true) - 1;
}
