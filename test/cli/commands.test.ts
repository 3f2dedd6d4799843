/** Commands that ask an agent once: what they send, what they print, how they end. */
import { join } from 'node:path';
import t from 'tap';
import { PagetideError } from '../../src/errors.ts';
import { startApi } from '../agent/api-harness.ts';
import { cacheInfo, domainInfo, guestInfo, migrationInfo } from '../agent/fake-service.ts';
import { runCli } from './harness.ts';

void t.test('guests', async (t) => {
  const { service, socket } = await startApi(t);
  const env = { PAGETIDE_AGENT: `unix:${socket}` };

  const list = await runCli(t, ['guest', 'list'], env);
  t.match(list, { code: 0, stderr: '' });
  t.match(list.stdout, /^NAME +DRIVER +STATE +MEMORY.*\nweb1 +embedded +running +256 MiB +4242 +launched\nweb2 /);

  const json = await runCli(t, ['--json', 'guest', 'show', 'web1'], env);
  t.same([json.code, json.stderr, JSON.parse(json.stdout)], [0, '', guestInfo('web1')]);

  const run = await runCli(
    t,
    'guest run web1 --driver embedded --memory 256M --write-rate 2000 --working-set 0.25 --zero-fraction 0 --threads 2 --seed 7 --fill-from /usr/lib'.split(
      ' ',
    ),
    env,
  );
  t.match(run, { code: 0, stdout: 'web1 runs: pid 4242\n' });
  t.same(service.calls.at(-1), [
    'runGuest',
    {
      name: 'web1',
      driver: 'embedded',
      options: {
        memory: 2 ** 28,
        writeRate: 2000,
        workingSet: 0.25,
        zeroFraction: 0,
        threads: 2,
        fillFrom: '/usr/lib',
        seed: 7,
      },
    },
  ]);

  // what stands behind -- is the guest's, also where it looks like options of ours
  const argv = ['qemu-system-x86_64', '-m', '1G', '--json', '--', '--help'];
  await runCli(t, ['guest', 'run', 'vm', '--check', '/c', '--driver', 'qemu', '--', ...argv], env);
  t.same(service.calls.at(-1), ['runGuest', { name: 'vm', driver: 'qemu', options: { argv, checkSocket: '/c' } }]);

  const attach = await runCli(t, ['guest', 'attach', 'vm', '--driver', 'qemu', '--qmp', 'q.sock', '--json'], env);
  t.match(JSON.parse(attach.stdout), { name: 'vm', launched: false });
  const qmp = join(process.cwd(), 'q.sock');
  t.same(service.calls.at(-1), ['attachGuest', { name: 'vm', driver: 'qemu', options: { qmp } }]);

  t.match(await runCli(t, ['guest', 'remove', 'vm'], env), { code: 0, stdout: 'vm removed\n' });
  t.same(service.calls.at(-1), ['removeGuest', 'vm']);
});

void t.test('domains', async (t) => {
  const { service, socket } = await startApi(t);
  const env = { PAGETIDE_AGENT: `unix:${socket}` };
  const cli = (line: string) => runCli(t, line.split(' '), env);
  const list = await cli('domain list');
  t.match(list, { code: 0, stderr: '' });
  t.match(list.stdout, /^NAME +HOME +HOSTS +GUESTS HERE +NOTE\nshop +made here +host-b, host-c \(revoking\) +web1\n$/);
  t.same(JSON.parse((await cli('domain show shop --json')).stdout), domainInfo('shop'));
  const show = (await cli('domain show shop')).stdout;
  t.match(show, /host +host-b at https:\/\/host-b:7411: granted\n/);
  t.match(show, /host +host-c at .*: revoking, PT_PEER_UNREACHABLE: cannot reach/);

  t.match(await cli('domain create shop'), { code: 0, stdout: /^shop made; / });
  t.same(service.calls.at(-1), ['domains.create', 'shop']);
  t.match(await cli('domain grant shop host-b'), { code: 0, stdout: 'shop granted; it is at host-b\n' });
  t.same(service.calls.at(-1), ['domains.grant', 'shop', 'host-b']);
  t.match(await cli('domain revoke shop host-c'), {
    code: 0,
    stdout: /^host-c has not forgotten shop yet: cannot reach/,
  });
  t.match(await cli('domain revoke shop host-d'), { code: 0, stdout: 'host-d has forgotten shop\n' });
  t.same(service.calls.at(-1), ['domains.revoke', 'shop', 'host-d']);
  t.match(await cli('domain remove shop'), { stdout: 'shop removed, its pages erased; not reached yet: host-c\n' });

  await cli('guest run web1 --driver embedded --memory 1M --domain shop');
  t.match(service.calls.at(-1), ['runGuest', { name: 'web1', domain: 'shop' }]);
  await cli('guest attach vm --driver qemu --qmp /q --domain shop');
  t.match(service.calls.at(-1), ['attachGuest', { name: 'vm', domain: 'shop' }]);
});

