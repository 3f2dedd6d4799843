/** Guests of every shape go to another agent and come back; each checks every page of its own, and the report adds up. */
import t from 'tap';
import { cluster } from '../support/cluster.ts';
import { guestFaults, migrate, reportFaults, startGuest, stillLeft } from '../support/migrate.ts';

t.setTimeout(600_000);

const MIB = 2 ** 20;
const shapes: { what: string; options: Record<string, unknown>; frames: number; zero?: [number, number] }[] = [
  { what: 'an ordinary guest', options: { memory: '64M' }, frames: (64 * MIB) / 4096 },
  { what: 'several threads', options: { memory: '24M', threads: 4 }, frames: (24 * MIB) / 4096 },
  { what: 'several regions', options: { memory: '24M', regions: 3, threads: 2 }, frames: (24 * MIB) / 4096 },
  {
    what: 'mostly zero memory',
    options: { memory: '32M', zeroFraction: 0.95, writeRate: 500 },
    frames: (32 * MIB) / 4096,
    zero: [0.8, 1],
  },
  {
    what: 'memory that is all touched',
    options: { memory: '16M', zeroFraction: 0, workingSet: 1 },
    frames: (16 * MIB) / 4096,
    zero: [0, 0.05],
  },
  {
    what: 'a size of no round number of MiB',
    options: { memory: 17 * MIB + 3 * 4096, regions: 2 },
    frames: 17 * 256 + 3,
  },
  { what: 'a high write rate', options: { memory: '32M', writeRate: 300_000, readRate: 0 }, frames: (32 * MIB) / 4096 },
];

for (const { what, options, frames, zero } of shapes) {
  void t.test(`forth and back: ${what}`, { timeout: 600_000 }, async (t) => {
    const made = cluster(t);
    const [a, b] = [await made.agent('a'), await made.agent('b')];
    await startGuest(a, 'g1', options);
    for (const [from, to] of [
      [a, b],
      [b, a],
    ] as const) {
      const { last, seen } = await migrate(from, to, 'g1');
      const { report } = last;
      t.strictSame(last.error, undefined);
      t.equal(last.progress.phase, 'done');
      t.match(report, { guest: 'g1', mode: 'post-copy', driver: 'embedded', verified: true });
      t.strictSame(reportFaults(report), []);
      t.equal(report?.frames.total, frames);
      t.match(report?.frames, { present: 0, cache: 0, resident: 0, peer: 0 });
      t.ok((report?.faults.count ?? 0) > 0, 'a guest that works has faults');
      t.ok((report?.longestGapMs ?? 0) > 0, 'it beats');
      const { downtime, journal } = report?.ms ?? {};
      t.ok((journal ?? 0) > 0 && journal! <= downtime!, `${journal} of ${downtime} ms for the journals`);
      if (zero !== undefined) {
        const part = (report?.frames.zero ?? 0) / frames;
        t.ok(part >= zero[0] && part <= zero[1], `${part} of the frames are zero`);
      }
      t.ok(
        seen.every(({ progress }) => progress.framesPresent <= progress.framesTotal),
        'progress stays within bounds',
      );
      t.strictSame(
        (await from.client.listGuests()).map(({ name }) => name),
        [],
        'the source has no guest any more',
      );
      t.strictSame(await guestFaults(to, 'g1'), []);
      t.strictSame(await stillLeft(made), []);
    }
    await a.client.removeGuest('g1');
    t.strictSame(await stillLeft(made), []);
  });
}

void t.test('without verify the report says null', { timeout: 600_000 }, async (t) => {
  const made = cluster(t);
  const [a, b] = [await made.agent('a'), await made.agent('b')];
  await startGuest(a, 'g1');
  const { last } = await migrate(a, b, 'g1', { verify: false });
  t.equal(last.report?.verified, null);
  t.strictSame(reportFaults(last.report), []);
  t.strictSame(await guestFaults(b, 'g1'), []);
  t.strictSame(await stillLeft(made), []);
});

void t.test('guests outlive their agents', { timeout: 600_000 }, async (t) => {
  const made = cluster(t);
  const [a, b] = [await made.agent('a'), await made.agent('b')];
  await startGuest(a, 'g1');
  await startGuest(b, 'g2');
  const pids = [(await a.client.showGuest('g1')).pid, (await b.client.showGuest('g2')).pid];
  t.strictSame(await Promise.all([a.stop(), b.stop()]), [0, 0], 'both end well');
  await Promise.all([a.restart(), b.restart()]);
  t.strictSame([(await a.client.showGuest('g1')).pid, (await b.client.showGuest('g2')).pid], pids);
  t.strictSame([await guestFaults(a, 'g1'), await guestFaults(b, 'g2')], [[], []]);
  t.equal((await migrate(a, b, 'g1')).last.report?.verified, true);
  t.equal((await migrate(b, a, 'g2')).last.report?.verified, true);
  await Promise.all([a.stop(), b.stop()]);
  await Promise.all([a.restart(), b.restart()]);
  t.strictSame([await guestFaults(b, 'g1'), await guestFaults(a, 'g2')], [[], []]);
  t.strictSame(await stillLeft(made), []);
});

void t.test('two guests cross each other', { timeout: 600_000 }, async (t) => {
  const made = cluster(t);
  const [a, b] = [await made.agent('a'), await made.agent('b')];
  await startGuest(a, 'g1', { memory: '32M' });
  await startGuest(b, 'g2', { memory: '32M' });
  const ends = await Promise.all([migrate(a, b, 'g1'), migrate(b, a, 'g2')]);
  t.strictSame(
    ends.map(({ last }) => last.report?.verified),
    [true, true],
  );
  t.strictSame([await guestFaults(b, 'g1'), await guestFaults(a, 'g2')], [[], []]);
  t.strictSame(await stillLeft(made), []);
});
