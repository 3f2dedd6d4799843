/**
 * Names of clusters on this machine. A cluster's name says which process owns it, so that what a killed one left behind is
 * found, and told from what is in use:
 *
 *   pt-PID-START-N          PID and START time (clock ticks since boot, base 36) of the owner, its N-th cluster
 *   /dev/shm/NAME           its folder
 *   /run/netns/NAME-switch  the namespace with the bridge
 *   /run/netns/NAME-1 …     a namespace a host
 */
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';

const SHM = '/dev/shm';
export const NAMESPACES = '/run/netns';
const NAME = /^(pt-([1-9]\d*)-([0-9a-z]+)-\d+)(-switch|-\d+)?$/;

/** Start time of a process, clock ticks since boot; undefined where there is none. With the pid it names a process for good. */
function startTime(pid: number): number | undefined {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, 'latin1');
    // field 22; what is before it in brackets may hold anything
    return Number(stat.slice(stat.lastIndexOf(')') + 2).split(' ')[19]);
  } catch {
    return undefined;
  }
}

let made = 0;

/** A name that no other cluster has, of this process. */
export function newName(): string {
  return `pt-${process.pid}-${startTime(process.pid)!.toString(36)}-${made++}`;
}

/** A cluster's folder: state, memory, sockets, logs and certificates of its agents. Short, as sockets' paths are bounded. */
export function folderOf(name: string): string {
  return join(SHM, name);
}

/** The variable that marks every process of a cluster, wherever it runs; its value is the cluster's folder. */
export const MARK = 'PAGETIDE_CLUSTER_MEMBER';

/** Names of the namespaces of a cluster that are there. */
export function namespacesOf(name: string): string[] {
  return list(NAMESPACES).filter((entry) => NAME.exec(entry)?.[1] === name);
}

/** Clusters of which something is there. `owned`: the process that made it lives. */
export function clustersHere(): { name: string; owned: boolean }[] {
  const found = new Map<string, boolean>();
  for (const entry of [...list(NAMESPACES), ...list(SHM)]) {
    const [, name, pid, start] = NAME.exec(entry) ?? [];
    if (name !== undefined) found.set(name, startTime(Number(pid))?.toString(36) === start);
  }
  return [...found].map(([name, owned]) => ({ name, owned }));
}

function list(folder: string): string[] {
  try {
    return readdirSync(folder);
  } catch {
    return [];
  }
}
