/** What a fault costs that the source answers, over one TCP connection on loopback: against the C client and server. */
import { availableParallelism } from 'node:os';
import { alternate } from './lib/alternate.ts';
import { startMissPager } from './lib/pagetide.ts';
import { makeSlots, startMissHandler, warmMemory, type Slots } from './lib/references.ts';
import { withScope } from './lib/scope.ts';
import { checkSettings, setting } from './lib/settings.ts';
import { judge } from './lib/statistics.ts';
import { startToucher, type TouchFigures } from './lib/toucher.ts';
import type { BenchModule, BenchOptions, Target } from './lib/types.ts';

export const description = 'A fault answered by the source over loopback TCP, against the C client and server.';

interface Case {
  spinUs: number;
  gapUs: number;
  count: number;
  threads: number;
  apart: boolean;
}

async function touchRun(side: 'pagetide' | 'reference', slots: Slots, one: Case): Promise<TouchFigures> {
  return withScope(async (scope) => {
    const { spinUs, gapUs, count, threads, apart } = one;
    // Beside the pager, not the guest, whose busy gaps would keep it from running; the two take turns anyway.
    // Neither page server spins, nor does the C client for its answer: Pagetide's wait in their event loops.
    const place = { spinUs, cpus: apart ? [1] : [0], serverCpus: apart ? [1] : [0] };
    const { program, socket } =
      side === 'pagetide' ? await startMissPager(scope, slots, place) : await startMissHandler(scope, slots, place);
    const toucher = await startToucher(scope, { socket, frames: slots.frames, seed: slots.seed, cpus: [0] });
    if (side === 'pagetide') await program.next('attached');
    await warmMemory(scope, slots.frames, place.cpus);
    // as many again before: a program that compiles itself as it runs is not yet what it will be for a guest's whole memory
    await toucher.touch({ count, gapUs, threads });
    const figures = await toucher.touch({ count, gapUs, threads });
    await toucher.verify();
    await toucher.quit();
    return figures;
  });
}

export async function run(options: BenchOptions): ReturnType<BenchModule['run']> {
  checkSettings(options, ['frames', 'touches', 'spin', 'apart']);
  const frames = setting(options, 'frames', 65536, 64);
  const count = setting(options, 'touches', Math.floor(frames / 4));
  const spinUs = setting(options, 'spin', 20, 0);
  const apart = availableParallelism() > 1 && setting(options, 'apart', 1, 0) > 0;
  return withScope(async (scope) => {
    const slots = await makeSlots(scope, frames);
    const targets: Target[] = [];
    const raw: Record<string, unknown> = {};
    const cases: [string, number, number][] = [
      ['burst', 0, 1],
      ['isolated', 200, 1],
      ['4 threads', 0, 4],
    ];
    for (const [name, gapUs, threads] of cases) {
      options.progress(`miss, ${name}`);
      const one: Case = { spinUs, gapUs, count, threads, apart };
      const pairs = await alternate({
        rounds: options.rounds,
        a: () => touchRun('pagetide', slots, one),
        b: () => touchRun('reference', slots, one),
      });
      raw[name] = pairs;
      for (const at of ['p50Ns', 'p99Ns'] as const) {
        const target = name === 'burst' && at === 'p50Ns' ? 1.5 : null;
        const figures = pairs.map(({ a, b }) => ({ value: a[at], baseline: b[at] }));
        targets.push(judge(`miss ${name} ${at.slice(0, 3)}`, 'ns', figures, { target, direction: 'at-most' }));
      }
    }
    const where = apart ? 'guest on CPU 0, pager and page server on CPU 1' : 'all on CPU 0';
    return {
      targets,
      raw,
      notes: [`${where}; both pagers spin ${spinUs} µs for the next fault, nobody spins on a socket`],
    };
  });
}
