/** The toucher: the guest's process in benches of faults, misses and fill (bench/reference/toucher.c). */
import { join } from 'node:path';
import { buildReferences, pinned, type Cpus } from './references.ts';
import { PagetideError } from '../../src/errors.ts';
import type { Program, ProgramEvent, Scope } from './scope.ts';

export interface ToucherOptions {
  /** Socket of a pager that listens: a handler of ours, or Pagetide's. */
  socket: string;
  frames: number;
  /** Seed of the content that it expects: that of the slots. */
  seed: number;
  /** Memory is a new file on tmpfs instead of private and anonymous. */
  shared?: boolean;
  cpus?: Cpus;
}

export interface TouchOptions {
  count: number;
  order?: 'random' | 'sequential';
  /** Of the order. */
  seed?: number;
  threads?: number;
  /** Busy time before each touch, microseconds: more than the pager spins makes every fault wake it from sleep. */
  gapUs?: number;
  /** New file that gets every sample: u32 nanoseconds. */
  samples?: string;
}

/** What one `touch` measured; times in nanoseconds, from before the load to after it in the touching thread. */
export interface TouchFigures {
  count: number;
  threads: number;
  faulted: number;
  minNs: number;
  p50Ns: number;
  p90Ns: number;
  p99Ns: number;
  p999Ns: number;
  maxNs: number;
  meanNs: number;
  totalNs: number;
}

export interface Toucher {
  readonly pid: number;
  /**
   * Touches the next `count` frames never touched before.
   * @throws PT_FOREIGN_PAGE when a page was wrong; PT_IO when not every touch was a fault, unless `anyFaults`
   */
  touch: (options: TouchOptions, anyFaults?: boolean) => Promise<TouchFigures>;
  /** Waits until every frame is present, touching none; nanoseconds by CLOCK_MONOTONIC. */
  waitPresent: () => Promise<{ startNs: number; endNs: number; ns: number }>;
  /** Compares every byte of the frames touched so far (or of `all`); throws PT_FOREIGN_PAGE when one is wrong. */
  verify: (all?: boolean) => Promise<number>;
  quit: () => Promise<void>;
  /** The program itself, e.g. to kill it in the middle. */
  readonly program: Program;
}

/** Starts a toucher, which has handed its userfaultfd over when this resolves. */
export async function startToucher(scope: Scope, options: ToucherOptions): Promise<Toucher> {
  const shared = options.shared ? ['--shared', scope.path('guest-memory')] : [];
  const bytes = String(options.frames * 4096);
  const args = ['--handover', options.socket, '--bytes', bytes, '--seed', String(options.seed), ...shared];
  const program = scope.start(...pinned(options.cpus, join(buildReferences(), 'toucher'), args));
  await program.next('ready');

  return {
    pid: program.pid,
    program,
    async touch({ count, order = 'random', seed = 1, threads = 1, gapUs = 0, samples }, anyFaults = false) {
      const file = samples === undefined ? '' : ` samples=${samples}`;
      program.write(`touch count=${count} order=${order} seed=${seed} threads=${threads} gap-us=${gapUs}${file}`);
      const figures = (await program.next('touched', 300_000)) as ProgramEvent & TouchFigures & { wrong: number };
      if (figures.wrong > 0)
        throw new PagetideError('PT_FOREIGN_PAGE', `${figures.wrong} of ${count} pages were wrong`);
      // fewer: frames were present already; a few more: the kernel counts a fault that it had to try again
      if (!anyFaults && figures.faulted < count) {
        throw new PagetideError('PT_IO', `only ${figures.faulted} of ${count} touches were faults`, {
          hint: 'Something filled the guest while it was measured.',
        });
      }
      return figures;
    },
    async waitPresent() {
      program.write('wait-present timeout-ms=120000');
      return (await program.next('present', 130_000)) as ProgramEvent & { startNs: number; endNs: number; ns: number };
    },
    async verify(all = false) {
      program.write(`verify all=${all ? 1 : 0}`);
      type Verified = ProgramEvent & { checked: number; wrong: number; firstWrong: number };
      const { checked, wrong, firstWrong } = (await program.next('verified', 300_000)) as Verified;
      if (wrong > 0) {
        throw new PagetideError(
          'PT_FOREIGN_PAGE',
          `${wrong} of ${checked} pages are wrong, the first is ${firstWrong}`,
        );
      }
      return checked;
    },
    async quit() {
      program.write('quit');
      await program.exited();
    },
  };
}
