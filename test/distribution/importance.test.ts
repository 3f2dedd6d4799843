/** What pages are worth at a host, and which of them are chosen: against naive models, and that choices stand still. */
import fc from 'fast-check';
import t from 'tap';
import { Hints } from '../../src/distribution/hints.ts';
import {
  choose,
  costBytes,
  expectedArrivals,
  expectedBytes,
  explain,
  importance,
  PRICES,
  stability,
  type Candidates,
  type Choice,
} from '../../src/distribution/importance.ts';

const HOUR_MS = 3_600_000;

interface Page {
  arrivals: number;
  wireBytes: number;
  holdBytes: number;
  bringBytes: number;
  held: boolean;
  unpaid: boolean;
}

const PLAIN: Page = { arrivals: 3, wireBytes: 2000, holdBytes: 4096, bringBytes: 2000, held: false, unpaid: false };

function candidates(pages: readonly Page[]): Candidates {
  return {
    guests: Uint32Array.from(pages, () => 6),
    arrivals: Float64Array.from(pages, (page) => page.arrivals),
    stability: new Float64Array(pages.length).fill(0.5),
    wireBytes: Float64Array.from(pages, (page) => page.wireBytes),
    score: new Float64Array(pages.length).fill(1),
    holdBytes: Float64Array.from(pages, (page) => page.holdBytes),
    bringBytes: Float64Array.from(pages, (page) => page.bringBytes),
    held: Uint8Array.from(pages, (page) => (page.held ? 1 : 0)),
    unpaid: Uint8Array.from(pages, (page) => (page.unpaid ? 1 : 0)),
  };
}

/** The pages once a choice was carried out. */
function carriedOut(pages: Candidates, { bring, leave }: Choice): Candidates {
  const held = pages.held.slice();
  for (const at of bring) held[at] = 1;
  for (const at of leave) held[at] = 0;
  return { ...pages, held };
}

const page = fc.record({
  arrivals: fc.oneof(fc.constantFrom(0, 1, 3), fc.double({ min: 0, max: 12, noNaN: true })),
  wireBytes: fc.nat(4096),
  holdBytes: fc.constantFrom(512, 4096, 4096, 65_536),
  bringBytes: fc.nat(4096),
  held: fc.boolean(),
  unpaid: fc.boolean(),
});
const pages = fc.array(page, { maxLength: 120 });
const budget = fc.nat(1_000_000);

void t.test('a choice keeps to its budget, and equals the naive one', (t) => {
  fc.assert(
    fc.property(pages, budget, (list, budget) => {
      const all = candidates(list);
      const { bring, leave, bytes } = choose(all, budget);
      const rank = (at: number) => Math.fround(importance(all, at) * (all.held[at] === 1 ? PRICES.hysteresis : 1));
      const order = list
        .map((_, at) => at)
        .sort((a, b) => {
          if (all.unpaid[a] !== all.unpaid[b]) return all.unpaid[a]! - all.unpaid[b]!;
          if (rank(a) !== rank(b)) return rank(a) > rank(b) ? -1 : 1;
          return a - b;
        });
      const expected = new Set<number>();
      let used = 0;
      for (const at of order) {
        const page = list[at]!;
        const value = page.arrivals * 0.5 * page.wireBytes;
        const price = page.holdBytes / 16 + (page.held ? 0 : page.bringBytes);
        if (value === 0 || value < price || (page.unpaid && !page.held) || used + page.holdBytes > budget) continue;
        used += page.holdBytes;
        expected.add(at);
      }
      const brought = [...expected].filter((at) => !list[at]!.held);
      const left = list.flatMap((page, at) => (page.held && !expected.has(at) ? [at] : []));
      if (bytes !== used || bytes > budget) return false;
      if (JSON.stringify([...bring]) !== JSON.stringify(brought)) return false;
      if (JSON.stringify([...leave].sort((a, b) => a - b)) !== JSON.stringify(left)) return false;
      // those that never paid are first to leave, then the least important
      return [...leave].every((at, nth) => {
        const next = leave[nth + 1];
        if (next === undefined || all.unpaid[at]! > all.unpaid[next]!) return true;
        return (
          all.unpaid[at] === all.unpaid[next] && Math.fround(importance(all, at)) <= Math.fround(importance(all, next))
        );
      });
    }),
    { numRuns: 500 },
  );
  t.end();
});

void t.test('nothing swaps back: a choice that was carried out is chosen again', (t) => {
  fc.assert(
    fc.property(pages, budget, (list, budget) => {
      const all = candidates(list);
      const first = choose(all, budget);
      const second = choose(carriedOut(all, first), budget);
      return second.bring.length === 0 && second.leave.length === 0 && second.bytes === first.bytes;
    }),
    { numRuns: 1000 },
  );
  t.end();
});

void t.test('small ups and downs of importance move nothing', (t) => {
  const wobble = fc.array(fc.double({ min: 0.9, max: 1.1, noNaN: true }), { minLength: 20, maxLength: 20 });
  fc.assert(
    fc.property(fc.array(wobble, { minLength: 1, maxLength: 10 }), (rounds) => {
      const list = Array.from({ length: 20 }, () => PLAIN);
      let all = candidates(list);
      all = carriedOut(all, choose(all, 10 * 4096));
      return rounds.every((factors) => {
        const now = { ...all, arrivals: Float64Array.from(factors, (factor) => 3 * factor) };
        const { bring, leave } = choose(now, 10 * 4096);
        return bring.length === 0 && leave.length === 0;
      });
    }),
  );
  const rival = candidates([
    { ...PLAIN, held: true },
    { ...PLAIN, arrivals: 3.7 },
  ]);
  t.same([...choose(rival, 4096).bring], [], 'less than a quarter more important');
  rival.arrivals[1] = 3.8;
  const { bring, leave } = choose(rival, 4096);
  t.same([[...bring], [...leave]], [[1], [0]], 'more than that');
  t.end();
});

