/** The address that an agent's port is bound to. */
import { isIP } from 'node:net';
import { PagetideError } from '../errors.ts';
import { isLoopback } from '../trust/agent-url.ts';

export interface ListenAddress {
  /** IPv4 or IPv6, without brackets. */
  host: string;
  /** 0: any free one. */
  port: number;
}

/**
 * `127.0.0.1:7411`, `[::1]:7411` or `localhost:7411`.
 * @param secure the port will speak TLS: without, addresses beyond loopback are refused
 * @throws PagetideError `PT_BAD_CONFIG`
 */
export function parseListen(text: string, secure: boolean): ListenAddress {
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
  if (!secure && !isLoopback(host)) {
    throw new PagetideError(
      'PT_BAD_CONFIG',
      `listen: ${host} is not a loopback address, and there are no certificates`,
      {
        hint: 'Without certificates anyone on the network could take guests: give some (`pagetide cluster --help`), or use 127.0.0.1.',
      },
    );
  }
  return { host, port };
}

/** The URL of an address, as other agents need it. */
export function urlOf(address: ListenAddress, secure = false): string {
  const host = isIP(address.host) === 6 ? `[${address.host}]` : address.host;
  return `${secure ? 'https' : 'http'}://${host}:${address.port}`;
}
