/** The fault service against a session without a kernel: every fault is served in the end, and with the right page. */
import fc from 'fast-check';
import t, { type Test } from 'tap';
import { PagetideError } from '../../src/errors.ts';
import { FaultService, type FaultServiceEvent } from '../../src/memory/fault-service.ts';
import { summarize } from '../../src/memory/histogram.ts';
import { FrameState, Outcome } from '../../src/memory/native.ts';
import { Serving } from '../../src/memory/serving.ts';
import { FAKE_PAGE, FakeSession, pageOf } from './fake-session.ts';

const tick = (): Promise<void> => new Promise((resolve) => setImmediate(resolve));

async function until(what: string, condition: () => boolean): Promise<void> {
  for (let turns = 0; !condition(); turns++) {
    if (turns > 5000) throw new Error(`in vain for: ${what}`);
    await tick();
  }
}

interface Bed {
  session: FakeSession;
  serving: Serving;
  service: FaultService;
  events: FaultServiceEvent[];
  /** Frames asked for on the demand connection, in order. */
  asked: number[];
  link: { up: boolean };
  ended: Promise<string>;
}

/** A service that runs until the test is over; pages come from a fake source or (`local`) at once. */
function bed(t: Test | undefined, { frames = 64, local = false } = {}): Bed {
  const session = new FakeSession(frames);
  const serving = new Serving();
  const events: FaultServiceEvent[] = [];
  const asked: number[] = [];
  const link = { up: true };
  const service = new FaultService({
    session,
    serving,
    local: local
      ? {
          install: (_session, frame, count, outcome) => session.install(frame, count, pageOf(frame), 0, outcome),
          close: () => undefined,
        }
      : undefined,
    demand: local
      ? undefined
      : {
          request: (frame) => {
            if (link.up) asked.push(frame);
            return link.up;
          },
        },
    spinMicros: 0,
    onEvent: (event) => events.push(event),
  });
  const ended = service.run();
  t?.teardown(async () => {
    session.stop();
    await ended;
  });
  return { session, serving, service, events, asked, link, ended };
}

const answer = ({ service }: Bed, frame: number): void => service.answer(frame, pageOf(frame), 0, false);

void t.test('a hit is served in its round', async (t) => {
  const b = bed(t, { local: true });
  b.session.touch(3, 9, 4);
  await until('served', () => b.serving.faultsServed === 3);
  t.same(
    [3, 9, 4].map((frame) => b.session.reads(frame)),
    [4, 10, 5],
  );
  t.equal(b.session.asleep.size, 0);
  t.equal(b.service.unanswered, 0);
  t.same(b.serving.takeHints(0, []), 3, 'the fill is told');
  t.equal(summarize(b.serving.histogram).count, 3);
});

void t.test('frames known to be zero, or given up, get a zero page', async (t) => {
  const b = bed(t, { local: true });
  b.session.reset(5, 1, FrameState.Zero);
  b.session.touch(7);
  await until('served', () => b.serving.faultsServed === 1);
  b.session.remove(7);
  b.session.touch(5, 7);
  await until('served', () => b.serving.faultsServed === 3);
  t.same([b.session.reads(5), b.session.reads(7)], [0, 0], 'never the old content');
  t.equal(b.session.installs[7], 1);
});

void t.test('misses are answered in any order', async (t) => {
  await fc.assert(
    fc.asyncProperty(
      fc
        .uniqueArray(fc.nat(31), { minLength: 1, maxLength: 32 })
        .chain((frames) =>
          fc.tuple(fc.constant(frames), fc.shuffledSubarray(frames, { minLength: frames.length }), fc.nat(2 ** 31)),
        ),
      async ([frames, order, zeros]) => {
        const b = bed(undefined, { frames: 32 });
        try {
          b.session.touch(...frames);
          await until('asked', () => b.asked.length === frames.length);
          if (b.serving.demandWaiting !== frames.length) throw new Error('the fill must know');
          for (const frame of order) {
            if ((zeros >> frame) & 1) b.service.answer(frame, new Uint8Array(0), 0, true);
            else answer(b, frame);
          }
          for (const frame of frames) {
            if (b.session.reads(frame) !== ((zeros >> frame) & 1 ? 0 : frame + 1)) throw new Error(`frame ${frame}`);
          }
          if (b.session.asleep.size > 0 || b.service.unanswered > 0) throw new Error('somebody waits');
          if (b.serving.demandWaiting !== 0 || b.serving.faultsServed !== frames.length) throw new Error('counts');
        } finally {
          b.session.stop();
          await b.ended;
        }
      },
    ),
    { numRuns: 50 },
  );
  t.pass('every order served everybody');
});

