/** The experiment's figures: against QEMU's own, against nothing brought, and what a reader has to know. */
import { NATIVE_METHODS, type NativeMethod } from '../qemu-native.ts';
import { judge, median, type Pair } from '../statistics.ts';
import type { Target } from '../types.ts';
import { describePass } from './stage.ts';
import {
  ARMS,
  KINDS,
  MODES,
  type Arm,
  type Experiment,
  type Kind,
  type MovingMode,
  type OtherMove,
  type OwnMove,
} from './types.ts';

const MIB = 2 ** 20;
/** Against QEMU's own of the same like guest. */
const BYTES_TARGET = 1 / 12;
const TIME_TARGET = 1 / 5;
/** Which of QEMU's own a mode is held against. */
const COUNTERPART: Record<MovingMode, NativeMethod> = { 'pre-copy': 'pre-copy', 'post-copy': 'post-copy' };

const sum = (numbers: readonly number[]): number => numbers.reduce((a, b) => a + b, 0);

const agentsMs = ({ cpu }: Pick<OwnMove, 'cpu'>): number =>
  sum(Object.entries(cpu.spentMs).flatMap(([who, ms]) => (who === 'guests' ? [] : [ms])));

/** Of those that are not zero, percent. */
const foundShare = ({ report: { frames } }: OwnMove): number =>
  (100 * (frames.cache + frames.resident)) / Math.max(1, frames.total - frames.zero);

/** Moves of one kind of guest by one mode in one arm, in rounds. */
function roundsOf({ own }: Experiment, arm: Arm, kind: Kind, mode: MovingMode): OwnMove[][] {
  const picked = own.filter((move) => move.arm === arm && move.kind === kind && move.report.mode === mode);
  return [...new Set(picked.map(({ round }) => round))].map((round) => picked.filter((move) => move.round === round));
}

function pairs(
  ours: readonly OwnMove[][],
  theirs: (round: number) => number | undefined,
  figure: (move: OwnMove) => number,
): Pair[] {
  return ours.flatMap((moves) => {
    const baseline = theirs(moves[0]!.round);
    return baseline === undefined ? [] : [{ value: median(moves.map(figure)), baseline }];
  });
}

export function targetsOf(experiment: Experiment): Target[] {
  const targets: Target[] = [];
  const add = (name: string, unit: string, of: Pair[], target: number | null = null): void => {
    if (of.length > 0) targets.push(judge(name, unit, of, { target, direction: 'at-most' }));
  };
  const native = (method: NativeMethod, figure: (move: OtherMove) => number) => (round: number) =>
    experiment.native.filter((move) => move.method === method && move.round === round).map(figure)[0];
  for (const arm of ARMS) {
    for (const mode of MODES) {
      const like = roundsOf(experiment, arm, 'like', mode);
      const name = `like guest, ${mode}, ${arm}`;
      const judged = arm !== 'nothing';
      const other = COUNTERPART[mode];
      add(
        `${name}: bytes, QEMU`,
        'MiB',
        pairs(
          like,
          native(other, ({ linkBytes }) => linkBytes / MIB),
          ({ linkBytes }) => linkBytes / MIB,
        ),
        judged ? BYTES_TARGET : null,
      );
      add(
        `${name}: time, QEMU`,
        'ms',
        pairs(
          like,
          native(other, ({ totalMs }) => totalMs),
          ({ report }) => report.ms.total,
        ),
        judged ? TIME_TARGET : null,
      );
      add(
        `${name}: downtime, QEMU`,
        'ms',
        pairs(
          like,
          native(other, ({ downtimeMs }) => downtimeMs),
          ({ report }) => report.ms.downtime ?? NaN,
        ),
      );
      if (!judged) continue;
      for (const kind of KINDS) {
        const cold = roundsOf(experiment, 'nothing', kind, mode);
        const of = (figure: (move: OwnMove) => number) => (round: number) => {
          const moves = cold.find((one) => one[0]!.round === round);
          return moves === undefined ? undefined : median(moves.map(figure));
        };
        const bytes = ({ linkBytes }: OwnMove): number => linkBytes / MIB;
        const time = ({ report }: OwnMove): number => report.ms.total;
        const ours = roundsOf(experiment, arm, kind, mode);
        add(`${kind} guest, ${mode}, ${arm}: bytes, nothing`, 'MiB', pairs(ours, of(bytes), bytes));
        add(`${kind} guest, ${mode}, ${arm}: time, nothing`, 'ms', pairs(ours, of(time), time));
      }
    }
  }
  const { peak } = experiment.setup;
  const peaks = experiment.passes.map(({ peakIn, peakOut }) => ({
    value: (Math.max(...peakIn, ...peakOut) * 10) / MIB,
    baseline: peak / MIB,
  }));
  add('peak of 100 ms while distributing', 'MiB/s', peaks, 1);
  const all = experiment.passes.map(({ allIn, allOut }) => ({
    value: (Math.max(...allIn, ...allOut) * 10) / MIB,
    baseline: peak / MIB,
  }));
  add('the same with all else that agents say', 'MiB/s', all, 1);
  return targets;
}

