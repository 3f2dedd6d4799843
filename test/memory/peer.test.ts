/** One peer, as a worker uses it: when it is asked, rested, and left out. */
import t from 'tap';
import { PagetideError, type ErrorCode } from '../../src/errors.ts';
import { MOST_WRONG, Peer, type TagStream } from '../../src/memory/peer.ts';
import { Peers } from '../../src/memory/peers.ts';
import { fakeTags, FakeStream } from './fake-peer.ts';

const tick = (): Promise<void> => new Promise((resolve) => setImmediate(resolve));

function bed() {
  const clock = { now: 0 };
  const streams: FakeStream[] = [];
  const attempts: { resolve: (stream: TagStream) => void; reject: (error: unknown) => void }[] = [];
  const leftOut: string[] = [];
  let changes = 0;
  const peer = new Peer({
    url: 'http://peer',
    waitMs: 500,
    now: () => clock.now,
    connect: () => new Promise((resolve, reject) => attempts.push({ resolve, reject })),
    onLeftOut: (_url, error) => leftOut.push(error.code),
    onChange: () => changes++,
  });
  const up = async (): Promise<FakeStream> => {
    const stream = new FakeStream();
    streams.push(stream);
    attempts.shift()!.resolve(stream);
    await tick();
    return stream;
  };
  const fail = async (code: ErrorCode): Promise<void> => {
    attempts.shift()!.reject(new PagetideError(code, 'no'));
    await tick();
  };
  return { peer, clock, attempts, up, fail, leftOut, changes: () => changes };
}

void t.test('one that does not answer is let alone for longer each time', async (t) => {
  const { peer, clock, attempts, fail, up } = bed();
  peer.connect();
  peer.connect();
  t.equal(attempts.length, 1, 'one attempt at a time');
  for (const rest of [1_000, 2_000, 4_000, 8_000, 16_000, 32_000, 60_000, 60_000]) {
    await fail('PT_PEER_UNREACHABLE');
    t.notOk(peer.isUp);
    t.notOk(peer.have(fakeTags(1), () => t.fail()));
    clock.now += rest - 1;
    peer.look();
    t.equal(attempts.length, 0, `not within ${rest} ms`);
    clock.now += 1;
    peer.look();
    t.equal(attempts.length, 1);
  }
  const stream = await up();
  t.ok(peer.isUp);
  stream.bytesReceived = 1;
  stream.close(new PagetideError('PT_PEER_UNREACHABLE', 'cut'));
  await tick();
  clock.now += 1_000;
  peer.look();
  t.equal(attempts.length, 1, 'one that was there starts over');
});

void t.test('it is waited for as long as bytes come, and no longer than agreed', async (t) => {
  const { peer, clock, up, attempts, changes } = bed();
  peer.connect();
  const stream = await up();
  t.equal(changes(), 1);
  clock.now += 10_000;
  peer.look();
  t.ok(peer.isUp, 'who owes nothing may be silent');
  const ends: (string | undefined)[] = [];
  t.ok(peer.pages(fakeTags(3), (_pages, error) => ends.push(error?.code)));
  for (let i = 0; i < 5; i++) {
    clock.now += 400;
    stream.bytesReceived += 100;
    peer.look();
  }
  t.ok(peer.isUp, 'slow, but it comes');
  clock.now += 501;
  peer.look();
  t.notOk(peer.isUp);
  t.notOk(peer.pages(fakeTags(1), () => t.fail()));
  await tick();
  t.same(ends, ['PT_CANCELLED'], 'who asked is told');
  t.equal(changes(), 2);
  t.equal(peer.bytes.received, 500, 'and its bytes stay counted');
  clock.now += 1_000;
  peer.look();
  t.equal(attempts.length, 1);
});

