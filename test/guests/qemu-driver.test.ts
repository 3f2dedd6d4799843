/** The QEMU driver on real guests: pause, resume, state out and in, refusals. */
import { copyFile, open, readdir, stat, writeFile } from 'node:fs/promises';
import { spawn } from 'node:child_process';
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { PassThrough, Readable, Writable } from 'node:stream';
import t from 'tap';
import { qemuDriver } from '../../src/guests/qemu/driver.ts';
import { QmpClient } from '../../src/guests/qemu/qmp.ts';
import { isAlive } from '../../src/guests/process.ts';
import { memoryPrefix } from '../../src/guests/marks.ts';
import { native } from '../../src/memory/native.ts';
import { bootGuest, endAfter, guestOptions, makePlace, needsQemu } from '../support/qemu-guest.ts';

const qemu = needsQemu();

/** Collects what is written to it. */
function collector(): { sink: Writable; bytes: () => Buffer } {
  const chunks: Buffer[] = [];
  const sink = new Writable({
    write(chunk: Buffer, _encoding, done) {
      chunks.push(chunk);
      done();
    },
  });
  return { sink, bytes: () => Buffer.concat(chunks) };
}

/** Copies what a memory file holds into another that is mapped already; holes stay holes. */
async function copyMemory(from: string, to: string): Promise<void> {
  const [source, target] = [await open(from, 'r'), await open(to, 'r+')];
  try {
    for (const { offset, length } of native().dataExtents(source.fd, 0, (await source.stat()).size)) {
      const buffer = Buffer.alloc(length);
      await source.read(buffer, 0, length, offset);
      await target.write(buffer, 0, length, offset);
    }
  } finally {
    await source.close();
    await target.close();
  }
}

void t.test('a scan that stops the guest for a moment', qemu, async (t) => {
  const { vmm } = await bootGuest(t, { settings: 'pagetide.rate=500' });
  let calls = 0;
  for (let i = 0; i < 3; i++) await vmm.drained(() => calls++);
  t.equal(calls, 3);
  t.equal(await vmm.status(), 'running');
  await vmm.selfCheck!.nextBeat(10_000);
  const failing = (): never => {
    throw new Error('the scan failed');
  };
  await t.rejects(vmm.drained(failing), /the scan failed/);
  t.equal(await vmm.status(), 'running', 'also where the scan fails');

  const stopped = await vmm.pause();
  await vmm.drained(() => calls++);
  t.equal(await vmm.status(), 'paused', 'one that stands still stays so');
  t.strictSame(await vmm.pause(), stopped);
  await vmm.resume();
  await vmm.pause();
  // whose monitor was connected after the stop has heard of none
  const again = (await qemuDriver.find(await makePlace(t, 'again'), vmm.record))!;
  t.teardown(() => again.close());
  vmm.close();
  await again.drained(() => calls++);
  t.equal(calls, 5);
  t.equal(await again.status(), 'paused', 'a stop that nobody here has seen counts, too');
  await t.rejects(again.drained(failing), /the scan failed/);
  await again.resume();
  await again.drained(() => calls++);
  t.equal(await again.status(), 'running');
});

