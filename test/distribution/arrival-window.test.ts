/** The bound on what crosses an interface, whatever the delays; and what the pace and the costs make of it. */
import fc from 'fast-check';
import t from 'tap';
import { ArrivalWindow } from '../../src/distribution/arrival-window.ts';
import { Pace } from '../../src/distribution/pace.ts';
import { LOWEST_PEAK, checkRates, connectionCost, pagesAtOnce, requestCost } from '../../src/distribution/wire-cost.ts';

/** Bytes that cross at a moment. */
interface Crossing {
  atMs: number;
  bytes: number;
}

function fullestWindow(crossed: readonly Crossing[]): number {
  const sorted = crossed.toSorted((a, b) => a.atMs - b.atMs);
  let most = 0;
  for (const [i, { atMs }] of sorted.entries()) {
    let bytes = 0;
    for (let j = i; j < sorted.length && sorted[j]!.atMs - atMs <= 100; j++) bytes += sorted[j]!.bytes;
    most = Math.max(most, bytes);
  }
  return most;
}

const delay = fc.oneof(fc.constantFrom(0, 1, 99, 100, 101, 2000), fc.double({ min: 0, max: 300, noNaN: true }));
/** Until the next request, its bytes, when its bytes cross after the grant, how much later they are seen, what becomes of it. */
const requests = fc.array(
  fc.record({
    step: fc.oneof(fc.constantFrom(0, 0, 1), fc.double({ min: 0, max: 40, noNaN: true })),
    bytes: fc.integer({ min: 1, max: 600 }),
    cross: fc.array(delay, { minLength: 1, maxLength: 3 }),
    seen: delay,
    real: fc.double({ min: 0, max: 1, noNaN: true }),
  }),
  { minLength: 100, maxLength: 300 },
);

void t.test('no window has more than the limit, whatever the delays', (t) => {
  const limit = 1000;
  let granted = 0;
  fc.assert(
    fc.property(requests, (requests) => {
      let now = 5e5;
      const window = new ArrivalWindow(() => now);
      const crossed: Crossing[] = [];
      let due: { atMs: number; real: number; spared: number }[] = [];
      for (const { step, bytes, cross, seen, real } of requests) {
        const next = now + step;
        for (const sight of due.filter(({ atMs }) => atMs <= next).toSorted((a, b) => a.atMs - b.atMs)) {
          now = sight.atMs;
          window.seen(sight.real, false);
          window.spared(sight.spared);
        }
        due = due.filter(({ atMs }) => atMs > next);
        now = next;
        if (!window.grant(bytes, limit)) continue;
        granted++;
        const came = Math.ceil(bytes * real);
        // in pieces, each whenever it likes before the whole is seen
        for (const [i, ms] of cross.entries())
          crossed.push({
            atMs: now + ms,
            bytes: Math.floor(came / cross.length) + (i === 0 ? came % cross.length : 0),
          });
        due.push({ atMs: now + Math.max(...cross) + seen, real: came, spared: bytes - came });
      }
      return fullestWindow(crossed) <= limit;
    }),
  );
  t.ok(granted > 500, `${granted} were granted`);
  t.end();
});

void t.test('what is seen counts for 100 ms more, what is spared no longer, what is lost twice as long', (t) => {
  let now = 0;
  const window = new ArrivalWindow(() => now);
  t.ok(window.grant(600, 1000));
  t.notOk(window.grant(401, 1000));
  now = 5000;
  t.notOk(window.grant(401, 1000), 'unseen, for ever');
  window.spared(100);
  window.seen(500, false);
  t.equal(window.counted, 500);
  now = 5100;
  t.equal(window.counted, 500, 'a closed window');
  now = 5102;
  t.equal(window.counted, 0);
  t.ok(window.grant(1000, 1000));
  window.lost(1000);
  now = 5300;
  t.equal(window.counted, 1000);
  now = 5304;
  t.equal(window.counted, 0);
  t.ok(window.grant(100, 1000));
  window.seen(100, true);
  now = 5406;
  t.ok(window.counted > 0 && window.counted < 100, 'an acknowledgement may be late');
  now = 5700;
  t.equal(window.counted, 0);
  t.end();
});

void t.test('the pace keeps the average, also where a request is more than the bucket holds', (t) => {
  let now = 0;
  const pace = new Pace({ average: 20_000, peak: LOWEST_PEAK }, () => now);
  t.ok(pace.ask(1) > 0, 'nothing at first: another may have died just now');
  let spent = 0;
  for (now = 100; now < 60_000; now++) {
    if (pace.ask(5_500) > 0) continue;
    spent += 5_500;
    pace.came(5_500);
  }
  t.ok(spent <= 60 * 20_000 + 2_000 && spent > 55 * 20_000, `${spent}`);
  const goOn = pace.standBack();
  t.equal(pace.ask(1), Infinity);
  goOn();
  now += 1000;
  t.equal(pace.ask(1_000), 0);
  t.end();
});

void t.test('the lowest peak lets a connection through, and a page', (t) => {
  const lowest = { average: 1000, peak: LOWEST_PEAK };
  t.equal(checkRates(lowest), lowest);
  t.throws(() => checkRates({ average: 1000, peak: LOWEST_PEAK - 1 }), { code: 'PT_BAD_ARGUMENT' });
  t.throws(() => checkRates({ average: LOWEST_PEAK + 1, peak: LOWEST_PEAK }), { code: 'PT_BAD_ARGUMENT' });
  t.throws(() => checkRates({ average: 10, peak: LOWEST_PEAK }), { code: 'PT_BAD_ARGUMENT' });
  for (const secure of [false, true]) {
    t.equal(pagesAtOnce(lowest, secure), 1);
    t.ok(Math.max(connectionCost(secure), requestCost(1, secure)) <= LOWEST_PEAK / 10);
    t.equal(pagesAtOnce({ average: 1e8, peak: 1e8 }, secure), 64);
  }
  t.end();
});
