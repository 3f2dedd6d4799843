/** What of a guest is stable, and what of it is told. */
import fc from 'fast-check';
import t from 'tap';
import { MOST_REPORT_TAGS } from '../../src/directory/directory.ts';
import { Sightings } from '../../src/distribution/sightings.ts';
import { numbersOf, tagsOf } from '../directory/model.ts';
import { pass, SeenGuest } from './sighting-support.ts';

const MOST = MOST_REPORT_TAGS;

/** What a report would tell: [guest, added, removed, gone]. */
function told(sightings: Sightings, most = MOST, domain = 'shop') {
  return sightings
    .take(domain, most)
    .map(({ guest, added, removed, gone = false }) => [
      guest,
      numbersOf(added).sort(),
      numbersOf(removed).sort(),
      gone,
    ]);
}

void t.test('a page is stable after three passes that saw it unchanged, and out with its first change', (t) => {
  const clock = { now: 100 };
  const sightings = new Sightings({ clock: () => clock.now });
  const guest = new SeenGuest(7);
  for (const [frame, page] of [1, 2, 2, undefined, 3].entries()) guest.write(frame, page);
  for (let i = 0; i < 3; i++) {
    pass(sightings, 'a', guest);
    t.same(told(sightings), [], `${i} passes after it changed`);
    clock.now += 10_000;
  }
  guest.write(4, 4);
  pass(sightings, 'a', guest);
  t.same(told(sightings), [['a', [1, 2], [], false]], 'each once; neither the zero page nor what has just changed');
  t.same(told(sightings), []);
  const stable = sightings.stableTags('a')!;
  t.same([stable.domain, numbersOf(stable.tags).sort(), [...stable.unchangedS]], ['shop', [1, 2], [30, 30]]);

  guest.write(1, 9);
  pass(sightings, 'a', guest);
  t.same(told(sightings), [], 'another frame has it still');
  guest.write(2, 9);
  guest.write(0, 8);
  pass(sightings, 'a', guest);
  t.same(told(sightings), [['a', [], [1, 2], false]]);
  guest.write(0, 1);
  for (let i = 0; i < 3; i++) {
    pass(sightings, 'a', guest);
    t.notOk(
      told(sightings).some(([, added]) => (added as number[]).includes(1)),
      'it has to be stable anew',
    );
  }
  pass(sightings, 'a', guest);
  t.same(told(sightings), [['a', [1], [], false]]);
  t.equal(sightings.stableTags('nobody'), undefined);
  for (const passes of [0, 1.5, 201]) t.throws(() => new Sightings({ passes }), { code: 'PT_BAD_ARGUMENT' });
  t.end();
});

void t.test('another watch of the guest: what is the same stays', (t) => {
  const sightings = new Sightings({ passes: 1 });
  const guest = new SeenGuest(6);
  for (let frame = 0; frame < 6; frame++) guest.write(frame, frame);
  for (let i = 0; i < 2; i++) pass(sightings, 'a', guest);
  t.equal(told(sightings).length, 1);
  guest.write(5, 7);
  guest.anew();
  pass(sightings, 'a', guest);
  t.same(told(sightings), [['a', [], [5], false]]);
  pass(sightings, 'a', guest);
  t.same(told(sightings), [['a', [7], [], false]]);
  t.end();
});

void t.test('a guest that leaves, comes back, or changes its domain', (t) => {
  const sightings = new Sightings({ passes: 1 });
  const guest = new SeenGuest(3);
  guest.write(0, 1);
  guest.write(1, 2);
  const settle = (domain?: string): void => {
    for (let i = 0; i < 2; i++) pass(sightings, 'a', guest, domain);
  };
  pass(sightings, 'a', guest);
  sightings.gone('a');
  t.same(told(sightings), [], 'nothing was told, so nothing is taken back');
  t.equal(sightings.stats().guests, 0);
  settle();
  t.same(told(sightings), [['a', [1, 2], [], false]]);
  sightings.gone('a');
  sightings.gone('a');
  t.same([...sightings.holding('shop', tagsOf(1, 2, 3))], [1, 1, 0], 'it is in the reported state until that is told');
  t.same(
    told(sightings, 1).map(([name, , removed, gone]) => [name, (removed as number[]).length, gone]),
    [['a', 1, false]],
  );
  t.equal(
    [...sightings.holding('shop', tagsOf(1, 2))].reduce((a, b) => a + b),
    1,
  );
  t.same(told(sightings)[0]!.slice(3), [true]);
  t.same(sightings.stats(), { guests: 0, held: 0, told: 0, pending: 0, bytes: 0 });

  settle();
  t.same(told(sightings), [['a', [1, 2], [], false]]);
  sightings.gone('a');
  guest.write(1, 5);
  guest.anew();
  settle();
  t.same(told(sightings), [['a', [5], [2], false]], 'one of that name came before it was told');
  settle('bank');
  t.same(told(sightings), [['a', [], [1, 5], true]]);
  t.same(told(sightings, MOST, 'bank'), [['a', [1, 5], [], false]]);
  sightings.gone('a');
  sightings.untell('bank');
  t.equal(sightings.stats().bytes, 0, 'nobody is to be told any more');
  t.end();
});

