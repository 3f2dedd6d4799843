/** The fill against a session without a kernel and a source that answers when and how the test likes. */
import fc from 'fast-check';
import t from 'tap';
import { FillService, type FillOptions } from '../../src/memory/fill-service.ts';
import { FrameState, Outcome } from '../../src/memory/native.ts';
import { Serving } from '../../src/memory/serving.ts';
import { fakeNames } from './fake-names.ts';
import { FAKE_PAGE, FakeSession, pageOf } from './fake-session.ts';

const tick = (): Promise<void> => new Promise((resolve) => setImmediate(resolve));

/** What the condition looks at is moved on by timers of a few milliseconds. */
async function until(what: string, condition: () => boolean): Promise<void> {
  const deadline = performance.now() + 20_000;
  while (!condition()) {
    if (performance.now() > deadline) throw new Error(`in vain for: ${what}`);
    await tick();
  }
}

function framesOf(runs: Uint32Array): number[] {
  const frames: number[] = [];
  for (let i = 0; i < runs.length; i += 2) for (let n = 0; n < runs[i + 1]!; n++) frames.push(runs[i]! + n);
  return frames;
}

/** The answer to `runs`; frames for which `zero` holds are all zero. */
function batchOf(runs: Uint32Array, zero: (frame: number) => boolean) {
  const frames = framesOf(runs);
  const bitmap = new Uint8Array((frames.length + 7) >> 3);
  const pages: number[] = [];
  frames.forEach((frame, i) => {
    if (zero(frame)) bitmap[i >> 3]! |= 1 << (i & 7);
    else pages.push(...pageOf(frame));
  });
  return { runs, zero: bitmap, pages: Uint8Array.from(pages), wireBytes: pages.length, from: 'source' as const };
}

interface Bed {
  session: FakeSession;
  serving: Serving;
  fill: FillService;
  /** Batches asked for and not answered. */
  open: Uint32Array[];
  link: { up: boolean };
  troubles: string[];
  answer: (runs: Uint32Array, zero?: (frame: number) => boolean) => void;
}

function remote(frames: number, options: Partial<FillOptions> = {}): Bed {
  const session = new FakeSession(frames);
  const serving = new Serving();
  const open: Uint32Array[] = [];
  const link = { up: true };
  const troubles: string[] = [];
  const fill = new FillService({
    session,
    serving,
    remote: {
      request: (runs) => {
        if (link.up) open.push(runs);
        return link.up;
      },
    },
    batchFrames: 8,
    window: 3,
    bandwidth: 0,
    onTrouble: (_frame, error) => troubles.push(error.code),
    ...options,
  });
  const answer: Bed['answer'] = (runs, zero = () => false) => {
    open.splice(open.indexOf(runs), 1);
    const batch = batchOf(runs, zero);
    // as from a connection: a Buffer, and what comes next is written over it
    const pages = Buffer.from(batch.pages);
    fill.answer(runs, { ...batch, pages });
    pages.fill(0xff);
  };
  return { session, serving, fill, open, link, troubles, answer };
}

/** A fill from local pages; `broken` makes frames fail. */
function local(frames: number, options: Partial<FillOptions> = {}): Bed {
  const session = new FakeSession(frames);
  const serving = new Serving();
  const troubles: string[] = [];
  const pages = new Uint8Array(frames * FAKE_PAGE);
  for (let frame = 0; frame < frames; frame++) pages.set(pageOf(frame), frame * FAKE_PAGE);
  const fill = new FillService({
    session,
    serving,
    local: {
      install: (_session, frame, count, outcome) => session.install(frame, count, pages, frame * FAKE_PAGE, outcome),
      close: () => undefined,
    },
    batchFrames: 8,
    window: 1,
    bandwidth: 0,
    onTrouble: (_frame, error) => troubles.push(error.code),
    ...options,
  });
  return { session, serving, fill, open: [], link: { up: true }, troubles, answer: () => undefined };
}

/** One step of the world around the fill. */
type Step =
  | { do: 'answer'; which: number }
  | { do: 'refuse'; which: number }
  | { do: 'drop' }
  | { do: 'fault'; frame: number }
  | { do: 'remove'; frame: number };

