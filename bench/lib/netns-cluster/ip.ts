/** The programs that make networks: `ip`, `tc` and `nsenter`, by argument vectors. */
import { spawnSync } from 'node:child_process';
import { PagetideError } from '../../../src/errors.ts';

function run(program: string, args: string[]): { ok: boolean; text: string } {
  const { status, stdout, stderr, error } = spawnSync(program, args, { encoding: 'utf8' });
  return status === 0
    ? { ok: true, text: stdout }
    : { ok: false, text: `${[program, ...args].join(' ')}: ${error?.message ?? stderr.trim()}` };
}

export const ip = (...args: string[]): { ok: boolean; text: string } => run('ip', args);

/** Runs `ip` or `tc`. @throws PagetideError `PT_IO` with what it said */
export function must(program: 'ip' | 'tc', ...args: string[]): string {
  const { ok, text } = run(program, args);
  if (!ok) throw new PagetideError('PT_IO', text);
  return text;
}

/** Why this process can't make namespaces with limited links; undefined where it can. Cheap, makes nothing. */
export function cannotIsolate(): string | undefined {
  if (process.getuid?.() !== 0) return 'network namespaces need root';
  const missing = [
    ['ip', '-V', 'iproute2'],
    ['tc', '-V', 'iproute2'],
    ['nsenter', '-V', 'util-linux'],
  ].find(([program, version]) => !run(program!, [version!]).ok);
  return missing === undefined ? undefined : `${missing[0]} is not installed (apt-get install ${missing[2]})`;
}
