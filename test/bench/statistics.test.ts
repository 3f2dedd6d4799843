import t from 'tap';
import { alternate } from '../../bench/lib/alternate.ts';
import { bootstrapMedian, judge, median, percentile, seededRandom } from '../../bench/lib/statistics.ts';

void t.test('percentiles are samples that were measured, by nearest rank', (t) => {
  const hundred = Array.from({ length: 100 }, (_, i) => 100 - i);
  t.equal(percentile(hundred, 0.5), 50);
  t.equal(percentile(hundred, 0.99), 99);
  t.equal(percentile(hundred, 1), 100);
  t.equal(percentile([7], 0.5), 7);
  t.equal(percentile([1, 2], 0.51), 2);
  t.equal(percentile(new Uint32Array([9, 10, 1]), 1), 10, 'numbers are not sorted as text');
  for (const p of [0, 1.1, NaN]) t.throws(() => percentile([1], p), { code: 'PT_BAD_ARGUMENT' });
  for (const samples of [[], [1, NaN], [Infinity]]) {
    t.throws(() => percentile(samples, 0.5), { code: 'PT_BAD_ARGUMENT' });
  }
  t.end();
});

void t.test('median does not change its input, and halves the middle two', (t) => {
  const samples = [10, 9, 100, 1];
  t.equal(median(samples), 9.5);
  t.same(samples, [10, 9, 100, 1]);
  t.equal(median([3, 100, 2]), 3);
  t.throws(() => median([]), { code: 'PT_BAD_ARGUMENT' });
  t.end();
});

void t.test('bootstrap: same interval each time, within the samples, narrower with more of them', (t) => {
  const random = seededRandom(42);
  const many = Array.from({ length: 200 }, () => 1 + random());
  const few = many.slice(0, 10);
  const wide = bootstrapMedian(few);
  const narrow = bootstrapMedian(many);
  t.same(bootstrapMedian(few), wide);
  t.ok(wide.low >= Math.min(...few) && wide.high <= Math.max(...few) && wide.low <= median(few));
  t.ok(narrow.high - narrow.low < wide.high - wide.low);
  t.ok(narrow.low < 1.5 && narrow.high > 1.5 - 0.1, 'holds about the true median');
  t.same(bootstrapMedian([5, 5, 5]), { low: 5, high: 5 });
  t.end();
});

void t.test('judge takes the median of the rounds’ ratios, not the ratio of medians', (t) => {
  const pairs = [
    { value: 10, baseline: 10 },
    { value: 40, baseline: 20 },
    { value: 90, baseline: 30 },
  ];
  const judged = judge('x', 'ns', pairs, { target: 1.9, direction: 'at-most' });
  t.match(judged, { name: 'x', unit: 'ns', value: 40, baseline: 20, ratio: 2, target: 1.9, met: false });
  t.match(judged.spread, { min: 1, max: 3 });
  const uneven = [
    { value: 1, baseline: 1 },
    { value: 2, baseline: 4 },
    { value: 12, baseline: 3 },
  ];
  t.equal(judge('x', 'ns', uneven, { target: null, direction: 'at-most' }).ratio, 1, 'ratio of medians would be 2/3');
  t.equal(judge('x', 'ns', pairs, { target: 2, direction: 'at-most' }).met, true, 'exactly the target is met');
  t.equal(judge('x', 'ns', pairs, { target: 2, direction: 'at-least' }).met, true);
  t.equal(judge('x', 'ns', pairs, { target: 2.1, direction: 'at-least' }).met, false);
  t.equal(judge('x', 'ns', pairs, { target: null, direction: 'at-least' }).met, null);
  const nothing = [{ value: 1, baseline: 0 }];
  t.throws(() => judge('x', 'ns', nothing, { target: 1, direction: 'at-most' }), { code: 'PT_BAD_ARGUMENT' });
  t.end();
});

void t.test(
  'alternate gives each arm the first go by turns, drops only the warm-up, keeps figures as they are',
  async (t) => {
    const ran: string[] = [];
    const seen: number[] = [];
    const arm = (name: string) => (round: number) => {
      ran.push(`${name}${round}`);
      return Promise.resolve(round);
    };
    const rounds = await alternate({ rounds: 2, a: arm('a'), b: arm('b'), onRound: (round) => seen.push(round) });
    t.same(ran, ['b-1', 'a-1', 'a0', 'b0', 'b1', 'a1']);
    t.same(rounds, [
      { a: 0, b: 0 },
      { a: 1, b: 1 },
    ]);
    t.same(seen, [0, 1]);
    for (const bad of [0, 1.5, NaN]) {
      await t.rejects(alternate({ rounds: bad, a: arm('a'), b: arm('b') }), { code: 'PT_BAD_ARGUMENT' });
    }
    t.equal(ran.length, 6, 'a bad number of rounds runs nothing');
  },
);
