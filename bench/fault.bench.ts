/**
 * What a fault costs that local memory answers: Pagetide's fault worker against the C handler, for one, four and sixteen
 * guests that fault at once, and what a 4 GiB guest costs the pager in memory.
 */
import { availableParallelism } from 'node:os';
import { truncateSync, writeFileSync } from 'node:fs';
import { alternate } from './lib/alternate.ts';
import { startPager } from './lib/pagetide.ts';
import type { PagerSource } from './lib/pagetide-pager.ts';
import { makeSlots, startHitHandler, warmMemory, type Handler, type Slots } from './lib/references.ts';
import { withScope, type Scope } from './lib/scope.ts';
import { checkSettings, setting } from './lib/settings.ts';
import { judge, median } from './lib/statistics.ts';
import { startToucher, type TouchFigures } from './lib/toucher.ts';
import type { BenchModule, BenchOptions, Target } from './lib/types.ts';

export const description =
  'A fault served from local slots, by tag from the cache and from another guest, against the C handler; 1, 4 and 16 guests; memory of a 4 GiB guest.';

type Side = 'pagetide' | 'reference';
/** Where Pagetide finds the pages: slots that it knows, or by their tags. */
type From = 'slots' | 'cache' | 'resident';

const LIMITS = {
  slots: { p50Ns: 1.15, p99Ns: 1.3 },
  cache: { p50Ns: 1.15, p99Ns: 1.3 },
  resident: { p50Ns: 1.6, p99Ns: null },
} as const;

interface Case {
  from: From;
  spinUs: number;
  gapUs: number;
  count: number;
  guests: number;
  pagerCpus: number[] | undefined;
  guestCpus: number[] | undefined;
}

function sourceOf(scope: Scope, slots: Slots, from: From): PagerSource {
  if (from === 'slots') return { kind: 'slots', ...slots };
  const { memory } = slots;
  return { kind: 'by-tag', memory, ...(from === 'cache' ? { cache: scope.path('cache') } : {}) };
}

async function touchRun(side: Side, slots: Slots, one: Case): Promise<TouchFigures> {
  return withScope(async (scope) => {
    const { from, spinUs, guests, pagerCpus: cpus, guestCpus } = one;
    const handlers: Handler[] = [];
    if (side === 'pagetide') {
      handlers.push(await startPager(scope, sourceOf(scope, slots, from), { spinUs, guests, cpus }));
    } else {
      for (let i = 0; i < guests; i++) handlers.push(await startHitHandler(scope, slots, { spinUs, cpus }));
    }
    const touchers = [];
    for (let i = 0; i < guests; i++) {
      const handler = handlers[i % handlers.length]!;
      touchers.push(
        await startToucher(scope, { socket: handler.socket, frames: slots.frames, seed: slots.seed, cpus: guestCpus }),
      );
      if (side === 'pagetide') await handler.program.next('attached');
    }
    const { gapUs, count } = one;
    await warmMemory(scope, 2 * count * guests, cpus);
    await Promise.all(touchers.map((toucher) => toucher.touch({ count, gapUs })));
    const figures = await Promise.all(touchers.map((toucher) => toucher.touch({ count, gapUs })));
    for (const toucher of touchers) {
      await toucher.verify();
      await toucher.quit();
    }
    // of several guests, the median one speaks
    return [...figures].sort((a, b) => a.p50Ns - b.p50Ns)[Math.floor(figures.length / 2)]!;
  });
}

/** Bytes a frame that serving a guest of `frames` costs beside a guest of next to none. */
async function memoryRun(frames: number): Promise<{ bytes: number; perFrame: number; constant: number }> {
  const rss = (count: number): Promise<number> =>
    withScope(async (scope) => {
      const memory = scope.path('memory');
      writeFileSync(memory, '');
      truncateSync(memory, count * 4096);
      const { program, socket } = await startPager(scope, { kind: 'file', path: memory }, { spinUs: 0 });
      const toucher = await startToucher(scope, { socket, frames: count, seed: 1 });
      await program.next('attached');
      program.write('rss');
      const { bytes } = await program.next('rss');
      await toucher.program.kill();
      return bytes as number;
    });
  const small = median([await rss(64), await rss(64), await rss(64)]);
  const large = median([await rss(frames), await rss(frames), await rss(frames)]);
  return { bytes: large - small, perFrame: (large - small) / frames, constant: small };
}

export async function run(options: BenchOptions): ReturnType<BenchModule['run']> {
  checkSettings(options, ['frames', 'touches', 'spin', 'apart', 'guests']);
  const frames = setting(options, 'frames', 65536, 64);
  const count = setting(options, 'touches', Math.floor(frames / 4));
  const spinUs = setting(options, 'spin', 20, 0);
  const most = setting(options, 'guests', 16);
  const apart = availableParallelism() > 1 && setting(options, 'apart', 1, 0) > 0;
  return withScope(async (scope) => {
    const slots = await makeSlots(scope, frames);
    const targets: Target[] = [];
    const raw: Record<string, unknown> = {};
    const cases: [string, number, number, From?][] = [
      ['burst', 0, 1],
      ['by tag, from the cache', 0, 1, 'cache'],
      ['by tag, from another guest', 0, 1, 'resident'],
      ['isolated', 200, 1],
      ['4 guests', 0, 4],
      ['16 guests', 0, 16],
    ];
    for (const [name, gapUs, guests, from = 'slots'] of cases) {
      if (guests > most) continue;
      options.progress(`hit, ${name}`);
      const one: Case = {
        from,
        spinUs,
        gapUs,
        guests,
        count: Math.max(64, Math.floor(count / guests)),
        pagerCpus: apart ? [1] : [0],
        guestCpus: [0],
      };
      if (guests > 1) one.pagerCpus = one.guestCpus = undefined; // more threads than CPUs: the scheduler's business
      const pairs = await alternate({
        rounds: options.rounds,
        a: () => touchRun('pagetide', slots, one),
        b: () => touchRun('reference', slots, one),
      });
      raw[name] = pairs;
      const limits = guests === 1 && gapUs === 0 ? LIMITS[from] : { p50Ns: null, p99Ns: null };
      for (const at of ['p50Ns', 'p99Ns'] as const) {
        const figures = pairs.map(({ a, b }) => ({ value: a[at], baseline: b[at] }));
        targets.push(
          judge(`hit ${name} ${at.slice(0, 3)}`, 'ns', figures, { target: limits[at], direction: 'at-most' }),
        );
      }
    }
    options.progress('memory of a 4 GiB guest');
    const memory = await memoryRun(2 ** 20);
    raw.memory = memory;
    targets.push(
      judge('memory a frame, 4 GiB guest', 'bytes', [{ value: memory.perFrame, baseline: 8 }], {
        target: 1,
        direction: 'at-most',
      }),
    );
    const notes = [
      apart ? 'one guest: guest on CPU 0, pager on CPU 1' : 'one guest: guest and pager on CPU 0',
      `both sides spin ${spinUs} µs before they sleep; isolated: 200 µs between touches, so that every fault wakes the pager`,
      `several guests: one Pagetide process for all, one C handler process each, wherever the scheduler puts them; the guest with the median p50`,
      `the pager's constant beside the frames: ${(memory.constant / 2 ** 20).toFixed(0)} MiB resident (Node.js, two workers)`,
    ];
    return { targets, raw, notes };
  });
}