void t.test('a guest pauses, gives its state twice, goes on, and arrives elsewhere', qemu, async (t) => {
  const started = Date.now();
  const { vmm } = await bootGuest(t, {
    settings: 'pagetide.rate=500',
    more: ['-device', 'virtio-rng-pci', '-vga', 'std'],
  });
  t.comment(`booted in ${Date.now() - started} ms`);
  t.equal(await vmm.status(), 'running');
  t.match(vmm.record.description.config, {
    shape: { machine: /^pc-q35-\d+\.\d+$/, cpus: 1, devices: [':virtio-rng-pci'] },
  });
  t.strictSame(await vmm.verify().then((v) => v && [v.ok, v.bad]), [true, []]);
  await vmm.checkMovable();
  const stopped = await vmm.pause();
  t.ok(Math.abs(stopped.unixMicros / 1000 - Date.now()) < 5000, 'the time of the stop is a time of now');
  t.strictSame(await vmm.pause(), stopped, 'pausing again changes nothing');
  t.equal(await vmm.status(), 'paused');
  const refused = vmm.depart(new PassThrough());
  await t.rejects(refused.stopped, { code: 'PT_GUEST_STATE' }, 'somebody else has stopped it');
  await t.rejects(refused.saved, { code: 'PT_GUEST_STATE' });
  await vmm.resume();

  const first = collector();
  const departure = vmm.depart(first.sink);
  const left = await departure.stopped;
  t.ok(left.unixMicros > stopped.unixMicros);
  t.equal(await vmm.status(), 'paused');
  await departure.saved;
  t.ok(
    first.bytes().length > 10_000 && first.bytes().length < 2 << 20,
    `the state has ${first.bytes().length} bytes: no RAM in it`,
  );
  await t.rejects(vmm.depart(new PassThrough()).saved, { code: 'PT_GUEST_STATE' }, 'it has not run since');
  const resumed = await vmm.resume();
  t.ok(resumed.unixMicros > left.unixMicros);
  t.strictSame(await vmm.resume(), resumed, 'resuming again changes nothing');
  await vmm.selfCheck!.nextBeat(10_000);
  t.equal((await vmm.verify())?.ok, true);

  // a sink that breaks: the guest goes on
  const broken = new Writable({ write: (_chunk, _encoding, done) => done(new Error('the network went away')) });
  await t.rejects(vmm.depart(broken).saved, /network went away/);
  await vmm.resume();
  await vmm.selfCheck!.nextBeat(10_000);

  // a departure that is given up half-way: its sink takes nothing
  const stuck = vmm.depart(new Writable({ highWaterMark: 1, write: () => undefined }));
  const gaveUp = t.rejects(stuck.saved, { code: 'PT_CANCELLED' });
  await vmm.resume();
  await gaveUp;
  t.equal(await vmm.status(), 'running');
  await vmm.selfCheck!.nextBeat(10_000);

  // one that its operator stops while it still sends what goes before: it is not moved, and stays as it is
  let begin = (): void => undefined;
  const begun = new Promise<void>((resolve) => (begin = resolve));
  const halfWay = vmm.depart(new Writable({ highWaterMark: 1, write: () => begin() }));
  await begun;
  const turnedDown = [
    t.rejects(halfWay.stopped, { code: 'PT_GUEST_STATE' }, 'it was stopped by somebody else meanwhile'),
    t.rejects(halfWay.saved, { code: 'PT_GUEST_STATE' }),
  ];
  await vmm.pause();
  await Promise.all(turnedDown);
  t.equal(await vmm.status(), 'paused');
  await vmm.resume();
  await vmm.selfCheck!.nextBeat(10_000);

  const second = collector();
  await vmm.depart(second.sink).saved;
  const beats = (await vmm.stats())!.heartbeats!;

  const place = await makePlace(t, 'there');
  const there = endAfter(t, await qemuDriver.prepare(place, vmm.record.description));
  t.equal(await there.status(), 'incoming');
  await t.rejects(there.resume(), { code: 'PT_GUEST_STATE' }, 'a guest without state cannot run');
  await copyMemory(vmm.record.files[0]!.path, there.record.files[0]!.path);
  await there.loadState(Readable.from([second.bytes()]));
  t.equal(await there.status(), 'paused');
  const began = await there.resume();
  t.comment(`stop to resume here ${(began.unixMicros - stopped.unixMicros) / 1000} ms`);
  await there.selfCheck!.nextBeat(10_000);
  t.strictSame(await there.verify().then((v) => [v?.ok, v?.bad, v?.detail]), [true, [], undefined]);
  const here = (await there.stats())!;
  t.ok(here.heartbeats!.firstNumber > beats.lastNumber, 'heartbeats go on where they ended');
  t.ok(here.operations! > 0);

  // found again after a restart of the agent, by its record alone
  there.close();
  const again = endAfter(
    t,
    (await qemuDriver.find(place, JSON.parse(JSON.stringify(there.record)) as typeof there.record))!,
  );
  t.equal(await again.status(), 'running');
  await again.destroy();
  await again.exited;
  t.strictSame(await readdir(place.memoryFolder), [], 'no memory file left');
  t.strictSame((await readdir(place.folder)).sort(), ['console.log', 'qemu.log'], 'no socket left');
  t.equal(await qemuDriver.find(place, there.record), undefined);
  t.equal(await vmm.status(), 'paused', 'the source is as it was');
  await vmm.resume();
  await vmm.selfCheck!.nextBeat(10_000);
  t.equal((await vmm.verify())?.ok, true);
});

