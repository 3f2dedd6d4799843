/**
 * What marks processes and memory files as one agent's, for one guest, so that those that never made it into a journal are
 * found again after a crash; and nothing else is: other agents may share the folder of memory files and know a guest of
 * the same name, and an operator may look at a guest's folder with any tool.
 */
import { createHash } from 'node:crypto';
import type { GuestPlace } from './driver.ts';

/** Set in the environment of a launched VMM, and of the launcher before it: the guest's folder, which no two agents share. */
export const FOLDER_VARIABLE = 'PAGETIDE_GUEST_FOLDER';

/** Environment for what is launched for a guest. */
export function markOf(place: GuestPlace): Record<string, string> {
  return { [FOLDER_VARIABLE]: place.folder };
}

/**
 * How the names of the guest's files in the memory folder begin. A name of a guest holds no dot, so no guest's prefix is
 * the beginning of another's.
 */
export function memoryPrefix(place: GuestPlace): string {
  return `${place.name}.${createHash('sha256').update(place.folder).digest('hex').slice(0, 8)}`;
}
