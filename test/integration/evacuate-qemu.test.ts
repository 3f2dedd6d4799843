/** A host with QEMU guests, two alike and nearly idle, and an embedded one, is evacuated by one command. */
import t from 'tap';
import type { EvacuationInfo } from '../../src/agent/service.ts';
import { runCli } from '../cli/harness.ts';
import { skipTracking } from '../pages/guest-support.ts';
import { share } from '../support/domains.ts';
import { guestFaults, reportFaults, startGuest, stillLeft, until } from '../support/migrate.ts';
import { needsQemu, type GuestShape } from '../support/qemu-guest.ts';
import { bootAt, operatorOf } from '../support/qemu-pair.ts';
import { clusterOf } from '../support/sound.ts';

const qemu = needsQemu();
const skip = qemu.skip === false ? skipTracking : qemu.skip;

/** Of one template, with the kernel in the same place. */
function like(seed: number): GuestShape {
  const settings = `pagetide.rate=20 pagetide.limit=48 pagetide.beat=200 nokaslr pagetide.seed=${seed}`;
  return { memory: '128', settings };
}

void t.test('two QEMU guests and an embedded one leave their host together', { ...qemu, skip }, async (t) => {
  const made = clusterOf(t);
  const watch = { cpu: 1, intervalMs: 200 };
  const [a, b] = await Promise.all([made.agent('a', { watch }), made.agent('b', { watch })]);
  await share('shop', a, b);
  await Promise.all([bootAt(a, 'one', like(1), 'shop'), bootAt(a, 'two', like(2), 'shop')]);
  await startGuest(a, 'small', { memory: '16M', writeRate: 50, readRate: 50, threads: 1 });
  for (const guest of ['one', 'two']) {
    const tagged = (): boolean => a.log().some((line) => line.includes('are tagged') && line.includes(`"${guest}"`));
    await until(`${guest} is tagged`, tagged);
  }
  const args = ['--to', b.url, '--json', '--agent', `unix:${a.control}`];

  // its operator has stopped one of them: it can't go, and the plan says so
  const monitor = await operatorOf(t, a, 'two');
  await monitor.execute('stop');
  const dry = await runCli(t, ['evacuate', ...args, '--dry-run']);
  const planned = JSON.parse(dry.stdout) as EvacuationInfo;
  const stays = planned.guests.filter(({ state }) => state === 'stays');
  t.match(stays, [{ guest: 'two', error: { code: 'PT_GUEST_STATE', message: /paused/ } }]);
  t.equal(stays.length, 1);
  await monitor.execute('cont');
  monitor.close();

  const run = await runCli(t, ['evacuate', ...args, '--parallel', '3']);
  t.equal(run.code, 0, run.stderr);
  const info = JSON.parse(run.stdout) as EvacuationInfo;
  t.match(info, { state: 'ended', totals: { moved: 3, stay: 0 } }, run.stderr);
  for (const { guest, report, to } of info.guests) {
    t.equal(to, b.url);
    t.same(reportFaults(report), [], guest);
    t.equal(report?.verified, true, `${guest} found every page right`);
    t.equal(report?.driver, guest === 'small' ? 'embedded' : 'qemu');
    t.same(await guestFaults(b, guest), []);
    t.comment(`${guest}: ${JSON.stringify({ frames: report?.frames, wire: report?.bytes.wire, ms: report?.ms })}`);
  }
  // one of the two brought their pages, the other followed it
  const [first, second] = info.guests.filter(({ guest }) => guest !== 'small').map(({ report }) => report!);
  t.ok(second!.frames.resident > second!.frames.source, JSON.stringify(second!.frames));
  t.ok(second!.bytes.wire < first!.bytes.wire / 2, `${second!.bytes.wire} bytes after ${first!.bytes.wire}`);
  t.same(await a.client.listGuests(), []);
  t.same((await b.client.listGuests()).map(({ name }) => name).sort(), ['one', 'small', 'two']);
  for (const { name } of await b.client.listGuests()) await b.client.removeGuest(name);
  t.same(await stillLeft(made), []);
});
