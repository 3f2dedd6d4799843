/** How another agent is reached where secrets are at stake: over mutual TLS, or by its control socket on this host. */
import { lstat } from 'node:fs/promises';
import { isAbsolute } from 'node:path';
import { PagetideError } from '../errors.ts';
import { agentUrl } from '../trust/agent-url.ts';
import { isHostName } from '../trust/identity.ts';

/** The port of an agent unless its configuration says otherwise. */
const PORT = 7411;
const UNIX = 'unix:';
const HINT = 'E.g. host-b, https://host-b:7411, or unix:PATH of the control socket of another agent on this host.';

export interface Address {
  /** `https://HOST:PORT`, or `unix:PATH`. */
  url: string;
  socketPath: string | undefined;
}

/**
 * A host's name (its agent is at the usual port), an https:// URL, or unix:PATH.
 * @throws PagetideError `PT_BAD_ARGUMENT`; `PT_PEER_UNTRUSTED` for plain HTTP
 */
export function parseAddress(text: string): Address {
  if (text.startsWith(UNIX)) {
    // also unix:///path, as others write it
    const socketPath = text.slice(UNIX.length).replace(/^\/\/(?=\/)/, '');
    if (!isAbsolute(socketPath) || socketPath.includes('\0'))
      throw new PagetideError('PT_BAD_ARGUMENT', `"${text.slice(0, 200)}" is no absolute path of a control socket`);
    return { url: UNIX + socketPath, socketPath };
  }
  const named: boolean = isHostName(text);
  if (named) return { url: `https://${text}:${PORT}`, socketPath: undefined };
  const url = agentUrl(text);
  if (url === undefined)
    throw new PagetideError('PT_BAD_ARGUMENT', `"${text.slice(0, 200)}" is no host`, { hint: HINT });
  if (url.secure) return { url: url.origin, socketPath: undefined };
  throw new PagetideError(
    'PT_PEER_UNTRUSTED',
    `no secret goes over plain HTTP: nobody knows who listens at ${url.origin}`,
    {
      hint: url.loopback
        ? 'For an agent on this host give its control socket, unix:PATH; or give both agents certificates.'
        : 'Give that agent a certificate, and its https:// URL.',
    },
  );
}

/**
 * Throws unless a control socket is this user's own: whoever may bind there would be given the secret.
 * @throws PagetideError `PT_PEER_UNREACHABLE`, `PT_PEER_UNTRUSTED`
 */
export async function checkSocket(path: string): Promise<void> {
  const found = await lstat(path).catch((cause: unknown) => {
    throw new PagetideError('PT_PEER_UNREACHABLE', `no agent at ${UNIX}${path}`, { cause });
  });
  if (found.isSocket() && found.uid === process.getuid?.()) return;
  throw new PagetideError('PT_PEER_UNTRUSTED', `${path} is no control socket of this user`, {
    hint: 'Both agents must run as the same user; otherwise give them certificates, and the https:// URL.',
  });
}
