import { createHash, randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { ftruncateSync, openSync, closeSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { connect, type Socket } from 'node:net';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { Manifest } from '../../src/pages/manifest.ts';
import { TAG_BYTES } from '../../src/pages/tags.ts';
import { eachPiece, type Batch } from '../../src/transport/page-client.ts';
import { FrameType, HEADER_SIZE, WireLimit, encodeFrame } from '../../src/transport/wire.ts';
import { encodeBatchRequest } from '../../src/transport/wire-batch.ts';
import { encodeManifestEnd, encodeTags } from '../../src/transport/wire-tags.ts';
import { PAGE, PageCollector, TOKEN, deferred, open, source, until, type Source } from './support.ts';

/** Speaks the upgrade by hand, to say what no client of ours would. Resolves when the 101 has come. */
async function byHand(t: Test, from: Source, channel: string): Promise<Socket> {
  const socket = connect(Number(new URL(from.url).port), '127.0.0.1');
  t.teardown(() => socket.destroy());
  socket.on('error', () => undefined);
  socket.write(
    `GET /v1/pages/m1?channel=${channel} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: pagetide\r\n` +
      `Pagetide-Protocol: 3\r\nAuthorization: Bearer ${TOKEN}\r\n\r\n`,
  );
  let head = '';
  while (!head.includes('\r\n\r\n')) head += String(((await once(socket, 'data')) as [Buffer])[0]);
  t.match(head, /^HTTP\/1.1 101 /);
  return socket;
}

function pagesOf(batch: Batch): Map<number, Buffer> {
  const pages = new Map<number, Buffer>();
  eachPiece(batch, PAGE, (frame, count, at) => {
    for (let i = 0; i < count; i++) {
      const page = at < 0 ? Buffer.alloc(PAGE) : Buffer.from(batch.pages.subarray(at + i * PAGE, at + (i + 1) * PAGE));
      pages.set(frame + i, page);
    }
  });
  return pages;
}

function check(t: Test, from: Source, pages: Map<number, Buffer>): void {
  let wrong = 0;
  for (const [frame, page] of pages) if (!page.equals(from.bytes.subarray(frame * PAGE, (frame + 1) * PAGE))) wrong++;
  t.equal(wrong, 0, `${pages.size} pages are right`);
}

void t.test('demand: every page, many at once, byte for byte', async (t) => {
  const from = await source(t);
  const got = new PageCollector();
  const connection = await open(t, from, 'demand', got.handlers);
  for (let frame = 0; frame < from.frames; frame++) t.equal(connection.requestPage(frame), true);
  t.equal(connection.outstandingPages, from.frames, 'several are under way');
  await got.answers(from.frames);
  t.equal(connection.outstandingPages, 0);
  check(t, from, got.pages);
  const counters = from.server.counters('m1')!;
  t.match(counters, {
    demandRequests: 256,
    demandZero: 52,
    demandPages: 204,
    rawBytes: 204 * PAGE,
    open: 1,
    errors: 0,
  });
  t.equal(counters.bytesIn, connection.bytesSent, 'bytes at both ends are the same');
  t.equal(counters.bytesOut, connection.bytesReceived);
  t.throws(() => connection.requestPage(256), { code: 'PT_BAD_ARGUMENT' });
  connection.close();
  t.equal(await got.closed.promise, undefined);
  t.equal(connection.requestPage(0), false, 'not on a closed connection');
});

void t.test('fill: batches over runs in any order, zero pages left out, compressed where it shrinks', async (t) => {
  const from = await source(t);
  const pages = new Map<number, Buffer>();
  const done = deferred();
  const connection = await open(t, from, 'fill', {
    onBatch(batch) {
      for (const [frame, page] of pagesOf(batch)) pages.set(frame, page);
      if (pages.size === 256) done.resolve();
    },
  });
  connection.requestBatch(Uint32Array.of(100, 60, 0, 50));
  connection.requestBatch(Uint32Array.of(50, 50, 255, 1, 160, 95));
  await done.promise;
  check(t, from, pages);
  const counters = from.server.counters('m1')!;
  t.match(counters, { batchRequests: 2, fillPages: 204, fillZero: 52 });
  t.ok(counters.pageBytes < counters.rawBytes, 'half of the pages compress');
  t.throws(() => connection.requestBatch(Uint32Array.of(0, 257)), { code: 'PT_BAD_ARGUMENT' });
});

void t.test('memory in several files, batches across their seam', async (t) => {
  const from = await source(t);
  const second = join(from.folder, 'second');
  writeFileSync(second, from.bytes);
  const files = [
    { path: from.file, size: 100 * PAGE, offset: 0 },
    { path: second, size: 50 * PAGE, offset: 100 * PAGE },
  ];
  await from.server.offer({ migration: 'm2', token: TOKEN, pageSize: PAGE, frames: 150, files });
  const batches = deferred<Map<number, Buffer>>();
  const got = new PageCollector();
  const options = { migration: 'm2', frames: 150 };
  const fill = await open(t, from, 'fill', { onBatch: (batch) => batches.resolve(pagesOf(batch)) }, options);
  const demand = await open(t, from, 'demand', got.handlers, options);
  fill.requestBatch(Uint32Array.of(98, 4));
  demand.requestPage(101);
  demand.requestPage(99);
  await got.answers(2);
  const expected = Buffer.concat([from.bytes.subarray(0, 100 * PAGE), from.bytes.subarray(0, 50 * PAGE)]);
  for (const [frame, page] of [...got.pages, ...(await batches.promise)]) {
    t.ok(page.equals(expected.subarray(frame * PAGE, (frame + 1) * PAGE)), `frame ${frame}`);
  }
});

void t.test('2 MiB pages', async (t) => {
  const from = await source(t, 1024);
  const pageSize = 2 << 20;
  const files = [{ path: from.file, size: from.bytes.length, offset: 0 }];
  await from.server.offer({ migration: 'big', token: TOKEN, pageSize, frames: 2, files });
  const digests = new Map<number, string>();
  const done = deferred();
  const connection = await open(
    t,
    from,
    'demand',
    {
      onPage(frame, buffer, at) {
        digests.set(
          frame,
          createHash('sha1')
            .update(buffer.subarray(at, at + pageSize))
            .digest('hex'),
        );
        if (digests.size === 2) done.resolve();
      },
    },
    { migration: 'big', pageSize, frames: 2 },
  );
  connection.requestPage(1);
  connection.requestPage(0);
  await done.promise;
  for (const frame of [0, 1]) {
    const expected = createHash('sha1').update(from.bytes.subarray(frame * pageSize, (frame + 1) * pageSize));
    t.equal(digests.get(frame), expected.digest('hex'));
  }
});

void t.test(
  'manifest and state: pushed before, while and after the destination connects; again on each connection',
  async (t) => {
    const from = await source(t);
    const manifest = new Manifest(256);
    manifest.tags.fill(7, 0, 10 * TAG_BYTES);
    const state = randomBytes(300_000);
    const receive = async (): Promise<{ what: string[]; state: Buffer }> => {
      const what: string[] = [];
      const chunks: Buffer[] = [];
      const done = deferred<number>();
      const connection = await open(t, from, 'state', {
        onTags: (_payload, first) => what.push(`tags from ${first}`),
        onManifestEnd: (_payload, frames) => what.push(`${frames} frames`),
        onSettled: () => what.push('settled'),
        onState: (chunk) => chunks.push(Buffer.from(chunk)),
        onStateEnd: (length) => done.resolve(length),
        onClose: (error) => error && done.reject(error),
      });
      t.equal(await done.promise, state.length);
      connection.close();
      return { what, state: Buffer.concat(chunks) };
    };
    const early = receive();
    const sink = from.server.pushState('m1');
    sink.write(state.subarray(0, 100_000));
    await from.server.pushManifest('m1', [...encodeTags(manifest, 0, 10), encodeManifestEnd(manifest)]);
    const middle = receive();
    await from.server.settle('m1');
    sink.end(state.subarray(100_000));
    await once(sink, 'finish');
    for (const got of await Promise.all([early, middle, receive()])) {
      t.same(got.what, ['tags from 0', '256 frames', 'settled']);
      t.ok(got.state.equals(state));
    }
    await t.rejects(from.server.settle('m1'), { code: 'PT_BAD_ARGUMENT' }, 'settled once');
    await t.rejects(
      from.server.pushManifest('m1', [encodeManifestEnd(manifest)]),
      { code: 'PT_BAD_ARGUMENT' },
      'and for good',
    );
    await t.rejects(
      once(from.server.pushState('m1').end('x'), 'finish'),
      { code: 'PT_BAD_ARGUMENT' },
      'one state a migration',
    );
    await t.rejects(from.server.settle('nobody'), { code: 'PT_MIGRATION_UNKNOWN' });
  },
);

void t.test('a state that cannot be saved: the destination is told', async (t) => {
  const from = await source(t);
  const closed = deferred<Error | undefined>();
  await open(t, from, 'state', { onClose: (error) => closed.resolve(error) });
  const sink = from.server.pushState('m1');
  sink.on('error', () => undefined);
  sink.write('half');
  sink.destroy(new Error('the VMM refused'));
  t.match(await closed.promise, { code: 'PT_CANCELLED', message: /the VMM refused/ });
});

void t.test(
  'demand is answered while a fill reader is stalled, and the server holds a bounded amount for it',
  async (t) => {
    const from = await source(t, 4096);
    const stalled = await byHand(t, from, 'fill');
    stalled.pause();
    // incompressible for the most part: 64 × 1 MiB, far more than sockets hold
    for (let i = 1; i <= WireLimit.batchRequests; i++)
      stalled.write(encodeBatchRequest(i, Uint32Array.of((i * 50) % 3000, 1024), 1024));
    const got = new PageCollector();
    const connection = await open(t, from, 'demand', got.handlers);
    for (let round = 0; round < 200; round++) {
      connection.requestPage(round * 7);
      await got.answers(round + 1);
    }
    check(t, from, got.pages);
    // the server's thread reads the other connection's requests when it comes to them, not before this one's answers
    await until(() => from.server.counters('m1')!.batchRequests === WireLimit.batchRequests);
    const { fillPages } = from.server.counters('m1')!;
    t.ok(fillPages < 64 * 800 * 0.6, `${fillPages} pages were read for one who reads none`);
    // more than may be outstanding, whatever the sockets have swallowed
    const closed = once(stalled, 'close');
    for (let i = 1; i <= WireLimit.batchRequests; i++)
      stalled.write(encodeBatchRequest(100 + i, Uint32Array.of(0, 1), 1));
    await until(() => from.server.counters('m1')!.errors === 1);
    stalled.resume();
    await closed;
  },
);

void t.test(
  'a demand reader that does not read: requests wait in a fixed ring, beyond it the connection ends',
  async (t) => {
    const from = await source(t, 4096);
    const socket = await byHand(t, from, 'demand');
    socket.pause();
    const closed = once(socket, 'close');
    const flood = Buffer.concat(
      Array.from({ length: 4000 }, (_, i) => encodeFrame(FrameType.PageRequest, 0, i + 1, i * 5 + 1 > 4095 ? 1 : i)),
    );
    for (let i = 0; i < 12; i++) socket.write(flood);
    await until(() => from.server.counters('m1')!.errors > 0);
    const { demandPages, demandRequests } = from.server.counters('m1')!;
    t.ok(demandRequests - demandPages >= 1000, 'most were not read from memory');
    socket.resume();
    await closed;
  },
);

void t.test('garbage ends the connection with an error, and nothing else', async (t) => {
  const from = await source(t);
  const cases: [string, string, Buffer][] = [
    ['unknown type', 'demand', encodeFrame(99 as FrameType, 0, 0, 0)],
    ['length of 4 GiB', 'demand', Buffer.from('ffffffff01000000000000000000000000', 'hex')],
    ['frame outside the guest', 'demand', encodeFrame(FrameType.PageRequest, 0, 1, 256)],
    ['runs outside the guest', 'fill', encodeBatchRequest(1, Uint32Array.of(250, 10), 10)],
    ['a request on the state channel', 'state', encodeFrame(FrameType.PageRequest, 0, 1, 1)],
  ];
  for (const [what, channel, bytes] of cases) {
    const socket = await byHand(t, from, channel);
    const pieces: Buffer[] = [];
    socket.on('data', (piece: Buffer) => pieces.push(piece));
    socket.write(bytes);
    await once(socket, 'end');
    const answer = Buffer.concat(pieces);
    t.equal(answer[4], FrameType.Error, what);
    t.match(JSON.parse(answer.toString('utf8', HEADER_SIZE)), { code: 'PT_PROTOCOL' }, what);
  }
  const got = new PageCollector();
  (await open(t, from, 'demand', got.handlers)).requestPage(3);
  await got.answers(1);
  check(t, from, got.pages);
});

void t.test('a memory file that shrinks: an error for the frames that are gone, the rest goes on', async (t) => {
  const from = await source(t);
  const got = new PageCollector();
  const demand = await open(t, from, 'demand', got.handlers);
  const failed = deferred<Error>();
  const batch = deferred<Batch>();
  const fill = await open(t, from, 'fill', {
    onBatchError: (_s, _r, error) => failed.resolve(error),
    onBatch: (b) => batch.resolve(b),
  });
  truncateSync(from.file, 100 * PAGE + 1);
  demand.requestPage(99);
  demand.requestPage(100);
  demand.requestPage(200);
  await got.answers(3);
  t.same([...got.pages.keys()], [99]);
  t.same([...got.errors.keys()], [100, 200]);
  for (const error of got.errors.values()) t.match(error, { code: 'PT_MEMORY_FILE' });
  check(t, from, got.pages);
  fill.requestBatch(Uint32Array.of(90, 20));
  t.match(await failed.promise, { code: 'PT_MEMORY_FILE' });
  fill.requestBatch(Uint32Array.of(90, 10));
  t.equal((await batch.promise).total, 10);
  const fd = openSync(from.file, 'r+');
  ftruncateSync(fd, 0);
  closeSync(fd);
  rmSync(from.file);
  demand.requestPage(1);
  await got.answers(4);
  t.match(got.errors.get(1), { code: 'PT_MEMORY_FILE' }, 'gone altogether');
});

void t.test('offers that make no sense are refused', async (t) => {
  const from = await source(t);
  const good = {
    migration: 'm9',
    token: TOKEN,
    pageSize: PAGE,
    frames: 256,
    files: [{ path: from.file, size: 256 * PAGE, offset: 0 }],
  };
  const cases: [string, object, string][] = [
    ['a name for a path', { migration: '../x' }, 'PT_BAD_ARGUMENT'],
    ['a short token', { token: 'short' }, 'PT_BAD_ARGUMENT'],
    ['a token that would split a header', { token: 'a'.repeat(20) + '\r\n' }, 'PT_BAD_ARGUMENT'],
    ['page size', { pageSize: 4097 }, 'PT_BAD_ARGUMENT'],
    ['frames', { frames: 255 }, 'PT_BAD_ARGUMENT'],
    ['a gap', { files: [{ path: from.file, size: 256 * PAGE, offset: PAGE }] }, 'PT_BAD_ARGUMENT'],
    ['no files', { files: [], frames: 0 }, 'PT_BAD_ARGUMENT'],
    ['no such file', { files: [{ path: `${from.file}-not`, size: 256 * PAGE, offset: 0 }] }, 'PT_MEMORY_FILE'],
    ['a folder', { files: [{ path: from.folder, size: 256 * PAGE, offset: 0 }] }, 'PT_MEMORY_FILE'],
    ['too short', { frames: 257, files: [{ path: from.file, size: 257 * PAGE, offset: 0 }] }, 'PT_MEMORY_FILE'],
    ['offered already', { migration: 'm1' }, 'PT_BAD_ARGUMENT'],
  ];
  for (const [what, change, code] of cases) await t.rejects(from.server.offer({ ...good, ...change }), { code }, what);
  await from.server.offer(good);
});

void t.test('the upgrade: who is refused, and how', async (t) => {
  const from = await source(t);
  await t.rejects(open(t, from, 'demand', {}, { migration: 'nobody' }), { code: 'PT_MIGRATION_UNKNOWN' });
  await t.rejects(open(t, from, 'demand', {}, { token: `${TOKEN}x` }), { code: 'PT_UNAUTHORIZED' });
  await t.rejects(open(t, from, 'demand', {}, { frames: 255 }), { code: 'PT_PROTOCOL' }, 'another guest');
  await t.rejects(open(t, from, 'demand', {}, { pageSize: 8192 }), { code: 'PT_PROTOCOL' }, 'another page size');
  await t.rejects(open(t, from, 'demand', {}, { url: 'ftp://x' }), { code: 'PT_BAD_ARGUMENT' });
  await t.rejects(open(t, from, 'demand', {}, { signal: AbortSignal.abort() }), { code: 'PT_CANCELLED' });
  const ask = async (path: string, headers: string): Promise<string> => {
    const socket = connect(Number(new URL(from.url).port), '127.0.0.1');
    t.teardown(() => socket.destroy());
    socket.end(`GET ${path} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\n${headers}\r\n`);
    const pieces: Buffer[] = [];
    for await (const piece of socket) pieces.push(piece as Buffer);
    return Buffer.concat(pieces).toString();
  };
  const auth = `Authorization: Bearer ${TOKEN}\r\n`;
  const upgrade = 'Upgrade: pagetide\r\nPagetide-Protocol: 3\r\n';
  const demand = '/v1/pages/m1?channel=demand';
  t.match(await ask(demand, upgrade), /^HTTP\/1.1 401 [^]*"PT_UNAUTHORIZED"/, 'no token');
  t.match(
    await ask(demand, `Upgrade: pagetide\r\nPagetide-Protocol: 1\r\n${auth}`),
    /^HTTP\/1.1 426 [^]*"PT_PROTOCOL"/,
  );
  t.match(await ask(demand, `Upgrade: pagetide\r\n${auth}`), /^HTTP\/1.1 426 /, 'no version');
  t.match(await ask(demand, `Upgrade: websocket\r\nPagetide-Protocol: 3\r\n${auth}`), /^HTTP\/1.1 426 /);
  t.match(await ask('/v1/pages/m1?channel=other', upgrade + auth), /^HTTP\/1.1 404 [^]*"PT_BAD_ARGUMENT"/);
  t.match(await ask('/elsewhere', upgrade + auth), /^HTTP\/1.1 404 /);
  t.match(await (await fetch(`${from.url}${demand}`)).json(), { code: 'PT_PROTOCOL' }, 'no upgrade at all');
  t.notMatch(await ask(demand, `${upgrade}Authorization: Bearer wrong-secret\r\n`), /wrong-secret/);
});

void t.test('two migrations at once keep their pages apart; withdrawing one leaves the other', async (t) => {
  const from = await source(t);
  const other = Buffer.from(from.bytes).reverse();
  const file = join(from.folder, 'other');
  writeFileSync(file, other);
  const token = 'another-secret-0123456789';
  await from.server.offer({
    migration: 'm2',
    token,
    pageSize: PAGE,
    frames: 256,
    files: [{ path: file, size: other.length, offset: 0 }],
  });
  await t.rejects(
    open(t, from, 'demand', {}, { migration: 'm2' }),
    { code: 'PT_UNAUTHORIZED' },
    "one's token does not open the other",
  );
  const a = new PageCollector();
  const b = new PageCollector();
  const first = await open(t, from, 'demand', a.handlers);
  const second = await open(t, from, 'demand', b.handlers, { migration: 'm2', token });
  for (let frame = 0; frame < 256; frame++) {
    first.requestPage(frame);
    second.requestPage(frame);
  }
  await Promise.all([a.answers(256), b.answers(256)]);
  check(t, from, a.pages);
  check(t, { ...from, bytes: other }, b.pages);
  t.match(await from.server.withdraw('m1'), { demandRequests: 256 });
  t.match(await a.closed.promise, { code: 'PT_MIGRATION_UNKNOWN' });
  t.equal(await from.server.withdraw('m1'), undefined, 'again');
  await t.rejects(open(t, from, 'demand'), { code: 'PT_MIGRATION_UNKNOWN' });
  b.pages.clear();
  second.requestPage(7);
  await b.answers(1);
  check(t, { ...from, bytes: other }, b.pages);
});

void t.test('a reconnecting destination is not kept out by its own dead connections', async (t) => {
  const from = await source(t);
  const sockets = [];
  for (let i = 0; i < 4; i++) sockets.push(await byHand(t, from, 'demand'));
  const oldest = once(sockets[0]!, 'close');
  sockets[0]!.resume();
  const got = new PageCollector();
  (await open(t, from, 'demand', got.handlers)).requestPage(2);
  await got.answers(1);
  await oldest;
});

void t.test('a destination that is silent is pinged, then let go', async (t) => {
  const from = await source(t, 256, 'm1', { livenessMs: 250 });
  const silent = await byHand(t, from, 'demand');
  const pieces: Buffer[] = [];
  silent.on('data', (piece: Buffer) => pieces.push(piece));
  await once(silent, 'close');
  t.equal(Buffer.concat(pieces)[4], FrameType.Ping);
  await until(() => from.server.counters('m1')!.open === 0);
  // one that answers pings stays, over many times that long
  const got = new PageCollector();
  const connection = await open(t, from, 'demand', got.handlers);
  const before = connection.bytesSent;
  await until(() => connection.closed || connection.bytesSent >= before + 4 * HEADER_SIZE);
  t.equal(connection.closed, false);
  connection.requestPage(1);
  await got.answers(1);
});
