/** Deltas between real agents: where they are asked for, what the report says of them, and that every page is right. */
import t from 'tap';
import { cluster } from '../support/cluster.ts';
import { guestFaults, migrate, reportFaults, startGuest, stillLeft } from '../support/migrate.ts';

t.setTimeout(600_000);

void t.test(
  'pages that changed between rounds come as deltas, unless that is turned off',
  { timeout: 500_000 },
  async (t) => {
    const made = cluster(t);
    const [a, b] = await Promise.all([made.agent('a'), made.agent('b', { fill: { deltas: false } })]);
    await startGuest(a, 'g1', { memory: '32M', writeRate: 2_000, readRate: 2_000, workingSet: 0.25 });
    // a downtime that it can't keep, and a speed at which it writes meanwhile: several rounds
    const slow = { maxDowntimeMs: 26, maxRounds: 4, bandwidth: 16 << 20 } as const;
    const there = (await migrate(a, b, 'g1', { mode: 'pre-copy', onNoConvergence: 'pause', ...slow })).last.report!;
    t.match(there, { verified: true, mode: 'pre-copy' });
    t.ok(there.rounds!.length > 1);
    t.equal(there.bytes.deltas, undefined);

    const back = (await migrate(b, a, 'g1', { mode: 'pre-copy', onNoConvergence: 'pause', ...slow })).last.report!;
    t.match(back, { verified: true, mode: 'pre-copy' });
    const { deltas, pages } = back.bytes;
    t.ok(deltas !== undefined && deltas.frames > 0, 'of later rounds');
    t.equal(deltas!.digests, deltas!.frames * 64);
    t.ok(deltas!.bytes <= pages, 'they are pages, too');
    t.strictSame(reportFaults(back), []);
    t.strictSame(await guestFaults(a, 'g1'), []);

    // what is stale when the guest moves is out of the files: it follows whole
    await migrate(a, b, 'g1', { mode: 'hybrid', ...slow });
    const again = (await migrate(b, a, 'g1', { mode: 'hybrid', ...slow })).last.report!;
    t.match(again, { verified: true, mode: 'hybrid' });
    t.strictSame(reportFaults(again), []);
    t.strictSame(await guestFaults(a, 'g1'), []);
    t.strictSame(await stillLeft(made), []);
  },
);
