/**
 * `npm run matrix -- [--loads idle,redis,…] [--modes post-copy,pre-copy,…] [--max-downtime MS] [--log FILE]`: every real load
 * (docs/loads.md) goes there and back between two real agents by every mode, one booted guest a load, one after the other. A line a move
 * tells how it went, and a summary at the end; with --log they are added to FILE, too. --max-downtime is a pre-copy's: one that can't be
 * kept makes for many rounds. Ends with exit code 1 at the first thing that does not hold.
 */
import { spawnSync } from 'node:child_process';
import { appendFileSync } from 'node:fs';
import { parseArgs } from 'node:util';
import { formatMillis, formatSize } from '../src/agent/units.ts';
import { asPagetideError, PagetideError } from '../src/errors.ts';
import type { MigrationReport, ModeWanted } from '../src/migration/types.ts';
import { cluster, type Cluster } from '../test/support/cluster.ts';
import { cannotLoad, loadConsole, LOADS, startLoad, type Load } from '../test/support/load-guest.ts';
import { blindness, MODES, moveLoad, PRE_COPY_DOWNTIME_MS, type LoadMove } from '../test/support/load-moves.ts';
import { stillLeft } from '../test/support/migrate.ts';
import { describeMachine } from './lib/machine.ts';
import { median } from './lib/statistics.ts';

const USAGE =
  `npm run matrix -- [--loads ${LOADS.join(',')}] [--modes ${MODES.join(',')}] ` + '[--max-downtime MS] [--log FILE]';

interface Options {
  loads: Load[];
  modes: ModeWanted[];
  /** Of pre-copies, milliseconds. */
  maxDowntimeMs: number;
  log: string | undefined;
}

type Say = (text: string) => void;

function parse(args: string[]): Options {
  const bad = (message: string): PagetideError => new PagetideError('PT_BAD_ARGUMENT', message, { hint: USAGE });
  let values;
  try {
    const text = { type: 'string' } as const;
    ({ values } = parseArgs({ args, options: { loads: text, modes: text, 'max-downtime': text, log: text } }));
  } catch (cause) {
    throw bad(cause instanceof Error ? cause.message : String(cause));
  }
  const some = <Name extends string>(option: string, text: string | undefined, all: readonly Name[]): Name[] =>
    (text?.split(',') ?? all).map((word) => {
      const name = all.find((one) => one === word);
      if (name === undefined) throw bad(`--${option} ${word}: one of ${all.join(', ')}`);
      return name;
    });
  const downtime = values['max-downtime'] ?? String(PRE_COPY_DOWNTIME_MS);
  if (!/^[1-9]\d{0,6}$/.test(downtime)) throw bad(`--max-downtime ${downtime}: milliseconds, a whole number above 0`);
  return {
    maxDowntimeMs: Number(downtime),
    loads: some('loads', values.loads, LOADS),
    modes: some('modes', values.modes, MODES),
    log: values.log,
  };
}

/** One move as a line; the classes that no frame is of are left out. */
function line(way: 'there' | 'back', { load, asked, report, operations, problems }: LoadMove): string {
  const check = problems.length === 0 ? 'check ok' : `FAILED: ${problems.join('; ')}`;
  const head = `${load.padEnd(8)}  ${way.padEnd(5)}  ${asked.padEnd(9)}`;
  if (report === undefined) return `${head}  ${check}`;
  const { mode, ms, frames, bytes, rounds = [], faults, note } = report;
  const classes = Object.entries(frames).filter(([name, count]) => name !== 'total' && count > 0);
  const millis = (value: number | null): string => (value === null ? 'unknown' : formatMillis(value));
  return [
    `${head}  by ${mode.padEnd(9)}`,
    `total ${formatMillis(ms.total).padStart(7)}`,
    `down ${millis(ms.downtime).padStart(7)}, journals ${millis(ms.journal).padStart(7)}`,
    `rounds ${rounds.length}`,
    `faults ${String(faults.count).padStart(4)}`,
    `wire ${formatSize(bytes.wire).padStart(8)}`,
    `frames ${frames.total}: ${classes.map(([name, count]) => `${name} ${count}`).join(', ')}`,
    `operations ${operations.before} to ${operations.after}`,
    check,
    ...(note === undefined ? [] : [`note: ${note}`]),
  ].join('  ');
}

