/** Rounds of copying, against a source whose guest goes on writing: the pages of the files and the tags, after every round. */
import { mkdtempSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import fc from 'fast-check';
import t, { type Test } from 'tap';
import { AsidePages } from '../../src/memory/aside-pages.ts';
import { FillService, type FillRound } from '../../src/memory/fill-service.ts';
import { FrameState, Outcome, OutcomeField } from '../../src/memory/native.ts';
import type { NamedPages } from '../../src/memory/named-pages.ts';
import { Serving } from '../../src/memory/serving.ts';
import { ArrivingNames } from '../../src/migration/arriving-names.ts';
import { DomainKey, TAG_BYTES } from '../../src/pages/tags.ts';
import { FAKE_PAGE, FakeSession } from './fake-session.ts';

const FRAMES = 64;
const tick = (): Promise<void> => new Promise((resolve) => setImmediate(resolve));

/** The page that is named `id`; 0: the zero page. */
function page(id: number): Uint8Array {
  const bytes = new Uint8Array(FAKE_PAGE);
  new DataView(bytes.buffer).setUint32(0, id, true);
  return bytes;
}

function idAt(tags: Uint8Array, frame: number): number {
  return new DataView(tags.buffer, tags.byteOffset).getUint32(frame * TAG_BYTES, true);
}

class World {
  readonly session = new FakeSession(FRAMES);
  readonly names: ArrivingNames;
  /** The source's memory: a page's name a frame. */
  readonly source = new Uint32Array(FRAMES);
  /** Batches that are asked for and not answered. */
  readonly open: Uint32Array[] = [];
  readonly troubles: string[] = [];
  up = true;
  /** Batches that must come whole. */
  readonly whole = new Set<Uint32Array>();
  readonly aside = new AsidePages(FAKE_PAGE);
  fill: FillService | undefined;
  readonly #next: Uint32Array;
  readonly #first: Uint32Array;
  readonly #folder: string;

  constructor() {
    this.#folder = mkdtempSync('/dev/shm/pt-rounds-');
    const key = { key: new DomainKey(Buffer.alloc(32, 7)), shared: undefined };
    this.names = ArrivingNames.create(join(this.#folder, 'tags'), FRAMES, key, true);
    ({ next: this.#next, first: this.#first } = this.names.spec);
    this.session.reset(0, FRAMES, FrameState.Zero);
  }

  close(): void {
    this.names.remove();
    rmSync(this.#folder, { recursive: true, force: true });
  }

  /** The source tells what it has now. */
  tell(): void {
    const { told } = this.names;
    for (let frame = 0; frame < FRAMES; frame++)
      new DataView(told.tags.buffer).setUint32(frame * TAG_BYTES, this.source[frame]!, true);
    told.touch(0, FRAMES);
  }

  begin(round: FillRound): Promise<string> {
    const { tags } = this.names.manifest;
    const named: NamedPages = {
      keeps: false,
      verify: (frame, bytes, offset) =>
        new DataView(bytes.buffer, bytes.byteOffset).getUint32(offset, true) === idAt(tags, frame),
      isZero: (frame) => idAt(tags, frame) === 0,
      install: (_session, frame, _count, outcome) => {
        outcome.fill(0);
        outcome[OutcomeField.Next] = frame;
        return Outcome.Absent;
      },
      next: (frame) => this.#next[frame]!,
      ring: (frame) => this.#first[frame]!,
      keep: () => undefined,
    };
    const fill = new FillService({
      session: this.session,
      serving: new Serving(),
      round,
      named,
      remote: {
        request: (runs, whole) => {
          if (this.up) this.open.push(runs);
          if (whole === true) this.whole.add(runs);
          return this.up;
        },
      },
      aside: this.aside,
      batchFrames: 8,
      window: 3,
      bandwidth: 0,
      onTrouble: (_frame, error) => this.troubles.push(error.code),
    });
    this.fill = fill;
    return fill.run().finally(() => {
      this.fill = undefined;
      this.open.length = 0; // what is still answered is dropped, see remote-fill.ts
    });
  }

  /**
   * Answers a batch with what the source has now.
   * @param collides it was made of deltas, in which a digest took two blocks for the same
   */
  answer(which: number, collides = false): void {
    const [runs] = this.open.splice(which % this.open.length, 1);
    if (runs === undefined) return;
    const frames: number[] = [];
    for (let i = 0; i < runs.length; i += 2) for (let n = 0; n < runs[i + 1]!; n++) frames.push(runs[i]! + n);
    const zero = new Uint8Array((frames.length + 7) >> 3);
    const pages: number[] = [];
    frames.forEach((frame, i) => {
      const id = this.source[frame]!;
      if (id === 0) zero[i >> 3]! |= 1 << (i & 7);
      else pages.push(...page(id));
    });
    const bytes = Buffer.from(pages);
    const ofDeltas = !this.whole.has(runs);
    if (collides && ofDeltas && bytes.length > 0) bytes.writeUInt32LE(0xabcd, 0);
    this.fill?.answer(runs, { runs, zero, pages: bytes, wireBytes: pages.length, from: 'source', ofDeltas });
    bytes.fill(0xff);
  }

  /** Whatever is wrong: a frame that is not as its tag says, or is claimed by nobody who lives. */
  check(): void {
    const { tags } = this.names.manifest;
    for (let frame = 0; frame < FRAMES; frame++) {
      const [id, state, reads] = [idAt(tags, frame), this.session.table[frame], this.session.reads(frame)];
      const what = `frame ${frame}: state ${state}, tag ${id}, reads ${reads}`;
      if ((state === FrameState.Zero) !== (id === 0)) throw new Error(what);
      if (state === FrameState.Zero && reads !== undefined) throw new Error(what);
      if (state === FrameState.Present && reads !== id) throw new Error(what);
      if (state === FrameState.InFlight || state === FrameState.Installing) throw new Error(what);
    }
  }
}

/** Until the round is over, whatever is asked for is answered. */
async function played(world: World, running: Promise<string>, collides = false): Promise<string> {
  const ended: { as?: string; error?: unknown } = {};
  void running.then(
    (as) => (ended.as = as),
    (error: unknown) => (ended.error = error),
  );
  const deadline = performance.now() + 20_000;
  while (ended.as === undefined && ended.error === undefined) {
    if (performance.now() > deadline) throw new Error('the round does not end');
    if (world.open.length > 0) world.answer(0, collides);
    await tick();
  }
  if (ended.error !== undefined) throw ended.error as Error;
  return ended.as!;
}

type Step =
  | { do: 'write'; frame: number; id: number }
  | { do: 'answer'; which: number; collides: boolean }
  | { do: 'drop' }
  | { do: 'halt' }
  | { do: 'round' };

/** Few names: many frames have the same page, and one is often zero. */
const ids = fc.nat(7);
const steps: fc.Arbitrary<Step> = fc.oneof(
  {
    weight: 12,
    arbitrary: fc.record({ do: fc.constant('write' as const), frame: fc.nat(FRAMES - 1), id: ids }),
  },
  {
    weight: 10,
    arbitrary: fc.record({ do: fc.constant('answer' as const), which: fc.nat(9), collides: fc.boolean() }),
  },
  { weight: 1, arbitrary: fc.record({ do: fc.constant('drop' as const) }) },
  { weight: 1, arbitrary: fc.record({ do: fc.constant('halt' as const) }) },
  { weight: 3, arbitrary: fc.record({ do: fc.constant('round' as const) }) },
);

void t.test('whatever the guest writes and the network does, in the end every page is right', async (t) => {
  await fc.assert(
    fc.asyncProperty(
      fc.array(ids, { minLength: FRAMES, maxLength: FRAMES }),
      fc.array(steps, { maxLength: 120 }),
      async (initial, script) => {
        const world = new World();
        try {
          world.source.set(initial);
          let running: Promise<string> | undefined;
          for (const step of script) {
            if (step.do === 'write') world.source[step.frame] = step.id;
            if (step.do === 'answer' && world.open.length > 0) world.answer(step.which, step.collides);
            if (step.do === 'drop') {
              world.up = false;
              world.open.length = 0;
              world.fill?.disconnected();
              await tick();
              world.up = true;
              world.fill?.connected();
            }
            if (step.do === 'halt') world.fill?.stop();
            if (step.do === 'round') {
              if (running !== undefined) await played(world, running);
              world.check();
              world.tell();
              world.names.takeTold(world.session);
              world.check();
              running = world.begin('loose');
            }
            await tick();
          }
          if (running !== undefined) await played(world, running);
          world.check();
          // it is stopped
          world.tell();
          world.names.takeTold(world.session);
          if ((await played(world, world.begin('strict'), true)) !== 'filled') throw new Error('it did not end well');
          world.check();
          for (let frame = 0; frame < FRAMES; frame++) {
            const reads = world.session.reads(frame) ?? 0;
            if (reads !== world.source[frame]) throw new Error(`frame ${frame} reads ${reads}`);
          }
          if (world.troubles.length > 0) throw new Error(world.troubles.join());
        } finally {
          world.close();
        }
      },
    ),
    { numRuns: 80 },
  );
  t.pass('in every run');
});

function open(t: Test): World {
  const world = new World();
  t.teardown(() => world.close());
  return world;
}

void t.test('a page that changed is set aside, and is nothing to tell of', async (t) => {
  const world = open(t);
  world.source.fill(3, 0, 4); // one ring of four
  world.source.fill(9, 4, 6);
  world.tell();
  world.names.takeTold(world.session);
  world.source[0] = 5; // all changed but the last of the ring
  world.source[1] = 0;
  world.source[2] = 5;
  world.source.fill(8, 4, 6);
  t.equal(await played(world, world.begin('loose')), 'filled');
  t.match(
    [0, 1, 2, 3].map((frame) => world.session.reads(frame)),
    [3, 3, 3, 3],
    'another frame still had the page: it was asked for, too, and all have got it',
  );
  t.same(world.session.counts().wanted, 2, 'nobody had the other any more');
  t.same(world.troubles, []);
  world.tell();
  t.same(world.names.takeTold(world.session), { missing: 4, zero: 1 });
  t.equal(await played(world, world.begin('loose')), 'filled');
  t.same(world.session.counts().outstanding, 0);
  world.check();
});

void t.test(
  'when the guest stands still a page that a digest got wrong comes whole, and is nothing to tell of',
  async (t) => {
    const world = open(t);
    world.source.set([3, 4, 5, 5, 6]);
    world.tell();
    world.names.takeTold(world.session);
    t.equal(await played(world, world.begin('strict'), true), 'filled');
    t.equal(world.whole.size, 1);
    t.same(world.troubles, []);
    world.check();
    t.same(world.session.counts().outstanding, 0);
  },
);

void t.test('a page that came too early is there when it is told', async (t) => {
  const world = open(t);
  world.source.set([3, 4]);
  world.tell();
  world.names.takeTold(world.session);
  world.source.set([8, 9]);
  t.equal(await played(world, world.begin('loose')), 'filled');
  t.equal(world.session.counts().wanted, 2);
  world.source[1] = 7; // once more
  world.tell();
  world.names.takeTold(world.session);
  const running = world.begin('strict');
  await tick();
  t.same(world.open, [Uint32Array.of(1, 1)], 'the other is not asked for');
  t.equal(await played(world, running), 'filled');
  t.same([world.session.reads(0), world.session.reads(1)], [8, 7]);
  world.check();
});

void t.test('when the guest stands still a wrong page is told, and asked for again', async (t) => {
  const world = open(t);
  world.source.fill(3, 0, 1);
  world.tell();
  world.names.takeTold(world.session);
  world.source[0] = 4;
  const running = world.begin('strict');
  const deadline = performance.now() + 20_000;
  while (world.troubles.length === 0 && performance.now() < deadline) {
    if (world.open.length > 0) world.answer(0);
    await tick();
  }
  t.same(world.troubles, ['PT_PAGE_MISMATCH']);
  t.equal(world.session.reads(0), undefined);
  world.source[0] = 3;
  t.equal(await played(world, running), 'filled');
  t.equal(world.session.reads(0), 3);
});

void t.test('a round that is halted has claimed nothing', async (t) => {
  const world = open(t);
  world.source.fill(3, 0, 64);
  world.source.forEach((_, frame) => (world.source[frame] = frame + 1));
  world.tell();
  world.names.takeTold(world.session);
  const running = world.begin('loose');
  await tick();
  world.answer(0);
  world.fill?.stop();
  t.equal(await running, 'stopped');
  world.check();
  t.equal(world.session.counts().present, 8);
});

void t.test('what cannot be written ends a round', async (t) => {
  const world = open(t);
  world.source.fill(3, 0, 8);
  world.tell();
  world.names.takeTold(world.session);
  world.session.inject = (frame) => (frame === 5 ? Outcome.Failed : undefined);
  world.session.errno = 28;
  await t.rejects(played(world, world.begin('loose')), { code: 'PT_NO_SPACE', message: /frame 5/ });
  world.session.inject = () => undefined;
  t.equal(await played(world, world.begin('loose')), 'filled', 'another fares better');
  world.check();
});
