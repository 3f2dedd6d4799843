/** CPU time of processes and of the machine over a while: was it saturated, and who took the time. */
import { readFileSync } from 'node:fs';

/** Milliseconds in a tick of /proc (USER_HZ is 100 wherever Node runs). */
const TICK_MS = 10;
/** A machine that was idle for less than this share of its time is called saturated. */
const SATURATED = 0.1;

/** CPU time over a while. */
export interface CpuUse {
  /** How long it was, milliseconds. */
  ms: number;
  /** By name: milliseconds of CPU of all processes of that name that were there at its end. */
  spentMs: Record<string, number>;
  /** Of all processors' time, the share in which nothing ran, and that the hypervisor gave to others: 0 to 1. */
  idle: number;
  stolen: number;
  /** Little was idle: figures of that time depend on what else ran. */
  saturated: boolean;
}

interface MachineTicks {
  idle: number;
  stolen: number;
  all: number;
}

/** User and system time of a process so far, milliseconds; 0: there is none. */
export function cpuOf(pid: number): number {
  try {
    const text = readFileSync(`/proc/${pid}/stat`, 'utf8');
    // its name may hold anything, also brackets and blanks
    const fields = text.slice(text.lastIndexOf(')') + 2).split(' ');
    return (Number(fields[11]) + Number(fields[12])) * TICK_MS;
  } catch {
    return 0;
  }
}

function machineTicks(): MachineTicks {
  const line = /^cpu +(.*)$/m.exec(readFileSync('/proc/stat', 'utf8'))?.[1] ?? '';
  // user nice system idle iowait irq softirq steal; guest time is part of user
  const ticks = line.split(' ').slice(0, 8).map(Number);
  return { idle: (ticks[3] ?? 0) + (ticks[4] ?? 0), stolen: ticks[7] ?? 0, all: ticks.reduce((a, b) => a + b, 0) };
}

/** Begins to count; call what it returns at the end. Both times `processes` tells who is there: guests come and go. */
export function startCpuUse(processes: () => { name: string; pid: number }[]): () => CpuUse {
  const began = performance.now();
  const before = machineTicks();
  const earlier = new Map(processes().map(({ pid }) => [pid, cpuOf(pid)]));
  return () => {
    const spentMs: Record<string, number> = {};
    for (const { name, pid } of processes())
      spentMs[name] = (spentMs[name] ?? 0) + Math.max(0, cpuOf(pid) - (earlier.get(pid) ?? 0));
    const now = machineTicks();
    const all = Math.max(1, now.all - before.all);
    const idle = (now.idle - before.idle) / all;
    const stolen = (now.stolen - before.stolen) / all;
    return { ms: performance.now() - began, spentMs, idle, stolen, saturated: idle < SATURATED };
  };
}
