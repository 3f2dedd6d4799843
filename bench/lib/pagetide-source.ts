/**
 * Pagetide's page server over one memory file, as a program of its own: the source of the miss bench.
 *
 *   node pagetide-source.js '{"memory":…,"frames":N,"migration":…,"token":…,"certificates":…}'
 *
 * stdout: {"event":"ready","url":…}. Ends with its stdin.
 */
import { forgoDirect } from '../../src/transport/direct-io.ts';
import { PageServer } from '../../src/transport/page-server.ts';
import { BENCH_HOST, takeCertificates } from './certificates.ts';

export interface SourceArguments {
  memory: string;
  frames: number;
  migration: string;
  token: string;
  /** Folder of a host's certificate: it speaks TLS. Undefined: plain HTTP. */
  certificates?: string | undefined;
  /** Its sockets are read and written by Node alone. */
  indirect?: boolean | undefined;
}

async function main(): Promise<void> {
  const { memory, frames, migration, token, certificates, indirect } = JSON.parse(process.argv[2]!) as SourceArguments;
  takeCertificates(certificates);
  if (indirect === true) forgoDirect();
  const server = await PageServer.start({ host: '127.0.0.1', port: 0, controlSocket: '/nonexistent/control.sock' });
  const files = [{ path: memory, size: frames * 4096, offset: 0 }];
  await server.offer({ migration, token, pageSize: 4096, frames, files, destination: BENCH_HOST });
  process.stdin.on('end', () => process.exit(0)).resume();
  process.stdout.write(`${JSON.stringify({ event: 'ready', url: server.address().url })}\n`);
}

if (process.argv[1]?.endsWith('pagetide-source.js') === true) {
  main().catch((error: unknown) => {
    process.stdout.write(`${JSON.stringify({ event: 'error', message: String(error) })}\n`);
    process.exitCode = 1;
  });
}
