/** What was brought and what it saved: how it fades, what it is worth for the next choice, and who leaves first. */
import fc from 'fast-check';
import t from 'tap';
import { ascending, orderKey } from '../../src/distribution/order.ts';
import {
  EVEN_BYTES,
  evictionOrder,
  neverPaid,
  PAGE_CLASSES,
  pageClassOf,
  Score,
  scoreFactor,
  TRIAL_ARRIVALS,
  type ScoreRecord,
} from '../../src/distribution/score.ts';

void t.test('bytes fade by half a half-life', (t) => {
  let now = 500;
  const score = new Score(() => now, 1000);
  score.brought('shop', 'few', 800);
  now += 1000;
  score.served('shop', 'few', 100);
  score.brought('shop', 'many', 10);
  score.brought('bank', 'many', 7);
  t.same(score.totals('shop'), { spentBytes: 410, savedBytes: 100 });
  t.same(score.totals('nobody'), { spentBytes: 0, savedBytes: 0 });
  now -= 5000;
  t.same(score.totals('shop'), { spentBytes: 410, savedBytes: 100 }, 'a clock that goes back stands still');
  now += 6000;
  t.same(score.toJSON(), [
    { domain: 'bank', class: 'many', spentBytes: 3.5, savedBytes: 0 },
    { domain: 'shop', class: 'few', spentBytes: 200, savedBytes: 50 },
    { domain: 'shop', class: 'many', spentBytes: 5, savedBytes: 0 },
  ]);
  score.forget('shop');
  t.same(score.totals('shop'), { spentBytes: 0, savedBytes: 0 });
  t.end();
});

void t.test('the factor is bounded, and goes back to 1', (t) => {
  let now = 0;
  const score = new Score(() => now, 1000);
  t.equal(score.factor('shop', 'few'), 1, 'nothing is known');
  score.brought('shop', 'few', EVEN_BYTES);
  t.equal(score.factor('shop', 'few'), 0.5);
  t.equal(score.factor('shop', 'pair'), 1, 'of another class nothing is');
  score.brought('shop', 'few', 1e15);
  t.equal(score.factor('shop', 'few'), 0.25);
  now = 60_000;
  t.ok(score.factor('shop', 'few') > 0.99, 'what was lost is forgotten');
  score.served('shop', 'few', 1e15);
  t.equal(score.factor('shop', 'few'), 4);
  fc.assert(
    fc.property(fc.maxSafeNat(), fc.maxSafeNat(), fc.nat(1e9), (spentBytes, savedBytes, more) => {
      const factor = scoreFactor({ spentBytes, savedBytes });
      if (factor < 0.25 || factor > 4) return false;
      return (
        scoreFactor({ spentBytes, savedBytes: savedBytes + more }) >= factor &&
        scoreFactor({ spentBytes: spentBytes + more, savedBytes }) <= factor
      );
    }),
  );
  t.end();
});

void t.test('as JSON and back, on another clock', (t) => {
  const bytes = fc.nat(1e9);
  const event = fc.tuple(fc.nat(500), fc.constantFrom('a', 'b'), fc.constantFrom(...PAGE_CLASSES), bytes, bytes);
  fc.assert(
    fc.property(fc.array(event), (events) => {
      let now = 0;
      const score = new Score(() => now, 1000);
      /** The naive model: each event with its time. */
      const model: { at: number; domain: string; spent: number; saved: number }[] = [];
      for (const [stepMs, domain, pageClass, spent, saved] of events) {
        now += stepMs;
        score.brought(domain, pageClass, spent);
        score.served(domain, pageClass, saved);
        model.push({ at: now, domain, spent, saved });
      }
      const text = JSON.stringify(score);
      const again = Score.from(JSON.parse(text) as ScoreRecord[], () => 9e9, 1000);
      if (JSON.stringify(again) !== text) return false;
      return ['a', 'b'].every((domain) => {
        const sum = { spent: 0, saved: 0 };
        for (const one of model.filter((one) => one.domain === domain)) {
          sum.spent += one.spent * 0.5 ** ((now - one.at) / 1000);
          sum.saved += one.saved * 0.5 ** ((now - one.at) / 1000);
        }
        const { spentBytes, savedBytes } = again.totals(domain);
        const near = (a: number, b: number) => Math.abs(a - b) <= 1e-9 * (1 + a + b);
        return near(spentBytes, sum.spent) && near(savedBytes, sum.saved);
      });
    }),
  );
  t.end();
});

void t.test('classes, and pages that never paid', (t) => {
  t.same([1, 2, 3, 7, 8, 900].map(pageClassOf), ['pair', 'pair', 'few', 'few', 'many', 'many']);
  t.notOk(neverPaid(TRIAL_ARRIVALS - 1, 0), 'it has not had its chances');
  t.ok(neverPaid(TRIAL_ARRIVALS, 0));
  t.notOk(neverPaid(1000, 1));
  t.end();
});

void t.test('the order in which pages leave', (t) => {
  const page = fc.tuple(fc.oneof(fc.constantFrom(0, 1, 2, Infinity), fc.double({ min: 0, noNaN: true })), fc.boolean());
  fc.assert(
    fc.property(fc.array(page, { maxLength: 300 }), (pages) => {
      const order = evictionOrder(
        Float64Array.from(pages, ([importance]) => importance),
        Uint8Array.from(pages, ([, unpaid]) => (unpaid ? 1 : 0)),
      );
      const naive = pages
        .map(([importance, unpaid], at) => ({ importance: Math.fround(importance), unpaid, at }))
        .sort((a, b) => {
          if (a.unpaid !== b.unpaid) return a.unpaid ? -1 : 1;
          if (a.importance !== b.importance) return a.importance < b.importance ? -1 : 1;
          return a.at - b.at;
        });
      return naive.every(({ at }, nth) => order[nth] === at);
    }),
    { numRuns: 300 },
  );
  t.end();
});

void t.test('sorting by keys', (t) => {
  fc.assert(
    fc.property(fc.array(fc.oneof(fc.nat(3), fc.integer({ min: 0, max: 2 ** 32 - 1 }))), (keys) => {
      const order = ascending(Uint32Array.from(keys));
      const naive = keys.map((key, at) => ({ key, at })).sort((a, b) => a.key - b.key || a.at - b.at);
      return order.length === keys.length && naive.every(({ at }, nth) => order[nth] === at);
    }),
  );
  t.same([-1, NaN, 0, -Infinity].map(orderKey), [0, 0, 0, 0]);
  t.end();
});

void t.test('what is refused', (t) => {
  const code = { code: 'PT_BAD_ARGUMENT' };
  const now = () => 0;
  for (const bytes of [-1, NaN, Infinity]) t.throws(() => new Score(now).brought('a', 'few', bytes), code);
  for (const halfLifeMs of [0, -1, NaN]) t.throws(() => new Score(now, halfLifeMs), code);
  const record = { domain: 'a', class: 'few', spentBytes: 1, savedBytes: 1 } as const;
  t.throws(() => Score.from([{ ...record, class: 'none' as 'few' }], now), code);
  t.throws(() => Score.from([{ ...record, savedBytes: -1 }], now), code);
  t.end();
});
