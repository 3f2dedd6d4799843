/**
 * Processes and files of a bench, which all end with it: on success, on error, on Ctrl-C and on SIGTERM. (After a
 * `kill -9` of the bench the reference programs end by themselves, see `die_with_parent` in bench/reference/common.h;
 * the folder stays.)
 */
import { spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { PagetideError } from '../../src/errors.ts';

/** A line of JSON of a program, told apart by `event`. */
export type ProgramEvent = { event: string } & Record<string, unknown>;

/** A started program that talks in lines of JSON on stdout and takes lines on stdin. One wait at a time. */
export interface Program {
  readonly pid: number;
  /** Writes one line to its stdin. */
  write: (line: string) => void;
  /** Closes its stdin. */
  end: () => void;
  /**
   * The next line, which must be this event; `PT_IO` when the program reports an error, says something else, ends, or is
   * silent for `timeoutMs` (60 s).
   */
  next: (event: string, timeoutMs?: number) => Promise<ProgramEvent>;
  /** Waits until it has ended by itself with exit code 0; `PT_IO` otherwise. */
  exited: (timeoutMs?: number) => Promise<void>;
  /** SIGKILL, then waits for its end. Idempotent. */
  kill: () => Promise<void>;
}

export interface Scope {
  /** A new folder on tmpfs, for sockets and memory files; removed at the end. */
  readonly folder: string;
  /** A path in the folder, never given before. */
  path: (name: string) => string;
  /** Starts a program; it is killed at the end of the scope if it lives then. */
  start: (file: string, args: string[]) => Program;
  /** Runs at the end of the scope, latest first, also after an error. */
  defer: (cleanup: () => void | Promise<void>) => void;
}

function failed(message: string): PagetideError {
  return new PagetideError('PT_IO', message, { hint: 'The message is of one of the programs in bench/reference.' });
}

function startProgram(file: string, args: string[], children: Set<ChildProcess>): Program {
  const name = file.split('/').at(-1)!;
  const child = spawn(file, args, { stdio: ['pipe', 'pipe', 'inherit'] });
  children.add(child);
  const events: ProgramEvent[] = [];
  let ended: string | undefined;
  let changed = (): void => undefined;
  const ending = new Promise<void>((resolve) => {
    const finish = (reason: string): void => {
      ended ??= reason;
      children.delete(child);
      changed();
      resolve();
    };
    child.once('error', (error) => finish(error.message));
    child.once('close', (code, signal) =>
      finish(code === 0 ? 'ended' : `ended with ${signal ?? `code ${code ?? '?'}`}`),
    );
  });
  // a write to a program that has just ended fails here; its end is reported by next() and exited()
  child.stdin.on('error', () => undefined);
  createInterface({ input: child.stdout }).on('line', (line) => {
    try {
      events.push(JSON.parse(line) as ProgramEvent);
    } catch {
      events.push({ event: 'error', message: `not JSON: ${line}` });
    }
    changed();
  });

  /** Waits until `ready` holds; every event and the end look again. */
  async function until(ready: () => boolean, timeoutMs: number, what: string): Promise<void> {
    const deadline = performance.now() + timeoutMs;
    while (!ready()) {
      let timer: NodeJS.Timeout | undefined;
      await new Promise<void>((resolve) => {
        changed = resolve;
        timer = setTimeout(resolve, Math.max(0, deadline - performance.now()));
      });
      clearTimeout(timer);
      if (!ready() && performance.now() >= deadline) throw failed(`${name}: ${what}: nothing for ${timeoutMs} ms`);
    }
  }

  return {
    pid: child.pid ?? -1,
    write: (line) => void child.stdin.write(`${line}\n`),
    end: () => void child.stdin.end(),
    async next(event, timeoutMs = 60_000) {
      await until(() => events.length > 0 || ended !== undefined, timeoutMs, event);
      const got = events.shift();
      if (got === undefined) throw failed(`${name} ${ended ?? 'ended'} before it said ${event}`);
      if (got.event !== event) throw failed(`${name} said ${JSON.stringify(got)}, not ${event}`);
      return got;
    },
    async exited(timeoutMs = 60_000) {
      await until(() => ended !== undefined, timeoutMs, 'its end');
      const error = events.find((one) => one.event === 'error');
      if (ended !== 'ended') throw failed(`${name} ${ended!}${error ? `: ${JSON.stringify(error)}` : ''}`);
    },
    async kill() {
      child.kill('SIGKILL');
      await ending;
    },
  };
}

/** What each scope that is open would have to do now: scopes nest, and a signal ends all of them. */
const open = new Set<() => void>();

// Signals end the process at once: only what is synchronous can be done.
function interrupted(signal: NodeJS.Signals): void {
  for (const abandon of open) abandon();
  process.exit(signal === 'SIGINT' ? 130 : 143);
}

/**
 * Runs `work` with a scope of its own and cleans up after it, whatever happens.
 * @throws what `work` throws
 */
export async function withScope<T>(work: (scope: Scope) => Promise<T>): Promise<T> {
  const folder = mkdtempSync('/dev/shm/pagetide-bench-');
  const children = new Set<ChildProcess>();
  const cleanups: (() => void | Promise<void>)[] = [];
  let names = 0;
  const scope: Scope = {
    folder,
    path: (name) => join(folder, `${names++}-${name}`),
    start: (file, args) => startProgram(file, args, children),
    defer: (cleanup) => void cleanups.push(cleanup),
  };

  const clear = (): void => rmSync(folder, { recursive: true, force: true });
  const abandon = (): void => {
    for (const child of children) child.kill('SIGKILL');
    clear();
  };
  if (open.size === 0) process.on('SIGINT', interrupted).on('SIGTERM', interrupted);
  open.add(abandon);
  try {
    return await work(scope);
  } finally {
    try {
      for (const cleanup of cleanups.reverse()) await cleanup();
    } finally {
      const living = [...children].filter((child) => child.pid !== undefined);
      for (const child of living) child.kill('SIGKILL');
      for (const child of living) {
        if (child.exitCode === null && child.signalCode === null) await once(child, 'exit');
      }
      clear();
      open.delete(abandon);
      if (open.size === 0) process.off('SIGINT', interrupted).off('SIGTERM', interrupted);
    }
  }
}
