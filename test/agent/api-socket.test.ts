/** The control socket: private, removed when stale, never taken from someone who listens. */
import { once } from 'node:events';
import { existsSync, mkdirSync, readdirSync, readFileSync, statSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:net';
import { join } from 'node:path';
import { spawnSync } from 'node:child_process';
import t from 'tap';
import { buildApi } from '../../src/agent/api/app.ts';
import { AgentClient } from '../../src/agent/api/client.ts';
import { listenControl } from '../../src/agent/api/listen.ts';
import { FakeService } from './fake-service.ts';
import { send, shortFolder, startApi } from './api-harness.ts';

void t.test('mode 0600, alone in its folder, gone after close', async (t) => {
  const api = await startApi(t);
  t.equal(statSync(api.socket).mode & 0o777, 0o600);
  t.same(readdirSync(api.folder), ['control.sock']);
  await api.app.close();
  t.same(readdirSync(api.folder), []);
});

void t.test('one that is in use is left alone', async (t) => {
  const first = await startApi(t);
  const second = buildApi(new FakeService());
  t.teardown(() => second.close());
  await t.rejects(listenControl(second, first.socket), { code: 'PT_SOCKET_IN_USE' });
  await second.close();
  t.equal((await send(first.socket, '/v1/info')).status, 200, 'the first one still answers');
});

void t.test('a stale one is replaced', async (t) => {
  const folder = shortFolder(t);
  const socket = join(folder, 'control.sock');
  // a process that dies leaves its socket behind
  const script = `require('net').createServer().listen(process.argv[1], () => process.kill(process.pid, 'SIGKILL'))`;
  spawnSync(process.execPath, ['-e', script, socket]);
  t.ok(statSync(socket).isSocket());
  const app = buildApi(new FakeService());
  t.teardown(() => app.close());
  await listenControl(app, socket);
  t.equal((await send(socket, '/v1/info')).status, 200);
});

void t.test('what is no socket stays', async (t) => {
  const folder = shortFolder(t);
  const path = join(folder, 'control.sock');
  writeFileSync(path, 'precious');
  const app = buildApi(new FakeService());
  t.teardown(() => app.close());
  await t.rejects(listenControl(app, path), { code: 'PT_SOCKET_IN_USE', message: /no socket/ });
  t.equal(readFileSync(path, 'utf8'), 'precious');
});

void t.test('close leaves a socket alone that took its place', async (t) => {
  const api = await startApi(t);
  const other = createServer();
  const { renameSync } = await import('node:fs');
  other.listen(join(api.folder, 'other'));
  await once(other, 'listening');
  t.teardown(() => other.close());
  renameSync(join(api.folder, 'other'), api.socket);
  await api.app.close();
  t.ok(existsSync(api.socket));
});

void t.test('paths that cannot be', async (t) => {
  const folder = shortFolder(t);
  const app = buildApi(new FakeService());
  t.teardown(() => app.close());
  const long = join(folder, 'x'.repeat(120));
  await t.rejects(listenControl(app, long), { code: 'PT_BAD_CONFIG', message: /107/ });
  await t.rejects(listenControl(app, join(folder, 'none', 'control.sock')), { code: 'PT_IO' });
  mkdirSync(join(folder, 'there'));
  t.same(readdirSync(folder), ['there']);
});

void t.test('the client says who is missing', async (t) => {
  const folder = shortFolder(t);
  await t.rejects(new AgentClient(`unix:${folder}/none.sock`).info(), {
    code: 'PT_PEER_UNREACHABLE',
    hint: /pagetide agent/,
  });
  for (const bad of ['', 'unix:', 'https://127.0.0.1', 'http://127.0.0.1/v1', 'nonsense']) {
    t.throws(() => new AgentClient(bad), { code: 'PT_BAD_ARGUMENT' });
  }
  // someone else's server
  const server = createServer((socket) => socket.end('HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello'));
  server.listen(join(folder, 'web'));
  await once(server, 'listening');
  t.teardown(() => server.close());
  await t.rejects(new AgentClient(`unix:${folder}/web`).info(), { code: 'PT_PEER_FAILED', message: /no JSON/ });
});
