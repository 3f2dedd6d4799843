/** Page streams and control messages over mutual TLS, and everybody who is not let in. */
import { createServer } from 'node:http';
import { connect, createServer as createTcpServer, type AddressInfo } from 'node:net';
import { join } from 'node:path';
import { connect as tlsConnect } from 'node:tls';
import t, { type Test } from 'tap';
import type { PagetideError } from '../../src/errors.ts';
import type { PageConnection } from '../../src/transport/page-client.ts';
import { PeerClient } from '../../src/transport/peer.ts';
import type { Credentials } from '../../src/trust/credentials.ts';
import { EXPIRED, trustCluster } from '../trust/support.ts';
import { PAGE, PageCollector, deferred, open, source, until } from './support.ts';

const ID = '0123456789abcdef';
const cluster = await trustCluster();
const hostA = await cluster.host('host-a');
const hostB = await cluster.host('host-b');

void t.test('pages, batches and their order, over TLS', async (t) => {
  const from = await source(t, 256, 'm1', { credentials: hostA }, 'host-b');
  t.match(from.url, /^https:/);
  const collector = new PageCollector();
  const demand = await open(t, from, 'demand', collector.handlers, { credentials: hostB, direct: true });
  t.ok(demand.directFd >= 0, 'it has a TLS session of its own');
  for (let frame = 0; frame < from.frames; frame++) t.ok(demand.requestPage(frame));
  await polled(demand, collector.answers(from.frames));
  for (const [frame, page] of collector.pages)
    if (!page.equals(from.bytes.subarray(frame * PAGE, (frame + 1) * PAGE))) t.fail(`frame ${frame} is wrong`);

  const batch = deferred<number>();
  const fill = await open(
    t,
    from,
    'fill',
    { onBatch: ({ runs }) => batch.resolve(runs.length) },
    { credentials: hostB },
  );
  t.ok(fill.requestBatch(Uint32Array.of(0, 64, 100, 50)));
  t.ok(await batch.promise);
});

for (const direct of [false, true])
  void t.test(`bytes are those of the network, TLS and handshake included, direct: ${direct}`, (t) => bytes(t, direct));

/** Reads as the fault worker does, whose every wait has the descriptor in it, until the thing has happened. */
async function polled(demand: PageConnection, thing: Promise<unknown>): Promise<void> {
  const state = { over: false };
  const reading = (async () => {
    while (!state.over && demand.readDirect()) await new Promise((resolve) => setImmediate(resolve));
  })();
  try {
    await thing;
  } finally {
    state.over = true;
    await reading;
  }
}

async function bytes(t: Test, direct: boolean): Promise<void> {
  const from = await source(t, 64, 'm1', { credentials: hostA }, 'host-b');
  // counts outside the program
  const { port } = from.server.address();
  let [up, down] = [0, 0];
  const ended = deferred();
  const proxy = createTcpServer((near) => {
    const far = connect(port, '127.0.0.1');
    near.on('data', (bytes) => (up += bytes.length)).pipe(far);
    far.on('data', (bytes) => (down += bytes.length)).pipe(near);
    near.on('error', () => far.destroy()).on('close', () => far.destroy());
    far.on('error', () => near.destroy()).on('close', () => ended.resolve());
  });
  await new Promise<void>((resolve) => proxy.listen(0, '127.0.0.1', resolve));
  t.teardown(() => proxy.close());
  const collector = new PageCollector();
  const via = { ...from, url: `https://127.0.0.1:${(proxy.address() as AddressInfo).port}` };
  const demand = await open(t, via, 'demand', collector.handlers, { credentials: hostB, direct });
  for (let frame = 0; frame < from.frames; frame++) t.ok(demand.requestPage(frame));
  await polled(demand, collector.answers(from.frames));
  demand.close();
  await collector.closed.promise;
  await ended.promise;
  await until(() => from.server.counters('m1')?.open === 0);
  const { bytesIn, bytesOut } = from.server.counters('m1')!;
  for (const [what, counted, seen] of [
    ['received there', bytesIn, up],
    ['sent there', bytesOut, down],
    ['sent here', demand.bytesSent, up],
    ['received here', demand.bytesReceived, down],
  ] as const)
    // TLS's good-bye may come when nobody counts any more, or go to one who is gone already
    t.ok(Math.abs(seen - counted) <= 64, `${what}: ${counted} of ${seen}`);
}

void t.test('the control API learns who asks, and nobody can say he is another', async (t) => {
  const from = await source(t, 1, 'm1', { credentials: hostA });
  const asked = deferred<Record<string, unknown>>();
  const api = createServer((request, response) => {
    asked.resolve(request.headers);
    response.setHeader('content-type', 'application/json');
    response.end(JSON.stringify({ migration: ID, epoch: 1, state: 'unknown' }));
  });
  await new Promise<void>((resolve) => api.listen(join(from.folder, 'control'), resolve));
  t.teardown(() => api.close());
  const peer = new PeerClient(from.url, { credentials: hostB });
  t.teardown(() => peer.close());
  t.match(await peer.status(ID), { state: 'unknown' });
  t.match(await asked.promise, { 'x-pagetide-via': 'port', 'x-pagetide-peer': 'host-b' });
  t.equal(peer.identity, 'host-a');
});