void t.test('the guest notices a page that someone else changed', qemu, async (t) => {
  const { vmm } = await bootGuest(t, { settings: 'pagetide.rate=0 pagetide.zero=0' });
  const { path, size } = vmm.record.files[0]!;
  const file = await open(path, 'r+');
  t.teardown(() => file.close());
  // Only pages of the init's own, known by their second half: one word over and over. Others are the kernel's.
  const page = Buffer.alloc(4096);
  let damaged = 0;
  for (let at = size / 2; at < size && damaged < 3; at += 37 * 4096) {
    await file.read(page, 0, 4096, at);
    const word = page.readBigUInt64LE(2048);
    if (word === 0n || !page.subarray(2048, 4088).equals(page.subarray(2056))) continue;
    await file.write(Buffer.from('damaged!'), 0, 8, at + 3072);
    damaged++;
  }
  t.equal(damaged, 3);
  const verdict = await vmm.verify();
  t.equal(verdict?.ok, false);
  t.equal(verdict?.bad.length, 3, 'it names each of them');
  t.equal(await vmm.status(), 'running');
});

void t.test('a guest with a balloon is one for pre-copy alone, at either end', qemu, async (t) => {
  const more = ['-device', 'virtio-balloon-pci'];
  const { vmm } = await bootGuest(t, { more });
  t.match(await vmm.checkMovable(), { preCopyOnly: /balloon/ });
  const plain = await bootGuest(t, {}, await makePlace(t, 'plain'));
  t.strictSame(await plain.vmm.checkMovable(), {});
  const waiting = endAfter(t, await qemuDriver.prepare(await makePlace(t, 'there'), vmm.record.description));
  const error = { code: 'PT_MODE_UNSUPPORTED', message: /balloon/, hint: /pre-copy/ };
  await t.rejects(waiting.acquire(), error, 'whatever the source says');
  t.strictSame(native().findUserfaults(waiting.record.pid), [], 'nothing was put into its process');
});

