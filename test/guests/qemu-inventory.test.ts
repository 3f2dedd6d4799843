/** What is asked of a QEMU about its disks, with a monitor that answers as QEMU 7.2 does. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import t from 'tap';
import { collectDisks } from '../../src/guests/qemu/inventory.ts';
import { QmpError, type QmpClient } from '../../src/guests/qemu/qmp.ts';
import { trackingOf } from '../../src/guests/tracking.ts';

const NODES = [
  { 'node-name': '#block152', drv: 'qcow2', ro: false, cache: { direct: false, 'no-flush': false, writeback: true } },
  { 'node-name': 'disk0', drv: 'file', cache: { direct: true, 'no-flush': false, writeback: true } },
  { 'node-name': '#block099', drv: 'null-co' },
];

function monitor(answer: () => unknown): { qmp: QmpClient; asked: string[] } {
  const asked: string[] = [];
  const execute = (command: string): Promise<unknown> => {
    asked.push(command);
    return Promise.resolve().then(answer);
  };
  return { qmp: { execute } as unknown as QmpClient, asked };
}

void t.test('disks and command line, by one question', async (t) => {
  const { qmp, asked } = monitor(() => NODES);
  const disks = await collectDisks(qmp, process.pid);
  t.same(asked, ['query-named-block-nodes']);
  t.same(disks.block, [
    { name: '#block152', driver: 'qcow2', direct: false },
    { name: 'disk0', driver: 'file', direct: true },
    { name: '#block099', driver: 'null-co' },
  ]);
  t.notOk('direct' in disks.block[2]!, 'what QEMU does not say is not known');
  t.ok(disks.commandLine.length > 0);
  t.notOk(disks.commandLine.includes(''));
  t.ok(disks.commandLine.some((word) => word.includes('qemu-inventory.test')));
  t.equal(trackingOf(disks.block, disks.commandLine), 'hints');
});

void t.test('each answer is that of its own time', async (t) => {
  const answers = [[], NODES, NODES.slice(0, 1)];
  const { qmp } = monitor(() => answers.shift());
  const worth = [];
  for (let i = 0; i < 3; i++) {
    const { block, commandLine } = await collectDisks(qmp, process.pid);
    worth.push(trackingOf(block, commandLine));
  }
  t.same(worth, ['exact', 'hints', 'exact']);
});

void t.test('a process that is gone, and a monitor that refuses', async (t) => {
  const child = spawn('true');
  await once(child, 'exit');
  const { qmp } = monitor(() => NODES);
  await t.rejects(collectDisks(qmp, child.pid!), { code: 'PT_VMM_GONE' });
  const refusal = new QmpError('query-named-block-nodes', 'CommandNotFound', 'no');
  const refusing = monitor(() => {
    throw refusal;
  });
  await t.rejects(collectDisks(refusing.qmp, process.pid), refusal);
});
