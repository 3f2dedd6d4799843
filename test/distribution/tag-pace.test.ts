/** The pace of tags: what any 100 ms have of them, beside what is left for pages. */
import { setImmediate } from 'node:timers/promises';
import fc from 'fast-check';
import t from 'tap';
import type { Clock } from '../../src/distribution/clock.ts';
import { pageRates, TagPace } from '../../src/distribution/tag-pace.ts';
import { LOWEST_PEAK, wireCost } from '../../src/distribution/wire-cost.ts';
import { TAG_BYTES } from '../../src/pages/tags.ts';

/** Waits are over as soon as all that may go now has gone, and the time is then. */
function jumpingClock(): Clock & { now: number } {
  const clock = {
    now: 0,
    nowMs: () => clock.now,
    unixMs: () => 0,
    wait: async (ms: number) => {
      await setImmediate();
      clock.now += ms;
    },
  };
  return clock;
}

/** Bytes of messages with their headers, and when they went. */
async function send(pace: TagPace, clock: { now: number }, sizes: readonly number[]): Promise<[number, number][]> {
  const sent: [number, number][] = [];
  await Promise.all(
    sizes.map(async (bytes) => {
      await pace.pass(bytes);
      sent.push([clock.now, wireCost(bytes + 1000, true)]);
    }),
  );
  return sent;
}

const most = (sent: readonly [number, number][]): number =>
  Math.max(
    ...sent.map(([from]) =>
      sent.filter(([at]) => at >= from && at <= from + 100).reduce((sum, [, bytes]) => sum + bytes, 0),
    ),
  );

void t.test('with pages, no more than the peak in any 100 ms', async (t) => {
  await fc.assert(
    fc.asyncProperty(
      fc.integer({ min: 300_000, max: 500_000_000 }),
      fc.array(fc.double({ min: 0, max: 1, noNaN: true }), { minLength: 1, maxLength: 60 }),
      async (peak, parts) => {
        const clock = jumpingClock();
        const pace = new TagPace(peak, clock);
        const sizes = parts.map((part) => Math.ceil(part * pace.most) * TAG_BYTES);
        const worst = most(await send(pace, clock, sizes));
        const pages = pageRates({ average: peak / 2, peak }).peak;
        t.ok(worst <= (peak - pages) / 10 + 1, `${worst} of ${(peak - pages) / 10}`);
      },
    ),
    { numRuns: 150 },
  );
});

void t.test('a guest of 4 GiB at the usual rates', async (t) => {
  const clock = jumpingClock();
  const pace = new TagPace(50_000_000, clock);
  const messages = Math.ceil(2 ** 20 / pace.most);
  await send(
    pace,
    clock,
    Array.from({ length: messages }, () => pace.most * TAG_BYTES),
  );
  t.ok(clock.now > 1500 && clock.now < 4000, `${Math.round(clock.now)} ms`);
});

void t.test('messages go in order, and a lower peak is for those to come', async (t) => {
  const clock = jumpingClock();
  const pace = new TagPace(50_000_000, clock);
  const order: number[] = [];
  await Promise.all([3, 1, 2].map(async (n, i) => pace.pass(n * 10_000).then(() => order.push(i))));
  t.same(order, [0, 1, 2]);
  const large = pace.most;
  pace.setPeak(LOWEST_PEAK);
  t.ok(pace.most < large);
  t.equal(pace.most, 64);
  const began = clock.now;
  await pace.pass(64 * TAG_BYTES);
  t.ok(clock.now - began < 1000, 'it gets there');
});

void t.test('a report goes before lists that came earlier', async (t) => {
  const clock = jumpingClock();
  const pace = new TagPace(LOWEST_PEAK, clock);
  const order: string[] = [];
  const lists = Array.from({ length: 100 }, async () => pace.pass(1024).then(() => order.push('list')));
  const report = pace.pass(1024, { report: true }).then(() => order.push('report'));
  await report;
  t.ok(order.length <= 2, `${order.length - 1} lists before it`);
  await Promise.all(lists);
  t.equal(order.length, 101);
  await pace.pass(16);
  t.pass('and it goes on when all were served');
});

void t.test('who gives up does not keep the others', async (t) => {
  const stop = new AbortController();
  let waited = (): void => undefined;
  const waiting = new Promise<void>((resolve) => (waited = resolve));
  const clock: Clock = {
    nowMs: () => 0,
    unixMs: () => 0,
    wait: async (_ms, signal) => {
      waited();
      return new Promise((resolve) => {
        signal.addEventListener('abort', () => resolve());
      });
    },
  };
  const pace = new TagPace(1_000_000, clock);
  const first = pace.pass(100_000, { signal: stop.signal });
  const second = pace.pass(100_000, { signal: stop.signal });
  await waiting;
  stop.abort();
  await Promise.all([first, second]);
  t.pass('both have ended');
});

void t.test('what is left for pages', (t) => {
  for (const peak of [2e6, 16e6, 50e6, 500e6]) {
    const pages = pageRates({ average: 1e6, peak });
    t.equal(pages.average, 1e6);
    t.ok(pages.peak / peak > 0.78 && pages.peak / peak < 0.81, `${pages.peak} of ${peak}`);
  }
  const even = pageRates({ average: 8e6, peak: 8e6 });
  t.equal(even.average, even.peak);
  t.ok(even.peak < 6.5e6);
  t.ok(pageRates({ average: 64_000, peak: 300_000 }).peak < 230_000, 'where the peak is low, a message is more of it');
  t.same(pageRates({ average: 100_000, peak: LOWEST_PEAK }), { average: 100_000, peak: LOWEST_PEAK });
  t.end();
});
