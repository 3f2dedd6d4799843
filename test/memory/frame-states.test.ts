/** Frame states and what guest memory holds, through the addon, against a model: whatever is done in whatever order. */
import fc from 'fast-check';
import t, { type Test } from 'tap';
import { FrameState, Outcome, OUTCOME_FIELDS, OutcomeField } from '../../src/memory/native.ts';
import { PageCache, TAG_BYTES } from '../../src/pages/cache.ts';
import { bytesOf, cachePath, KEYS, makeGuest, makePage, makeTag } from '../pages/support.ts';

const FRAMES = 12;
const PAGE = 4096;
const { Missing, Wanted, InFlight, Present, Zero } = FrameState;
const needs = (state: FrameState): boolean => state === Missing || state === Wanted || state === InFlight;
const ZEROS = Buffer.alloc(PAGE);
/** The page of frame n: frames 3 and 7 are zero in the manifest. */
const isZero = (frame: number): boolean => frame === 3 || frame === 7;
const pages = Array.from({ length: FRAMES }, (_, n) => Buffer.from(isZero(n) ? ZEROS : makePage(n)));

type Step = { at: number; count: number } & (
  { do: 'install' | 'zero' | 'mark' | 'cache' | 'next' } | { do: 'claim' | 'release'; as: 1 | 2 }
);
const run = { at: fc.nat(FRAMES - 1), count: fc.integer({ min: 1, max: 5 }) };
const step: fc.Arbitrary<Step> = fc.oneof(
  fc.record({ ...run, do: fc.constantFrom('install' as const, 'zero', 'mark', 'cache', 'next') }),
  fc.record({ ...run, do: fc.constantFrom('claim' as const, 'release'), as: fc.constantFrom(1 as const, 2) }),
);

/** Plays steps on a guest of its own; pages 0 to 5 are in the cache. */
function play(t: Test, steps: Step[]): void {
  const { session, read } = makeGuest(t, FRAMES);
  const path = `${cachePath(t)}-${session.id}`;
  const cache = PageCache.open({ path, bytes: bytesOf(FRAMES) });
  const model = new Array<FrameState>(FRAMES).fill(Missing);
  const content = new Array<Buffer>(FRAMES).fill(ZEROS);
  const outcome = new Int32Array(OUTCOME_FIELDS);
  const expect = (what: string, got: unknown, wanted: unknown): void => {
    if (got !== wanted) throw new Error(`${what}: ${String(got)}, not ${String(wanted)}`);
  };
  try {
    cache.setKey(0, KEYS[0]!);
    const tags = new Uint8Array(new SharedArrayBuffer(FRAMES * TAG_BYTES));
    for (let n = 0; n < FRAMES; n++) if (!isZero(n)) tags.set(makeTag(0, pages[n]!), n * TAG_BYTES);
    for (let n = 0; n < 6; n++) if (!isZero(n)) cache.insert(0, tags, n * TAG_BYTES, pages[n]!);
    for (const { at, count: asked, ...one } of steps) {
      const count = Math.min(asked, FRAMES - at);
      const frames = Array.from({ length: count }, (_, i) => at + i);
      const set = (frame: number, state: FrameState, page = content[frame]!): void => {
        model[frame] = state;
        content[frame] = page;
      };
      switch (one.do) {
        case 'install': {
          const source = Buffer.concat(pages.slice(at, at + count));
          const fresh = frames.filter((frame) => needs(model[frame]!));
          expect('install', session.install(at, count, source, 0, outcome), Outcome.Done);
          expect('installed', outcome[OutcomeField.Installed], fresh.length);
          expect('skipped', outcome[OutcomeField.Skipped], count - fresh.length);
          for (const frame of fresh) set(frame, Present, pages[frame]);
          break;
        }
        case 'cache': {
          const lacks = frames.find((frame) => needs(model[frame]!) && !isZero(frame) && frame >= 6);
          const said = session.installFromCache(at, count, tags, cache.id, outcome);
          expect('from the cache', said, lacks === undefined ? Outcome.Done : Outcome.Absent);
          if (lacks !== undefined) expect('lacks', outcome[OutcomeField.Next], lacks);
          for (const frame of frames) {
            if (frame === lacks) break;
            if (needs(model[frame]!)) set(frame, isZero(frame) ? Zero : Present, pages[frame]);
          }
          break;
        }
        case 'zero':
          // of no effect on what has content, or still has to get it
          expect('zero', session.installZero(at, count, outcome), Outcome.Done);
          for (const frame of frames) if (model[frame] === Zero) set(frame, Present);
          break;
        case 'mark': {
          const fresh = frames.filter((frame) => needs(model[frame]!));
          expect('mark', session.markZero(at, count), fresh.length);
          for (const frame of fresh) set(frame, Zero);
          break;
        }
        case 'claim': {
          let changed: number[];
          if (one.as === Wanted) {
            changed = frames.filter((frame) => model[frame] === Missing || model[frame] === InFlight);
          } else {
            const end = frames.findIndex((frame) => model[frame] !== Missing);
            changed = end < 0 ? frames : frames.slice(0, end);
          }
          expect('claim', session.claim(at, count, one.as), changed.length);
          for (const frame of changed) set(frame, one.as);
          break;
        }
        case 'release': {
          const changed = frames.filter((frame) => model[frame] === one.as);
          expect('release', session.release(at, count, one.as), changed.length);
          for (const frame of changed) set(frame, Missing);
          break;
        }
        case 'next':
          expect(
            'next',
            session.nextMissing(at),
            model.findIndex((state, frame) => frame >= at && state === Missing),
          );
      }
      expect('states', [...session.table].join(), model.join());
      const counts = session.counts();
      expect('outstanding', counts.outstanding, model.filter(needs).length);
      expect('present', counts.present, model.filter((state) => state === Present).length);
      expect('zero', counts.zero, model.filter((state) => state === Zero).length);
      expect('foreign', counts.foreign, 0);
      // a page that came is never replaced; one that did not come is a hole, which the file has as zeros
      for (let n = 0; n < FRAMES; n++) expect(`frame ${n}`, Buffer.compare(read(n), content[n]!), 0);
    }
    if (model.some(needs)) {
      try {
        session.unregister();
      } catch {
        return;
      }
      throw new Error('memory was let go of although content is missing');
    }
    session.unregister();
  } finally {
    cache.close();
  }
}

void t.test('any order of claims, installs, hits and zeros', (t) => {
  fc.assert(
    fc.property(fc.array(step, { maxLength: 40 }), (steps) => play(t, steps)),
    { numRuns: 150 },
  );
  t.end();
});
