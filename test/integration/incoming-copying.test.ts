/**
 * A destination that copies in rounds: against a source that the test itself plays. The guest checks every page of its own at the end.
 */
import { spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import t, { type Test } from 'tap';
import { guestFaults, stillLeft, until } from '../support/migrate.ts';
import { cluster, processesBelow, type Cluster, type TestAgent } from '../support/cluster.ts';
import { FakeSource } from '../support/fake-source.ts';
import type { CompletionFigures } from '../../src/migration/types.ts';

t.setTimeout(600_000);

const FRAMES = 4096;
const BUSY = { memory: '16M', writeRate: 3000, readRate: 3000 };
const PRE_COPY = { mode: 'pre-copy', copies: true, serves: false } as const;
const FALLS_OVER = { mode: 'pre-copy', copies: true, serves: true } as const;
const HYBRID = { mode: 'hybrid', copies: true, serves: true } as const;

interface Bed {
  made: Cluster;
  agent: TestAgent;
  source: FakeSource;
}

async function bed(t: Test, config: Record<string, unknown> = {}, options: Record<string, unknown> = {}): Promise<Bed> {
  const made = cluster(t);
  const agent = await made.agent('b', config);
  const folder = mkdtempSync('/dev/shm/ptt-source-');
  t.teardown(() => rmSync(folder, { recursive: true, force: true }));
  const source = await FakeSource.start(t, folder, agent.url, { ...BUSY, ...options });
  return { made, agent, source };
}

function checkSums(t: Test, { frames, bytes, verified }: CompletionFigures): void {
  const { total, ...classes } = frames;
  t.equal(total, FRAMES);
  t.equal(
    Object.values(classes).reduce((a, b) => a + b, 0),
    total,
    `classes add up: ${JSON.stringify(frames)}`,
  );
  t.ok(
    Object.values(classes).every((count) => count >= 0),
    'none is less than nothing',
  );
  t.ok(bytes.wire >= bytes.pages + bytes.manifest + bytes.state, 'every byte is counted');
  t.ok(bytes.raw >= bytes.pages && bytes.pages > 0);
  t.equal(verified, true, 'the guest finds every page right');
}

/** Hands the guest over, and waits until it has been completed. */
async function finish(t: Test, { made, agent, source }: Bed): Promise<CompletionFigures> {
  const owner = await source.takeOver();
  t.match(owner, { state: 'owner' });
  t.ok((owner.resumedAt ?? 0) > 0);
  const figures = await source.completed;
  t.equal(figures.resumedAt, owner.resumedAt);
  checkSums(t, figures);
  await until('it is complete', async () => (await source.client.status(source.migration)).state === 'complete');
  t.strictSame(await guestFaults(agent, 'g1'), []);
  t.strictSame(await stillLeft(made), [], 'no userfaultfd, page table or tags are left');
  return figures;
}

void t.test('pre-copy where no userfaultfd may be used: everything is copied, then the guest runs', async (t) => {
  const b = await bed(t, { pager: { userfaultfd: 'off' } });
  const { source } = b;
  t.match(await source.prepare(PRE_COPY), { state: 'prepared' });
  const first = await source.copy(await source.tell());
  t.equal(first.round, 1);
  const { zero, ...brought } = first.frames;
  const came = Object.values(brought).reduce((sum, count) => sum + count, 0);
  t.equal(zero + came + first.lacking, FRAMES, 'each frame came, is zero, or had changed');
  t.ok(first.wireBytes > 0 && first.ms > 0);
  t.strictSame(await source.copy(1), first, 'asked for again it is answered as it was');
  for (let round = 2; round <= 4; round++) {
    const copied = await source.copy(await source.tell());
    t.equal(copied.round, round);
    t.ok(copied.frames.source + copied.frames.duplicate < came, 'only what changed');
  }
  await t.rejects(source.copy(2), { code: 'PT_PROTOCOL' }, 'a round that is over');
  t.match(await source.load('copy'), { state: /^(arrived|loaded)$/ });
  const { frames, faults } = await finish(t, b);
  t.equal(faults.count, 0);
  t.equal(frames.present, 0);
});

void t.test('pre-copy where the destination could have served', async (t) => {
  const b = await bed(t);
  t.match(await b.source.prepare(FALLS_OVER), { state: 'prepared' });
  await b.source.copy(await b.source.tell());
  t.match(await b.source.load('copy'), { state: /^(arrived|loaded)$/ });
  await finish(t, b);
});

void t.test('pre-copy without any round before the last', async (t) => {
  const b = await bed(t);
  t.match(await b.source.prepare(PRE_COPY), { state: 'prepared' });
  t.match(await b.source.load('copy'), { state: /^(arrived|loaded)$/ });
  await finish(t, b);
});

void t.test('hybrid: what was copied and is still right is there, the rest follows', async (t) => {
  const b = await bed(t);
  const { source } = b;
  t.match(await source.prepare(HYBRID), { state: 'prepared' });
  const first = await source.copy(await source.tell());
  await source.copy(await source.tell());
  t.match(await source.load('serve'), { state: /^(arrived|loaded)$/ });
  const { frames, bytes } = await finish(t, b);
  t.ok(frames.source + frames.duplicate >= first.frames.source, 'what the rounds brought is counted once');
  t.ok(bytes.raw >= frames.source * 4096);
});

void t.test('the state stream is cut between and in rounds', async (t) => {
  const b = await bed(t);
  const { source } = b;
  t.match(await source.prepare(HYBRID), { state: 'prepared' });
  await source.copy(await source.tell());
  await source.tell();
  t.equal(source.proxy.cut('state'), 1);
  await source.copy(2);
  source.proxy.cut('state');
  await source.copy(await source.tell());
  source.proxy.rate = 4 << 20;
  const copied = source.copy(await source.tell());
  source.proxy.cut('fill');
  t.equal((await copied).round, 4);
  source.proxy.cut('state', 'fill');
  t.match(await source.load('copy'), { state: /^(arrived|loaded)$/ });
  await finish(t, b);
});

void t.test('a slow round is answered without figures, and goes on', async (t) => {
  const b = await bed(t, {}, { writeRate: 0 });
  const { source } = b;
  t.match(await source.prepare({ ...HYBRID, bandwidth: 2 << 20 }), { state: 'prepared' });
  const round = await source.tell();
  const { copied, state } = await source.client.copy(source.migration, source.epoch, round);
  t.equal(copied, undefined, '16 MiB at 2 MiB a second take more than 2 s');
  t.equal(state, 'prepared');
  const { ms, lacking } = await source.copy(round);
  t.ok(ms > 2000);
  t.equal(lacking, 0);
  t.match(await source.load('serve'), { state: /^(arrived|loaded)$/ });
  await finish(t, b);
});

void t.test('the agent dies once it owns a guest of which a part was copied', async (t) => {
  const b = await bed(t);
  const { source, agent } = b;
  t.match(await source.prepare({ ...HYBRID, bandwidth: 2 << 20 }), { state: 'prepared' });
  await source.tell();
  t.equal((await source.client.copy(source.migration, source.epoch, 1)).copied, undefined, 'it goes on');
  t.match(await source.load('serve'), { state: /^(arrived|loaded)$/ });
  t.match(await source.takeOver(), { state: 'owner' });
  await agent.kill();
  await agent.restart();
  const figures = await source.completed;
  checkSums(t, figures);
  t.ok(figures.frames.source > 100, 'of what was copied it is known where from');
  t.strictSame(await guestFaults(agent, 'g1'), []);
  t.strictSame(await stillLeft(b.made), []);
});

void t.test('what ends a migration in a round leaves nothing behind', async (t) => {
  const made = cluster(t);
  const agent = await made.agent('b');
  /** In the middle of a round, as long as somebody likes. */
  const inRound = async (t: Test): Promise<FakeSource> => {
    const folder = mkdtempSync('/dev/shm/ptt-source-');
    t.teardown(() => rmSync(folder, { recursive: true, force: true }));
    const source = await FakeSource.start(t, folder, agent.url, BUSY);
    t.match(await source.prepare({ ...HYBRID, bandwidth: 1 << 20 }), { state: 'prepared' });
    await source.tell();
    const { copied } = await source.client.copy(source.migration, source.epoch, 1);
    t.equal(copied, undefined, 'it goes on');
    return source;
  };

  await t.test('the source aborts', async (t) => {
    const source = await inRound(t);
    const asked = source.copy(1);
    asked.catch(() => undefined);
    t.match(await source.abort(), { state: 'refused', error: { code: 'PT_CANCELLED' } });
    await t.rejects(asked, { code: 'PT_CANCELLED' });
    await t.rejects(source.copy(1), { code: 'PT_CANCELLED' });
    t.strictSame(await stillLeft(made), []);
  });

  await t.test('the VMM dies', async (t) => {
    const source = await inRound(t);
    const asked = source.copy(1);
    asked.catch(() => undefined);
    const waiting = processesBelow(`${agent.state}/guests/`);
    t.equal(waiting.length, 1);
    process.kill(waiting[0]!, 'SIGKILL');
    await t.rejects(asked);
    await until('it is refused', async () => (await source.client.status(source.migration)).state === 'refused');
    t.strictSame(await stillLeft(made), []);
  });

  await t.test('the agent is started again', async (t) => {
    const source = await inRound(t);
    await agent.kill();
    await agent.restart();
    await until('it is refused', async () => (await source.client.status(source.migration)).state === 'refused');
    t.strictSame(await stillLeft(made), []);
  });

  await t.test('the rest is asked for that was not agreed on', async (t) => {
    const source = await inRound(t);
    await source.abort();
    const folder = mkdtempSync('/dev/shm/ptt-source-');
    t.teardown(() => rmSync(folder, { recursive: true, force: true }));
    const other = await FakeSource.start(t, folder, agent.url, BUSY);
    t.match(await other.prepare(PRE_COPY), { state: 'prepared' });
    t.match(await other.load('serve'), { state: 'refused', error: { code: 'PT_PROTOCOL' } });
    t.strictSame(await stillLeft(made), []);
  });
});

void t.test('no room for a page in the middle of a round', async (t) => {
  const small = mkdtempSync('/tmp/ptt-small-');
  t.teardown(() => rmSync(small, { recursive: true, force: true }));
  if (spawnSync('mount', ['-t', 'tmpfs', '-o', 'size=20M', 'tmpfs', small]).status !== 0) {
    t.comment('a tmpfs can not be mounted here');
    return;
  }
  t.teardown(() => spawnSync('umount', [small]));
  const { made, source } = await bed(t, { memoryFolder: small });
  t.match(await source.prepare(PRE_COPY), { state: 'prepared' });
  t.equal(spawnSync('fallocate', ['-l', '18M', `${small}/other`]).status, 0);
  const round = await source.tell();
  await t.rejects(source.copy(round), { code: 'PT_NO_SPACE' });
  rmSync(`${small}/other`);
  t.equal((await source.copy(round)).round, round, 'once there is room it can be asked for again');
  t.match(await source.abort(), { state: 'refused' });
  t.strictSame(await stillLeft(made), []);
});

void t.test('a host that is told to use no userfaultfd refuses to serve', async (t) => {
  const { made, source } = await bed(t, { pager: { userfaultfd: 'off' } });
  t.match(await source.prepare(HYBRID), { state: 'refused', error: { code: 'PT_MODE_UNSUPPORTED' } });
  t.strictSame(await stillLeft(made), []);
});
