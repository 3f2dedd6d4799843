/** `pagetide migrate`: progress, report, Ctrl-C, and agents that restart meanwhile. */
import t from 'tap';
import { buildApi } from '../../src/agent/api/app.ts';
import { listenControl } from '../../src/agent/api/listen.ts';
import { LineView, Rate } from '../../src/cli/progress.ts';
import { PagetideError } from '../../src/errors.ts';
import { startApi } from '../agent/api-harness.ts';
import { migrateRequest, migrationInfo, report } from '../agent/fake-service.ts';
import { startCli } from './harness.ts';

const TO = 'http://127.0.0.1:7412';

void t.test('plain lines, then the report', async (t) => {
  const { service, socket } = await startApi(t);
  const cli = startCli(t, ['migrate', 'web1', '--to', TO, '--agent', `unix:${socket}`]);
  await cli.says(/web1: preparing, 100\/65536 frames \(0%\)/);
  const progress = { ...migrationInfo('serving').progress, framesPresent: 32768, faultsServed: 20, note: 'slow' };
  service.change(migrationInfo('serving', { progress }));
  await cli.says(/web1: serving, 32768\/65536 frames \(50%\), 20 faults, .* MiB\/s, 1\d\.\d ms; slow\n/);
  // nothing changes: a line comes every second all the same
  await cli.says(/(web1: serving.*\n){2}/);
  service.change(migrationInfo('done'));
  const { code, stdout } = await cli.finished;
  t.equal(code, 0);
  t.match(stdout, /^guest +web1 \(embedded, post-copy\)\nverified +yes/);
  t.match(stdout, /time +total 1900 ms, prepare 121 ms, downtime 3\.3 ms \(1\.5 ms for the journals' disks\)/);
  t.same(
    service.calls.find(([method]) => method === 'migrate'),
    ['migrate', { guest: 'web1', to: TO, mode: 'auto', verify: true }],
  );
});

void t.test('copying in rounds: what is asked for, what is told, what was done', async (t) => {
  const { service, socket } = await startApi(t);
  const why = 'pre-copy, as the destination has no userfaultfd (no right)';
  service.migration = migrationInfo('preparing', { mode: 'pre-copy', why });
  const limits = '--mode pre-copy --max-downtime 200 --max-rounds 9 --bandwidth 1M --on-no-convergence pause';
  const cli = startCli(t, ['migrate', 'web1', '--to', TO, ...limits.split(' '), '--agent', `unix:${socket}`]);
  await cli.says(/^pre-copy, as the destination has no userfaultfd/);
  const copying = { round: 1, frames: 65536, dirtyPerSecond: 0, expectedDowntimeMs: null };
  const progress = { ...migrationInfo('copying').progress, copying };
  service.change(migrationInfo('copying', { progress }));
  await cli.says(/web1: copying, 100\/65536 frames \(0%\), round 1, .* MiB\/s/);
  const second = { ...progress, copying: { ...copying, round: 2, dirtyPerSecond: 1234, expectedDowntimeMs: 210 } };
  service.change(migrationInfo('copying', { progress: second }));
  await cli.says(/round 2, 1234 frames\/s dirty, about 210 ms downtime, /);
  const zero = { lacking: 0, zero: 536, cache: 0, resident: 0, duplicate: 1000, peer: 0, source: 64000 };
  const rounds = [{ changed: 65536, ...zero, wireBytes: 100_000_000, ms: 1210 }];
  const note = 'it stood still for longer';
  service.change(migrationInfo('done', { report: { ...report, mode: 'pre-copy', why, note, rounds } }));
  const { code, stdout } = await cli.finished;
  t.equal(code, 0);
  t.match(stdout, /mode +pre-copy, as the destination .*\nnote +it stood still for longer\n/);
  t.match(
    stdout,
    /\n\nROUND +CHANGED +ZERO +CACHE .* LACKING +WIRE +TIME\n1 +65536 +536 +0 .* 64000 +0 +95\.4 MiB +1210 ms\n/,
  );
  t.same(
    service.calls.find(([method]) => method === 'migrate'),
    ['migrate', migrateRequest()],
  );
});

void t.test('--json: nothing but the report on standard output', async (t) => {
  const { service, socket } = await startApi(t);
  service.migration = migrationInfo('done');
  const args = ['migrate', 'web1', '--to', TO, '--no-verify', '--json', '--agent', `unix:${socket}`];
  const good = await startCli(t, args).finished;
  t.equal(good.code, 0);
  t.equal(good.stdout, `${JSON.stringify(report)}\n`);
  t.match(service.calls[0], ['migrate', { verify: false }]);

  service.migration = migrationInfo('done', { report: { ...report, verified: false } });
  const bad = await startCli(t, args).finished;
  t.equal(bad.code, 1, 'bad frames are a failure, and the report is there nevertheless');
  t.match(JSON.parse(bad.stdout), { verified: false });
  t.match(JSON.parse(bad.stderr.trim().split('\n').at(-1)!), { code: 'PT_VERIFY_FAILED' });
});

void t.test('times that nobody knows any more', async (t) => {
  const { service, socket } = await startApi(t);
  const ms = { prepare: null, downtime: null, total: 1900, journal: null };
  service.migration = migrationInfo('done', { report: { ...report, ms } });
  const { code, stdout } = await startCli(t, ['migrate', 'web1', '--to', TO, '--agent', `unix:${socket}`]).finished;
  t.equal(code, 0);
  t.match(stdout, /time +total 1900 ms, prepare not known, downtime not known\n/);
});

void t.test('a migration that fails ends in its error', async (t) => {
  const { service, socket } = await startApi(t);
  const cli = startCli(t, ['migrate', 'web1', '--to', TO, '--agent', `unix:${socket}`]);
  await cli.says(/preparing/);
  const error = new PagetideError('PT_NO_MEMORY', 'B has 12 MiB').toJSON();
  service.change(migrationInfo('failed', { error }));
  const { code, stdout, stderr } = await cli.finished;
  t.same([code, stdout], [1, '']);
  t.match(stderr, /\nerror PT_NO_MEMORY: B has 12 MiB \(Free memory on the destination/);
});

void t.test('Ctrl-C cancels', async (t) => {
  const { service, socket } = await startApi(t);
  const cli = startCli(t, ['migrate', 'web1', '--to', TO, '--agent', `unix:${socket}`]);
  await cli.says(/preparing/);
  const asked = new Promise<string>((resolve) => {
    service.cancel = (guest) => {
      resolve(guest);
      return Promise.resolve(migrationInfo('rolling-back'));
    };
  });
  cli.kill('SIGINT');
  await cli.says(/asking for the migration to be cancelled/);
  t.equal(await asked, 'web1');
  service.change(migrationInfo('cancelled'));
  const { code, stderr } = await cli.finished;
  t.equal(code, 1);
  t.match(stderr, /error PT_CANCELLED/);
});

void t.test('Ctrl-C that is refused, and a second one', async (t) => {
  const { service, socket } = await startApi(t);
  const cli = startCli(t, ['migrate', 'web1', '--to', TO, '--agent', `unix:${socket}`]);
  await cli.says(/preparing/);
  service.change(migrationInfo('serving'));
  service.cancel = () => Promise.reject(new PagetideError('PT_NOT_CANCELLABLE', 'too late'));
  await cli.says(/web1: serving/);
  cli.kill('SIGINT');
  await cli.says(/not cancelled: PT_NOT_CANCELLABLE: too late/);
  const gone = service.next('unwatch');
  cli.kill('SIGINT');
  const { code, stderr } = await cli.finished;
  await gone;
  t.equal(code, 1);
  t.match(stderr, /error PT_CANCELLED: stopped watching migration .*; it goes on/);
});

void t.test('a cancel that is never answered holds nobody up', async (t) => {
  const { service, socket } = await startApi(t, { closeGraceMs: 50 });
  const cli = startCli(t, ['migrate', 'web1', '--to', TO, '--agent', `unix:${socket}`]);
  await cli.says(/preparing/);
  const asked = new Promise<void>((resolve) => {
    service.cancel = () => {
      resolve();
      return new Promise(() => undefined);
    };
  });
  cli.kill('SIGINT');
  await asked;
  cli.kill('SIGTERM');
  t.match(await cli.finished, { code: 1, stderr: /stopped watching/ });
});

void t.test('an agent that restarts is found again', async (t) => {
  const { app, service, socket } = await startApi(t);
  const cli = startCli(t, ['migrate', 'web1', '--to', TO, '--agent', `unix:${socket}`]);
  await cli.says(/preparing/);
  await app.close();
  await cli.says(/connection to the agent is lost; trying again/);
  const again = buildApi(service);
  t.teardown(() => again.close());
  service.migration = migrationInfo('serving');
  await listenControl(again, socket);
  await cli.says(/the agent is there again\n.*serving/);
  service.change(migrationInfo('done'));
  const { code, stdout } = await cli.finished;
  t.equal(code, 0);
  t.match(stdout, /^guest +web1/);
});

void t.test('lines only for what changed, rates over a second', (t) => {
  const lines: string[] = [];
  const view = new LineView((line) => lines.push(line));
  t.teardown(() => view.end());
  view.update(migrationInfo('serving'));
  view.update(migrationInfo('serving'));
  view.update(migrationInfo('completing'));
  t.equal(lines.length, 2);
  view.end();
  view.update(migrationInfo('done'));
  t.equal(lines.length, 2, 'what comes late is ignored');

  const rate = new Rate();
  t.equal(rate.sample({ elapsedMs: 0, wireBytes: 0 }), 0);
  t.equal(rate.sample({ elapsedMs: 500, wireBytes: 50 * 2 ** 20 }), 100);
  t.equal(rate.sample({ elapsedMs: 1500, wireBytes: 60 * 2 ** 20 }), 10, 'the last second alone');
  t.equal(rate.sample({ elapsedMs: 10, wireBytes: 0 }), 0, 'counted from anew');
  t.end();
});
