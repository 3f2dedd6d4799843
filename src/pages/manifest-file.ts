/**
 * A manifest on disk: what a guest leaves behind when it moves on, and what `pagetide manifest` writes.
 *
 *    0        4         8            12       16         48            80        80 + 4 × chunks
 *    ├────────┼─────────┼────────────┼────────┼──────────┼─────────────┼─────────┼──────── … ────────┤
 *    │ "PTMF" │ format  │ tag        │ frames │ digest   │ SHA-256 of  │ length  │ chunk after chunk, │
 *    │        │ u32 = 1 │ version u32│ u32    │ 32 bytes │ the domain's│ of each │ run-length coded   │
 *    │        │         │            │        │          │ name, 32    │ chunk   │                    │
 *
 * It is written beside, synced and renamed, so a file is whole or not there; and read as if it were not: every length is
 * checked before it is used, and the digest of the whole at the end.
 */
import { createHash } from 'node:crypto';
import { closeSync, constants, fstatSync, fsyncSync, openSync, readSync, renameSync, rmSync, writeSync } from 'node:fs';
import { dirname } from 'node:path';
import { PagetideError } from '../errors.ts';
import { CHUNK_FRAMES, DIGEST_BYTES, Manifest, MOST_FRAMES } from './manifest.ts';
import { tagRunsLimit } from './tag-runs.ts';
import { TAG_VERSION } from './tags.ts';

const MAGIC = 0x464d_5450;
const FORMAT = 1;
const HEADER = 48 + 32;

function domainMark(domain: string): Buffer {
  return createHash('sha256').update('pagetide domain\0').update(domain).digest();
}

/** The manifest as bytes of the format above. */
export function encodeManifest(manifest: Manifest, domain: string): Buffer {
  const header = Buffer.alloc(HEADER + manifest.chunks * 4);
  header.writeUInt32LE(MAGIC, 0);
  header.writeUInt32LE(FORMAT, 4);
  header.writeUInt32LE(TAG_VERSION, 8);
  header.writeUInt32LE(manifest.frames, 12);
  manifest.digest().copy(header, 16);
  domainMark(domain).copy(header, 48);
  const chunks: Buffer[] = [header];
  for (let index = 0; index < manifest.chunks; index++) {
    const chunk = manifest.encodeChunk(index);
    header.writeUInt32LE(chunk.length, HEADER + index * 4);
    chunks.push(chunk);
  }
  return Buffer.concat(chunks);
}

/**
 * Reads what {@link encodeManifest} made.
 * @param what names it in errors: a path
 * @throws PagetideError `PT_MANIFEST_INVALID` when it is damaged, of another format or tag version, or of another domain
 */
export function decodeManifest(bytes: Buffer, domain: string, what: string): Manifest {
  const refuse = (why: string): PagetideError => new PagetideError('PT_MANIFEST_INVALID', `${what} ${why}`);
  if (bytes.length < HEADER || bytes.readUInt32LE(0) !== MAGIC) throw refuse('is no manifest');
  const format = bytes.readUInt32LE(4);
  if (format !== FORMAT) throw refuse(`has format ${format}; this Pagetide reads ${FORMAT}`);
  const version = bytes.readUInt32LE(8);
  if (version !== TAG_VERSION) throw refuse(`has tags of version ${version}; this Pagetide has ${TAG_VERSION}`);
  if (!bytes.subarray(48, HEADER).equals(domainMark(domain))) throw refuse(`is not of the domain ${domain}`);
  const frames = bytes.readUInt32LE(12);
  if (frames < 1 || frames > MOST_FRAMES) throw refuse(`names ${frames} frames`);
  const chunks = Math.ceil(frames / CHUNK_FRAMES);
  let offset = HEADER + chunks * 4;
  // before the table is made: 16 bytes a frame for a file that is far too short for them
  if (bytes.length < offset + chunks * 2) throw refuse('ends early');
  const manifest = new Manifest(frames);
  for (let index = 0; index < chunks; index++) {
    const length = bytes.readUInt32LE(HEADER + index * 4);
    if (length > tagRunsLimit(manifest.framesOf(index)) || offset + length > bytes.length)
      throw refuse(`has a wrong length of chunk ${index}`);
    try {
      manifest.readChunk(index, bytes.subarray(offset, offset + length));
    } catch (cause) {
      throw new PagetideError('PT_MANIFEST_INVALID', `${what} is damaged in chunk ${index}`, { cause });
    }
    offset += length;
  }
  if (offset !== bytes.length) throw refuse('goes on after its last chunk');
  if (!manifest.digest().equals(bytes.subarray(16, 16 + DIGEST_BYTES))) throw refuse('does not match its own digest');
  return manifest;
}

/** Writes a manifest durably: `path` holds the old one or the new one, whole. @throws PagetideError `PT_IO`, `PT_NO_SPACE` */
export function writeManifest(path: string, manifest: Manifest, domain: string): void {
  const bytes = encodeManifest(manifest, domain);
  const fresh = `${path}.${process.pid}.new`;
  try {
    const fd = openSync(fresh, 'w', 0o600);
    try {
      for (let at = 0; at < bytes.length;) at += writeSync(fd, bytes, at);
      fsyncSync(fd);
    } finally {
      closeSync(fd);
    }
    renameSync(fresh, path);
    syncFolder(dirname(path));
  } catch (cause) {
    rmSync(fresh, { force: true });
    const full = (cause as NodeJS.ErrnoException).code === 'ENOSPC';
    throw new PagetideError(full ? 'PT_NO_SPACE' : 'PT_IO', `cannot write the manifest ${path}`, { cause });
  }
}

/** Whether the file begins as a manifest does. False for what cannot be read or is no regular file. */
export function isManifestFile(path: string): boolean {
  const start = Buffer.alloc(4);
  try {
    const fd = openSync(path, constants.O_RDONLY | constants.O_NONBLOCK);
    try {
      return fstatSync(fd).isFile() && readSync(fd, start) === start.length && start.readUInt32LE(0) === MAGIC;
    } finally {
      closeSync(fd);
    }
  } catch {
    return false;
  }
}

/** @throws PagetideError `PT_IO`, `PT_MANIFEST_INVALID` */
export function readManifest(path: string, domain: string): Manifest {
  let bytes: Buffer;
  try {
    const fd = openSync(path, 'r');
    try {
      const { size } = fstatSync(fd);
      const most = HEADER + MOST_FRAMES * 18;
      if (size > most) throw new PagetideError('PT_MANIFEST_INVALID', `${path} is too large for a manifest`);
      bytes = Buffer.alloc(size);
      for (let at = 0; at < size;) {
        const read = readSync(fd, bytes, at, size - at, at);
        if (read === 0) throw new PagetideError('PT_MANIFEST_INVALID', `${path} shrank while it was read`);
        at += read;
      }
    } finally {
      closeSync(fd);
    }
  } catch (cause) {
    if (cause instanceof PagetideError) throw cause;
    throw new PagetideError('PT_IO', `cannot read the manifest ${path}`, { cause });
  }
  return decodeManifest(bytes, domain, path);
}

function syncFolder(path: string): void {
  const fd = openSync(path, 'r');
  try {
    fsyncSync(fd);
  } finally {
    closeSync(fd);
  }
}
