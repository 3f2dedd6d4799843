/** The phases of the experiment, in order. */
import { setTimeout as delay } from 'node:timers/promises';
import { asPagetideError } from '../../../src/errors.ts';
import { startCluster, type NetnsCluster } from '../netns-cluster/cluster.ts';
import { parseBitRate } from '../netns-cluster/network.ts';
import { scoreOf } from './control.ts';
import { fleetOf, moversOf, startFleet } from './fleet.ts';
import { everyGuest, NativeArm, thereAndBack, warmUp } from './moves.ts';
import { Stage } from './stage.ts';
import {
  type Arm,
  type Experiment,
  type FleetGuest,
  type OtherMove,
  type OwnMove,
  type Point,
  type Setup,
} from './types.ts';
import { windowsOf } from './windows.ts';

const MINUTE_MS = 60_000;
/** Of the guest that the sweeps move. */
const SWEPT: FleetGuest = { name: 'like-1', kind: 'like', home: 0, to: 2 };
/** Plans follow each other soon: what is measured is not how long they are waited for. */
const PLAN_MS = 2000;
const REPORT_MS = 1000;
const WATCH = { intervalMs: 500, cpu: 0.05 };
/**
 * So low that all shared pages are always worth being brought. Caches are emptied again and again here, so the score sees bytes spent that never
 * serve; with the default prices it would, rightly, have less brought with every move.
 */
const PRICES = { hold: 1 / 512, bring: 1 / 64 };

/** Ends the cluster with the work, however that ends, and on Ctrl-C and SIGTERM. */
async function withHosts<T>(setup: Setup, work: (cluster: NetnsCluster) => Promise<T>): Promise<T> {
  let closing: { close(): void } = { close: () => undefined };
  const interrupted = (signal: NodeJS.Signals): void => {
    closing.close();
    process.exit(signal === 'SIGINT' ? 130 : 143);
  };
  process.once('SIGINT', interrupted).once('SIGTERM', interrupted);
  const { average, peak, link } = setup;
  try {
    const cluster = await startCluster(
      {
        hosts: 3,
        rate: link,
        offload: setup.offload,
        config: () => ({
          // what a guest leaves behind here must not help it when it comes back
          cache: { size: setup.cache, history: 0 },
          distribution: { average, peak, intervalMs: PLAN_MS, prices: PRICES },
          watch: WATCH,
          // reports likewise: each move is preceded by a pass of its own
          directory: { leaseMs: 60_000, reportMs: REPORT_MS },
        }),
      },
      (early) => (closing = early),
    );
    return await work(cluster);
  } finally {
    process.off('SIGINT', interrupted).off('SIGTERM', interrupted);
    closing.close();
  }
}

export const GIGABIT = parseBitRate('1gbit');

/** One guest moves by each mode before anything counts: the agents' code is compiled while it does. */
export function runExperiment(setup: Setup, rounds: number, progress: (text: string) => void): Promise<Experiment> {
  return withHosts(setup, async (cluster) => {
    const stage = await Stage.open(cluster, setup, progress);
    await stage.pause();
    await stage.phase('guests start', () => startFleet(stage.hosts, setup, progress));
    const native = setup.native
      ? await stage.phase('QEMU’s own guest starts', () => NativeArm.start(stage))
      : undefined;
    const own: OwnMove[] = [];
    const others: OtherMove[] = [];
    const budget: Point[] = [];
    const fade: Point[] = [];
    let incomplete: string | null = null;
    try {
      await stage.phase('warming up', () => warmUp(stage, SWEPT));
      for (let round = 0; round < rounds; round++) {
        const arms = round % 2 === 0 ? setup.arms : [...setup.arms].reverse();
        for (const arm of arms) await oneArm(stage, arm, round, own);
        if (native !== undefined) await stage.phase('QEMU’s own', () => native.round(round, others));
        if (setup.budgets.length > 0) await stage.phase('budgets', () => budgets(stage, round, budget));
        if (setup.fades.length > 0) await stage.phase('fading', () => fades(stage, round, fade));
      }
    } catch (error) {
      // hours of figures outlive what one move failed with
      if (own.length === 0 || setup.small) throw error;
      incomplete = asPagetideError(error).message;
      progress(`not complete: ${incomplete}`);
    } finally {
      await native?.close();
    }
    const score = await scoreOf(stage.hosts);
    const links = await stage.close();
    const { marks, passes } = stage;
    const windows = windowsOf(links, marks[0]!.fromMs, marks.at(-1)!.toMs);
    return {
      setup,
      guests: [...moversOf(setup)],
      own,
      native: others,
      passes,
      budget,
      fade,
      marks,
      windows,
      score,
      incomplete,
    };
  });
}

async function oneArm(stage: Stage, arm: Arm, round: number, moves: OwnMove[]): Promise<void> {
  if (arm === 'nothing') {
    await stage.phase('nothing brought', () => everyGuest(stage, arm, round, moves, () => stage.clean()));
    return;
  }
  if (arm === 'planned') await stage.plan(fleetOf(stage.setup));
  try {
    // all hosts at once, as in a cluster: what it costs, and its peaks
    await stage.clean();
    await stage.phase(`distributing, ${arm}`, () => stage.distribute(arm));
    await stage.phase(`moves, ${arm}`, () =>
      everyGuest(stage, arm, round, moves, async (guest) => {
        await again(stage, arm, guest);
      }),
    );
  } finally {
    if (arm === 'planned') await stage.forgetPlans(fleetOf(stage.setup));
  }
}

/** Brings anew what the guest's destination should have, and nothing else. */
async function again(stage: Stage, arm: Arm | 'sweep', { to }: FleetGuest): Promise<number> {
  await stage.clean();
  const { heldBytes } = await stage.distribute(arm, to);
  return heldBytes[to]!;
}

/** The benefit with a budget: shares of what is brought without a limit. */
async function budgets(stage: Stage, round: number, points: Point[]): Promise<void> {
  const { client } = stage.hosts[SWEPT.to]!;
  const whole = stage.setup.cache;
  await client.setDistributionBudget(whole);
  const shared = await again(stage, 'sweep', SWEPT);
  try {
    for (const at of stage.setup.budgets) {
      await client.setDistributionBudget(Math.floor(shared * at));
      // an agent without a budget is never idle, and brings nothing
      if (at === 0) await stage.clean();
      const heldBytes = at === 0 ? 0 : await again(stage, 'sweep', SWEPT);
      points.push({ at, round, heldBytes, move: await thereAndBack(stage, SWEPT, 'post-copy', 'prepared', round) });
    }
  } finally {
    await client.setDistributionBudget(whole);
  }
}

/** The benefit after distribution has stood still for some minutes, while the guest rewrote what it alone has: all of it was brought. */
async function fades(stage: Stage, round: number, points: Point[]): Promise<void> {
  await stage.plan([SWEPT]);
  try {
    for (const at of stage.setup.fades) {
      const heldBytes = await again(stage, 'sweep', SWEPT);
      stage.checkTime(at * MINUTE_MS);
      await delay(at * MINUTE_MS);
      points.push({ at, round, heldBytes, move: await thereAndBack(stage, SWEPT, 'post-copy', 'planned', round) });
    }
  } finally {
    await stage.forgetPlans([SWEPT]);
  }
}
