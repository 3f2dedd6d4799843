/**
 * Migrations of a loaded guest between two real agents, with `kill -9` of agents in the midst of them. One run:
 *
 *   migrate ──► the moment comes ──► kill -9 ──► pause ──► restart ──► (a second moment, kill, restart) ──► settled ──► check
 *      └──────► its moment comes ──► cancel                                                                (in some runs)
 *
 * What is done comes from the run's seed; when exactly it hits is up to the machine. So that short phases are hit as often
 * as long ones, the moment of most runs is a record in the victim's journal or in the other's: the kill follows it at once,
 * or a few milliseconds later.
 */
import { setTimeout as delay } from 'node:timers/promises';
import type { MigrateRequest } from '../../src/agent/service.ts';
import { asPagetideError } from '../../src/errors.ts';
import type { FrameClasses } from '../../src/migration/types.ts';
import { checkAll, untilSettled } from './chaos-checks.ts';
import type { Cluster, TestAgent } from './cluster.ts';
import { journalLength, statesOf, untilRecord, type Side } from './journal-watch.ts';

export type Random = () => number;

/** Deterministic numbers from 0 to 1 (mulberry32). */
export function randomFrom(seed: number): Random {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}

type Moment =
  /** So long after the migration began, milliseconds. */
  | { kind: 'delay'; ms: number }
  /** `state` stands in the journal of `side`, and then `ms` later. */
  | { kind: 'record'; side: Side; state: string; ms: number }
  /** The destination has this fraction of the frames. */
  | { kind: 'fraction'; part: number }
  /** This round of copying goes on; never in a post-copy. */
  | { kind: 'round'; round: number };

interface Kill {
  victims: Side[];
  moment: Moment;
  /** From the kill to the restart, milliseconds; one a victim. */
  pauses: number[];
}

/** How the guest is moved. */
export type Way = Pick<MigrateRequest, 'mode' | 'onNoConvergence' | 'maxDowntimeMs' | 'maxRounds'>;

export interface Plan {
  seed: number;
  way: Way;
  kills: Kill[];
  /** When somebody cancels it. */
  cancel?: Moment;
}

const POST_COPY: Way = { mode: 'post-copy' };

/** The records that a migration that goes well makes, in the order of their moments. */
const RECORDS: readonly [Side, string][] = [
  ['source', 'preparing'],
  ['destination', 'incoming'],
  ['source', 'handing-over'],
  ['destination', 'owner'],
  ['source', 'gone'],
  ['destination', 'whole'],
  ['source', 'released'],
  ['destination', 'complete'],
];
/** Records of a roll-back or a later phase, after a first kill. */
const LATER: readonly [Side, string][] = [
  ['source', 'running'],
  ['destination', 'refused'],
  ['destination', 'whole'],
  ['destination', 'complete'],
  ['source', 'released'],
];

/**
 * What a run does.
 * @param calmMs how long a migration takes that nobody disturbs
 * @param modes all of them, with cancels; otherwise post-copy with kills alone
 */
export function planOf(seed: number, calmMs: number, modes = false): Plan {
  const random = randomFrom(seed);
  const pick = <T>(list: readonly T[]): T => list[Math.floor(random() * list.length)]!;
  const kill = (records: readonly [Side, string][], longestMs: number): Kill => {
    const what = random();
    const victims: Side[] = what < 0.4 ? ['source'] : what < 0.8 ? ['destination'] : ['source', 'destination'];
    if (random() < 0.5) victims.reverse();
    const how = random();
    const late = random() < 0.5 ? 0 : random() * 25;
    const [side, state] = pick(records);
    const moment: Moment =
      how < 0.55
        ? { kind: 'record', side, state, ms: late }
        : how < 0.7
          ? { kind: 'fraction', part: random() }
          : { kind: 'delay', ms: random() * longestMs };
    return { victims, moment, pauses: victims.map(() => (random() < 0.3 ? 0 : random() * 600)) };
  };
  const kills = [kill(RECORDS, calmMs)];
  if (random() < 0.3) kills.push(kill(LATER, 1_500));
  if (!modes) return { seed, way: POST_COPY, kills };

  const way = wayOf(random);
  const copies = way.mode !== 'post-copy';
  // rounds are short, and none of their moments is a record
  if (copies && random() < 0.4) kills[0]!.moment = { kind: 'round', round: 1 + Math.floor(random() * 3) };
  const cancels = random();
  if (cancels >= 0.4) return { seed, way, kills };
  const [side, state] = pick(RECORDS);
  const when = random();
  const cancel: Moment =
    copies && when < 0.4
      ? { kind: 'round', round: 1 + Math.floor(random() * 3) }
      : when < 0.7
        ? { kind: 'record', side, state, ms: random() < 0.5 ? 0 : random() * 25 }
        : { kind: 'delay', ms: random() * calmMs };
  // most cancels have nothing else to fight with
  return { seed, way, kills: cancels < 0.28 ? [] : kills, cancel };
}