void t.test('batches: bounded, in turns, each difference once; anew tells all', (t) => {
  const sightings = new Sightings({ passes: 1 });
  const frames = 10_000;
  const guests = ['a', 'b', 'c'].map((name, g) => {
    const guest = new SeenGuest(frames);
    for (let frame = 0; frame < frames; frame++) guest.write(frame, g * 5000 + frame);
    t.ok(pass(sightings, name, guest) > 1, 'in pieces');
    pass(sightings, name, guest);
    return name;
  });
  for (const turn of [0, 1]) {
    const seen = new Map(guests.map((name) => [name, new Set<number>()]));
    let batches = 0;
    for (let batch = told(sightings, 7000); batch.length > 0; batch = told(sightings, 7000), batches++) {
      t.ok(batch.reduce((sum, [, added]) => sum + (added as number[]).length, 0) <= 7000);
      for (const [name, added] of batch)
        for (const tag of added as number[]) {
          if (seen.get(name as string)!.has(tag)) t.fail(`${String(name)} told ${tag} twice`);
          seen.get(name as string)!.add(tag);
        }
    }
    t.same(
      [...seen.values()].map(({ size }) => size),
      [frames, frames, frames],
      `turn ${turn}`,
    );
    t.equal(batches, 5);
    t.same([...sightings.holding('shop', tagsOf(0, 7000, 12_000, 19_999, 20_000))], [1, 2, 2, 1, 0]);
    sightings.untell('shop');
    t.same([...sightings.holding('shop', tagsOf(7000))], [0]);
  }
  t.end();
});

void t.test('as the naive way', (t) => {
  const frames = 11;
  const step = fc.oneof(
    { weight: 6, arbitrary: fc.record({ frame: fc.nat(frames - 1), page: fc.option(fc.nat(5), { nil: undefined }) }) },
    { weight: 4, arbitrary: fc.constant('pass' as const) },
    { weight: 2, arbitrary: fc.record({ take: fc.integer({ min: 1, max: 4 }) }) },
    { weight: 1, arbitrary: fc.constantFrom('anew' as const, 'gone' as const, 'untell' as const) },
  );
  fc.assert(
    fc.property(fc.array(step, { maxLength: 120 }), fc.integer({ min: 1, max: 3 }), (steps, passes) => {
      const sightings = new Sightings({ passes });
      let guest = new SeenGuest(frames);
      // by frame: its page at the last pass, and how many passes saw it since it changed
      let seen: { page: number | undefined; same: number }[] = [];
      const reported = new Set<number>();
      for (const one of steps) {
        if (typeof one === 'object' && 'frame' in one) guest.write(one.frame, one.page);
        else if (typeof one === 'object') {
          const [difference] = sightings.take('shop', one.take);
          for (const tag of numbersOf(difference?.removed ?? tagsOf()))
            if (!reported.delete(tag)) throw new Error(`${tag} was not told`);
          for (const tag of numbersOf(difference?.added ?? tagsOf())) {
            if (reported.has(tag)) throw new Error(`${tag} was told`);
            reported.add(tag);
          }
          if (difference?.gone === true && reported.size > 0) throw new Error('it left, and holds something');
        } else if (one === 'pass') {
          pass(sightings, 'a', guest);
          seen = guest.pages.map((page, i) => ({
            page,
            same: seen[i] !== undefined && seen[i].page === page ? seen[i].same + 1 : 0,
          }));
        } else if (one === 'gone') {
          sightings.gone('a');
          guest = new SeenGuest(frames);
          seen = [];
        } else if (one === 'untell') {
          sightings.untell('shop');
          reported.clear();
        } else {
          guest.anew();
          // what waited waits anew
          seen = seen.map(({ page, same }) => ({ page: same < passes ? NaN : page, same }));
        }
        const held = new Set(seen.flatMap(({ page, same }) => (page !== undefined && same >= passes ? [page] : [])));
        const now = sightings.stableTags('a');
        const stable = new Set(numbersOf(now?.tags ?? tagsOf()));
        if (stable.size !== held.size || [...held].some((tag) => !stable.has(tag)))
          throw new Error(`stable: ${[...stable].join()}, not ${[...held].join()}`);
        const holding = sightings.holding('shop', tagsOf(0, 1, 2, 3, 4, 5));
        if (holding.some((count, tag) => count !== (reported.has(tag) ? 1 : 0))) throw new Error('holding');
      }
      while (sightings.stats().pending > 0) {
        const { added, removed } = sightings.take('shop', 3)[0]!;
        for (const tag of numbersOf(removed)) reported.delete(tag);
        for (const tag of numbersOf(added)) reported.add(tag);
      }
      const left = numbersOf(sightings.stableTags('a')?.tags ?? tagsOf()).sort();
      if (left.join() !== [...reported].sort().join()) throw new Error('what is told in the end');
    }),
    { numRuns: 500 },
  );
  t.pass();
  t.end();
});