void t.test('two threads on one frame: one question, one answer wakes both', async (t) => {
  const b = bed(t);
  b.session.touch(8, 8);
  b.session.touch(8);
  await until('read', () => b.asked.length > 0);
  await tick();
  t.same(b.asked, [8]);
  answer(b, 8);
  t.equal(b.session.asleep.size, 0);
  answer(b, 8);
  t.equal(b.session.installs[8], 1, 'a second answer installs nothing');
  t.equal(b.serving.faultsServed, 1);
});

void t.test('the fill was first: the answer only wakes', async (t) => {
  const b = bed(t);
  b.session.touch(8);
  await until('asked', () => b.asked.length === 1);
  b.session.install(8, 1, pageOf(8), 0, new Int32Array(4));
  b.session.asleep.set(8, 1); // a thread that came in between
  answer(b, 8);
  t.equal(b.session.installs[8], 1);
  t.equal(b.session.asleep.size, 0);
  t.equal(b.service.unanswered, 0);
});

void t.test('given up while the answer was under way: a zero page, never the old content', async (t) => {
  const b = bed(t);
  b.session.touch(8);
  await until('asked', () => b.asked.length === 1);
  b.session.remove(8);
  await tick();
  answer(b, 8);
  t.equal(b.session.reads(8), 0);
  t.equal(b.session.installs[8], 0);
  t.equal(b.session.asleep.size, 0);
});

void t.test('EAGAIN parks the fault with its page, and it goes on', async (t) => {
  const b = bed(t);
  let again = 3;
  b.session.inject = () => (again-- > 0 ? Outcome.Again : undefined);
  b.session.touch(8);
  await until('asked', () => b.asked.length === 1);
  const page = pageOf(8);
  b.service.answer(8, page, 0, false);
  t.equal(b.serving.parked, 1);
  page.fill(0xee); // the connection uses its memory again
  await until('served', () => b.serving.faultsServed === 1);
  t.equal(b.session.reads(8), 9);
  t.same(b.asked, [8], 'what came is not asked for again');
  t.equal(b.serving.parked, 0);
});

void t.test('EAGAIN, and what made it so was a remove of the frame', async (t) => {
  const b = bed(t);
  let again = true;
  b.session.inject = () => (again ? Outcome.Again : undefined);
  b.session.touch(8);
  await until('asked', () => b.asked.length === 1);
  answer(b, 8);
  b.session.remove(8);
  again = false;
  await until('served', () => b.serving.faultsServed === 1);
  t.equal(b.session.reads(8), 0);
  t.equal(b.session.installs[8], 0);
});

void t.test('EAGAIN on local pages and zero pages', async (t) => {
  const b = bed(t, { local: true });
  let again = 4;
  b.session.inject = () => (again-- > 0 ? Outcome.Again : undefined);
  b.session.reset(5, 1, FrameState.Zero);
  b.session.touch(5, 6);
  await until('served', () => b.serving.faultsServed === 2);
  t.same([b.session.reads(5), b.session.reads(6)], [0, 7]);
});

void t.test('being installed by the fill: looked at again, whatever comes of it', async (t) => {
  const b = bed(t, { local: true });
  b.session.table[5] = FrameState.Installing;
  b.session.table[6] = FrameState.Installing;
  b.session.touch(5, 6);
  await until('parked', () => b.serving.parked === 2);
  b.session.table[5] = FrameState.Missing; // given back
  b.session.memory[6] = pageOf(6);
  b.session.table[6] = FrameState.Present;
  await until('served', () => b.serving.faultsServed === 2);
  t.same([b.session.reads(5), b.session.reads(6)], [6, 7]);
  t.equal(b.session.asleep.size, 0);
});

