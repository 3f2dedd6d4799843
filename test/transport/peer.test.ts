import { once } from 'node:events';
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http';
import type { AddressInfo, Socket } from 'node:net';
import t, { type Test } from 'tap';
import { PagetideError } from '../../src/errors.ts';
import type { CompletionFigures, PrepareRequest } from '../../src/migration/types.ts';
import { PeerClient, type PeerOptions } from '../../src/transport/peer.ts';
import { deferred } from './support.ts';

type Listener = (request: IncomingMessage, answer: ServerResponse, body: string) => void;

async function peer(
  t: Test,
  listener: Listener,
  options?: PeerOptions,
): Promise<{ client: PeerClient; counted: () => { received: number; sent: number } }> {
  const sockets = new Set<Socket>();
  const server = createServer((request, answer) => {
    let body = '';
    request.on('data', (piece) => (body += String(piece)));
    request.on('end', () => listener(request, answer, body));
  });
  server.on('connection', (socket) => sockets.add(socket));
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  const client = new PeerClient(`http://127.0.0.1:${(server.address() as AddressInfo).port}`, options);
  t.teardown(async () => {
    await client.close();
    server.closeAllConnections();
    server.close();
  });
  const counted = (): { received: number; sent: number } => {
    let received = 0;
    let sent = 0;
    for (const socket of sockets) {
      received += socket.bytesRead;
      sent += socket.bytesWritten;
    }
    return { received, sent };
  };
  return { client, counted };
}

const status = (state: string): string => JSON.stringify({ migration: 'abc', epoch: 3, state });

void t.test('each message goes to its route, and bytes are counted at the socket', async (t) => {
  const seen: [string, string, unknown][] = [];
  const { client, counted } = await peer(t, (request, answer, body) => {
    seen.push([request.method!, request.url!, body === '' ? undefined : JSON.parse(body)]);
    answer.end(request.url!.endsWith('complete') ? '' : status('prepared'));
  });
  const request = { migration: 'abc', guest: 'g' } as PrepareRequest;
  const figures = { longestGapMs: 1 } as CompletionFigures;
  t.match(await client.prepare(request), { state: 'prepared', epoch: 3 });
  await client.status('abc');
  await client.load('abc', 3);
  await client.load('abc', 3, 'copy');
  await client.copy('abc', 3, 2);
  await client.limit('abc', 3, 65_536);
  await client.takeOver('abc', 3);
  await client.abort('abc', 3);
  await client.complete('abc', 3, figures);
  t.same(seen, [
    ['POST', '/v1/incoming', request],
    ['GET', '/v1/incoming/abc', undefined],
    ['POST', '/v1/incoming/abc/load', { epoch: 3, rest: 'serve' }],
    ['POST', '/v1/incoming/abc/load', { epoch: 3, rest: 'copy' }],
    ['POST', '/v1/incoming/abc/copy', { epoch: 3, round: 2 }],
    ['POST', '/v1/incoming/abc/limit', { epoch: 3, bandwidth: 65_536 }],
    ['POST', '/v1/incoming/abc/take-over', { epoch: 3 }],
    ['POST', '/v1/incoming/abc/abort', { epoch: 3 }],
    ['POST', '/v1/outgoing/abc/complete', { epoch: 3, figures }],
  ]);
  const there = counted();
  t.same(client.bytes, { received: there.sent, sent: there.received });
  t.ok(there.sent > 500);
});

void t.test('what another agent can do', async (t) => {
  let text = '';
  let code = 200;
  const { client } = await peer(t, ({ url }, answer) => {
    if (url !== '/v1/capabilities') code = 500;
    answer.statusCode = code;
    answer.end(text);
  });
  const can = { protocol: 3, userfaultfd: { ok: false, why: 'no right' }, room: { bytes: 1 << 30, guests: 3 } };
  text = JSON.stringify({ ...can, more: 'of a later version' });
  t.same(await client.capabilities(), can);
  for (const answer of [{}, { protocol: '3', userfaultfd: { ok: true } }, { protocol: 3, userfaultfd: true }, null]) {
    text = JSON.stringify(answer);
    await t.rejects(client.capabilities(), { code: 'PT_PEER_FAILED' }, text);
  }
  code = 404;
  text = JSON.stringify(new PagetideError('PT_BAD_ARGUMENT', 'there is no GET /v1/capabilities').toJSON());
  await t.rejects(client.capabilities(), { code: 'PT_PROTOCOL', message: /older version/ });
});

