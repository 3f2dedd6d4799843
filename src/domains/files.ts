/** Files that are there whole or not at all, also after a power cut, and only for their owner. */
import { constants } from 'node:fs';
import { chmod, mkdir, open, readdir, rename, rm, stat } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { asPagetideError, type PagetideError } from '../errors.ts';

/** Ends the name of a file that is being written. */
export const UNFINISHED = '.new';

/**
 * Writes a file, mode 0600, over what has that name. Resolves when it is on the disk; a crash before leaves what was there.
 * @throws PagetideError `PT_NO_SPACE`, `PT_IO`; what was there is still there then, unless only its folder could not be
 * made durable
 */
export async function writeWhole(path: string, content: string | Uint8Array | Iterable<Uint8Array>): Promise<void> {
  const early = path + UNFINISHED;
  try {
    await rm(early, { force: true });
    // not over a file of somebody else's making, whose mode it would keep
    const file = await open(early, constants.O_WRONLY | constants.O_CREAT | constants.O_EXCL, 0o600);
    try {
      // from where the one before ended
      for (const piece of typeof content === 'string' || content instanceof Uint8Array ? [content] : content)
        await file.writeFile(piece);
      await file.sync();
    } finally {
      await file.close();
    }
    await rename(early, path);
    await syncFolder(dirname(path));
  } catch (error) {
    await rm(early, { force: true }).catch(() => undefined);
    throw failure(error, `cannot write ${path}`);
  }
}

/** Removes a file for good: it stays away after a power cut. @throws PagetideError `PT_IO` */
export async function removeFile(path: string): Promise<void> {
  try {
    await rm(path, { force: true });
    await syncFolder(dirname(path));
  } catch (error) {
    throw failure(error, `cannot remove ${path}`);
  }
}

/** Makes the folder, 0700, and clears it of what a crash left unfinished. Resolves to the names in it. */
export async function openFolder(path: string): Promise<string[]> {
  try {
    await mkdir(path, { recursive: true, mode: 0o700 });
    await chmod(path, 0o700); // it may have been there, and umask may have its own ideas
    const names = await readdir(path);
    const unfinished = names.filter((name) => name.endsWith(UNFINISHED));
    for (const name of unfinished) await rm(join(path, name), { force: true });
    return names.filter((name) => !unfinished.includes(name));
  } catch (error) {
    throw failure(error, `cannot open the folder ${path}`);
  }
}

/** Keeps a file to its owner; resolves to whether others could read it until now. */
export async function keepToOwner(path: string): Promise<boolean> {
  const { mode } = await stat(path);
  if ((mode & 0o077) === 0) return false;
  await chmod(path, 0o600);
  return true;
}

/** Makes names in a folder durable. */
async function syncFolder(path: string): Promise<void> {
  const folder = await open(path, 'r');
  await folder.sync().finally(() => folder.close());
}

function failure(error: unknown, message: string): PagetideError {
  const { code } = error as NodeJS.ErrnoException;
  return asPagetideError(error, code === 'ENOSPC' || code === 'EDQUOT' ? 'PT_NO_SPACE' : 'PT_IO', message);
}
