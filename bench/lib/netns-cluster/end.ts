/** Ends a cluster: its processes, namespaces and folder. Synchronous, so that it can be done in a signal's handler. */
import { readdirSync, readFileSync, rmSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { PagetideError } from '../../../src/errors.ts';
import { ip } from './ip.ts';
import { clustersHere, folderOf, MARK, NAMESPACES, namespacesOf } from './names.ts';

/** How long killed processes may take to be gone, milliseconds: large memory has to be freed. */
const GONE_MS = 20_000;
const LOOK_MS = 5;

/**
 * Ends what there is of a cluster; nothing is fine, too, and what was half made. Everything that runs in its namespaces ends,
 * also what a user started there.
 * @throws PagetideError `PT_IO` where something can't be removed; the rest is, then
 */
export function endCluster(name: string): void {
  const failures: string[] = [];
  endProcesses(name, failures);
  for (const namespace of namespacesOf(name)) {
    const { ok, text } = ip('netns', 'del', namespace);
    if (!ok && namespacesOf(name).includes(namespace)) failures.push(text);
  }
  try {
    rmSync(folderOf(name), { recursive: true, force: true });
  } catch (error) {
    failures.push(String(error));
  }
  if (failures.length > 0)
    throw new PagetideError('PT_IO', `cluster ${name} is not gone: ${failures.join('; ')}`, {
      hint: 'Try `npm run cluster -- --clean` as the user who made it.',
    });
}

/** Ends all clusters whose owner is dead. Returns their names. @throws as {@link endCluster} */
export function clean(): string[] {
  const dead = clustersHere().flatMap(({ name, owned }) => (owned ? [] : [name]));
  for (const name of dead) endCluster(name);
  return dead;
}

/** Kills, and looks again: a process that is about to die may just have started another. */
function endProcesses(name: string, failures: string[]): void {
  const deadline = performance.now() + GONE_MS;
  const clock = new Int32Array(new SharedArrayBuffer(4));
  for (;;) {
    const pids = processesOf(name);
    if (pids.length === 0) return;
    if (performance.now() > deadline) {
      failures.push(`processes ${pids.join(', ')} do not end`);
      return;
    }
    for (const pid of pids) {
      try {
        process.kill(pid, 'SIGKILL');
      } catch {
        // gone meanwhile
      }
    }
    Atomics.wait(clock, 0, 0, LOOK_MS);
  }
}

/** Pids of what carries the cluster's mark or runs in one of its namespaces, this process aside. */
export function processesOf(name: string): number[] {
  const mark = `${MARK}=${folderOf(name)}`;
  const namespaces = new Set(namespacesOf(name).flatMap((namespace) => inode(join(NAMESPACES, namespace))));
  return readdirSync('/proc').flatMap((entry) => {
    const pid = Number(entry);
    if (!Number.isInteger(pid) || pid === process.pid) return [];
    if (namespaces.size > 0 && inode(`/proc/${pid}/ns/net`).some((one) => namespaces.has(one))) return [pid];
    try {
      return readFileSync(`/proc/${pid}/environ`, 'utf8').split('\0').includes(mark) ? [pid] : [];
    } catch {
      return []; // dead, or another user's
    }
  });
}

function inode(path: string): number[] {
  try {
    return [statSync(path).ino];
  } catch {
    return [];
  }
}
