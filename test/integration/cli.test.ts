/** `pagetide` as an operator types it, against real agents. */
import t from 'tap';
import { runCli, startCli } from '../cli/harness.ts';
import { cluster } from '../support/cluster.ts';
import { begin, follow, guestFaults, reaches, reportFaults, stillLeft } from '../support/migrate.ts';
import type { MigrationReport, Phase } from '../../src/migration/types.ts';

t.setTimeout(600_000);

const ORDER: readonly Phase[] = ['preparing', 'switching', 'serving', 'completing', 'done'];

void t.test('run, migrate, verify, remove', { timeout: 600_000 }, async (t) => {
  const made = cluster(t);
  const [a, b] = [await made.agent('a'), await made.agent('b', { fill: { bandwidth: '16M' } })];
  const at = (agent: typeof a): string[] => ['--agent', `unix:${agent.control}`];
  const run = await runCli(t, ['guest', 'run', 'g1', '--driver', 'embedded', '--memory', '24M', ...at(a), '--json']);
  t.equal(run.code, 0, run.stderr);

  const moved = await runCli(t, ['migrate', 'g1', '--to', b.url, '--mode', 'post-copy', ...at(a), '--json']);
  t.equal(moved.code, 0, moved.stderr);
  const report = JSON.parse(moved.stdout.trim().split('\n').at(-1)!) as MigrationReport;
  t.match(report, { guest: 'g1', mode: 'post-copy', driver: 'embedded', verified: true });
  t.strictSame(reportFaults(report), []);
  t.strictSame(Object.keys(report).sort(), [
    'bytes',
    'driver',
    'faults',
    'frames',
    'guest',
    'longestGapMs',
    'mode',
    'ms',
    'verified',
  ]);

  const again = await runCli(t, ['migrate', 'g1', '--to', b.url, '--mode', 'post-copy', ...at(a), '--json']);
  t.equal(again.code, 1, 'it is not there any more');
  t.match(again.stderr + again.stdout, /PT_GUEST_UNKNOWN/);

  const text = await runCli(t, ['migrate', 'g1', '--to', a.url, '--mode', 'post-copy', ...at(b)]);
  t.equal(text.code, 0, text.stderr);
  t.match(text.stdout, /verified/);
  t.equal((await runCli(t, ['guest', 'verify', 'g1', ...at(a)])).code, 0);
  t.equal((await runCli(t, ['guest', 'remove', 'g1', ...at(a)])).code, 0);
  t.strictSame(await stillLeft(made), []);
});

void t.test('phases come in order, to whoever watches', { timeout: 600_000 }, async (t) => {
  const made = cluster(t);
  const [a, b] = [await made.agent('a'), await made.agent('b', { fill: { bandwidth: '8M' } })];
  await a.client.runGuest({ name: 'g1', driver: 'embedded', options: { memory: '24M' } });
  const id = await begin(a, b, 'g1');
  const { phases, seen } = await follow(a.client, id);
  const places = phases.map((phase) => ORDER.indexOf(phase));
  t.ok(!places.includes(-1), phases.join());
  t.strictSame(places, [...places].sort(), `${phases.join()} in order`);
  t.ok(phases.includes('serving'));
  t.equal(phases.at(-1), 'done');
  const times = seen.map(({ progress }) => progress.elapsedMs);
  t.strictSame(
    times,
    [...times].sort((x, y) => x - y),
  );
  const after = await follow(a.client, id);
  t.strictSame(after.phases, ['done'], 'who comes late sees the end');
  t.strictSame(after.last.report, seen.at(-1)?.report);
});

void t.test('Ctrl-C once the guest has left: it arrives all the same', { timeout: 600_000 }, async (t) => {
  const made = cluster(t);
  const [a, b] = [await made.agent('a'), await made.agent('b', { fill: { bandwidth: '5M' } })];
  await a.client.runGuest({ name: 'g1', driver: 'embedded', options: { memory: '24M' } });
  const cli = startCli(t, [
    'migrate',
    'g1',
    '--to',
    b.url,
    '--mode',
    'post-copy',
    '--agent',
    `unix:${a.control}`,
    '--json',
  ]);
  await cli.says(/serving/);
  const [info] = await a.client.listMigrations();
  await reaches(a.client, info!.id, 'serving');
  cli.kill('SIGINT');
  await cli.says(/PT_NOT_CANCELLABLE/);
  const { code, stdout } = await cli.finished;
  t.equal(code, 0);
  t.match(JSON.parse(stdout.trim().split('\n').at(-1)!), { verified: true });
  t.strictSame(await guestFaults(b, 'g1'), []);
  t.strictSame(await stillLeft(made), []);
});
