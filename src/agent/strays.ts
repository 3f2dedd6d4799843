/**
 * What was started for a guest and never made it into the journal, because the agent died in between. Known by the marks
 * of src/guests/marks.ts, which launcher and VMM carry from the moment that they are there.
 */
import { readdir, readFile, rm } from 'node:fs/promises';
import { join } from 'node:path';
import type { GuestPlace } from '../guests/driver.ts';
import { FOLDER_VARIABLE, memoryPrefix } from '../guests/marks.ts';
import { endProcess, startTimeOf } from '../guests/process.ts';

/** Ends them, waits until they are dead, and removes memory files of the guest that nobody in `kept` uses. */
export async function endStrays(
  place: GuestPlace,
  kept: { pids: ReadonlySet<number>; files: ReadonlySet<string> },
): Promise<void> {
  // A launcher may have forked while its children were looked for: until a look finds none.
  for (;;) {
    const strays = (await markedProcesses(place.folder)).filter((pid) => !kept.pids.has(pid));
    if (strays.length === 0) break;
    for (const pid of strays) {
      const startTime = startTimeOf(pid);
      if (startTime !== undefined) await endProcess({ pid, startTime }, 0);
    }
  }
  const own = `${memoryPrefix(place)}.`;
  for (const file of await readdir(place.memoryFolder).catch(() => [])) {
    const path = join(place.memoryFolder, file);
    if (file.startsWith(own) && !kept.files.has(path)) await rm(path, { force: true });
  }
}

async function markedProcesses(folder: string): Promise<number[]> {
  const mark = Buffer.from(`\0${FOLDER_VARIABLE}=${folder}\0`);
  const found: number[] = [];
  for (const entry of await readdir('/proc')) {
    const pid = Number(entry);
    if (!Number.isInteger(pid) || pid === process.pid) continue;
    try {
      // empty for one that is dead and waits for its parent
      const environment = await readFile(`/proc/${pid}/environ`);
      if (Buffer.concat([Buffer.alloc(1), environment]).includes(mark)) found.push(pid);
    } catch {
      // gone meanwhile, or another user's
    }
  }
  return found;
}
