/** What becomes of a real guest whose memory is copied in rounds when something goes wrong: it is where it was, and as its operator left it. */
import t, { type Test } from 'tap';
import type { MigrateRequest } from '../../src/agent/service.ts';
import type { TestAgent } from '../support/cluster.ts';
import { begin, follow, guestFaults, migrate, reaches, stillLeft, until, type Followed } from '../support/migrate.ts';
import { BOOT_MS, needsQemu } from '../support/qemu-guest.ts';
import { operatorOf, qemuPair, type Pair } from '../support/qemu-pair.ts';

const qemu = needsQemu();
const shape = {
  memory: '96',
  settings: 'pagetide.rate=200 pagetide.set=5 pagetide.limit=16',
  more: ['-device', 'pcie-root-port,id=rp0,chassis=1,slot=1', '-action', 'reboot=reset'],
};

/** Begins a migration that is in the middle of its first round when this resolves to its id. */
async function inRound(from: TestAgent, to: TestAgent, more: Partial<MigrateRequest> = {}): Promise<string> {
  const id = await begin(from, to, 'g1', { mode: 'hybrid', bandwidth: 8 << 20, ...more });
  await reaches(from.client, id, 'copying');
  await until('pages have come', async () => (await from.client.showMigration(id)).progress.wireBytes > 1 << 18);
  return id;
}

/** It has failed with this code, and nothing of it is left. */
async function failed(t: Test, { made }: Pair, to: TestAgent, { last }: Followed, code: string): Promise<void> {
  t.match(last, { progress: { phase: 'failed' }, error: { code, hint: /./ } });
  t.strictSame(await to.client.listGuests(), [], 'the destination has no guest');
  t.strictSame(await stillLeft(made), []);
}

void t.test(
  'a guest whose operator, VMM or destination stands in the way',
  { ...qemu, timeout: 400_000 },
  async (t) => {
    const pair = await qemuPair(t, shape);
    const { a, b } = pair;

    await t.test('its operator stops it: it stays, and stays stopped', async (t) => {
      const operator = await operatorOf(t, a);
      for (const end of ['switch', 'cancel'] as const) {
        const id = await inRound(a, b);
        await operator.execute('stop');
        if (end === 'cancel') await a.client.cancel('g1');
        const followed = await follow(a.client, id);
        if (end === 'switch') await failed(t, pair, b, followed, 'PT_GUEST_STATE');
        else t.equal(followed.last.progress.phase, 'cancelled');
        t.equal((await a.client.showGuest('g1')).state, 'paused');
        await operator.execute('cont');
        t.strictSame(await guestFaults(a, 'g1'), []);
      }
      t.strictSame(await stillLeft(pair.made), []);
    });

    await t.test('its operator resets it: it moves, and boots', async (t) => {
      const operator = await operatorOf(t, a);
      const id = await inRound(a, b, { verify: false });
      await operator.execute('system_reset');
      const { last } = await follow(a.client, id);
      t.strictSame(last.error, undefined);
      t.equal(last.progress.phase, 'done');
      const beats = async (): Promise<boolean> => ((await b.client.showGuest('g1')).stats?.operations ?? 0) > 0;
      await until('it has booted', beats, BOOT_MS);
      t.strictSame(await guestFaults(b, 'g1'), []);
      t.strictSame(await stillLeft(pair.made), []);
    });

    await t.test('the destination refuses its device state: a device that it lacks was plugged in', async (t) => {
      const operator = await operatorOf(t, b);
      await operator.execute('device_add', { driver: 'virtio-rng-pci', bus: 'rp0', id: 'rng' });
      const followed = await migrate(b, a, 'g1', { mode: 'hybrid' });
      await failed(t, pair, a, followed, 'PT_VMM_REFUSED_STATE');
      t.comment(followed.last.error?.message);
      t.ok(followed.last.error!.message.length < 2000);
      t.strictSame(await guestFaults(b, 'g1'), []);
      await a.restart();
      t.strictSame(await stillLeft(pair.made), [], 'nothing comes back with its agent');
    });

    await t.test('its VMM is stopped: it is given up, and moves nowhere', async (t) => {
      const id = await inRound(b, a);
      const { pid } = await b.client.showGuest('g1');
      process.kill(pid, 'SIGSTOP');
      t.teardown(() => process.kill(pid, 'SIGCONT'));
      const { last } = await follow(b.client, id);
      t.match(last, { progress: { phase: 'failed' }, error: { code: 'PT_VMM_TIMEOUT', hint: /./ } });
      process.kill(pid, 'SIGCONT');
      t.strictSame(await guestFaults(b, 'g1'), []);
      t.strictSame(await stillLeft(pair.made), []);
    });

    await t.test('its VMM exits', async (t) => {
      const operator = await operatorOf(t, b);
      const id = await inRound(b, a);
      operator.execute('quit').catch(() => undefined);
      const followed = await follow(b.client, id);
      await until('the guest is free', async () => (await b.client.showGuest('g1')).migration === undefined);
      t.equal((await b.client.showGuest('g1')).state, 'gone');
      await b.client.removeGuest('g1');
      await failed(t, pair, a, followed, 'PT_VMM_GONE');
    });
  },
);
