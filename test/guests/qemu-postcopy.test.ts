/** Real guests moved by post-copy through userfaultfd, each page of them checked by the guest itself. */
import { openSync, closeSync } from 'node:fs';
import t from 'tap';
import type { Test } from 'tap';
import { native } from '../../src/memory/native.ts';
import { bootGuest, needsQemu, type GuestShape } from '../support/qemu-guest.ts';
import { moveByPostCopy } from '../support/qemu-postcopy.ts';

const qemu = needsQemu();

async function moves(t: Test, shape: GuestShape): Promise<void> {
  const { vmm } = await bootGuest(t, shape);
  const before = await vmm.selfCheck!.stats(10_000);
  const { vmm: there, downtimeMs, faults, installed } = await moveByPostCopy(t, vmm);
  t.comment(`${downtimeMs} ms down, ${faults} faults, ${installed} of ${before.pages} frames installed`);
  await there.selfCheck!.nextBeat(20_000);
  const verdict = (await there.verify())!;
  t.strictSame([verdict.ok, verdict.bad, verdict.detail], [true, [], undefined], 'every page is right');
  t.equal(verdict.checked, before.pages);
  t.ok(faults > 0, 'the guest ran while pages were missing');
  const [here, gone] = [(await there.stats())!.heartbeats!, (await vmm.stats())!.heartbeats!];
  t.ok(here.firstNumber > gone.lastNumber, 'heartbeats go on where they ended');
  t.ok((await there.selfCheck!.stats(10_000)).operations > before.operations, 'the load goes on');
  t.strictSame(native().findUserfaults(there.record.pid), [], 'no userfaultfd is left in QEMU');
  t.equal(await vmm.status(), 'paused', 'the source keeps every page');
  await vmm.destroy();
  await there.selfCheck!.nextBeat(20_000);
  t.equal((await there.verify())?.ok, true, 'also when the source is gone');
}

void t.test('one vCPU, under load', qemu, async (t) => {
  await moves(t, { settings: 'pagetide.rate=2000' });
});

void t.test('i440FX, disk, network and USB', qemu, async (t) => {
  const more =
    '-device virtio-net-pci,netdev=n -netdev user,id=n -drive if=virtio,driver=null-co,size=1M,read-zeroes=on -usb -device usb-tablet -vga std';
  await moves(t, { machine: 'pc', more: more.split(' ') });
});

void t.test('two vCPUs on two NUMA nodes, each with a memory object of its own', qemu, async (t) => {
  const node = (n: number, size: string) => [
    '-object',
    `memory-backend-file,id=m${n},size=${size},mem-path={memory}/m${n},share=on`,
    '-numa',
    `node,nodeid=${n},memdev=m${n},cpus=${n}`,
  ];
  await moves(t, {
    cpus: 2,
    memory: '160',
    settings: 'pagetide.rate=2000',
    more: [...node(0, '96M'), ...node(1, '64M')],
  });
});

void t.test('memory below and above 4 GiB is one region', qemu, async (t) => {
  // Linux prefers memory above 4 GiB for its programs: that is where the checked pages lie.
  const { vmm } = await bootGuest(t, { memory: '4608', settings: 'pagetide.limit=64 pagetide.zero=0' });
  const [file] = vmm.record.files;
  const fd = openSync(file!.path, 'r');
  const high = native()
    .dataExtents(fd, 3 * 2 ** 30, file!.size - 3 * 2 ** 30)
    .reduce((sum, { length }) => sum + length, 0);
  closeSync(fd);
  t.ok(high > 64 << 20, `${high} bytes lie where the guest sees them above 4 GiB`);
  const { vmm: there, downtimeMs, faults } = await moveByPostCopy(t, vmm);
  t.comment(`${downtimeMs} ms down, ${faults} faults`);
  await there.selfCheck!.nextBeat(20_000);
  t.equal((await there.verify())?.ok, true);
});
