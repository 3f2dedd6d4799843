/**
 * What sharing saves: real guests under load, moved by post-copy to a host that has nothing and to one that has a guest like
 * them, or one unlike them.
 */
import { PagetideError } from '../src/errors.ts';
import type { FrameClasses, MigrationReport } from '../src/migration/types.ts';
import { TAG_PAGE } from '../src/pages/tags.ts';
import type { Cluster } from '../test/support/cluster.ts';
import { PageSurveyor, type PageSurvey } from './lib/guest-pages.ts';
import { checkSettings, setting } from './lib/settings.ts';
import {
  moveGuest,
  removeGuests,
  requireQemu,
  startFleetGuest,
  startPair,
  type FleetGuest,
  type GuestMachine,
} from './lib/sharing-fleet.ts';
import { judge, median } from './lib/statistics.ts';
import type { BenchModule, BenchOptions, Target } from './lib/types.ts';
import { withCluster } from './lib/with-cluster.ts';

export const description = 'Bytes on the network for real QEMU guests, to a cold host and to one with a sibling.';

const MIB = 2 ** 20;
/** Of a page of the test guest's data (test/qemu-guest/init.c). */
const RANDOM_BYTES = TAG_PAGE / 2;

/** The migrations of a round, in order. */
const CASES = [
  { name: 'like guest, cold host', target: 3.5 },
  { name: 'like guest, host with a sibling', target: 12 },
  { name: 'unlike guest, host with the like ones', target: null },
  { name: 'unlike guest, cold host', target: null },
] as const;

/** One migration: what its report says, and what was found in the guest's memory apart from it. */
interface Move {
  report: MigrationReport;
  survey: PageSurvey;
}

interface Setup {
  machine: GuestMachine;
  like: FleetGuest;
  sibling: FleetGuest;
  unlike: FleetGuest;
}

function readSetup(options: BenchOptions): Setup {
  checkSettings(options, ['mib', 'rate', 'sibling-rate', 'rewritten', 'randomized']);
  const mib = setting(options, 'mib', 512, 128);
  const randomized = setting(options, 'randomized', 1, 0);
  if (randomized > 1) throw new PagetideError('PT_BAD_ARGUMENT', `--set randomized=${randomized}: 0 or 1, please`);
  const rewritten = setting(options, 'rewritten', 500, 0);
  const load = { rate: setting(options, 'rate', 200, 0), rewritten };
  const other = { rate: setting(options, 'sibling-rate', 100, 0), rewritten };
  if (rewritten > 0 && (load.rate === 0 || other.rate === 0))
    throw new PagetideError('PT_BAD_ARGUMENT', 'guests that write nothing never get to --set rewritten; set it to 0');
  return {
    machine: { mib, randomized: randomized === 1 },
    like: { name: 'like', template: 0, seed: 1, load: other },
    sibling: { name: 'sibling', template: 0, seed: 2, load },
    unlike: { name: 'unlike', template: 1, seed: 3, load },
  };
}

/** All migrations of a round, in the order of {@link CASES}. The agents are new, so the caches are empty. */
async function oneRound(
  cluster: Cluster,
  round: number,
  setup: Setup,
  progress: (text: string) => void,
  signal: AbortSignal,
): Promise<Move[]> {
  const { machine, like, sibling, unlike } = setup;
  const cacheBytes = 2 * machine.mib * MIB; // all three guests fit: none fills more than some half of its memory
  const surveyor = new PageSurveyor();
  const moves: Move[] = [];
  try {
    for (const guests of [[like, sibling, unlike], [unlike]]) {
      // an agent that starts after the cluster has ended would stay
      signal.throwIfAborted();
      const { source, destination } = await startPair(cluster, `${round}-${moves.length}`, cacheBytes);
      surveyor.forget();
      for (const guest of guests) {
        progress(`round ${round}: ${CASES[moves.length]!.name}`);
        await startFleetGuest(source, guest, machine);
        const { report, guest: there } = await moveGuest(source, destination, guest.name);
        moves.push({ report, survey: surveyor.survey(there.files) });
        progress(`  ${oneLine(report)}`);
      }
      await removeGuests([source, destination]);
      await source.stop();
      await destination.stop();
    }
    return moves;
  } finally {
    surveyor.close();
  }
}

function nonZeroBytes({ frames }: MigrationReport, machine: GuestMachine): number {
  return (1 - frames.zero / frames.total) * machine.mib * MIB;
}

function mebibytes(bytes: number): string {
  return `${(bytes / MIB).toFixed(2)} MiB`;
}

/** Every class that has frames. */
function classes(frames: FrameClasses): string {
  const { total, ...rest } = frames;
  const parts = Object.entries(rest).flatMap(([name, count]: [string, number]) =>
    count > 0 ? [`${count} ${name}`] : [],
  );
  return `${total} frames: ${parts.join(', ')}`;
}