void t.test('snapshots', async (t) => {
  const { service, socket } = await startApi(t);
  const env = { PAGETIDE_AGENT: `unix:${socket}` };
  const shared = await runCli(t, 'snapshot share ./mem --domain shop'.split(' '), env);
  t.equal(shared.stdout, "/srv/snapshot/mem: 65536 pages, 536 of them zero, for 'shop'\n");
  t.same(service.calls.at(-1), ['shareSnapshot', { file: join(process.cwd(), 'mem'), domain: 'shop' }]);
  await runCli(t, 'snapshot share /mem --domain shop --manifest ./m'.split(' '), env);
  const manifest = join(process.cwd(), 'm');
  t.same(service.calls.at(-1), ['shareSnapshot', { file: '/mem', domain: 'shop', manifest }]);
  t.match(await runCli(t, ['snapshot', 'list'], env), {
    stdout: /^DOMAIN +PAGES +ZERO +FILE\nshop +65536 +536 +\/srv/,
  });
  t.match(await runCli(t, ['snapshot', 'unshare', '/mem'], env), { code: 0, stdout: '/mem is not shared any more\n' });
  t.same(service.calls.at(-1), ['unshareSnapshot', '/mem']);
});

void t.test('the cache', async (t) => {
  const { service, socket } = await startApi(t);
  const env = { PAGETIDE_AGENT: `unix:${socket}` };
  const stats = await runCli(t, ['cache', 'stats'], env);
  t.match(stats, { code: 0, stderr: '' });
  t.match(
    stats.stdout,
    /^file +\/dev\/shm\/pagetide-0-a\/shared-pages\npages +32000 of 65000 \(125 MiB of 254 MiB\)\n/,
  );
  t.match(stats.stdout, /lookups +400: 300 hits \(75%\), 100 misses\n/);
  t.match(stats.stdout, /guests here +15000 of 20000 pages listed, 9000 different, in 2 memory files\n/);
  t.match(stats.stdout, /lookups +100: 90 hits \(90%\), 10 misses, 4 pages had changed\n/);
  const json = await runCli(t, ['cache', 'stats', '--json'], env);
  t.same(JSON.parse(json.stdout), cacheInfo);

  t.match(await runCli(t, ['cache', 'clear'], env), { code: 0, stdout: '12 pages erased\n' });

  const warm = await runCli(t, 'cache warm --from web1 --domain shop'.split(' '), env);
  t.match(warm.stdout, /^1000 pages: 900 inserted, 98 were there, 2 changed meanwhile or found no room\n/);
  t.same(service.calls.at(-1), ['warmCache', { domain: 'shop', guest: 'web1' }]);
  await runCli(t, 'cache warm --from ./ram.bin --domain shop'.split(' '), env);
  t.same(service.calls.at(-1), ['warmCache', { domain: 'shop', file: join(process.cwd(), 'ram.bin') }]);

  const { resident, chunks } = cacheInfo;
  service.cache = { resident: resident!, chunks };
  const without = await runCli(t, ['cache', 'stats'], env);
  t.match(without, { code: 0, stdout: /^cache +none \(cache.size .*\n\nguests here +15000 of 20000 pages listed/ });
  t.same(JSON.parse((await runCli(t, ['cache', 'stats', '--json'], env)).stdout), service.cache);
  service.cache = { chunks: 0 };
  t.match(await runCli(t, ['cache', 'stats'], env), { code: 0, stdout: /guests here +not listed/ });

  service.failure = new PagetideError('PT_NO_CACHE', 'this agent has no cache');
  const none = await runCli(t, ['cache', 'clear'], env);
  t.match(none, { code: 1, stderr: /PT_NO_CACHE/ });
});

void t.test('verify tells the right from the wrong', async (t) => {
  const { service, socket } = await startApi(t);
  // --agent goes before the environment
  const verify = (...more: string[]) =>
    runCli(t, ['guest', 'verify', 'web1', '--agent', `unix:${socket}`, ...more], { PAGETIDE_AGENT: 'unix:/nowhere' });
  t.match(await verify(), { code: 0, stdout: 'web1: 65536 frames checked, all right\n' });
  service.verifyResult = { ok: false, checked: 65536, bad: [7, 9], detail: 'stale' };
  const bad = await verify('--json');
  t.equal(bad.code, 1);
  t.match(JSON.parse(bad.stdout), { ok: false, bad: [7, 9] });
  t.match(JSON.parse(bad.stderr), { code: 'PT_VERIFY_FAILED', message: /\(7, 9\): stale/ });
  service.verifyResult = null;
  t.match(await verify(), { code: 1, stderr: /^error PT_GUEST_STATE: web1 cannot check itself/ });
});

void t.test('failures: one line, more with --verbose, JSON with --json', async (t) => {
  const { service, socket } = await startApi(t);
  const env = { PAGETIDE_AGENT: `unix:${socket}` };
  const failure = new PagetideError('PT_NOT_CANCELLABLE', 'web1 is\nat B', { cause: new Error('epoch 4') });
  service.failure = failure;
  const plain = await runCli(t, ['cancel', 'web1'], env);
  t.same(
    [plain.code, plain.stdout, plain.stderr],
    [
      1,
      '',
      'error PT_NOT_CANCELLABLE: web1 is at B (The guest already belongs to the destination; the migration runs to its end.)\n',
    ],
  );
  const verbose = await runCli(t, ['cancel', 'web1', '--verbose'], env);
  t.match(verbose.stderr, /^error PT_NOT_CANCELLABLE: .*\n {2}caused by: Error: epoch 4\n {4}at /);
  const json = await runCli(t, ['cancel', 'web1', '--json'], env);
  t.equal(json.code, 1);
  t.same(JSON.parse(json.stderr), failure.toJSON());

  const nobody = await runCli(t, ['migrations'], { PAGETIDE_AGENT: `unix:${socket}.none` });
  t.match(nobody, { code: 1, stderr: /^error PT_PEER_UNREACHABLE: no agent at unix:.*\(`pagetide agent` starts one/ });
});

void t.test('cancel, migrations, doctor of another host', async (t) => {
  const { service, socket, folder } = await startApi(t);
  service.migration = migrationInfo('cancelled');
  // found without being told: the socket is where XDG_RUNTIME_DIR has it
  const { mkdirSync, symlinkSync } = await import('node:fs');
  mkdirSync(join(folder, 'pagetide'));
  symlinkSync(socket, join(folder, 'pagetide/control.sock'));
  const env = { XDG_RUNTIME_DIR: folder };
  t.match(await runCli(t, ['cancel', 'web1'], env), { code: 0, stdout: /of web1: cancelled\n$/ });
  t.match(await runCli(t, ['migrations'], env), {
    code: 0,
    stdout: /web1 +outgoing +http:\/\/127\.0\.0\.1:7412 +cancelled/,
  });

  const agent = `unix:${socket}`;
  service.checks = [
    { name: 'kernel', status: 'ok', found: 'Linux 6.18' },
    { name: 'qemu', status: 'missing', found: 'not on PATH', needed: 'QEMU guests', fix: 'apt-get install it' },
  ];
  const fine = await runCli(t, ['doctor', '--agent', agent]);
  t.equal(fine.code, 0, 'what is missing is not essential');
  t.match(fine.stdout, /missing +qemu +not on PATH\n\nqemu \(needed for QEMU guests\)\n {4}apt-get install it\n/);
  service.checks = [{ ...service.checks[1]!, essential: true }];
  const ill = await runCli(t, ['doctor', '--agent', agent, '--json']);
  t.equal(ill.code, 1);
  t.same(JSON.parse(ill.stdout), service.checks);

  const here = await runCli(t, ['doctor', '--json']);
  t.ok((JSON.parse(here.stdout) as unknown[]).length >= 8, 'this host needs no agent');
});
