/** What the QEMU driver decides without a QEMU: allow-list, command lines, memory maps, self-check lines. */
import { mkdtemp, rm } from 'node:fs/promises';
import { createServer, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t from 'tap';
import type { GuestDescription } from '../../src/guests/driver.ts';
import { assertSafe, findObjections, memoryFiles } from '../../src/guests/qemu/allow-list.ts';
import {
  buildCommand,
  parseOptions,
  parseQemuSize,
  placeMemory,
  planCommand,
} from '../../src/guests/qemu/arguments.ts';
import { memoryPrefix } from '../../src/guests/marks.ts';
import { wasMadeWithBalloon, whyPreCopyOnly } from '../../src/guests/qemu/balloon.ts';
import { parseNetwork, type Inventory, type RamObject } from '../../src/guests/qemu/inventory.ts';
import { deviceNumbers, mountOptions, parseMaps, rangesOfFile } from '../../src/guests/qemu/memory-map.ts';
import { nextChain, SelfCheck } from '../../src/guests/qemu/self-check.ts';

const MIB = 2 ** 20;

function ram(change: Partial<RamObject> = {}, file: Partial<NonNullable<RamObject['file']>> = {}): RamObject {
  const size = change.size ?? 64 * MIB;
  const range = {
    start: 0x7f0000000000,
    end: 0x7f0000000000 + size,
    permissions: 'rw-s',
    offset: 0,
    major: 0,
    minor: 27,
    inode: 2n,
  };
  return {
    id: 'ram',
    type: 'memory-backend-file',
    size,
    share: true,
    prealloc: false,
    discardData: false,
    pmem: false,
    fileOffset: 0,
    path: '/dev/shm/ram',
    file: { named: true, size, filesystem: 'tmpfs', huge: 'never', mapped: [range], ...file },
    ...change,
  };
}

function inventory(change: Partial<Inventory> = {}): Inventory {
  return {
    role: 'source',
    version: '7.2.22',
    arch: 'x86_64',
    machine: 'pc-q35-7.2',
    status: 'running',
    cpus: 1,
    ram: [ram()],
    baseMemory: 64 * MIB,
    pluggedMemory: 0,
    devices: ['qemu64-x86_64-cpu', 'q35-pcihost', 'ICH9-LPC', 'virtio-net-pci', 'virtio-net-device', 'VGA'].map(
      (type) => ({ path: `/machine/${type}`, type }),
    ),
    balloons: [],
    objects: [{ id: 'ram', type: 'memory-backend-file' }],
    network: [{ name: 'net0', type: 'tap' }],
    block: [{ name: '#block1', driver: 'qcow2' }],
    blockers: [],
    migration: '',
    capabilities: ['x-ignore-shared'],
    commandLine: ['qemu-system-x86_64', '-append', '-snapshot'],
    deviceFiles: ['/dev/kvm', '/dev/net/tun', '/dev/null'],
    lockedBytes: 0,
    ...change,
  };
}

void t.test('a plain guest is safe, in either role', (t) => {
  for (const role of ['source', 'destination'] as const) {
    t.strictSame(findObjections(inventory({ role })), []);
    assertSafe(inventory({ role }));
  }
  t.end();
});

/** An inventory with a balloon, as QEMU lists it: a device in a slot, and the one inside. */
function balloon(features: Partial<Inventory['balloons'][0]> = {}, type = 'virtio-balloon-pci'): Partial<Inventory> {
  const path = '/machine/peripheral/b';
  const inside = { path: `${path}/virtio-backend`, type: 'virtio-balloon-device' };
  return {
    devices: [{ path, type }, inside],
    balloons: [{ ...inside, reporting: false, hinting: false, ...features }],
  };
}

void t.test('a guest with a balloon goes by pre-copy alone', (t) => {
  const made = (...devices: string[]): GuestDescription => ({
    driver: 'qemu',
    memory: { size: 64 * MIB, pageSize: 4096, files: [] },
    config: { shape: { devices } },
  });
  t.equal(whyPreCopyOnly(inventory(), made('net:virtio-net-pci')), undefined);
  t.equal(whyPreCopyOnly(inventory(), made()), undefined);
  for (const type of ['virtio-balloon-pci', 'virtio-balloon-pci-transitional', 'virtio-balloon-pci-non-transitional']) {
    const guest = inventory(balloon({}, type));
    t.strictSame(findObjections(guest), [], type);
    t.match(whyPreCopyOnly(guest, made()), /balloon/, `${type}: plugged in since it was started`);
    t.match(
      whyPreCopyOnly(inventory(), made('rng:virtio-rng-pci', `b:${type}`)),
      /balloon/,
      `${type}: unplugged since`,
    );
    t.ok(wasMadeWithBalloon(made(`:${type}`)), `${type} without a name`);
  }
  t.notOk(wasMadeWithBalloon(made('virtio-balloon-pci:virtio-rng-pci')), 'a name is no type');
  t.notOk(wasMadeWithBalloon({ ...made(), driver: 'embedded', config: {} }));
  t.end();
});

void t.test('everything else is refused, by name', (t) => {
  const device = (type: string): Partial<Inventory> => ({ devices: [{ path: '/machine/peripheral/x', type }] });
  const cases: [string, Partial<Inventory>, RegExp][] = [
    ['other architecture', { arch: 'aarch64' }, /aarch64/],
    ['other machine', { machine: 'microvm' }, /microvm/],
    ['unversioned machine', { machine: 'q35' }, /q35/],
    ['no x-ignore-shared', { capabilities: [] }, /x-ignore-shared/],
    ['migrating', { migration: 'active' }, /migrating/],
    ['blocked', { blockers: ['because'] }, /because/],
    ['anonymous RAM', { ram: [ram({ type: 'memory-backend-ram' })] }, /memory-backend-ram/],
    ['memfd', { ram: [ram({ type: 'memory-backend-memfd' })] }, /memory-backend-memfd/],
    ['private', { ram: [ram({ share: false })] }, /share=off/],
    ['pmem', { ram: [ram({ pmem: true })] }, /pmem/],
    ['discard', { ram: [ram({ discardData: true })] }, /discard-data/],
    ['offset', { ram: [ram({ fileOffset: 4096 })] }, /offset 4096/],
    ['unlinked', { ram: [ram({}, { named: false })] }, /no file of a name/],
    ['hugetlbfs', { ram: [ram({}, { filesystem: 'hugetlbfs' })] }, /hugetlbfs/],
    ['disk file', { ram: [ram({}, { filesystem: 'other' })] }, /not on tmpfs/],
    ['short file', { ram: [ram({}, { size: MIB })] }, /its file 1048576/],
    ['unmapped', { ram: [ram({}, { mapped: [] })] }, /not mapped once/],
    ['RAM besides', { baseMemory: 128 * MIB }, /all of it/],
    ['object that is no RAM', { ram: [ram(), ram({ id: 'more' })] }, /must be guest RAM/],
    ['hot-plugged', { pluggedMemory: MIB }, /hot-plugged/],
    ['VFIO', device('vfio-pci'), /vfio-pci \(\/machine\/peripheral\/x\): the host device/],
    ['vhost-user device', device('vhost-user-blk-pci'), /another process/],
    ['virtiofs', device('virtio-fs-pci'), /another process/],
    ['vhost-vsock', device('vhost-vsock-pci'), /another process/],
    ['ivshmem', device('ivshmem-plain'), /shared memory/],
    [
      'free page reporting',
      balloon({ reporting: true }),
      /\/machine\/peripheral\/b\/virtio-backend has free-page-reporting=on/,
    ],
    ['free page hints', balloon({ hinting: true }), /free-page-hint=on/],
    ['a balloon of another kind', device('virtio-balloon-ccw'), /not on the list/],
    ['virtio-mem', device('virtio-mem-pci'), /adds or removes/],
    ['usb-host', device('usb-host'), /hardware/],
    ['scsi-generic', device('scsi-generic'), /hardware/],
    ['TPM', device('tpm-tis'), /another process/],
    ['a device nobody knows', device('frobnicator'), /not on the list/],
    ['similar names are not enough', device('virtio-net-pci-evil'), /not on the list/],
    ['object', { objects: [{ id: 'f', type: 'filter-mirror' }] }, /filter-mirror/],
    ['vhost-user net', { network: [{ name: 'n', type: 'vhost-user' }] }, /vhost-user/],
    ['vDPA net', { network: [{ name: 'n', type: 'vhost-vdpa' }] }, /vhost-vdpa/],
    ['vvfat', { block: [{ name: 'd', driver: 'vvfat' }] }, /vvfat/],
    ['vhost-net', { deviceFiles: ['/dev/vhost-net'] }, /vhost-net/],
    ['vfio file', { deviceFiles: ['/dev/vfio/12'] }, /vfio/],
    ['-snapshot', { commandLine: ['qemu', '-snapshot'] }, /-snapshot/],
    ['record and replay', { commandLine: ['qemu', '-icount', 'shift=1,rr=record,rrfile=x'] }, /replay/],
    ['prealloc', { role: 'destination', ram: [ram({ prealloc: true })] }, /preallocated/],
    ['huge pages', { role: 'destination', ram: [ram({}, { huge: 'always' })] }, /huge=always/],
    ['locked', { role: 'destination', lockedBytes: 100 * MIB }, /locked/],
    ['mem-lock', { role: 'destination', commandLine: ['qemu', '-overcommit', 'mem-lock=on'] }, /mem-lock/],
    ['mem-prealloc', { role: 'destination', commandLine: ['qemu', '--mem-prealloc'] }, /mem-prealloc/],
  ];
  for (const [name, change, message] of cases) {
    t.throws(() => assertSafe(inventory(change)), { code: 'PT_GUEST_UNSAFE', message }, name);
  }
  t.strictSame(
    findObjections(inventory({ ram: [ram({ prealloc: true }, { huge: 'always' })], lockedBytes: MIB * 64 })),
    [],
    'harmless at a source',
  );
  t.end();
});

void t.test('memory objects make one guest memory space, in the order of their ids', (t) => {
  const two = inventory({
    ram: [ram({ id: 'm1', size: 32 * MIB }), ram({ id: 'm0', path: '/dev/shm/m0' })],
    baseMemory: 96 * MIB,
  });
  t.strictSame(memoryFiles(two), [
    { id: 'm0', path: '/dev/shm/m0', size: 64 * MIB, offset: 0 },
    { id: 'm1', path: '/dev/shm/ram', size: 32 * MIB, offset: 64 * MIB },
  ]);
  t.end();
});

void t.test('network back ends from `info network`', (t) => {
  const text =
    'hub 0\r\n \\ hub0port1: #net192: index=0,type=user,net=10.0.2.0\r\n \\ hub0port0: e1000e.0: index=0,type=nic,model=e1000e\r\n';
  const paired = 'virtio-net-pci.0: index=0,type=nic,model=virtio-net-pci\r\n \\ n0: index=0,type=vhost-user\r\n';
  t.strictSame(
    parseNetwork(text)
      .map(({ type }) => type)
      .sort(),
    ['nic', 'user'],
  );
  t.strictSame(
    parseNetwork(paired).map(({ type }) => type),
    ['nic', 'vhost-user'],
  );
  t.end();
});

const place = { name: 'web', folder: '/run/pt/web', memoryFolder: '/dev/shm/pt' };
const memory = `/dev/shm/pt/${memoryPrefix(place)}`;

void t.test('command lines: what the driver adds', (t) => {
  const argv = [
    'qemu-system-x86_64',
    '-m',
    '256',
    '-serial',
    'unix:{folder}/s,server=on',
    '-append',
    '-daemonize',
    'disk.img',
  ];
  const plan = planCommand(argv);
  t.strictSame(placeMemory(plan, place), [
    { id: 'pagetide-ram', size: 256 * MIB, offset: 0, path: `${memory}.pagetide-ram` },
  ]);
  const { command, args } = buildCommand(plan, place, { machine: 'pc-q35-7.2', incoming: true });
  t.equal(command, 'qemu-system-x86_64');
  t.strictSame(args, [
    ...['-m', '256', '-serial', 'unix:/run/pt/web/s,server=on', '-append', '-daemonize', 'disk.img'],
    ...['-object', `memory-backend-file,id=pagetide-ram,size=${256 * MIB},mem-path=${memory}.pagetide-ram,share=on`],
    ...['-machine', 'type=pc-q35-7.2,memory-backend=pagetide-ram', '-display', 'none'],
    ...['-qmp', 'unix:/run/pt/web/qmp.sock,server=on,wait=off', '-incoming', 'defer', '-S'],
  ]);
  t.notOk(buildCommand(plan, place, { incoming: false }).args.includes('-incoming'));
  const own = planCommand([
    'qemu-system-x86_64',
    '-nographic',
    '-object',
    'memory-backend-file,id=m0,size=64M,mem-path={memory}/m0,share=on',
    '-numa',
    'node,memdev=m0',
  ]);
  t.strictSame(own.memory, [{ id: 'm0', size: 64 * MIB, file: 'm0' }]);
  const built = buildCommand(own, place, { incoming: false }).args;
  t.ok(built.includes(`memory-backend-file,id=m0,size=64M,mem-path=${memory}.m0,share=on`));
  t.notOk(built.includes('-display') || built.includes('-machine'), 'nothing else is added');
  t.equal(planCommand(['qemu-system-x86_64']).memory[0]!.size, 128 * MIB, "QEMU's default");
  t.equal(planCommand(['qemu-system-x86_64', '-m', 'size=1.5G,slots=2,maxmem=4G']).memory[0]!.size, 1536 * MIB);
  t.throws(() => buildCommand(plan, { ...place, folder: '/run/a,b' }, { incoming: false }), {
    code: 'PT_BAD_ARGUMENT',
  });
  t.throws(() => buildCommand(plan, { ...place, folder: `/${'x'.repeat(110)}` }, { incoming: false }), {
    code: 'PT_BAD_ARGUMENT',
  });
  t.end();
});

void t.test('command lines: what is refused', (t) => {
  const own = 'memory-backend-file,id=m0,size=64M,mem-path={memory}/m0,share=on';
  const cases: string[] = [
    ...[
      '-daemonize',
      '-S',
      '-incoming defer',
      '-mem-path /x',
      '-mem-prealloc',
      '-snapshot',
      '-readconfig x',
      '-preconfig',
    ],
    ...['-m', '-m 0', '-m 5000000T', '-m 1x', '-m 128.0001', '-machine q35,memory-backend=m'],
    ...[
      '-object memory-backend-ram,id=m,size=1M',
      '-object memory-backend-memfd,id=m,size=1M,share=on',
      '-object {"qom-type":"memory-backend-ram"}',
    ],
    ...[
      own.replace('{memory}/m0', '/dev/shm/x'),
      own.replace('m0,share', '../x,share'),
      own.replace('share=on', 'share=off'),
    ].map((o) => `-object ${o}`),
    ...[
      own.replace('{memory}/m0', '{memory}/..'),
      own.replace('id=m0,', ''),
      own.replace('size=64M,', ''),
      `${own},offset=4096`,
    ].map((o) => `-object ${o}`),
    `-object ${own} -object ${own}`,
  ];
  for (const words of cases) {
    t.throws(() => planCommand(['qemu-system-x86_64', ...words.split(' ')]), { code: 'PT_BAD_ARGUMENT' }, words);
  }
  for (const words of [
    '-overcommit mem-lock=on',
    '-icount rr=record',
    `-object ${own},prealloc=on`,
    `-object ${own},discard-data=on`,
  ]) {
    t.throws(() => planCommand(['qemu-system-x86_64', ...words.split(' ')]), { code: 'PT_GUEST_UNSAFE' }, words);
  }
  for (const program of ['sh', '/bin/qemu-system-aarch64', 'qemu-system-x86_64; rm']) {
    t.throws(() => planCommand([program]), { code: 'PT_BAD_ARGUMENT' }, program);
  }
  t.throws(() => planCommand([]), { code: 'PT_BAD_ARGUMENT' });
  t.strictSame(parseOptions(['--enable-kvm', '-m', '1', 'x', '-last']), [
    { name: 'enable-kvm' },
    { name: 'm', value: '1' },
    { name: '', value: 'x' },
    { name: 'last' },
  ]);
  t.equal(parseQemuSize('2g', 1, ''), 2 ** 31);
  t.end();
});

void t.test('memory maps', (t) => {
  const text = `55d0c0000000-55d0c0001000 r--p 00000000 fe:00 123                        /usr/bin/qemu
7f0000000000-7f0001000000 rw-s 00000000 00:1b 42                         /dev/shm/a b
7f0001000000-7f0004000000 rw-s 01000000 00:1b 42                         /dev/shm/a b
7f0005000000-7f0006000000 rw-s 05000000 00:1b 42                         /dev/shm/a b
7f0010000000-7f0010001000 rw-p 00000000 00:00 0
7ffc00000000-7ffc00021000 rw-p 00000000 00:00 0                          [stack]
`;
  const maps = parseMaps(text);
  t.equal(maps.length, 3, 'neighbours are joined, anonymous memory left out');
  const found = rangesOfFile(maps, 0x1bn, 42n);
  t.match(found, [{ start: 0x7f0000000000, end: 0x7f0004000000, offset: 0 }, { start: 0x7f0005000000 }]);
  t.strictSame(rangesOfFile(maps, 0x1cn, 42n), []);
  t.strictSame(deviceNumbers(0xfe00n), { major: 0xfe, minor: 0 });
  t.strictSame(deviceNumbers((5n << 8n) | 0x34n | (1n << 20n)), { major: 5, minor: 0x134 });
  const mountinfo =
    '22 1 254:0 / / rw - ext4 /dev/vda rw\n30 22 0:27 / /dev/shm rw,nosuid shared:2 - tmpfs tmpfs rw,size=1024k,huge=within_size\n';
  t.match(mountOptions(mountinfo, 27n), { huge: 'within_size' });
  t.equal(mountOptions(mountinfo, 28n)['huge'], undefined);
  t.end();
});

void t.test('the self-check channel: beats, gaps, chains that break, half lines, reconnecting', async (t) => {
  const folder = await mkdtemp(join(tmpdir(), 'ptsc-'));
  const path = join(folder, 's');
  let peer: Socket | undefined;
  let arrived: () => void = () => undefined;
  const server = createServer((socket) => {
    peer = socket;
    socket.on('error', () => undefined);
    socket.on('data', (text) => {
      for (const [, word, id, rest] of text.toString().matchAll(/^(\w+) (\d+)(.*)$/gm)) {
        if (word === 'verify')
          socket.write(
            `verified ${Number(id) + 1} ok 1\r\nverified ${id!} ${id === '1' ? 'ok 1000' : 'bad 2 17 40'}\n`,
          );
        if (word === 'rate') socket.write(`rate ${id!}${rest!}\n`);
        if (word === 'stats') socket.write(`stats ${id!} 1000 55 2 200\n`);
      }
    });
    arrived();
  });
  const connection = () => new Promise<void>((resolve) => (arrived = resolve));
  const first = connection();
  const check = new SelfCheck(path); // before anybody listens: it tries again
  t.teardown(async () => {
    check.close();
    peer?.destroy();
    server.close();
    await rm(folder, { recursive: true, force: true });
  });
  server.listen(path);
  await first;

  let chain = 0n;
  let number = 0;
  const beat = async (change: { number?: number; chain?: bigint } = {}) => {
    chain = nextChain(chain, ++number, number * 10);
    const heard = check.nextBeat(5000);
    peer!.write(`beat ${change.number ?? number} ${(change.chain ?? chain).toString(16)} ${number * 10}\r\n`);
    await heard;
  };
  peer!.write('7 beat\nbeat x 1 1\nbeat 99999999999999999999 1 1\n');
  await beat();
  await beat();
  t.strictSame(check.complaints, [], 'half lines are nobody’s fault');
  t.equal(check.operations, 20);
  t.ok(check.longestGapMs! >= 0);
  t.match(check.heartbeats, { firstNumber: 1, lastNumber: 2 });
  t.match(await check.verify(5000), { ok: true, checked: 1000, bad: [] });
  t.match(await check.verify(5000), { ok: false, bad: [17, 40] });
  await check.setRate(7, 5000);
  t.match(await check.stats(5000), { pages: 1000, operations: 55, workers: 2, rate: 200 });

  const second = connection();
  peer!.destroy();
  await second;
  number++; // one beat was lost
  chain = nextChain(chain, number, number * 10);
  await beat();
  t.strictSame(check.complaints, [], 'a gap in the numbers is not the guest’s fault');
  check.reset();
  t.equal(check.heartbeats, undefined);
  await beat({ chain: chain + 1n });
  t.match(check.complaints, [/chain/]);
  await beat({ number: 2 });
  t.match(check.complaints, [/chain/, /back in time/]);
  const wrong = check.nextBeat(5000);
  peer!.write('wrong 5 6\n');
  await beat();
  await wrong;
  t.match(check.complaints.at(-1), /wrong page/);
  check.close();
  await t.rejects(check.verify(20), { code: 'PT_VMM_TIMEOUT' });
  await t.rejects(check.nextBeat(20), { code: 'PT_VMM_TIMEOUT' });
});
