/**
 * `npm run bench -- NAME [--json] [--rounds N] [--set name=value] [--no-keep]`; without NAME, lists the benches.
 *
 * A bench is a file `<name>.bench.ts` beside this one; see lib/types.ts for what it exports. Exits 0 when it ran,
 * whatever it found: a target that is missed is a result, not an error.
 */
import { readdirSync } from 'node:fs';
import { parseArgs } from 'node:util';
import { asPagetideError, PagetideError } from '../src/errors.ts';
import { describeMachine } from './lib/machine.ts';
import { formatJson, formatTable, keepResult } from './lib/report.ts';
import type { BenchModule, BenchResult } from './lib/types.ts';

const USAGE = 'npm run bench -- NAME [--json] [--rounds N] [--set name=value]... [--no-keep]';

function benches(): string[] {
  const names = readdirSync(new URL('.', import.meta.url)).map((file) => /^([\w-]+)\.bench\.js$/.exec(file)?.[1]);
  return names.filter((name) => name !== undefined).sort();
}

async function load(name: string): Promise<BenchModule> {
  return (await import(new URL(`${name}.bench.js`, import.meta.url).href)) as BenchModule;
}

function parse(args: string[]) {
  try {
    return parseArgs({
      args,
      allowPositionals: true,
      options: {
        json: { type: 'boolean', default: false },
        rounds: { type: 'string', default: '5' },
        set: { type: 'string', multiple: true, default: [] },
        'no-keep': { type: 'boolean', default: false },
        help: { type: 'boolean', short: 'h', default: false },
      },
    });
  } catch (cause) {
    throw new PagetideError('PT_BAD_ARGUMENT', cause instanceof Error ? cause.message : String(cause), { hint: USAGE });
  }
}

async function main(): Promise<void> {
  const { values, positionals } = parse(process.argv.slice(2));
  const known = benches();
  const name = positionals[0];
  if (name === undefined || values.help) {
    console.log(`${USAGE}\n`);
    for (const one of known) console.log(`  ${one.padEnd(12)} ${(await load(one)).description}`);
    return;
  }
  const bad = (message: string): PagetideError => new PagetideError('PT_BAD_ARGUMENT', message, { hint: USAGE });
  if (positionals.length > 1) throw bad(`one bench at a time, not ${positionals.join(', ')}`);
  if (!known.includes(name)) throw bad(`no bench ${name}; there are ${known.join(', ')}`);
  const rounds = Number(values.rounds);
  if (!/^\d+$/.test(values.rounds) || rounds < 1 || rounds > 1000) throw bad('--rounds: 1 to 1000');
  const settings = new Map<string, string>();
  for (const pair of values.set) {
    const at = pair.indexOf('=');
    if (at < 1) throw bad(`--set ${pair}: name=value, please`);
    settings.set(pair.slice(0, at), pair.slice(at + 1));
  }

  const machine = describeMachine();
  const bench = await load(name);
  const progress = (text: string): void => console.error(text);
  const { targets, raw, notes = [] } = await bench.run({ rounds, json: values.json, settings, progress });
  const result: BenchResult = { bench: name, machine, targets, notes, raw };
  if (!values['no-keep']) {
    try {
      const path = keepResult(result);
      progress(`raw figures: ${path}`);
      const plots = (await bench.draw?.(raw, path.replace(/\.json$/, ''))) ?? [];
      if (plots.length > 0) progress(`plots: ${plots.join(', ')}`);
    } catch (error) {
      progress(`raw figures not kept: ${error instanceof Error ? error.message : String(error)}`);
    }
  }
  console.log(values.json ? formatJson(result) : formatTable(result));
}

main().catch((thrown: unknown) => {
  const error = asPagetideError(thrown);
  console.error(`bench: ${error.message} [${error.code}]\n  ${error.hint}`);
  process.exitCode = 1;
});
