/** A domain's directory as another host of the domain has it: over the channel that domains use between agents. */
import { checkSocket, parseAddress } from '../domains/address.ts';
import type { Member } from '../domains/records.ts';
import { decodeAnswer, decodeHolders, decodeLacking, encodeReport, MOST_ANSWER_BYTES } from '../directory/codec.ts';
import {
  checkNumber,
  checkReport,
  checkTags,
  MOST_QUERY_TAGS,
  type Directory,
  type Holders,
  type HostInfo,
  type LackingPage,
  type Report,
  type ReportAnswer,
} from '../directory/directory.ts';
import { checkHint, checkSubject, type Hint, type HintSubject } from '../directory/hint.ts';
import { checkHost, checkName } from '../directory/names.ts';
import { asPagetideError, PagetideError } from '../errors.ts';
import { TAG_BYTES } from '../pages/tags.ts';
import type { Message, PeerClient } from './peer.ts';

const BYTES = 'application/octet-stream';
const JSON_TYPE = 'application/json';
/** Tags of one guest that are fetched, at most: of 64 GiB. */
/** Guests of one host. */
const MOST_GUESTS = 10_000;
const MOST_GUEST_TAGS = 2 ** 24;
/** Before the tags of a page: the next page's beginning, 0: there is none. */
export const TAG_CURSOR_BYTES = 4;

export type Connect = (
  url: string,
  whom: { expect?: string | undefined; socketPath?: string | undefined },
) => PeerClient;

/** How the agent that has it is reached, and who asks. */
export interface RemotePlace {
  /** `https://…`, or `unix:PATH`. */
  url: string;
  /** The name that its certificate must have; null: over a control socket. */
  host: string | null;
  /** The domain's id. */
  domain: string;
  /** What the domain's home calls this host. */
  as: string;
  connect: Connect;
}

/**
 * One connection is kept, and made anew where it broke. Every message may be repeated, and is, once, where a kept connection was
 * closed under it. All methods reject as `Directory` says; what the other agent refuses comes as its own error, `PT_CANCELLED` after `close`.
 * What only the home may do (`removeHost`, `removeDomain`, `empty`) is `PT_NO_PERMISSION`.
 */
export class RemoteDirectory implements Directory {
  readonly #place: RemotePlace;
  readonly #socketPath: string | undefined;
  readonly #peer: PeerClient;
  readonly #ending = new AbortController();

  /** @throws PagetideError `PT_BAD_ARGUMENT`, `PT_PEER_UNTRUSTED` */
  constructor(place: RemotePlace) {
    this.#place = place;
    const { url, socketPath } = parseAddress(place.url);
    this.#socketPath = socketPath;
    const expect = socketPath === undefined ? (place.host ?? undefined) : undefined;
    this.#peer = place.connect(url, { expect, socketPath });
  }

  async report(report: Report): Promise<ReportAnswer> {
    checkReport(report);
    const body = encodeReport(report);
    return this.#answer(decodeAnswer, 'POST', this.#place.domain, 'report', { type: BYTES, body });
  }

  async heartbeat(host: string, epoch: number, sequence?: number): Promise<ReportAnswer> {
    checkHost(host);
    checkNumber(epoch, 'an epoch');
    if (sequence !== undefined) checkNumber(sequence, 'a sequence');
    const body = JSON.stringify({ host, epoch, sequence });
    return this.#answer(decodeAnswer, 'POST', this.#place.domain, 'heartbeat', { type: JSON_TYPE, body });
  }

  async holders(domain: string, tags: Uint8Array): Promise<Holders> {
    const count = checkTags(tags, MOST_QUERY_TAGS);
    const holders = await this.#answer(decodeHolders, 'POST', domain, 'holders', { type: BYTES, body: tags });
    if (holders.guests.length !== count) throw this.#wrong();
    return holders;
  }

  async lacking(
    domain: string,
    host: string,
    { limit, cursor }: { limit: number; cursor?: string },
  ): Promise<LackingPage> {
    checkHost(host);
    checkNumber(limit, 'a limit');
    return this.#answer(decodeLacking, 'GET', domain, 'lacking', {}, { host, limit: String(limit), cursor });
  }

  async hosts(): Promise<HostInfo[]> {
    return this.#answer<HostInfo[]>(json, 'GET', this.#place.domain, 'hosts');
  }

  async hints(domain: string): Promise<Hint[]> {
    const hints = await this.#answer<Hint[]>(json, 'GET', domain, 'hints');
    try {
      for (const hint of hints) checkHint(hint);
      return hints;
    } catch (cause) {
      throw this.#wrong(cause);
    }
  }

  async hint(domain: string, hint: Hint): Promise<void> {
    checkHint(hint);
    await this.#answer(() => undefined, 'POST', domain, 'hint', { type: JSON_TYPE, body: JSON.stringify(hint) });
  }

