/** What pages are worth at a host, and which of them are chosen: against naive models, and that choices stand still. */
import fc from 'fast-check';
import t, { type Test } from 'tap';
import { Hints } from '../../src/distribution/hints.ts';
import {
  arrivalLikelihoods,
  choose,
  costBytes,
  expectedBytes,
  explain,
  importance,
  PRICES,
  SHARED_LIFE_MS,
  stability,
  type Candidates,
  type Choice,
} from '../../src/distribution/importance.ts';
import { DISTRIBUTION_DEFAULTS } from '../../src/distribution/info.ts';

function near(t: Test, value: number, expected: number, message?: string): void {
  t.ok(Math.abs(value - expected) < 1e-6, message ?? `${value} is ${expected}`);
}

const HOUR_MS = 3_600_000;

interface Page {
  likelihood: number;
  wireBytes: number;
  holdBytes: number;
  bringBytes: number;
  held: boolean;
  unpaid: boolean;
}

const PLAIN: Page = {
  likelihood: 0.75,
  wireBytes: 2000,
  holdBytes: 4096,
  bringBytes: 2000,
  held: false,
  unpaid: false,
};

function candidates(pages: readonly Page[]): Candidates {
  return {
    guests: Uint32Array.from(pages, () => 6),
    likelihood: Float64Array.from(pages, (page) => page.likelihood),
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
  likelihood: fc.oneof(fc.constantFrom(0, 0.5, 1), fc.double({ min: 0, max: 1, noNaN: true })),
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
        const value = page.likelihood * 0.5 * page.wireBytes;
        const price = page.holdBytes / 32 + (page.held ? 0 : page.bringBytes / 4);
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
        const now = { ...all, likelihood: Float64Array.from(factors, (factor) => 0.75 * factor) };
        const { bring, leave } = choose(now, 10 * 4096);
        return bring.length === 0 && leave.length === 0;
      });
    }),
  );
  const rival = candidates([
    { ...PLAIN, held: true },
    { ...PLAIN, likelihood: 0.93 },
  ]);
  t.same([...choose(rival, 4096).bring], [], 'less than a quarter more important');
  rival.likelihood[1] = 0.94;
  const { bring, leave } = choose(rival, 4096);
  t.same([[...bring], [...leave]], [[1], [0]], 'more than that');
  t.end();
});

void t.test('pages of one size and cost: no other choice saves more', (t) => {
  const few = fc.array(fc.integer({ min: 0, max: 12 }), { minLength: 1, maxLength: 9 });
  fc.assert(
    fc.property(few, fc.nat(9), (arrivals, room) => {
      const all = candidates(arrivals.map((twelfths) => ({ ...PLAIN, likelihood: twelfths / 12 })));
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
    { ...PLAIN, held: true, unpaid: true, likelihood: 1 },
    { ...PLAIN, held: true, likelihood: 0.1 },
    { ...PLAIN, held: true, likelihood: 0.5 },
    { ...PLAIN, unpaid: true, likelihood: 1 },
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
  const moves = DISTRIBUTION_DEFAULTS.moves;
  const likelihoods = hints.arrivals(guests, 'c', hosts, moves);
  t.same(
    [...likelihoods],
    guests.map(() => 0.25),
    'one of two moves, and to one of two hosts',
  );
  const [six, one] = arrivalLikelihoods(offsets, holders, likelihoods) as unknown as [number, number];
  near(t, six, 1 - 0.75 ** 6);
  near(t, one, 0.25);
  const stable = stability(0, HOUR_MS, SHARED_LIFE_MS);
  near(t, stable, Math.sqrt(2 / 3));
  const all = candidates([PLAIN, PLAIN]);
  all.likelihood.set([six, one]);
  all.stability.fill(stable);
  const choice = choose(all, 1e6);
  const first = explain(all, choice, 0);
  t.match(first, { decision: 'bring', reason: 'important', guestsElsewhere: 6, costBytes: 628 });
  t.equal(Math.round(first.expectedBytes), 1342);
  t.equal(first.importance.toFixed(2), '2.14');
  const second = explain(all, choice, 1);
  t.match(second, { decision: 'skip', reason: 'not worth its cost' });
  t.equal(Math.round(second.expectedBytes), 408);
  t.match(explain(all, choose(all, 0), 0), { decision: 'skip', reason: 'no room in the budget' });
  hints.evacuate('a', HOUR_MS);
  const evacuated = hints.arrivals(guests, 'c', hosts, moves);
  const [, alone] = arrivalLikelihoods(offsets, holders, evacuated) as unknown as [number, number];
  near(t, alone, 0.5, 'a guest of a goes to b or c');
  const byHost = arrivalLikelihoods(
    Uint32Array.of(0, 2),
    Uint32Array.of(0, 1),
    Float64Array.of(0.5, 0.25),
    Uint32Array.of(4, 2),
  );
  near(t, byHost[0]!, 1 - 0.5 ** 4 * 0.75 ** 2, 'where only hosts and counts are known');
  near(t, arrivalLikelihoods(Uint32Array.of(0, 1), Uint32Array.of(0), Float64Array.of(1))[0]!, 1, 'sure to come');
  t.end();
});

void t.test('the defaults: what two guests hold is brought, what one holds is not', (t) => {
  const { horizonMs, moves, prices } = DISTRIBUTION_DEFAULTS;
  t.same(prices, PRICES);
  const likelihood = (guests: number) => 1 - (1 - moves / 2) ** guests;
  const brought = (guests: number, wireBytes: number, unchangedMs = 0) => {
    const all = candidates([{ ...PLAIN, likelihood: likelihood(guests), wireBytes, bringBytes: wireBytes }]);
    all.stability.fill(stability(unchangedMs, horizonMs, SHARED_LIFE_MS));
    return choose(all, 1e6).bring.length === 1;
  };
  t.ok(brought(2, 2000), 'two like guests, as soon as they are known');
  t.notOk(
    [500, 1000, 2000, 4096].some((bytes) => brought(1, bytes, 1e12)),
    'one, however long its page stays',
  );
  t.ok(brought(4, 500), 'small pages, where more guests have them');
  t.notOk(brought(2, 500));
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
    { ...PLAIN, likelihood: NaN },
    { ...PLAIN, holdBytes: NaN },
    { ...PLAIN, holdBytes: -1e9 },
  ]);
  t.same(
    { ...choose(odd, 4096), leave: 0 },
    { bring: Uint32Array.of(0), leave: 0, chosen: Uint8Array.of(1, 0, 0, 0), bytes: 4096 },
  );
  const code = { code: 'PT_BAD_ARGUMENT' };
  const all = candidates([PLAIN]);
  for (const budget of [-1, NaN]) t.throws(() => choose(all, budget), code);
  t.throws(() => choose({ ...all, score: new Float64Array(2) }, 1), code);
  for (const wrong of [{ hold: -1 }, { bring: NaN }, { hysteresis: 0.9 }])
    t.throws(() => choose(all, 1, { ...PRICES, ...wrong }), code);
  t.same(choose(candidates([]), 1).bytes, 0);
  t.end();
});
