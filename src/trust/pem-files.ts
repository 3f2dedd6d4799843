/** Certificates and keys as files: only for their owner, whole or not there, and never over another. */
import { randomBytes } from 'node:crypto';
import { link, lstat, mkdir, open, readFile, rm } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { PagetideError } from '../errors.ts';
import type { KeyPair } from './authority.ts';

/** Largest file that is read as PEM, bytes. */
const FILE_LIMIT = 256 * 1024;

/** Names of the files of a cluster's folder, and of a host's. */
export const CLUSTER_FILES = { certificate: 'ca.pem', key: 'ca-key.pem' } as const;
export const HOST_FILES = { ca: 'ca.pem', certificate: 'host.pem', key: 'host-key.pem' } as const;

/** @throws PagetideError `PT_FILE_EXISTS`, `PT_NO_PERMISSION`, `PT_IO` */
export function writeCluster(folder: string, pair: KeyPair): Promise<void> {
  return writeAll(folder, [
    [CLUSTER_FILES.key, pair.key],
    [CLUSTER_FILES.certificate, pair.certificate],
  ]);
}

/** The authority of a cluster's folder. @throws PagetideError `PT_BAD_CERTIFICATE`, `PT_NO_PERMISSION` */
export async function readCluster(folder: string): Promise<KeyPair> {
  const [certificate, key] = await Promise.all([
    readPem(join(folder, CLUSTER_FILES.certificate)),
    readPem(join(folder, CLUSTER_FILES.key)),
  ]);
  return { certificate, key };
}

/** @throws PagetideError `PT_FILE_EXISTS`, `PT_NO_PERMISSION`, `PT_IO` */
export function writeHost(folder: string, ca: string, pair: KeyPair): Promise<void> {
  return writeAll(folder, [
    [HOST_FILES.key, pair.key],
    [HOST_FILES.certificate, pair.certificate],
    [HOST_FILES.ca, ca],
  ]);
}

/** All or none of them: what one command makes belongs together. */
async function writeAll(folder: string, files: [name: string, text: string][]): Promise<void> {
  const written: string[] = [];
  try {
    await mkdir(folder, { recursive: true, mode: 0o700 });
    // said before anything is written, though it is `link` that keeps the promise
    for (const [name] of files) await refuseExisting(join(folder, name));
    for (const [name, text] of files) {
      const path = join(folder, name);
      await writeNew(path, text);
      written.push(path);
    }
  } catch (error) {
    for (const path of written) await rm(path, { force: true });
    throw explain(folder, error);
  }
}

/**
 * Writes a file that isn't there yet, mode 0600. It appears whole and on the disk, under a name that nobody had: `link`
 * fails where a rename would replace.
 */
async function writeNew(path: string, text: string): Promise<void> {
  const early = `${path}.${randomBytes(6).toString('hex')}`;
  const file = await open(early, 'wx', 0o600);
  try {
    await file.writeFile(text);
    await file.sync();
    await file.close();
    await link(early, path);
  } finally {
    await file.close().catch(() => undefined);
    await rm(early, { force: true });
  }
  const folder = await open(dirname(path), 'r');
  await folder.sync().finally(() => folder.close());
}

async function refuseExisting(path: string): Promise<void> {
  const found = await lstat(path).catch((error: unknown) => {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined;
    throw error;
  });
  if (found !== undefined) throw existing(path);
}

function existing(path: string, cause?: unknown): PagetideError {
  return new PagetideError('PT_FILE_EXISTS', `${path} is there already; nothing was changed`, {
    ...(cause === undefined ? {} : { cause }),
  });
}

function explain(path: string, error: unknown): PagetideError {
  if (error instanceof PagetideError) return error;
  const { code, dest } = error as NodeJS.ErrnoException & { dest?: string };
  if (code === 'EEXIST') return existing(dest ?? path, error);
  const permission = code === 'EACCES' || code === 'EPERM' || code === 'EROFS';
  return new PagetideError(permission ? 'PT_NO_PERMISSION' : 'PT_IO', `cannot write to ${path}`, {
    cause: error,
    ...(permission ? { hint: 'Choose a folder that you may write to.' } : {}),
  });
}

async function readPem(path: string): Promise<string> {
  try {
    const text = await readFile(path, 'utf8');
    if (text.length > FILE_LIMIT) throw new Error(`it is larger than ${FILE_LIMIT} bytes`);
    return text;
  } catch (cause) {
    const { code } = cause as NodeJS.ErrnoException;
    if (code === 'EACCES')
      throw new PagetideError('PT_NO_PERMISSION', `may not read ${path}`, {
        cause,
        hint: 'It belongs to the user who made the cluster; use that user, or sudo.',
      });
    throw new PagetideError('PT_BAD_CERTIFICATE', `cannot read ${path}`, {
      cause,
      hint: '`pagetide cluster init --dir FOLDER` makes a cluster.',
    });
  }
}
