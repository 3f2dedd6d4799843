/** What mutual TLS costs: a fault that the source answers, and the fill, each against the same over plain TCP. */
import { availableParallelism } from 'node:os';
import { alternate, alternateAll } from './lib/alternate.ts';
import { makeCertificates } from './lib/certificates.ts';
import { startMissPager } from './lib/pagetide.ts';
import { makeSlots, warmMemory, type Slots } from './lib/references.ts';
import { withScope, type Program, type Scope } from './lib/scope.ts';
import { checkSettings, setting } from './lib/settings.ts';
import { judge } from './lib/statistics.ts';
import { startToucher, type TouchFigures, type Toucher } from './lib/toucher.ts';
import type { BenchModule, BenchOptions, Target } from './lib/types.ts';

export const description = 'A miss and the fill over mutual TLS, against the same over plain TCP.';

/** Most that TLS may make of a miss. */
const TARGET = 1.5;

interface Place {
  slots: Slots;
  spinUs: number;
  apart: boolean;
  /** Undefined: plain TCP. */
  certificates: string | undefined;
  /** Who goes without the direct way (src/transport/direct-io.ts). */
  indirect?: { pager: boolean; source: boolean };
}

/** A guest of a fresh pager, whose pages a page server has. */
async function guest(scope: Scope, place: Place): Promise<{ toucher: Toucher; program: Program }> {
  const { slots, spinUs, apart, certificates, indirect } = place;
  const cpus = apart ? [1] : [0];
  const { program, socket } = await startMissPager(scope, slots, {
    spinUs,
    cpus,
    serverCpus: cpus,
    certificates,
    indirect,
  });
  const toucher = await startToucher(scope, { socket, frames: slots.frames, seed: slots.seed, cpus: [0] });
  await program.next('attached');
  await warmMemory(scope, slots.frames, cpus);
  return { toucher, program };
}

interface Touches {
  count: number;
  gapUs: number;
  threads: number;
}

function touchRun(place: Place, touches: Touches): Promise<TouchFigures> {
  return withScope(async (scope) => {
    const { toucher } = await guest(scope, place);
    // as many again before, as in the bench `miss`
    await toucher.touch(touches);
    const figures = await toucher.touch(touches);
    await toucher.verify();
    await toucher.quit();
    return figures;
  });
}

/** MiB/s of raw pages, from the order to fill to the last frame present. */
function fillRun(place: Place): Promise<number> {
  return withScope(async (scope) => {
    const { toucher, program } = await guest(scope, place);
    const present = toucher.waitPresent();
    const startNs = Number(process.hrtime.bigint());
    program.write('fill');
    const { endNs } = await present;
    await toucher.verify(true);
    await toucher.quit();
    return (place.slots.frames * 4096) / 2 ** 20 / ((endNs - startNs) / 1e9);
  });
}

export async function run(options: BenchOptions): ReturnType<BenchModule['run']> {
  checkSettings(options, ['frames', 'touches', 'spin', 'apart']);
  const frames = setting(options, 'frames', 65536, 64);
  const count = setting(options, 'touches', Math.floor(frames / 4));
  const spinUs = setting(options, 'spin', 20, 0);
  const apart = availableParallelism() > 1 && setting(options, 'apart', 1, 0) > 0;
  const { rounds } = options;
  return withScope(async (scope) => {
    const slots = await makeSlots(scope, frames);
    const plain: Place = { slots, spinUs, apart, certificates: undefined };
    const secure: Place = { ...plain, certificates: await makeCertificates(scope) };
    const targets: Target[] = [];
    const raw: Record<string, unknown> = {};
    options.progress('tls, miss, burst');
    const without = (pager: boolean, source: boolean) => ({ indirect: { pager, source } });
    const places: Record<string, Place> = {
      plain,
      'plain, destination not direct': { ...plain, ...without(true, false) },
      'plain, source not direct': { ...plain, ...without(false, true) },
      'plain, nobody direct': { ...plain, ...without(true, true) },
      TLS: secure,
      'TLS, nobody direct': { ...secure, ...without(true, true) },
    };
    const arms = Object.entries(places).map(([name, place]) => {
      return [name, () => touchRun(place, { count, gapUs: 0, threads: 1 })] as const;
    });
    const parts = await alternateAll(rounds, Object.fromEntries(arms));
    raw['burst'] = parts;
    for (const at of ['p50Ns', 'p99Ns'] as const) {
      const figures = parts.map((part) => ({ value: part['TLS']![at], baseline: part['plain']![at] }));
      const target = at === 'p50Ns' ? TARGET : null;
      targets.push(judge(`miss burst ${at.slice(0, 3)}`, 'ns', figures, { target, direction: 'at-most' }));
    }
    for (const name of Object.keys(places).filter((one) => one !== 'plain' && one !== 'TLS')) {
      const figures = parts.map((part) => ({ value: part[name]!.p50Ns, baseline: part['plain']!.p50Ns }));
      targets.push(judge(`${name}, burst p50`, 'ns', figures, { target: null, direction: 'at-most' }));
    }
    const cases: [string, number, number][] = [
      ['isolated', 200, 1],
      ['4 threads', 0, 4],
    ];
    for (const [name, gapUs, threads] of cases) {
      options.progress(`tls, miss, ${name}`);
      const touches: Touches = { count, gapUs, threads };
      const pairs = await alternate({
        rounds,
        a: () => touchRun(secure, touches),
        b: () => touchRun(plain, touches),
      });
      raw[name] = pairs;
      for (const at of ['p50Ns', 'p99Ns'] as const) {
        const target = at === 'p50Ns' ? TARGET : null;
        const figures = pairs.map(({ a, b }) => ({ value: a[at], baseline: b[at] }));
        targets.push(judge(`miss ${name} ${at.slice(0, 3)}`, 'ns', figures, { target, direction: 'at-most' }));
      }
    }
    options.progress('tls, fill');
    const fills = await alternate({ rounds, a: () => fillRun(secure), b: () => fillRun(plain) });
    raw['fill'] = fills;
    const figures = fills.map(({ a, b }) => ({ value: a, baseline: b }));
    targets.push(judge('fill from the source', 'MiB/s', figures, { target: null, direction: 'at-least' }));
    const where = apart ? 'guest on CPU 0, pager and page server on CPU 1' : 'all on CPU 0';
    return {
      targets,
      raw,
      notes: [`${where}; both pagers spin ${spinUs} µs for the next fault; TLS 1.3, AES-128-GCM`],
    };
  });
}
