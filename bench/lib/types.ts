/** What a bench is given, and what it gives back. */

export interface BenchOptions {
  /** Rounds that count: both arms run once in each. */
  rounds: number;
  /** True: the result goes to stdout as one line of JSON; keep everything else off stdout. */
  json: boolean;
  /** `--set name=value` of the command line: a bench's own knobs, e.g. `frames`. See {@link setting}. */
  settings: ReadonlyMap<string, string>;
  /** Says what is going on (to stderr). */
  progress: (text: string) => void;
}

export interface Machine {
  cpu: string;
  cores: number;
  memoryMiB: number;
  kernel: string;
  node: string;
  /** Policy for transparent huge pages: `always`, `madvise` or `never`; `unknown` where the kernel does not say. */
  transparentHugePages: string;
  /** 1-minute load average when the bench began: anything near `cores` spoils the figures. */
  loadBefore: number;
}

/** Which way a target is met. */
export type Direction = 'at-most' | 'at-least';

/** One figure against its baseline, both measured in the same run. */
export interface Target {
  name: string;
  /** Median over rounds of what is measured. */
  value: number;
  /** Median over rounds of what it is measured against. */
  baseline: number;
  /** Median over rounds of value ÷ baseline of the same round (not the ratio of the two medians). */
  ratio: number;
  /** What the ratio should be; `null` where there is no target and the figure is for information. */
  target: number | null;
  direction: Direction;
  met: boolean | null;
  /** Of value and baseline, e.g. `ns`, `MiB/s`. */
  unit: string;
  /** Smallest and largest ratio of a round, and a 95% bootstrap interval of the median. */
  spread: { min: number; max: number; low: number; high: number };
}

export interface BenchResult {
  bench: string;
  machine: Machine;
  targets: Target[];
  /** What a reader has to know: breakdowns, where the time goes, what was tried. */
  notes: string[];
  /** Every round's figures, as measured. */
  raw: unknown;
}

/** What a file `bench/<name>.bench.ts` exports. */
export interface BenchModule {
  /** One line for the list. */
  description: string;
  run: (options: BenchOptions) => Promise<Pick<BenchResult, 'targets' | 'raw'> & { notes?: string[] }>;
  /** Draws plots of `raw` into files whose paths begin with `stem`; resolves to the paths. */
  draw?: (raw: unknown, stem: string) => Promise<string[]>;
}
