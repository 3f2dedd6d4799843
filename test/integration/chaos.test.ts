/** Runs with `kill -9` at random moments; `npm run chaos` makes as many as one likes. */
import t from 'tap';
import { calmRun, chaosRun, planOf } from '../support/chaos.ts';
import { chaosCluster } from '../support/chaos-cluster.ts';

const RUNS = 12;

void t.test('a migrating guest survives agents that are killed at any moment', { timeout: 230_000 }, async (t) => {
  const { cluster, guest } = await chaosCluster(t, 32 * 2 ** 20);
  const calmMs = await calmRun(cluster, guest);
  // another part of the space each day, and the same one when a run is looked into
  const first = Number(process.env['PAGETIDE_CHAOS_SEED'] ?? Math.floor(Date.now() / 86_400_000));
  for (let seed = first; seed < first + RUNS; seed++) {
    const plan = planOf(seed, calmMs);
    try {
      const { what, outcome } = await chaosRun(cluster, guest, plan);
      t.pass(`seed ${seed}: ${what.join('; then ')}: ${outcome}`);
    } catch (error) {
      const logs = cluster.agents.flatMap((agent) => [agent.name, ...agent.log().slice(-40)]);
      throw new Error(`seed ${seed}, ${JSON.stringify(plan.kills)}: ${String(error)}\n${logs.join('\n')}`);
    }
  }
});
