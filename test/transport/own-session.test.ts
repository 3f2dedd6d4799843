/** The TLS session that a demand channel has for itself: bytes, order, full sockets, and who does not get in. */
import { createServer, connect, type AddressInfo, type Socket } from 'node:net';
import t from 'tap';
import { native, TlsSessionField, TLS_SESSION_FIELDS, type TlsSession } from '../../src/memory/native.ts';
import { connectPages, type PageConnection, type PageHandlers } from '../../src/transport/page-client.ts';
import { trustCluster } from '../trust/support.ts';
import { PAGE, PageCollector, TOKEN, deferred, open, source, until, type Source } from './support.ts';

const cluster = await trustCluster();
const hostA = await cluster.host('host-a');
const hostB = await cluster.host('host-b');
const turn = (): Promise<void> => new Promise((resolve) => setImmediate(resolve));

interface Test {
  teardown(fn: () => unknown): unknown;
}

/** Something between the two that sees their bytes, may change them, and can stop reading. */
async function between(t: Test, from: Source, change: (bytes: Buffer, down: boolean) => Buffer = (bytes) => bytes) {
  const pairs: { near: Socket; far: Socket }[] = [];
  const proxy = createServer((near) => {
    const far = connect(from.server.address().port, '127.0.0.1');
    pairs.push({ near, far });
    near.on('data', (bytes) => far.write(change(bytes, false)));
    far.on('data', (bytes) => near.write(change(bytes, true)));
    near.on('error', () => far.destroy()).on('close', () => far.destroy());
    far.on('error', () => near.destroy()).on('close', () => near.destroy());
  });
  await new Promise<void>((resolve) => proxy.listen(0, '127.0.0.1', resolve));
  t.teardown(() => {
    for (const { near, far } of pairs) {
      near.destroy();
      far.destroy();
    }
    proxy.close();
  });
  return { via: { ...from, url: `https://127.0.0.1:${(proxy.address() as AddressInfo).port}` }, pairs };
}

async function readUntil(demand: PageConnection, done: () => boolean): Promise<void> {
  while (!done() && demand.readDirect()) await turn();
}

const wrong = (from: Source, got: PageCollector): number =>
  [...got.pages].filter(([frame, page]) => !page.equals(from.bytes.subarray(frame * PAGE, (frame + 1) * PAGE))).length;

void t.test('a reader that stops for a while gets every page, in order, and nothing is plain', async (t) => {
  const from = await source(t, 4096, 'm1', { credentials: hostA }, 'host-b');
  const seen: Buffer[] = [];
  const { via, pairs } = await between(t, from, (bytes, down) => {
    if (down) seen.push(bytes);
    return bytes;
  });
  const got = new PageCollector();
  const order: number[] = [];
  const onPage: PageHandlers['onPage'] = (frame, ...rest) => {
    order.push(frame);
    got.handlers.onPage!(frame, ...rest);
  };
  const demand = await open(t, via, 'demand', { ...got.handlers, onPage }, { credentials: hostB, direct: true });
  // more than two kernels hold: the source's rest goes through its stream
  for (const { far } of pairs) far.pause();
  let asked = 0;
  while (asked < from.frames && demand.requestPage(asked)) asked++;
  await until(() => from.server.counters('m1')!.demandRequests > 256);
  for (const { far } of pairs) far.resume();
  while (got.pages.size < from.frames && demand.readDirect()) {
    while (asked < from.frames && demand.requestPage(asked)) asked++;
    await turn();
  }
  t.equal(got.pages.size, from.frames);
  t.equal(wrong(from, got), 0);
  t.same(
    order,
    order.map((_, at) => at),
  );
  const bytes = Buffer.concat(seen);
  t.equal(bytes.indexOf(from.bytes.subarray(2 * PAGE, 2 * PAGE + 16)), -1);
});

void t.test('a byte that was changed on the way ends the connection, and its page never comes', async (t) => {
  const from = await source(t, 64, 'm1', { credentials: hostA }, 'host-b');
  let change = false;
  const { via } = await between(t, from, (bytes, down) => {
    if (change && down && bytes.length > 2000) bytes[1000]! ^= 1;
    return bytes;
  });
  const got = new PageCollector();
  const demand = await open(t, via, 'demand', got.handlers, { credentials: hostB, direct: true });
  demand.requestPage(1);
  await readUntil(demand, () => got.pages.size === 1);
  change = true;
  demand.requestPage(3);
  await readUntil(demand, () => got.pages.size > 1);
  t.ok(demand.closed);
  t.match(await got.closed.promise, { code: 'PT_PEER_UNREACHABLE' });
  t.equal(got.pages.size, 1);
  await until(() => from.server.counters('m1')!.open === 0);
});

void t.test('a destination that ends, and a migration that is withdrawn, leave nothing open', async (t) => {
  const from = await source(t, 64, 'm1', { credentials: hostA }, 'host-b');
  const first = await open(t, from, 'demand', {}, { credentials: hostB, direct: true });
  await until(() => from.server.counters('m1')!.open === 1);
  first.close();
  await until(() => from.server.counters('m1')!.open === 0);
  const told = deferred<unknown>();
  const second = await open(
    t,
    from,
    'demand',
    { onClose: (error) => told.resolve(error) },
    { credentials: hostB, direct: true },
  );
  await until(() => from.server.counters('m1')!.open === 1);
  await from.server.withdraw('m1');
  await readUntil(second, () => false);
  t.match(await told.promise, { code: 'PT_MIGRATION_UNKNOWN' }, 'and it is told why');
});

