/** Pages by tag between two hosts: the proof of the secret, what is answered, and who is not let in. */
import { writeFileSync, openSync, closeSync } from 'node:fs';
import { connect } from 'node:net';
import { join } from 'node:path';
import t from 'tap';
import { ResidentIndex } from '../../src/pages/resident.ts';
import { TAG_BYTES, TAG_PAGE } from '../../src/pages/tags.ts';
import { isSet } from '../../src/transport/wire-tag-pages.ts';
import { FrameType, WireLimit, encodeFrame } from '../../src/transport/wire.ts';
import { EXPIRED, trustCluster } from '../trust/support.ts';
import { deferred, folder, until } from './support.ts';
import { DOMAIN, NUMBER, ask, have, holder, keyOf, pagesOf, tagged } from './tag-support.ts';

void t.test('what is there is said, and sent: packed together, or one at once', async (t) => {
  const from = await holder(t);
  const { pages, tags } = tagged(from.key, 100);
  from.hold(pages, tags, (i) => i % 3 !== 0);
  const connection = await ask(t, from);
  t.ok(connection.connectMs >= 0 && connection.connectMs < 10_000);
  const present = await have(connection, tags);
  for (let i = 0; i < 100; i++) t.equal(isSet(present, i), i % 3 !== 0, `page ${i}`);

  const answer = await pagesOf(connection, tags);
  t.same(answer.present, present);
  const held = Array.from({ length: 100 }, (_, i) => i).filter((i) => i % 3 !== 0);
  const expected = Buffer.concat(held.map((i) => pages.subarray(i * TAG_PAGE, (i + 1) * TAG_PAGE)));
  t.ok(answer.pages.equals(expected), 'the pages, in order');
  t.ok(answer.bodyBytes < expected.length * 0.7, 'packed');

  const one = await pagesOf(connection, tags.subarray(TAG_BYTES, 2 * TAG_BYTES));
  t.ok(one.pages.equals(pages.subarray(TAG_PAGE, 2 * TAG_PAGE)));
  t.equal((await pagesOf(connection, tags.subarray(0, TAG_BYTES))).pages.length, 0);
  t.equal((await pagesOf(connection, new Uint8Array(3 * TAG_BYTES))).pages.length, 0, 'nobody sends zero pages');

  const counters = from.server.tagCounters();
  t.match(counters, { tagsAsked: 100, tagPages: held.length + 1, tagAbsent: 100 - held.length + 4, open: 1 });
  connection.close();
  await until(() => from.server.tagCounters().open === 0);
  t.ok(connection.bytesReceived <= from.server.tagCounters().bytesOut);
  t.ok(connection.bytesReceived > expected.length / 2);
});

void t.test('pages of guests that run there', async (t) => {
  const from = await holder(t);
  const { pages, tags } = tagged(from.key, 8);
  const index = ResidentIndex.open(1024);
  t.teardown(() => index.close());
  const file = join(folder(t), 'ram');
  writeFileSync(file, pages);
  const fd = openSync(file, 'r');
  t.teardown(() => closeSync(fd));
  index.add({ domain: NUMBER, key: from.key, fd, frames: 8 }).set(0, 8, tags);
  await from.server.unshare(DOMAIN);
  const place = { key: from.key.id, cache: 0, resident: index.lookups(NUMBER), files: 0 };
  await from.server.share({ id: DOMAIN, place, hosts: [] });
  const connection = await ask(t, from);
  t.same(await have(connection, tags), Uint8Array.of(0xff));
  t.ok((await pagesOf(connection, tags)).pages.equals(pages));
  // a guest writes what it likes: its page has another name then
  writeFileSync(file, Buffer.alloc(pages.length, 1));
  t.equal((await pagesOf(connection, tags)).pages.length, 0);
});

void t.test('a page of another domain is not given away, whoever knows its tag', async (t) => {
  const from = await holder(t);
  const other = keyOf(t, 2);
  from.cache.useKey(NUMBER + 1, other);
  const { pages, tags } = tagged(other, 4);
  for (let i = 0; i < 4; i++) from.cache.insert(NUMBER + 1, tags, i * TAG_BYTES, pages, i * TAG_PAGE);
  const connection = await ask(t, from);
  t.equal((await pagesOf(connection, tags)).pages.length, 0);
  t.equal((await pagesOf(connection, tags.subarray(0, TAG_BYTES))).pages.length, 0);
});

