/** Pages that wait to be put into the cache: each once, in order, as they were when they came. */
import t from 'tap';
import { KeepQueue } from '../../src/memory/keep-queue.ts';
import type { NamedPages } from '../../src/memory/named-pages.ts';

const PAGE = 64;

/** Remembers what it is given to keep: frame, and the page's first byte, which all others have to be too. */
function recorder(): { named: NamedPages; kept: [number, number][] } {
  const kept: [number, number][] = [];
  const named = {
    keep: (frame: number, page: Uint8Array, offset: number) => {
      const content = page.subarray(offset, offset + PAGE);
      t.ok(
        content.every((byte) => byte === content[0]),
        'a whole page of its own',
      );
      kept.push([frame, content[0]!]);
    },
  } as unknown as NamedPages;
  return { named, kept };
}

void t.test('any mixture of coming and keeping keeps every page once, in order', (t) => {
  const { named, kept } = recorder();
  const queue = new KeepQueue(named, PAGE);
  const page = new Uint8Array(PAGE * 3);
  let seed = 1;
  let most = 0;
  const COUNT = 2000;
  for (let frame = 0; frame < COUNT; frame++) {
    page.fill(frame & 255, PAGE, PAGE * 2);
    queue.push(frame, page, PAGE);
    page.fill(255); // its memory is used again
    most = Math.max(most, queue.size);
    seed = (seed * 1103515245 + 12345) & 0x7fffffff;
    // bursts now and then, and idle rounds in between
    if (frame % 500 > 200) for (let i = 0; i < seed % 3; i++) queue.keepOne();
  }
  t.equal(most, 64, 'its room was used, and no more');
  queue.drain();
  t.equal(queue.size, 0);
  t.same(
    kept,
    Array.from({ length: COUNT }, (_, frame) => [frame, frame & 255]),
  );
  queue.keepOne();
  t.equal(kept.length, COUNT, 'nothing more is kept');
  t.end();
});