export function notesOf(experiment: Experiment): string[] {
  const { setup, passes, marks, native, own, score, budget, fade } = experiment;
  const worst = Math.max(0, ...passes.flatMap(({ peakIn, peakOut }) => [...peakIn, ...peakOut])) * 10;
  const worstAll = Math.max(0, ...passes.flatMap(({ allIn, allOut }) => [...allIn, ...allOut])) * 10;
  const notes = [
    ...(experiment.incomplete === null ? [] : [`not complete: ${experiment.incomplete}`]),
    `bytes: at the interfaces of both hosts, headers included; links of ${(setup.link / 1e9).toFixed(1)} Gbit/s each way; like guests of ${setup.mib} MiB, ${setup.rate} operations/s`,
    `distribution: ${(setup.average / 1e6).toFixed(1)} MB/s, peak ${(setup.peak / 1e6).toFixed(1)} MB/s; the worst 100 ms of any pass and host, one way: ${(worst / 1e6).toFixed(2)} MB/s, with all other frames ${(worstAll / 1e6).toFixed(2)} MB/s`,
    `score: ${(score.savedBytes / MIB).toFixed(1)} MiB saved, ${(score.spentBytes / MIB).toFixed(1)} MiB spent: ${score.spentBytes > 0 ? (score.savedBytes / score.spentBytes).toFixed(2) : 'nothing spent'}; ${score.servedPages} pages served, ${score.wrongPages} wrong`,
    ...passes
      .filter(({ arm }) => arm !== 'sweep')
      .map((pass) => `pass: ${describePass(pass)}, ${(pass.linkBytes / MIB).toFixed(1)} MiB sent`),
  ];
  for (const arm of ARMS) {
    for (const mode of MODES) {
      for (const kind of KINDS) {
        const moves = own.filter((one) => one.arm === arm && one.kind === kind && one.report.mode === mode);
        if (moves.length === 0) continue;
        const of = (figure: (move: OwnMove) => number, digits = 0): string => median(moves.map(figure)).toFixed(digits);
        notes.push(
          `${kind}, ${mode}, ${arm}: ${of(({ linkBytes }) => linkBytes / MIB, 2)} MiB, ${of(({ report }) => report.ms.total)} ms (${of(({ report }) => report.ms.prepare ?? NaN)} until the switch), downtime ${of(({ report }) => report.ms.downtime ?? NaN, 1)} ms, ` +
            `longest gap ${of(({ report }) => report.longestGapMs ?? 0)} ms, ${of(({ report }) => report.faults.count)} faults, p99 ${of(({ report }) => report.faults.p99Us)} µs; ` +
            `${of(foundShare)}% of its frames were there, agents spent ${of(agentsMs)} ms of CPU; ` +
            `${moves.filter(({ cpu }) => cpu.saturated).length} of ${moves.length} on a saturated machine`,
        );
      }
    }
  }
  for (const method of NATIVE_METHODS) {
    const moves = native.filter((one) => one.method === method);
    if (moves.length === 0) continue;
    const of = (figure: (move: OtherMove) => number, digits = 0): string => median(moves.map(figure)).toFixed(digits);
    notes.push(
      `QEMU, ${method}: ${of(({ linkBytes }) => linkBytes / MIB, 2)} MiB, ${of(({ totalMs }) => totalMs)} ms, downtime ${of(({ downtimeMs }) => downtimeMs, 1)} ms, ` +
        `longest gap ${of(({ longestGapMs }) => longestGapMs ?? 0)} ms; ${moves.filter(({ sound }) => !sound).length} of ${moves.length} guests damaged; ` +
        `${moves.filter(({ cpu }) => cpu.saturated).length} on a saturated machine`,
    );
  }
  for (const { at, heldBytes, move } of budget)
    notes.push(
      `budget ${(at * 100).toFixed(0)}%: ${(heldBytes / MIB).toFixed(1)} MiB held, ${(move.linkBytes / MIB).toFixed(2)} MiB sent`,
    );
  for (const { at, move } of fade)
    notes.push(`${at} min after the last pass: ${(move.linkBytes / MIB).toFixed(2)} MiB sent`);
  for (const { name, cpu } of marks) {
    const agents = agentsMs({ cpu });
    notes.push(
      `${name}: ${(cpu.ms / 1000).toFixed(0)} s; agents ${((100 * agents) / cpu.ms).toFixed(1)}% of a core, guests ${((100 * (cpu.spentMs['guests'] ?? 0)) / cpu.ms).toFixed(1)}%, machine ${(100 * cpu.idle).toFixed(0)}% idle${cpu.saturated ? ': saturated' : ''}`,
    );
  }
  return notes;
}
