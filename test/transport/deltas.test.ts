/** Deltas through a real page server, and what either side refuses of them. */
import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { closeSync, openSync, truncateSync, writeSync } from 'node:fs';
import { connect, createServer, type AddressInfo, type Socket } from 'node:net';
import t, { type Test } from 'tap';
import { native } from '../../src/memory/native.ts';
import type { Batch, DeltaRequest, Deltas } from '../../src/transport/page-client.ts';
import { encodeBatch, encodeBatchRequest } from '../../src/transport/wire-batch.ts';
import { encodeDeltaRequest, encodeDeltas } from '../../src/transport/wire-deltas.ts';
import { FrameType, HEADER_SIZE, encodeFrame } from '../../src/transport/wire.ts';
import { PAGE, TOKEN, deferred, open, source, type Source } from './support.ts';

const RUNS = Uint32Array.of(100, 20, 3, 5);
const TOTAL = 25;

function requestFor(base: Buffer, runs = RUNS): { request: DeltaRequest; pages: Buffer } {
  const parts: Buffer[] = [];
  for (let i = 0; i < runs.length; i += 2) parts.push(base.subarray(runs[i]! * PAGE, (runs[i]! + runs[i + 1]!) * PAGE));
  const pages = Buffer.concat(parts);
  const digests = new Uint8Array((pages.length / PAGE) * 64);
  const seed = randomBytes(8).readBigUInt64LE();
  native().digestBlocks(seed, pages, pages.length / PAGE, digests);
  return { request: { seed, runs, digests }, pages };
}

void t.test('what changed in a page comes, and no more; the source tells what it saved', async (t) => {
  const from = await source(t);
  const answers: { deltas: Deltas; bytes: Buffer }[] = [];
  let came = deferred();
  const fill = await open(t, from, 'fill', {
    onDeltas(deltas) {
      answers.push({ deltas, bytes: Buffer.from(deltas.deltas) });
      came.resolve();
    },
  });
  const { request, pages } = requestFor(from.bytes);
  // a counter in one page, half of another, one that becomes zero
  const now = Buffer.from(from.bytes);
  now.writeUInt32LE(0xdead, 100 * PAGE + 1000);
  randomBytes(2048).copy(now, 119 * PAGE + 64);
  now.fill(0, 7 * PAGE, 8 * PAGE);
  const fd = openSync(from.file, 'r+');
  writeSync(fd, now, 0, now.length, 0);
  closeSync(fd);
  const [received, sent] = [fill.bytesReceived, fill.bytesSent];
  fill.requestDeltas(request, true);
  t.equal(fill.bytesSent - sent, HEADER_SIZE + 12 + 16 + TOTAL * 64);
  await came.promise;
  const { deltas, bytes } = answers[0]!;
  t.ok(deltas.whole > 8 * PAGE, `whole they would have taken ${deltas.whole} bytes: many of the pages are random`);
  t.ok(fill.bytesReceived - received < 4_000, `${fill.bytesReceived - received} bytes came`);
  const made = Buffer.from(pages);
  t.ok(native().applyDeltas(made, TOTAL, bytes));
  t.ok(made.equals(requestFor(now).pages));

  came = deferred();
  fill.requestDeltas(requestFor(now).request, false);
  await came.promise;
  t.match(answers[1]!.deltas, { whole: 0, total: TOTAL });
  t.equal(answers[1]!.bytes.length, TOTAL * 4, 'nothing differs');
  t.match(from.server.counters('m1'), { batchRequests: 2, fillPages: 2 * TOTAL, rawBytes: 2 * TOTAL * PAGE });
});

void t.test('a memory file that shrinks: an error, and the connection goes on', async (t) => {
  const from = await source(t);
  const refused = deferred<{ runs: Uint32Array; code: string }>();
  const came = deferred<number>();
  const fill = await open(t, from, 'fill', {
    onDeltas: ({ total }) => came.resolve(total),
    onBatchError: (_stream, runs, { code }) => refused.resolve({ runs, code }),
  });
  truncateSync(from.file, 50 * PAGE);
  fill.requestDeltas(requestFor(from.bytes).request, false);
  t.match(await refused.promise, { runs: RUNS, code: 'PT_MEMORY_FILE' });
  fill.requestDeltas(requestFor(from.bytes, Uint32Array.of(3, 5)).request, false);
  t.equal(await came.promise, 5);
});

