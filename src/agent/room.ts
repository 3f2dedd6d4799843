/** Whether this host has room for a guest that wants to come. */
import { readFile, statfs } from 'node:fs/promises';
import { PagetideError } from '../errors.ts';

/** Bytes that can be had without swapping, by the kernel's own estimate. */
async function availableMemory(): Promise<number> {
  const text = await readFile('/proc/meminfo', 'utf8');
  const match = /^MemAvailable:\s+(\d+) kB$/m.exec(text);
  if (match === null) throw new PagetideError('PT_UNSUPPORTED_HOST', '/proc/meminfo lacks MemAvailable');
  return Number(match[1]) * 1024;
}

/** Bytes of guest memory that fit here: what the host's memory and the file system of the memory folder have left. */
export async function roomLeft(memoryFolder: string, memory: () => Promise<number> = availableMemory): Promise<number> {
  const [{ bavail, bsize }, available] = await Promise.all([statfs(memoryFolder), memory()]);
  return Math.min(bavail * bsize, available);
}

/**
 * Refuses a guest of `bytes` that does not fit as a whole, before anything is started for it: a page that can't be
 * installed after the switch would stop it there.
 * `memory` tells how many bytes can be had.
 * @throws PagetideError `PT_NO_MEMORY`, `PT_NO_SPACE`
 */
export async function checkRoom(
  bytes: number,
  memoryFolder: string,
  memory: () => Promise<number> = availableMemory,
): Promise<void> {
  const { bavail, bsize } = await statfs(memoryFolder);
  if (bavail * bsize < bytes) {
    throw new PagetideError(
      'PT_NO_SPACE',
      `${memoryFolder} has ${bavail * bsize} bytes left, the guest needs ${bytes}`,
    );
  }
  const available = await memory();
  if (available < bytes) {
    throw new PagetideError(
      'PT_NO_MEMORY',
      `this host has ${available} bytes of memory left, the guest needs ${bytes}`,
    );
  }
}