void t.test('a source that is pinged, and pings, through the session', async (t) => {
  const from = await source(t, 64, 'm1', { credentials: hostA, livenessMs: 400 }, 'host-b');
  const got = new PageCollector();
  const demand = await open(t, from, 'demand', got.handlers, { credentials: hostB, direct: true, livenessMs: 300 });
  // a ping or its answer is a header in a record: four of them
  const [received, sent] = [demand.bytesReceived, demand.bytesSent];
  await readUntil(demand, () => demand.bytesReceived > received + 100 && demand.bytesSent > sent + 100);
  t.notOk(demand.closed);
  demand.requestPage(2);
  await readUntil(demand, () => got.pages.size === 1);
  t.equal(wrong(from, got), 0);
});

void t.test('a connection that is not polled, or not asked to be direct, stays in Node’s session', async (t) => {
  const from = await source(t, 64, 'm1', { credentials: hostA }, 'host-b');
  const got = new PageCollector();
  const target = { url: from.url, migration: 'm1', token: TOKEN, pageSize: PAGE, frames: 64, credentials: hostB };
  const demand = await connectPages({ ...target, channel: 'demand', handlers: got.handlers });
  t.teardown(() => demand.close());
  t.equal(demand.directFd, -1);
  demand.requestPage(2);
  await got.answers(1);
  t.equal(wrong(from, got), 0);
});

/** The two ends of a TCP connection, and a session at each. */
async function sessions(t: Test, clientKey: Buffer, serverKey: Buffer) {
  const server = createServer({ pauseOnConnect: true });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const accepted = new Promise<Socket>((resolve) => server.once('connection', resolve));
  const near = connect((server.address() as AddressInfo).port, '127.0.0.1').pause();
  await new Promise((resolve) => near.once('connect', resolve));
  const far = await accepted;
  t.teardown(() => {
    near.destroy();
    far.destroy();
    server.close();
  });
  const side = (socket: Socket, isServer: boolean, key: Buffer) => {
    (socket as unknown as { _handle: { readStop(): void } })._handle.readStop();
    const status = new Float64Array(TLS_SESSION_FIELDS);
    const session: TlsSession = native().createTlsSession(isServer, key, status);
    const fd = (socket as unknown as { _handle: { fd: number } })._handle.fd;
    return { session, status, fd };
  };
  return [side(near, false, clientKey), side(far, true, serverKey)] as const;
}

void t.test('without the same key nobody gets in', async (t) => {
  const [one, other] = [Buffer.alloc(32, 1), Buffer.alloc(32, 2)];
  for (const [keys, works] of [
    [[one, one], true],
    [[one, other], false],
  ] as const) {
    const [client, server] = await sessions(t, ...keys);
    let results = [0, 0];
    await until(() => {
      results = [client, server].map(({ session, fd }) => session.handshake(fd));
      return results.includes(-1) || results.every((result) => result === 1);
    });
    t.equal(results.includes(-1), !works);
    if (works) continue;
    t.equal(client.session.send(client.fd, Buffer.from('x'), 1), -1, 'and nothing is sent');
    t.equal(server.status[TlsSessionField.Established], 0);
    t.ok(server.session.recv(server.fd, Buffer.alloc(10)) < 0);
  }
  t.throws(() => native().createTlsSession(true, Buffer.alloc(31), new Float64Array(4)), { code: 'PT_INTERNAL' });
});

void t.test('what the socket does not take is handed back, in order; small reads lose nothing', async (t) => {
  const key = Buffer.alloc(32, 5);
  const [client, server] = await sessions(t, key, Buffer.from(key));
  // each needs the other: both are called each time
  await until(() => [client, server].map(({ session, fd }) => session.handshake(fd)).every((done) => done === 1));
  const data = Buffer.alloc(8 << 20, 'some text that is not zero ');
  const unsent = server.session.send(server.fd, data, data.length);
  t.ok(unsent > 0, 'more than a socket holds');
  t.equal(server.status[TlsSessionField.Unsent], unsent);
  let rest = server.session.takeUnsent();
  t.equal(rest.length, unsent);
  t.equal(server.status[TlsSessionField.Unsent], 0);
  const pieces: Buffer[] = [];
  const into = Buffer.alloc(5000);
  let total = 0;
  await until(() => {
    for (;;) {
      const n = client.session.recv(client.fd, into);
      if (n < 0) t.fail('it broke');
      if (n <= 0) break;
      pieces.push(Buffer.from(into.subarray(0, n)));
      total += n;
      if (n < into.length) break;
    }
    if (rest.length > 0) {
      const sent = native().sendSocket(server.fd, rest, 0, rest.length);
      if (sent > 0) rest = rest.subarray(sent);
    }
    return total >= data.length;
  });
  t.ok(Buffer.concat(pieces).equals(data));
});
