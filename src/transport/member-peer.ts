/** How another member of a domain is reached: where it is sure who answers, over mutual TLS or by its control socket on this host. */
import { checkSocket, parseAddress } from '../domains/address.ts';
import type { Member } from '../domains/records.ts';
import type { PeerClient } from './peer.ts';

export type ConnectPeer = (
  url: string,
  options: { expect?: string | undefined; socketPath?: string | undefined },
) => PeerClient;

/** @throws PagetideError as `work`; `PT_PEER_UNREACHABLE`, `PT_PEER_UNTRUSTED` */
export async function withMember<T>(
  connect: ConnectPeer,
  { host, url }: Member,
  work: (peer: PeerClient) => Promise<T>,
): Promise<T> {
  // one on this host is called by its control socket; `url` is that of its pages, where anybody may listen
  const { url: address, socketPath } = parseAddress(host.startsWith('unix:') ? host : url);
  if (socketPath !== undefined) await checkSocket(socketPath);
  const peer = connect(address, { expect: socketPath === undefined ? host : undefined, socketPath });
  try {
    return await work(peer);
  } finally {
    await peer.close();
  }
}
