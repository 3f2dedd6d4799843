/** The fill with peers, against a session without a kernel: whatever they do, every frame gets its own page, once. */
import fc from 'fast-check';
import t from 'tap';
import { FillService } from '../../src/memory/fill-service.ts';
import { FrameState } from '../../src/memory/native.ts';
import { PeerFill } from '../../src/memory/peer-fill.ts';
import { Peers } from '../../src/memory/peers.ts';
import { Serving } from '../../src/memory/serving.ts';
import { fakeNames } from './fake-names.ts';
import { fakeTags, frameOf, FakeStream } from './fake-peer.ts';
import { FAKE_PAGE, FakeSession, pageOf } from './fake-session.ts';

const tick = (): Promise<void> => new Promise((resolve) => setImmediate(resolve));

interface Bed {
  session: FakeSession;
  serving: Serving;
  fill: FillService;
  streams: FakeStream[];
  peers: Peers;
  source: { up: boolean; asked: Uint32Array[] };
  ended: { as?: string };
  answerSource: () => void;
}

/** @param haveMs who has not answered by then is not waited for: by default nobody is too late, however busy the machine is */
async function bed(
  t: { teardown(fn: () => unknown): unknown },
  frames: number,
  count: number,
  haveMs = 60_000,
): Promise<Bed> {
  const session = new FakeSession(frames);
  const serving = new Serving();
  const named = fakeNames();
  const streams: FakeStream[] = [];
  const source: Bed['source'] = { up: true, asked: [] };
  const peers = new Peers({
    spec: { domain: 'd', urls: Array.from({ length: count }, (_, i) => `http://peer-${i}`), waitMs: 60_000 },
    key: 0,
    // nobody is too far
    sourceMs: () => (source.up ? 60_000 : undefined),
    connect: () => {
      const stream = new FakeStream();
      streams.push(stream);
      return Promise.resolve(stream);
    },
  });
  const fill = new FillService({
    session,
    serving,
    named,
    remote: {
      request: (runs) => {
        if (source.up) source.asked.push(runs);
        return source.up;
      },
    },
    peers: (side) =>
      new PeerFill({
        peers,
        named,
        tags: fakeTags(frames),
        frames,
        pageSize: FAKE_PAGE,
        serving,
        side,
        isSourceUp: () => source.up,
        haveMs,
      }),
    batchFrames: 8,
    window: 3,
    bandwidth: 0,
  });
  const ended: Bed['ended'] = {};
  t.teardown(async () => {
    fill.stop();
    peers.close();
    while (ended.as === undefined) await tick();
  });
  await tick();
  void fill.run().then((as) => (ended.as = as));
  const answerSource = (): void => {
    const runs = source.asked.shift();
    if (runs === undefined) return;
    const pages: number[] = [];
    let total = 0;
    for (let i = 0; i < runs.length; i += 2)
      for (let frame = runs[i]!; frame < runs[i]! + runs[i + 1]!; frame++, total++) pages.push(...pageOf(frame));
    fill.answer(runs, {
      runs,
      zero: new Uint8Array((total + 7) >> 3),
      pages: Uint8Array.from(pages),
      wireBytes: pages.length,
      from: 'source',
    });
  };
  return { session, serving, fill, streams, peers, source, ended, answerSource };
}

async function until(what: string, condition: () => boolean): Promise<void> {
  const deadline = performance.now() + 20_000;
  while (!condition()) {
    if (performance.now() > deadline) throw new Error(`in vain for: ${what}`);
    await tick();
  }
}

function allRight(session: FakeSession): boolean {
  for (let frame = 0; frame < session.frames; frame++) if (session.reads(frame) !== frame + 1) return false;
  return session.installs.every((count) => count === 1);
}

void t.test('what peers have comes from them, the rest from the source', async (t) => {
  const { session, serving, streams, source, ended, answerSource } = await bed(t, 100, 2);
  await until('filled', () => {
    // the first has the even frames, the second each third
    for (const [index, stream] of streams.entries()) {
      if (stream.haves.length > 0) stream.answerHave((tag) => frameOf(tag) % (index + 2) === 0);
      if (stream.requests.length > 0) stream.answerPages((tag) => pageOf(frameOf(tag)));
    }
    answerSource();
    return ended.as !== undefined;
  });
  t.equal(ended.as, 'filled');
  t.ok(allRight(session));
  const held = Array.from({ length: 100 }, (_, i) => i).filter((i) => i % 2 === 0 || i % 3 === 0).length;
  t.equal(serving.fromPeers, held);
  t.equal(serving.traffic('fill').installed, 100 - held);
  t.equal(source.asked.length, 0);
});

void t.test(
  'a wrong page is never installed: caught, counted, and fetched from the source; after a few it is left out',
  async (t) => {
    const { session, serving, streams, peers, ended, answerSource } = await bed(t, 64, 1);
    await until('filled', () => {
      const [stream] = streams;
      if (stream!.haves.length > 0) stream!.answerHave(() => true);
      if (stream!.requests.length > 0)
        stream!.answerPages((tag) => pageOf(frameOf(tag) % 5 === 0 ? frameOf(tag) + 1 : frameOf(tag)));
      answerSource();
      return ended.as !== undefined;
    });
    t.ok(allRight(session));
    t.ok(serving.peerMismatches >= 3, `${serving.peerMismatches} wrong pages`);
    t.ok(peers.all[0]!.isLeftOut);
  },
);

