/** What is refused, before anything changes: bad names, bad places, no room. The guest runs on where it was. */
import { spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, mkdtempSync, rmSync } from 'node:fs';
import { createServer as createHttpServer } from 'node:http';
import { createServer, type AddressInfo, type Server, type Socket } from 'node:net';
import t, { type Test } from 'tap';
import { AgentClient } from '../../src/agent/api/client.ts';
import { PEER_PROTOCOL } from '../../src/migration/types.ts';
import { TAG_VERSION } from '../../src/pages/tags.ts';
import { runCli } from '../cli/harness.ts';
import { cluster, type Cluster, type TestAgent } from '../support/cluster.ts';
import { guestFaults, migrate, startGuest, stillLeft, until } from '../support/migrate.ts';

t.setTimeout(600_000);

async function listen(t: Test, server: Server): Promise<string> {
  const sockets = new Set<Socket>();
  server.on('connection', (socket: Socket) => sockets.add(socket));
  await new Promise<void>((done) => server.listen(0, '127.0.0.1', done));
  t.teardown(async () => {
    const closed = once(server, 'close');
    server.close();
    for (const socket of sockets) socket.destroy();
    await closed;
  });
  return `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
}

/** A migration of g1 from `a` ends in this error, and has changed nothing. */
async function failsWith(t: Test, made: Cluster, a: TestAgent, to: string, code: string): Promise<void> {
  const { last } = await migrate(a, to, 'g1');
  t.equal(last.progress.phase, 'failed');
  t.match(last.error, { code, hint: /./ });
  await until('the guest is free', async () => (await a.client.showGuest('g1')).migration === undefined);
  t.strictSame(await guestFaults(a, 'g1'), []);
  t.strictSame(await stillLeft(made), []);
}

void t.test('names and places', { timeout: 600_000 }, async (t) => {
  const made = cluster(t);
  const [a, b] = [await made.agent('a'), await made.agent('b')];
  await startGuest(a, 'g1');
  const request = { guest: 'g1', to: b.url, mode: 'post-copy', verify: true } as const;

  await t.rejects(a.client.migrate({ ...request, guest: 'nobody' }), { code: 'PT_GUEST_UNKNOWN' });
  await t.rejects(startGuest(a, 'g1'), { code: 'PT_GUEST_EXISTS' }, 'a name that is taken');
  await t.rejects(a.client.migrate({ ...request, to: a.url }), { code: 'PT_BAD_ARGUMENT' }, 'to itself');
  await t.rejects(a.client.migrate({ ...request, to: 'ftp://127.0.0.1:1' }), { code: 'PT_BAD_ARGUMENT' });
  t.strictSame(await a.client.listMigrations(), [], 'nothing was begun');

  const port = await listen(t, createServer());
  await failsWith(t, made, a, port.replace(/\d+$/, '1'), 'PT_PEER_UNREACHABLE');
  const web = createHttpServer((_request, response) => response.writeHead(404).end('no such page'));
  await failsWith(t, made, a, await listen(t, web), 'PT_PEER_FAILED');
  const mute = createServer((socket) => socket.on('error', () => undefined).end('220 mail.example.org ESMTP\r\n'));
  await failsWith(t, made, a, await listen(t, mute), 'PT_PEER_UNREACHABLE');

  await startGuest(b, 'g1');
  const { pid } = await b.client.showGuest('g1');
  await failsWith(t, made, a, b.url, 'PT_GUEST_EXISTS');
  t.equal((await b.client.showGuest('g1')).pid, pid, "the other guest of that name isn't touched");
  t.strictSame(await guestFaults(b, 'g1'), []);
  await b.client.removeGuest('g1');

  t.equal((await migrate(a, b, 'g1')).last.report?.verified, true, 'after all of that it can still go');
  t.strictSame(await stillLeft(made), []);
});

void t.test('a port and a folder that are in use', { timeout: 60_000 }, async (t) => {
  const made = cluster(t);
  const a = await made.agent('a');
  const port = new URL(a.url).port;
  const other = await runCli(t, ['agent', '--listen', `127.0.0.1:${port}`, '--state', `${made.root}/c`, '--name', 'c']);
  t.equal(other.code, 1);
  t.match(other.stderr, /PT_PORT_IN_USE/);
  const same = await runCli(t, ['agent', '--listen', '127.0.0.1:0', '--state', a.state, '--name', 'd']);
  t.equal(same.code, 1);
  t.match(same.stderr, /PT_STATE_IN_USE/);
  for (const name of ['c', 'd']) {
    const folder = `/dev/shm/pagetide-${process.getuid!()}-${name}`;
    t.notOk(existsSync(folder), 'no folder is left');
  }
  t.match(await a.client.info(), { name: 'a' }, 'the first agent goes on');
  t.strictSame(await stillLeft(made), []);
});

void t.test('a destination without room', { timeout: 600_000 }, async (t) => {
  const made = cluster(t);
  const a = await made.agent('a');
  await startGuest(a, 'g1', { memory: '24M' });

  await t.test('in its memory folder', async (t) => {
    const small = mkdtempSync('/tmp/ptt-small-');
    t.teardown(() => rmSync(small, { recursive: true, force: true }));
    if (spawnSync('mount', ['-t', 'tmpfs', '-o', 'size=20M', 'tmpfs', small]).status !== 0) {
      t.comment('a tmpfs can not be mounted here');
      return;
    }
    t.teardown(() => spawnSync('umount', [small]));
    const b = await made.agent('b', { memoryFolder: small });
    await failsWith(t, made, a, b.url, 'PT_NO_SPACE');
    await b.stop();
  });

  await t.test('no worker is free', async (t) => {
    const c = await made.agent('c', { faultWorkers: 1, fill: { bandwidth: '2M' } });
    await startGuest(a, 'g2', { memory: '24M' });
    const first = migrate(a, c, 'g2');
    await until('the worker is taken', async () => (await c.client.info()).faultWorkers.busy === 1);
    const { last } = await migrate(a, c, 'g1');
    t.equal(last.progress.phase, 'failed');
    t.match(last.error, { code: 'PT_NO_WORKER' });
    t.equal((await first).last.report?.verified, true, 'the guest that has it comes well');
    t.strictSame(await guestFaults(a, 'g1'), []);
    t.strictSame(await stillLeft(made), []);
  });

  await t.test('in memory: asked by a source with a guest that is larger than any host', async (t) => {
    const b = await made.agent('d');
    const size = 2 ** 40;
    const answer = await fetch(`${b.url}/v1/incoming`, {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify({
        protocol: PEER_PROTOCOL,
        migration: '00112233aabbccdd',
        epoch: Date.now(),
        guest: 'huge',
        mode: 'post-copy',
        description: {
          driver: 'embedded',
          memory: { size, pageSize: 4096, files: [{ id: 'ram', size, offset: 0 }] },
          config: { threads: 1, regions: 1 },
        },
        manifest: { version: TAG_VERSION, frames: size / 4096, chunks: Buffer.from([0]).toString('base64') },
        source: { url: a.url, token: 'x'.repeat(43) },
        verify: true,
        copies: false,
        serves: true,
        bandwidth: 0,
      }),
    });
    const status = (await answer.json()) as { state: string; error: { code: string } };
    t.match(status, { state: 'refused', error: { code: /^PT_NO_(SPACE|MEMORY)$/ } });
    t.strictSame(await stillLeft(made), []);
  });
});

void t.test('room is measured by what is less: space or memory', async (t) => {
  const { checkRoom } = await import('../../src/agent/room.ts');
  await t.rejects(checkRoom(2 ** 50, '/dev/shm'), { code: 'PT_NO_SPACE' });
  await checkRoom(4096, '/dev/shm');
  await t.rejects(
    checkRoom(2 ** 20, '/dev/shm', () => Promise.resolve(2 ** 20 - 1)),
    { code: 'PT_NO_MEMORY' },
  );
});

void t.test('an agent that is not there', async (t) => {
  await t.rejects(new AgentClient('http://127.0.0.1:1').listGuests(), { code: 'PT_PEER_UNREACHABLE' });
});
