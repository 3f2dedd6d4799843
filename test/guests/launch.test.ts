/** The launcher: what it starts belongs to nobody, and what it can't start is told. */
import { execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, mkdtempSync, readFileSync, readlinkSync, readdirSync, rmSync, statSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { launchDetached, launcherArgv, scopeArgv, scopeUnit } from '../../src/guests/launch.ts';
import {
  endProcess,
  identify,
  isAlive,
  parseStat,
  signalProcess,
  startTimeOf,
  waitForExit,
  watchProcess,
  type ProcessIdentity,
} from '../../src/guests/process.ts';
import { nativeProgram } from '../../src/memory/native.ts';
import { until } from './embedded-support.ts';

function folderOf(test: Test): string {
  const folder = mkdtempSync(join(tmpdir(), 'pt-launch-'));
  test.teardown(() => rmSync(folder, { recursive: true, force: true }));
  return folder;
}

function endsWith(test: Test, identity: ProcessIdentity): ProcessIdentity {
  test.teardown(() => endProcess(identity, 0));
  return identity;
}

/** Field of /proc/pid/status. */
function statusField(pid: number, name: string): string {
  return new RegExp(`^${name}:\\s*(.*)$`, 'm').exec(readFileSync(`/proc/${pid}/status`, 'utf8'))?.[1] ?? '';
}

void t.test('what it starts is detached from everything', async (t) => {
  const folder = folderOf(t);
  const log = join(folder, 'log');
  const script = 'echo out; echo err >&2; exec sleep 600';
  const started = endsWith(t, await launchDetached({ command: 'sh', args: ['-c', script], log, cwd: folder }));
  t.equal(startTimeOf(started.pid), started.startTime);
  t.ok(isAlive(started));
  t.not(Number(statusField(started.pid, 'PPid')), process.pid, 'no child of ours');
  const stat = readFileSync(`/proc/${started.pid}/stat`, 'utf8');
  const [, , , session] = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
  t.not(session, String(process.pid));
  t.not(Number(session), started.pid, 'no session leader, so it never gets a terminal');
  await until('it has spoken', () => readFileSync(log, 'utf8') === 'out\nerr\n');
  t.equal(statSync(log).mode & 0o777, 0o600);
  t.equal(readlinkSync(`/proc/${started.pid}/cwd`), folder);
  await until('the shell became sleep', () => statusField(started.pid, 'Name') === 'sleep');
  t.same(readdirSync(`/proc/${started.pid}/fd`).sort(), ['0', '1', '2'], 'no other descriptor');
  t.equal(readlinkSync(`/proc/${started.pid}/fd/0`), '/dev/null');
  t.match(statusField(started.pid, 'SigBlk'), /^0+$/);
  t.match(statusField(started.pid, 'SigIgn'), /^0+$/);
});

void t.test('signals and descriptors of the caller are not inherited', (t) => {
  const folder = folderOf(t);
  // A shell that ignores signals, and holds descriptors open, as a careless caller would.
  const argv = [nativeProgram('pagetide-launch'), '--log', join(folder, 'log'), '--', 'sleep', '600'];
  const script = `trap '' INT PIPE TERM; exec 7</dev/null 9</dev/null; "$0" "$@"`;
  const started = JSON.parse(execFileSync('sh', ['-c', script, ...argv], { encoding: 'utf8' })) as ProcessIdentity;
  endsWith(t, started);
  t.match(statusField(started.pid, 'SigIgn'), /^0+$/);
  t.same(readdirSync(`/proc/${started.pid}/fd`).sort(), ['0', '1', '2']);
  t.end();
});

void t.test('it outlives whoever launched it', async (t) => {
  const folder = folderOf(t);
  const module = new URL('../../src/guests/launch.js', import.meta.url).href;
  const program = `
    import { launchDetached } from ${JSON.stringify(module)};
    const log = ${JSON.stringify(join(folder, 'log'))};
    console.log(JSON.stringify(await launchDetached({ command: 'sleep', args: ['600'], log })));
    setInterval(() => {}, 1000);`;
  const parent = spawn(process.execPath, ['--input-type=module', '-e', program], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  t.teardown(() => parent.kill('SIGKILL'));
  const [line] = (await once(parent.stdout.setEncoding('utf8'), 'data')) as [string];
  const started = endsWith(t, JSON.parse(line) as ProcessIdentity);
  const died = once(parent, 'exit');
  parent.kill('SIGKILL');
  await died;
  t.ok(isAlive(started), 'its launcher was killed');
  await endProcess(started);
  t.notOk(isAlive(started));
});

void t.test('what cannot be started is told', async (t) => {
  const folder = folderOf(t);
  const log = join(folder, 'log');
  const bad = [
    { command: join(folder, 'nothing'), args: [], log, message: /exec: No such file/ },
    { command: 'no-such-program-anywhere', args: [], log, message: /exec: No such file/ },
    { command: folder, args: [], log, message: /exec: Permission denied/ },
    { command: 'true', args: [], log, cwd: join(folder, 'nothing'), message: /chdir: No such file/ },
    { command: 'true', args: [], log: join(folder, 'nothing', 'log'), message: /log .*No such file/ },
  ];
  for (const { message, ...options } of bad) {
    await t.rejects(launchDetached(options), { code: 'PT_VMM_FAILED', message });
  }
  t.ok(existsSync(log));
  t.equal(readFileSync(log, 'utf8'), '');
});

void t.test('a program that ends at once was started all the same', async (t) => {
  const started = await launchDetached({ command: 'true', args: [], log: join(folderOf(t), 'log') });
  t.ok(await waitForExit(started, 10_000));
  t.notOk(isAlive(started));
});

void t.test('argument lists', (t) => {
  const options = { command: '/bin/vmm', args: ['--x', '--'], log: '/l', cwd: '/w' };
  t.same(launcherArgv(options), ['--log', '/l', '--cwd', '/w', '--', '/bin/vmm', '--x', '--']);
  t.same(launcherArgv({ command: 'a', args: [], log: '/l' }), ['--log', '/l', '--', 'a']);
  t.equal(scopeUnit('web 1/é', 'ab'), 'pagetide-web_1__-ab');
  t.ok(scopeUnit('x'.repeat(500), 'ab').length < 256);
  const scope = ['--scope', '--quiet', '--collect', '--unit=u', '--', 'a', '-b'];
  t.same(scopeArgv('u', true, ['a', '-b']), ['systemd-run', ...scope]);
  t.same(scopeArgv('u', false, ['a', '-b']), ['systemd-run', '--user', ...scope]);
  t.end();
});

void t.test('processes: who they are and how they end', async (t) => {
  const stat = '12 (a) b (c) S 1 12 12 0 -1 4194560 1 0 0 0 1 2 3 4 20 0 1 0 98765 4096 1';
  t.same(parseStat(stat), { state: 'S', startTime: 98765 });
  t.equal(parseStat(''), undefined);
  t.equal(startTimeOf(0), undefined);
  t.throws(() => identify(2 ** 22 + 1), { code: 'PT_VMM_GONE' });

  const log = join(folderOf(t), 'log');
  const stubborn = ['-c', "trap '' TERM; echo ready; while :; do sleep 1; done"];
  const started = endsWith(t, await launchDetached({ command: 'sh', args: stubborn, log }));
  await until('it ignores SIGTERM', () => readFileSync(log, 'utf8') === 'ready\n');
  const later = { ...started, startTime: started.startTime + 1 };
  t.notOk(isAlive(later), 'another process with that pid is another process');
  t.notOk(signalProcess(later, 'SIGKILL'));
  t.notOk(await waitForExit(started, 20), 'it lives');
  t.ok(await waitForExit(later, 20), 'that one does not');
  const watch = watchProcess(started);
  await endProcess(started, 100);
  await watch.exited;
  watch.close();
  t.notOk(isAlive(started));
  await endProcess(started, 100);
});
