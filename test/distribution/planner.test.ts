/** Plans against a plain model, and that a large one holds no thread up. */
import fc from 'fast-check';
import t from 'tap';
import { toWords } from '../../src/directory/tag-words.ts';
import type { Holders } from '../../src/directory/directory.ts';
import { HELD, HeldPages } from '../../src/distribution/held-pages.ts';
import { DISTRIBUTION_DEFAULTS } from '../../src/distribution/info.ts';
import { Turns } from '../../src/distribution/pieces.ts';
import { makePlan, type DomainPlan } from '../../src/distribution/planner.ts';
import { Score } from '../../src/distribution/score.ts';
import { WireMeans } from '../../src/distribution/wire-means.ts';
import { FakeCache, keysOf, range, tagsOf } from './support.ts';

const domain = { name: 'd', id: 1, mark: '', openKey: () => undefined as never };

/** A directory that tells of pages with so many guests at `a` and `b`, `some` at a time. */
function surroundings(tags: Uint8Array, counts: readonly (readonly [number, number])[], some: number) {
  const page = (from: number): Holders & { tags: Uint8Array } => {
    const part = counts.slice(from, from + some);
    return {
      tags: tags.subarray(from * 16, (from + part.length) * 16),
      hosts: ['a', 'b'],
      guests: Uint32Array.from(part, ([a, b]) => a + b),
      first: Uint32Array.from({ length: part.length + 1 }, (_, i) => 2 * i),
      host: Uint16Array.from({ length: 2 * part.length }, (_, i) => i % 2),
      held: Uint16Array.from(part.flat()),
    };
  };
  // made before: a plan's time is its own
  const pages = range(0, Math.ceil(counts.length / some)).map((nth) => page(nth * some));
  if (pages.length === 0) pages.push(page(0));
  return {
    domains: () => [domain],
    members: () => ['a', 'b'].map((host) => ({ host, url: `http://${host}` })),
    guestTags: async () => Promise.reject(new Error('none')),
    directory: () => ({
      ...{ domain: 'd', self: 'c' },
      directory: {
        holders: async () => Promise.reject(new Error('not asked')),
        hints: async () => Promise.resolve([]),
        lacking: async (_domain: string, _host: string, { cursor = '0' }: { cursor?: string }) => {
          const next = Number(cursor) + some;
          return Promise.resolve({
            ...pages[Number(cursor) / some]!,
            ...(next < counts.length ? { cursor: `${next}` } : {}),
          });
        },
      },
    }),
  };
}

function manyTags(count: number): Uint8Array {
  const tags = new Uint32Array(count * 4);
  for (let i = 0; i < count; i++) tags[i * 4] = i + 1;
  return new Uint8Array(tags.buffer);
}

void t.test('a plan equals the naive one', async () => {
  const page = fc.record({ a: fc.nat(4), b: fc.nat(4), state: fc.constantFrom('none', 'held', 'cached', 'evicted') });
  await fc.assert(
    fc.asyncProperty(fc.array(page, { maxLength: 40 }), fc.nat(30), async (pages, room) => {
      const tags = tagsOf(...range(1, pages.length));
      const words = toWords(tags);
      const keys = keysOf(tags);
      const cache = new FakeCache();
      const held = new HeldPages();
      for (const [i, { state }] of pages.entries()) {
        if (state === 'held' || state === 'cached') cache.pages.add(keys[i]!);
        if (state === 'held' || state === 'evicted')
          held.add(words, i * 4, { domain: 1, guests: 2, likelihood: 0.5, wireBytes: 2000 }, 0);
      }
      const around = surroundings(
        tags,
        pages.map(({ a, b }) => [a, b] as const),
        7,
      );
      const parts = {
        ...{ around, cache, held, score: new Score(() => 0), means: new WireMeans(), settings: DISTRIBUTION_DEFAULTS },
        ...{ nowMs: () => 0, unixMs: () => 0 },
      };
      const planned = await makePlan(parts, new Map(), () => room * 4096);
      const stable = Math.sqrt(2 / 3);
      const ranked = pages
        .map(({ a, b, state }, i) => {
          const expected = (1 - 0.75 ** (a + b)) * stable * 2000;
          const isHeld = state === 'held';
          const rank = Math.fround((expected / 628) * (isHeld ? 1.25 : 1));
          return { i, rank, isHeld, state, worth: expected >= (isHeld ? 128 : 628) && expected > 0 };
        })
        .filter(({ state, worth }) => state !== 'cached' && worth);
      const levels = [...new Set(ranked.map(({ rank }) => rank))].sort((x, y) => y - x);
      const plan = planned.plans.get(1)!;
      const brought = [...plan.queue].map((row) => keys.indexOf(keysOf(plan.table.index.tagsOf([row]))[0]!));
      const kept = range(0, pages.length).filter((i) => {
        const row = held.find(1, words, i * 4);
        return row >= 0 && held.state(row) === HELD;
      });
      // which of equals is open; how many of each rank are chosen is not
      let left = room;
      for (const level of levels) {
        const equal = ranked.filter(({ rank }) => rank === level);
        const chosen = equal.filter(({ i }) => brought.includes(i) || kept.includes(i)).length;
        if (chosen !== Math.min(left, equal.length)) return false;
        left -= chosen;
      }
      const isWorth = (i: number, want: boolean) => ranked.some((entry) => entry.i === i && entry.isHeld === want);
      return brought.every((i) => isWorth(i, false)) && kept.every((i) => isWorth(i, true));
    }),
    { numRuns: 200 },
  );
});

