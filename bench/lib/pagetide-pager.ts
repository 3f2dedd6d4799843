/**
 * Pagetide's own parts as a pager for benches: the hand-over listener, a session, the fault and fill workers of
 * production, over an arena of slots, a memory file, or a page server elsewhere. A program of its own, so that it has
 * the process topology of the reference handlers.
 *
 *   node pagetide-pager.js '{"socket":…,"guests":N,"spinUs":N,"source":{…}}'
 *
 * stdout: {"event":"ready"} when the socket listens, {"event":"attached"} for each guest, {"event":"filled"} after
 * `fill` on stdin. `rss` on stdin gives {"event":"rss","bytes":…}. Ends with its stdin.
 */
import { readFileSync } from 'node:fs';
import { createInterface } from 'node:readline';
import { GuestService } from '../../src/memory/guest-service.ts';
import { HandoverListener } from '../../src/memory/handover.ts';
import { native } from '../../src/memory/native.ts';
import type { PagesSpec } from '../../src/memory/worker-messages.ts';
import { WorkerPools } from '../../src/memory/worker-pools.ts';
import { takeCertificates } from './certificates.ts';

export type PagerSource =
  | { kind: 'slots'; arena: string; table: string }
  | { kind: 'file'; path: string }
  | { kind: 'peer'; url: string; migration: string; token: string; frames: number };

export interface PagerArguments {
  socket: string;
  guests: number;
  spinUs: number;
  source: PagerSource;
  /** Folder of a host's certificate, for a source that speaks TLS. */
  certificates?: string | undefined;
}

const PAGE = 4096;

function say(event: Record<string, unknown>): void {
  process.stdout.write(`${JSON.stringify(event)}\n`);
}

function pagesOf(source: PagerSource): PagesSpec {
  if (source.kind === 'file') return source;
  if (source.kind === 'peer') return { ...source, pageSize: PAGE, patient: false };
  const table = readFileSync(source.table);
  const slots = new Uint32Array(new SharedArrayBuffer(table.length));
  new Uint8Array(slots.buffer).set(table);
  const count = slots.reduce((most, slot) => Math.max(most, slot + 1), 0);
  const arena = native().createArena(source.arena, PAGE, count);
  // Enters the arena into this process's page table, as that of a pager that has written its cache itself is.
  const view = native().arenaView(arena);
  let sum = 0;
  for (let at = 0; at < view.length; at += PAGE) sum += view[at]!;
  if (sum < 0) throw new Error('unreachable');
  return { kind: 'arena', arena, slots };
}

async function main(): Promise<void> {
  const options = JSON.parse(process.argv[2]!) as PagerArguments;
  takeCertificates(options.certificates);
  const pages = pagesOf(options.source);
  const pools = new WorkerPools(options.guests);
  const listener = new HandoverListener(options.socket);
  const services: GuestService[] = [];
  createInterface({ input: process.stdin })
    .on('line', (line) => {
      if (line === 'rss') say({ event: 'rss', bytes: process.memoryUsage.rss() });
      if (line === 'fill') for (const service of services) service.fill();
    })
    .on('close', () => process.exit(0));
  say({ event: 'ready' });
  for (;;) {
    const { uffd, regions, pageSize } = await listener.next();
    const session = native().createSession({ uffd, regions, pageSize, shared: false });
    const fill = { batchFrames: 256, window: 4, bandwidth: 0 };
    const service = new GuestService({ session, place: pools.take(), pages, spinMicros: options.spinUs, fill });
    service.on('filled', () => say({ event: 'filled' }));
    service.on('failed', (error) => say({ event: 'error', message: error.message }));
    service.on('foreign', (frame) => say({ event: 'error', message: `foreign page in frame ${frame}` }));
    await service.ready();
    service.serve();
    services.push(service);
    say({ event: 'attached' });
  }
}

if (process.argv[1]?.endsWith('pagetide-pager.js') === true) {
  main().catch((error: unknown) => {
    say({ event: 'error', message: String(error) });
    process.exitCode = 1;
  });
}
