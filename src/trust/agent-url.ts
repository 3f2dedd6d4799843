/** Agents' URLs, and which of them may go without TLS. */
import { BlockList, isIP } from 'node:net';

const loopback = new BlockList();
loopback.addSubnet('127.0.0.0', 8, 'ipv4');
loopback.addAddress('::1', 'ipv6');

/** Whether a host of a URL, or an address, is this machine's own loopback. A name may mean anything, but for `localhost`. */
export function isLoopback(host: string): boolean {
  const family = isIP(host);
  return family === 0 ? host === 'localhost' : loopback.check(host, family === 4 ? 'ipv4' : 'ipv6');
}

export interface AgentUrl {
  origin: string;
  /** Without brackets. */
  host: string;
  secure: boolean;
  loopback: boolean;
}

/** `https://HOST[:PORT]` or `http://HOST[:PORT]`; undefined for anything else. */
export function agentUrl(text: string): AgentUrl | undefined {
  let url: URL;
  try {
    url = new URL(text);
  } catch {
    return undefined;
  }
  if (url.protocol !== 'http:' && url.protocol !== 'https:') return undefined;
  const host = url.hostname.replace(/^\[(.*)\]$/, '$1');
  return { origin: url.origin, host, secure: url.protocol === 'https:', loopback: isLoopback(host) };
}