void t.test('on a plain port no identity can be claimed', async (t) => {
  const from = await source(t, 1);
  const asked = deferred<Record<string, unknown>>();
  const api = createServer((request, response) => {
    asked.resolve(request.headers);
    response.end('{}');
  });
  await new Promise<void>((resolve) => api.listen(join(from.folder, 'control'), resolve));
  t.teardown(() => api.close());
  await fetch(`${from.url}/v1/info`, { headers: { 'x-pagetide-peer': 'host-b', 'x-pagetide-via': 'nothing' } });
  const headers = await asked.promise;
  t.equal(headers['x-pagetide-peer'], undefined);
  t.equal(headers['x-pagetide-via'], 'port');
});

void t.test('who is not let in, told to both sides', async (t) => {
  const other = await trustCluster();
  const impostor = await cluster.host('host-c', ['127.0.0.1'], EXPIRED);
  const foreign = await other.host('host-b');
  // shows a certificate of another cluster, and believes in this one
  const cases: [string, Credentials, RegExp][] = [
    ['expired', impostor, /expired/],
    ['of another cluster', { ...foreign, ca: hostA.ca }, /another cluster/],
  ];
  for (const [name, credentials, why] of cases) {
    const from = await source(t, 4, 'm1', { credentials: hostA });
    const refused = deferred<PagetideError>();
    from.server.onRefused((error) => refused.resolve(error));
    await t.rejects(open(t, from, 'demand', {}, { credentials }), { code: 'PT_PEER_UNTRUSTED', message: why }, name);
    t.match(await refused.promise, { code: 'PT_PEER_UNTRUSTED', message: why }, `${name}: there`);
    const peer = new PeerClient(from.url, { credentials });
    t.teardown(() => peer.close());
    await t.rejects(peer.status(ID), { code: 'PT_PEER_UNTRUSTED', message: why }, `${name}: messages`);
  }
});

void t.test('pages of a guest are for the host alone that it moves to', async (t) => {
  const hostC = await cluster.host('host-c');
  const refusals: PagetideError[] = [];
  const from = await source(t, 4, 'm1', { credentials: hostA });
  from.server.onRefused((error) => refusals.push(error));
  const refused = { code: 'PT_UNAUTHORIZED' } as const;
  const tell = async (credentials: Credentials, what: string): Promise<void> => {
    const before = [refusals.length, from.server.counters('m1')!.errors];
    for (const channel of ['demand', 'fill', 'state'] as const)
      await t.rejects(open(t, from, channel, {}, { credentials }), refused, `${what}, ${channel}`);
    await until(() => refusals.length === before[0]! + 3);
    t.equal(from.server.counters('m1')!.errors, before[1]! + 3, `${what}: counted`);
  };
  await tell(hostB, 'before the destination is known');
  t.match(refusals[0], { code: 'PT_UNAUTHORIZED', message: /^host-b is not the host/ });
  await from.server.admit('m1', 'host-b');
  await tell(hostC, 'another host of the cluster that has the token');
  await tell(hostA, 'the source itself');
  // who lacks the token is no news: anybody in the cluster may knock
  await t.rejects(open(t, from, 'demand', {}, { credentials: hostC, token: 'x'.repeat(16) }), refused);
  t.equal(refusals.length, 9);
  const collector = new PageCollector();
  const demand = await open(t, from, 'demand', collector.handlers, { credentials: hostB });
  t.ok(demand.requestPage(1));
  await collector.answers(1);
  t.ok(collector.pages.has(1));
  await t.rejects(from.server.admit('m2', 'host-b'), { code: 'PT_MIGRATION_UNKNOWN' });
});

void t.test('an address that gets into other hands: a client stays with who answered first', async (t) => {
  const served = async (credentials: Credentials, port: number) => {
    const from = await source(t, 1, 'm1', { credentials, port });
    const api = createServer((_request, response) => {
      response.setHeader('content-type', 'application/json');
      response.end(JSON.stringify({ migration: ID, epoch: 1, state: 'refused' }));
    });
    await new Promise<void>((resolve) => api.listen(join(from.folder, 'control'), resolve));
    t.teardown(() => api.close());
    return from;
  };
  const first = await served(hostB, 0);
  const peer = new PeerClient(first.url, { credentials: hostA });
  t.teardown(() => peer.close());
  await peer.status(ID);
  t.equal(peer.identity, 'host-b');
  await first.server.close();
  await served(await cluster.host('host-c'), first.server.address().port);
  await t.rejects(peer.status(ID), { code: 'PT_PEER_UNTRUSTED', message: /is host-c, not host-b/ });
});

