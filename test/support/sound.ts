/** A cluster that tells its agents' logs where the test fails, and what any migration between its agents must keep to. */
import type { Test } from 'tap';
import type { MigrationReport } from '../../src/migration/types.ts';
import { cluster as makeCluster, type Cluster, type TestAgent } from './cluster.ts';
import { follow, guestFaults, reportFaults } from './migrate.ts';

export function clusterOf(t: Test): Cluster {
  const cluster = makeCluster(t);
  t.teardown(() => {
    if (t.passing()) return;
    for (const agent of cluster.agents) t.comment([`log of ${agent.name}:`, ...agent.log().slice(-30)].join('\n'));
  });
  return cluster;
}

/** Waits for the end of a migration, and checks everything that any report must keep to. */
export async function sound(
  t: Test,
  id: string,
  from: TestAgent,
  to: TestAgent,
  guest: string,
): Promise<MigrationReport> {
  const { last } = await follow(from.client, id);
  t.equal(last.progress.phase, 'done', `${guest} has moved: ${JSON.stringify(last.error)}`);
  t.same(reportFaults(last.report), [], 'the report is sound');
  t.equal(last.report?.verified, true, 'the guest found every page right');
  t.same(await guestFaults(to, guest), []);
  t.comment(`${guest}: ${JSON.stringify(last.report?.frames)} ${JSON.stringify(last.report?.bytes)}`);
  return last.report!;
}
