/** The state stream of a manifest that is told in rounds, over real connections that drop. */
import t, { type Test } from 'tap';
import { Writable } from 'node:stream';
import { finished } from 'node:stream/promises';
import { StateChannel } from '../../src/migration/state-channel.ts';
import { CHUNK_FRAMES, Manifest } from '../../src/pages/manifest.ts';
import { TAG_BYTES } from '../../src/pages/tags.ts';
import { encodeChunks, encodeManifestEnd, encodeTags } from '../../src/transport/wire-tags.ts';
import { TcpProxy } from '../support/tcp-proxy.ts';
import { PAGE, source, TOKEN, until, type Source } from '../transport/support.ts';

const FRAMES = 4 * CHUNK_FRAMES;

interface Bed {
  proxy: TcpProxy;
  /** The source's manifest, and the destination's. */
  theirs: Manifest;
  ours: Manifest;
  channel: StateChannel;
  /** Changes tags at the source, and tells them as a round. */
  round: (...changes: [frame: number, value: number][]) => Promise<void>;
  from: Source;
}

function set(manifest: Manifest, frame: number, value: number): void {
  manifest.tags.fill(value, frame * TAG_BYTES, (frame + 1) * TAG_BYTES);
  manifest.touch(frame, 1);
}

/** The destination knows the last chunk by itself. */
async function bed(t: Test): Promise<Bed> {
  const from = await source(t, FRAMES);
  const proxy = await TcpProxy.start(t);
  proxy.target = from.url;
  const [theirs, ours] = [new Manifest(FRAMES), new Manifest(FRAMES)];
  for (let frame = 0; frame < FRAMES; frame++) set(theirs, frame, 1 + (frame % 200));
  for (let frame = 3 * CHUNK_FRAMES; frame < FRAMES; frame++) set(ours, frame, 1 + (frame % 200));
  await from.server.pushManifest('m1', encodeChunks(theirs, [0, 3]));
  const channel = new StateChannel({
    ...{ url: proxy.url, migration: 'm1', token: TOKEN, frames: FRAMES, pageSize: PAGE },
    manifest: ours,
  });
  t.teardown(() => channel.close());
  await channel.connected;
  const round: Bed['round'] = async (...changes) => {
    for (const [frame, value] of changes) set(theirs, frame, value);
    const frames = changes.flatMap(([frame]) => encodeTags(theirs, frame, 1));
    await from.server.pushManifest('m1', [...frames, encodeManifestEnd(theirs)]);
  };
  return { proxy, theirs, ours, channel, round, from };
}

void t.test('rounds are told one after the other', async (t) => {
  const { channel, ours, theirs, round } = await bed(t);
  let second = false;
  const told = channel.told(2).then(() => (second = true));
  await round();
  await channel.told(1);
  t.same(ours.tags, theirs.tags);
  t.notOk(second);
  await round([5, 0], [FRAMES - 1, 9]);
  await told;
  t.same(ours.tags, theirs.tags);
  await channel.told(1);
  t.equal(channel.rounds, 2);
});

void t.test('on a new connection all rounds come again, and each is right', async (t) => {
  const { channel, ours, theirs, round, proxy } = await bed(t);
  await round();
  // of the chunk that is known by itself: its later tags must not be in the table when the first end comes again
  await round([FRAMES - 1, 7]);
  await round([FRAMES - 1, 8], [0, 0]);
  await channel.told(3);
  t.equal(proxy.cut('state'), 1);
  await until(() => channel.silentMs > 0 || proxy.counts.state > 1);
  await round([1, 3]);
  await channel.told(4);
  t.same(ours.tags, theirs.tags);
  t.equal(proxy.counts.state, 2, 'no end was refused');
  await channel.told(2);
});

void t.test('once it is settled the manifest is final, whatever comes again', async (t) => {
  const { channel, ours, theirs, round, proxy, from } = await bed(t);
  await round();
  await round([3, 3]);
  await from.server.settle('m1');
  await channel.settled;
  const digest = channel.digest;
  t.equal(digest, theirs.digest().toString('hex'));
  proxy.cut('state');
  await until(() => proxy.counts.state === 2);
  const state: Writable = from.server.pushState('m1');
  state.end(Buffer.from('device'));
  await finished(state);
  t.equal((await channel.whole).device.toString(), 'device');
  t.equal(channel.digest, digest);
  t.same(ours.tags, theirs.tags);
});

void t.test('who waits for a round hears that none will come', async (t) => {
  const { channel, from } = await bed(t);
  const told = t.rejects(channel.told(1));
  await from.server.withdraw('m1');
  await told;
  await t.rejects(channel.told(1));
  const other = (await bed(t)).channel;
  const waiting = t.rejects(other.told(1), { code: 'PT_CANCELLED' });
  other.close();
  await waiting;
});

void t.test('a manifest that is settled without an end, and one that goes on after it', async (t) => {
  const { channel, from } = await bed(t);
  await from.server.settle('m1');
  await t.rejects(channel.whole, { code: 'PT_PROTOCOL' });
  const late = await bed(t);
  await late.round();
  await late.from.server.settle('m1');
  await late.channel.settled;
  await t.rejects(late.round([1, 1]), { code: 'PT_BAD_ARGUMENT' });
});
