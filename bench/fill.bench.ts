/** How fast a guest is filled from local slots: Pagetide's fill worker against one C thread, from the same slots. */
import { alternate } from './lib/alternate.ts';
import { startPager } from './lib/pagetide.ts';
import { makeSlots, startFillHandler, warmMemory, type Slots } from './lib/references.ts';
import { withScope } from './lib/scope.ts';
import { checkSettings, setting } from './lib/settings.ts';
import { judge } from './lib/statistics.ts';
import { startToucher } from './lib/toucher.ts';
import type { BenchModule, BenchOptions } from './lib/types.ts';

export const description =
  'Filling a guest from local slots, MiB/s, against one C thread from the same scattered slots.';

/** MiB/s, by the one observer of both sides: the guest, which sees its last frame appear. */
async function fillRun(side: 'pagetide' | 'reference', slots: Slots): Promise<number> {
  return withScope(async (scope) => {
    const reference = side === 'reference' ? await startFillHandler(scope, slots, { cpus: [1] }) : undefined;
    const handler = reference ?? (await startPager(scope, { kind: 'slots', ...slots }, { spinUs: 0, cpus: [1] }));
    const toucher = await startToucher(scope, {
      socket: handler.socket,
      frames: slots.frames,
      seed: slots.seed,
      cpus: [0],
    });
    if (reference === undefined) await handler.program.next('attached');
    await warmMemory(scope, slots.frames, [1]);
    const present = toucher.waitPresent();
    const startNs = Number(process.hrtime.bigint());
    if (reference === undefined) handler.program.write('fill');
    else await reference.fill();
    const { endNs } = await present;
    await toucher.verify(true);
    await toucher.quit();
    return (slots.frames * 4096) / 2 ** 20 / ((endNs - startNs) / 1e9);
  });
}

export async function run(options: BenchOptions): ReturnType<BenchModule['run']> {
  checkSettings(options, ['frames']);
  const frames = setting(options, 'frames', 65536, 64);
  return withScope(async (scope) => {
    const slots = await makeSlots(scope, frames);
    options.progress('fill');
    const pairs = await alternate({
      rounds: options.rounds,
      a: () => fillRun('pagetide', slots),
      b: () => fillRun('reference', slots),
    });
    const figures = pairs.map(({ a, b }) => ({ value: a, baseline: b }));
    const targets = [judge('fill from local slots', 'MiB/s', figures, { target: 0.8, direction: 'at-least' })];
    return {
      targets,
      raw: pairs,
      notes: ['guest on CPU 0, pager on CPU 1; from the order to fill to the last frame present'],
    };
  });
}
