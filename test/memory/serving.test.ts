/** What the threads of a guest share: the ring of hints, the counters, the histogram of stalls. */
import fc from 'fast-check';
import t from 'tap';
import { record, summarize, HISTOGRAM_BUCKETS } from '../../src/memory/histogram.ts';
import { HINT_HEAD_AT, Serving } from '../../src/memory/serving.ts';

const headOf = (serving: Serving): Int32Array => new Int32Array(serving.buffer, HINT_HEAD_AT, 1);

void t.test('hints come oldest first, and only once', (t) => {
  const fault = new Serving();
  const fill = new Serving(fault.buffer);
  for (const frame of [7, 3, 9]) fault.hint(frame);
  const into: number[] = [];
  let read = fill.takeHints(0, into);
  t.same(into, [7, 3, 9]);
  read = fill.takeHints(read, into);
  t.equal(into.length, 3);
  fault.hint(1);
  fill.takeHints(read, into);
  t.same(into, [7, 3, 9, 1]);
  t.end();
});

void t.test('a reader that is late gets the latest', (t) => {
  const serving = new Serving();
  for (let frame = 0; frame < 1000; frame++) serving.hint(frame);
  const into: number[] = [];
  serving.takeHints(0, into);
  t.same(
    into,
    Array.from({ length: 256 }, (_, i) => 744 + i),
  );
  t.end();
});

void t.test('the ring goes on where its head wraps around', (t) => {
  fc.assert(
    fc.property(
      fc.constantFrom(2 ** 31 - 1, 2 ** 31 - 5, 2 ** 31 - 300, -(2 ** 31), -1, -5, -257, 0),
      fc.array(fc.array(fc.nat(2 ** 31 - 1), { maxLength: 200 }), { maxLength: 8 }),
      (start, batches) => {
        const serving = new Serving();
        headOf(serving)[0] = start;
        let read = start | 0;
        for (const batch of batches) {
          for (const frame of batch) serving.hint(frame);
          const into: number[] = [];
          read = serving.takeHints(read, into);
          if (into.join() !== batch.join()) throw new Error(`${into.join()} instead of ${batch.join()}`);
        }
      },
    ),
  );
  t.pass('every batch came as it was given');
  t.end();
});

void t.test('counters', (t) => {
  const serving = new Serving();
  const reader = new Serving(serving.buffer);
  serving.setTraffic('demand', 2 ** 40, 5);
  serving.addPages('demand', 10, 20, 1);
  serving.addPages('demand', 10, 20, 1);
  serving.addPages('fill', 7, 8, 9);
  serving.served(50);
  serving.served(12);
  serving.alarm();
  serving.reconnected();
  serving.setParked(4);
  serving.setDemandWaiting(6);
  t.same(reader.traffic('demand'), { in: 2 ** 40, out: 5, pages: 20, raw: 40, installed: 2 });
  t.same(reader.traffic('fill'), { in: 0, out: 0, pages: 7, raw: 8, installed: 9 });
  const { faultsServed, maxUs, alarms, reconnects, parked, demandWaiting } = reader;
  t.same([faultsServed, maxUs, alarms, reconnects, parked, demandWaiting], [2, 12.5, 1, 1, 4, 6]);
  t.equal(reader.deltas, undefined);
  serving.addDeltas(10, 1_000, 640, 3_000);
  serving.addDeltas(5, 500, 320, 0);
  t.same(
    reader.deltas,
    { frames: 15, bytes: 1_500, digests: 960, whole: 4_500 },
    'whole: by the part that was measured',
  );
  t.ok(reader.histogram.byteOffset + reader.histogram.byteLength <= serving.buffer.byteLength);
  t.end();
});

void t.test('percentiles agree with a sorted array to within 1%', (t) => {
  const durations = fc.oneof(
    fc.double({ min: 0.25, max: 64, noNaN: true }),
    fc.double({ min: 64, max: 10_000, noNaN: true }),
    fc.double({ min: 0.25, max: 5e8, noNaN: true }),
  );
  fc.assert(
    fc.property(fc.array(durations, { minLength: 1, maxLength: 500 }), (values) => {
      const buckets = new Int32Array(HISTOGRAM_BUCKETS);
      for (const value of values) record(buckets, value);
      const sorted = [...values].sort((a, b) => a - b);
      const { count, p50Us, p99Us } = summarize(buckets);
      if (count !== values.length) throw new Error('count');
      for (const [share, got] of [
        [0.5, p50Us],
        [0.99, p99Us],
      ] as const) {
        const exact = sorted[Math.ceil(values.length * share) - 1]!;
        // or half a unit of 0.25 µs, where that is more
        const allowed = Math.max(exact * 0.01, 0.126);
        if (Math.abs(got - exact) > allowed) throw new Error(`${got} instead of ${exact} at ${share}`);
      }
    }),
  );
  t.pass('all within 1%');
  t.end();
});

void t.test('no percentile is longer than the longest', (t) => {
  const buckets = new Int32Array(HISTOGRAM_BUCKETS);
  // at the lower end of its bucket, whose middle is 16,288
  record(buckets, 16_270);
  t.ok(summarize(buckets).p99Us > 16_270, 'the middle of the bucket');
  t.same(summarize(buckets, 16_270), { count: 1, p50Us: 16_270, p99Us: 16_270 });
  t.end();
});

void t.test('what is out of range counts as the nearest', (t) => {
  const buckets = new Int32Array(HISTOGRAM_BUCKETS);
  for (const value of [-5, 0, 1e12, Infinity]) record(buckets, value);
  t.equal(summarize(buckets).count, 4);
  t.same(summarize(new Int32Array(HISTOGRAM_BUCKETS)), { count: 0, p50Us: 0, p99Us: 0 });
  t.end();
});