void t.test('what cannot be moved is refused, and nothing is left', qemu, async (t) => {
  const place = await makePlace(t);
  const options = await guestOptions();
  const refuses = async (
    change: (argv: string[]) => string[],
    error: { code: string; message?: RegExp },
    name: string,
  ) => {
    await t.rejects(qemuDriver.run(place, { ...options, argv: change([...options.argv]) }), error, name);
    t.strictSame(await readdir(place.memoryFolder), [], `${name}: no memory left`);
    t.notOk(existsSync(join(place.folder, 'qmp.sock')), `${name}: no socket left`);
  };
  const unsafe = (message: RegExp) => ({ code: 'PT_GUEST_UNSAFE', message });
  const balloon = (features: string) => (argv: string[]) => [
    ...[...argv, '-object', 'iothread,id=io'],
    ...['-device', `virtio-balloon-pci,id=b,iothread=io,${features}`],
  ];
  const which = (feature: string) =>
    unsafe(new RegExp(`balloon /machine/peripheral/b/virtio-backend has ${feature}=on`));
  await refuses(balloon('free-page-reporting=on'), which('free-page-reporting'), 'free page reporting');
  await refuses(balloon('free-page-hint=on'), which('free-page-hint'), 'free page hints');
  await refuses((argv) => [...argv, '-overcommit', 'mem-lock=on'], unsafe(/mem-lock/), 'locked memory');
  await refuses((argv) => [...argv, '-mem-prealloc'], { code: 'PT_BAD_ARGUMENT' }, 'preallocated memory');
  await refuses(
    (argv) => [...argv, '-device', 'nonsense'],
    { code: 'PT_VMM_FAILED', message: /nonsense/ },
    'unknown device',
  );
  await refuses((argv) => ['/bin/sh', ...argv.slice(1)], { code: 'PT_BAD_ARGUMENT' }, 'not QEMU');
  await refuses(
    (argv) => ['/nowhere/qemu-system-x86_64', ...argv.slice(1)],
    { code: 'PT_VMM_FAILED' },
    'no such program',
  );
  const shared = '-object memory-backend-ram,id=other,size=1M'.split(' ');
  await refuses((argv) => [...argv, ...shared], { code: 'PT_BAD_ARGUMENT' }, 'a memory object of another kind');
  await t.rejects(qemuDriver.run(place, { argv: 'qemu' }), { code: 'PT_BAD_ARGUMENT' });
  await t.rejects(qemuDriver.run({ ...place, folder: `/tmp/${'long'.repeat(30)}` }, options), {
    code: 'PT_BAD_ARGUMENT',
  });
  await writeFile(join(place.memoryFolder, `${memoryPrefix(place)}.pagetide-ram`), 'of another guest');
  await t.rejects(qemuDriver.run(place, options), { code: 'PT_MEMORY_FILE' });
  t.equal(
    (await stat(join(place.memoryFolder, `${memoryPrefix(place)}.pagetide-ram`))).size,
    16,
    'and it is untouched',
  );
});

