/**
 * The reference programs of bench/reference: building them, starting them, and talking to the toucher. How each is
 * driven is written down in docs/benchmarks.md; the programs' own opening comments say the rest.
 */
import { spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, readdirSync, renameSync, statSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { PagetideError } from '../../src/errors.ts';
import type { Program, ProgramEvent, Scope } from './scope.ts';

const PROGRAMS = [
  'handler-fill',
  'handler-hit',
  'handler-miss',
  'link-recorder',
  'make-slots',
  'miss-server',
  'pinned',
  'toucher',
  'warm',
] as const;
export type ReferenceName = (typeof PROGRAMS)[number];

/** The installation folder: the nearest one above this file that has a package.json. */
export function projectRoot(): string {
  let folder = dirname(fileURLToPath(import.meta.url));
  while (!existsSync(join(folder, 'package.json'))) {
    const up = dirname(folder);
    if (up === folder) throw new PagetideError('PT_INTERNAL', 'no package.json above the bench');
    folder = up;
  }
  return folder;
}

/** Builds what is missing or older than its sources with `$CC` (cc) `-O2`; returns the folder. */
export function buildReferences(): string {
  const sources = join(projectRoot(), 'bench/reference');
  const build = join(sources, 'build');
  const compiler = process.env.CC ?? 'cc';
  mkdirSync(build, { recursive: true });
  const files = readdirSync(sources).filter((file) => /\.[ch]$/.test(file));
  const headers = files.filter((file) => file.endsWith('.h'));
  for (const name of PROGRAMS) {
    const program = join(build, name);
    const newest = Math.max(...[`${name}.c`, ...headers].map((file) => statSync(join(sources, file)).mtimeMs));
    if (existsSync(program) && statSync(program).mtimeMs > newest) continue;
    // built beside and renamed: two benches or tests that build at once never run half a program
    const fresh = `${program}.${process.pid}`;
    const flags = ['-O2', '-std=gnu11', '-D_GNU_SOURCE', '-Wall', '-Wextra', '-pthread'];
    const built = spawnSync(compiler, [...flags, join(sources, `${name}.c`), '-o', fresh], { encoding: 'utf8' });
    if (built.status !== 0) {
      const why = built.error?.message ?? built.stderr.trim();
      throw new PagetideError('PT_UNSUPPORTED_HOST', `cannot build the reference program ${name}: ${why}`, {
        hint: 'Benches need a C compiler: install gcc or clang, or set CC.',
      });
    }
    renameSync(fresh, program);
  }
  return build;
}

/** Where a process may run: CPU numbers; without it, anywhere. */
export type Cpus = readonly number[] | undefined;

/** The command that runs `file` on `cpus` (see bench/reference/pinned.c); any program, also Node. */
export function pinned(cpus: Cpus, file: string, args: string[]): [string, string[]] {
  return cpus ? [join(buildReferences(), 'pinned'), [cpus.join(','), file, ...args]] : [file, args];
}

function startReference(
  scope: Scope,
  name: ReferenceName,
  options: Record<string, string | number>,
  cpus?: Cpus,
): Program {
  const args = Object.entries(options).flatMap(([option, value]) => [`--${option}`, String(value)]);
  return scope.start(...pinned(cpus, join(buildReferences(), name), args));
}

/** Files that every pager of a bench serves from. */
export interface Slots {
  frames: number;
  seed: number;
  /** Page slots. */
  arena: string;
  /** u32 a frame: its slot. */
  table: string;
  /** The same pages in frame order. */
  memory: string;
}

/** Makes the slot files on tmpfs; `arenaSlots` ≥ frames spreads them over a larger arena. */
export async function makeSlots(scope: Scope, frames: number, seed = 1, arenaSlots = frames): Promise<Slots> {
  const slots = { frames, seed, arena: scope.path('arena'), table: scope.path('table'), memory: scope.path('memory') };
  const maker = startReference(scope, 'make-slots', { ...slots, slots: arenaSlots });
  await maker.next('made', 300_000);
  await maker.exited();
  return slots;
}

/**
 * Leaves the kernel with free pages that its hypervisor has backed, one and a half times a guest of `frames`: see
 * bench/reference/warm.c. Right before a measurement, on the CPU that will allocate.
 */
export async function warmMemory(scope: Scope, frames: number, cpus?: Cpus): Promise<void> {
  const program = startReference(scope, 'warm', { bytes: frames * 4096 * 1.5 }, cpus);
  await program.next('warmed');
  await program.exited();
}

/** A pager that listens: connect the toucher to `socket`. */
export interface Handler {
  program: Program;
  socket: string;
}

export interface HandlerOptions {
  /** Microseconds that it tries without sleeping after it has answered a fault (0). */
  spinUs?: number;
  cpus?: Cpus;
}

async function startHandler(
  scope: Scope,
  name: ReferenceName,
  options: Record<string, string | number>,
  cpus?: Cpus,
): Promise<Handler> {
  const socket = scope.path('uffd.sock');
  const program = startReference(scope, name, { socket, ...options }, cpus);
  await program.next('ready');
  return { program, socket };
}

/** The pager that answers from local slots. After the toucher quits: `program.next('done')`. */
export function startHitHandler(scope: Scope, slots: Slots, options: HandlerOptions = {}): Promise<Handler> {
  const { arena, table } = slots;
  return startHandler(scope, 'handler-hit', { arena, table, 'spin-us': options.spinUs ?? 0 }, options.cpus);
}

/** The pager that fills: after the toucher has handed over, `fill()` gives what it measured itself. */
export async function startFillHandler(
  scope: Scope,
  slots: Slots,
  options: { cpus?: Cpus } = {},
): Promise<Handler & { fill: () => Promise<FillFigures> }> {
  const { arena, table } = slots;
  const handler = await startHandler(scope, 'handler-fill', { arena, table }, options.cpus);
  const fill = async (): Promise<FillFigures> => {
    await handler.program.next('attached');
    handler.program.write('go');
    return (await handler.program.next('filled', 300_000)) as ProgramEvent & FillFigures;
  };
  return { ...handler, fill };
}

export interface FillFigures {
  frames: number;
  /** CLOCK_MONOTONIC, as process.hrtime. */
  startNs: number;
  endNs: number;
  ns: number;
  mibPerS: number;
}

export interface MissOptions extends HandlerOptions {
  /** Microseconds that the client tries without sleeping for each answer (0). */
  answerSpinUs?: number;
  /** Microseconds that the server tries without sleeping after each answer (0). */
  serverSpinUs?: number;
  serverCpus?: Cpus;
}

/** The page server and the pager that asks it, one page a fault over one TCP connection on loopback. */
export async function startMissHandler(
  scope: Scope,
  slots: Slots,
  options: MissOptions = {},
): Promise<Handler & { server: Program }> {
  const { memory } = slots;
  const server = startReference(
    scope,
    'miss-server',
    { memory, 'spin-us': options.serverSpinUs ?? 0 },
    options.serverCpus,
  );
  const { port } = (await server.next('ready')) as ProgramEvent & { port: number };
  const spins = { 'spin-us': options.spinUs ?? 0, 'answer-spin-us': options.answerSpinUs ?? 0 };
  return { ...(await startHandler(scope, 'handler-miss', { port, ...spins }, options.cpus)), server };
}