void t.test('pages of one size and cost: no other choice saves more', (t) => {
  const few = fc.array(fc.integer({ min: 0, max: 12 }), { minLength: 1, maxLength: 9 });
  fc.assert(
    fc.property(few, fc.nat(9), (arrivals, room) => {
      const all = candidates(arrivals.map((arrivals) => ({ ...PLAIN, arrivals })));
      const net = (at: number) => expectedBytes(all, at) - costBytes(all, at);
      let best = 0;
      for (let set = 0; set < 1 << arrivals.length; set++) {
        const members = arrivals.flatMap((_, at) => ((set >> at) & 1 ? [at] : []));
        if (members.length <= room)
          best = Math.max(
            best,
            members.reduce((sum, at) => sum + net(at), 0),
          );
      }
      const chosen = [...choose(all, room * 4096).bring].reduce((sum, at) => sum + net(at), 0);
      return Math.abs(chosen - best) < 1e-6;
    }),
  );
  t.end();
});

void t.test('a lowered budget, and pages that never paid', (t) => {
  const all = candidates([
    { ...PLAIN, held: true },
    { ...PLAIN, held: true, unpaid: true, arrivals: 12 },
    { ...PLAIN, held: true, arrivals: 0.1 },
    { ...PLAIN, held: true, arrivals: 2 },
    { ...PLAIN, unpaid: true, arrivals: 12 },
  ]);
  t.same([...choose(all, 1e9).leave], [2], 'not worth its cost, with any room');
  t.same([...choose(all, 2 * 4096).leave], [1, 2], 'what never paid goes first');
  t.same([...choose(all, 0).leave], [1, 2, 3, 0]);
  t.same([...choose(all, 1e9).bring], [], 'and is not brought again');
  t.end();
});

void t.test('the worked example of the documentation', (t) => {
  const hosts = ['a', 'b', 'c'];
  const hints = new Hints(() => 0);
  const guests = ['a', 'a', 'a', 'a', 'b', 'b'].map((at, i) => ({ guest: `g${i}`, at }));
  const offsets = Uint32Array.of(0, 6, 7);
  const holders = Uint32Array.of(0, 1, 2, 3, 4, 5, 0);
  const arrivals = expectedArrivals(offsets, holders, hints.arrivals(guests, 'c', hosts));
  t.same([...arrivals], [3, 0.5]);
  const stable = stability((50 / 60) * HOUR_MS, 3 * HOUR_MS, HOUR_MS / 6);
  t.ok(Math.abs(stable - 0.5) < 1e-9);
  const all = candidates([PLAIN, { ...PLAIN, arrivals: 0.5 }]);
  const choice = choose(all, 1e6);
  t.same(explain(all, choice, 0), {
    ...{ decision: 'bring', reason: 'important', guestsElsewhere: 6, expectedArrivals: 3, stability: 0.5 },
    ...{ wireBytes: 2000, scoreFactor: 1, expectedBytes: 3000, holdBytes: 4096, bringBytes: 2000, costBytes: 2256 },
    importance: 3000 / 2256,
  });
  t.match(explain(all, choice, 1), { decision: 'skip', reason: 'not worth its cost', expectedBytes: 500 });
  t.match(explain(all, choose(all, 0), 0), { decision: 'skip', reason: 'no room in the budget' });
  hints.evacuate('a', HOUR_MS);
  const planned = expectedArrivals(offsets, holders, hints.arrivals(guests, 'c', hosts));
  t.same([...planned], [4, 0.5], 'four of a to b or c, two of b to c only: 4 × 1/2 + 2 × 1');
  const byHost = expectedArrivals(
    Uint32Array.of(0, 2),
    Uint32Array.of(0, 1),
    Float64Array.of(1, 0.5),
    Uint32Array.of(4, 2),
  );
  t.same([...byHost], [5], 'where only hosts and counts are known');
  t.end();
});

void t.test('stability', (t) => {
  const ms = fc.double({ min: 0, max: 1e10, noNaN: true });
  fc.assert(
    fc.property(ms, ms, fc.double({ min: 1, max: 1e7, noNaN: true }), ms, (unchanged, horizon, scan, more) => {
      const now = stability(unchanged, horizon, scan);
      if (!(now > 0 && now <= 1)) return false;
      return stability(unchanged + more, horizon, scan) >= now && stability(unchanged, horizon + more, scan) <= now;
    }),
  );
  t.equal(stability(1000, 0, 1000), 1);
  t.end();
});

void t.test('numbers that are none, and what is refused', (t) => {
  const odd = candidates([
    PLAIN,
    { ...PLAIN, arrivals: NaN },
    { ...PLAIN, holdBytes: NaN },
    { ...PLAIN, holdBytes: -1e9 },
  ]);
  t.same({ ...choose(odd, 4096), leave: 0 }, { bring: Uint32Array.of(0), leave: 0, bytes: 4096 });
  const code = { code: 'PT_BAD_ARGUMENT' };
  const all = candidates([PLAIN]);
  for (const budget of [-1, NaN]) t.throws(() => choose(all, budget), code);
  t.throws(() => choose({ ...all, score: new Float64Array(2) }, 1), code);
  for (const wrong of [{ hold: -1 }, { bring: NaN }, { hysteresis: 0.9 }])
    t.throws(() => choose(all, 1, { ...PRICES, ...wrong }), code);
  t.same(choose(candidates([]), 1).bytes, 0);
  t.end();
});
