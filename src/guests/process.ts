/**
 * Processes that are nobody's children: who they are, whether they live, and how they end.
 *
 * A pid alone is reused; with the start time (field 22 of /proc/PID/stat, clock ticks since boot) it names one process
 * for ever. Ends are awaited through a pidfd, so nothing here polls a living process.
 */
import { readFileSync } from 'node:fs';
import { PagetideError, asPagetideError } from '../errors.ts';
import { native } from '../memory/native.ts';

/** Names one process for ever. */
export interface ProcessIdentity {
  pid: number;
  /** Clock ticks since boot. */
  startTime: number;
}

interface ProcessStat {
  state: string;
  startTime: number;
}

/** What /proc/PID/stat says; undefined where there is no such process. */
export function parseStat(text: string): ProcessStat | undefined {
  // The name, field 2, may hold blanks and parentheses; the last one ends it.
  const fields = text.slice(text.lastIndexOf(')') + 2).split(' ');
  const state = fields[0];
  const startTime = Number(fields[19]);
  return state === undefined || state === '' || !Number.isSafeInteger(startTime) ? undefined : { state, startTime };
}

function readStat(pid: number): ProcessStat | undefined {
  if (!Number.isSafeInteger(pid) || pid <= 0) return undefined;
  try {
    return parseStat(readFileSync(`/proc/${pid}/stat`, 'latin1'));
  } catch {
    return undefined; // gone, between any two steps of reading it too
  }
}

/** The start time of a process that lives now; undefined where there is none. */
export function startTimeOf(pid: number): number | undefined {
  return readStat(pid)?.startTime;
}

/** Who `pid` is. Rejects with `PT_VMM_GONE` where there is none. */
export function identify(pid: number): ProcessIdentity {
  const startTime = startTimeOf(pid);
  if (startTime === undefined) throw new PagetideError('PT_VMM_GONE', `there is no process ${pid}`);
  return { pid, startTime };
}

/** Whether that process lives. One that died and waits for its parent (a zombie) does not. */
export function isAlive(process: ProcessIdentity): boolean {
  const stat = readStat(process.pid);
  return stat?.startTime === process.startTime && stat.state !== 'Z' && stat.state !== 'X';
}

/** Follows one process. `close` when done with it: an open watch keeps the event loop alive unless `unref`ed. */
export interface ProcessWatch {
  /** Resolves when the process is gone; never where it still lived when this was closed. */
  readonly exited: Promise<void>;
  unref(): void;
  /** Idempotent. Leaves the process alone. */
  close(): void;
}

/** Begins to follow a process by its pidfd. A process that is gone already is reported at once. */
export function watchProcess(target: ProcessIdentity): ProcessWatch {
  const addon = native();
  let pidfd = -1;
  try {
    pidfd = addon.pidfdOpen(target.pid);
  } catch (error) {
    // Gone, or it is not ours to look at.
    if (isAlive(target)) throw asPagetideError(error, 'PT_SYSCALL', `following process ${target.pid}`);
  }
  // Looked at after the pidfd was opened: if it lives now, then the pidfd is of this process and of no later one.
  if (pidfd < 0 || !isAlive(target)) {
    if (pidfd >= 0) addon.close(pidfd);
    return { exited: Promise.resolve(), unref: () => undefined, close: () => undefined };
  }
  let open = true;
  let resolve: () => void;
  const exited = new Promise<void>((done) => {
    resolve = done;
  });
  const close = () => {
    if (!open) return;
    open = false;
    watcher.close();
    addon.close(pidfd);
    // It may be gone without the event loop having come to tell.
    if (!isAlive(target)) resolve();
  };
  // A pidfd becomes readable when the last thread of the process is gone.
  const watcher = addon.watch(pidfd, () => {
    close();
    resolve();
  });
  return { exited, unref: () => open && watcher.unref(), close };
}

/** Waits until the process is gone. Resolves to false when `timeoutMs` passed before. */
export async function waitForExit(target: ProcessIdentity, timeoutMs: number): Promise<boolean> {
  const watch = watchProcess(target);
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<false>((resolve) => {
    timer = setTimeout(() => resolve(false), timeoutMs);
  });
  try {
    return await Promise.race([watch.exited.then(() => true), late]);
  } finally {
    clearTimeout(timer);
    watch.close();
  }
}

/** Sends a signal to that process and to no later one with its pid. Returns false where it is gone. */
export function signalProcess(target: ProcessIdentity, signal: NodeJS.Signals): boolean {
  if (!isAlive(target)) return false;
  try {
    return process.kill(target.pid, signal);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ESRCH') return false;
    throw new PagetideError('PT_NO_PERMISSION', `cannot send ${signal} to process ${target.pid}`, { cause: error });
  }
}

/**
 * Ends a process: SIGTERM, and SIGKILL after `graceMs`; waits until it is dead. Idempotent.
 * @throws PT_VMM_TIMEOUT where it doesn't die (it hangs in the kernel)
 */
export async function endProcess(target: ProcessIdentity, graceMs = 2000, killMs = 30_000): Promise<void> {
  if (graceMs > 0) {
    if (!signalProcess(target, 'SIGTERM')) return;
    if (await waitForExit(target, graceMs)) return;
  }
  if (!signalProcess(target, 'SIGKILL')) return;
  if (await waitForExit(target, killMs)) return;
  throw new PagetideError('PT_VMM_TIMEOUT', `process ${target.pid} did not die within ${killMs} ms of SIGKILL`);
}