void t.test('who has another secret is turned away, at either end', async (t) => {
  const from = await holder(t);
  await t.rejects(ask(t, from, { key: keyOf(t, 2).id }), { code: 'PT_DOMAIN_SECRET' });
  await t.rejects(ask(t, from, { domain: 'ab'.repeat(16) }), { code: 'PT_DOMAIN_UNKNOWN' });
  await t.rejects(ask(t, from, { domain: 'x' }), { code: 'PT_BAD_ARGUMENT' });

  // one that does not look at the server's proof
  const said = async (...frames: Buffer[]): Promise<string> => {
    const { port } = from.server.address();
    const socket = connect(port, '127.0.0.1');
    t.teardown(() => socket.destroy());
    const ended = deferred<string>();
    let text = '';
    socket.on('data', (bytes) => (text += bytes.toString('latin1')));
    socket.on('close', () => ended.resolve(text));
    socket.write(
      `GET /v1/tags/${DOMAIN} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: pagetide\r\npagetide-protocol: 3\r\n` +
        `pagetide-tags: 1\r\npagetide-nonce: ${'0'.repeat(32)}\r\n\r\n`,
    );
    await until(() => text.includes('\r\n\r\n'));
    for (const frame of frames) socket.write(frame);
    return ended.promise;
  };
  t.match(await said(encodeFrame(FrameType.Proof, 0, 0, 0, Buffer.alloc(16))), /PT_DOMAIN_SECRET/);
  t.match(
    await said(encodeFrame(FrameType.TagRequest, 0, 1, 1, Buffer.alloc(16, 1))),
    /the proof of the domain comes first/,
  );
  t.equal(from.server.tagCounters().tagPages, 0);
});

void t.test('tags of another version, and requests that are none', async (t) => {
  const from = await holder(t);
  const get = async (headers: Record<string, string>): Promise<number> => {
    const { port } = from.server.address();
    const socket = connect(port, '127.0.0.1');
    t.teardown(() => socket.destroy());
    const head = Object.entries(headers).map(([name, value]) => `${name}: ${value}\r\n`);
    socket.write(`GET /v1/tags/${DOMAIN} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\n${head.join('')}\r\n`);
    const answer = await new Promise<Buffer>((resolve) => socket.once('data', resolve));
    return Number(/^HTTP\/1.1 (\d+)/.exec(answer.toString('latin1'))?.[1]);
  };
  const good = {
    Upgrade: 'pagetide',
    'pagetide-protocol': '3',
    'pagetide-tags': '1',
    'pagetide-nonce': '0'.repeat(32),
  };
  t.equal(await get(good), 101);
  t.equal(await get({ ...good, 'pagetide-tags': '2' }), 426);
  t.equal(await get({ ...good, 'pagetide-protocol': '1' }), 426);
  t.equal(await get({ ...good, 'pagetide-nonce': 'short' }), 400);
  const connection = await ask(t, from);
  t.throws(() => connection.have(new Uint8Array(0), () => undefined), { code: 'PT_BAD_ARGUMENT' });
  const many = new Uint8Array((WireLimit.tagPages + 1) * TAG_BYTES);
  t.throws(() => connection.pages(many, () => undefined), { code: 'PT_BAD_ARGUMENT' });
});

void t.test('every request is answered once, also by the end of the connection', async (t) => {
  const from = await holder(t);
  const { pages, tags } = tagged(from.key, 300);
  from.hold(pages, tags);
  const connection = await ask(t, from);
  let [answered, failed] = [0, 0];
  let asked = 0;
  while (
    connection.pages(tags, (answer) => {
      if (answer === undefined) failed++;
      else answered++;
    })
  )
    asked++;
  t.equal(asked, WireLimit.tagRequests, 'and no more at once');
  await until(() => answered > 2);
  const closed = deferred<unknown>();
  connection.onClose = (error) => closed.resolve(error);
  await from.server.unshare(DOMAIN);
  t.match(await closed.promise, { code: 'PT_DOMAIN_UNKNOWN' });
  t.equal(answered + failed, asked);
  t.notOk(connection.have(tags, () => t.fail('nobody is there')));
});

void t.test('over TLS only hosts that have the domain', async (t) => {
  const cluster = await trustCluster();
  const hostA = await cluster.host('host-a');
  const hostB = await cluster.host('host-b');
  const hostC = await cluster.host('host-c');
  const other = await (await trustCluster()).host('host-b');
  const old = await cluster.host('host-b', ['127.0.0.1'], EXPIRED);
  const from = await holder(t, { credentials: hostA, hosts: ['host-b'] });
  const { pages, tags } = tagged(from.key, 10);
  from.hold(pages, tags);
  const connection = await ask(t, from, { credentials: hostB });
  t.ok((await pagesOf(connection, tags)).pages.equals(pages));
  await t.rejects(
    ask(t, from, { credentials: hostC }),
    { code: 'PT_DOMAIN_UNKNOWN' },
    'the secret alone is not enough',
  );
  await t.rejects(ask(t, from, { credentials: other }), { code: 'PT_PEER_UNTRUSTED' }, 'of another cluster');
  await t.rejects(ask(t, from, { credentials: old }), { code: 'PT_PEER_UNTRUSTED' }, 'run out');
  await t.rejects(ask(t, from, { credentials: undefined }), { code: 'PT_PEER_UNTRUSTED' });

  const closed = deferred<unknown>();
  connection.onClose = (error) => closed.resolve(error);
  const place = { key: from.key.id, cache: from.cache.id, resident: 0, files: 0 };
  await from.server.share({ id: DOMAIN, place, hosts: ['host-c'] });
  t.match(await closed.promise, { code: 'PT_DOMAIN_UNKNOWN' }, 'who loses it is cut off');
  const now = await ask(t, from, { credentials: hostC });
  t.ok((await pagesOf(now, tags)).pages.equals(pages));
  await t.rejects(ask(t, from, { credentials: hostB }), { code: 'PT_DOMAIN_UNKNOWN' });
});