function oneLine({ frames, bytes, ms }: MigrationReport): string {
  return `${classes(frames)}; wire ${mebibytes(bytes.wire)}, downtime ${ms.downtime?.toFixed(1)} ms, total ${ms.total.toFixed(0)} ms`;
}

/** Medians over the rounds, field by field: they need not add up to the last digit. */
function middle<T extends object>(each: readonly T[]): T {
  const first = each[0]!;
  return Object.fromEntries(
    Object.keys(first).map((key) => [key, median(each.map((one) => one[key as keyof T] as number))]),
  ) as T;
}

/** Where the bytes of a case went. */
function breakdown(name: string, moves: readonly Move[]): string[] {
  const frames = middle(moves.map(({ report }) => report.frames));
  const bytes = middle(moves.map(({ report }) => report.bytes));
  const faults = median(moves.map(({ report }) => report.faults.count));
  const survey = middle(moves.map(({ survey }) => survey));
  const rest = bytes.wire - bytes.pages - bytes.manifest - bytes.state;
  const shrunk = bytes.raw > 0 ? (bytes.pages / bytes.raw).toFixed(2) : 'none';
  const sentTwice = bytes.raw / TAG_PAGE - frames.source;
  const part = (pages: number, packed: number): string =>
    pages > 0 ? `${pages} (LZ4 ×${(packed / (pages * TAG_PAGE)).toFixed(2)}, ${mebibytes(packed)})` : 'none';
  return [
    `${name}: ${classes(frames)}`,
    `  wire ${mebibytes(bytes.wire)}: pages ${mebibytes(bytes.pages)} (${mebibytes(bytes.raw)} before LZ4, ×${shrunk}; ${faults} faults, whose pages go raw; ${sentTwice} pages sent twice), ` +
      `manifest ${mebibytes(bytes.manifest)}, device state ${mebibytes(bytes.state)}, the rest ${mebibytes(rest)}`,
    `  counted in its memory: ${survey.distinct} different pages; of these the host lacked of the guest's data ${part(survey.missingData, survey.packedData)}, ` +
      `of its kernel ${part(survey.missingOther, survey.packedOther)}`,
  ];
}

/** What stood between a target that was missed and its ratio, measured. */
function explain(target: Target, moves: readonly Move[], machine: GuestMachine): string[] {
  if (target.met !== false || target.target === null) return [];
  const ratio = (bytes: (move: Move) => number): string =>
    median(moves.map((move) => nonZeroBytes(move.report, machine) / bytes(move))).toFixed(2);
  const pages = ratio(({ report }) => report.bytes.pages);
  const packed = ratio(({ survey }) => survey.packedData + survey.packedOther);
  const random = ratio(({ survey }) => survey.missingData * RANDOM_BYTES);
  return [
    `  missed: ${target.ratio.toFixed(2)} instead of ${target.target}. It would be ${pages} with nothing on the wire but these pages, ` +
      `${packed} with each page that the host lacked once and in LZ4 blocks, ${random} with nothing but the random bytes of the guest's data`,
  ];
}

export async function run(options: BenchOptions): ReturnType<BenchModule['run']> {
  const setup = readSetup(options);
  const { machine, like, sibling, unlike } = setup;
  requireQemu();
  const rounds: Move[][] = [];
  await withCluster(async (cluster, signal) => {
    for (let round = 0; round < options.rounds; round++)
      rounds.push(await oneRound(cluster, round, setup, options.progress, signal));
  });

  const targets: Target[] = [];
  const notes = [
    `measured: the guest's memory that is not zero; reference: what the sockets of the migration carried, both ways; ratio: the one by the other`,
    `QEMU guests of ${machine.mib} MiB under TCG, kernel ${machine.randomized ? 'at a random address' : 'at a fixed address'}; ${like.load.rewritten} pages rewritten before the migration, ` +
      `${like.load.rate} a second (like), ${sibling.load.rate} (sibling, unlike), also during it; half of each data page is random, half one word over and over`,
  ];
  for (const [at, { name, target }] of CASES.entries()) {
    const moves = rounds.map((round) => round[at]!);
    const pairs = moves.map(({ report }) => ({
      value: nonZeroBytes(report, machine) / MIB,
      baseline: report.bytes.wire / MIB,
    }));
    const judged = judge(name, 'MiB', pairs, { target, direction: 'at-least' });
    targets.push(judged);
    notes.push(...breakdown(name, moves), ...explain(judged, moves, machine));
  }
  return { targets, notes, raw: { setup: { machine, like, sibling, unlike }, rounds } };
}
