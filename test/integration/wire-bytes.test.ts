/**
 * What a report says of the network, against a count from outside the program: both agents live in a network namespace of
 * their own, and the kernel counts what its loopback carries. Nothing else is in it: the control sockets are Unix sockets.
 */
import t from 'tap';
import { cluster } from '../support/cluster.ts';
import { migrate, reportFaults, startGuest, stillLeft } from '../support/migrate.ts';
import { makeNetwork } from '../support/network.ts';

/** IPv4 and TCP with time stamps: what loopback counts of each packet beside its payload (it takes the Ethernet header off first). */
const HEADERS = 20 + 32;
/** Options of the packets that open a connection, and the message that brings the figures themselves. */
const SLACK = 2_048;
/** The largest segment on loopback. */
const SEGMENT = 65_536;

void t.test('bytes.wire is what the sockets carried, and the classes add up', { timeout: 600_000 }, async (t) => {
  const network = makeNetwork(t);
  if (network === undefined) {
    t.comment('skipped: no network namespace can be made here');
    return;
  }
  const made = cluster(t, { prefix: network.prefix });
  const [a, b] = [await made.agent('a'), await made.agent('b')];
  await startGuest(a, 'counted', { memory: '32M' });
  for (const [from, to] of [
    [a, b],
    [b, a],
  ] as const) {
    const before = network.carried();
    const resentBefore = network.resent();
    const { last } = await migrate(from, to, 'counted');
    const report = last.report!;
    t.strictSame(reportFaults(report), []);
    t.equal(report.verified, true);
    const after = network.carried();
    const payload = after.bytes - before.bytes - HEADERS * (after.packets - before.packets);
    const { wire } = report.bytes;
    const resent = network.resent() - resentBefore;
    t.ok(
      wire < payload + SLACK && payload < wire + SLACK + resent * SEGMENT,
      `${wire} bytes reported, ${payload} counted, of these ${resent} segments a second time`,
    );
  }
  t.strictSame(await stillLeft(made), []);
});