void t.test("the other agent's errors come through as its own", async (t) => {
  const { client } = await peer(t, (_request, answer) => {
    answer.writeHead(507, { 'content-type': 'application/json' });
    answer.end(JSON.stringify({ code: 'PT_NO_MEMORY', message: 'only 1 MiB left', hint: 'free some' }));
  });
  await t.rejects(client.load('abc', 1), { code: 'PT_NO_MEMORY', message: 'only 1 MiB left', hint: 'free some' });
});

void t.test('answers that are none', async (t) => {
  let answers: (answer: ServerResponse) => void = () => undefined;
  const { client } = await peer(t, (_request, answer) => answers(answer));
  const cases: [string, (answer: ServerResponse) => void, string][] = [
    ['not JSON', (a) => a.end('hello'), 'PT_PEER_FAILED'],
    ['an error without a reason', (a) => a.writeHead(500).end('<html>'), 'PT_PEER_FAILED'],
    ['another migration', (a) => a.end(status('owner').replace('abc', 'abd')), 'PT_PEER_FAILED'],
    ['an unknown state', (a) => a.end(status('flying')), 'PT_PEER_FAILED'],
    ['nothing', (a) => a.end(), 'PT_PEER_FAILED'],
    ['far too much', (a) => a.end('x'.repeat(2 << 20)), 'PT_PEER_FAILED'],
    ['cut off', (a) => a.writeHead(200, { 'content-length': '10' }).write('{') && a.destroy(), 'PT_PEER_UNREACHABLE'],
  ];
  for (const [what, act, code] of cases) {
    answers = act;
    await t.rejects(client.status('abc'), { code }, what);
  }
  await t.rejects(client.status('../x'), { code: 'PT_BAD_ARGUMENT' });
  t.throws(() => new PeerClient('nonsense'), { code: 'PT_BAD_ARGUMENT' });
});

void t.test('a peer that does not answer, or is not there', async (t) => {
  const asked = deferred();
  const { client } = await peer(t, () => asked.resolve(), { answerMs: 100, workMs: 60_000 });
  await t.rejects(client.status('abc'), { code: 'PT_PEER_UNREACHABLE', message: /in time/ });
  const abort = new AbortController();
  const load = client.load('abc', 1, 'serve', { signal: abort.signal });
  await asked.promise;
  abort.abort();
  await t.rejects(load, { code: 'PT_CANCELLED' });
  const nobody = new PeerClient('http://127.0.0.1:1');
  t.teardown(() => nobody.close());
  await t.rejects(nobody.status('abc'), { code: 'PT_PEER_UNREACHABLE' });
});

void t.test('a status does not wait behind a load', async (t) => {
  const loading = deferred<ServerResponse>();
  const { client } = await peer(t, (request, answer) => {
    if (request.url!.endsWith('load')) loading.resolve(answer);
    else answer.end(status('preparing'));
  });
  const load = client.load('abc', 3);
  const waiting = await loading.promise;
  t.match(await client.status('abc'), { state: 'preparing' });
  waiting.end(status('loaded'));
  t.match(await load, { state: 'loaded' });
});

void t.test('a kept connection that the peer closes is made again', async (t) => {
  let calls = 0;
  const { client } = await peer(t, (request, answer) => {
    calls++;
    // the second call arrives on the kept connection, which is dropped without an answer
    if (calls === 2) request.socket.destroy();
    else answer.end(status('prepared'));
  });
  await client.status('abc');
  t.match(await client.status('abc'), { state: 'prepared' });
  t.equal(calls, 3);
});
