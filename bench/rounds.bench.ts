/**
 * Rounds of copying of guests that work: what is on the wire in the rounds after the first, against the same frames as whole pages in LZ4.
 * Each guest goes to and fro by pre-copy, to a host that asks for deltas and to one that doesn't, so that the two are seen beside each
 * other; with a limit to the bytes a second, as a link is slower than loopback, and a downtime that it can't keep, for many rounds.
 */
import { PagetideError } from '../src/errors.ts';
import type { MigrationReport } from '../src/migration/types.ts';
import type { TestAgent } from '../test/support/cluster.ts';
import { LOADS, cannotLoad, startLoad, type Load } from '../test/support/load-guest.ts';
import { migrate, reportFaults, until } from '../test/support/migrate.ts';
import { guestOptions } from '../test/support/qemu-guest.ts';
import { checkSettings, setting } from './lib/settings.ts';
import { requireQemu } from './lib/sharing-fleet.ts';
import { judge, median } from './lib/statistics.ts';
import type { BenchModule, BenchOptions, Target } from './lib/types.ts';
import { withCluster } from './lib/with-cluster.ts';

export const description = 'Rounds of copying of working guests: deltas against whole pages.';

const MIB = 2 ** 20;
/** Of the same frames, in LZ4. */
const TARGET = 0.5;
const BOOT_MS = 240_000;
/** The test guest: it rewrites whole pages, half of each with random bytes. */
const REWRITER = 'rewriter';

interface Setup {
  loads: (Load | typeof REWRITER)[];
  /** Bytes of pages a second. */
  bandwidth: number;
  maxDowntimeMs: number;
  maxRounds: number;
  /** Pages that the rewriter writes a second. */
  rate: number;
}

/** The rounds after the first of one migration. */
interface Later {
  rounds: number;
  /** Frames that were told, and those that came from the source and were right. */
  changed: number;
  fetched: number;
  /** Bytes at the sockets of the page connections, both directions, digests and all. */
  wire: number;
  report: MigrationReport;
}

interface Pair {
  whole: Later;
  deltas: Later;
}

function readSetup(options: BenchOptions): Setup {
  checkSettings(options, ['loads', 'mibps', 'downtime', 'most', 'rate']);
  const all = [...LOADS, REWRITER] as const;
  const loads = (options.settings.get('loads') ?? 'redis,postgres,node,nginx,rewriter').split(',').map((word) => {
    const load = all.find((name) => name === word);
    if (load === undefined)
      throw new PagetideError('PT_BAD_ARGUMENT', `--set loads=${word}: some of ${all.join(', ')}, please`);
    return load;
  });
  return {
    loads,
    bandwidth: setting(options, 'mibps', 16) * MIB,
    maxDowntimeMs: setting(options, 'downtime', 30),
    maxRounds: setting(options, 'most', 8, 2),
    rate: setting(options, 'rate', 500),
  };
}

async function moveOnce(from: TestAgent, to: TestAgent, guest: string, setup: Setup): Promise<Later> {
  const { bandwidth, maxDowntimeMs, maxRounds } = setup;
  const wanted = { mode: 'pre-copy', onNoConvergence: 'pause', bandwidth, maxDowntimeMs, maxRounds } as const;
  const { last } = await migrate(from, to, guest, wanted);
  const faults = reportFaults(last.report);
  if (last.report?.verified !== true || faults.length > 0)
    throw new PagetideError('PT_VERIFY_FAILED', `${guest}: ${last.error?.message ?? faults.join('; ')}`);
  const later = (last.report.rounds ?? []).slice(1);
  const sum = (of: (round: (typeof later)[number]) => number): number => later.reduce((all, one) => all + of(one), 0);
  const fetched = sum(({ source }) => source);
  if (fetched === 0) throw new PagetideError('PT_INTERNAL', `${guest}: no round after the first fetched a page`);
  return {
    rounds: later.length + 1,
    changed: sum(({ changed }) => changed),
    fetched,
    wire: sum(({ wireBytes }) => wireBytes),
    report: last.report,
  };
}

async function start(agent: TestAgent, load: Setup['loads'][number], { rate }: Setup): Promise<void> {
  if (load !== REWRITER) {
    await startLoad(agent, load);
    return;
  }
  const argv = await guestOptions({ memory: '128', settings: `pagetide.rate=${rate}` });
  await agent.client.runGuest({ name: load, driver: 'qemu', options: { ...argv } });
  const works = async (): Promise<boolean> => ((await agent.client.showGuest(load)).stats?.operations ?? 0) > 100;
  await until(`${load} works`, works, BOOT_MS);
}