void t.test('a source that refuses is asked again after a while, and it is told once', async (t) => {
  const b = bed(t);
  b.session.touch(8, 9);
  await until('asked', () => b.asked.length === 2);
  const began = b.session.now;
  const refusal = new PagetideError('PT_MEMORY_FILE', 'not now');
  let refused = 0;
  while (refused < 10) {
    const open = b.asked.splice(0);
    for (const frame of open) b.service.refused(frame, refusal);
    refused += open.length;
    await tick();
  }
  // ten refusals of two frames: each waited 100 ms before the next
  t.ok(b.session.now - began >= 400_000, `asked again within ${b.session.now - began} µs`);
  t.match(b.events, [{ event: 'trouble', error: { code: 'PT_MEMORY_FILE' } }]);
  t.equal(b.events.length, 1, 'not for every frame, nor every time');
  await until('asked', () => b.asked.length === 2);
  for (const frame of b.asked.splice(0)) answer(b, frame);
  t.same([b.session.reads(8), b.session.reads(9)], [9, 10]);
  b.session.touch(10);
  await until('asked', () => b.asked.length === 1);
  b.service.refused(10, refusal);
  t.equal(b.events.length, 2, 'new trouble is told again');
  b.service.refused(55, refusal);
  t.equal(b.events.length, 2, 'nobody waits for that one');
});

void t.test('a reconnect asks again for everything that waits', async (t) => {
  const b = bed(t);
  b.session.touch(1, 2, 3);
  await until('asked', () => b.asked.length === 3);
  answer(b, 2);
  b.link.up = false;
  b.session.touch(4);
  await until('read', () => b.serving.parked === 1);
  b.link.up = true;
  b.asked.length = 0;
  b.service.connected();
  await until('asked', () => b.asked.length >= 3);
  t.same([...b.asked].sort(), [1, 3, 4]);
  for (const frame of [4, 3, 1]) answer(b, frame);
  t.equal(b.service.unanswered, 0);
  t.equal(b.session.asleep.size, 0);
});

void t.test('a page of somebody else: an alarm, and the frame stays asleep and missing', async (t) => {
  for (const local of [true, false]) {
    const b = bed(t, { local });
    b.session.inject = (frame) => (frame === 8 ? Outcome.Foreign : undefined);
    b.session.touch(8);
    if (!local) {
      await until('asked', () => b.asked.length === 1);
      answer(b, 8);
    }
    await until('told', () => b.events.length > 0);
    b.session.touch(7);
    if (!local) {
      await until('asked', () => b.asked.length === 2);
      answer(b, 7);
    }
    await until('goes on', () => b.serving.faultsServed === 1);
    t.same(b.events, [{ event: 'foreign', frame: 8 }]);
    t.equal(b.serving.alarms, 1);
    t.ok(b.session.asleep.has(8));
    t.equal(b.session.reads(8), undefined);
    t.equal(b.service.unanswered, 0);
    t.equal(b.serving.demandWaiting, 0, 'the fill need not stand back for it');
  }
});

void t.test('a short file and a kernel that refuses: waits, told once, goes on', async (t) => {
  for (const [outcome, errno, code] of [
    [Outcome.Short, 0, 'PT_MEMORY_FILE'],
    [Outcome.Failed, 12, 'PT_NO_MEMORY'],
    [Outcome.Failed, 28, 'PT_NO_SPACE'],
    [Outcome.Failed, 5, 'PT_SYSCALL'],
  ] as const) {
    const b = bed(t, { local: true });
    let tries = 0;
    let broken = true;
    b.session.errno = errno;
    b.session.inject = (frame) => {
      if (frame !== 8 || !broken) return undefined;
      tries++;
      return outcome;
    };
    b.session.touch(8, 9);
    await until('several tries', () => tries > 3);
    t.ok(b.session.now > 200_000, 'not in a tight loop');
    t.equal(b.session.reads(8), undefined, 'never zeros');
    t.equal(b.session.reads(9), 10, 'the others are served');
    t.match(b.events, [{ event: 'trouble', frame: 8, error: { code } }]);
    t.equal(b.events.length, 1);
    broken = false;
    await until('served', () => b.serving.faultsServed === 2);
    t.equal(b.session.reads(8), 9);
  }
});

