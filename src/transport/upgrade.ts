/** How a page stream begins: an HTTP request that both sides agree to turn into frames. */
import { createHash, timingSafeEqual } from 'node:crypto';
import type { IncomingHttpHeaders } from 'node:http';
import { PagetideError } from '../errors.ts';
import { TAG_VERSION } from '../pages/tags.ts';
import { NONCE_HEADER, TAGS_HEADER, isNonce } from './tag-proof.ts';
import { CHANNELS, type Channel } from './wire.ts';

/** Version of the page streams. A side that gets another one refuses: there is no negotiation. */
export const PAGE_PROTOCOL = 3;
/** The `Upgrade:` token. */
export const UPGRADE = 'pagetide';
export const PROTOCOL_HEADER = 'pagetide-protocol';
export const PAGE_SIZE_HEADER = 'pagetide-page-size';
export const FRAMES_HEADER = 'pagetide-frames';
/**
 * Of a stream of pages by tag: "1" in the request says that nobody waits for these pages, and in the answer that the holder will treat it so:
 * it paces what it sends, and marks it. A holder that does not say so does neither.
 */
export const BACKGROUND_HEADER = 'pagetide-background';
/** Marks a request that came over the port for the control API, which trusts its Unix socket more. */
export const VIA_HEADER = 'x-pagetide-via';
/** Beside {@link VIA_HEADER}: the name in the certificate of whoever sent the request; absent on a plain connection. */
export const PEER_HEADER = 'x-pagetide-peer';

const PATH = '/v1/pages/';
const TAGS_PATH = '/v1/tags/';

/** Migration ids: what the agents make, and what a URL can hold unescaped. */
export function isMigrationId(id: string): boolean {
  return /^[0-9A-Za-z_-]{1,64}$/.test(id);
}

/** Whether a stream begins there, of a migration or of pages by tag. */
export function isStreamPath(url: string): boolean {
  return url.startsWith(PATH) || isTagsPath(url);
}

export function isTagsPath(url: string): boolean {
  return url.startsWith(TAGS_PATH);
}

/** @param domain the mark of its secret */
export function tagsPath(domain: string): string {
  return TAGS_PATH + domain;
}

export function pagesPath(migration: string, channel: Channel): string {
  return `${PATH}${migration}?channel=${channel}`;
}

export interface UpgradeRequest {
  migration: string;
  channel: Channel;
  /** Undefined: none was given. */
  token: string | undefined;
}

/** An error with the HTTP status that the upgrade is refused with, where it isn't the code's own. */
export class UpgradeRefused extends Error {
  readonly error: PagetideError;
  readonly status: number;
  constructor(error: PagetideError, status: number = error.status) {
    super(error.message);
    this.error = error;
    this.status = status;
  }
}

/**
 * Reads a request for a page stream.
 * @throws UpgradeRefused
 */
export function parseUpgrade(url: string, headers: IncomingHttpHeaders): UpgradeRequest {
  const match = /^\/v1\/pages\/([0-9A-Za-z_-]{1,64})\?channel=([a-z]{1,16})$/.exec(url);
  const channel = CHANNELS.find((name) => name === match?.[2]);
  const migration = match?.[1];
  if (migration === undefined || channel === undefined) {
    throw new UpgradeRefused(new PagetideError('PT_BAD_ARGUMENT', 'no page stream has that path'), 404);
  }
  checkProtocol(headers);
  const token = /^Bearer ([!-~]{1,256})$/.exec(headers.authorization ?? '')?.[1];
  return { migration, channel, token };
}

export interface TagsUpgradeRequest {
  /** The mark of the domain's secret, 32 hex digits. */
  domain: string;
  /** The client's. */
  nonce: string;
  /** See {@link BACKGROUND_HEADER}. */
  background: boolean;
}

/**
 * Reads a request for a stream of pages by tag.
 * @throws UpgradeRefused
 */
export function parseTagsUpgrade(url: string, headers: IncomingHttpHeaders): TagsUpgradeRequest {
  const domain = /^\/v1\/tags\/([0-9a-f]{32})$/.exec(url)?.[1];
  if (domain === undefined)
    throw new UpgradeRefused(new PagetideError('PT_BAD_ARGUMENT', 'no stream has that path'), 404);
  checkProtocol(headers);
  if (headers[TAGS_HEADER] !== String(TAG_VERSION)) {
    throw new UpgradeRefused(
      new PagetideError('PT_PROTOCOL', `tags here are of version ${TAG_VERSION}`, {
        hint: 'Run the same version of Pagetide on both hosts.',
      }),
      426,
    );
  }
  const nonce = headers[NONCE_HEADER];
  if (!isNonce(nonce)) throw new UpgradeRefused(new PagetideError('PT_BAD_ARGUMENT', `${NONCE_HEADER}: 32 hex digits`));
  return { domain, nonce, background: headers[BACKGROUND_HEADER] === '1' };
}

function checkProtocol(headers: IncomingHttpHeaders): void {
  if (headers.upgrade?.toLowerCase() === UPGRADE && headers[PROTOCOL_HEADER] === String(PAGE_PROTOCOL)) return;
  throw new UpgradeRefused(
    new PagetideError('PT_PROTOCOL', `page streams here speak ${UPGRADE} ${PAGE_PROTOCOL} after an HTTP upgrade`),
    426,
  );
}

/** Compares secrets in a time that doesn't tell where, or in what length, they differ. */
export function sameToken(given: string, digest: Buffer): boolean {
  return timingSafeEqual(tokenDigest(given), digest);
}

export function tokenDigest(token: string): Buffer {
  return createHash('sha256').update(token).digest();
}