void t.test('a peer that says it has what it does not send costs one try', async (t) => {
  const { session, serving, streams, ended, answerSource } = await bed(t, 64, 1);
  let asked = 0;
  await until('filled', () => {
    const [stream] = streams;
    if (stream!.haves.length > 0) stream!.answerHave(() => true);
    if (stream!.requests.length > 0) {
      asked += stream!.requests[0]!.tags.length / 16;
      stream!.answerPages(() => undefined);
    }
    answerSource();
    return ended.as !== undefined;
  });
  t.ok(allRight(session));
  t.equal(asked, 64, 'each page once');
  t.equal(serving.fromPeers, 0);
});

void t.test('without the source: what peers have comes, what nobody has stays missing until it is back', async (t) => {
  const { session, streams, source, fill, ended, answerSource } = await bed(t, 96, 2);
  source.up = false;
  fill.disconnected();
  source.asked.length = 0;
  const serve = (): void => {
    for (const stream of streams) {
      if (stream.haves.length > 0) stream.answerHave((tag) => frameOf(tag) % 4 !== 0);
      if (stream.requests.length > 0) stream.answerPages((tag) => pageOf(frameOf(tag)));
    }
  };
  await until('three of four', () => {
    serve();
    return session.counts().present === 72;
  });
  for (let i = 0; i < 200; i++) {
    serve();
    await tick();
  }
  t.equal(session.counts().present, 72);
  t.equal(ended.as, undefined);
  source.up = true;
  fill.connected();
  await until('filled', () => {
    serve();
    answerSource();
    return ended.as !== undefined;
  });
  t.ok(allRight(session));
});

void t.test('a peer that is silent holds nothing up', async (t) => {
  const { session, streams, ended, answerSource } = await bed(t, 64, 2, 20);
  await until('filled', () => {
    const [silent, other] = streams;
    t.ok(silent!.requests.length === 0, 'who has not answered is asked for no page');
    if (other!.haves.length > 0) other!.answerHave((tag) => frameOf(tag) % 2 === 0);
    if (other!.requests.length > 0) other!.answerPages((tag) => pageOf(frameOf(tag)));
    answerSource();
    return ended.as !== undefined;
  });
  t.ok(allRight(session));
});

void t.test('stopped half-way: nothing stays claimed, and what comes late is dropped', async (t) => {
  const { session, streams, fill, ended } = await bed(t, 64, 1);
  const [stream] = streams;
  await until('asked', () => stream!.haves.length > 0);
  stream!.answerHave(() => true);
  await until('requested', () => stream!.requests.length > 0 && stream!.haves.length > 0);
  fill.stop();
  await until('ended', () => ended.as !== undefined);
  t.equal(session.table.filter((state) => state === FrameState.InFlight).length, 0);
  while (stream!.haves.length > 0) stream!.answerHave(() => true);
  while (stream!.requests.length > 0) stream!.answerPages((tag) => pageOf(frameOf(tag)));
  t.equal(session.counts().present, 0);
  t.equal(session.table.filter((state) => state === FrameState.InFlight).length, 0);
});

void t.test('whatever peers and the source do, in any order', async () => {
  const step = fc.record({ who: fc.nat(3), what: fc.nat(9), noise: fc.nat(7) });
  await fc.assert(
    fc.asyncProperty(fc.array(step, { maxLength: 200 }), async (steps) => {
      const after: (() => unknown)[] = [];
      const { session, serving, fill, streams, source, ended, answerSource } = await bed(
        { teardown: (fn) => after.push(fn) },
        40,
        3,
      );
      try {
        for (const { who, what, noise } of steps) {
          const stream = streams[who % streams.length]!;
          if (who === 3) {
            if (what === 0 && source.up) {
              source.up = false;
              fill.disconnected();
              source.asked.length = 0;
            } else if (what === 1 && !source.up) {
              source.up = true;
              fill.connected();
            } else if (what === 2 && source.asked.length > 0) fill.refused(source.asked.shift()!);
            else if (source.up) answerSource();
          } else if (what === 0) stream.close();
          else if (what < 5) {
            if (stream.haves.length > 0) stream.answerHave((tag) => (frameOf(tag) + noise) % 3 !== 0);
          } else if (stream.requests.length > 0)
            stream.answerPages((tag) => {
              const frame = frameOf(tag);
              if ((frame + noise) % 5 === 0) return undefined;
              return pageOf((frame + noise) % 7 === 0 ? frame + 1 : frame);
            });
          await tick();
          for (let frame = 0; frame < 40; frame++) {
            const read = session.reads(frame);
            if (read !== undefined && read !== frame + 1) throw new Error(`frame ${frame} has the page of ${read - 1}`);
          }
        }
        if (!source.up) {
          source.up = true;
          fill.connected();
        }
        await until('filled', () => {
          answerSource();
          for (const stream of streams) {
            if (stream.haves.length > 0) stream.answerHave(() => false);
            if (stream.requests.length > 0) stream.answerPages(() => undefined);
          }
          return ended.as !== undefined;
        });
        if (!allRight(session)) throw new Error('a frame was installed twice, or has another page');
        const { installed } = serving.traffic('fill');
        if (installed + serving.fromPeers !== 40) throw new Error(`${installed} and ${serving.fromPeers} of 40`);
      } finally {
        for (const fn of after) await fn();
      }
    }),
    { numRuns: 25 },
  );
});
