/** The two bounds of a token bucket, on any pattern of requests and any clock, and that it isn't needlessly slow. */
import fc from 'fast-check';
import t from 'tap';
import { LARGEST_PIECE, LOWEST_RATE, TokenBucket, WINDOW_MS, type Rates } from '../../src/distribution/token-bucket.ts';

const MIB = 2 ** 20;

/** A grant, as the tests remember it. */
interface Sent {
  atMs: number;
  bytes: number;
}

/** The most bytes in any closed window of 100 ms, by looking at each that begins with a grant. */
function fullestWindow(sent: readonly Sent[]): number {
  let most = 0;
  for (const [i, { atMs }] of sent.entries()) {
    let bytes = 0;
    for (let j = i; j < sent.length && sent[j]!.atMs - atMs <= WINDOW_MS; j++) bytes += sent[j]!.bytes;
    most = Math.max(most, bytes);
  }
  return most;
}

const rates = fc
  .tuple(fc.integer({ min: LOWEST_RATE, max: 200 * MIB }), fc.integer({ min: 100, max: 1000 }))
  .map(([average, percent]): Rates => ({ average, peak: Math.ceil((average * percent) / 100) }));

/** Steps of a clock: none, fractions, just about a window, jumps. */
const step = fc.oneof(
  fc.constantFrom(0, 0, 0.5, 1, 99, WINDOW_MS, 101, 5000, 86_400_000),
  fc.double({ min: 0, max: 150, noNaN: true }),
  fc.double({ min: 0, max: 3, noNaN: true }),
);
const wanted = fc.oneof(fc.integer({ min: 0, max: 5000 }), fc.integer({ min: 0, max: 64 * MIB }));
const requests = fc.array(fc.tuple(step, wanted), { maxLength: 200 });

void t.test('no sliding window is above the peak, no interval above the average', (t) => {
  fc.assert(
    fc.property(rates, requests, (rates, requests) => {
      let now = 1e6;
      const bucket = new TokenBucket(rates, () => now);
      const sent: Sent[] = [];
      for (const [stepMs, bytes] of requests) {
        now += stepMs;
        const grant = bucket.take(bytes);
        if (grant.bytes > bytes) return false;
        if (grant.bytes > 0) sent.push({ atMs: now, bytes: grant.bytes });
      }
      if (fullestWindow(sent) > rates.peak / 10) return false;
      for (let i = 0; i < sent.length; i++) {
        let bytes = 0;
        for (let j = i; j < sent.length; j++) {
          bytes += sent[j]!.bytes;
          const most = (rates.average * (sent[j]!.atMs - sent[i]!.atMs)) / 1000 + rates.average / 10;
          if (bytes > most + 1) return false;
        }
      }
      const all = sent.reduce((sum, { bytes }) => sum + bytes, 0);
      return all <= (rates.average * (now - 1e6)) / 1000 + 1;
    }),
    { numRuns: 300 },
  );
  t.end();
});

void t.test('many pieces a millisecond: the slots never run out, and the peak holds', (t) => {
  fc.assert(
    fc.property(fc.array(fc.double({ min: 0, max: 1.2, noNaN: true }), { minLength: 600, maxLength: 600 }), (steps) => {
      let now = 0;
      const rates = { average: 100 * MIB, peak: 120 * MIB };
      const bucket = new TokenBucket(rates, () => now);
      const sent: Sent[] = [];
      for (const stepMs of steps) {
        now += stepMs;
        sent.push({ atMs: now, bytes: bucket.take(LARGEST_PIECE).bytes });
      }
      return fullestWindow(sent) <= rates.peak / 10;
    }),
    { numRuns: 50 },
  );
  t.end();
});

