/**
 * Who is at the other end of a connection: the name in its certificate, once that is known to be of the cluster; and
 * what to say when it isn't.
 */
import type { Duplex } from 'node:stream';
import { TLSSocket } from 'node:tls';
import { PagetideError } from '../errors.ts';

/** A label of a host's name, and the name as a whole; 64 is what a certificate's own name field holds. */
const LABEL = '[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?';
const HOST_NAME = new RegExp(`^${LABEL}(?:\\.${LABEL})*$`);
const MOST_CHARACTERS = 64;

export function isHostName(name: unknown): name is string {
  // what ends in a number would be read as an address
  return typeof name === 'string' && name.length <= MOST_CHARACTERS && HOST_NAME.test(name) && !/(^|\.)\d+$/.test(name);
}

/** Throws `PT_BAD_ARGUMENT` unless `name` may name a host in a certificate. */
export function checkHostName(name: string): string {
  const valid: boolean = isHostName(name);
  if (valid) return name;
  throw new PagetideError('PT_BAD_ARGUMENT', `"${name.slice(0, 80)}" cannot be a host's name`, {
    hint: `Small letters, digits, dashes and dots, ${MOST_CHARACTERS} at most, e.g. host-b or host-b.example.org.`,
  });
}

/**
 * The name of the agent at the other end of a TLS connection; undefined on a plain one, where nobody can tell.
 * @throws PagetideError `PT_PEER_UNTRUSTED` when its certificate is none of this cluster's, or has run out
 */
export function peerIdentity(socket: Duplex): string | undefined {
  if (!(socket instanceof TLSSocket)) return undefined;
  const known = names.get(socket);
  if (known !== undefined) return known;
  const certificate = socket.getPeerCertificate();
  // an empty object: it showed none
  const subject = certificate.subject as { CN?: unknown } | undefined;
  if (subject === undefined) throw untrusted('it has shown no certificate');
  if (!socket.authorized) {
    // declared an Error; is the code's text
    const why = socket.authorizationError as unknown;
    throw untrusted(reason(why instanceof Error ? ((why as NodeJS.ErrnoException).code ?? why.message) : String(why)));
  }
  if (!isHostName(subject.CN)) throw untrusted('its certificate names no host');
  names.set(socket, subject.CN);
  return subject.CN;
}

/** Of connections already looked at: the certificate is decoded anew each time that it is asked for. */
const names = new WeakMap<TLSSocket, string>();

/**
 * Why a connection failed, where that is a matter of trust; undefined where it isn't.
 * @param thrown what TLS, or undici around it, has thrown
 */
export function trustFailure(origin: string, thrown: unknown): PagetideError | undefined {
  const error = thrown as NodeJS.ErrnoException | undefined;
  const code = error?.code ?? '';
  if (code === 'ERR_SSL_WRONG_VERSION_NUMBER' || code === 'ERR_SSL_PACKET_LENGTH_TOO_LONG') {
    return new PagetideError('PT_PEER_UNTRUSTED', `${origin} does not speak TLS`, {
      cause: thrown,
      hint: 'That agent has no certificates: configure its tls, or use its http:// URL where both are on this host.',
    });
  }
  if (code === 'ERR_TLS_CERT_ALTNAME_INVALID') {
    return new PagetideError('PT_PEER_UNTRUSTED', `the certificate of ${origin} is for another address`, {
      cause: thrown,
      hint: 'Make it anew with `pagetide cluster add-host NAME --address ADDRESS`.',
    });
  }
  if (!CODES.has(code) && !/^ERR_SSL_.*(CERT|ALERT|HANDSHAKE|UNKNOWN_CA)/.test(code)) return undefined;
  return new PagetideError('PT_PEER_UNTRUSTED', `${origin} is not of this cluster: ${reason(code)}`, { cause: thrown });
}

function untrusted(why: string): PagetideError {
  return new PagetideError('PT_PEER_UNTRUSTED', `the other agent is not of this cluster: ${why}`);
}

/** OpenSSL's verdicts on a certificate, as people say them. */
const CODES = new Map([
  ['CERT_HAS_EXPIRED', 'its certificate has expired'],
  ['CERT_NOT_YET_VALID', 'its certificate is not valid yet; compare the clocks'],
  ['SELF_SIGNED_CERT_IN_CHAIN', 'its certificate is of another cluster'],
  ['DEPTH_ZERO_SELF_SIGNED_CERT', 'its certificate is of no cluster'],
  ['UNABLE_TO_GET_ISSUER_CERT', 'its certificate is of another cluster'],
  ['UNABLE_TO_GET_ISSUER_CERT_LOCALLY', 'its certificate is of another cluster'],
  ['UNABLE_TO_VERIFY_LEAF_SIGNATURE', 'its certificate is of another cluster'],
  ['CERT_SIGNATURE_FAILURE', 'its certificate is of another cluster'],
  ['INVALID_CA', 'its certificate is of another cluster'],
  ['INVALID_PURPOSE', 'its certificate is not for this use'],
]);

function reason(code: string): string {
  return CODES.get(code) ?? code;
}
