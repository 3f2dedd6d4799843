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
import type { TagPacing } from '../directory/paced-lists.ts';
import { asPagetideError, PagetideError } from '../errors.ts';
import { TAG_BYTES } from '../pages/tags.ts';
import { withMember, type ConnectPeer } from './member-peer.ts';
import type { Message, PeerClient } from './peer.ts';

const BYTES = 'application/octet-stream';
const JSON_TYPE = 'application/json';
/** Guests of one host. */
const MOST_GUESTS = 10_000;
/** Tags of one guest that are fetched, at most: of 64 GiB. */
const MOST_GUEST_TAGS = 2 ** 24;
/** Before the tags of a page: the next page's beginning, 0: there is none. */
export const TAG_CURSOR_BYTES = 4;

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
  connect: ConnectPeer;
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
    return this.#answer(hostInfos, 'GET', this.#place.domain, 'hosts');
  }

  async hints(domain: string): Promise<Hint[]> {
    return this.#answer(hintList, 'GET', domain, 'hints');
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
    return this.#answer(withdrawn, 'POST', domain, 'withdraw', { type: JSON_TYPE, body });
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
 * @param of as: what the domain's home calls this host @param how pace: how large pages are, and when each is asked for
 * @throws PagetideError as {@link RemoteDirectory}; `PT_GUEST_UNKNOWN` where it has no such guest in the domain
 */
export async function fetchGuestTags(
  connect: ConnectPeer,
  member: Member,
  of: { domain: string; guest: string; as: string },
  how: { pace?: TagPacing | undefined; signal?: AbortSignal | undefined } = {},
): Promise<Uint8Array> {
  const { url } = member;
  return withMember(connect, member, async (peer) => {
    const pieces: Uint8Array[] = [];
    let count = 0;
    for (let cursor: number | undefined = 0; cursor !== undefined;) {
      const verb = `guests/${encodeURIComponent(of.guest)}/tags`;
      const most = how.pace?.most ?? MOST_QUERY_TAGS;
      const path = directoryPath(of.domain, verb, { as: of.as, cursor: String(cursor), most: String(most) });
      // what it may be: how much comes is known afterwards
      await how.pace?.pass(most * TAG_BYTES);
      const page = await peer.exchange('GET', path, {
        most: TAG_CURSOR_BYTES + most * TAG_BYTES,
        signal: how.signal,
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
  connect: ConnectPeer,
  member: Member,
  of: { domain: string; as: string },
  signal?: AbortSignal,
): Promise<string[]> {
  return withMember(connect, member, async (peer) => {
    const most = MOST_GUESTS * 256;
    const names = json(await peer.exchange('GET', directoryPath(of.domain, 'guests', { as: of.as }), { most, signal }));
    if (Array.isArray(names) && names.length <= MOST_GUESTS && names.every((name) => typeof name === 'string'))
      return names;
    throw new PagetideError('PT_PEER_FAILED', `${member.url} did not say which guests it has`);
  });
}

function directoryPath(domain: string, verb: string, query: Record<string, string | undefined>): string {
  const given = Object.entries(query).filter((entry): entry is [string, string] => entry[1] !== undefined);
  return `/v1/domain-directories/${encodeURIComponent(domain)}/${verb}?${new URLSearchParams(given).toString()}`;
}

function json(bytes: Buffer): unknown {
  try {
    return JSON.parse(bytes.toString('utf8')) as unknown;
  } catch (error) {
    throw asPagetideError(error, 'PT_PROTOCOL');
  }
}

// What another agent says is not believed: these throw where it is no such thing, and the caller tells who said it.

function hostInfos(bytes: Buffer): HostInfo[] {
  return listOf(bytes).map((one) => {
    const { host, epoch, leaseMs, guests } = fieldsOf(one);
    checkHost(host as string);
    checkNumber(epoch as number, 'an epoch');
    if (typeof leaseMs !== 'number' || !Number.isSafeInteger(guests)) throw new TypeError('that is no host');
    return { host: host as string, epoch: epoch as number, leaseMs, guests: guests as number };
  });
}

function hintList(bytes: Buffer): Hint[] {
  return listOf(bytes).map((one) => {
    const { kind, hosts, leftMs } = fieldsOf(one);
    const isKind = kind === 'evacuate' || (kind === 'affinity' && Array.isArray(hosts));
    if (!isKind || typeof leftMs !== 'number') throw new TypeError('that is no hint');
    checkHint(one as Hint);
    return one as Hint;
  });
}

function withdrawn(bytes: Buffer): boolean {
  const { withdrawn: was } = fieldsOf(json(bytes));
  if (typeof was !== 'boolean') throw new TypeError('that does not say whether there was one');
  return was;
}

function listOf(bytes: Buffer): unknown[] {
  const list = json(bytes);
  if (!Array.isArray(list)) throw new TypeError('that is no list');
  return list;
}

function fieldsOf(one: unknown): Record<string, unknown> {
  return typeof one === 'object' && one !== null ? (one as Record<string, unknown>) : {};
}
