/** In which order the fill chooses: hints first, everything once. */
import fc from 'fast-check';
import t from 'tap';
import { FillOrder } from '../../src/memory/fill-order.ts';
import { FrameState } from '../../src/memory/native.ts';
import { Serving } from '../../src/memory/serving.ts';
import { FakeSession } from './fake-session.ts';

function expand(runs: number[]): number[] {
  const frames: number[] = [];
  for (let i = 0; i < runs.length; i += 2) for (let n = 0; n < runs[i + 1]!; n++) frames.push(runs[i]! + n);
  return frames;
}

void t.test('every missing frame is chosen exactly once, nothing else ever', (t) => {
  fc.assert(
    fc.property(
      fc.array(fc.constantFrom(...Object.values(FrameState)), { minLength: 1, maxLength: 300 }),
      fc.array(fc.tuple(fc.integer({ min: 1, max: 70 }), fc.array(fc.nat(299), { maxLength: 6 })), { minLength: 1 }),
      (states, batches) => {
        const session = new FakeSession(states.length);
        session.table.set(states);
        const serving = new Serving();
        const order = new FillOrder(session, serving);
        const chosen: number[] = [];
        for (let i = 0; ; i++) {
          const [limit, hints] = batches[i % batches.length]!;
          for (const hint of hints) if (hint < states.length) serving.hint(hint);
          const runs = expand(order.next(limit));
          if (runs.length > limit) throw new Error(`${runs.length} frames instead of ${limit} at most`);
          if (runs.length === 0) break;
          // full batches as long as there is enough
          if (runs.length < limit && session.nextMissing(0) >= 0) throw new Error('a batch with room to spare');
          chosen.push(...runs);
        }
        const missing = states.flatMap((state, frame) => (state === FrameState.Missing ? [frame] : []));
        if (chosen.sort((a, b) => a - b).join() !== missing.join()) throw new Error(`chose ${chosen.join()}`);
        if (missing.some((frame) => session.table[frame] !== FrameState.InFlight)) throw new Error('not claimed');
      },
    ),
  );
  t.pass('all of them, once');
  t.end();
});

void t.test('around the latest faults first, the latest one before the others', (t) => {
  const session = new FakeSession(1000);
  const serving = new Serving();
  const order = new FillOrder(session, serving);
  serving.hint(500);
  serving.hint(200);
  session.table[500] = session.table[200] = FrameState.Present;
  const first = expand(order.next(40));
  t.same(
    first.slice(0, 24),
    Array.from({ length: 24 }, (_, i) => 201 + i),
    'what lies behind it',
  );
  t.same(
    first.slice(24, 32),
    Array.from({ length: 8 }, (_, i) => 192 + i),
    'then what lies before it',
  );
  t.same(
    first.slice(32),
    Array.from({ length: 8 }, (_, i) => 501 + i),
    'then the one before',
  );
  t.equal(expand(order.next(10))[0], 0, 'and then the sweep');
  t.end();
});

void t.test('what is given back behind the sweep is chosen again', (t) => {
  const session = new FakeSession(100);
  const order = new FillOrder(session, new Serving());
  order.next(50);
  session.release(10, 5, FrameState.InFlight);
  t.equal(expand(order.next(50)).length, 50);
  t.same(expand(order.next(50)), [10, 11, 12, 13, 14]);
  t.same(order.next(50), []);
  t.end();
});

void t.test('hints at the edges of memory', (t) => {
  const session = new FakeSession(10);
  const serving = new Serving();
  const order = new FillOrder(session, serving);
  serving.hint(0);
  serving.hint(9);
  t.equal(expand(order.next(100)).length, 10);
  t.end();
});
