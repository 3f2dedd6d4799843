/**
 * A domain's secret in a file: 64 hex digits, readable by its owner alone. What makes tags of different runs, or of
 * different hosts, comparable.
 */
import { createHash, randomBytes } from 'node:crypto';
import { closeSync, constants, fstatSync, openSync, readSync } from 'node:fs';
import { PagetideError } from '../errors.ts';
import { DOMAIN_KEY_BYTES } from './tags.ts';

const HINT = 'Make one with: (umask 077; openssl rand -hex 32 > KEYFILE)';
/** Longer than any key file with white space around its digits. */
const MOST_BYTES = 256;

/**
 * Reads the secret; the caller wipes it.
 * @throws PagetideError `PT_BAD_ARGUMENT` where the file is none; `PT_NO_PERMISSION` where others may read it too
 */
export function readKeyFile(path: string): Buffer {
  const bytes = Buffer.alloc(MOST_BYTES);
  try {
    let length: number;
    try {
      // O_NONBLOCK: a FIFO by mistake must not hang
      const fd = openSync(path, constants.O_RDONLY | constants.O_NONBLOCK);
      try {
        const info = fstatSync(fd);
        if (!info.isFile()) throw refuse(`the key file ${path} is no regular file`);
        if ((info.mode & 0o077) !== 0)
          throw new PagetideError('PT_NO_PERMISSION', `the key file ${path} may be read by others than its owner`, {
            hint: `chmod 600 ${path}; whoever may have read it knows the secret: better make a new one.`,
          });
        length = readSync(fd, bytes, 0, MOST_BYTES, 0);
      } finally {
        closeSync(fd);
      }
    } catch (cause) {
      if (cause instanceof PagetideError) throw cause;
      throw refuse(`cannot read the key file ${path}`, cause);
    }
    const text = bytes.toString('latin1', 0, length).trim();
    if (!/^[0-9a-f]{64}$/i.test(text)) throw refuse(`${path} does not hold a key: ${DOMAIN_KEY_BYTES * 2} hex digits`);
    return Buffer.from(text, 'hex');
  } finally {
    bytes.fill(0);
  }
}

/** A secret that nobody will have again: for comparing within one run. The caller wipes it. */
export function passingKey(): Buffer {
  return randomBytes(DOMAIN_KEY_BYTES);
}

/** Before the 32 hex digits of a mark. */
export const MARK_PREFIX = 'key:';

/**
 * Names a secret without giving it away: what a manifest file says it was made with. Secrets are random, so nobody finds
 * one by trying.
 */
export function keyMark(secret: Uint8Array): string {
  return MARK_PREFIX + markOf(secret).toString('hex', 0, 16);
}

/** The number by which a cache file knows the domain of a secret: the same in every run. */
export function keyNumber(secret: Uint8Array): number {
  return markOf(secret).readUInt32LE(16);
}

function markOf(secret: Uint8Array): Buffer {
  return createHash('sha256').update('pagetide key 1\0').update(secret).digest();
}

function refuse(message: string, cause?: unknown): PagetideError {
  return new PagetideError('PT_BAD_ARGUMENT', message, cause === undefined ? { hint: HINT } : { cause, hint: HINT });
}