void t.test('rates that change, and stand-backs', (t) => {
  const act = fc.oneof(
    fc.record({ kind: fc.constant('take' as const), stepMs: step, bytes: wanted }),
    fc.record({ kind: fc.constant('rates' as const), stepMs: step, rates }),
    fc.record({ kind: fc.constant('stand' as const), stepMs: step }),
    fc.record({ kind: fc.constant('resume' as const), stepMs: step }),
  );
  fc.assert(
    fc.property(rates, fc.array(act, { maxLength: 150 }), (first, acts) => {
      let now = 0;
      let current = first;
      let allowed = 0;
      const bucket = new TokenBucket(first, () => now);
      const resumes: (() => void)[] = [];
      const sent: Sent[] = [];
      /** When which peak came into force. */
      const peaks = [{ atMs: 0, peak: first.peak }];
      for (const act of acts) {
        now += act.stepMs;
        if (resumes.length === 0) allowed += (current.average * act.stepMs) / 1000;
        if (act.kind === 'rates') {
          bucket.setRates((current = act.rates));
          peaks.push({ atMs: now, peak: current.peak });
        } else if (act.kind === 'stand') resumes.push(bucket.standBack());
        else if (act.kind === 'resume') {
          const resume = resumes.pop();
          // twice is once
          resume?.();
          resume?.();
        } else {
          const { bytes, againMs } = bucket.take(act.bytes);
          if (resumes.length > 0 && (bytes > 0 || (act.bytes > 0 && againMs !== Infinity))) return false;
          if (bytes > 0) sent.push({ atMs: now, bytes });
        }
        if (bucket.standsBack !== resumes.length > 0) return false;
      }
      // a window keeps to the highest peak that was in force during it
      for (const [i, { atMs: from }] of sent.entries()) {
        const within = sent.slice(i).filter(({ atMs }) => atMs - from <= WINDOW_MS);
        const to = within.at(-1)!.atMs;
        const inForce = peaks.filter(
          ({ atMs }, at) => atMs <= to && (at + 1 === peaks.length || peaks[at + 1]!.atMs >= from),
        );
        const most = Math.max(...inForce.map(({ peak }) => peak)) / 10;
        if (within.reduce((sum, { bytes }) => sum + bytes, 0) > most) return false;
      }
      return sent.reduce((sum, { bytes }) => sum + bytes, 0) <= allowed + 1;
    }),
    { numRuns: 300 },
  );
  t.end();
});

void t.test('who asks when told gets something, and not before', (t) => {
  fc.assert(
    fc.property(rates, requests, (rates, requests) => {
      let now = 0;
      const bucket = new TokenBucket(rates, () => now);
      for (const [stepMs, bytes] of requests) {
        now += stepMs;
        const { bytes: granted, againMs } = bucket.take(bytes);
        if (granted === bytes) {
          if (againMs !== 0) return false;
          continue;
        }
        if (!(againMs > 0 && againMs < 300)) return false;
        if (againMs > 0.1) {
          now += againMs - 0.1;
          if (bucket.take(bytes - granted).bytes > 0) return false;
          now += 0.1;
        } else now += againMs;
        if (bucket.take(bytes - granted).bytes === 0) return false;
      }
      return true;
    }),
    { numRuns: 300 },
  );
  t.end();
});

/** Bytes granted in `forMs` to one who always wants more, and asks late by up to `lateMs` in turns. */
function greedily(rates: Rates, forMs: number, lateMs: (nth: number) => number): number {
  let now = 0;
  let all = 0;
  const bucket = new TokenBucket(rates, () => now);
  for (let nth = 0; now < forMs; nth++) {
    const { bytes, againMs } = bucket.take(2 ** 30);
    all += bytes;
    now += againMs + lateMs(nth);
  }
  return all;
}

void t.test('it gives 95% of the average where there is always demand', (t) => {
  const forMs = 20_000;
  fc.assert(
    fc.property(rates, fc.array(fc.double({ min: 0, max: 15, noNaN: true }), { minLength: 1 }), (rates, late) => {
      const average = rates.average * (forMs / 1000);
      if (greedily(rates, forMs, () => 0) < 0.95 * average) return false;
      // one who is late has to catch up, which takes a peak that allows it
      const roomy = { ...rates, peak: Math.max(rates.peak, rates.average * 1.5) };
      return greedily(roomy, forMs, (nth) => late[nth % late.length]!) >= 0.95 * average;
    }),
    { numRuns: 40 },
  );
  t.end();
});

