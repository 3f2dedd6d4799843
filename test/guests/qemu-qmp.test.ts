/** The QMP client against a server that behaves well, badly, or not at all. */
import { mkdtemp, rm } from 'node:fs/promises';
import { createServer, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t from 'tap';
import type { Test } from 'tap';
import { QmpClient, QmpError } from '../../src/guests/qemu/qmp.ts';

const GREETING = { QMP: { version: { qemu: { major: 7, minor: 2, micro: 22 } }, capabilities: [] } };
interface Command {
  execute: string;
  arguments?: Record<string, unknown>;
  id: number;
}

/** A monitor that greets, and hands every command but `qmp_capabilities` to `answer`. */
async function fake(
  t: Test,
  answer: (socket: Socket, command: Command) => void,
  greet = JSON.stringify(GREETING) + '\r\n',
): Promise<string> {
  const folder = await mkdtemp(join(tmpdir(), 'ptqmp-'));
  const path = join(folder, 's');
  const sockets = new Set<Socket>();
  const server = createServer((socket) => {
    sockets.add(socket);
    socket.on('error', () => undefined);
    if (greet !== '') socket.write(greet);
    let buffer = '';
    socket.on('data', (chunk) => {
      buffer += chunk.toString();
      const lines = buffer.split('\n');
      buffer = lines.pop()!;
      for (const line of lines) {
        const command = JSON.parse(line) as Command;
        if (command.execute === 'qmp_capabilities') reply(socket, { return: {}, id: command.id });
        else answer(socket, command);
      }
    });
  });
  await new Promise<void>((resolve) => server.listen(path, resolve));
  t.teardown(async () => {
    for (const socket of sockets) socket.destroy();
    server.close();
    await rm(folder, { recursive: true });
  });
  return path;
}

function reply(socket: Socket, message: object): void {
  socket.write(JSON.stringify(message) + '\r\n');
}

async function connected(t: Test, answer: Parameters<typeof fake>[1], options = {}): Promise<QmpClient> {
  const client = await QmpClient.connect(await fake(t, answer), options);
  t.teardown(() => client.close());
  return client;
}

void t.test('a connection that had little time left to be made leaves its commands theirs', async (t) => {
  const answer = (socket: Socket, { id }: Command): void =>
    void setTimeout(() => reply(socket, { return: 'late', id }), 150);
  const hasty = await connected(t, answer, { timeoutMs: 100 });
  await t.rejects(hasty.execute('slow'), { code: 'PT_VMM_TIMEOUT' });
  const patient = await connected(t, answer, { timeoutMs: 100, commandMs: 10_000 });
  t.equal(await patient.execute('slow'), 'late');
});

void t.test('answers find their commands, in whatever order and pieces they come', async (t) => {
  const held: Command[] = [];
  const client = await connected(t, (socket, command) => {
    held.push(command);
    if (held.length < 3) return;
    const text = held
      .reverse()
      .map(({ execute, id }) => JSON.stringify({ return: { to: execute, text: 'grün' }, id }) + '\r\n');
    const bytes = Buffer.from(text.join(''));
    for (let at = 0; at < bytes.length; at += 7) socket.write(bytes.subarray(at, at + 7)); // splits characters too
  });
  t.equal(client.version, '7.2.22');
  const answers = await Promise.all(['one', 'two', 'three'].map((name) => client.execute(name)));
  t.strictSame(
    answers,
    ['one', 'two', 'three'].map((to) => ({ to, text: 'grün' })),
  );
});

void t.test('a refusal carries class and description', async (t) => {
  const client = await connected(t, (socket, { id }) =>
    reply(socket, { error: { class: 'GenericError', desc: 'no such thing' }, id }),
  );
  const error = await client.execute('device_del', { id: 'x' }).catch((thrown: unknown) => thrown);
  t.ok(error instanceof QmpError);
  t.match(error, {
    code: 'PT_VMM_FAILED',
    qmpClass: 'GenericError',
    description: 'no such thing',
    command: 'device_del',
  });
  t.ok(client.usable);
});

void t.test('events: timestamps, waiting, waiting in vain', async (t) => {
  const client = await connected(t, (socket, { id, execute }) => {
    if (execute === 'stop') reply(socket, { event: 'STOP', timestamp: { seconds: 1700000000, microseconds: 123456 } });
    if (execute === 'odd')
      reply(socket, { event: 'ODD', data: { a: 1 }, timestamp: { seconds: -1, microseconds: -1 } });
    reply(socket, { return: {}, id });
  });
  const seen: string[] = [];
  const off = client.onEvent(({ event }) => seen.push(event));
  const stop = client.waitForEvent(['RESUME', 'STOP']);
  await client.execute('stop');
  t.strictSame(await stop, { event: 'STOP', data: {}, unixMicros: 1700000000123456 });
  const odd = client.waitForEvent('ODD');
  await client.execute('odd');
  t.ok(Math.abs((await odd).unixMicros / 1000 - Date.now()) < 5000, 'a clock that failed is replaced by ours');
  off();
  await client.execute('stop');
  t.strictSame(seen, ['STOP', 'ODD']);
  await t.rejects(client.waitForEvent('NEVER', { timeoutMs: 20 }), { code: 'PT_VMM_TIMEOUT' });
});

void t.test('an answer that comes too late is dropped', async (t) => {
  let late: Command | undefined;
  const client = await connected(t, (socket, command) => {
    if (!late) {
      late = command;
      return;
    }
    reply(socket, { return: 'late', id: late.id });
    reply(socket, { error: { class: 'GenericError', desc: 'of nothing in particular' } });
    reply(socket, { return: 'right', id: command.id });
  });
  await t.rejects(client.execute('slow', {}, { timeoutMs: 20 }), { code: 'PT_VMM_TIMEOUT', message: /slow/ });
  t.equal(await client.execute('next'), 'right');
});

void t.test('a peer that vanishes ends what waits on it', async (t) => {
  const client = await connected(t, (socket) => socket.destroy());
  const event = client.waitForEvent('NEVER');
  await t.rejects(client.execute('anything'), { code: 'PT_VMM_GONE' });
  await t.rejects(event, { code: 'PT_VMM_GONE' });
  await client.closed;
  t.notOk(client.usable);
  await t.rejects(client.execute('more'), { code: 'PT_VMM_GONE' });
  await t.rejects(client.waitForEvent('MORE'), { code: 'PT_VMM_GONE' });
});

void t.test('garbage breaks the connection, and the caller may make another', async (t) => {
  for (const garbage of ['what?\n', '[1]\n', 'null\n', '{"neither":1}\n', '{"error":"text"}\n', '\u0000\u0001\n']) {
    const path = await fake(t, (socket, { id, execute }) => {
      if (execute === 'bad') socket.write(garbage);
      else reply(socket, { return: 'fine', id });
    });
    const client = await QmpClient.connect(path);
    await t.rejects(client.execute('bad'), { code: 'PT_VMM_PROTOCOL' }, JSON.stringify(garbage));
    const again = await QmpClient.connect(path);
    t.equal(await again.execute('good'), 'fine');
    again.close();
  }
});

void t.test('odd but lawful answers are survived', async (t) => {
  const client = await connected(t, (socket, { id }) => {
    socket.write('\r\n\n');
    reply(socket, { event: 'NO_TIME', data: 7 });
    reply(socket, { return: 1, id: 'text' });
    reply(socket, { error: { class: 5 }, id });
  });
  await t.rejects(client.execute('x'), { code: 'PT_VMM_FAILED', qmpClass: 'unknown error' });
});

void t.test('a line without end is bounded', async (t) => {
  const client = await connected(t, (socket) => void socket.write(Buffer.alloc(200_000, 'x')), { maxLine: 50_000 });
  await t.rejects(client.execute('x'), { code: 'PT_VMM_PROTOCOL', message: /50000/ });
});

void t.test('what is no monitor is refused', async (t) => {
  await t.rejects(QmpClient.connect('/nowhere/at/all'), { code: 'PT_VMM_GONE' });
  await t.rejects(QmpClient.connect(await fake(t, () => undefined, ''), { timeoutMs: 30 }), {
    code: 'PT_VMM_TIMEOUT',
    hint: /one client/,
  });
  await t.rejects(QmpClient.connect(await fake(t, () => undefined, '{"hello":1}\n')), { code: 'PT_VMM_PROTOCOL' });
  await t.rejects(QmpClient.connect(await fake(t, () => undefined, 'HTTP/1.1 400\r\n')), { code: 'PT_VMM_PROTOCOL' });
});

void t.test('closing rejects what is under way, and may be repeated', async (t) => {
  const client = await connected(t, () => undefined);
  const waiting = client.execute('x');
  client.close();
  client.close();
  await t.rejects(waiting, { code: 'PT_VMM_GONE' });
  await client.closed;
});
