/** Certificates for benches whose two sides talk TLS: of a cluster that lasts as long as the bench. */
import { join } from 'node:path';
import { makeAuthority, makeHost } from '../../src/trust/authority.ts';
import { readCredentials, setCredentials } from '../../src/trust/credentials.ts';
import { HOST_FILES, writeHost } from '../../src/trust/pem-files.ts';
import type { Scope } from './scope.ts';

/** Its name, on both sides. */
export const BENCH_HOST = 'bench';

/** One host's, for 127.0.0.1: both sides of a bench may be the same host. Resolves to its folder. */
export async function makeCertificates(scope: Scope): Promise<string> {
  const folder = scope.path('certificates');
  const authority = await makeAuthority();
  await writeHost(folder, authority.certificate, await makeHost(authority, BENCH_HOST, ['127.0.0.1']));
  return folder;
}

/** Makes those of a folder this process's, before it starts a thread. Undefined: it has none. */
export function takeCertificates(folder: string | undefined): void {
  if (folder === undefined) return;
  const { ca, certificate, key } = HOST_FILES;
  setCredentials(
    readCredentials({ ca: join(folder, ca), certificate: join(folder, certificate), key: join(folder, key) }),
  );
}
