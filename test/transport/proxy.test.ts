import { once } from 'node:events';
import {
  createServer,
  request,
  type IncomingMessage,
  type RequestListener,
  type Server,
  type ServerResponse,
} from 'node:http';
import { connect } from 'node:net';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { PageServer } from '../../src/transport/page-server.ts';
import { deferred, folder } from './support.ts';

interface Port {
  url: string;
  api: Server;
}

/** A page server in front of a control API that does what the test says. */
async function port(t: Test, listener: RequestListener): Promise<Port> {
  const controlSocket = join(folder(t), 'control');
  const api = createServer(listener);
  api.listen(controlSocket);
  await once(api, 'listening');
  t.teardown(() => {
    api.close();
    api.closeAllConnections();
  });
  const server = await PageServer.start({ host: '127.0.0.1', port: 0, controlSocket });
  t.teardown(() => server.close());
  return { url: server.address().url, api };
}

async function bodyOf(message: IncomingMessage): Promise<string> {
  let text = '';
  for await (const piece of message) text += String(piece);
  return text;
}

void t.test('a request goes through as it is, and is marked', async (t) => {
  const { url } = await port(t, (asked, answer) => {
    void bodyOf(asked).then((body) => {
      const { method, url: path, headers } = asked;
      answer.writeHead(201, { 'content-type': 'application/json', 'x-own': 'kept', 'set-cookie': ['a=1', 'b=2'] });
      answer.end(JSON.stringify({ method, path, body, headers }));
    });
  });
  const answer = await fetch(`${url}/v1/guests/a%20b?x=1`, {
    method: 'PUT',
    body: 'the body',
    headers: { 'x-pagetide-via': 'socket', 'x-mine': 'yes' },
  });
  t.equal(answer.status, 201);
  t.equal(answer.headers.get('x-own'), 'kept');
  t.same(answer.headers.getSetCookie(), ['a=1', 'b=2']);
  t.match(await answer.json(), {
    method: 'PUT',
    path: '/v1/guests/a%20b?x=1',
    body: 'the body',
    headers: { 'x-pagetide-via': 'port', 'x-mine': 'yes', host: new URL(url).host },
  });
});

void t.test('headers of one connection stay on it', async (t) => {
  const { url } = await port(t, (asked, answer) => answer.end(JSON.stringify(asked.headers)));
  const socket = connect(Number(new URL(url).port), '127.0.0.1');
  t.teardown(() => socket.destroy());
  socket.write(
    'GET / HTTP/1.1\r\nHost: h\r\nConnection: close, x-hop\r\nX-Hop: 1\r\nTE: trailers\r\nX-Pagetide-Via: x\r\nX-Pagetide-Via: y\r\n\r\n',
  );
  let text = '';
  for await (const piece of socket) text += String(piece);
  t.match(text, /"x-pagetide-via":"port"/);
  t.notMatch(text, /x-hop|trailers/);
});

void t.test('answers stream, piece by piece', async (t) => {
  const answers = deferred<ServerResponse>();
  const { url } = await port(t, (_asked, answer) => {
    answer.writeHead(200);
    answer.flushHeaders();
    answers.resolve(answer);
  });
  const got = await fetch(`${url}/v1/events`);
  const reader = got.body!.getReader();
  const answer = await answers.promise;
  for (const piece of ['one', 'two']) {
    answer.write(piece);
    t.equal(Buffer.from((await reader.read()).value).toString(), piece, 'while the answer is open');
  }
  answer.end();
  t.equal((await reader.read()).done, true);
});

void t.test('request bodies stream, piece by piece', async (t) => {
  const bodies = deferred<IncomingMessage>();
  const { url } = await port(t, (asked, answer) => {
    bodies.resolve(asked);
    asked.on('end', () => answer.end('done'));
  });
  const sending = request(`${url}/v1/x`, { method: 'POST' });
  sending.write('one');
  const body = await bodies.promise;
  t.equal(String(((await once(body, 'data')) as [Buffer])[0]), 'one', 'while the request is open');
  sending.end('two');
  t.equal(await bodyOf(((await once(sending, 'response')) as [IncomingMessage])[0]), 'done');
});

void t.test('an answer that comes at once is not lost', async (t) => {
  const { url } = await port(t, (asked, answer) => {
    void bodyOf(asked).then((body) => answer.end(body));
  });
  const lost: string[] = [];
  for (let i = 0; i < 300; i++) {
    const text = await (await fetch(`${url}/v1/x`, { method: 'POST', body: `{"n":${i}}` })).text();
    if (text !== `{"n":${i}}`) lost.push(text);
  }
  t.same(lost, []);
});

void t.test('a client that goes away ends the request behind', async (t) => {
  const asked = deferred();
  const gone = deferred();
  const { url } = await port(t, (_asked, answer) => {
    answer.write('x');
    answer.on('close', () => gone.resolve());
    asked.resolve();
  });
  const sending = request(`${url}/v1/events`);
  sending.on('error', () => undefined);
  sending.end();
  await asked.promise;
  await once(sending, 'response');
  sending.destroy();
  await gone.promise;
});

void t.test('an API that dies half-way cuts the answer instead of ending it', async (t) => {
  const { url } = await port(t, (_asked, answer) => {
    answer.write('half');
    setImmediate(() => answer.destroy());
  });
  await t.rejects(fetch(`${url}/v1/x`).then((answer) => answer.text()));
});

void t.test('no API: an error that says so', async (t) => {
  const { url, api } = await port(t, () => undefined);
  api.close();
  await once(api, 'close');
  const answer = await fetch(`${url}/v1/x`, { method: 'POST', body: 'something' });
  t.equal(answer.status, 503);
  t.match(await answer.json(), { code: 'PT_PEER_UNREACHABLE' });
});

void t.test('many requests on one connection', async (t) => {
  const { url } = await port(t, (asked, answer) => answer.end(asked.url));
  const answers = await Promise.all(Array.from({ length: 50 }, async (_, i) => (await fetch(`${url}/${i}`)).text()));
  t.same(
    answers,
    Array.from({ length: 50 }, (_, i) => `/${i}`),
  );
});
