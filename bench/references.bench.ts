/**
 * The reference programs alone: what a fault, a miss and a fill cost on this machine, for each way of waiting. Its
 * ratios compare waiting policies with each other and have no target; it shows whether a machine is quiet enough, and
 * what the other benches' baselines will be.
 */
import { availableParallelism } from 'node:os';
import { alternate } from './lib/alternate.ts';
import { makeSlots, startFillHandler, startHitHandler, startMissHandler, type Slots } from './lib/references.ts';
import { checkSettings, setting } from './lib/settings.ts';
import { withScope, type Scope } from './lib/scope.ts';
import { judge, median } from './lib/statistics.ts';
import { startToucher, type TouchFigures } from './lib/toucher.ts';
import type { BenchModule, BenchOptions, Target } from './lib/types.ts';

export const description = 'The C reference programs alone: hit, miss and fill by waiting policy. No Pagetide in it.';

type Kind = 'hit' | 'miss';

/** One guest's life: touch some frames unmeasured, then `count`, then compare every byte of them. */
async function touchRun(
  kind: Kind,
  slots: Slots,
  count: number,
  { spinUs, gapUs, apart }: { spinUs: number; gapUs: number; apart: boolean },
): Promise<TouchFigures> {
  return withScope(async (scope: Scope) => {
    // apart: guest and pager on CPUs of their own, so that a spinning pager takes nothing from its guest
    const pagerCpus = apart ? [1] : [0];
    const { program, socket } =
      kind === 'hit'
        ? await startHitHandler(scope, slots, { spinUs, cpus: pagerCpus })
        : await startMissHandler(scope, slots, {
            spinUs,
            answerSpinUs: spinUs,
            serverSpinUs: spinUs,
            cpus: pagerCpus,
            serverCpus: [0],
          });
    const toucher = await startToucher(scope, { socket, frames: slots.frames, seed: slots.seed, cpus: [0] });
    await toucher.touch({ count: Math.ceil(count / 10), gapUs });
    const figures = await toucher.touch({ count, gapUs });
    await toucher.verify();
    await toucher.quit();
    await program.next('done');
    return figures;
  });
}

async function fillRun(slots: Slots): Promise<{ mibPerS: number; seenMibPerS: number }> {
  return withScope(async (scope) => {
    const handler = await startFillHandler(scope, slots);
    const toucher = await startToucher(scope, { socket: handler.socket, frames: slots.frames, seed: slots.seed });
    const [seen, figures] = await Promise.all([toucher.waitPresent(), handler.fill()]);
    await toucher.verify(true);
    await toucher.quit();
    const mib = (slots.frames * 4096) / 2 ** 20;
    return { mibPerS: figures.mibPerS, seenMibPerS: mib / ((seen.endNs - figures.startNs) / 1e9) };
  });
}

export async function run(options: BenchOptions): ReturnType<BenchModule['run']> {
  checkSettings(options, ['frames', 'touches', 'apart']);
  const frames = setting(options, 'frames', 16384, 64);
  const count = setting(options, 'touches', Math.floor(frames / 4));
  // 1: guest and pager on CPUs of their own; 0: both on one
  const apart = availableParallelism() > 1 && setting(options, 'apart', 1, 0) > 0;
  return withScope(async (scope) => {
    const slots = await makeSlots(scope, frames);
    const targets: Target[] = [];
    const raw: Record<string, unknown> = {};
    const notes: string[] = [];
    for (const kind of ['hit', 'miss'] as const) {
      for (const gapUs of [0, 100]) {
        for (const spinUs of [20, 50]) {
          const name = `${kind}, gap ${gapUs} µs, spin ${spinUs} against 0 µs`;
          options.progress(name);
          const pairs = await alternate({
            rounds: options.rounds,
            a: () => touchRun(kind, slots, count, { spinUs, gapUs, apart }),
            b: () => touchRun(kind, slots, count, { spinUs: 0, gapUs, apart }),
          });
          raw[name] = pairs;
          for (const at of ['p50Ns', 'p99Ns'] as const) {
            const goal = { target: null, direction: 'at-most' } as const;
            const figures = pairs.map(({ a, b }) => ({ value: a[at], baseline: b[at] }));
            targets.push(judge(`${name}, ${at.slice(0, 3)}`, 'ns', figures, goal));
          }
        }
      }
    }
    options.progress('fill');
    const fills = (
      await alternate({ rounds: options.rounds, a: () => fillRun(slots), b: () => Promise.resolve() })
    ).map(({ a }) => a);
    raw.fill = fills;
    notes.push(
      apart ? 'guest on CPU 0, pager on CPU 1, page server on CPU 0' : 'guest, pager and page server on CPU 0',
    );
    notes.push(`fill: ${median(fills.map((fill) => fill.mibPerS)).toFixed(0)} MiB/s, one page a copy, scattered slots`);
    return { targets, raw, notes };
  });
}