function wayOf(random: Random): Way {
  const which = random();
  if (which < 0.2) return POST_COPY;
  if (which < 0.45) return { mode: 'hybrid' };
  if (which < 0.65) return { mode: 'auto' };
  // one that has to give up now and then, one that falls over to post-copy, one that stands still for longer
  const choices = ['abort', 'post-copy', 'pause'] as const;
  const maxDowntimeMs = random() < 0.2 ? 60 : 2_000;
  return { mode: 'pre-copy', onNoConvergence: choices[Math.floor(random() * 3)]!, maxDowntimeMs, maxRounds: 6 };
}

export interface RunResult {
  seed: number;
  mode: Way['mode'];
  /** What was done when, e.g. `destination killed at owner+3ms (serving)`. */
  what: string[];
  outcome: 'moved' | 'rolled back';
  /** From the last restart until both agents said that it is over, milliseconds. */
  settleMs: number;
  /** Where the frames came from, as the report says; undefined where the guest did not move, or the source was restarted after. */
  frames?: FrameClasses;
}

const SETTLE_MS = 60_000;
/** A moment that never comes (a migration that was over before) is given up this long after, milliseconds. */
const MOMENT_MS = 4_000;

export interface ChaosGuest {
  name: string;
  operations: number;
  /** Where it is now. */
  owner: TestAgent;
}

/** What there was before a run. */
interface Before {
  /** Lengths of the agents' journals. */
  journals: ReadonlyMap<TestAgent, number>;
  /** That the source knows of. */
  migrations: number;
}

/** Moves the guest once while nobody is killed. Resolves to how long that took, milliseconds. */
export async function calmRun(cluster: Cluster, guest: ChaosGuest): Promise<number> {
  const started = performance.now();
  await begin(guest, other(cluster, guest.owner), POST_COPY);
  await untilSettled(cluster.agents, SETTLE_MS);
  const took = performance.now() - started;
  Object.assign(guest, await checkAll(cluster, guest.name, guest.operations));
  return took;
}

/** Carries out a plan and checks everything afterwards. Rejects with what did not hold. */
export async function chaosRun(cluster: Cluster, guest: ChaosGuest, plan: Plan): Promise<RunResult> {
  const sides: Record<Side, TestAgent> = { source: guest.owner, destination: other(cluster, guest.owner) };
  const before: Before = {
    journals: new Map(cluster.agents.map((agent) => [agent, journalLength(agent)])),
    migrations: (await sides.source.client.listMigrations()).length,
  };
  const what: string[] = [];
  const first = plan.kills.length === 0 ? undefined : momentOf(plan.kills[0]!.moment, sides, before);
  const cancelled = plan.cancel === undefined ? undefined : cancelAt(plan.cancel, guest.name, sides, before);
  // It may be the victim that is asked: then the answer never comes.
  const begun = begin(guest, sides.destination, plan.way).catch(() => undefined);
  for (const [i, kill] of plan.kills.entries()) {
    const came = await (i === 0 ? first : momentOf(kill.moment, sides, before));
    const hit = kill.victims.map((side) => `${side} (${phaseOf(sides[side], before.journals.get(sides[side])!)})`);
    await Promise.all(kill.victims.map((side) => sides[side].kill()));
    what.push(`${textOf(kill.moment)}${came ? '' : ', which did not come'}: ${hit.join(' and ')}`);
    await Promise.all(
      kill.victims.map(async (side, at) => {
        await delay(kill.pauses[at]);
        await sides[side].restart();
      }),
    );
  }
  await begun;
  const cancel = await cancelled;
  if (cancel !== undefined) what.push(`${textOf(plan.cancel!)}: cancel ${cancel}`);
  const restarted = performance.now();
  await untilSettled(cluster.agents, SETTLE_MS);
  const settleMs = performance.now() - restarted;
  const { owner, operations } = await checkAll(cluster, guest.name, guest.operations);
  const outcome = owner === sides.source ? 'rolled back' : 'moved';
  // with nobody killed, whoever was told that it is cancelled finds the guest where it was, and the other way round
  if (plan.kills.length === 0) {
    const right = cancel === 'accepted' ? 'rolled back' : (await gaveUp(sides.source)) ? 'rolled back' : 'moved';
    if (outcome !== right) throw new Error(`the cancel: ${cancel}; the guest has ${outcome}`);
  }
  Object.assign(guest, { owner, operations });
  const frames = (await sides.source.client.listMigrations()).at(-1)?.report?.frames;
  return { seed: plan.seed, mode: plan.way.mode, what, outcome, settleMs, ...(frames === undefined ? {} : { frames }) };
}

