/** Which guest goes where: what any plan keeps to, and what it is chosen by. */
import fc from 'fast-check';
import t from 'tap';
import {
  areAlike,
  planEvacuation,
  type EvacuationGuest,
  type EvacuationPlan,
  type EvacuationTarget,
} from '../../src/migration/evacuation-plan.ts';
import { PagetideError } from '../../src/errors.ts';

const GIB = 2 ** 30;
const PAGE_BYTES = 4096;
const REFUSED = new PagetideError('PT_MODE_UNSUPPORTED', 'no').toJSON();

function guest(name: string, pages: number[], more: Partial<EvacuationGuest> = {}): EvacuationGuest {
  const known = { pages: Uint32Array.from(pages), pageBytes: PAGE_BYTES, unknownBytes: 0 };
  return { name, memory: GIB, domain: 'shop', ...known, ...more };
}

function target(url: string, room = 64 * GIB, has: number[] = [], refuses: string[] = []): EvacuationTarget {
  const table = new Uint8Array(Math.max(0, ...has.map((page) => page + 1)));
  for (const page of has) table[page] = 1;
  return {
    ...{ url, room, has: new Map([['shop', table]]) },
    refuses: new Map(refuses.map((name) => [name, REFUSED])),
  };
}

function range(first: number, count: number): number[] {
  return Array.from({ length: count }, (_, at) => first + at);
}

/** Bytes that have to come, all in all, where guests go one after the other in that order: counted apart from the planner. */
function costOf(
  plan: EvacuationPlan,
  guests: readonly EvacuationGuest[],
  targets: readonly EvacuationTarget[],
): number[] {
  const there = new Map(
    targets.map(({ url, has }) => {
      const pages = [...has].flatMap(([domain, table]) =>
        [...table].flatMap((is, page) => (is ? [`${domain} ${page}`] : [])),
      );
      return [url, new Set(pages)];
    }),
  );
  return plan.placements.map(({ guest: name, to }) => {
    const { domain, pages, pageBytes, unknownBytes } = guests.find((one) => one.name === name)!;
    const has = there.get(to)!;
    let bytes = unknownBytes;
    for (const page of pages) {
      if (domain === undefined || !has.has(`${domain} ${page}`)) bytes += pageBytes;
      has.add(`${domain ?? name} ${page}`);
    }
    return bytes;
  });
}

void t.test('siblings follow each other to one host, and the cheapest begins', (t) => {
  const like = [0, 1, 2].map((at) => guest(`like-${at}`, [...range(0, 100), 200 + at]));
  const unlike = guest('unlike', range(300, 20));
  const { placements, left } = planEvacuation([...like, unlike], [target('http://b'), target('http://c')]);
  t.same(left, []);
  t.equal(placements[0]!.guest, 'unlike', 'it has the fewest pages');
  const family = placements.filter(({ guest: name }) => name.startsWith('like'));
  t.equal(new Set(family.map(({ to }) => to)).size, 1, 'one target');
  t.same(
    family.map(({ bytes }) => bytes / PAGE_BYTES),
    [101, 1, 1],
    'the first one pays for the pages',
  );
  t.end();
});

void t.test('a guest goes to where its pages are', (t) => {
  const targets = [target('http://b', 64 * GIB, range(0, 10)), target('http://c', 8 * GIB, range(0, 90))];
  const { placements } = planEvacuation([guest('one', range(0, 100))], targets);
  t.same(placements, [{ guest: 'one', to: 'http://c', bytes: 10 * PAGE_BYTES }]);
  const refusing = [targets[0]!, target('http://c', 8 * GIB, range(0, 90), ['one'])];
  t.match(planEvacuation([guest('one', range(0, 100))], refusing).placements, [{ to: 'http://b' }], 'that can take it');
  const equal = [target('http://b', 8 * GIB), target('http://c', 9 * GIB)];
  t.match(
    planEvacuation([guest('one', [1])], equal).placements,
    [{ to: 'http://c' }],
    'else to where there is more room',
  );
  t.end();
});

void t.test('a domain is nobody else’s, and guests of none share nothing', (t) => {
  const guests = [
    guest('a', range(0, 10)),
    guest('b', range(0, 10), { domain: 'other' }),
    guest('c', [], { domain: undefined, unknownBytes: 5 * PAGE_BYTES }),
  ];
  const { placements } = planEvacuation(guests, [target('http://b', 64 * GIB, range(0, 10))]);
  t.same(
    placements.map(({ guest: name, bytes }) => [name, bytes / PAGE_BYTES]),
    [
      ['a', 0],
      ['c', 5],
      ['b', 10],
    ],
  );
  t.end();
});

