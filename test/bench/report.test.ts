import { spawnSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import t from 'tap';
import { describeMachine } from '../../bench/lib/machine.ts';
import { formatJson, formatTable, keepResult } from '../../bench/lib/report.ts';
import { checkSettings, setting } from '../../bench/lib/settings.ts';
import { judge } from '../../bench/lib/statistics.ts';
import type { BenchOptions, BenchResult } from '../../bench/lib/types.ts';

const target = judge('hit p50', 'ns', [{ value: 1300, baseline: 1000 }], { target: 1.15, direction: 'at-most' });
const result: BenchResult = { bench: 'x', machine: describeMachine(), targets: [target], notes: ['why'], raw: [1] };

void t.test('a result is one line of JSON, a table, and a file', (t) => {
  const json = formatJson(result);
  t.notMatch(json, '\n');
  const parsed = JSON.parse(json) as BenchResult;
  t.same(Object.keys(parsed), ['bench', 'machine', 'targets', 'notes', 'raw']);
  for (const key of ['name', 'value', 'baseline', 'ratio', 'target', 'met', 'unit'])
    t.ok(key in parsed.targets[0]!, key);
  t.match(formatTable(result), /hit p50 +1300 ns +1000 ns +1\.30× +1\.30–1\.30 +≤ 1\.15× +MISSED\n· why$/);
  t.same(JSON.parse(readFileSync(keepResult(result, t.testdir()), 'utf8')), parsed);
  t.end();
});

void t.test('settings are whole numbers of known names', (t) => {
  const options: BenchOptions = {
    rounds: 1,
    json: false,
    progress: () => undefined,
    settings: new Map([
      ['frames', '64'],
      ['bad', '1e3'],
    ]),
  };
  t.equal(setting(options, 'frames', 1), 64);
  t.equal(setting(options, 'absent', 7), 7);
  t.throws(() => setting(options, 'frames', 1, 65), { code: 'PT_BAD_ARGUMENT' });
  t.throws(() => setting(options, 'bad', 1), { code: 'PT_BAD_ARGUMENT' });
  t.throws(() => checkSettings(options, ['frames']), { code: 'PT_BAD_ARGUMENT', message: /no setting bad/ });
  t.doesNotThrow(() => checkSettings(options, ['frames', 'bad']));
  t.end();
});

void t.test('the command lists benches, and refuses what it does not know', (t) => {
  const main = fileURLToPath(new URL('../../bench/main.js', import.meta.url));
  const bench = (...args: string[]) => spawnSync(process.execPath, [main, ...args], { encoding: 'utf8' });
  const list = bench();
  t.equal(list.status, 0);
  t.match(list.stdout, /^ {2}references +The C reference programs/m);
  for (const args of [
    ['nonesuch'],
    ['references', 'x'],
    ['references', '--rounds', '0'],
    ['--what'],
    ['references', '--set', 'x'],
  ]) {
    const refused = bench(...args);
    t.equal(refused.status, 1, args.join(' '));
    t.match(refused.stderr, /PT_BAD_ARGUMENT/);
    t.equal(refused.stdout, '');
  }
  t.end();
});
