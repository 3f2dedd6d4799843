/**
 * Proof that both ends of a stream of pages by tag have the secret of its domain, without either saying it:
 *
 *   client ── GET /v1/tags/{domain}, nonce a ─────────────────► server: knows the domain, and that host as one of it
 *          ◄── 101, nonce b, proof("server", a, b) ───────────
 *          ── Proof frame: proof("client", a, b), requests … ─► compared before anything is answered
 *
 * A proof is a keyed digest over both nonces, so one that was seen is of no use on another connection; and over which end
 * it is of, so none can be sent back. A host that was granted the domain and lost it again still knows the secret: over
 * TLS the server also looks whether the name in the certificate is that of a host that has the domain now.
 */
import { randomBytes, timingSafeEqual } from 'node:crypto';
import { native } from '../memory/native.ts';
import { TAG_BYTES, TAG_PAGE } from '../pages/tags.ts';

/** Header of both nonces: 32 hex digits. */
export const NONCE_HEADER = 'pagetide-nonce';
/** Header of the server's proof: 32 hex digits. */
export const PROOF_HEADER = 'pagetide-proof';
/** Header of the request: the version of the tags. */
export const TAGS_HEADER = 'pagetide-tags';

const NONCE = /^[0-9a-f]{32}$/;

export function newNonce(): string {
  return randomBytes(16).toString('hex');
}

export function isNonce(text: unknown): text is string {
  return typeof text === 'string' && NONCE.test(text);
}

export interface ProofOf {
  /** The domain key, as native code knows it. */
  key: number;
  /** The mark of the domain's secret, 32 hex digits. */
  domain: string;
  /** The nonces of both ends. */
  client: string;
  server: string;
}

/** 16 bytes: the tag, under the domain's key, of a page that no guest has. */
export function proof(end: 'client' | 'server', { key, domain, client, server }: ProofOf): Uint8Array {
  const page = Buffer.alloc(TAG_PAGE);
  page.write(`pagetide pages by tag 1\0${end}\0${domain}\0${client}\0${server}`);
  const tag = new Uint8Array(TAG_BYTES);
  native().tagPages(key, page, 1, tag);
  return tag;
}

/** Whether `given` is that proof; in a time that doesn't tell where it differs. */
export function isProof(given: Uint8Array, end: 'client' | 'server', of: ProofOf): boolean {
  return given.length === TAG_BYTES && timingSafeEqual(given, proof(end, of));
}
