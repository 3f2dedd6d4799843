/** What the plots of the experiment show. */
import { COLOURS, type TopLevelSpec } from '../plots.ts';
import { NATIVE_METHODS } from '../qemu-native.ts';
import { ARMS, type Arm, type Experiment, type OwnMove, type Point, type Windows } from './types.ts';

const MIB = 2 ** 20;
const WIDTH = 640;
/** Points that a line over the whole experiment has at most: a window each would make files of megabytes. */
const MOST_POINTS = 2000;

const ARM_NAMES: Record<Arm, string> = {
  nothing: 'nothing brought',
  prepared: 'prepared',
  planned: 'prepared, with a plan',
};

interface Bar {
  method: string;
  kind: string;
  value: number;
}

/** A bar a move; {@link bars} shows the median and each round's. */
function barsOf(
  { own, native }: Experiment,
  ours: (move: OwnMove) => number,
  theirs: (move: Experiment['native'][number]) => number,
): Bar[] {
  return [
    ...native.map((move) => ({ method: `QEMU ${move.method}`, kind: 'like', value: theirs(move) })),
    ...own.map((move) => ({
      method: `${move.report.mode}, ${ARM_NAMES[move.arm]}`,
      kind: move.kind,
      value: ours(move),
    })),
  ];
}

/** QEMU's first, then by mode; the arms from nothing on. */
const ORDER = [
  ...NATIVE_METHODS.map((method) => `QEMU ${method}`),
  ...['pre-copy', 'post-copy'].flatMap((mode) => ARMS.map((arm) => `${mode}, ${ARM_NAMES[arm]}`)),
];

function bars(title: string, axis: string, values: Bar[]): TopLevelSpec {
  const y = { field: 'method', type: 'nominal' as const, sort: ORDER, title: null, axis: { labelLimit: 400 } };
  return {
    width: WIDTH,
    height: { step: 26 },
    title: { text: title, subtitle: 'bar: median; points: each move' },
    data: { values },
    facet: { row: { field: 'kind', type: 'nominal', title: null, header: { labelExpr: "datum.value + ' guests'" } } },
    resolve: { scale: { y: 'independent' } },
    spec: {
      width: WIDTH,
      height: { step: 26 },
      layer: [
        {
          mark: { type: 'bar', color: COLOURS[0]! },
          encoding: { y, x: { aggregate: 'median', field: 'value', type: 'quantitative', title: axis } },
        },
        {
          mark: { type: 'point', color: '#222', size: 24, filled: true, opacity: 0.7 },
          encoding: { y, x: { field: 'value', type: 'quantitative', title: axis } },
        },
      ],
    },
  };
}

/** The most of each so many windows, so that peaks stay. Seconds, and MB/s. */
function thin({ busiest, windowMs }: Windows): { s: number; rate: number }[] {
  const step = Math.max(1, Math.ceil(busiest.length / MOST_POINTS));
  const points: { s: number; rate: number }[] = [];
  for (let i = 0; i < busiest.length; i += step)
    points.push({
      s: (i * windowMs) / 1000,
      rate: (Math.max(...busiest.slice(i, i + step)) * 1000) / windowMs / 1e6,
    });
  return points;
}

function network({ windows, marks, setup }: Experiment): TopLevelSpec {
  const began = marks[0]!.fromMs;
  const phases = marks.map(({ name, fromMs, toMs }) => ({
    phase: name.replace(/,.*/, ''),
    from: (fromMs - began) / 1000,
    to: (toMs - began) / 1000,
  }));
  const y = {
    field: 'rate',
    type: 'quantitative' as const,
    title: 'MB/s in 100 ms, busiest link',
    scale: { type: 'symlog' as const },
  };
  return {
    width: 960,
    height: 280,
    title: {
      text: 'Use of the network over the whole experiment',
      subtitle:
        'each point: the most that a host received in any 100 ms of its time; dashed: the peak that distribution may take',
    },
    layer: [
      {
        data: { values: phases },
        mark: { type: 'rect', opacity: 0.25 },
        encoding: {
          x: { field: 'from', type: 'quantitative' },
          x2: { field: 'to' },
          color: { field: 'phase', type: 'nominal', title: null, sort: null, scale: { scheme: 'tableau10' } },
        },
      },
      {
        data: { values: thin(windows) },
        mark: { type: 'line', strokeWidth: 1, color: '#222' },
        encoding: { x: { field: 's', type: 'quantitative', title: 'seconds' }, y },
      },
      {
        data: { values: [{ rate: setup.peak / 1e6 }] },
        mark: { type: 'rule', strokeDash: [6, 4], color: '#d55e00', strokeWidth: 1.5 },
        encoding: { y },
      },
    ],
  };
}

function sweep(title: string, x: string, points: readonly Point[], scale: number): TopLevelSpec {
  const values = points.map(({ at, move }) => ({ at: at * scale, mib: move.linkBytes / MIB }));
  const encoding = {
    x: { field: 'at', type: 'quantitative' as const, title: x },
    y: {
      field: 'mib',
      type: 'quantitative' as const,
      title: 'MiB on the wire of the migration',
      scale: { zero: true },
    },
  };
  const mean = { ...encoding, y: { ...encoding.y, aggregate: 'median' as const } };
  return {
    width: WIDTH,
    height: 280,
    title,
    data: { values },
    layer: [
      { mark: { type: 'line', color: COLOURS[0]! }, encoding: mean },
      { mark: { type: 'point', color: COLOURS[0]!, filled: true, size: 40 }, encoding },
    ],
  };
}

/** By the name of the file. Those that have no figures are left out. */
export function plotsOf(experiment: Experiment): Record<string, TopLevelSpec> {
  const plots: Record<string, TopLevelSpec> = {};
  const { own, budget, fade, marks } = experiment;
  if (own.length > 0) {
    plots['bytes'] = bars(
      'Bytes of one migration',
      'MiB at the interfaces',
      barsOf(
        experiment,
        ({ linkBytes }) => linkBytes / MIB,
        ({ linkBytes }) => linkBytes / MIB,
      ),
    );
    plots['time'] = bars(
      'Total time of one migration',
      'seconds',
      barsOf(
        experiment,
        ({ report }) => report.ms.total / 1000,
        ({ totalMs }) => totalMs / 1000,
      ),
    );
    // what the guest notices of it
    plots['downtime'] = bars(
      'Downtime of one migration',
      'milliseconds from STOP to RESUME',
      barsOf(
        experiment,
        ({ report }) => report.ms.downtime ?? NaN,
        ({ downtimeMs }) => downtimeMs,
      ),
    );
    plots['gap'] = bars(
      'Longest silence of the guest’s heartbeat',
      'milliseconds',
      barsOf(
        experiment,
        ({ report }) => report.longestGapMs ?? NaN,
        ({ longestGapMs }) => longestGapMs ?? NaN,
      ),
    );
  }
  if (marks.length > 0) plots['network'] = network(experiment);
  if (budget.length > 0)
    plots['budget'] = sweep('Benefit over the budget', '% of the bytes that are brought without a limit', budget, 100);
  if (fade.length > 0)
    plots['fade'] = sweep('Benefit after the last pass', 'minutes since distribution stood still', fade, 1);
  return plots;
}
