import { once } from 'node:events';
import { connect as netConnect, createServer, type AddressInfo, type Socket } from 'node:net';
import t, { type Test } from 'tap';
import { PagetideError } from '../../src/errors.ts';
import { connectPages, type PageConnection, type PageHandlers } from '../../src/transport/page-client.ts';
import { ReconnectingPages, type ReconnectOptions, type Timers } from '../../src/transport/reconnect.ts';
import { PageServer } from '../../src/transport/page-server.ts';
import { FrameType, encodeFrame } from '../../src/transport/wire.ts';
import { PAGE, PageCollector, TOKEN, deferred, source, until, type Source } from './support.ts';

/** A wire that breaks: a TCP relay to a page server whose nth connection carries so many bytes, then is cut. */
async function relay(t: Test, to: Source, limits: number[]): Promise<string> {
  const server = createServer((near) => {
    const far = netConnect(Number(new URL(to.url).port), '127.0.0.1');
    t.teardown(() => near.destroy());
    let left = limits.shift() ?? Infinity;
    for (const socket of [near, far]) {
      socket.on('error', () => undefined);
      socket.on('close', () => {
        near.destroy();
        far.destroy();
      });
    }
    near.pipe(far);
    far.on('data', (piece: Buffer) => {
      const part = piece.subarray(0, Math.min(piece.length, left));
      left -= part.length;
      if (part.length > 0) near.write(part);
      if (left === 0) near.end(() => far.destroy());
    });
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  t.teardown(() => server.close());
  return `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
}

function reconnecting(t: Test, from: Source, url: string, options: Partial<ReconnectOptions>): ReconnectingPages {
  const stream = new ReconnectingPages({
    connect: (handlers, signal) =>
      connectPages({
        url,
        migration: 'm1',
        token: TOKEN,
        channel: 'demand',
        pageSize: PAGE,
        frames: from.frames,
        handlers,
        signal,
      }),
    handlers: {},
    backoff: { firstMs: 1, maxMs: 20 },
    ...options,
  });
  t.teardown(() => stream.close());
  return stream.start();
}

void t.test('a connection that is cut, also in the middle of a page, is made again and the work goes on', async (t) => {
  const from = await source(t);
  // in the middle of a page, of a header, and before the upgrade is answered
  const url = await relay(t, from, [200 + 50 * PAGE, 7 + 20 * PAGE, 10]);
  const got = new PageCollector();
  const wanted = new Set(Array.from({ length: 256 }, (_, i) => i));
  const firsts: boolean[] = [];
  const stream = reconnecting(t, from, url, {
    handlers: {
      ...got.handlers,
      onPage(frame, ...rest) {
        wanted.delete(frame);
        got.handlers.onPage!(frame, ...rest);
      },
    },
    onConnected(connection, first) {
      firsts.push(first);
      for (const frame of wanted) connection.requestPage(frame);
    },
  });
  await got.answers(256);
  for (const [frame, page] of got.pages) {
    if (!page.equals(from.bytes.subarray(frame * PAGE, (frame + 1) * PAGE))) t.fail(`frame ${frame} is wrong`);
  }
  t.same(firsts, [true, false, false], 'three connections worked');
  t.equal(stream.state.status, 'connected');
  t.match(stream.state.lastError, { code: 'PT_PEER_UNREACHABLE' });
  t.ok(stream.bytes.received >= 204 * PAGE, 'bytes add up over connections');
  stream.close();
  t.equal(await got.closed.promise, undefined);
  t.equal(stream.requestPage(1), false);
  t.equal(stream.state.status, 'closed');
});

void t.test('a source that restarts: 404 until the guest is on offer again, then on', async (t) => {
  const from = await source(t);
  const got = new PageCollector();
  const states: string[] = [];
  const stream = reconnecting(t, from, from.url, {
    handlers: got.handlers,
    onConnected: (connection) => connection.requestPage(states.length === 0 ? 1 : 2),
    onState: (state) => state.lastError && states.push(state.lastError.code),
  });
  await got.answers(1);
  const { host, port } = from.server.address();
  await from.server.close();
  t.equal(stream.requestPage(3), false, 'not while it is away');
  await until(() => stream.state.attempts > 1);
  const again = await PageServer.start({ host, port, controlSocket: '/nowhere' });
  t.teardown(() => again.close());
  await until(() => states.includes('PT_MIGRATION_UNKNOWN') && stream.state.attempts > 2);
  await again.offer({
    migration: 'm1',
    token: TOKEN,
    pageSize: PAGE,
    frames: 256,
    files: [{ path: from.file, size: from.bytes.length, offset: 0 }],
  });
  await got.answers(2);
  t.ok(got.pages.get(2)?.equals(from.bytes.subarray(2 * PAGE, 3 * PAGE)));
});

/** Time that moves only when told. */
class Clock implements Timers {
  time = 0;
  waits: number[] = [];
  callbacks: (() => void)[] = [];
  after(ms: number, callback: () => void): () => void {
    this.waits.push(ms);
    this.callbacks.push(callback);
    return () => {
      this.callbacks = this.callbacks.filter((other) => other !== callback);
    };
  }
  now(): number {
    return this.time;
  }
  fire(): void {
    for (const callback of this.callbacks.splice(0)) callback();
  }
}

/** As much of a connection as the reconnecting needs. */
function fake(heard: boolean): PageConnection {
  return { heard, bytesReceived: 10, bytesSent: 1, close: () => undefined } as unknown as PageConnection;
}

void t.test(
  'the wait doubles up to a bound, has jitter, and starts over only after a connection that worked',
  async (t) => {
    const clock = new Clock();
    const outcomes: (PageConnection | PagetideError)[] = [];
    let live: PageHandlers = {};
    let attempts = 0;
    const stream = new ReconnectingPages({
      connect(handlers) {
        attempts++;
        live = handlers;
        const outcome = outcomes.shift() ?? new PagetideError('PT_PEER_UNREACHABLE', 'no');
        return outcome instanceof Error ? Promise.reject(outcome) : Promise.resolve(outcome);
      },
      handlers: {},
      backoff: { firstMs: 100, maxMs: 1000 },
      timers: clock,
      random: () => 1,
    }).start();
    const next = async (): Promise<void> => {
      const before = attempts;
      clock.fire();
      await until(() => attempts === before + 1 && (clock.callbacks.length === 1 || stream.connection !== undefined));
    };
    await until(() => clock.callbacks.length === 1);
    for (let i = 0; i < 5; i++) await next();
    t.same(clock.waits, [100, 200, 400, 800, 1000, 1000]);
    const drop = new PagetideError('PT_PEER_UNREACHABLE', 'dropped');
    outcomes.push(fake(false));
    await next();
    live.onClose!(drop);
    t.equal(clock.waits.at(-1), 1000, 'a connection that said nothing changes nothing');
    outcomes.push(fake(true));
    await next();
    t.equal(stream.state.status, 'connected');
    clock.time = 77;
    live.onClose!(drop);
    t.equal(clock.waits.at(-1), 100, 'one that worked starts over');
    t.match(stream.state, { status: 'connecting', since: 77, lastError: drop });
    t.same(stream.bytes, { received: 20, sent: 2 });
    stream.close();
    t.equal(clock.callbacks.length, 0, 'no timer left');
  },
);

void t.test('an error that is final ends it', async (t) => {
  const closed = deferred<PagetideError | undefined>();
  new ReconnectingPages({
    connect: () => Promise.reject(new PagetideError('PT_UNAUTHORIZED', 'no')),
    handlers: { onClose: (error) => closed.resolve(error) },
    giveUp: (error) => error.code === 'PT_UNAUTHORIZED',
  }).start();
  t.match(await closed.promise, { code: 'PT_UNAUTHORIZED' });
});

void t.test('closing while it connects leaves nothing behind', async (t) => {
  const from = await source(t);
  let attempt: Promise<PageConnection> | undefined;
  const stream = reconnecting(t, from, from.url, {
    connect: (handlers, signal) =>
      (attempt = connectPages({
        url: from.url,
        migration: 'm1',
        token: TOKEN,
        channel: 'demand',
        pageSize: PAGE,
        frames: from.frames,
        handlers,
        signal,
      })),
    onConnected: () => t.fail('it was closed'),
  });
  stream.close();
  await t.rejects(attempt!, { code: 'PT_CANCELLED' });
  await until(() => from.server.counters('m1')!.open === 0);
});

/** A source that answers an upgrade, and then does what it likes. */
async function rogue(t: Test, then: (socket: Socket) => void, head?: string): Promise<Source> {
  const server = createServer((socket) => {
    t.teardown(() => socket.destroy());
    socket.on('error', () => undefined);
    socket.once('data', () => {
      socket.write(
        head ??
          `HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: pagetide\r\nPagetide-Protocol: 3\r\nPagetide-Page-Size: ${PAGE}\r\nPagetide-Frames: 256\r\n\r\n`,
      );
      then(socket);
    });
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  t.teardown(() => server.close());
  return { url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`, frames: 256 } as Source;
}

void t.test('a source that misbehaves: the connection ends with what was wrong', async (t) => {
  const page = (stream: number, frame: number): Buffer =>
    encodeFrame(FrameType.Page, 0, stream, frame, Buffer.alloc(PAGE, 1));
  const cases: [string, (socket: Socket) => void, object][] = [
    ['a page nobody asked for', (s) => s.write(page(9, 5)), { code: 'PT_PROTOCOL' }],
    ['stream 0', (s) => s.write(page(0, 1)), { code: 'PT_PROTOCOL' }],
    ['another frame', (s) => s.once('data', () => s.write(page(1, 2))), { code: 'PT_PROTOCOL' }],
    [
      'the answer twice',
      (s) => s.once('data', () => s.write(Buffer.concat([page(1, 1), page(1, 1)]))),
      { code: 'PT_PROTOCOL' },
    ],
    ['garbage right behind the head', (s) => s.write('garbage, garbage, garbage'), { code: 'PT_PROTOCOL' }],
    [
      'half a page, then closed',
      (s) => s.once('data', () => s.end(page(1, 1).subarray(0, 99))),
      { code: 'PT_PEER_UNREACHABLE' },
    ],
    ['silence', () => undefined, { code: 'PT_PEER_UNREACHABLE', message: /silent/ }],
  ];
  for (const [what, act, expected] of cases) {
    const from = await rogue(t, act);
    const got = new PageCollector();
    const connection = await connectPages({
      url: from.url,
      migration: 'm1',
      token: TOKEN,
      channel: 'demand',
      pageSize: PAGE,
      frames: 256,
      handlers: got.handlers,
      livenessMs: 20,
    });
    connection.requestPage(1);
    t.match(await got.closed.promise, expected, what);
    t.equal(connection.closed, true);
  }
});

void t.test('a source that answers something else than an upgrade', async (t) => {
  const connect = (from: Source, timeoutMs = 3000): Promise<PageConnection> =>
    connectPages({
      url: from.url,
      migration: 'm1',
      token: TOKEN,
      channel: 'demand',
      pageSize: PAGE,
      frames: 256,
      handlers: {},
      timeoutMs,
    });
  await t.rejects(connect(await rogue(t, (s) => s.end(), 'HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi')), {
    code: 'PT_PEER_FAILED',
  });
  await t.rejects(connect(await rogue(t, (s) => s.end(), 'nothing like HTTP\r\n\r\n')), {
    code: 'PT_PEER_UNREACHABLE',
  });
  await t.rejects(connect(await rogue(t, () => undefined, ' ')), { code: 'PT_PEER_UNREACHABLE' }, 'closed or silent');
  const silent = await rogue(t, () => undefined, 'HTTP/1.1 ');
  await t.rejects(connect(silent, 100), { code: 'PT_PEER_UNREACHABLE' }, 'never ends its head');
  await t.rejects(connect({ url: 'http://127.0.0.1:1' } as Source), { code: 'PT_PEER_UNREACHABLE' }, 'nobody listens');
});
