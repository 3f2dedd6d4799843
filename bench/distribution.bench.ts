/**
 * Does bringing pages ahead pay: three hosts on links of 1 Gbit/s, seven guests with paced loads, each moved when nothing was brought, after
 * distribution has run, and after it has run knowing who comes where; beside it QEMU's own migration of a guest like them.
 */
import { PagetideError } from '../src/errors.ts';
import { cannotLoad } from '../test/support/load-guest.ts';
import { GIGABIT, runExperiment } from './lib/distribution/experiment.ts';
import { plotsOf } from './lib/distribution/plots.ts';
import { notesOf, targetsOf } from './lib/distribution/tables.ts';
import { ARMS, type Experiment, type Setup } from './lib/distribution/types.ts';
import { writePlots } from './lib/plots.ts';
import { checkSettings, setting } from './lib/settings.ts';
import { requireQemu } from './lib/sharing-fleet.ts';
import type { BenchModule, BenchOptions } from './lib/types.ts';

export const description = 'Migrations to hosts that pages were brought to, beside nothing brought and QEMU’s own.';

const MIB = 2 ** 20;
const BUDGETS = [0, 0.25, 0.5, 0.75, 1];
/** Minutes. */
const FADES = [0, 2, 4, 8];

export function readSetup(options: BenchOptions): Setup {
  checkSettings(options, [
    'small',
    'mib',
    'rate',
    'own',
    'mbit',
    'cache',
    'average',
    'peak',
    'most',
    'minutes',
    'budget',
    'fade',
    'native',
    'arms',
    'movers',
    'offload',
  ]);
  const flag = (name: string, otherwise: boolean): boolean => setting(options, name, otherwise ? 1 : 0, 0) !== 0;
  const small = flag('small', false);
  const arms = setting(options, 'arms', ARMS.length);
  const mib = setting(options, 'mib', small ? 32 : 512, 4);
  const average = setting(options, 'average', small ? 4_000_000 : 8_000_000, 1000);
  const fade = setting(options, 'fade', small || arms === 1 ? 0 : 4, 0);
  return {
    small,
    // 1: only without distribution
    arms: ARMS.slice(0, arms),
    mib,
    rate: setting(options, 'rate', 20, 1),
    own: setting(options, 'own', 10, 1),
    link: options.settings.has('mbit') ? setting(options, 'mbit', 1000) * 1e6 : GIGABIT,
    // half of it may be filled with pages that were brought
    cache: setting(options, 'cache', small ? 8 * mib : 2048, 16) * MIB,
    average,
    peak: setting(options, 'peak', 2 * average, 1000),
    allMs: setting(options, 'minutes', 1440) * 60_000,
    mostMs: setting(options, 'most', 300) * 1000,
    budgets: flag('budget', !small && arms > 1) ? BUDGETS : [],
    fades: fade === 0 ? [] : FADES.filter((minutes) => minutes <= fade),
    native: flag('native', !small),
    movers: setting(options, 'movers', small ? 1 : 2),
    offload: flag('offload', !small),
  };
}

export async function run(options: BenchOptions): ReturnType<BenchModule['run']> {
  const setup = readSetup(options);
  if (!setup.small) {
    requireQemu();
    const reason = cannotLoad();
    if (reason !== false) throw new PagetideError('PT_UNSUPPORTED_HOST', reason);
  }
  const experiment = await runExperiment(setup, options.rounds, options.progress);
  return { targets: targetsOf(experiment), notes: notesOf(experiment), raw: experiment };
}

/** @param raw as {@link run} gives it, or as its file has it */
export function draw(raw: unknown, stem: string): Promise<string[]> {
  return writePlots(stem, plotsOf(raw as Experiment));
}