void t.test('clocks that misbehave', (t) => {
  let now = 50_000;
  const rates = { average: 10 * MIB, peak: 20 * MIB };
  const bucket = new TokenBucket(rates, () => now);
  t.equal(bucket.take(1).bytes, 0, 'it begins empty');
  now += 1e12;
  let standing = 0;
  for (let times = 0; times < 100; times++) standing += bucket.take(LARGEST_PIECE).bytes;
  t.ok(
    standing > 0 && standing <= rates.average / 10,
    'a clock that jumps and then stands: a tenth of a second at most',
  );
  now -= 30_000;
  t.equal(bucket.take(LARGEST_PIECE).bytes, 0, 'one that goes back stands still');
  now += 30_000 + 200;
  t.equal(bucket.take(LARGEST_PIECE).bytes, LARGEST_PIECE, 'and goes on from where it had been');
  now += 500;
  bucket.take(0);
  now -= 50;
  t.equal(bucket.take(MIB).bytes, MIB, 'what was saved up is not lost by it');
  t.end();
});

void t.test('the window is closed, and a lowered peak counts what went before', (t) => {
  let now = 0;
  const bucket = new TokenBucket({ average: 100_000, peak: 100_000 }, () => now);
  now = 1000;
  t.equal(bucket.take(10_000).bytes, 10_000, 'what 100 ms may take');
  now = 1100;
  t.equal(bucket.take(1).bytes, 0, 'at 100 ms it still counts');
  t.ok(bucket.take(1).againMs < 0.01);
  now = 1100.01;
  t.equal(bucket.take(5000).bytes, 5000);
  bucket.setRates({ average: 40_000, peak: 40_000 });
  t.same(bucket.rates, { average: 40_000, peak: 40_000 });
  now = 1200;
  t.equal(bucket.take(1000).bytes, 0, '5000 bytes are above the new 4000');
  now = 1201;
  t.equal(bucket.take(4000).bytes, 4000);
  t.end();
});

void t.test('nothing is saved up while it stands back', (t) => {
  let now = 0;
  const bucket = new TokenBucket({ average: 100_000, peak: 1_000_000 }, () => now);
  const first = bucket.standBack();
  const second = bucket.standBack();
  now = 5000;
  first();
  first();
  t.ok(bucket.standsBack, 'the second still holds');
  t.same(bucket.take(1000), { bytes: 0, againMs: Infinity });
  second();
  t.equal(bucket.take(1000).bytes, 0);
  now += 20;
  t.equal(bucket.take(2000).bytes, 2000, '20 ms of 100 bytes');
  t.end();
});

void t.test('what is refused', (t) => {
  const now = () => 0;
  const code = { code: 'PT_BAD_ARGUMENT' };
  for (const [average, peak] of [
    [0, 10_000],
    [LOWEST_RATE - 1, 10_000],
    [10_000, 9_999],
    [NaN, 10_000],
    [10_000, NaN],
    [10_000, Infinity],
  ] as const)
    t.throws(() => new TokenBucket({ average, peak }, now), code, `${average}, ${peak}`);
  const bucket = new TokenBucket({ average: 10_000, peak: 10_000 }, now);
  t.throws(() => bucket.setRates({ average: 1, peak: 1 }), code);
  t.same(bucket.rates, { average: 10_000, peak: 10_000 }, 'and changes nothing');
  for (const bytes of [-1, 0.5, NaN, Infinity]) t.throws(() => bucket.take(bytes), code);
  t.same(bucket.take(0), { bytes: 0, againMs: 0 });
  t.end();
});
