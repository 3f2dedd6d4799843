/**
 * Every mode, with the same real guest at three rates of writing: what a migration takes, how long the guest stands still, what is on the
 * wire, what the guest's own work loses. Beside it QEMU's own post-copy of a guest like it, in the same rounds.
 */
import { setTimeout as delay } from 'node:timers/promises';
import { PagetideError } from '../src/errors.ts';
import type { MigrationReport, Mode } from '../src/migration/types.ts';
import { cluster as makeCluster, type TestAgent } from '../test/support/cluster.ts';
import { migrate, reportFaults, until } from '../test/support/migrate.ts';
import { guestOptions } from '../test/support/qemu-guest.ts';
import { NativeGuest, type NativeMove } from './lib/qemu-native.ts';
import { checkSettings, setting } from './lib/settings.ts';
import { requireQemu } from './lib/sharing-fleet.ts';
import { judge, median } from './lib/statistics.ts';
import type { BenchModule, BenchOptions, Target } from './lib/types.ts';

export const description = "Modes of a real QEMU guest at three dirty rates, beside QEMU's own post-copy.";

const MIB = 2 ** 20;
const PAGE = 4096;
const MODES: readonly Mode[] = ['post-copy', 'hybrid', 'pre-copy'];
const BOOT_MS = 240_000;
const HEARD_MS = 30_000;
const NAME = 'moving';
/** Of QEMU's own. */
const DOWNTIME_TARGET = 1.2;
/** Of the frames that changed, in LZ4. */
const ROUNDS_TARGET = 0.5;

interface Setup {
  mib: number;
  rates: { name: string; rate: number }[];
  /** How long the guest's work is counted before and after, milliseconds. */
  lookMs: number;
  folder: string;
}

/** One migration. Rates are of the guest's own work, operations a second. */
interface Move {
  mode: Mode;
  report: MigrationReport;
  before: number;
  during: number;
  after: number;
}

interface Round {
  native: NativeMove;
  moves: Move[];
}

function readSetup(options: BenchOptions): Setup {
  checkSettings(options, ['mib', 'light', 'medium', 'heavy', 'look', 'disk']);
  return {
    mib: setting(options, 'mib', 256, 128),
    rates: [
      { name: 'light', rate: setting(options, 'light', 50, 1) },
      { name: 'medium', rate: setting(options, 'medium', 500, 1) },
      { name: 'heavy', rate: setting(options, 'heavy', 4_000, 1) },
    ],
    lookMs: setting(options, 'look', 2_000, 100),
    folder: setting(options, 'disk', 0, 0) === 0 ? '/dev/shm' : '/var/tmp',
  };
}

async function operations(agent: TestAgent): Promise<number> {
  return (await agent.client.showGuest(NAME)).stats?.operations ?? 0;
}

/** Operations a second while `work` goes on. */
async function pace(from: TestAgent, work: () => Promise<unknown>, to = from): Promise<number> {
  const before = await operations(from);
  const began = performance.now();
  await work();
  let after = 0;
  // a host hears of a guest that has just arrived with its next heartbeat
  await until('the guest is heard of', async () => (after = await operations(to)) >= before, HEARD_MS);
  return ((after - before) * 1000) / (performance.now() - began);
}

async function moveOnce(from: TestAgent, to: TestAgent, mode: Mode, lookMs: number): Promise<Move> {
  const before = await pace(from, () => delay(lookMs));
  let report: MigrationReport | undefined;
  const during = await pace(
    from,
    async () => {
      // a guest that dirties faster than pages move stands still for longer, and the report says so
      const more = mode === 'pre-copy' ? { onNoConvergence: 'pause' as const } : {};
      const { last } = await migrate(from, to, NAME, { mode, verify: false, ...more });
      const faults = reportFaults(last.report);
      if (last.error !== undefined || faults.length > 0)
        throw new PagetideError(
          'PT_PEER_FAILED',
          `a ${mode} did not end well: ${last.error?.message ?? faults.join('; ')}`,
        );
      report = last.report;
    },
    to,
  );
  const after = await pace(to, () => delay(lookMs));
  return { mode, report: report!, before, during, after };
}

/** What rounds after the first had to tell, and what they took. The first is of all memory: others have measured that. */
function roundsOf({ bytes, rounds = [] }: MigrationReport): { changed: number; wire: number; packed: number } {
  const later = rounds.slice(1);
  const changed = later.reduce((sum, round) => sum + round.changed, 0);
  // deltas take less: what counts is what whole pages would have
  const whole = bytes.pages + (bytes.deltas === undefined ? 0 : bytes.deltas.whole - bytes.deltas.bytes);
  const shrunk = bytes.raw > 0 ? whole / bytes.raw : 1;
  return { changed, wire: later.reduce((sum, { wireBytes }) => sum + wireBytes, 0), packed: changed * PAGE * shrunk };
}

function describe({ mode, report, before, during, after }: Move): string {
  const { ms, bytes, rounds } = report;
  return (
    `${mode}: ${ms.total.toFixed(0)} ms, downtime ${ms.downtime?.toFixed(1)} ms (${ms.journal?.toFixed(1)} for journals), ` +
    `wire ${(bytes.wire / MIB).toFixed(1)} MiB, ${rounds?.length ?? 0} rounds, ${before.toFixed(0)} → ${during.toFixed(0)} → ${after.toFixed(0)} operations/s`
  );
}