void t.test('wrong pages: a few, and it is asked no more, ever', async (t) => {
  const { peer, clock, up, attempts, leftOut } = bed();
  peer.connect();
  const stream = await up();
  peer.sentWrong(MOST_WRONG - 1);
  t.ok(peer.isUp);
  peer.sentWrong(1);
  peer.sentWrong(1);
  t.ok(peer.isLeftOut);
  t.ok(stream.closed);
  t.same(leftOut, ['PT_PAGE_MISMATCH'], 'told once');
  await tick();
  clock.now += 1e9;
  peer.look();
  peer.connect();
  t.equal(attempts.length, 0);
});

void t.test('so is one that will never be of use', async (t) => {
  for (const code of ['PT_DOMAIN_SECRET', 'PT_PEER_UNTRUSTED'] as const) {
    const { peer, fail, leftOut } = bed();
    peer.connect();
    await fail(code);
    t.ok(peer.isLeftOut);
    t.same(leftOut, [code]);
  }
  const { peer, fail } = bed();
  peer.connect();
  await fail('PT_DOMAIN_UNKNOWN');
  t.notOk(peer.isLeftOut, 'it may be granted the domain yet');
});

void t.test('one that has next to nothing is asked now and then only', async (t) => {
  const { peer, up } = bed();
  peer.connect();
  const stream = await up();
  const worth = (): number => Array.from({ length: 80 }, () => peer.isWorthAsking).filter(Boolean).length;
  t.equal(worth(), 80, 'until that is known');
  for (let i = 0; i < 2; i++) {
    peer.have(fakeTags(1000), () => undefined);
    stream.answerHave(() => false);
  }
  t.equal(worth(), 10);
  for (let i = 0; i < 2; i++) {
    peer.have(fakeTags(1000), () => undefined);
    stream.answerHave(() => true);
  }
  t.equal(worth(), 80);
});

void t.test('closed: nothing is begun any more, and what comes late is closed', async (t) => {
  const { peer, attempts, up } = bed();
  peer.connect();
  peer.close();
  const stream = await up();
  t.ok(stream.closed);
  peer.connect();
  t.equal(attempts.length, 0);
});

void t.test('a peer that seemed too far once is measured again, and asked when it is near', async (t) => {
  const stream = new FakeStream();
  stream.connectMs = 300; // the machine was busy just then
  const peers = new Peers({
    spec: { domain: 'd', urls: ['http://peer'], waitMs: 500 },
    key: 0,
    sourceMs: () => 1,
    connect: () => Promise.resolve(stream),
  });
  t.teardown(() => peers.close());
  peers.start();
  await tick();
  t.same(peers.near(), []);
  peers.measureFar();
  peers.measureFar();
  t.equal(stream.haves.length, 1, 'one question at a time');
  stream.answerHave(() => false);
  t.equal(peers.near().length, 1);
  peers.measureFar();
  t.equal(stream.haves.length, 0, 'who is near is not measured');
  t.ok(peers.all[0]!.isWorthAsking, 'it was asked for nothing that it could have had');
});

void t.test('peers that are much farther than the source are not asked while it is there', async (t) => {
  const source: { ms: number | undefined } = { ms: 1 };
  const at = [0.5, 1.9, 5.9, 7, 80];
  const peers = new Peers({
    spec: { domain: 'd', urls: at.map((ms) => `http://peer-${ms}`), waitMs: 500 },
    key: 0,
    sourceMs: () => source.ms,
    connect: (url) => {
      const stream = new FakeStream();
      stream.connectMs = Number(url.slice('http://peer-'.length));
      return Promise.resolve(stream);
    },
  });
  t.teardown(() => peers.close());
  t.same(peers.near(), []);
  peers.start();
  await tick();
  const near = (): number[] => peers.near().map((peer) => peer.roundTripMs);
  t.same(near(), [0.5, 1.9, 5.9]);
  source.ms = 50;
  t.same(near(), at, 'twice as far is near enough');
  source.ms = undefined;
  t.same(near(), at, 'without a source nobody is too far');
  t.equal(
    new Peers({ spec: { domain: 'd', urls: new Array<string>(20).fill('x'), waitMs: 1 }, key: 0, sourceMs: () => 1 })
      .all.length,
    8,
  );
});
