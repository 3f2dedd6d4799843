/** VMMs that are killed in the middle of a migration, on either side, before and after ownership passes. */
import t from 'tap';
import { cluster, processesBelow } from '../support/cluster.ts';
import { begin, follow, guestFaults, migrate, reaches, startGuest, stillLeft, until } from '../support/migrate.ts';
import { TcpProxy } from '../support/tcp-proxy.ts';

t.setTimeout(600_000);

void t.test("the source's, while the destination gets ready", { timeout: 600_000 }, async (t) => {
  const made = cluster(t);
  const proxy = await TcpProxy.start(t);
  const [a, b] = [await made.agent('a', { advertise: proxy.url }), await made.agent('b')];
  proxy.target = a.ownUrl;
  proxy.held.add('state');
  await startGuest(a, 'g1');
  const id = await begin(a, b, 'g1');
  await until('the destination waits for the state', () => proxy.counts.state > 0);
  process.kill((await a.client.showGuest('g1')).pid, 'SIGKILL');
  const { last } = await follow(a.client, id);
  t.equal(last.progress.phase, 'failed');
  t.match(last.error, { code: 'PT_VMM_GONE' });
  await until('the agent knows', async () => (await a.client.showGuest('g1')).state === 'gone');
  t.match((await a.client.showGuest('g1')).error, { code: 'PT_VMM_GONE' });
  t.strictSame(await b.client.listGuests(), []);
  await a.client.removeGuest('g1');
  t.strictSame(await stillLeft(made), []);
});

void t.test("the source's, after the guest has left: its memory is enough", { timeout: 600_000 }, async (t) => {
  const made = cluster(t);
  const [a, b] = [await made.agent('a'), await made.agent('b', { fill: { bandwidth: '6M' } })];
  await startGuest(a, 'g1', { memory: '24M' });
  const id = await begin(a, b, 'g1');
  await reaches(a.client, id, 'serving');
  process.kill((await a.client.showGuest('g1')).pid, 'SIGKILL');
  const { last } = await follow(a.client, id);
  t.equal(last.progress.phase, 'done');
  t.equal(last.report?.verified, true);
  t.strictSame(await guestFaults(b, 'g1'), []);
  t.strictSame(await stillLeft(made), []);
});

void t.test("the destination's, before it owns the guest", { timeout: 600_000 }, async (t) => {
  const made = cluster(t);
  const proxy = await TcpProxy.start(t);
  const [a, b] = [await made.agent('a', { advertise: proxy.url }), await made.agent('b')];
  proxy.target = a.ownUrl;
  proxy.held.add('state');
  await startGuest(a, 'g1');
  const id = await begin(a, b, 'g1');
  await until('the destination waits for the state', () => proxy.counts.state > 0);
  const waiting = processesBelow(`${b.state}/guests/`);
  t.equal(waiting.length, 1);
  process.kill(waiting[0]!, 'SIGKILL');
  const { last } = await follow(a.client, id);
  t.equal(last.progress.phase, 'failed');
  t.match(last.error, { code: 'PT_VMM_GONE' });
  t.strictSame(await guestFaults(a, 'g1'), []);
  t.strictSame(await stillLeft(made), []);
  proxy.held.clear();
  const next = await migrate(a, b, 'g1');
  t.strictSame([next.last.error, next.last.report?.verified], [undefined, true], 'the next try goes well');
  t.strictSame(await stillLeft(made), []);
});

void t.test(
  "the destination's, when it owns the guest: said, and nothing is resumed",
  { timeout: 600_000 },
  async (t) => {
    const made = cluster(t);
    const [a, b] = [await made.agent('a'), await made.agent('b', { fill: { bandwidth: '4M' } })];
    await startGuest(a, 'g1', { memory: '24M' });
    const id = await begin(a, b, 'g1');
    await reaches(a.client, id, 'serving');
    await until('it has arrived', async () => (await b.client.listGuests()).length === 1);
    process.kill((await b.client.showGuest('g1')).pid, 'SIGKILL');
    const { last } = await follow(a.client, id);
    t.equal(last.progress.phase, 'failed');
    t.match(last.error, { code: 'PT_VMM_GONE' });
    t.match(last.progress.note, /lost/);
    t.equal((await a.client.showGuest('g1')).state, 'paused', 'what is left at the source stays paused');
    await t.rejects(a.client.migrate({ guest: 'g1', to: b.url, mode: 'post-copy', verify: true }), {
      code: 'PT_GUEST_BUSY',
    });
    await until('the destination forgets it', async () => (await b.client.listGuests()).length === 0);
    t.match((await b.client.listMigrations())[0], { error: { code: 'PT_VMM_GONE' }, progress: { phase: 'failed' } });
    // the operator gives up what was kept: nothing else may
    await a.client.removeGuest('g1');
    t.strictSame(await a.client.listGuests(), []);
    t.strictSame(await stillLeft(made), []);
  },
);
