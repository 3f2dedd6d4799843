/** Cancelling: possible until the guest is handed over, without a trace; refused afterwards. */
import t from 'tap';
import { cluster } from '../support/cluster.ts';
import { begin, follow, guestFaults, migrate, reaches, startGuest, stillLeft, until } from '../support/migrate.ts';

t.setTimeout(600_000);

void t.test('before the switch: the guest never notices', { timeout: 600_000 }, async (t) => {
  const made = cluster(t);
  const [a, b] = [await made.agent('a'), await made.agent('b')];
  await startGuest(a, 'g1');
  const { pid } = await a.client.showGuest('g1');
  process.kill(b.pid, 'SIGSTOP');
  t.teardown(() => {
    if (b.pid !== 0) process.kill(b.pid, 'SIGCONT');
  });
  const id = await begin(a, b, 'g1');
  t.equal((await a.client.showMigration(id)).progress.phase, 'preparing');
  await t.rejects(
    a.client.migrate({ guest: 'g1', to: b.url, mode: 'post-copy', verify: true }),
    { code: 'PT_GUEST_BUSY' },
    'one migration at a time',
  );
  await t.rejects(a.client.removeGuest('g1'), { code: 'PT_GUEST_BUSY' });
  t.match(await a.client.cancel('g1'), { id });
  const { last } = await follow(a.client, id);
  t.equal(last.progress.phase, 'cancelled');
  t.match(last.error, { code: 'PT_CANCELLED' });
  t.match(await a.client.showGuest('g1'), { state: 'running', pid });
  t.strictSame(await guestFaults(a, 'g1'), []);
  await until('the guest is free', async () => (await a.client.showGuest('g1')).migration === undefined);

  process.kill(b.pid, 'SIGCONT');
  t.strictSame(await stillLeft(made), [], 'the destination has let go');
  await until('the destination is told', async () =>
    (await b.client.listMigrations()).every(({ progress }) => progress.phase === 'failed'),
  );
  t.equal((await migrate(a, b, 'g1')).last.report?.verified, true, 'and it can go there afterwards');
  t.strictSame(await stillLeft(made), []);
});

void t.test('after the switch: refused', { timeout: 600_000 }, async (t) => {
  const made = cluster(t);
  const [a, b] = [await made.agent('a'), await made.agent('b', { fill: { bandwidth: '6M' } })];
  await startGuest(a, 'g1', { memory: '24M' });
  const id = await begin(a, b, 'g1');
  await reaches(a.client, id, 'serving');
  await t.rejects(a.client.cancel('g1'), { code: 'PT_NOT_CANCELLABLE' });
  await t.rejects(b.client.cancel('g1'), { code: 'PT_NOT_CANCELLABLE' });
  const { last, phases } = await follow(a.client, id);
  t.equal(last.report?.verified, true);
  t.equal(phases.at(-1), 'done');
  await t.rejects(a.client.cancel('g1'), { code: 'PT_GUEST_UNKNOWN' });
  await t.rejects(b.client.cancel('g1'), { code: 'PT_MIGRATION_UNKNOWN' });
  t.strictSame(await guestFaults(b, 'g1'), []);
  t.strictSame(await stillLeft(made), []);
});
