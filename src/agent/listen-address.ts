/** The address that an agent's port is bound to. */
import { BlockList, isIP } from 'node:net';
import { PagetideError } from '../errors.ts';

export interface ListenAddress {
  /** IPv4 or IPv6, without brackets. */
  host: string;
  /** 0: any free one. */
  port: number;
}

const loopback = new BlockList();
loopback.addSubnet('127.0.0.0', 8, 'ipv4');
loopback.addAddress('::1', 'ipv6');

/** `127.0.0.1:7411`, `[::1]:7411` or `localhost:7411`. Throws `PT_BAD_CONFIG`, also for addresses beyond loopback. */
export function parseListen(text: string): ListenAddress {
  const match = /^(?:\[([0-9a-fA-F:.]+)\]|([^\s:[\]]+)):(\d{1,5})$/.exec(text);
  const given = match?.[1] ?? match?.[2];
  const port = Number(match?.[3]);
  if (given === undefined || port > 65_535) {
    throw new PagetideError('PT_BAD_CONFIG', `listen: "${text.slice(0, 80)}" is no address and port`, {
      hint: 'E.g. 127.0.0.1:7411 or [::1]:7411.',
    });
  }
  const host = given === 'localhost' ? '127.0.0.1' : given;
  const family = isIP(host);
  if (family === 0) {
    throw new PagetideError('PT_BAD_CONFIG', `listen: "${host}" is no IP address`, {
      hint: 'E.g. 127.0.0.1:7411; a name may stand for several addresses.',
    });
  }
  if (!loopback.check(host, family === 4 ? 'ipv4' : 'ipv6')) {
    throw new PagetideError('PT_BAD_CONFIG', `listen: ${host} is not a loopback address`, {
      hint: 'Agents have no certificates yet, so anyone on the network could take guests: use 127.0.0.1, and a tunnel between hosts.',
    });
  }
  return { host, port };
}

/** The URL of an address, as other agents need it. */
export function urlOf(address: ListenAddress): string {
  const host = isIP(address.host) === 6 ? `[${address.host}]` : address.host;
  return `http://${host}:${address.port}`;
}