void t.test('a server that is not trusted', async (t) => {
  const other = await trustCluster();
  const cases: [string, Credentials, RegExp][] = [
    ['expired', await cluster.host('host-c', ['127.0.0.1'], EXPIRED), /expired/],
    ['of another cluster', await other.host('host-a'), /another cluster/],
    ['for another address', await cluster.host('host-a', ['10.0.0.1']), /another address/],
  ];
  for (const [name, credentials, why] of cases) {
    const from = await source(t, 4, 'm1', { credentials });
    await t.rejects(
      open(t, from, 'demand', {}, { credentials: hostB }),
      { code: 'PT_PEER_UNTRUSTED', message: why },
      name,
    );
    const peer = new PeerClient(from.url, { credentials: hostB });
    t.teardown(() => peer.close());
    await t.rejects(peer.status(ID), { code: 'PT_PEER_UNTRUSTED', message: why }, `${name}: messages`);
  }
});

void t.test('TLS and none do not mix', async (t) => {
  const secure = await source(t, 4, 'm1', { credentials: hostA });
  const plain = await source(t, 4);
  await t.rejects(open(t, secure, 'demand'), { code: 'PT_PEER_UNTRUSTED', message: /no certificates/ });
  const tls = { ...plain, url: plain.url.replace('http:', 'https:') };
  await t.rejects(open(t, tls, 'demand', {}, { credentials: hostB }), { code: 'PT_PEER_UNTRUSTED', message: /TLS/ });
  const http = { ...secure, url: secure.url.replace('https:', 'http:') };
  const refused = deferred<PagetideError>();
  secure.server.onRefused((error) => refused.resolve(error));
  await t.rejects(open(t, http, 'demand'), { code: 'PT_PEER_UNREACHABLE', hint: /https/ });
  t.match(await refused.promise, { code: 'PT_PEER_UNTRUSTED', message: /plain HTTP/ });
  const peer = new PeerClient(http.url);
  t.teardown(() => peer.close());
  await t.rejects(peer.status(ID), { code: 'PT_PEER_UNREACHABLE', hint: /https/ });
  for (const url of ['http://10.0.0.1:7411', 'http://host-b:7411'])
    t.throws(() => new PeerClient(url), { code: 'PT_PEER_UNTRUSTED' }, `${url}: plain only within the host`);
});

void t.test('a client without a certificate gets a reason, and what it sends is not looked at', async (t) => {
  const from = await source(t, 4, 'm1', { credentials: hostA });
  const { port } = from.server.address();
  const socket = tlsConnect({ host: '127.0.0.1', port, ca: hostA.ca });
  t.teardown(() => socket.destroy());
  socket.on('secureConnect', () => socket.write('GET /v1/info HTTP/1.1\r\nhost: x\r\n\r\n'));
  let text = '';
  for await (const piece of socket.setEncoding('utf8') as AsyncIterable<string>) text += piece;
  t.match(text, /^HTTP\/1\.1 403/);
  t.match(JSON.parse(text.slice(text.indexOf('\r\n\r\n'))), { code: 'PT_PEER_UNTRUSTED', message: /no certificate/ });
});

void t.test('TLS below 1.3 is refused', async (t) => {
  const from = await source(t, 4, 'm1', { credentials: hostA });
  const { ca, certificate: cert, key } = hostB;
  const { port } = from.server.address();
  const socket = tlsConnect({ host: '127.0.0.1', port, ca, cert, key, maxVersion: 'TLSv1.2' });
  t.teardown(() => socket.destroy());
  const [error] = await new Promise<unknown[]>((resolve) => {
    socket.once('error', (...args) => resolve(args));
    socket.once('secureConnect', () => resolve([undefined]));
  });
  t.match(error, /protocol version|alert/i);
});

void t.test('a session is not resumed: each connection shows its certificate', async (t) => {
  const from = await source(t, 4, 'm1', { credentials: hostA });
  const { ca, certificate: cert, key } = hostB;
  const options = { host: '127.0.0.1', port: from.server.address().port, ca, cert, key };
  let session: Buffer | undefined;
  for (let i = 0; i < 2; i++) {
    const socket = tlsConnect({ ...options, ...(session === undefined ? {} : { session }) });
    socket.on('session', (given: Buffer) => (session = given));
    await new Promise((resolve) => socket.once('secureConnect', resolve));
    t.notOk(socket.isSessionReused());
    const answered = new Promise((resolve) => socket.once('data', resolve));
    socket.write('GET /v1/info HTTP/1.1\r\nhost: x\r\n\r\n');
    await answered;
    socket.destroy();
  }
});

void t.test('closing does not wait for who says nothing', async (t) => {
  const from = await source(t, 4, 'm1', { credentials: hostA });
  const { port } = from.server.address();
  // half a handshake
  const socket = connect(port, '127.0.0.1');
  socket.on('error', () => undefined);
  t.teardown(() => socket.destroy());
  await new Promise((resolve) => socket.once('connect', resolve));
  const ended = new Promise((resolve) => socket.once('close', resolve));
  const began = performance.now();
  await from.server.close();
  await ended;
  t.ok(performance.now() - began < 3_000);
});