/** Speaks the upgrade by hand. Resolves to what the source says last. */
async function lastWord(t: Test, from: Source, channel: string, bytes: Buffer): Promise<string> {
  const socket = connect(Number(new URL(from.url).port), '127.0.0.1');
  t.teardown(() => socket.destroy());
  socket.on('error', () => undefined);
  let said = '';
  socket.on('data', (chunk) => (said += String(chunk)));
  socket.write(
    `GET /v1/pages/m1?channel=${channel} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: pagetide\r\n` +
      `Pagetide-Protocol: 3\r\nAuthorization: Bearer ${TOKEN}\r\n\r\n`,
  );
  socket.write(bytes);
  await once(socket, 'close');
  return said;
}

void t.test('requests that are none end the connection', async (t) => {
  const from = await source(t);
  const good = encodeDeltaRequest(1, requestFor(from.bytes).request, TOTAL, false);
  const broken = (change: (frame: Buffer) => void): Buffer => {
    const frame = Buffer.from(good);
    change(frame);
    return frame;
  };
  for (const [what, bytes] of [
    ['a frame outside the guest', broken((frame) => frame.writeUInt32LE(250, HEADER_SIZE + 12))],
    ['other frames than it says', broken((frame) => frame.writeUInt32LE(TOTAL + 1, 12))],
    ['runs without end', broken((frame) => frame.writeUInt32LE(0xffff_ffff, HEADER_SIZE + 8))],
    ['an unknown flag', broken((frame) => (frame[5] = 4))],
    ['deltas', encodeDeltas(1, 1, 0, Buffer.alloc(4), 4, false)],
  ] as const)
    t.match(await lastWord(t, from, 'fill', bytes), /PT_PROTOCOL/, what);
  t.match(await lastWord(t, from, 'demand', good), /PT_PROTOCOL/, 'never where faults are asked for');
});

/** A source that answers the upgrade, and each request as it likes. */
async function rogue(t: Test, answer: (socket: Socket) => void): Promise<Source> {
  const server = createServer((socket) => {
    t.teardown(() => socket.destroy());
    socket.on('error', () => undefined);
    socket.once('data', () => {
      socket.write(
        `HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: pagetide\r\nPagetide-Protocol: 3\r\n` +
          `Pagetide-Page-Size: ${PAGE}\r\nPagetide-Frames: 256\r\n\r\n`,
      );
      socket.once('data', () => answer(socket));
    });
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  t.teardown(() => server.close());
  return { url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`, frames: 256 } as Source;
}

void t.test('answers that are none end the connection', async (t) => {
  const runs = Uint32Array.of(3, 1);
  const batch = encodeBatch(1, runs, 1, Uint8Array.of(1), Buffer.alloc(0), 0, false);
  const deltas = (bytes: number, stream = 1, total = 1): Buffer =>
    encodeDeltas(stream, total, 0, Buffer.alloc(bytes), bytes, false);
  for (const [what, asks, answer] of [
    ['whole pages for deltas', 'deltas', batch],
    ['deltas for whole pages', 'whole', deltas(4)],
    ['of another request', 'deltas', deltas(4, 2)],
    ['of more frames', 'deltas', deltas(8, 1, 2)],
    ['no whole blocks', 'deltas', deltas(100)],
    ['too many blocks', 'deltas', deltas(4 + 33 * 128)],
    ['twice', 'deltas', Buffer.concat([deltas(4), deltas(4)])],
    ['a request', 'deltas', encodeBatchRequest(1, runs, 1)],
    ['another length', 'deltas', encodeFrame(FrameType.Deltas, 0, 1, 1, Buffer.alloc(8))],
  ] as const) {
    const from = await rogue(t, (socket) => socket.write(answer));
    const closed = deferred<Error | undefined>();
    const got: (Batch | Deltas)[] = [];
    const fill = await open(t, from, 'fill', {
      onBatch: (it) => got.push(it),
      onDeltas: (it) => got.push(it),
      onClose: (error) => closed.resolve(error),
    });
    if (asks === 'deltas') fill.requestDeltas(requestFor(Buffer.alloc(256 * PAGE), runs).request, false);
    else fill.requestBatch(runs);
    t.match(await closed.promise, { code: 'PT_PROTOCOL' }, what);
    t.equal(got.length, what === 'twice' ? 1 : 0);
  }
});