const FRAMES = 96;
const steps: fc.Arbitrary<Step> = fc.oneof(
  { weight: 12, arbitrary: fc.record({ do: fc.constant('answer' as const), which: fc.nat(9) }) },
  { weight: 1, arbitrary: fc.record({ do: fc.constant('drop' as const) }) },
  { weight: 4, arbitrary: fc.record({ do: fc.constant('fault' as const), frame: fc.nat(FRAMES - 1) }) },
  { weight: 2, arbitrary: fc.record({ do: fc.constant('remove' as const), frame: fc.nat(FRAMES - 1) }) },
);
const initial = fc.constantFrom(
  FrameState.Missing,
  FrameState.Missing,
  FrameState.Missing,
  FrameState.Present,
  FrameState.Removed,
  FrameState.Zero,
  FrameState.Wanted,
);

void t.test('whatever happens around it, every frame ends right and none is installed twice', async (t) => {
  await fc.assert(
    fc.asyncProperty(
      fc.array(initial, { minLength: FRAMES, maxLength: FRAMES }),
      fc.uniqueArray(fc.nat(FRAMES - 1), { maxLength: 60 }),
      fc.array(steps, { maxLength: 40 }),
      fc.infiniteStream(fc.nat(7)),
      async (states, zeros, script, dice) => {
        const bed = remote(FRAMES);
        const { session, fill, open, link } = bed;
        const zeroSet = new Set(zeros);
        const isZero = (frame: number): boolean => zeroSet.has(frame);
        const wanted = new Set<number>();
        const removed = new Set<number>();
        states.forEach((state, frame) => {
          session.table[frame] = state;
          if (state === FrameState.Present) session.memory[frame] = pageOf(frame);
          if (state === FrameState.Wanted) wanted.add(frame);
          if (state === FrameState.Removed) removed.add(frame);
        });
        session.inject = () => (dice.next().value === 0 ? Outcome.Again : undefined);
        const outcome = new Int32Array(4);
        const running = fill.run();
        for (const step of script) {
          await tick();
          if (step.do === 'answer' && open.length > 0) bed.answer(open[step.which % open.length]!, isZero);
          if (step.do === 'drop') {
            link.up = false;
            open.length = 0;
            fill.disconnected();
            await tick();
            link.up = true;
            fill.connected();
          }
          // the fault worker, at work on the same table
          if (step.do === 'fault' && session.claim(step.frame, 1, FrameState.Wanted) === 1) wanted.add(step.frame);
          if (step.do === 'remove') {
            session.remove(step.frame);
            removed.add(step.frame);
          }
        }
        const ended: { as?: string } = {};
        const end = running.then((as) => (ended.as = as));
        await until('filled', () => {
          if (open.length > 0) bed.answer(open[open.length - 1]!, isZero);
          for (const frame of wanted) {
            if (isZero(frame)) session.markZero(frame, 1);
            else if (session.install(frame, 1, pageOf(frame), 0, outcome) !== Outcome.Done) continue;
            wanted.delete(frame);
          }
          return ended.as !== undefined;
        });
        if ((await end) !== 'filled') throw new Error(`it ended as ${ended.as}`);
        for (let frame = 0; frame < FRAMES; frame++) {
          const [state, reads] = [session.table[frame], session.reads(frame)];
          const what = `frame ${frame}: state ${state}, reads ${reads}, installed ${session.installs[frame]} times`;
          if (session.installs[frame]! > 1) throw new Error(what);
          if (removed.has(frame)) {
            if (state !== FrameState.Removed || reads !== undefined) throw new Error(what);
          } else if (isZero(frame) && states[frame] !== FrameState.Present) {
            if (state !== FrameState.Zero || reads !== undefined) throw new Error(what);
          } else if (states[frame] === FrameState.Zero) {
            if (reads !== undefined) throw new Error(what);
          } else if (state !== FrameState.Present || reads !== frame + 1) {
            throw new Error(what);
          }
        }
      },
    ),
    { numRuns: 60 },
  );
  t.pass('in every run');
});

void t.test('it asks for no more than its window, and little while a fault waits', async (t) => {
  const bed = remote(200);
  const running = bed.fill.run();
  await until('asked', () => bed.open.length === 3);
  await tick();
  t.equal(bed.open.length, 3);
  t.ok(bed.open.every((runs) => framesOf(runs).length === 8));
  bed.serving.setDemandWaiting(1);
  while (bed.open.length > 1) bed.answer(bed.open[0]!);
  t.equal(bed.open.length, 1, 'one at a time');
  bed.answer(bed.open[0]!);
  t.equal(bed.open.length, 1);
  bed.serving.setDemandWaiting(0);
  bed.answer(bed.open[0]!);
  t.equal(bed.open.length, 3, 'the window again');
  bed.fill.stop();
  t.equal(await running, 'stopped');
  t.equal(bed.session.counts().outstanding, bed.session.table.filter((state) => state === 0).length, 'nothing claimed');
});

