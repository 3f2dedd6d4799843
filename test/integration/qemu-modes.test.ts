/** Real guests in every mode, from one agent to another and back: one of several processors and memory objects, and one with a disk. */
import t, { type Test } from 'tap';
import type { MigrationReport } from '../../src/migration/types.ts';
import { cannotBeSlow, diskWords, makeDisk, makeSlow, type CacheMode } from '../support/disk.ts';
import { guestFaults, migrate, reportFaults, stillLeft } from '../support/migrate.ts';
import { needsQemu } from '../support/qemu-guest.ts';
import { operatorOf, qemuPair } from '../support/qemu-pair.ts';

const limit = { timeout: 300_000 };
/** Says what a move was like, and checks its report. */
function checkReport(t: Test, report: MigrationReport | undefined): void {
  t.strictSame(reportFaults(report), []);
  t.equal(report?.verified, true, 'the guest has found every page right');
  const { mode, frames, ms, faults, rounds } = report!;
  t.comment(JSON.stringify({ mode, frames, ms, faults, rounds: rounds?.map((round) => round.changed) }));
}

const node = (id: string, size: string, cpu: number): string[] => [
  ...['-object', `memory-backend-file,id=${id},size=${size},mem-path={memory}/${id},share=on`],
  ...['-numa', `node,nodeid=${cpu},memdev=${id},cpus=${cpu}`],
];

const qemu = needsQemu();

void t.test('two processors, two memory objects: every mode, forth and back', { ...qemu, ...limit }, async (t) => {
  const more = [...node('m0', '64M', 0), ...node('m1', '48M', 1)];
  const settings = 'pagetide.rate=400 pagetide.set=10';
  const { made, a, b } = await qemuPair(t, { memory: '112', cpus: 2, settings, more });
  t.equal((await a.client.showGuest('g1')).files.length, 2);

  const hosts = [a, b];
  for (const mode of ['pre-copy', 'hybrid', 'post-copy', 'auto'] as const) {
    const [from, to] = [hosts[0]!, hosts[1]!];
    hosts.reverse();
    const allows = mode === 'pre-copy' ? { maxDowntimeMs: 3_000 } : {};
    const { last } = await migrate(from, to, 'g1', { mode, ...allows });
    t.strictSame(last.error, undefined, mode);
    t.match(last.report, { mode: mode === 'auto' ? 'hybrid' : mode, driver: 'qemu', frames: { total: 112 * 256 } });
    checkReport(t, last.report);
    if (mode === 'pre-copy') t.equal(last.report?.faults.count, 0, 'nothing is missing when it runs');
    if (mode === 'post-copy') t.equal(last.report?.rounds, undefined);
    else t.equal(last.report?.rounds?.[0]?.changed, 112 * 256, 'the first round is of all frames');
    t.strictSame(await guestFaults(to, 'g1'), []);
    t.strictSame(await stillLeft(made), []);
  }
});

const withDisk = needsQemu(true);

for (const [cache, stops] of [
  ['none', 'each'],
  ['writeback', 'no'],
] as [CacheMode, string][]) {
  void t.test(`a disk, cache=${cache}: ${stops} scan stops the guest`, { ...withDisk, ...limit }, async (t) => {
    const image = await makeDisk(t, 1024);
    // some read is under way whenever its memory is scanned
    const path = cache === 'none' && cannotBeSlow() === false ? await makeSlow(t, image, 40) : image;
    const more = diskWords(path, cache);
    const settings = 'pagetide.rate=100 pagetide.set=5 pagetide.limit=16 pagetide.disk=512';
    const { made, a, b } = await qemuPair(t, { memory: '96', settings, more, virtio: true });
    const hosts = [a, b];
    for (const mode of ['pre-copy', 'hybrid'] as const) {
      const [from, to] = [hosts[0]!, hosts[1]!];
      hosts.reverse();
      const monitor = await operatorOf(t, from);
      const nodes = (await monitor.execute('query-named-block-nodes')) as { cache: { direct: boolean } }[];
      t.ok(nodes.length > 0 && nodes.every(({ cache: { direct } }) => direct === (cache === 'none')));
      const seen = { STOP: 0, RESUME: 0 };
      monitor.onEvent(({ event }) => {
        if (event === 'STOP' || event === 'RESUME') seen[event]++;
      });
      const pause = mode === 'pre-copy' ? { onNoConvergence: 'pause' as const } : {};
      const { last } = await migrate(from, to, 'g1', { mode, maxDowntimeMs: 100, maxRounds: 3, ...pause });
      monitor.close();
      t.strictSame(last.error, undefined, mode);
      checkReport(t, last.report);
      const rounds = last.report!.rounds!.length;
      t.comment(JSON.stringify(seen));
      if (cache === 'none') {
        // two for the first manifest, one after each round, and the switch
        t.equal(seen.STOP, 2 + rounds + 1);
        t.equal(seen.RESUME, seen.STOP - 1, 'it has run on after each but the last');
      } else {
        t.strictSame(seen, { STOP: 1, RESUME: 0 }, 'it is stopped for the switch alone');
      }
      t.strictSame(await guestFaults(to, 'g1'), []);
      t.strictSame(await stillLeft(made), []);
    }
  });
}
