/** The traces are the same every time, and the baseline counts what it should. */
import t from 'tap';
import { leastRecentlyUsedHits, TRACES } from '../../bench/lib/traces.ts';

void t.test('a trace is repeatable, of its length, and of whole page numbers', (t) => {
  for (const { name, requests } of TRACES) {
    const once = [...requests(64, 2000)];
    t.equal(once.length, 2000, name);
    t.same(once, [...requests(64, 2000)]);
    t.ok(once.every((page) => Number.isSafeInteger(page) && page >= 0));
    t.ok(new Set(once).size > 64, 'more pages than slots');
  }
  t.end();
});

void t.test('hits of the least recently used', (t) => {
  t.equal(leastRecentlyUsedHits(2, [1, 2, 1, 3, 1, 2]), 2);
  t.equal(leastRecentlyUsedHits(3, [1, 2, 3, 4, 1, 2, 3, 4]), 0, 'a loop that is one too long');
  t.equal(leastRecentlyUsedHits(4, [1, 2, 3, 4, 1, 2, 3, 4]), 4);
  t.equal(leastRecentlyUsedHits(1, []), 0);
  t.end();
});