  async withdraw(domain: string, subject: HintSubject): Promise<boolean> {
    checkSubject(subject);
    const { kind } = subject;
    const body = JSON.stringify(
      subject.kind === 'evacuate' ? { kind, host: subject.host } : { kind, guest: subject.guest },
    );
    const answer = await this.#answer<{ withdrawn: boolean }>(json, 'POST', domain, 'withdraw', {
      type: JSON_TYPE,
      body,
    });
    return answer.withdrawn;
  }

  removeHost(): Promise<void> {
    return Promise.reject(this.#elsewhere());
  }

  removeDomain(): Promise<void> {
    return Promise.reject(this.#elsewhere());
  }

  empty(): Promise<void> {
    return Promise.reject(this.#elsewhere());
  }

  async close(): Promise<void> {
    this.#ending.abort();
    await this.#peer.close();
  }

  async #answer<T>(
    read: (bytes: Buffer) => T,
    method: 'GET' | 'POST',
    domain: string,
    verb: string,
    message: Message = {},
    query: Record<string, string | undefined> = {},
  ): Promise<T> {
    checkName(domain, 'domain');
    if (this.#socketPath !== undefined) await checkSocket(this.#socketPath);
    const path = directoryPath(domain, verb, { as: this.#place.as, ...query });
    const limits = { most: MOST_ANSWER_BYTES, signal: this.#ending.signal };
    const bytes = await this.#peer.exchange(method, path, { ...message, ...limits });
    try {
      return read(bytes);
    } catch (cause) {
      throw this.#wrong(cause);
    }
  }

  #wrong(cause?: unknown): PagetideError {
    return new PagetideError('PT_PEER_FAILED', `${this.#place.url} answered something else about a directory`, {
      cause,
    });
  }

  #elsewhere(): PagetideError {
    return new PagetideError('PT_NO_PERMISSION', `only the agent at ${this.#place.url} does that`);
  }
}

/**
 * The stable tags of a guest, packed, each once, from the agent that has it. Those that come or go meanwhile may be among them, or not.
 * @param as what the domain's home calls this host
 * @throws PagetideError as {@link RemoteDirectory}; `PT_GUEST_UNKNOWN` where it has no such guest in the domain
 */
export async function fetchGuestTags(
  connect: Connect,
  member: Member,
  of: { domain: string; guest: string; as: string },
  signal?: AbortSignal,
): Promise<Uint8Array> {
  const { url } = member;
  return withPeer(connect, member, async (peer) => {
    const pieces: Uint8Array[] = [];
    let count = 0;
    for (let cursor: number | undefined = 0; cursor !== undefined;) {
      const verb = `guests/${encodeURIComponent(of.guest)}/tags`;
      const path = directoryPath(of.domain, verb, { as: of.as, cursor: String(cursor) });
      const page = await peer.exchange('GET', path, {
        most: TAG_CURSOR_BYTES + MOST_QUERY_TAGS * TAG_BYTES,
        signal,
      });
      if (page.length < TAG_CURSOR_BYTES || (page.length - TAG_CURSOR_BYTES) % TAG_BYTES !== 0)
        throw new PagetideError('PT_PEER_FAILED', `${url} answered no tags`);
      const next = page.readUInt32LE(0);
      if (next !== 0 && next <= cursor) throw new PagetideError('PT_PEER_FAILED', `${url} goes in circles`);
      count += page.length / TAG_BYTES;
      if (count > MOST_GUEST_TAGS) throw new PagetideError('PT_PEER_FAILED', `${url} has too many tags of a guest`);
      pieces.push(page.subarray(TAG_CURSOR_BYTES));
      cursor = next === 0 ? undefined : next;
    }
    return Buffer.concat(pieces);
  });
}

/** The guests of a domain at the agent that is asked, by name. As {@link fetchGuestTags}. */
export async function fetchGuests(
  connect: Connect,
  member: Member,
  of: { domain: string; as: string },
  signal?: AbortSignal,
): Promise<string[]> {
  return withPeer(connect, member, async (peer) => {
    const most = MOST_GUESTS * 256;
    const names = json<unknown>(
      await peer.exchange('GET', directoryPath(of.domain, 'guests', { as: of.as }), { most, signal }),
    );
    if (Array.isArray(names) && names.length <= MOST_GUESTS && names.every((name) => typeof name === 'string'))
      return names;
    throw new PagetideError('PT_PEER_FAILED', `${member.url} did not say which guests it has`);
  });
}

async function withPeer<T>(
  connect: Connect,
  { host, url }: Member,
  work: (peer: PeerClient) => Promise<T>,
): Promise<T> {
  const address = parseAddress(host.startsWith('unix:') ? host : url);
  if (address.socketPath !== undefined) await checkSocket(address.socketPath);
  const expect = address.socketPath === undefined ? host : undefined;
  const peer = connect(address.url, { expect, socketPath: address.socketPath });
  try {
    return await work(peer);
  } finally {
    await peer.close();
  }
}

function directoryPath(domain: string, verb: string, query: Record<string, string | undefined>): string {
  const given = Object.entries(query).filter((entry): entry is [string, string] => entry[1] !== undefined);
  return `/v1/domain-directories/${encodeURIComponent(domain)}/${verb}?${new URLSearchParams(given).toString()}`;
}

// eslint-disable-next-line @typescript-eslint/no-unnecessary-type-parameters -- what the caller expects of the other agent
function json<T>(bytes: Buffer): T {
  try {
    return JSON.parse(bytes.toString('utf8')) as T;
  } catch (error) {
    throw asPagetideError(error, 'PT_PROTOCOL');
  }
}
