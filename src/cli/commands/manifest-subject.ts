/** What `pagetide manifest` looks at: a memory file, a manifest that was written before, or a guest of the agent. */
import { existsSync, statSync } from 'node:fs';
import { resolve } from 'node:path';
import { checkGuestName } from '../../agent/names.ts';
import { asPagetideError, PagetideError } from '../../errors.ts';
import { memoryFileOf, openMemory, scanMemory, type ScanOptions } from '../../pages/file-manifest.ts';
import { isManifestFile, readManifest } from '../../pages/manifest-file.ts';
import type { Manifest } from '../../pages/manifest.ts';
import { TAG_PAGE } from '../../pages/tags.ts';
import type { MemoryFiles } from '../../transport/memory-file.ts';
import type { OfferedFile } from '../../transport/server-messages.ts';
import type { Context } from '../context.ts';

export interface Subject {
  kind: 'file' | 'manifest' | 'guest';
  /** The path as resolved, or the guest's name. */
  name: string;
  /** None of a manifest: it holds names only. */
  files: OfferedFile[] | undefined;
  /** Whether it may have changed while it was read. */
  running: boolean;
}

/** A subject with its tags; `memory` is open until `close`. */
export interface Scanned {
  subject: Subject;
  manifest: Manifest;
  memory: MemoryFiles | undefined;
  close(): void;
}

/**
 * Finds out what `text` names: a file of that name goes before a guest.
 * @throws PagetideError `PT_MEMORY_FILE`, `PT_GUEST_UNKNOWN`, `PT_GUEST_STATE`, `PT_GUEST_BUSY`, `PT_PEER_UNREACHABLE`
 */
export async function findSubject(text: string, cli: Context): Promise<Subject> {
  const path = resolve(text);
  if (!existsSync(path) && isGuestName(text)) return findGuest(text, cli);
  if (isManifestFile(path)) return { kind: 'manifest', name: path, files: undefined, running: false };
  return { kind: 'file', name: path, files: [memoryFileOf(path)], running: false };
}

/** Bytes of what will be read. */
export function bytesOf({ files = [] }: Subject): number {
  return files.reduce((sum, { size }) => sum + size, 0);
}

/** Reads the manifest, or tags the memory. @param mark of the key's secret, which manifest files tell */
export async function scanSubject(
  subject: Subject,
  mark: string,
  options: Omit<ScanOptions, 'memory'>,
  cli: Context,
): Promise<Scanned> {
  if (subject.files === undefined) {
    return { subject, manifest: readManifest(subject.name, mark), memory: undefined, close: () => undefined };
  }
  const memory = openMemory(subject.files);
  try {
    const manifest = await scanMemory({ memory, ...options });
    // a guest that has left meanwhile may have taken its pages along
    if (subject.kind === 'guest') await findGuest(subject.name, cli);
    return { subject, manifest, memory, close: () => memory.release() };
  } catch (error) {
    memory.release();
    throw error;
  }
}

async function findGuest(name: string, cli: Context): Promise<Subject> {
  const client = await cli.client();
  if (!isHere(client.address))
    throw new PagetideError('PT_BAD_ARGUMENT', `the agent at ${client.address} may be another host's`, {
      hint: 'A guest’s memory is read from its files: run this on its host, with --agent unix:PATH or a loopback address.',
    });
  const guest = await client.showGuest(name).catch((thrown: unknown) => {
    const { code, message, hint, cause } = asPagetideError(thrown);
    throw new PagetideError(code, `there is no file ${name} here; as a guest: ${message}`, { hint, cause });
  });
  if (guest.state !== 'running' && guest.state !== 'paused')
    throw new PagetideError('PT_GUEST_STATE', `the guest ${name} is ${guest.state}: its memory is not whole here`);
  // pages that have not come yet are holes, which would be taken for zeros
  if (guest.migration?.direction === 'incoming')
    throw new PagetideError('PT_GUEST_BUSY', `the guest ${name} is still arriving: its memory is not whole here`);
  const missing = guest.files.find(({ path, size }) => !hasBytes(path, size));
  if (missing !== undefined)
    throw new PagetideError('PT_MEMORY_FILE', `the guest's memory ${missing.path} is not on this host`, {
      hint: 'Run this on the host of the guest’s agent, as a user who may read its memory.',
    });
  return { kind: 'guest', name, files: guest.files, running: guest.state === 'running' };
}

/** Whether an agent's address can only be one of this host. */
function isHere(address: string): boolean {
  if (address.startsWith('unix:')) return true;
  const { hostname } = new URL(address);
  return hostname === 'localhost' || hostname === '[::1]' || /^127(\.\d+){3}$/.test(hostname);
}

/** Whether the file is there with that length. */
function hasBytes(path: string, size: number): boolean {
  const info = statSync(path, { throwIfNoEntry: false });
  return info?.isFile() === true && info.size >= size && size % TAG_PAGE === 0;
}

function isGuestName(text: string): boolean {
  try {
    checkGuestName(text);
    return true;
  } catch {
    return false;
  }
}