void t.test('batches are small while a fault waits', async (t) => {
  const bed = remote(400, { batchFrames: 100 });
  bed.serving.setDemandWaiting(1);
  const running = bed.fill.run();
  await until('asked', () => bed.open.length === 1);
  t.equal(framesOf(bed.open[0]!).length, 16);
  bed.fill.stop();
  await running;
});

void t.test('it keeps to its bandwidth, from elsewhere and from here', async (t) => {
  const bandwidth = 20_000; // bytes a second
  const pages = 400; // 6,400 bytes
  const began = performance.now();
  let sent = 0;
  const early: string[] = [];
  const spend = (bytes: number): void => {
    const seconds = (performance.now() - began) / 1000;
    // what is asked for may overdraw by itself, never on top of an overdraft
    if (sent > bandwidth * seconds + bandwidth / 10 + 1) early.push(`${sent} bytes after ${seconds} s`);
    sent += bytes;
  };
  const bed = remote(pages);
  const { session } = bed;
  const asked: Uint32Array[] = [];
  const slow = new FillService({
    session,
    serving: bed.serving,
    remote: {
      request: (runs) => {
        spend(framesOf(runs).length * FAKE_PAGE);
        asked.push(runs);
        return true;
      },
    },
    batchFrames: 8,
    window: 3,
    bandwidth,
  });
  const ended: { as?: string } = {};
  void slow.run().then((as) => (ended.as = as));
  await until('filled', () => {
    const runs = asked.shift();
    if (runs !== undefined)
      slow.answer(
        runs,
        batchOf(runs, () => false),
      );
    return ended.as !== undefined;
  });
  t.same(early, []);
  const least = (pages * FAKE_PAGE - bandwidth / 10 - 8 * FAKE_PAGE) / bandwidth;
  t.ok((performance.now() - began) / 1000 >= least, 'and so takes its time');

  const from = performance.now();
  const here = local(pages, { bandwidth });
  t.equal(await here.fill.run(), 'filled');
  t.ok((performance.now() - from) / 1000 >= least, 'local pages too');
});

void t.test('a lost connection gives everything back, and it is asked for again', async (t) => {
  const bed = remote(24);
  const running = bed.fill.run();
  await until('asked', () => bed.open.length === 3);
  bed.link.up = false;
  const lost = bed.open.splice(0);
  bed.fill.disconnected();
  t.equal(bed.session.table.filter((state) => state === FrameState.Missing).length, 24);
  bed.link.up = true;
  bed.fill.connected();
  await until('asked again', () => bed.open.length === 3);
  t.same(bed.open.flatMap(framesOf).sort(), lost.flatMap(framesOf).sort());
  for (const runs of [...bed.open]) bed.answer(runs);
  t.equal(await running, 'filled');
});

void t.test('a source that refuses is left alone for a while', async (t) => {
  const bed = remote(16, { window: 1 });
  const running = bed.fill.run();
  await until('asked', () => bed.open.length === 1);
  const at = performance.now();
  bed.fill.refused(bed.open.shift()!);
  await until('asked again', () => bed.open.length === 1);
  t.ok(performance.now() - at >= 190);
  while (bed.open.length > 0) bed.answer(bed.open[0]!);
  t.equal(await running, 'filled');
});

void t.test('what cannot be installed for now is tried again, told once, and never lost', async (t) => {
  for (const [outcome, errno, code] of [
    [Outcome.Short, 0, 'PT_MEMORY_FILE'],
    [Outcome.Failed, 12, 'PT_NO_MEMORY'],
    [Outcome.Failed, 28, 'PT_NO_SPACE'],
  ] as const) {
    for (const bed of [remote(32), local(32)]) {
      let tries = 0;
      bed.session.errno = errno;
      bed.session.inject = (frame) => (frame === 13 && tries++ < 3 ? outcome : undefined);
      const running = bed.fill.run();
      const ended: { as?: string } = {};
      void running.then((as) => (ended.as = as));
      await until('filled', () => {
        for (const runs of [...bed.open]) bed.answer(runs);
        return ended.as !== undefined;
      });
      t.equal(ended.as, 'filled');
      t.ok(tries >= 3);
      t.ok(bed.troubles.length >= 1 && bed.troubles.length <= 3 && bed.troubles.every((told) => told === code));
      t.ok(bed.session.installs.every((times) => times === 1));
    }
  }
});

