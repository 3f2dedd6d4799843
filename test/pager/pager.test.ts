/** The pager as a process, with guests that hand their memory over as Firecracker does. */
import { existsSync, lstatSync, mkdirSync, readFileSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { spawn } from 'node:child_process';
import { connect } from 'node:net';
import { once } from 'node:events';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import t, { type Test } from 'tap';
import { native } from '../../src/memory/native.ts';
import { runCli } from '../cli/harness.ts';
import { scratch, until, type Guest } from '../guests/embedded-support.ts';
import {
  HUGE,
  PAGE,
  endVm,
  guestHash,
  hashes,
  memoryFile,
  reserveHuge,
  startPager,
  startVm,
  stillWaits,
  touched,
} from './support.ts';

const MIB = 1024 * 1024;
const ZERO = guestHash(new Uint8Array(PAGE));

/** How many lines of the log match. */
const lines = (text: string, pattern: RegExp): number => text.split('\n').filter((line) => pattern.test(line)).length;

void t.test('private memory in several regions, with the fill and without', async (t) => {
  for (const args of [[], ['--no-fill']]) {
    const folder = scratch(t);
    const { path, content } = memoryFile(folder, 8 * MIB);
    const pager = await startPager(t, folder, path, args);
    t.equal(lstatSync(pager.socket).mode & 0o777, 0o600);
    t.ok(lstatSync(pager.socket).isSocket());
    const guest = await startVm(t, folder, pager.socket, 8 * MIB, ['--private', '--regions', '3']);
    const want = hashes(content);
    if (args.length === 0) await pager.says(/every page is there/);
    t.same(await touched(guest, 0, want.length), want, `every page, ${args.join(' ') || 'filled'}`);

    // What the guest gives up is zero from then on, although the file still has it.
    await guest.control.remove(100, 50, 'dontneed');
    t.same(await touched(guest, 98, 54), [
      ...want.slice(98, 100),
      ...Array<string>(50).fill(ZERO),
      ...want.slice(150, 152),
    ]);
    await endVm(guest);
    await pager.says(/the VM is gone/);
    const { code, stderr } = await pager.end();
    t.equal(code, 0);
    t.notOk(existsSync(pager.socket));
    t.equal(lines(stderr, /"level":"(warn|error|fatal)"/), 0, stderr);
  }
});

void t.test('frames given up before they ever came are zero', async (t) => {
  const folder = scratch(t);
  const { path, content } = memoryFile(folder, 4 * MIB);
  const pager = await startPager(t, folder, path, ['--no-fill']);
  const guest = await startVm(t, folder, pager.socket, 4 * MIB);
  await guest.control.remove(16, 4, 'dontneed');
  const want = hashes(content.subarray(15 * PAGE, 21 * PAGE));
  t.same(await touched(guest, 15, 6), [want[0], ZERO, ZERO, ZERO, ZERO, want[5]]);
});

void t.test('removes while it is filled: never the old content, and nobody is left waiting', async (t) => {
  const folder = scratch(t);
  const { path, content } = memoryFile(folder, 24 * MIB);
  const pager = await startPager(t, folder, path);
  const guest = await startVm(t, folder, pager.socket, 24 * MIB);
  const removed = new Set<number>();
  for (let round = 0; round < 60; round++) {
    const at = (round * 7919) % 6_000;
    await guest.control.remove(at, 40, 'dontneed');
    for (let n = 0; n < 40; n++) removed.add(at + n);
    await guest.control.touch((round * 104_729) % 6_000, 16);
  }
  await pager.says(/every page is there/);
  let wrong = 0;
  for (let at = 0; at < 6_144; at += 128) {
    const got = await touched(guest, at, 128);
    for (let n = 0; n < 128; n++) {
      // every eighth page will do: the hash is slow here
      if (removed.has(at + n)) wrong += got[n] === ZERO ? 0 : 1;
      else if (n % 8 === 0)
        wrong += got[n] === guestHash(content.subarray((at + n) * PAGE, (at + n + 1) * PAGE)) ? 0 : 1;
    }
  }
  t.equal(wrong, 0);
});

void t.test('shared memory that is handed over is known as such', async (t) => {
  const folder = scratch(t);
  const { path, content } = memoryFile(folder, 4 * MIB);
  const pager = await startPager(t, folder, path, ['--no-fill']);
  const ram = join(folder, 'ram');
  const guest = await startVm(t, folder, pager.socket, 4 * MIB, ['--memory-file', ram, '--register']);
  await pager.says(/"memory":"shared"/);
  const want = hashes(content.subarray(0, 8 * PAGE));
  t.same(await touched(guest, 0, 4), want.slice(0, 4));
  await guest.control.remove(2, 4, 'dontneed');
  t.same(await touched(guest, 0, 8), want, 'what is dropped from shared memory keeps its content');
  await guest.control.remove(2, 1, 'punch');
  t.same(await touched(guest, 1, 3), [want[1], ZERO, want[3]], 'what is punched is zero');
});

void t.test('several VMs at once; one too many is refused, and served once there is a place', async (t) => {
  const folder = scratch(t);
  const { path, content } = memoryFile(folder, 4 * MIB);
  const pager = await startPager(t, folder, path, ['--max-vms', '2']);
  const want = hashes(content);
  const first = await startVm(t, folder, pager.socket, 4 * MIB);
  const second = await startVm(t, folder, pager.socket, 4 * MIB);
  const third = await startVm(t, folder, pager.socket, 4 * MIB);
  await pager.says(/PT_NO_WORKER.*all 2 fault workers/);
  // It waits; what it must not do is to run on with zeros.
  const waits = third.control.touch(0, 1, { timeoutMs: 60_000 });
  const [a, b] = await Promise.all([touched(first, 0, want.length), touched(second, 0, want.length)]);
  t.same(a, want);
  t.same(b, want);
  t.ok(await stillWaits(waits, () => touched(first, 0, 1)));
  waits.catch(() => undefined);
  await endVm(first);
  await pager.says(/the VM is gone/);
  const fourth = await startVm(t, folder, pager.socket, 4 * MIB);
  t.same(await touched(fourth, 0, 64), want.slice(0, 64), 'the place is free again');
});

void t.test('a VMM that vanishes half-way leaves nothing behind', async (t) => {
  const folder = scratch(t);
  const { path, content } = memoryFile(folder, 32 * MIB);
  const pager = await startPager(t, folder, path, ['--max-vms', '1']);
  for (let round = 0; round < 4; round++) {
    const guest = await startVm(t, folder, pager.socket, 32 * MIB);
    await guest.control.touch(round * 100, 1);
    await endVm(guest);
    // Its place is free when the next one can be served.
    await until('its place is free', async () => {
      const next = await startVm(t, folder, pager.socket, 32 * MIB);
      const got = await next.control.touch(5, 1, { timeoutMs: 1000 }).catch(() => undefined);
      await endVm(next);
      if (got === undefined) return false;
      t.equal(got[0]?.hash, guestHash(content.subarray(5 * PAGE, 6 * PAGE)));
      return true;
    });
    // That one had to give the place back, too: one that comes earlier is refused, and would wait for ever.
    const rounds = 2 * (round + 1);
    await until('the place is free again', () => {
      const gone = lines(pager.said(), /the VM is gone/);
      return gone >= rounds && gone === lines(pager.said(), /serving a VM/);
    });
  }
  const { code, stderr } = await pager.end();
  t.equal(code, 0, stderr);
});

/** Says `bytes` to the pager with `fds`, and waits for the connection's end. */
async function handOver(socket: string, text: string, fds: number[], close = false): Promise<void> {
  const fd = native().connectUnix(socket);
  try {
    native().send(fd, Buffer.from(text), fds);
    if (close) return;
    const scrap = Buffer.alloc(16);
    await until('the end of the connection', () => native().receive(fd, scrap).bytes === 0);
  } finally {
    native().close(fd);
  }
}

void t.test('hand-overs that do not fit are refused by the end of the connection; the pager goes on', async (t) => {
  const folder = scratch(t);
  const { path, content } = memoryFile(folder, 4 * MIB);
  const pager = await startPager(t, folder, path);
  const { fd: uffd } = native().createUserfault(0n);
  t.teardown(() => native().close(uffd));
  const region = { base_host_virt_addr: 0x10000000000, size: MIB, offset: 0, page_size: PAGE };
  const json = (...regions: object[]): string => JSON.stringify(regions);
  const bad: [RegExp, string, number[]][] = [
    [/is no JSON"/, '[nope]', [uffd]],
    [/no JSON array/, '{}', [uffd]],
    [/no descriptor/, json(region), []],
    [/exceeds 65536 bytes/, `[${' '.repeat(70_000)}`, [uffd]],
    [/no power of two/, json({ ...region, page_size: 12_288, size: 12_288 }), [uffd]],
    [/overlap in offset/, json(region, { ...region, base_host_virt_addr: 0x20000000000 }), [uffd]],
    [/overlap in address/, json(region, { ...region, offset: MIB }), [uffd]],
    [/4194304 bytes, the guest's memory 8388608/, json({ ...region, size: 8 * MIB }), [uffd]],
    [/no memory at address 0x10000000000/, json(region), [uffd]],
  ];
  for (const [pattern, text, fds] of bad) {
    await handOver(pager.socket, text, fds);
    await pager.says(pattern);
  }
  await handOver(pager.socket, '[{"base', [uffd], true);
  await pager.says(/before its message was whole/);
  const guest = await startVm(t, folder, pager.socket, 4 * MIB);
  t.same(await touched(guest, 0, 64), hashes(content.subarray(0, 64 * PAGE)));
  const { code } = await pager.end();
  t.equal(code, 0);
});

void t.test('a VMM without a userfaultfd of its own is refused, and still never reads zeros', async (t) => {
  const folder = scratch(t);
  const { path } = memoryFile(folder, MIB);
  const pager = await startPager(t, folder, path);
  const script = fileURLToPath(new URL('./careless-vmm.js', import.meta.url));
  const vmm = spawn(process.execPath, [script, pager.socket, join(folder, 'ram'), String(2 * MIB)]);
  let said = '';
  vmm.stdout.setEncoding('utf8').on('data', (text: string) => (said += text));
  vmm.stderr.setEncoding('utf8').on('data', (text: string) => (said += text));
  t.teardown(() => vmm.kill('SIGKILL'));
  await pager.says(/PT_MEMORY_FILE.*has 1048576 bytes, the guest's memory 2097152/);
  await until('it touches', () => said.includes('touching'));
  // Nothing but the pager's copy keeps its pages missing. It is kept as long as the pager can.
  const vmms: Guest[] = [];
  for (let n = 0; n < 3; n++) vmms.push(await startVm(t, folder, pager.socket, MIB));
  for (const guest of vmms) await touched(guest, 0, 16);
  t.notMatch(said, /read/);
  const { code, stderr } = await pager.end();
  t.equal(code, 0, stderr);
  // The last copy is closed: this is what it was kept for.
  await until('the last copy to be closed', () => said.includes('read 0'));
});

void t.test('a VMM that closes its connection, but lives, is served on', async (t) => {
  const folder = scratch(t);
  const { path, content } = memoryFile(folder, MIB);
  const pager = await startPager(t, folder, path, ['--no-fill']);
  const script = fileURLToPath(new URL('./careless-vmm.js', import.meta.url));
  const vmm = spawn(process.execPath, [script, pager.socket, join(folder, 'ram'), String(MIB), 'keep']);
  let said = '';
  vmm.stdout.setEncoding('utf8').on('data', (text: string) => (said += text));
  t.teardown(() => vmm.kill('SIGKILL'));
  await pager.says(/has closed its connection, but lives/);
  vmm.stdin.write('go');
  await until('it has read', () => /read \d+/.test(said));
  t.match(said, `read ${content[0]}`);
  vmm.kill('SIGKILL');
  await pager.says(/the VM is gone/);
});

void t.test('memory files that will not do are refused at once', async (t) => {
  const folder = scratch(t);
  const listen = join(folder, 's');
  const run = (memory: string) => runCli(t, ['pager', '--listen', listen, '--memory', memory]);
  writeFileSync(join(folder, 'empty'), '');
  for (const [memory, pattern] of [
    [join(folder, 'none'), /cannot read/],
    [folder, /no regular file/],
    [join(folder, 'empty'), /has 0 bytes/],
  ] as const) {
    const { code, stderr } = await run(memory);
    t.not(code, 0);
    t.match(stderr, pattern);
    t.match(stderr, /PT_MEMORY_FILE/);
    t.notOk(existsSync(listen));
  }
});

void t.test('a socket that is in use, and one that somebody left behind', async (t) => {
  const folder = scratch(t);
  const { path } = memoryFile(folder, MIB);
  const pager = await startPager(t, folder, path);
  const second = await runCli(t, ['pager', '--listen', pager.socket, '--memory', path]);
  t.not(second.code, 0);
  t.match(second.stderr, /PT_SOCKET_IN_USE/);
  t.ok(existsSync(pager.socket), 'the first one keeps its socket');
  const socket = connect(pager.socket);
  await once(socket, 'connect');
  socket.destroy();
  pager.cli.kill('SIGKILL');
  await pager.cli.finished;
  t.ok(existsSync(pager.socket), 'left behind');
  // startPager looks for the socket, so another name would have to go first
  const again = await startPager(t, folder, path);
  await until('it answers', () => {
    try {
      native().close(native().connectUnix(again.socket));
      return true;
    } catch {
      return false;
    }
  });
  const { code } = await again.end();
  t.equal(code, 0);
  t.notOk(existsSync(again.socket));

  writeFileSync(join(folder, 'file'), 'precious');
  const file = await runCli(t, ['pager', '--listen', join(folder, 'file'), '--memory', path]);
  t.not(file.code, 0);
  t.equal(readFileSync(join(folder, 'file'), 'utf8'), 'precious');
  mkdirSync(join(folder, 'sub'));
  rmSync(join(folder, 'sub'), { recursive: true });
  const nowhere = await runCli(t, ['pager', '--listen', join(folder, 'sub', 's'), '--memory', path]);
  t.not(nowhere.code, 0);
});

/** The file is cut while the guest lives on it: what is lost waits, the rest is served, and all goes on when it is back. */
async function cutFile(t: Test, args: string[]): Promise<void> {
  const folder = scratch(t);
  const { path, content } = memoryFile(folder, 32 * MIB);
  const pager = await startPager(t, folder, path, args);
  const half = content.length / 2;
  const guest = await startVm(t, folder, pager.socket, 32 * MIB, ['--private', '--regions', '2']);
  await pager.says(/serving a VM/);
  truncateSync(path, half - 100);
  const last = content.length / PAGE - 2;
  const touches = [guest.control.touch(last, 1, { timeoutMs: 120_000 })];
  // The fill may have been quicker than we.
  const first = hashes(content.subarray(0, 32 * PAGE));
  const waits = await stillWaits(touches[0]!, async () =>
    t.same(await touched(guest, 0, 32), first, 'goes on serving'),
  );
  if (args.length > 0) {
    t.ok(waits, 'never zeros');
    await pager.says(/the memory file ends before frame/);
    // the page that was cut in two waits as well
    touches.push(guest.control.touch(half / PAGE - 1, 1, { timeoutMs: 120_000 }));
    t.ok(await stillWaits(touches[1]!, () => touched(guest, 32, 8)));
  }
  writeFileSync(path, content, { flag: 'r+' });
  const [tail, middle] = await Promise.all(touches);
  t.equal(tail![0]?.hash, guestHash(content.subarray(last * PAGE, (last + 1) * PAGE)));
  if (middle !== undefined) t.equal(middle[0]?.hash, guestHash(content.subarray(half - PAGE, half)));
  if (args.length === 0) await pager.says(/every page is there/);
  const { code, stderr } = await pager.end();
  t.equal(code, 0);
  if (args.length > 0) t.equal(lines(stderr, /memory file ends/), 1, 'reported once');
  else t.ok(lines(stderr, /memory file ends/) <= 2, 'once by the faults, once by the fill');
}

void t.test('a memory file that shrinks while it is served, and grows back', async (t) => {
  await cutFile(t, ['--no-fill']);
  await cutFile(t, []);
});

void t.test('a memory file that vanishes: who is served is served on, nobody else', async (t) => {
  const folder = scratch(t);
  const { path, content } = memoryFile(folder, 4 * MIB);
  const pager = await startPager(t, folder, path, ['--no-fill']);
  const guest = await startVm(t, folder, pager.socket, 4 * MIB);
  await guest.control.touch(0, 1);
  rmSync(path);
  t.same(await touched(guest, 0, 64), hashes(content.subarray(0, 64 * PAGE)));
  const late = await startVm(t, folder, pager.socket, 4 * MIB);
  await pager.says(/PT_MEMORY_FILE.*cannot read/);
  const touch = late.control.touch(0, 1, { timeoutMs: 60_000 });
  touch.catch(() => undefined);
  t.ok(await stillWaits(touch, () => touched(guest, 64, 16)), 'never zeros');
});

void t.test('a pager that is killed: the guest waits, it never reads zeros', async (t) => {
  const folder = scratch(t);
  const { path, content } = memoryFile(folder, 4 * MIB);
  const pager = await startPager(t, folder, path, ['--no-fill']);
  const guest = await startVm(t, folder, pager.socket, 4 * MIB);
  t.same(await touched(guest, 0, 8), hashes(content.subarray(0, 8 * PAGE)));
  pager.cli.kill('SIGKILL');
  await pager.cli.finished;
  const touch = guest.control.touch(8, 1, { timeoutMs: 60_000 });
  touch.catch(() => undefined);
  t.ok(await stillWaits(touch, () => touched(guest, 0, 8)), 'what it has it can read, what it lacks it waits for');
});

void t.test('SIGTERM while a guest is being filled', async (t) => {
  const folder = scratch(t);
  const { path, content } = memoryFile(folder, 64 * MIB);
  const pager = await startPager(t, folder, path);
  const guest = await startVm(t, folder, pager.socket, 64 * MIB);
  t.same(await touched(guest, 5, 1), hashes(content.subarray(5 * PAGE, 6 * PAGE)));
  const { code, stdout, stderr } = await pager.end();
  t.equal(code, 0, stderr);
  t.match(stdout, /pager ready on .*, serving/);
  t.notMatch(stderr, /something was still open/);
  t.notOk(existsSync(pager.socket));
});

void t.test('huge pages', async (t) => {
  const pages = 4;
  if (!reserveHuge(t, pages)) return;
  const folder = scratch(t);
  const { path, content } = memoryFile(folder, pages * HUGE, HUGE);
  const pager = await startPager(t, folder, path);
  const guest = await startVm(t, folder, pager.socket, pages * HUGE, ['--private', '--page-size', '2M']);
  const want = hashes(content, HUGE);
  t.same(await touched(guest, 0, pages), want);
  await guest.control.remove(1, 1, 'dontneed');
  t.same(await touched(guest, 1, 2), [guestHash(new Uint8Array(HUGE)), want[2]]);
  await pager.says(/every page is there/);
  await endVm(guest);
  await pager.says(/the VM is gone/);
});
