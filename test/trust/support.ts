/** Clusters and hosts for tests: certificates in memory, or in a folder of the test's. */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { makeAuthority, makeHost, type KeyPair, type Validity } from '../../src/trust/authority.ts';
import type { Credentials } from '../../src/trust/credentials.ts';

export function folder(t: { teardown(fn: () => unknown): unknown }): string {
  const path = mkdtempSync(join(tmpdir(), 'pt-trust-'));
  t.teardown(() => rmSync(path, { recursive: true, force: true }));
  return path;
}

/** Valid once, and not any more. */
export const EXPIRED: Validity = {
  notBefore: new Date(Date.now() - 3_600_000),
  notAfter: new Date(Date.now() - 60_000),
};

export interface TestCluster {
  authority: KeyPair;
  /** A host's credentials; for 127.0.0.1 unless told otherwise. */
  host(name: string, addresses?: string[], validity?: Validity): Promise<Credentials>;
}

export async function trustCluster(): Promise<TestCluster> {
  const authority = await makeAuthority();
  return {
    authority,
    async host(name, addresses = ['127.0.0.1'], validity) {
      const { certificate, key } = await makeHost(authority, name, addresses, validity);
      return { ca: authority.certificate, certificate, key };
    },
  };
}
