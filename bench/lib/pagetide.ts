/** Starts Pagetide's side of a bench, in the place of a reference handler. */
import { randomBytes } from 'node:crypto';
import { fileURLToPath } from 'node:url';
import type { PagerArguments, PagerSource } from './pagetide-pager.ts';
import type { SourceArguments } from './pagetide-source.ts';
import { pinned, type Cpus, type Handler, type Slots } from './references.ts';
import type { ProgramEvent, Scope } from './scope.ts';

export interface PagetideOptions {
  /** Microseconds that the fault worker looks for the next fault before it sleeps. */
  spinUs: number;
  guests?: number;
  cpus?: Cpus;
  /** Folder of a host's certificate: pager and page server talk mutual TLS. */
  certificates?: string | undefined;
  /** Whose sockets are read and written by Node alone, without the direct way. */
  indirect?: { pager: boolean; source: boolean } | undefined;
}

function node(scope: Scope, name: string, argument: unknown, cpus: Cpus) {
  const file = fileURLToPath(new URL(`./${name}.js`, import.meta.url));
  return scope.start(...pinned(cpus, process.execPath, [file, JSON.stringify(argument)]));
}

/** A pager over `source`: connect the toucher to its socket. */
export async function startPager(scope: Scope, source: PagerSource, options: PagetideOptions): Promise<Handler> {
  const socket = scope.path('uffd.sock');
  const { spinUs, guests = 1, cpus, certificates, indirect } = options;
  const argument: PagerArguments = { socket, guests, spinUs, source, certificates, indirect: indirect?.pager };
  const program = node(scope, 'pagetide-pager', argument, cpus);
  await program.next('ready');
  return { program, socket };
}

/** A page server over the slots' flat memory file, and a pager that asks it. */
export async function startMissPager(
  scope: Scope,
  slots: Slots,
  options: PagetideOptions & { serverCpus?: Cpus },
): Promise<Handler> {
  const migration = randomBytes(8).toString('hex');
  const token = randomBytes(24).toString('base64url');
  const { memory, frames } = slots;
  const { certificates, indirect } = options;
  const argument: SourceArguments = { memory, frames, migration, token, certificates, indirect: indirect?.source };
  const server = node(scope, 'pagetide-source', argument, options.serverCpus);
  const { url } = (await server.next('ready')) as ProgramEvent & { url: string };
  return startPager(scope, { kind: 'peer', url, migration, token, frames }, options);
}
