/** What tracking a QEMU guest's writes is worth, by its disks. */
import t from 'tap';
import { trackingOf, type DiskNode } from '../../src/guests/tracking.ts';

const node = (more: Partial<DiskNode> = {}): DiskNode => ({ name: '#block1', driver: 'qcow2', direct: false, ...more });
const QEMU = ['qemu-system-x86_64', '-drive', 'file=a.qcow2,if=virtio'];

void t.test('without disks, or with disks that use the page cache, it is exact', (t) => {
  t.equal(trackingOf([], QEMU), 'exact');
  t.equal(trackingOf([node(), node({ name: '#block2', driver: 'file' })], QEMU), 'exact');
  t.equal(trackingOf([node({ name: 'disk0' })], [...QEMU, '-blockdev', '{"node-name":"disk0"}']), 'exact');
  t.end();
});

void t.test('anything else gives hints', (t) => {
  const hints = (nodes: DiskNode[], words = QEMU): void => void t.equal(trackingOf(nodes, words), 'hints');
  hints([node(), node({ direct: true })]);
  hints([{ name: '#block1', driver: 'file' }]);
  hints([node()], [...QEMU.slice(0, 2), 'file=a,aio=io_uring']);
  hints([node()], [...QEMU, '-blockdev', '{"driver":"file","aio":"io_uring"}']);
  hints([node({ driver: 'nvme' })]);
  hints([node({ driver: 'host_device' })]);
  hints([node({ driver: 'io_uring' })]);
  hints([node({ name: 'disk0' })]);
  t.end();
});

void t.test('a word about io_uring without a disk says nothing', (t) => {
  t.equal(trackingOf([], [...QEMU, '-name', 'io_uring']), 'exact');
  t.end();
});
