/**
 * A cluster's certificate authority, and the certificates of its hosts. Loaded only by the commands that make them: an
 * agent reads what they wrote, and needs nothing of this.
 *
 *   ca.pem, ca-key.pem         the cluster: kept by the operator, away from the hosts
 *   ca.pem, host.pem, host-key.pem   one host's: what its agent is configured with
 *
 * Keys are ECDSA over P-256: small, and the fastest to sign with of what every TLS library knows.
 */
import 'reflect-metadata'; // what @peculiar/x509 is built on needs it, and before it
import { randomBytes, webcrypto } from 'node:crypto';
import { isIP } from 'node:net';
import * as x509 from '@peculiar/x509';
import { PagetideError } from '../errors.ts';
import { checkHostName } from './identity.ts';

const ALGORITHM = { name: 'ECDSA', namedCurve: 'P-256', hash: 'SHA-256' } as const;
/** How far back a new certificate is valid, milliseconds: clocks of hosts differ. */
const BACKDATED_MS = 10 * 60_000;
const DAY_MS = 86_400_000;

/** Days that a cluster's own certificate is valid. */
export const CLUSTER_DAYS = 3650;
/** Days that a host's certificate is valid unless told otherwise: a year and a month, so that a yearly routine suffices. */
export const HOST_DAYS = 397;
/** Most names and addresses of one host. */
export const MOST_ADDRESSES = 64;

/** A certificate and its key, PEM. */
export interface KeyPair {
  certificate: string;
  key: string;
}

export interface Validity {
  notBefore: Date;
  notAfter: Date;
}

/** From a moment ago, for so many days. */
export function validFor(days: number, now: number = Date.now()): Validity {
  return { notBefore: new Date(now - BACKDATED_MS), notAfter: new Date(now + days * DAY_MS) };
}

/** Makes a cluster: its authority's certificate, and the key that signs those of hosts. */
export async function makeAuthority(validity: Validity = validFor(CLUSTER_DAYS)): Promise<KeyPair> {
  const keys = await makeKeys();
  // Two clusters must not be taken for each other by name: a chain is looked up by it before it is checked.
  const name = [{ CN: [`pagetide cluster ${randomBytes(8).toString('hex')}`] }];
  const certificate = await x509.X509CertificateGenerator.createSelfSigned({
    serialNumber: serial(),
    name,
    ...validity,
    signingAlgorithm: ALGORITHM,
    keys,
    extensions: [
      new x509.BasicConstraintsExtension(true, 0, true),
      new x509.KeyUsagesExtension(x509.KeyUsageFlags.keyCertSign | x509.KeyUsageFlags.cRLSign, true),
      await x509.SubjectKeyIdentifierExtension.create(keys.publicKey),
    ],
  });
  return { certificate: pem(certificate), key: await pemOfKey(keys.privateKey) };
}

/**
 * Makes the certificate of host `name`, for both ends of a connection.
 * @param addresses further names and IP addresses under which other agents reach it
 * @throws PagetideError `PT_BAD_ARGUMENT` for a name or address that is none, `PT_BAD_CERTIFICATE` where `authority` can't sign
 */
export async function makeHost(
  authority: KeyPair,
  name: string,
  addresses: readonly string[] = [],
  validity: Validity = validFor(HOST_DAYS),
): Promise<KeyPair & { notAfter: Date }> {
  checkHostName(name);
  const alternatives = alternativeNames(name, addresses);
  const { certificate: issuer, signingKey } = await openAuthority(authority);
  // nothing that it signs outlives the cluster
  const notAfter = validity.notAfter < issuer.notAfter ? validity.notAfter : issuer.notAfter;
  const keys = await makeKeys();
  const certificate = await x509.X509CertificateGenerator.create({
    serialNumber: serial(),
    subject: [{ CN: [name] }],
    issuer: issuer.subjectName,
    notBefore: validity.notBefore,
    notAfter,
    signingAlgorithm: ALGORITHM,
    publicKey: keys.publicKey,
    signingKey,
    extensions: [
      new x509.BasicConstraintsExtension(false, undefined, true),
      new x509.KeyUsagesExtension(x509.KeyUsageFlags.digitalSignature, true),
      new x509.ExtendedKeyUsageExtension([x509.ExtendedKeyUsage.serverAuth, x509.ExtendedKeyUsage.clientAuth], true),
      new x509.SubjectAlternativeNameExtension(alternatives),
      await x509.AuthorityKeyIdentifierExtension.create(issuer),
      await x509.SubjectKeyIdentifierExtension.create(keys.publicKey),
    ],
  });
  return { certificate: pem(certificate), key: await pemOfKey(keys.privateKey), notAfter };
}

function alternativeNames(name: string, addresses: readonly string[]): x509.JsonGeneralNames {
  if (addresses.length > MOST_ADDRESSES)
    throw new PagetideError('PT_BAD_ARGUMENT', `a host has ${MOST_ADDRESSES} addresses at most`);
  return [...new Set([name, ...addresses])].map((value) =>
    isIP(value) === 0 ? { type: 'dns', value: checkHostName(value) } : { type: 'ip', value },
  );
}

async function openAuthority({ certificate: text, key }: KeyPair) {
  try {
    const certificate = new x509.X509Certificate(text);
    if (certificate.getExtension(x509.BasicConstraintsExtension)?.ca !== true)
      throw new Error('it may not sign others');
    if (certificate.notAfter.getTime() < Date.now()) throw new Error('it has expired');
    const [encoded] = x509.PemConverter.decode(key);
    if (encoded === undefined) throw new Error('its key is no PEM');
    const signingKey = await webcrypto.subtle.importKey('pkcs8', encoded, ALGORITHM, false, ['sign']);
    // a key that isn't the certificate's would sign what nobody can check
    const probe = randomBytes(32);
    const signature = await webcrypto.subtle.sign(ALGORITHM, signingKey, probe);
    const spki = certificate.publicKey.rawData;
    const publicKey = await webcrypto.subtle.importKey('spki', spki, ALGORITHM, false, ['verify']);
    if (!(await webcrypto.subtle.verify(ALGORITHM, publicKey, signature, probe))) throw new Error('its key is another');
    return { certificate, signingKey };
  } catch (cause) {
    const why = cause instanceof Error ? cause.message : String(cause);
    throw new PagetideError('PT_BAD_CERTIFICATE', `cannot sign with the cluster's certificate: ${why}`, {
      cause,
      hint: 'Give the folder that `pagetide cluster init` made, or make a new cluster.',
    });
  }
}

function makeKeys() {
  return webcrypto.subtle.generateKey(ALGORITHM, true, ['sign', 'verify']);
}

/** 127 bits of chance: positive, and never used twice. */
function serial(): string {
  const bytes = randomBytes(16);
  bytes[0]! &= 0x7f;
  bytes[0]! |= 0x40;
  return bytes.toString('hex');
}

function pem(certificate: x509.X509Certificate): string {
  return `${certificate.toString('pem')}\n`;
}

async function pemOfKey(key: webcrypto.CryptoKey): Promise<string> {
  const encoded = await webcrypto.subtle.exportKey('pkcs8', key);
  return `${x509.PemConverter.encode(encoded, 'PRIVATE KEY')}\n`;
}
