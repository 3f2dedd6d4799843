/** Processes of a test, as /proc tells. */
import { readdirSync, readFileSync, readlinkSync } from 'node:fs';

/** Pids of living processes whose command line names something below `folder`. */
export function processesBelow(folder: string): number[] {
  return readdirSync('/proc').flatMap((entry) => {
    const pid = Number(entry);
    if (!Number.isInteger(pid) || pid === process.pid) return [];
    try {
      if (!readFileSync(`/proc/${pid}/cmdline`, 'utf8').includes(folder)) return [];
      const stat = readFileSync(`/proc/${pid}/stat`, 'latin1');
      return stat.slice(stat.lastIndexOf(')') + 2).startsWith('Z') ? [] : [pid];
    } catch {
      return [];
    }
  });
}

/** Resident memory of a process, bytes: anonymous, of files, and shared. */
export function residentBytes(pid: number): { total: number; anonymous: number; file: number; shared: number } {
  const text = readFileSync(`/proc/${pid}/status`, 'utf8');
  const field = (name: string): number =>
    Number(new RegExp(`^${name}:\\s+(\\d+) kB$`, 'm').exec(text)?.[1] ?? 0) * 1024;
  return { total: field('VmRSS'), anonymous: field('RssAnon'), file: field('RssFile'), shared: field('RssShmem') };
}

/** What the descriptors of a process are, e.g. `anon_inode:[userfaultfd]`. */
export function descriptors(pid: number): string[] {
  return readdirSync(`/proc/${pid}/fd`).flatMap((fd) => {
    try {
      return [readlinkSync(`/proc/${pid}/fd/${fd}`)];
    } catch {
      return []; // closed meanwhile: the one that lists the folder, at least
    }
  });
}

/** Bytes of a process that are registered with a userfaultfd (`um`: missing, `uw`: write-protect). */
export function registeredBytes(pid: number, flags = 'um|uw'): number {
  const registered = new RegExp(`^VmFlags:.* (${flags})( |$)`);
  let bytes = 0;
  let size = 0;
  for (const line of readFileSync(`/proc/${pid}/smaps`, 'latin1').split('\n')) {
    const head = /^([0-9a-f]+)-([0-9a-f]+) /.exec(line);
    if (head !== null) size = Number(BigInt(`0x${head[2]!}`) - BigInt(`0x${head[1]!}`));
    else if (registered.test(line)) bytes += size;
  }
  return bytes;
}

/** The TCP port that a process listens on. */
export function listeningPort(pid: number): number {
  const sockets = new Set(descriptors(pid).map((what) => /^socket:\[(\d+)\]$/.exec(what)?.[1]));
  for (const line of readFileSync(`/proc/${pid}/net/tcp`, 'latin1').split('\n').slice(1)) {
    // sl local_address rem_address st … inode; state 0A: listening
    const fields = line.trim().split(/\s+/);
    if (fields[3] === '0A' && sockets.has(fields[9])) return parseInt(fields[1]!.split(':')[1]!, 16);
  }
  throw new Error(`process ${pid} listens on no port`);
}