/** Bytes of a whole page in LZ4, as the source has measured for some of them. */
function lz4Page({ report }: Later): number {
  const { deltas } = report.bytes;
  if (deltas === undefined) throw new PagetideError('PT_INTERNAL', 'no delta was asked for');
  return deltas.whole / deltas.frames;
}

function describe(name: string, { rounds, changed, fetched, wire }: Later): string {
  return `${name}: ${rounds} rounds, later ones ${changed} frames told, ${fetched} fetched, ${(wire / fetched).toFixed(0)} B each`;
}

function judged(load: string, pairs: readonly Pair[]): { targets: Target[]; notes: string[] } {
  const against = { target: TARGET, direction: 'at-most' } as const;
  const lz4 = (frames: 'changed' | 'fetched'): { value: number; baseline: number }[] =>
    pairs.map(({ deltas }) => ({ value: deltas.wire / MIB, baseline: (deltas[frames] * lz4Page(deltas)) / MIB }));
  const both = pairs.map(({ deltas, whole }) => ({
    value: deltas.wire / deltas.fetched,
    baseline: whole.wire / whole.fetched,
  }));
  const of = (figure: (pair: Pair) => number): string => median(pairs.map(figure)).toFixed(0);
  const share = (part: 'bytes' | 'digests' | 'whole') => (pair: Pair) => {
    const { deltas } = pair.deltas.report.bytes;
    return deltas === undefined ? 0 : deltas[part] / deltas.frames;
  };
  return {
    targets: [
      judge(`${load}, against LZ4 of the frames told`, 'MiB', lz4('changed'), against),
      judge(`${load}, against LZ4 of those that came`, 'MiB', lz4('fetched'), { ...against, target: null }),
      judge(`${load}, against rounds without deltas`, 'B a frame', both, { target: null, direction: 'at-most' }),
    ],
    notes: [
      `${load}: ${of(({ deltas }) => deltas.rounds)} rounds with deltas and ${of(({ whole }) => whole.rounds)} without; ` +
        `${of(({ deltas }) => deltas.changed / (deltas.rounds - 1))} frames told a later round; of a delta ${of(share('bytes'))} B of blocks, ` +
        `${of(share('digests'))} B of digests, whole ${of(share('whole'))} B; downtime ${of(({ deltas }) => deltas.report.ms.downtime ?? NaN)} ms and ` +
        `${of(({ whole }) => whole.report.ms.downtime ?? NaN)} ms`,
    ],
  };
}

export async function run(options: BenchOptions): ReturnType<BenchModule['run']> {
  const setup = readSetup(options);
  requireQemu();
  const cannot = cannotLoad();
  if (cannot !== false)
    throw new PagetideError('PT_UNSUPPORTED_HOST', cannot, { hint: 'See docs/loads.md, Building.' });
  const raw: Record<string, Pair[]> = {};
  const targets: Target[] = [];
  const notes = [
    `QEMU guests under TCG, pre-copy with ${setup.bandwidth / MIB} MiB of pages a second, a downtime of ${setup.maxDowntimeMs} ms wanted, ${setup.maxRounds} rounds at most; nobody has a cache`,
    'on the wire: the rounds after the first, without the last pass, TCP payload of both directions, digests and pages that came too early included; the tags that are told, 16 B a frame and their runs, are on another connection and not in it',
    'frames told: what had changed in each round, as often as that was; that came: those that were right; LZ4: at what whole pages would have taken in batches of the same frames, as the source measured for one request in four',
  ];
  await withCluster(async (cluster) => {
    const a = await cluster.agent('deltas');
    const b = await cluster.agent('whole', { fill: { deltas: false } });
    for (const load of setup.loads) {
      const pairs: Pair[] = (raw[load] = []);
      await start(a, load, setup);
      for (let round = 0; round <= options.rounds; round++) {
        const whole = await moveOnce(a, b, load, setup);
        const deltas = await moveOnce(b, a, load, setup);
        options.progress(`${load}, ${round}: ${describe('whole', whole)}; ${describe('deltas', deltas)}`);
        // the first is thrown away
        if (round > 0) pairs.push({ whole, deltas });
      }
      await a.client.removeGuest(load);
      const found = judged(load, pairs);
      targets.push(...found.targets);
      notes.push(...found.notes);
    }
  });
  return { targets, notes, raw: { setup, pairs: raw } };
}