/** A guest with this load goes there and back by each mode. Ends at the first thing that does not hold: throws it. */
async function travel(
  made: Cluster,
  load: Load,
  { modes, maxDowntimeMs }: Options,
  say: Say,
): Promise<MigrationReport[]> {
  const [a, b] = [made.agents[0]!, made.agents[1]!];
  const reports: MigrationReport[] = [];
  const began = performance.now();
  await startLoad(a, load);
  say(`${load.padEnd(8)}  runs after ${formatMillis(performance.now() - began)}`);
  for (const mode of modes) {
    for (const [way, from, to] of [
      ['there', a, b],
      ['back', b, a],
    ] as const) {
      const move = await moveLoad(load, from, to, mode, maxDowntimeMs);
      say(line(way, move));
      if (move.report === undefined || move.problems.length > 0) {
        const logs = [from, to].flatMap((agent) => [`--- log of ${agent.name}`, ...agent.log().slice(-40)]);
        throw new PagetideError('PT_VERIFY_FAILED', `${load}, ${way} by ${mode}: ${move.problems.join('; ')}`, {
          hint: [`--- console at ${to.name}`, loadConsole(to, load), ...logs].join('\n'),
        });
      }
      reports.push(move.report);
    }
  }
  const problems = await blindness(a, load);
  await a.client.removeGuest(load);
  problems.push(...(await stillLeft(made)));
  if (problems.length > 0) throw new PagetideError('PT_INTERNAL', `${load}: ${problems.join('; ')}`);
  const seconds = formatMillis(performance.now() - began);
  say(`${load.padEnd(8)}  notices when its memory is damaged; nothing is left of it; ${seconds} in all`);
  return reports;
}

function about(): string {
  const { cpu, cores, memoryMiB, kernel, node, loadBefore } = describeMachine();
  const qemu = spawnSync('qemu-system-x86_64', ['--version'], { encoding: 'utf8' }).stdout;
  const version = /version ([\d.]+)/.exec(qemu)?.[1] ?? 'unknown';
  return (
    `${cores} cores ${cpu}, ${formatSize(memoryMiB * 2 ** 20)}, Linux ${kernel}, Node.js ${node}, QEMU ${version} without KVM, ` +
    `load average ${loadBefore.toFixed(1)} before`
  );
}

function summary(reports: readonly MigrationReport[]): string[] {
  const taken = [...new Set(reports.map(({ mode }) => mode))];
  return taken.map((mode) => {
    const those = reports.filter((report) => report.mode === mode);
    const downtimes = those.map(({ ms }) => ms.downtime ?? Infinity).filter(Number.isFinite);
    const down = downtimes.length === 0 ? 'unknown' : formatMillis(median(downtimes));
    const total = formatMillis(median(those.map(({ ms }) => ms.total)));
    const wire = formatSize(those.reduce((sum, { bytes }) => sum + bytes.wire, 0));
    return `summary   ${mode.padEnd(9)}  ${those.length} moves, median downtime ${down}, median total ${total}, ${wire} on the wire`;
  });
}

async function main(): Promise<void> {
  const options = parse(process.argv.slice(2));
  const { loads, modes, maxDowntimeMs, log } = options;
  const say: Say = (text) => {
    console.log(text);
    if (log !== undefined) appendFileSync(log, `${text}\n`);
  };
  const cannot = cannotLoad();
  if (cannot !== false) throw new PagetideError('PT_BAD_ARGUMENT', cannot, { hint: 'See docs/loads.md, Building.' });
  const teardowns: (() => Promise<void>)[] = [];
  const close = async (): Promise<void> => {
    for (const teardown of teardowns.splice(0)) await teardown();
  };
  const interrupted = (): void => void close().finally(() => process.exit(130));
  process.once('SIGINT', interrupted).once('SIGTERM', interrupted);
  say(
    `# ${new Date().toISOString()}  ${loads.join(' ')} by ${modes.join(' ')}, pre-copies within ${maxDowntimeMs} ms; ${about()}`,
  );
  const reports: MigrationReport[] = [];
  try {
    const made = cluster({ teardown: (fn) => teardowns.push(fn) });
    for (const name of ['a', 'b']) await made.agent(name);
    for (const load of loads) reports.push(...(await travel(made, load, options, say)));
    for (const text of summary(reports)) say(text);
    say(`summary   ${reports.length} of ${loads.length * modes.length * 2} moves, all is well`);
  } catch (error) {
    say(`summary   FAILED after ${reports.length} moves of loads that are through`);
    throw error;
  } finally {
    await close();
  }
}

main().catch((thrown: unknown) => {
  const error = asPagetideError(thrown);
  console.error(`matrix: ${error.message} [${error.code}]\n  ${error.hint}`);
  process.exitCode = 1;
});
