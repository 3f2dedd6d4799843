/**
 * What an agent shows other agents, and believes them by: the cluster's certificate, its own, and its key.
 *
 * They are the process's, and each of its threads needs them: the page server's, and those of the fault and fill workers,
 * which connect by themselves. So they are put into the data that new threads get with their environment, before the first
 * is started, rather than through every message on the way to a socket.
 */
import { X509Certificate, createPrivateKey, type KeyObject } from 'node:crypto';
import { readFileSync, statSync } from 'node:fs';
import { isIP } from 'node:net';
import { createSecureContext, type SecureContext, type SecureContextOptions } from 'node:tls';
import { getEnvironmentData, setEnvironmentData } from 'node:worker_threads';
import { PagetideError } from '../errors.ts';
import { isHostName } from './identity.ts';

/** Paths, as the configuration gives them. */
export interface CredentialFiles {
  ca: string;
  certificate: string;
  key: string;
}

/** PEM. Plain text, as it crosses threads; never logged. */
export interface Credentials {
  ca: string;
  certificate: string;
  key: string;
}

/** What the agent's own certificate says. */
export interface OwnIdentity {
  /** The host's name, by which other agents know this one. */
  name: string;
  notAfter: Date;
  /** Whether other agents accept it for a URL with this host. */
  covers(host: string): boolean;
}

const KEY = 'pagetide.credentials';
/** Largest file that is read, bytes. */
const FILE_LIMIT = 256 * 1024;
/** AES-128 first: as safe for this, and the cheapest a page where the processor has instructions for it. */
const CIPHERS = 'TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256';

/**
 * Reads and checks the files: that they belong together, and would be accepted now.
 * @throws PagetideError `PT_BAD_CERTIFICATE`, naming the file
 */
export function readCredentials(files: CredentialFiles, now: number = Date.now()): Credentials & { own: OwnIdentity } {
  const [ca, certificate, key] = [read(files.ca), read(files.certificate), read(files.key)];
  // any other user of the host could be this agent
  if ((statSync(files.key).mode & 0o077) !== 0)
    throw bad(files.key, 'others may read this key', undefined, `Keep it to its owner: chmod 600 ${files.key}.`);
  const [authority, own] = [parse(files.ca, ca), parse(files.certificate, certificate)];
  let privateKey: KeyObject;
  try {
    privateKey = createPrivateKey(key);
  } catch (cause) {
    throw bad(files.key, 'holds no private key', cause);
  }
  if (!authority.ca) throw bad(files.ca, "is no cluster's certificate");
  if (!own.checkIssued(authority) || !own.verify(authority.publicKey))
    throw bad(files.certificate, `is not of the cluster of ${files.ca}`);
  if (!own.checkPrivateKey(privateKey)) throw bad(files.certificate, `does not belong to the key in ${files.key}`);
  for (const [path, one] of [
    [files.ca, authority],
    [files.certificate, own],
  ] as const) {
    if (Date.parse(one.validTo) <= now) throw bad(path, `has expired on ${one.validTo}`);
    if (Date.parse(one.validFrom) > now) throw bad(path, `is not valid before ${one.validFrom}; check the clock`);
  }
  const name = /^CN=(.+)$/m.exec(own.subject)?.[1];
  if (!isHostName(name)) throw bad(files.certificate, 'names no host');
  return {
    ca,
    certificate,
    key,
    own: {
      name,
      notAfter: new Date(own.validTo),
      covers: (host) => (isIP(host) === 0 ? own.checkHost(host) : own.checkIP(host)) !== undefined,
    },
  };
}

/** Makes them those of this process; undefined: it has none. Before any of its threads is started. */
export function setCredentials(credentials: Credentials | undefined): void {
  const copy = credentials && { ca: credentials.ca, certificate: credentials.certificate, key: credentials.key };
  setEnvironmentData(KEY, copy);
  made = undefined;
}

/** Those of this process. */
export function credentials(): Credentials | undefined {
  return getEnvironmentData(KEY) as Credentials | undefined;
}

let made: { of: Credentials; context: SecureContext } | undefined;

/** What both ends make their TLS of: TLS 1.3, and nobody but the cluster's own authority. */
export function contextOptions({ ca, certificate, key }: Credentials): SecureContextOptions {
  // a list of authorities replaces the public ones: what they have signed is none of the cluster
  return { ca, cert: certificate, key, minVersion: 'TLSv1.3', ciphers: CIPHERS };
}

/** For the connections that this thread makes: parsed once. */
export function secureContext(of: Credentials): SecureContext {
  if (made === undefined || made.of.certificate !== of.certificate || made.of.ca !== of.ca || made.of.key !== of.key)
    made = { of, context: createSecureContext(contextOptions(of)) };
  return made.context;
}

function read(path: string): string {
  try {
    const text = readFileSync(path, 'utf8');
    if (text.length > FILE_LIMIT) throw new Error(`it is larger than ${FILE_LIMIT} bytes`);
    return text;
  } catch (cause) {
    throw bad(path, 'cannot be read', cause, 'Check the paths of `tls`, and that the agent may read the files.');
  }
}

function parse(path: string, text: string): X509Certificate {
  try {
    return new X509Certificate(text);
  } catch (cause) {
    throw bad(path, 'holds no certificate', cause);
  }
}

function bad(path: string, what: string, cause?: unknown, hint?: string): PagetideError {
  return new PagetideError('PT_BAD_CERTIFICATE', `${path}: ${what}`, {
    ...(cause === undefined ? {} : { cause }),
    ...(hint === undefined ? {} : { hint }),
  });
}