void t.test('room is used so that most guests get there', (t) => {
  // cheapest first the small ones would take what the large one needs
  const guests = [
    guest('small-1', [1], { memory: GIB }),
    guest('small-2', [2], { memory: GIB }),
    guest('large', range(0, 50), { memory: 2 * GIB }),
  ];
  const plan = planEvacuation(guests, [target('http://b', 2 * GIB), target('http://c', 2 * GIB)]);
  t.same(plan.left, []);
  const none = planEvacuation(guests, [target('http://b', GIB / 2)]);
  t.same(none, { placements: [], left: ['small-1', 'small-2', 'large'] });
  t.end();
});

void t.test('who must not be under way at once', (t) => {
  const one = guest('one', range(0, 100));
  t.ok(areAlike(one, guest('two', range(50, 100))));
  t.notOk(areAlike(one, guest('two', range(50, 100), { domain: 'other' })));
  t.notOk(areAlike(one, guest('two', range(100, 100))), 'nothing in common');
  t.notOk(areAlike(one, guest('two', range(99, 200))), 'next to nothing');
  t.ok(areAlike(one, guest('two', [], { unknownBytes: 1 })), 'nobody knows');
  const none = { domain: undefined, pages: new Uint32Array(), unknownBytes: 1 };
  t.notOk(areAlike(guest('a', [], none), guest('b', [], none)));
  t.end();
});

void t.test('any plan', (t) => {
  const pages = fc.uniqueArray(fc.nat(40), { maxLength: 30 });
  const guests = fc
    .array(
      fc.record({
        memory: fc.integer({ min: 1, max: 8 }),
        domain: fc.constantFrom('shop', 'other', undefined),
        pages,
        unknownBytes: fc.constantFrom(0, 0, 3 * PAGE_BYTES),
      }),
      { maxLength: 10 },
    )
    .map((all) => all.map(({ pages: has, ...one }, at) => guest(`g${at}`, one.domain === undefined ? [] : has, one)));
  const targets = fc
    .array(fc.record({ room: fc.integer({ min: 0, max: 20 }), has: pages, refuses: fc.subarray(['g0', 'g1', 'g2']) }), {
      maxLength: 4,
    })
    .map((all) => all.map(({ room, has, refuses }, at) => target(`http://t${at}`, room, has, refuses)));
  fc.assert(
    fc.property(guests, targets, (all, places) => {
      const before = JSON.stringify([all, places.map(({ has }) => [...has])]);
      const plan = planEvacuation(all, places);
      const placed = plan.placements.map(({ guest: name }) => name);
      if (JSON.stringify([all, places.map(({ has }) => [...has])]) !== before)
        throw new Error('what it was given has changed');
      if (new Set([...placed, ...plan.left]).size !== all.length || placed.length + plan.left.length !== all.length)
        throw new Error('each guest is placed or left, once');
      const room = new Map(places.map((place) => [place.url, place.room]));
      for (const { guest: name, to } of plan.placements) {
        room.set(to, room.get(to)! - all.find((one) => one.name === name)!.memory);
        if (places.find(({ url }) => url === to)!.refuses.has(name)) throw new Error(`${to} refuses ${name}`);
      }
      for (const [url, rest] of room) if (rest < 0) throw new Error(`${url} has ${rest} left`);
      for (const name of plan.left) {
        const { memory } = all.find((one) => one.name === name)!;
        const fits = places.some(({ url, refuses }) => room.get(url)! >= memory && !refuses.has(name));
        if (fits) throw new Error(`there is room for ${name}`);
      }
      const costs = costOf(plan, all, places);
      for (const [at, { bytes }] of plan.placements.entries())
        if (bytes !== costs[at]) throw new Error(`${placed[at]!} is said to cost ${bytes}, it does ${costs[at]!}`);
    }),
    { numRuns: 500 },
  );
  t.pass('each guest once, within the room, at the cost that is told');
  t.end();
});

void t.test('siblings are together where nothing speaks against it', (t) => {
  const families = fc.array(fc.integer({ min: 1, max: 5 }), { minLength: 1, maxLength: 4 });
  fc.assert(
    fc.property(families, fc.integer({ min: 1, max: 4 }), (sizes, count) => {
      const all = sizes.flatMap((size, family) =>
        Array.from({ length: size }, (_, at) =>
          guest(`f${family}-${at}`, [...range(family * 100, 50), 1000 + family * 10 + at]),
        ),
      );
      const places = Array.from({ length: count }, (_, at) => target(`http://t${at}`));
      const { placements } = planEvacuation(all, places);
      for (const family of sizes.keys()) {
        const to = placements.filter(({ guest: name }) => name.startsWith(`f${family}-`)).map((one) => one.to);
        if (new Set(to).size !== 1) throw new Error(`family ${family} is torn apart: ${to.join(', ')}`);
      }
    }),
  );
  t.pass();
  t.end();
});