void t.test(
  'attached guests: private and preallocated memory are refused, an incoming one is taken',
  qemu,
  async (t) => {
    const place = await makePlace(t);
    const ram = join(place.memoryFolder, 'ram');
    const socket = join(place.folder, 'q.sock');
    /** A QEMU of the operator's own; a child of this process, which no userfaultfd is taken from. */
    const launch = async (args: string[]): Promise<() => Promise<void>> => {
      const child = spawn('qemu-system-x86_64', [
        '-accel',
        'tcg',
        '-nodefaults',
        '-display',
        'none',
        '-qmp',
        `unix:${socket},server=on,wait=off`,
        ...args,
      ]);
      const exited = new Promise<void>((resolve) => child.once('exit', () => resolve()));
      const end = async () => {
        child.kill('SIGKILL');
        await exited;
      };
      t.teardown(end);
      // its monitor answers
      for (;;) {
        const qmp = await QmpClient.connect(socket).catch(() => undefined);
        if (qmp) {
          qmp.close();
          return end;
        }
        if (child.exitCode !== null) throw new Error('QEMU did not start');
        await new Promise((resolve) => setTimeout(resolve, 10));
      }
    };
    const file = `-object memory-backend-file,id=ram,size=64M,share=on,mem-path=${ram} -m 64 -machine q35,memory-backend=ram`;
    const incoming = '-incoming defer -S';
    const cases: [string, string, RegExp][] = [
      ['private RAM', '-machine q35 -m 64', /pc\.ram is memory-backend-ram/],
      ['private file', file.replace('share=on', 'share=off'), /private/],
      ['folder', file.replace(`mem-path=${ram}`, `mem-path=${place.memoryFolder}`), /no file of a name/],
      ['not tmpfs', file.replace(`mem-path=${ram}`, `mem-path=${join(place.folder, 'ram')}`), /not on tmpfs/],
      ['prealloc', `${file.replace('share=on', 'share=on,prealloc=on')} ${incoming}`, /prealloc=on/],
      ['mem-lock', `${file} -overcommit mem-lock=on ${incoming}`, /locks memory/],
      [
        'ivshmem',
        `${file} -object memory-backend-file,id=x,size=1M,share=on,mem-path=${ram}2 -device ivshmem-plain,memdev=x`,
        /ivshmem/,
      ],
      ['microvm', file.replace('q35', 'microvm'), /microvm/],
      ['discard', file.replace('share=on', 'share=on,discard-data=on'), /discard-data/],
    ];
    for (const [name, args, message] of cases) {
      const end = await launch(args.split(' '));
      await t.rejects(qemuDriver.attach(place, { qmp: socket }), { code: 'PT_GUEST_UNSAFE', message }, name);
      await end();
    }
    await t.rejects(qemuDriver.attach(place, { qmp: socket }), { code: 'PT_VMM_GONE' }, 'nobody listens any more');

    await copyFile('/dev/null', ram);
    const end = await launch(`${file} ${incoming}`.split(' '));
    const vmm = await qemuDriver.attach(place, { qmp: socket });
    t.equal(await vmm.status(), 'incoming');
    t.match(vmm.record, { launched: false, files: [{ id: 'ram', path: ram, size: 64 << 20, offset: 0 }] });
    await t.rejects(vmm.destroy(), { code: 'PT_GUEST_STATE' }, 'what was attached is not ours to end');
    t.ok(isAlive(vmm.record));
    t.throws(() => qemuDriver.validate(vmm.record.description), { code: 'PT_BAD_ARGUMENT' });
    const busy = await QmpClient.connect(socket, { timeoutMs: 200 }).catch((error: unknown) => error);
    t.match(busy, { code: 'PT_VMM_TIMEOUT' }, 'a monitor serves one client');
    await end();
    await vmm.exited;
    t.equal(await vmm.status(), 'gone');
    await t.rejects(vmm.pause(), { code: 'PT_VMM_GONE' });
    vmm.close();

    await end();
    const data = await open(ram, 'r+');
    await data.write('something', 4096);
    await data.close();
    await launch(`${file} ${incoming}`.split(' '));
    await t.rejects(qemuDriver.attach(place, { qmp: socket }), { code: 'PT_MEMORY_PRESENT' });
  },
);

void t.test('a destination that cannot take the state says why', qemu, async (t) => {
  const { vmm } = await bootGuest(t);
  const state = collector();
  await vmm.depart(state.sink).saved;
  const arrive = async () => endAfter(t, await qemuDriver.prepare(await makePlace(t, 'there'), vmm.record.description));

  const damaged = Buffer.from(state.bytes());
  damaged.fill(0xff, damaged.length >> 1, (damaged.length >> 1) + 512);
  const first = await arrive();
  await t.rejects(first.loadState(Readable.from([damaged])), { code: 'PT_VMM_REFUSED_STATE' });
  await first.destroy();

  const second = await arrive();
  const short = state.bytes().subarray(0, state.bytes().length - 2000);
  await t.rejects(second.loadState(Readable.from([short])), { code: 'PT_VMM_REFUSED_STATE' });
  await second.destroy();

  const third = await arrive();
  const failing = new PassThrough();
  failing.write(state.bytes().subarray(0, 1000));
  setImmediate(() => failing.destroy(new Error('the source went away')));
  await t.rejects(third.loadState(failing), /source went away/);
  await third.destroy();

  const other = structuredClone(vmm.record.description);
  (other.config['argv'] as string[]).push('-device', 'virtio-rng-pci');
  const place = await makePlace(t, 'other');
  await t.rejects(qemuDriver.prepare(place, other), { code: 'PT_VMM_REFUSED_STATE', message: /devices differ/ });
  t.strictSame(await readdir(place.memoryFolder), []);

  await vmm.resume();
  await vmm.selfCheck!.nextBeat(10_000);
  t.equal((await vmm.verify())?.ok, true, 'the source goes on');
});