/** All rounds at one rate: ours in each mode, and QEMU's own while ours is frozen. */
async function atRate(
  agents: [TestAgent, TestAgent],
  native: NativeGuest,
  { name, rate }: Setup['rates'][number],
  setup: Setup,
  options: BenchOptions,
): Promise<Round[]> {
  const settings = `pagetide.rate=${rate}`;
  const argv = await guestOptions({ memory: String(setup.mib), settings });
  await agents[0].client.runGuest({ name: NAME, driver: 'qemu', options: { ...argv } });
  await until(`${NAME} works`, async () => (await operations(agents[0])) > 100, BOOT_MS);
  await native.resume();
  await native.setRate(rate);
  await native.pause();
  const rounds: Round[] = [];
  let [from, to] = agents;
  for (let round = 0; round < options.rounds; round++) {
    const moves: Move[] = [];
    for (const mode of MODES) {
      moves.push(await moveOnce(from, to, mode, setup.lookMs));
      [from, to] = [to, from];
      options.progress(`${name}, round ${round}: ${describe(moves.at(-1)!)}`);
    }
    const { pid } = await from.client.showGuest(NAME);
    process.kill(pid, 'SIGSTOP');
    try {
      await native.resume();
      await delay(setup.lookMs);
      const moved = await native.move();
      await native.pause();
      options.progress(
        `${name}, round ${round}: QEMU's own: ${moved.totalMs.toFixed(0)} ms, downtime ${moved.downtimeMs.toFixed(1)} ms`,
      );
      rounds.push({ native: moved, moves });
    } finally {
      process.kill(pid, 'SIGCONT');
    }
  }
  await from.client.removeGuest(NAME);
  return rounds;
}

function targetsOf(name: string, rounds: readonly Round[]): { targets: Target[]; notes: string[] } {
  const targets: Target[] = [];
  const notes: string[] = [];
  for (const [at, mode] of MODES.entries()) {
    const moves = rounds.map(({ moves: all }) => all[at]!);
    const downtimes = rounds.map(({ native }, i) => ({
      value: moves[i]!.report.ms.downtime ?? NaN,
      baseline: native.downtimeMs,
    }));
    targets.push(
      judge(`${name}, ${mode}, downtime`, 'ms', downtimes, { target: DOWNTIME_TARGET, direction: 'at-most' }),
    );
    const works = moves.map(({ during, before, after }) => ({ value: during, baseline: (before + after) / 2 }));
    targets.push(judge(`${name}, ${mode}, guest's work`, '1/s', works, { target: null, direction: 'at-least' }));
    const later = moves.map(({ report }) => roundsOf(report)).filter(({ changed }) => changed > 0);
    if (later.length > 0) {
      const bytes = later.map(({ wire, packed }) => ({ value: wire / MIB, baseline: packed / MIB }));
      targets.push(judge(`${name}, ${mode}, rounds`, 'MiB', bytes, { target: ROUNDS_TARGET, direction: 'at-most' }));
    }
    const of = (figure: (move: Move) => number): string => median(moves.map(figure)).toFixed(1);
    notes.push(
      `${name}, ${mode}: total ${of(({ report }) => report.ms.total)} ms, downtime ${of(({ report }) => report.ms.downtime ?? NaN)} ms ` +
        `(journals ${of(({ report }) => report.ms.journal ?? 0)} ms), wire ${of(({ report }) => report.bytes.wire / MIB)} MiB, ` +
        `${of(({ report }) => report.rounds?.length ?? 0)} rounds, work ${of(({ before }) => before)} → ${of(({ during }) => during)} → ${of(({ after }) => after)} operations/s`,
    );
  }
  const native = rounds.map((round) => round.native);
  notes.push(
    `${name}, QEMU's own post-copy: total ${median(native.map(({ totalMs }) => totalMs)).toFixed(1)} ms, downtime ${median(native.map(({ downtimeMs }) => downtimeMs)).toFixed(1)} ms`,
  );
  return { targets, notes };
}

export async function run(options: BenchOptions): ReturnType<BenchModule['run']> {
  const setup = readSetup(options);
  requireQemu();
  const teardowns: (() => Promise<void>)[] = [];
  const end = async (): Promise<void> => {
    for (const step of teardowns.splice(0).reverse()) await step();
  };
  const interrupted = (signal: NodeJS.Signals): void => {
    void end().finally(() => process.exit(signal === 'SIGINT' ? 130 : 143));
  };
  process.once('SIGINT', interrupted).once('SIGTERM', interrupted);
  const raw: Record<string, Round[]> = {};
  const targets: Target[] = [];
  const notes = [
    `QEMU guests of ${setup.mib} MiB under TCG; agents' state in ${setup.folder}; nobody has a cache. ${setup.rates.map(({ name, rate }) => `${name}: ${rate} pages rewritten a second`).join(', ')}, half of each random`,
    `rounds: bytes on the wire of the rounds after the first, against the frames told in them at the share that LZ4 left of this migration's pages`,
  ];
  try {
    const cluster = makeCluster({ teardown: (fn) => teardowns.push(fn) }, { folder: setup.folder });
    const agents: [TestAgent, TestAgent] = [await cluster.agent('a'), await cluster.agent('b')];
    const native = await NativeGuest.start({ memory: String(setup.mib), settings: 'pagetide.rate=0' });
    teardowns.push(() => native.close());
    await native.pause();
    for (const rate of setup.rates) {
      const rounds = await atRate(agents, native, rate, setup, options);
      raw[rate.name] = rounds;
      const judged = targetsOf(rate.name, rounds);
      targets.push(...judged.targets);
      notes.push(...judged.notes);
    }
  } finally {
    process.off('SIGINT', interrupted).off('SIGTERM', interrupted);
    await end();
  }
  return { targets, notes, raw: { setup, rounds: raw } };
}
