/** Memory files with names, over memory of this process: what comes from the cache, from the file, and from nowhere. */
import { closeSync, ftruncateSync, openSync, readFileSync, rmSync, truncateSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import fc from 'fast-check';
import t from 'tap';
import { openLocalPages } from '../../src/memory/local-pages.ts';
import { FrameState, native, Outcome, OUTCOME_FIELDS, OutcomeField } from '../../src/memory/native.ts';
import { Serving } from '../../src/memory/serving.ts';
import { PageCache } from '../../src/pages/cache.ts';
import { DomainKey, TAG_BYTES } from '../../src/pages/tags.ts';
import { scratch } from '../guests/embedded-support.ts';
import { bytesOf, KEYS, makePage, makeTag } from '../pages/support.ts';

const PAGE = 4096;
const { Missing, Zero, Present } = FrameState;

/** Where the page of a frame is: `stale` is another page in the file, `stale-cached` too, but the cache has the right one. */
type Place = 'file' | 'cache' | 'zero' | 'stale' | 'stale-cached' | 'present';
const place = fc.constantFrom<Place>('file', 'file', 'cache', 'zero', 'stale', 'stale-cached', 'present');

interface World {
  places: Place[];
  /** Frames that the file still has, whole. */
  whole: number;
  first: number;
}

const world: fc.Arbitrary<World> = fc.array(place, { minLength: 1, maxLength: 60 }).chain((places) =>
  fc.record({
    places: fc.constant(places),
    whole: fc.oneof(fc.constant(places.length), fc.nat({ max: places.length })),
    first: fc.nat({ max: places.length - 1 }),
  }),
);

/** What a call for all frames from `first` on comes to. */
function expected({ places, whole, first }: World): { result: Outcome; next: number; states: FrameState[] } {
  const states = places.map((where): FrameState => (where === 'present' ? Present : Missing));
  let wrong = -1;
  let short = -1;
  for (let frame = first; frame < places.length && short < 0; frame++) {
    const where = places[frame]!;
    if (where === 'zero') states[frame] = Zero;
    else if (where === 'cache' || where === 'stale-cached') states[frame] = Present;
    else if (where !== 'present' && frame >= whole) short = frame;
    else if (where === 'file') states[frame] = Present;
    else if (where === 'stale' && wrong < 0) wrong = frame;
  }
  if (wrong >= 0) return { result: Outcome.Wrong, next: wrong, states };
  if (short >= 0) return { result: Outcome.Short, next: short, states };
  return { result: Outcome.Done, next: places.length, states };
}

void t.test('frames get the pages of their tags, or none', (t) => {
  const folder = scratch(t);
  const key = new DomainKey(KEYS[0]!);
  t.teardown(() => key.close());
  let serial = 0;
  fc.assert(
    fc.property(world, (made) => {
      const { places, whole, first } = made;
      const frames = places.length;
      const nth = serial++;
      const [ram, memory, cachePath] = ['ram', 'memory', 'cache'].map((name) => join(folder, `${name}-${nth}`)) as [
        string,
        string,
        string,
      ];
      const cache = PageCache.open({ path: cachePath, bytes: bytesOf(frames) });
      cache.setKey(5, KEYS[0]!);
      const tags = new Uint8Array(new SharedArrayBuffer(frames * TAG_BYTES));
      const fd = openSync(memory, 'w');
      places.forEach((where, frame) => {
        const page = makePage(frame);
        if (where !== 'zero') tags.set(makeTag(0, page), frame * TAG_BYTES);
        if (where === 'cache' || where === 'stale-cached') cache.insert(5, tags, frame * TAG_BYTES, page);
        if (where.startsWith('stale')) page[100]! ^= 1;
        if (where !== 'zero') writeSync(fd, page, 0, PAGE, frame * PAGE);
      });
      // in the middle of a page, which is no page then
      ftruncateSync(fd, whole === frames ? frames * PAGE : whole * PAGE + 100);
      closeSync(fd);

      const arena = native().createArena(ram, PAGE, frames);
      truncateSync(ram, 0);
      truncateSync(ram, frames * PAGE);
      const line = readFileSync('/proc/self/maps', 'latin1')
        .split('\n')
        .find((text) => text.endsWith(ram));
      const regions = [{ hostAddress: parseInt(line!.split('-')[0]!, 16), size: frames * PAGE, offset: 0 }];
      const { fd: uffd } = native().createUserfault(0n);
      const session = native().createSession({ uffd, regions, pageSize: PAGE, shared: true });
      session.register();
      const serving = new Serving();
      const spec = { kind: 'cached-file', path: memory, tags, key: key.id, cache: cache.id, domain: 5 } as const;
      const pages = openLocalPages(spec, 4096, serving, 'fill');
      const outcome = new Int32Array(OUTCOME_FIELDS);
      try {
        places.forEach((where, frame) => {
          if (where === 'present') session.install(frame, 1, makePage(frame), 0, outcome);
        });
        const want = expected(made);
        const before = session.counts().present;
        t.equal(pages.install(session, first, frames - first, outcome), want.result, JSON.stringify(made));
        t.equal(outcome[OutcomeField.Next], want.next);
        t.equal(outcome[OutcomeField.Installed], session.counts().present - before);
        t.same([...session.table], want.states);
        const cached = places.filter((where, at) => /cache/.test(where) && at >= first && want.states[at] === Present);
        t.equal(serving.cached, cached.length);
        const content = readFileSync(ram);
        session.table.forEach((state, frame) => {
          if (state !== Present) return;
          const page = content.subarray(frame * PAGE, (frame + 1) * PAGE);
          t.equal(Buffer.compare(page, makePage(frame)), 0, `frame ${frame}`);
        });
        const end = want.result === Outcome.Short ? want.next : frames;
        const stale = places.filter(
          (where, at) => where === 'stale' && at >= first && at < Math.min(end, whole),
        ).length;
        t.ok(serving.mismatches <= stale && (want.result !== Outcome.Wrong || serving.mismatches > 0));
        // again: nothing that was wrong is right now, and it is counted once
        const counted = serving.mismatches;
        pages.install(session, first, frames - first, outcome);
        t.equal(serving.mismatches, counted);
        return true;
      } finally {
        pages.close();
        session.unregister({ force: true });
        native().destroySession(session.id);
        session.close();
        native().destroyArena(arena);
        cache.close();
        for (const path of [ram, memory, cachePath]) rmSync(path, { force: true });
      }
    }),
    { numRuns: 80 },
  );
  t.end();
});

void t.test('a file that is not there', (t) => {
  const spec = {
    kind: 'cached-file',
    path: '/nowhere',
    tags: new Uint8Array(16),
    key: 1,
    cache: 1,
    domain: 0,
  } as const;
  t.throws(() => openLocalPages(spec, 4096, new Serving(), 'demand'), { code: 'PT_MEMORY_FILE' });
  t.end();
});
