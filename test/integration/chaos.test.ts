/** Runs with `kill -9` at random moments; `npm run chaos` makes as many as one likes. */
import t, { type Test } from 'tap';
import { calmRun, chaosRun, planOf } from '../support/chaos.ts';
import { chaosCluster, type ChaosCluster } from '../support/chaos-cluster.ts';

const RUNS = 10;
/** Of each with a cache that is too small, and a peer that lies. */
const RUNS_SHARED = 4;

/** Of all modes, with cancels. */
const RUNS_MODES = 6;

async function runs(t: Test, count: number, { cluster, guest }: ChaosCluster, modes = false): Promise<void> {
  const calmMs = await calmRun(cluster, guest);
  // another part of the space each day, and the same one when a run is looked into
  const first = Number(process.env['PAGETIDE_CHAOS_SEED'] ?? Math.floor(Date.now() / 86_400_000));
  for (let seed = first; seed < first + count; seed++) {
    const plan = planOf(seed, calmMs, modes);
    try {
      const { what, outcome } = await chaosRun(cluster, guest, plan);
      t.pass(`seed ${seed}, ${plan.way.mode}: ${what.join('; then ')}: ${outcome}`);
    } catch (error) {
      const logs = cluster.agents.flatMap((agent) => [agent.name, ...agent.log().slice(-40)]);
      throw new Error(`${JSON.stringify(plan)}: ${String(error)}\n${logs.join('\n')}`);
    }
  }
}

void t.test('a migrating guest survives agents that are killed at any moment', { timeout: 900_000 }, async (t) => {
  await runs(t, RUNS, await chaosCluster(t, { memory: 32 * 2 ** 20 }));
});

void t.test('also with pages from a cache that evicts, and from a host that lies', { timeout: 900_000 }, async (t) => {
  const made = await chaosCluster(t, { memory: 32 * 2 ** 20, cache: 8 * 2 ** 20, liar: true });
  await runs(t, RUNS_SHARED, made);
  t.comment(`${made.liar!.wrong} wrong pages were sent`);
});

void t.test('in any mode, and when it is cancelled', { timeout: 900_000 }, async (t) => {
  await runs(t, RUNS_MODES, await chaosCluster(t, { memory: 32 * 2 ** 20, cache: 8 * 2 ** 20 }), true);
});
