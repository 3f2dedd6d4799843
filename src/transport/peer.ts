/** The control messages between two agents: JSON over HTTP, each of which may be repeated. */
import type { Socket } from 'node:net';
import { Pool, buildConnector, errors as undiciErrors } from 'undici';
import { PagetideError, asPagetideError } from '../errors.ts';
import { credentials as ownCredentials, secureContext, type Credentials } from '../trust/credentials.ts';
import { peerIdentity, trustFailure } from '../trust/identity.ts';
import {
  domainAnswer,
  domainCheckIn,
  type DomainAnswer,
  type DomainCheckIn,
  type DomainOffer,
} from '../domains/messages.ts';
import { tagsExplained, type ExplainQuestion, type TagsExplained } from '../distribution/explain-message.ts';
import { TAG_BYTES } from '../pages/tags.ts';
import type {
  Capabilities,
  CompletionFigures,
  Finding,
  IncomingStatus,
  PrepareRequest,
  Rest,
} from '../migration/types.ts';
import { originOf, refusal, unreachable } from './page-connect.ts';
import { isMigrationId } from './upgrade.ts';
import { WireBytes } from './wire-bytes.ts';

/** Bytes of an answer. */
const MAX_ANSWER = 1 << 20;

const STATES: readonly string[] = [
  'preparing',
  'prepared',
  'arrived',
  'loaded',
  'owner',
  'complete',
  'refused',
  'unknown',
] satisfies IncomingStatus['state'][];

export interface PeerOptions {
  /** Milliseconds for the TCP connection. 3000 by default. */
  connectMs?: number;
  /** Milliseconds for an answer that needs no work of a VMM. 10 000 by default. */
  answerMs?: number;
  /** Milliseconds for prepare, load and take-over, which wait for a VMM. 120 000 by default. */
  workMs?: number;
  /** For an https:// URL; those of the process by default. */
  credentials?: Credentials | undefined;
  /**
   * The name that the other agent's certificate must have: a connection to anybody else is given up before anything is said.
   * Without it the first connection settles who that is.
   */
  expect?: string | undefined;
  /** The control socket of another agent of this user, instead of its port; `url` is only its name then. */
  socketPath?: string | undefined;
}

const FINDINGS: readonly unknown[] = ['right', 'changed', 'unknown'] satisfies Finding[];

interface CallOptions {
  signal?: AbortSignal | undefined;
}

type Method = 'GET' | 'POST' | 'PUT' | 'DELETE';

export interface Message extends CallOptions {
  /** Of the body. */
  type?: string;
  body?: string | Uint8Array;
  /** Bytes of the answer. */
  most?: number;
  /** By default as for answers that need no work of a VMM. */
  timeoutMs?: number;
}

/**
 * Talks to one other agent. Every method rejects with the other agent's own PagetideError, with `PT_PEER_UNREACHABLE`
 * where it couldn't be asked or didn't answer in time (it may have done what was asked: ask again, or ask for the
 * status), `PT_PEER_FAILED` for an answer that isn't an agent's, or `PT_CANCELLED` after `signal`.
 */
export class PeerClient {
  readonly origin: string;
  readonly #pool: Pool;
  readonly #answerMs: number;
  readonly #workMs: number;
  readonly #live = new Set<WireBytes>();
  #identity: string | undefined;
  #expect: string | undefined;
  #received = 0;
  #sent = 0;