/** Milliseconds that each piece of work took, from one look at the time to the next. */
class WatchedTurns extends Turns {
  readonly pieces: number[] = [];
  #last = performance.now();

  override get over(): boolean {
    const now = performance.now();
    this.pieces.push(now - this.#last);
    const over = super.over;
    this.#last = performance.now();
    return over;
  }
}

void t.test('a plan of many candidates is in small pieces', async (t) => {
  const count = Number(process.env.PAGETIDE_PLAN_PAGES ?? 200_000);
  const tags = manyTags(count);
  const around = surroundings(
    tags,
    range(0, count).map((i) => [1 + (i % 5), 1] as const),
    8192,
  );
  const cache = { has: (_: Uint8Array, present: Uint8Array) => present.fill(0).length, setValue: () => 0 };
  const held = new HeldPages();
  const words = toWords(tags);
  const parts = {
    ...{ around, cache, held, score: new Score(() => 0), means: new WireMeans() },
    ...{ settings: DISTRIBUTION_DEFAULTS, nowMs: () => 0, unixMs: () => 0 },
  };
  // what the machine or the collector adds to a piece it seldom adds to the same one of each plan: the least is the work
  const least: number[][] = [[], []];
  const took: number[][] = [[], []];
  for (let round = 0; round < 4; round++) {
    let before = new Map<number, DomainPlan>();
    for (const nth of [0, 1]) {
      const turns = new WatchedTurns();
      const cpu = process.cpuUsage();
      const planned = await makePlan({ ...parts, turns }, before, () => 1e12);
      const { user, system } = process.cpuUsage(cpu);
      took[nth]!.push((user + system) / 1000);
      turns.pieces.forEach((ms, piece) => (least[nth]![piece] = Math.min(ms, least[nth]![piece] ?? Infinity)));
      t.equal(planned.bring, count);
      before = planned.plans;
    }
  }
  for (const [nth, name] of ['the first plan', 'the next one'].entries()) {
    const longest = Math.max(...least[nth]!);
    const at = least[nth]!.indexOf(longest);
    t.comment(
      `${count} pages, ${name}: ${Math.min(...took[nth]!).toFixed(0)} ms of CPU, ${least[nth]!.length} pieces; the longest ${longest.toFixed(1)} ms (${at})`,
    );
    t.ok(longest < 10, `${name}: no piece of 10 ms`);
  }
  for (let i = 0; i < count; i++) held.add(words, i * 4, { domain: 1, guests: 2, likelihood: 0.5, wireBytes: 2000 }, 0);
  const turns = new WatchedTurns();
  cache.has = (_, present) => present.fill(1).length;
  const kept = await makePlan({ ...parts, turns }, new Map(), () => (count * 4096) / 2);
  t.match(kept, { bring: 0, chosen: Math.floor(count / 2), leaving: Math.ceil(count / 2) });
});
