/**
 * A cluster on this machine: agents with certificates, each in a network namespace of its own behind a limited link where that
 * is possible, on loopback otherwise; a domain that all of them have.
 */
import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { PagetideError } from '../../../src/errors.ts';
import { makeAuthority, makeHost } from '../../../src/trust/authority.ts';
import { HOST_FILES, writeHost } from '../../../src/trust/pem-files.ts';
import { ClusterAgent } from './agent.ts';
import { endCluster } from './end.ts';
import { folderOf, newName } from './names.ts';
import { createNetwork, MOST_HOSTS, type Network } from './network.ts';

const PORT = 7411;
export const DOMAIN = 'cluster';

export interface ClusterOptions {
  hosts: number;
  /** Of each link, bits a second, each way; see {@link createNetwork}. On loopback no more than the limit of each arrival's fill. */
  rate?: number;
  burst?: number;
  /** Bytes of each agent's cache. Default: none. */
  cache?: number;
  /** No namespaces: agents on loopback, as any user. */
  loopback?: boolean;
  /** More fields of each agent's configuration; `number` is the host's, from 1. Objects are merged with what is set here one level deep. */
  config?: (number: number) => Record<string, unknown>;
  /** Name of the domain that the first host makes and grants to the others; `null`: none. Default: {@link DOMAIN}. */
  domain?: string | null;
}

export interface NetnsCluster {
  readonly name: string;
  /** Of state, memory, sockets, logs, certificates; goes with the cluster. */
  readonly folder: string;
  /** Undefined on loopback. */
  readonly network: Network | undefined;
  /** Named `host-1`, `host-2` …, in order. */
  readonly hosts: readonly ClusterAgent[];
  readonly domain: string | undefined;
  /** Ends guests, agents and network at once, and removes their files. Synchronous, for handlers of signals; may be called again. */
  close(): void;
}

/**
 * Starts one; resolves when all agents are ready and have the domain.
 * @param early called with the cluster before anything of it is there, so that a signal's handler can close it at any time
 * @throws PagetideError as {@link createNetwork}, or what an agent or the domain's grant failed with; nothing is left, then
 */
export async function startCluster(
  options: ClusterOptions,
  early: (closing: { close(): void }) => void = () => undefined,
): Promise<NetnsCluster> {
  const { hosts: count, rate, burst, loopback = false } = options;
  if (!Number.isInteger(count) || count < 1 || count > MOST_HOSTS)
    throw new PagetideError('PT_BAD_ARGUMENT', `${count} hosts: 1 to ${MOST_HOSTS}`);
  const name = newName();
  const folder = folderOf(name);
  const domain = options.domain === null ? undefined : (options.domain ?? DOMAIN);
  let closed = false;
  const close = (): void => {
    closed = true;
    endCluster(name);
  };
  const stillWanted = (): void => {
    if (closed) throw new PagetideError('PT_INTERNAL', 'the cluster was closed while it started');
  };
  early({ close });
  try {
    mkdirSync(folder, { mode: 0o700 });
    const link = { ...(rate === undefined ? {} : { rate }), ...(burst === undefined ? {} : { burst }) };
    const network = loopback ? undefined : createNetwork({ hosts: count, name, ...link });
    const authority = await makeAuthority();
    const hosts: ClusterAgent[] = [];
    for (let number = 1; number <= count; number++) {
      const at = network?.hosts[number - 1];
      const host = `host-${number}`;
      const address = at?.address ?? '127.0.0.1';
      const keys = await makeHost(authority, host, [address]);
      stillWanted();
      const certificates = join(folder, host, 'certificates');
      await writeHost(certificates, authority.certificate, keys);
      const config = configOf(certificates, options, number);
      const port = network === undefined ? 0 : PORT;
      hosts.push(new ClusterAgent({ cluster: folder, name: host, address, port, namespace: at?.namespace, config }));
    }
    stillWanted();
    await Promise.all(hosts.map((host) => host.start()));
    const [home, ...others] = hosts;
    if (domain !== undefined) {
      await home!.client.createDomain(domain);
      for (const { url } of others) await home!.client.grantDomain(domain, url);
    }
    stillWanted();
    return { name, folder, network, hosts, domain, close };
  } catch (error) {
    close();
    throw error;
  }
}

function configOf(certificates: string, options: ClusterOptions, number: number): Record<string, unknown> {
  const { cache, loopback, rate } = options;
  const tls = {
    ca: join(certificates, HOST_FILES.ca),
    certificate: join(certificates, HOST_FILES.certificate),
    key: join(certificates, HOST_FILES.key),
  };
  const own: Record<string, unknown> = {
    tls,
    log: { level: 'info' },
    ...(cache === undefined ? {} : { cache: { size: cache } }),
    ...(loopback === true && rate !== undefined ? { fill: { bandwidth: Math.max(65_536, Math.floor(rate / 8)) } } : {}),
  };
  for (const [key, value] of Object.entries(options.config?.(number) ?? {})) {
    const before = own[key];
    const merges = isObject(before) && isObject(value);
    own[key] = merges ? { ...before, ...value } : value;
  }
  return own;
}

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}
