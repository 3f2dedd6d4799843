/** Which domains made here have something in a Redis; what an agent without a Redis needs as well. */
import { mkdir, readdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';

/** In a domain's folder at its home: there is something of it in a Redis. */
const MARK = 'redis';

/** Remembers over restarts that a domain made here has something in a Redis. @throws as `writeFile` */
export async function markRedis(folder: string): Promise<void> {
  await mkdir(folder, { recursive: true, mode: 0o700 });
  await writeFile(join(folder, MARK), '', { mode: 0o600 });
}

/** Whether {@link markRedis} was called for the folder. */
export async function isMarked(folder: string): Promise<boolean> {
  const names: string[] = await readdir(folder).catch(() => []);
  return names.includes(MARK);
}