void t.test('it ends when the process is gone, and when it is stopped', async (t) => {
  const hangup = bed(t);
  hangup.session.hangup();
  t.equal(await hangup.ended, 'gone');

  const gone = bed(t, { local: true });
  gone.session.inject = () => Outcome.Gone;
  gone.session.touch(1);
  t.equal(await gone.ended, 'gone');

  const late = bed(t);
  late.session.touch(1);
  await until('asked', () => late.asked.length === 1);
  late.session.inject = () => Outcome.Gone;
  answer(late, 1);
  t.equal(await late.ended, 'gone');

  const stopped = bed(t);
  stopped.session.touch(1);
  await until('asked', () => stopped.asked.length === 1);
  stopped.session.stop();
  t.equal(await stopped.ended, 'stopped');
  t.ok(stopped.session.asleep.has(1), 'nothing was made up for the one that waits');
});

void t.test('timers run although the guest never lets it sleep', async (t) => {
  const b = bed(t, { local: true });
  // Each fault is followed by the next one: wait never comes back empty-handed.
  b.session.reset(0, 1, FrameState.Zero);
  let rounds = 0;
  let fired = false;
  const install = b.session.installZero.bind(b.session);
  b.session.installZero = (frame, count, outcome) => {
    const result = install(frame, count, outcome);
    b.session.now += 100;
    if (!fired && rounds++ < 10_000) {
      b.session.memory[0] = undefined;
      b.session.touch(0);
    }
    return result;
  };
  setTimeout(() => (fired = true), 1);
  b.session.touch(0);
  await until('the timer', () => fired);
  t.ok(rounds < 10_000, `a timer of 1 ms came in ${rounds} rounds`);
});

void t.test('a fault on a frame that the fill dealt with between look and install is served at once', async (t) => {
  const b = bed(t, { local: true });
  // Between the look at the state and the install, the fill installs.
  const outcome = new Int32Array(4);
  let raced = false;
  b.session.inject = (frame) => {
    if (!raced) {
      raced = true;
      b.session.install(frame, 1, pageOf(frame), 0, outcome);
      b.session.asleep.set(frame, 1);
    }
    return undefined;
  };
  b.session.touch(8);
  await until('served', () => b.serving.faultsServed === 1);
  t.equal(b.session.asleep.size, 0);
  t.ok(b.session.now < 1000 * 10, 'not parked');
  t.equal(FAKE_PAGE, b.session.pageSize);
});

void t.test('pages that are not those of their tags: each told, once, and never installed', async (t) => {
  const session = new FakeSession(16);
  const events: FaultServiceEvent[] = [];
  const wrong = new Set([3, 5]);
  const asked: number[] = [];
  const service = new FaultService({
    session,
    serving: new Serving(),
    demand: { request: (frame) => asked.push(frame) > 0 },
    named: {
      verify: (frame) => !wrong.has(frame),
      isZero: () => false,
      install: () => Outcome.Absent,
      next: (frame) => frame,
      ring: (frame) => frame,
      keep: () => undefined,
      keeps: false,
    },
    spinMicros: 0,
    onEvent: (event) => events.push(event),
  });
  const ended = service.run();
  t.teardown(async () => {
    session.stop();
    await ended;
  });
  const answerAll = (): void => {
    for (const frame of asked.splice(0)) service.answer(frame, pageOf(frame), 0, false);
  };
  session.touch(3, 4, 5);
  await until('asked', () => asked.length === 3);
  for (let again = 0; again < 3; again++) {
    answerAll();
    await until('asked again', () => wrong.size === asked.length);
  }
  t.match(
    events.map((event) => [event.event, event.frame]),
    [
      ['trouble', 3],
      ['trouble', 5],
    ],
  );
  t.same([session.installs[3], session.installs[4], session.installs[5]], [0, 1, 0]);
  t.same([...session.asleep.keys()].sort(), [3, 5], 'their threads sleep on');
  wrong.delete(3);
  answerAll();
  await until('served', () => session.installs[3] === 1);
  await until('asked again', () => asked.includes(5));
  answerAll();
  t.equal(events.length, 2);
  wrong.clear();
  await until('asked again', () => asked.includes(5));
  answerAll();
  await until('served', () => session.asleep.size === 0);
});