void t.test('a memory file that ends early: told once for as long as nothing else is left', async (t) => {
  const bed = local(32);
  let tries = 0;
  let short = true;
  bed.session.inject = (frame) => {
    if (frame < 16 || !short) return undefined;
    tries++;
    return Outcome.Short;
  };
  const running = bed.fill.run();
  await until('several tries', () => tries > 3);
  t.same(bed.troubles, ['PT_MEMORY_FILE']);
  t.equal(bed.session.counts().present, 16, 'the rest is there');
  short = false;
  t.equal(await running, 'filled');
});

void t.test("a page of somebody else ends it, with an alarm, and everything it held is anyone's", async (t) => {
  for (const make of [remote, local]) {
    const bed = make(64);
    bed.session.inject = (frame) => (frame === 13 ? Outcome.Foreign : undefined);
    const running = bed.fill.run().then(
      () => undefined,
      (error: unknown) => error,
    );
    if (make === remote) {
      await until('asked', () => bed.open.length === 3);
      bed.answer(bed.open.find((runs) => framesOf(runs).includes(13))!);
    }
    t.match(await running, { code: 'PT_FOREIGN_PAGE' });
    t.equal(bed.serving.alarms, 1);
    t.notOk(bed.session.table.includes(FrameState.InFlight), 'nothing stays claimed');
    t.equal(bed.session.reads(13), undefined);
    for (const runs of [...bed.open]) bed.answer(runs);
    t.notOk(bed.session.table.includes(FrameState.InFlight), 'nor after a late answer');
  }
});

void t.test('it ends when the guest is gone', async (t) => {
  const here = local(32);
  here.session.inject = () => Outcome.Gone;
  t.equal(await here.fill.run(), 'gone');
  const there = remote(32);
  there.session.inject = () => Outcome.Gone;
  const running = there.fill.run();
  await until('asked', () => there.open.length > 0);
  there.answer(there.open[0]!);
  t.equal(await running, 'gone');
});

void t.test('nothing is missing, but a fault waits: not filled yet', async (t) => {
  const bed = remote(4);
  bed.session.table.set([FrameState.Present, FrameState.Wanted, FrameState.Zero, FrameState.Removed]);
  const ended: { as?: string } = {};
  let looks = 0;
  const counts = bed.session.counts.bind(bed.session);
  bed.session.counts = () => {
    looks++;
    return counts();
  };
  const running = bed.fill.run().then((as) => (ended.as = as));
  await until('it has looked several times', () => looks > 3);
  t.equal(ended.as, undefined);
  bed.session.install(1, 1, pageOf(1), 0, new Int32Array(4));
  t.equal(await running, 'filled');
});

void t.test('a page that is not right keeps its batch waiting no longer than itself', async (t) => {
  const { session, serving, fill, open, troubles, answer } = remote(40, { named: fakeNames() });
  const ended: { as?: string } = {};
  void fill.run().then((as) => (ended.as = as));
  let broken = true;
  const serve = (): void => {
    const runs = open[0];
    if (runs === undefined) return;
    if (!broken || !framesOf(runs).some((frame) => frame === 5 || frame === 12)) {
      answer(runs);
      return;
    }
    open.shift();
    const batch = batchOf(runs, () => false);
    const pages = Buffer.from(batch.pages);
    framesOf(runs).forEach((frame, i) => {
      if (frame === 5 || frame === 12) pages[i * FAKE_PAGE + 7]! ^= 1;
    });
    fill.answer(runs, { ...batch, pages });
    pages.fill(0xff);
  };
  await until('all but two', () => {
    serve();
    return session.counts().present === 38;
  });
  t.equal(session.reads(5), undefined);
  t.equal(session.reads(12), undefined);
  await until('asked again, in vain', () => {
    serve();
    return serving.mismatches >= 6;
  });
  t.equal(session.counts().present, 38);
  t.same([...new Set(troubles)], ['PT_PAGE_MISMATCH']);
  broken = false;
  await until('filled', () => {
    serve();
    return ended.as !== undefined;
  });
  for (let frame = 0; frame < 40; frame++) t.equal(session.reads(frame), frame + 1);
  t.ok(session.installs.every((count) => count === 1));
});
