/** How results look: a table for people, one line of JSON for machines, a file to keep. */
import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { projectRoot } from './references.ts';
import type { BenchResult, Target } from './types.ts';

function figure(value: number): string {
  const size = Math.abs(value);
  return value.toFixed(size >= 1000 ? 0 : size >= 10 ? 1 : 2);
}

function row(target: Target): string[] {
  const sign = target.direction === 'at-most' ? '≤' : '≥';
  return [
    target.name,
    `${figure(target.value)} ${target.unit}`,
    `${figure(target.baseline)} ${target.unit}`,
    `${target.ratio.toFixed(2)}×`,
    `${target.spread.min.toFixed(2)}–${target.spread.max.toFixed(2)}`,
    target.target === null ? '' : `${sign} ${target.target}×`,
    target.met === null ? '' : target.met ? 'met' : 'MISSED',
  ];
}

/** The result as text of several lines. */
export function formatTable(result: BenchResult): string {
  const { machine } = result;
  const rows = [['', 'measured', 'reference', 'ratio', 'rounds', 'target', ''], ...result.targets.map(row)];
  const widths = rows[0]!.map((_, column) => Math.max(...rows.map((cells) => cells[column]!.length)));
  const lines = rows.map((cells) =>
    cells
      .map((cell, column) => cell.padEnd(widths[column]!))
      .join('  ')
      .trimEnd(),
  );
  return [
    `${result.bench}: ${machine.cpu}, ${machine.cores} cores, Linux ${machine.kernel}, Node ${machine.node}, load before ${machine.loadBefore.toFixed(2)}`,
    ...lines,
    ...result.notes.map((note) => `· ${note}`),
  ].join('\n');
}

/** The result as one line of JSON; keys in the order that readers expect. */
export function formatJson(result: BenchResult): string {
  const { bench, machine, targets, notes, raw } = result;
  return JSON.stringify({ bench, machine, targets, notes, raw });
}

/** Keeps the result, raw figures and all, as bench/results/<bench>-<UTC time>.json; returns the path. */
export function keepResult(
  result: BenchResult,
  folder = join(projectRoot(), 'bench/results'),
  now = new Date(),
): string {
  mkdirSync(folder, { recursive: true });
  const path = join(folder, `${result.bench}-${now.toISOString().replaceAll(/[:.]/g, '-')}.json`);
  writeFileSync(path, `${JSON.stringify(result, null, 1)}\n`);
  return path;
}
