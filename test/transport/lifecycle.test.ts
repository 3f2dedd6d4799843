import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { writeFileSync } from 'node:fs';
import { createServer } from 'node:net';
import type { AddressInfo } from 'node:net';
import { join } from 'node:path';
import t from 'tap';
import { PageServer } from '../../src/transport/page-server.ts';
import { PageCollector, deferred, folder, open, source } from './support.ts';

void t.test('a port in use', async (t) => {
  const other = createServer();
  other.listen(0, '127.0.0.1');
  await once(other, 'listening');
  t.teardown(() => other.close());
  const { port } = other.address() as AddressInfo;
  await t.rejects(PageServer.start({ host: '127.0.0.1', port, controlSocket: '/nowhere' }), { code: 'PT_PORT_IN_USE' });
  await t.rejects(PageServer.start({ host: '192.0.2.1', port: 0, controlSocket: '/nowhere' }), {
    code: 'PT_BAD_ARGUMENT',
  });
  await t.rejects(PageServer.start({ host: '127.0.0.1', port: 65536, controlSocket: '/nowhere' }), {
    code: 'PT_BAD_ARGUMENT',
  });
});

void t.test('closing ends the streams, gives the port back, and may be repeated', async (t) => {
  const from = await source(t);
  const got = new PageCollector();
  const batch = deferred();
  await open(t, from, 'demand', got.handlers);
  const fill = await open(t, from, 'fill', { onClose: () => batch.resolve() });
  for (let i = 0; i < 20; i++) fill.requestBatch(Uint32Array.of(0, 256));
  const { host, port } = from.server.address();
  await Promise.all([from.server.close(), from.server.close()]);
  t.ok(await got.closed.promise, 'the destination sees it');
  await batch.promise;
  await t.rejects(from.server.settle('m1'), { code: 'PT_INTERNAL' });
  const again = await PageServer.start({ host, port, controlSocket: '/nowhere' });
  await again.close();
});

void t.test('IPv6 addresses', async (t) => {
  const server = await PageServer.start({ host: '::1', port: 0, controlSocket: '/nowhere' });
  t.teardown(() => server.close());
  t.match(server.address().url, /^http:\/\/\[::1\]:\d+$/);
  await t.rejects(open(t, { url: server.address().url, frames: 1 } as never, 'demand'), {
    code: 'PT_MIGRATION_UNKNOWN',
  });
});

void t.test('a process that closed everything ends by itself', async (t) => {
  const module = (name: string): string =>
    JSON.stringify(new URL(`../../src/transport/${name}.js`, import.meta.url).href);
  const script = `
    import { writeFileSync, rmSync } from 'node:fs';
    import { PageServer } from ${module('page-server')};
    import { connectPages } from ${module('page-client')};
    import { PeerClient } from ${module('peer')};
    const file = process.argv[2], size = 64 * 4096, token = 'x'.repeat(32);
    writeFileSync(file, Buffer.alloc(size, 1));
    const server = await PageServer.start({ host: '127.0.0.1', port: 0, controlSocket: '/nowhere' });
    await server.offer({ migration: 'm', token, pageSize: 4096, frames: 64, files: [{ path: file, size, offset: 0 }] });
    const url = server.address().url;
    const all = [];
    const connect = (channel, handlers) => connectPages({ url, migration: 'm', token, channel, pageSize: 4096, frames: 64, handlers });
    await new Promise(async (done) => { const c = await connect('demand', { onPage: () => done() }); all.push(c); c.requestPage(3); });
    await new Promise(async (done) => { const c = await connect('fill', { onBatch: () => done() }); all.push(c); c.requestBatch(Uint32Array.of(0, 64)); });
    const peer = new PeerClient(url);
    await peer.status('abc').catch(() => {});
    await peer.close();
    for (const connection of all) connection.close();
    await server.close();
    rmSync(file);
    console.log('closed');
  `;
  const own = folder(t);
  const program = join(own, 'program.mjs');
  writeFileSync(program, script);
  const child = spawn(process.execPath, [program, join(own, 'ram')], { stdio: ['ignore', 'pipe', 'inherit'] });
  t.teardown(() => child.kill('SIGKILL'));
  let out = '';
  child.stdout.on('data', (piece) => (out += String(piece)));
  const late = setTimeout(() => child.kill('SIGKILL'), 30_000);
  const [code] = (await once(child, 'exit')) as [number | null];
  clearTimeout(late);
  t.equal(code, 0);
  t.equal(out, 'closed\n');
});