  /** @throws PagetideError `PT_BAD_ARGUMENT` where `url` is none, `PT_PEER_UNTRUSTED` where this agent may not talk there */
  constructor(url: string, options: PeerOptions = {}) {
    const { connectMs = 3_000, answerMs = 10_000, workMs = 120_000, credentials = ownCredentials() } = options;
    const { expect, socketPath } = options;
    this.#expect = expect;
    this.origin = socketPath === undefined ? originOf(url, credentials) : url;
    this.#answerMs = answerMs;
    this.#workMs = workMs;
    const secure = this.origin.startsWith('https:') && credentials !== undefined;
    const connect = buildConnector({
      timeout: connectMs,
      // a session that is resumed shows no certificate, and is not verified again
      ...(secure ? { secureContext: secureContext(credentials), maxCachedSessions: 0 } : {}),
      ...(socketPath === undefined ? {} : { socketPath }),
    });
    this.#pool = new Pool(socketPath === undefined ? this.origin : 'http://agent', {
      // a status or an abort must not wait behind a call that waits for a VMM
      connections: 4,
      connect: (target, done) => {
        connect(target, (error, socket) => {
          if (error !== null) {
            done(error, null);
            return;
          }
          this.#watch(socket);
          try {
            this.#identity = peerIdentity(socket);
            checkIdentity(this.origin, this.#identity, this.#expect);
            // an address may get into other hands, whose word must not count as that of the first
            this.#expect = this.#identity;
          } catch (untrusted) {
            socket.destroy();
            done(untrusted as Error, null);
            return;
          }
          done(null, socket);
        });
      },
      pipelining: 1,
      keepAliveTimeout: 4_000,
      // a source that waits for a VMM may be silent as long as the longest call
      headersTimeout: workMs,
      bodyTimeout: answerMs,
    });
  }

  /** Whether the other agent has to show a certificate. */
  get isSecure(): boolean {
    return this.origin.startsWith('https:');
  }

  /** The name in the other agent's certificate, the same on all connections; undefined before the first, and over plain HTTP. */
  get identity(): string | undefined {
    return this.#identity;
  }

  /** Bytes at the sockets so far, HTTP heads included. */
  get bytes(): { received: number; sent: number } {
    let received = this.#received;
    let sent = this.#sent;
    for (const live of this.#live) {
      received += live.received;
      sent += live.sent;
    }
    return { received, sent };
  }

  /** What the other agent can do as a destination. @throws PagetideError `PT_PROTOCOL` where it has never heard of the question */
  async capabilities(options?: CallOptions): Promise<Capabilities> {
    try {
      return capabilities(await this.#call('GET', '/v1/capabilities', undefined, this.#answerMs, options), this.origin);
    } catch (error) {
      if (!(error instanceof PagetideError) || error.code !== 'PT_BAD_ARGUMENT') throw error;
      throw new PagetideError('PT_PROTOCOL', `the agent at ${this.origin} is of an older version`, { cause: error });
    }
  }

  /** Asks the destination to get ready. */
  async prepare(request: PrepareRequest, options?: CallOptions): Promise<IncomingStatus> {
    return status(await this.#call('POST', '/v1/incoming', request, this.#workMs, options), request.migration);
  }

  /** What the destination knows. */
  async status(migration: string, options?: CallOptions): Promise<IncomingStatus> {
    return status(await this.#call('GET', incoming(migration), undefined, this.#answerMs, options), migration);
  }

  /** The state is on its way; resolves when everything is there, or already loaded. */
  load(migration: string, epoch: number, rest: Rest = 'serve', options?: CallOptions): Promise<IncomingStatus> {
    return this.#incoming(migration, 'load', { epoch, rest }, this.#workMs, options);
  }

  /**
   * The destination is to fetch what it lacks of a round; resolves when it has asked for all of it, or after a while
   * without `copied`: ask again then.
   */
  copy(migration: string, epoch: number, round: number, options?: CallOptions): Promise<IncomingStatus> {
    return this.#incoming(migration, 'copy', { epoch, round }, this.#workMs, options);
  }

  /** The destination is to fetch so many bytes of pages a second from now on, at most; 0: its own limit alone. */
  async limit(migration: string, epoch: number, bandwidth: number, options?: CallOptions): Promise<IncomingStatus> {
    return this.#incoming(migration, 'limit', { epoch, bandwidth }, this.#answerMs, options);
  }

  /** The guest is the destination's from now on; resolves when it runs there. */
  takeOver(migration: string, epoch: number, options?: CallOptions): Promise<IncomingStatus> {
    return this.#incoming(migration, 'take-over', { epoch }, this.#workMs, options);
  }

  /** The destination is to refuse the epoch for good; resolves when its VMM is dead. */
  abort(migration: string, epoch: number, options?: CallOptions): Promise<IncomingStatus> {
    return this.#incoming(migration, 'abort', { epoch }, this.#workMs, options);
  }

  /** Tells the source that every page is here, and how it went. */
  async complete(migration: string, epoch: number, figures: CompletionFigures, options?: CallOptions): Promise<void> {
    const path = `/v1/outgoing/${checked(migration)}/complete`;
    await this.#call('POST', path, { epoch, figures }, this.#answerMs, options);
  }

  /** The source is to look again at frames whose page came as another than its tag's; resolves to a finding for each. */
  async recheck(migration: string, epoch: number, frames: number[], options?: CallOptions): Promise<Finding[]> {
    const path = `/v1/outgoing/${checked(migration)}/recheck`;
    return findings(await this.#call('POST', path, { epoch, frames }, this.#answerMs, options), frames.length);
  }

  /** Whether the other agent has that domain. */
  async hasDomain(id: string, options?: CallOptions): Promise<DomainAnswer> {
    return domainAnswer(await this.#call('GET', grants(id), undefined, this.#answerMs, options), this.origin);
  }

  /** Gives the other agent a domain with its secret. Only where it is sure who that is. */
  async giveDomain(id: string, offer: DomainOffer, options?: CallOptions): Promise<DomainAnswer> {
    return domainAnswer(await this.#call('PUT', grants(id), offer, this.#answerMs, options), this.origin);
  }

  /** The other agent is to forget a domain, and the pages of it. */
  async withdrawDomain(id: string, epoch: number, options?: CallOptions): Promise<void> {
    await this.#call('DELETE', `${grants(id)}?epoch=${epoch}`, undefined, this.#workMs, options);
  }

  /** Asks the agent that made a domain whether this one, which it calls `as`, still has it. */
  async checkDomain(id: string, as: string, options?: CallOptions): Promise<DomainCheckIn> {
    const answer = await this.#call('POST', `${grants(id)}/check-in`, { as }, this.#answerMs, options);
    return domainCheckIn(answer, this.origin);
  }

  /** Tells the agent that made a domain that this one, which it calls `as`, has removed what it was granted with that epoch. */
  async giveUpDomain(id: string, as: string, epoch: number, options?: CallOptions): Promise<void> {
    await this.#call('POST', `${grants(id)}/give-up`, { as, epoch }, this.#workMs, options);
  }

  /**
   * Where packed tags stand at the other agent, which has that domain, too.
   * @param domain its id
   */
  async explainTags(
    domain: string,
    tags: Uint8Array,
    likelihood: number | undefined,
    options?: CallOptions,
  ): Promise<TagsExplained> {
    const question: ExplainQuestion = {
      domain,
      tags: Buffer.from(tags.buffer, tags.byteOffset, tags.byteLength).toString('base64'),
      ...(likelihood === undefined ? {} : { likelihood }),
    };
    const answer = await this.#call('POST', '/v1/distribution/explain', question, this.#answerMs, options);
    return tagsExplained(answer, tags.length / TAG_BYTES, this.origin);
  }

  /** Ends the connections; calls under way are rejected. */
  async close(): Promise<void> {
    await this.#pool.destroy();
  }

  async #incoming(
    migration: string,
    verb: string,
    body: object,
    timeoutMs: number,
    options?: CallOptions,
  ): Promise<IncomingStatus> {
    return status(await this.#call('POST', `${incoming(migration)}/${verb}`, body, timeoutMs, options), migration);
  }

  async #call(
    method: Method,
    path: string,
    body: unknown,
    timeoutMs: number,
    options: CallOptions = {},
  ): Promise<unknown> {
    const sent = body === undefined ? {} : { type: 'application/json', body: JSON.stringify(body) };
    const text = (await this.exchange(method, path, { ...sent, ...options, timeoutMs })).toString('utf8');
    if (text === '') return undefined;
    try {
      return JSON.parse(text) as unknown;
    } catch (cause) {
      throw new PagetideError('PT_PEER_FAILED', `${this.origin} did not answer JSON`, { cause });
    }
  }

  /** One message that may be repeated, and the bytes of its answer: what clients of other routes are made of. */
  async exchange(method: Method, path: string, message: Message = {}): Promise<Buffer> {
    const { timeoutMs = this.#answerMs, signal: given } = message;
    const deadline = AbortSignal.timeout(timeoutMs);
    const signal = given === undefined ? deadline : AbortSignal.any([deadline, given]);
    try {
      return await this.#once(method, path, message, signal);
    } catch (error) {
      // A kept connection may be closed by the other side just as it is used again. Every message may be repeated.
      if (!(error instanceof undiciErrors.SocketError)) throw this.#explain(error, given);
    }
    try {
      return await this.#once(method, path, message, signal);
    } catch (error) {
      throw this.#explain(error, given);
    }
  }

  async #once(
    method: Method,
    path: string,
    { type, body, most = MAX_ANSWER }: Message,
    signal: AbortSignal,
  ): Promise<Buffer> {
    const answer = await this.#pool.request({
      method,
      path,
      signal,
      headers: { accept: '*/*', ...(type === undefined ? {} : { 'content-type': type }) },
      ...(body === undefined ? {} : { body }),
    });
    const pieces: Buffer[] = [];
    let bytes = 0;
    for await (const piece of answer.body as AsyncIterable<Buffer>) {
      bytes += piece.length;
      if (bytes > most) throw new PagetideError('PT_PEER_FAILED', `${this.origin} answered more than ${most} bytes`);
      pieces.push(piece);
    }
    for (const live of this.#live) live.look();
    const all = Buffer.concat(pieces);
    if (answer.statusCode < 200 || answer.statusCode > 299)
      throw refusal(this.origin, answer.statusCode, all.toString('utf8'));
    return all;
  }

  #explain(error: unknown, signal: AbortSignal | undefined): PagetideError {
    if (error instanceof PagetideError) return error;
    if (signal?.aborted === true) return new PagetideError('PT_CANCELLED', 'the call was given up', { cause: error });
    const untrusted = trustFailure(this.origin, error);
    if (untrusted !== undefined) return untrusted;
    const late = error instanceof Error && error.name === 'TimeoutError';
    return unreachable(this.origin, late ? 'no answer in time' : asPagetideError(error).message, error);
  }

  #watch(socket: Socket): void {
    const bytes = new WireBytes(socket);
    this.#live.add(bytes);
    socket.once('close', () => {
      this.#live.delete(bytes);
      this.#received += bytes.received;
      this.#sent += bytes.sent;
    });
  }
}

function checkIdentity(origin: string, identity: string | undefined, expected: string | undefined): void {
  if (expected === undefined || identity === expected) return;
  throw new PagetideError('PT_PEER_UNTRUSTED', `${origin} is ${identity ?? 'nobody known'}, not ${expected}`, {
    hint: 'Check the address, and that the certificate there is that of the host that is meant.',
  });
}

function findings(json: unknown, count: number): Finding[] {
  const { findings: found } = (typeof json === 'object' && json !== null ? json : {}) as { findings?: unknown };
  if (!Array.isArray(found) || found.length !== count || !found.every((finding) => FINDINGS.includes(finding)))
    throw new PagetideError('PT_PEER_FAILED', 'the other agent did not say what it found of each frame');
  return found as Finding[];
}

function capabilities(json: unknown, origin: string): Capabilities {
  const { protocol, userfaultfd, room } = (
    typeof json === 'object' && json !== null ? json : {}
  ) as Partial<Capabilities>;
  if (!Number.isInteger(protocol) || typeof userfaultfd?.ok !== 'boolean')
    throw new PagetideError('PT_PEER_FAILED', `${origin} did not say what it can do`);
  const why = typeof userfaultfd.why === 'string' ? { why: userfaultfd.why } : {};
  // of older agents, which don't tell
  const { bytes, guests } = { ...room };
  const left = isCount(bytes) && isCount(guests) ? { room: { bytes, guests } } : {};
  return { protocol: protocol!, userfaultfd: { ok: userfaultfd.ok, ...why }, ...left };
}

function isCount(value: unknown): value is number {
  return Number.isSafeInteger(value) && (value as number) >= 0;
}

function grants(domain: string): string {
  return `/v1/domain-grants/${encodeURIComponent(domain)}`;
}

function checked(migration: string): string {
  if (!isMigrationId(migration)) throw new PagetideError('PT_BAD_ARGUMENT', 'not a migration id');
  return migration;
}

function incoming(migration: string): string {
  return `/v1/incoming/${checked(migration)}`;
}

function status(json: unknown, migration: string): IncomingStatus {
  const body = (typeof json === 'object' && json !== null ? json : {}) as Partial<IncomingStatus>;
  if (body.migration !== migration || !Number.isInteger(body.epoch) || !STATES.includes(String(body.state))) {
    throw new PagetideError('PT_PEER_FAILED', 'the other agent answered something that is no status of this migration');
  }
  return body as IncomingStatus;
}
