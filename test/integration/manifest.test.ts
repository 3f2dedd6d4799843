/** Manifests between agents that are wrong: the guest goes on at the source, and nothing is left at the destination. */
import t from 'tap';
import { PEER_PROTOCOL } from '../../src/migration/types.ts';
import { encodeTagRuns } from '../../src/pages/tag-runs.ts';
import { TAG_BYTES, TAG_VERSION } from '../../src/pages/tags.ts';
import { FrameType, HEADER_SIZE } from '../../src/transport/wire.ts';
import { cluster } from '../support/cluster.ts';
import { guestFaults, migrate, reportFaults, startGuest, stillLeft } from '../support/migrate.ts';
import { TcpProxy } from '../support/tcp-proxy.ts';

t.setTimeout(900_000);

void t.test('an offer that does not fit the guest', async (t) => {
  const made = cluster(t);
  const [a, b] = await Promise.all([made.agent('a'), made.agent('b')]);
  const frames = 600;
  const size = frames * 4096;
  const chunks = (count: number): string =>
    encodeTagRuns(new Uint8Array(count * TAG_BYTES).fill(7), 0, count).toString('base64');
  const right = { version: TAG_VERSION, frames, chunks: chunks(2) };
  const cases: [string, object, RegExp][] = [
    ['tags of another version', { version: TAG_VERSION + 1 }, /version/],
    ['a frame too few', { frames: frames - 1 }, /599 frames/],
    ['many frames, few chunks', { frames: 2 ** 28 }, /frames/],
    ['a chunk too few', { chunks: chunks(1) }, /cannot be read/],
    ['a chunk too many', { chunks: chunks(3) }, /cannot be read/],
    ['no chunks', { chunks: '' }, /cannot be read/],
    ['more than any two chunks need', { chunks: Buffer.alloc(9000).toString('base64') }, /too long/],
  ];
  let migration = 0xabc0;
  for (const [what, wrong, why] of cases) {
    const answer = await fetch(`${b.url}/v1/incoming`, {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify({
        protocol: PEER_PROTOCOL,
        migration: (migration++).toString(16).padStart(16, '0'),
        epoch: Date.now() + migration,
        guest: 'g1',
        mode: 'post-copy',
        description: {
          driver: 'embedded',
          memory: { size, pageSize: 4096, files: [{ id: 'ram', size, offset: 0 }] },
          config: { threads: 1, regions: 1 },
        },
        manifest: { ...right, ...wrong },
        source: { url: a.url, token: 'x'.repeat(43) },
        verify: true,
        copies: false,
        serves: true,
        bandwidth: 0,
      }),
    });
    t.match(await answer.json(), { state: 'refused', error: { code: 'PT_MANIFEST_INVALID', message: why } }, what);
  }
  t.same(await stillLeft(made), []);
});

/** Finds the frames of a page stream, however it is cut; `bytes` may be written in place. */
function frameReader(see: (type: number, payload: Buffer) => void): (bytes: Buffer) => void {
  let header = Buffer.alloc(0);
  let head = true;
  let left = 0;
  let type = 0;
  return (bytes) => {
    let at = 0;
    if (head) {
      const end = bytes.indexOf('\r\n\r\n');
      if (end < 0) return;
      head = false;
      at = end + 4;
    }
    while (at < bytes.length) {
      if (left === 0) {
        const more = bytes.subarray(at, at + HEADER_SIZE - header.length);
        at += more.length;
        header = Buffer.concat([header, more]);
        if (header.length < HEADER_SIZE) return;
        [left, type] = [header.readUInt32LE(0), header[4]!];
        header = Buffer.alloc(0);
      }
      const payload = bytes.subarray(at, at + left);
      at += payload.length;
      left -= payload.length;
      if (payload.length > 0) see(type, payload);
    }
  };
}

void t.test('a tag, or the digest, that is not what the source has said', async (t) => {
  for (const wrong of [FrameType.Tags, FrameType.ManifestEnd]) {
    const made = cluster(t);
    const proxy = await TcpProxy.start(t);
    const [a, b] = await Promise.all([made.agent('a', { advertise: proxy.url }), made.agent('b')]);
    proxy.target = a.ownUrl;
    await startGuest(a, 'g1', { memory: '4M', writeRate: 0 });
    let spoilt = 0;
    const read = frameReader((type, payload) => {
      // the last byte: of a tag, or of the digest
      if (type !== wrong || spoilt++ > 0) return;
      payload[payload.length - 1]! ^= 1;
    });
    proxy.alter = (bytes, { kind }) => {
      const passed = Buffer.from(bytes);
      if (kind === 'state') read(passed);
      return passed;
    };
    const { last } = await migrate(a, b, 'g1');
    t.ok(spoilt > 0);
    t.equal(last.progress.phase, 'failed');
    t.match(last.error, { code: 'PT_PROTOCOL', message: /digest/ });
    t.same(await guestFaults(a, 'g1'), [], 'the guest goes on');
    t.same(await stillLeft(made), []);

    proxy.alter = undefined;
    const again = await migrate(a, b, 'g1');
    t.match(again.last, { progress: { phase: 'done' }, report: { verified: true } });
    t.same(reportFaults(again.last.report), []);
  }
});
