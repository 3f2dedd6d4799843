/** Whom a fault is asked of: the source, and while that is away the others. */
import t from 'tap';
import { DemandRouter } from '../../src/memory/demand-router.ts';
import type { NamedPages } from '../../src/memory/named-pages.ts';
import { Peers } from '../../src/memory/peers.ts';
import { Serving } from '../../src/memory/serving.ts';
import { fakeTags, frameOf, FakeStream } from './fake-peer.ts';
import { FAKE_PAGE, pageOf } from './fake-session.ts';

const tick = (): Promise<void> => new Promise((resolve) => setImmediate(resolve));

async function bed(t: { teardown(fn: () => unknown): unknown }, count: number) {
  const source = { up: true, asked: [] as number[] };
  const streams: FakeStream[] = [];
  const got: number[] = [];
  const nobody: number[] = [];
  const serving = new Serving();
  const peers = new Peers({
    spec: { domain: 'd', urls: Array.from({ length: count }, (_, i) => `http://peer-${i}`), waitMs: 60_000 },
    key: 0,
    sourceMs: () => undefined,
    connect: () => {
      const stream = new FakeStream();
      streams.push(stream);
      return Promise.resolve(stream);
    },
  });
  peers.start();
  await tick();
  const router = new DemandRouter({
    source: {
      requestPage: (frame) => {
        if (source.up) source.asked.push(frame);
        return source.up;
      },
      directFd: 42,
      readDirect: () => false,
    },
    peers,
    named: {
      verify: (frame: number, page: Uint8Array, offset: number) =>
        Buffer.compare(page.subarray(offset, offset + FAKE_PAGE), pageOf(frame)) === 0,
    } as NamedPages,
    tags: fakeTags(100),
    serving,
    onPage: (frame, page, offset) => {
      if (Buffer.compare(page.subarray(offset, offset + FAKE_PAGE), pageOf(frame)) === 0) got.push(frame);
    },
    onNobody: (frame) => nobody.push(frame),
  });
  t.teardown(() => peers.close());
  return { router, source, streams, got, nobody, serving, peers };
}

void t.test('the source is asked while it is there', async (t) => {
  const { router, source, streams } = await bed(t, 2);
  t.ok(router.request(3));
  t.same(source.asked, [3]);
  t.equal(streams[0]!.requests.length + streams[1]!.requests.length, 0);
  t.equal(router.directFd, 42);
  t.notOk(router.readDirect());
});

void t.test('without it the others are, one after the other, each once', async (t) => {
  const { router, source, streams, got, nobody } = await bed(t, 2);
  source.up = false;
  t.ok(router.request(3));
  t.ok(router.request(3), 'it is under way');
  const [first, second] = streams as [FakeStream, FakeStream];
  t.equal(first.requests.length, 1);
  t.equal(second.requests.length, 0);
  first.answerPages(() => undefined);
  t.equal(second.requests.length, 1, 'the next is asked');
  second.answerPages((tag) => pageOf(frameOf(tag)));
  t.same(got, [3]);

  t.ok(router.request(4));
  first.answerPages(() => undefined);
  second.answerPages(() => undefined);
  t.same(nobody, [4]);
  t.notOk(router.request(4), 'nor is it asked for again at once');
  t.equal(first.requests.length + second.requests.length, 0);
});

void t.test('a wrong page goes nowhere, and the next is asked', async (t) => {
  const { router, source, streams, got, serving, peers } = await bed(t, 2);
  source.up = false;
  t.ok(router.request(3));
  streams[0]!.answerPages(() => pageOf(4));
  t.same(got, []);
  t.equal(serving.peerMismatches, 1);
  t.equal(peers.all[0]!.wrong, 1);
  streams[1]!.answerPages((tag) => pageOf(frameOf(tag)));
  t.same(got, [3]);
});

void t.test('one that ends is no answer; the source, back again, is', async (t) => {
  const { router, source, streams, got } = await bed(t, 1);
  source.up = false;
  t.ok(router.request(3));
  source.up = true;
  streams[0]!.close();
  await tick();
  t.same(source.asked, [3]);
  t.same(got, []);
});

void t.test('closed: what comes is dropped', async (t) => {
  const { router, source, streams, got, nobody } = await bed(t, 1);
  source.up = false;
  t.ok(router.request(3));
  router.close();
  streams[0]!.answerPages((tag) => pageOf(frameOf(tag)));
  t.same([...got, ...nobody], []);
});
