/** Pages by name in a worker: checks, rings, zero pages; frames of 4096 bytes and of 2 MiB. */
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { native } from '../../src/memory/native.ts';
import { openNamedPages, type NamedPagesSpec } from '../../src/memory/named-pages.ts';
import { Serving } from '../../src/memory/serving.ts';
import { linkDuplicates, noDuplicates } from '../../src/pages/duplicates.ts';
import { DomainKey, TAG_BYTES, TAG_PAGE } from '../../src/pages/tags.ts';
import { scratch } from '../guests/embedded-support.ts';

const HUGE = 2 << 20;

/** The names of `pages`, as an arriving guest has them. */
function namesOf(t: Test, pages: Buffer): NamedPagesSpec {
  const frames = pages.length / TAG_PAGE;
  const key = new DomainKey(Buffer.alloc(32, 7));
  t.teardown(() => key.close());
  const arena = native().createArena(join(scratch(t), 'tags'), 4096, Math.ceil((frames * TAG_BYTES) / 4096));
  t.teardown(() => native().destroyArena(arena));
  const tags = native()
    .arenaView(arena)
    .subarray(0, frames * TAG_BYTES);
  native().tagPages(key.id, pages, frames, tags);
  const rings = noDuplicates(frames);
  linkDuplicates(tags, rings);
  return { tags: arena, next: rings.next, first: rings.first, key: key.id, cache: 0, resident: 0, domain: 0 };
}

/** Page `n` is full of `of[n]`. */
function filled(of: readonly number[]): Buffer {
  return Buffer.concat(of.map((value) => Buffer.alloc(TAG_PAGE, value)));
}

void t.test('4096 bytes', (t) => {
  const pages = filled([1, 2, 1, 0, 1, 2]);
  const named = openNamedPages(namesOf(t, pages), TAG_PAGE, new Serving(), 'fill');
  t.same(
    [0, 1, 2, 3, 4, 5].map((frame) => named.ring(frame)),
    [0, 1, 0, 3, 0, 1],
  );
  const ring = new Set([0]);
  for (let at = named.next(0); at !== 0; at = named.next(at)) ring.add(at);
  t.same([...ring].sort(), [0, 2, 4], 'around the ring, once');
  t.equal(named.next(3), 3, 'zero pages are in no ring');
  t.same([named.isZero(3), named.isZero(0)], [true, false]);
  t.ok(named.verify(2, pages, 0), 'the same page at another place');
  t.notOk(named.verify(1, pages, 0));
  t.notOk(named.verify(3, pages, 0), 'content for a zero frame');
  t.notOk(named.verify(0, pages, 3 * TAG_PAGE), 'zeros for a frame with content');
  t.end();
});

void t.test('2 MiB: the parts of frames repeat, the frames do not', (t) => {
  // frame 0 begins with pages that repeat, so that ring 0 of the tags leads to tags 1 and 2: which are no frames
  const pages = Buffer.alloc(3 * HUGE, 5);
  pages.fill(6, HUGE + 4096 * 3, HUGE + 4096 * 4);
  pages.fill(0, 2 * HUGE);
  const named = openNamedPages(namesOf(t, pages), HUGE, new Serving(), 'fill');
  for (let frame = 0; frame < 3; frame++) {
    t.equal(named.next(frame), frame);
    t.equal(named.ring(frame), frame);
  }
  t.ok(named.verify(0, pages, 0));
  t.ok(named.verify(1, pages, HUGE));
  t.notOk(named.verify(1, pages, 0), 'one part is another');
  t.same([named.isZero(0), named.isZero(2)], [false, true]);
  t.end();
});
