/**
 * `npm run soak -- [--guest embedded|qemu] [--migrations N] [--memory 96M] [--write-rate N] [--threads N] [--json]`
 *
 * Exits 0 only if every migration was verified by the guest, nothing is left over, and the
 * agents did not grow after the tenth (fewer migrations than that say nothing about growth).
 */
import { parseArgs } from 'node:util';
import { asPagetideError, PagetideError } from '../src/errors.ts';
import { cluster } from '../test/support/cluster.ts';
import { describeMachine } from './lib/machine.ts';
import { MAX_GROWTH, soak, type SoakOptions, type SoakResult } from './lib/soak.ts';
import { median } from './lib/statistics.ts';

const USAGE =
  'npm run soak -- [--guest embedded|qemu] [--migrations N] [--memory 96M] [--write-rate PAGES] [--threads N] [--json]';

function parse(args: string[]): Omit<SoakOptions, 'progress'> & { json: boolean } {
  const bad = (message: string): PagetideError => new PagetideError('PT_BAD_ARGUMENT', message, { hint: USAGE });
  let values;
  try {
    ({ values } = parseArgs({
      args,
      options: {
        guest: { type: 'string', default: 'embedded' },
        migrations: { type: 'string' },
        memory: { type: 'string' },
        'write-rate': { type: 'string' },
        threads: { type: 'string', default: '2' },
        json: { type: 'boolean', default: false },
      },
    }));
  } catch (cause) {
    throw bad(cause instanceof Error ? cause.message : String(cause));
  }
  const { guest, json } = values;
  if (guest !== 'embedded' && guest !== 'qemu') throw bad(`--guest ${guest}: embedded or qemu`);
  const number = (name: string, text: string, most: number): number => {
    if (/^[1-9]\d*$/.test(text) && Number(text) <= most) return Number(text);
    throw bad(`--${name} ${text}: a whole number from 1 to ${most}`);
  };
  const memory = values.memory ?? (guest === 'qemu' ? '128M' : '96M');
  if (!/^[1-9]\d*M$/.test(memory)) throw bad(`--memory ${memory}: e.g. 96M`);
  return {
    guest,
    json,
    memory,
    migrations: number('migrations', values.migrations ?? (guest === 'qemu' ? '5' : '50'), 100_000),
    writeRate: number('write-rate', values['write-rate'] ?? (guest === 'qemu' ? '500' : '20000'), 1_000_000_000),
    threads: number('threads', values.threads, 64),
  };
}

function mebibytes(bytes: number): string {
  return `${(bytes / 2 ** 20).toFixed(1)} MiB`;
}

function show({ warm, end, growth, reports, problems }: SoakResult): string {
  const of = (pick: (report: SoakResult['reports'][number]) => number): string => median(reports.map(pick)).toFixed(1);
  const lines = end.agents.map(({ agent, rss, descriptors }, at) => {
    const before = warm.agents[at]!;
    return (
      `agent ${agent}: ${mebibytes(before.rss)} and ${before.descriptors} descriptors after ${warm.after}, ` +
      `${mebibytes(rss)} and ${descriptors} at the end`
    );
  });
  return [
    `${reports.length} migrations, median downtime ${of(({ ms }) => ms.downtime ?? NaN)} ms, total ${of(({ ms }) => ms.total)} ms`,
    ...lines,
    `grown to ${(growth * 100).toFixed(1)}% (at most ${MAX_GROWTH * 100}%)`,
    ...(problems.length === 0 ? ['all is well'] : problems.map((problem) => `PROBLEM ${problem}`)),
  ].join('\n');
}

async function main(): Promise<void> {
  const { json, ...options } = parse(process.argv.slice(2));
  const teardowns: (() => Promise<void>)[] = [];
  const made = cluster({ teardown: (fn) => teardowns.push(fn) });
  const end = async (): Promise<void> => {
    for (const teardown of teardowns.splice(0)) await teardown();
  };
  const interrupted = (): void => void end().finally(() => process.exit(130));
  process.once('SIGINT', interrupted).once('SIGTERM', interrupted);
  try {
    const result = await soak(made, { ...options, progress: (text) => console.error(text) });
    console.error(show(result));
    const { reports, ...rest } = result;
    const downtimeMs = median(reports.map(({ ms }) => ms.downtime ?? NaN));
    if (json) console.log(JSON.stringify({ soak: options, machine: describeMachine(), downtimeMs, ...rest }));
    if (result.problems.length > 0) process.exitCode = 1;
  } finally {
    await end();
  }
}

main().catch((thrown: unknown) => {
  const error = asPagetideError(thrown);
  console.error(`soak: ${error.message} [${error.code}]\n  ${error.hint}`);
  process.exitCode = 1;
});