/** Of the two that the guest moves between, the other one; a third only has pages. */
function other(cluster: Cluster, agent: TestAgent): TestAgent {
  return cluster.agents.slice(0, 2).find((one) => one !== agent)!;
}

async function begin(guest: ChaosGuest, to: TestAgent, way: Way): Promise<void> {
  await guest.owner.client.migrate({ guest: guest.name, to: to.url, verify: true, ...way });
}

/** Whether the last migration from there ended because it did not converge. */
async function gaveUp(source: TestAgent): Promise<boolean> {
  return (await source.client.listMigrations()).at(-1)?.error?.code === 'PT_NOT_CONVERGING';
}

/** What an agent may answer to a cancel that it doesn't accept: too late, or there is nothing to cancel (any more). */
const TOO_LATE = new Set(['PT_NOT_CANCELLABLE', 'PT_MIGRATION_UNKNOWN', 'PT_GUEST_UNKNOWN']);

/** Cancels at its moment. Resolves to what came of it, for people. Rejects where the answer is none that an operator should get. */
async function cancelAt(
  moment: Moment,
  guest: string,
  sides: Record<Side, TestAgent>,
  before: Before,
): Promise<string> {
  await momentOf(moment, sides, before);
  try {
    await sides.source.client.cancel(guest);
    return 'accepted';
  } catch (error) {
    const { code } = asPagetideError(error);
    // an agent that is killed just now can't answer
    if (!TOO_LATE.has(code) && code !== 'PT_PEER_UNREACHABLE') throw error;
    return code;
  }
}

/** Resolves to true when the moment has come, to false when it has not for a long time. */
async function momentOf(moment: Moment, sides: Record<Side, TestAgent>, before: Before): Promise<boolean> {
  switch (moment.kind) {
    case 'delay':
      await delay(moment.ms);
      return true;
    case 'record': {
      const agent = sides[moment.side];
      const came = await untilRecord(agent, before.journals.get(agent)!, moment.side, moment.state, MOMENT_MS);
      if (came && moment.ms > 0) await delay(moment.ms);
      return came;
    }
    case 'fraction':
      return untilFraction(sides.destination, moment.part);
    case 'round':
      return untilRound(sides.source, before.migrations, moment.round);
  }
}

/** The last record that a victim had made, for people. */
function phaseOf(agent: TestAgent, offset: number): string {
  const last = (side: Side): string | undefined => statesOf(agent, offset, side).at(-1);
  return last('source') ?? last('destination') ?? 'before its first record';
}

async function untilFraction(agent: TestAgent, part: number): Promise<boolean> {
  const deadline = performance.now() + MOMENT_MS;
  while (performance.now() < deadline) {
    const progress = (await agent.client.listMigrations().catch(() => [])).at(-1)?.progress;
    if (progress !== undefined && progress.phase === 'serving' && progress.framesPresent >= part * progress.framesTotal)
      return true;
    await delay(2);
  }
  return false;
}

async function untilRound(source: TestAgent, known: number, round: number): Promise<boolean> {
  const deadline = performance.now() + MOMENT_MS;
  while (performance.now() < deadline) {
    const migrations = await source.client.listMigrations().catch(() => []);
    const progress = migrations.at(-1)?.progress;
    if (migrations.length > known && (progress?.copying?.round ?? 0) >= round) return true;
    await delay(2);
  }
  return false;
}

function textOf(moment: Moment): string {
  switch (moment.kind) {
    case 'delay':
      return `${moment.ms.toFixed(0)} ms`;
    case 'record':
      return `${moment.side} ${moment.state}${moment.ms === 0 ? '' : ` + ${moment.ms.toFixed(0)} ms`}`;
    case 'fraction':
      return `${(moment.part * 100).toFixed(0)}% present`;
    case 'round':
      return `round ${moment.round}`;
  }
}
