/** Makes a page stream: an HTTP request with `Upgrade:` through undici, within bounded time. */
import type { IncomingHttpHeaders } from 'node:http';
import type { Duplex } from 'node:stream';
import { Client, type Dispatcher, type buildConnector } from 'undici';
import { PagetideError, asPagetideError, errorFromJson } from '../errors.ts';
import { credentials as ownCredentials, secureContext, type Credentials } from '../trust/credentials.ts';
import { trustFailure } from '../trust/identity.ts';
import { agentUrl } from '../trust/agent-url.ts';
import {
  FRAMES_HEADER,
  PAGE_PROTOCOL,
  PAGE_SIZE_HEADER,
  PROTOCOL_HEADER,
  UPGRADE,
  isMigrationId,
  pagesPath,
} from './upgrade.ts';
import { markBackground } from './background.ts';
import { OWN_SESSION, OwnSession, SESSION_HEADER, handOver } from './own-session.ts';
import { TappedSocket, type PageSocket } from './read-tap.ts';
import type { Channel } from './wire.ts';

/** Bytes of one read: a few pages, or a batch. */
const READ_BYTES: Record<Channel, number> = { demand: 64 << 10, fill: 256 << 10, state: 64 << 10 };
/** Bytes of an error body that are read. */
const MAX_ERROR_BODY = 16 << 10;

export interface PageAddress {
  /** The source agent's URL, e.g. `http://10.0.0.1:7411`. */
  url: string;
  migration: string;
  token: string;
  channel: Channel;
  /** What the guest is known to be; a source that says otherwise is refused. */
  pageSize: number;
  frames: number;
  /** Milliseconds for the TCP connection, and then for the answer. 3000 by default. */
  timeoutMs?: number;
  /** For an https:// URL; those of the process by default. */
  credentials?: Credentials | undefined;
  /** Gives the attempt up. */
  signal?: AbortSignal;
}

/** A stream that begins as an HTTP request with `Upgrade:`. */
export interface StreamRequest {
  /** The other agent's URL. */
  url: string;
  path: string;
  headers: Record<string, string>;
  /** Most bytes of one read. */
  readBytes: number;
  timeoutMs: number;
  credentials: Credentials | undefined;
  signal: AbortSignal | undefined;
  /** Mark its packets as background traffic. */
  background?: boolean;
  /** Whether what the other side says beside the protocol is what is wanted. What it throws is why the stream is given up. */
  fits: (headers: IncomingHttpHeaders) => boolean;
}

/**
 * Resolves to the connection once the source has agreed.
 * @throws PagetideError the source's own (`PT_MIGRATION_UNKNOWN`, `PT_UNAUTHORIZED`, `PT_PROTOCOL`, …), or
 * `PT_PEER_UNREACHABLE`, `PT_BAD_ARGUMENT`, `PT_CANCELLED` (the signal)
 * @param own to have a TLS session of the stream's own, where it is TLS and the source can, too
 */
export async function openPageSocket(address: PageAddress, own = false): Promise<PageSocket> {
  const { url, migration, token, channel, pageSize, frames } = address;
  const { timeoutMs = 3_000, credentials = ownCredentials(), signal } = address;
  if (!isMigrationId(migration)) throw new PagetideError('PT_BAD_ARGUMENT', 'not a migration id');
  const path = pagesPath(migration, channel);
  const answer = { own: false };
  const tapped = await openStream({
    url,
    path,
    headers: { authorization: `Bearer ${token}`, ...(own ? { [SESSION_HEADER]: OWN_SESSION } : {}) },
    readBytes: READ_BYTES[channel],
    timeoutMs,
    credentials,
    signal,
    fits: (headers) => {
      answer.own = headers[SESSION_HEADER] === OWN_SESSION;
      return headers[PAGE_SIZE_HEADER] === String(pageSize) && headers[FRAMES_HEADER] === String(frames);
    },
  });
  return own && answer.own ? ownSession(tapped, path, timeoutMs, signal) : tapped;
}

/** The connection, with the TLS session of its own that the source waits for. */
async function ownSession(
  tapped: TappedSocket,
  path: string,
  timeoutMs: number,
  signal: AbortSignal | undefined,
): Promise<PageSocket> {
  const handed = handOver(tapped.socket, path);
  if (handed === undefined) {
    tapped.socket.destroy();
    throw new PagetideError('PT_PEER_UNREACHABLE', 'the page stream broke before it began');
  }
  const own = OwnSession.begin(handed, false);
  const abort = (): void => {
    own.socket.destroy();
  };
  signal?.addEventListener('abort', abort, { once: true });
  try {
    if (signal?.aborted === true) abort();
    await own.handshake(timeoutMs);
  } catch (error) {
    abort();
    throw signal?.aborted === true ? cancelled() : error;
  } finally {
    signal?.removeEventListener('abort', abort);
  }
  return { socket: own.socket, connectMs: tapped.connectMs, own, divert: () => undefined };
}

/**
 * Opens a stream to another agent.
 *
 * `Client#upgrade` hides the body of a refusal, which says why; so this is what it does inside, `dispatch` with
 * `upgrade`, and a handler that reads the body too.
 * @throws PagetideError as {@link openPageSocket}
 */
export async function openStream(request: StreamRequest): Promise<TappedSocket> {
  const { timeoutMs, credentials, signal } = request;
  const origin = originOf(request.url, credentials);
  if (signal?.aborted === true) throw cancelled();
  let tapped: TappedSocket | undefined;
  const client = new Client(origin, {
    connect: (target, done) => {
      tapped = connectTapped(target, request.readBytes, timeoutMs, credentials, done);
      // before TLS says its first word
      if (request.background === true)
        tapped.socket.prependOnceListener('connect', () => markBackground(tapped!.socket));
    },
    headersTimeout: timeoutMs,
    bodyTimeout: timeoutMs,
    pipelining: 1,
  });
  let abort: (() => void) | undefined;
  let deadline: NodeJS.Timeout | undefined;
  try {
    return await new Promise<TappedSocket>((resolve, reject) => {
      let stopped = false;
      const stop = (error: PagetideError): void => {
        stopped = true;
        reject(error);
        void client.destroy(error);
        tapped?.socket.destroy();
      };
      abort = () => stop(cancelled());
      signal?.addEventListener('abort', abort, { once: true });
      // undici's timers are coarse, and each covers one step only
      deadline = setTimeout(() => stop(unreachable(origin, 'no answer in time')), 2 * timeoutMs + 500);
      const upgraded = (): void => {
        if (stopped) tapped!.socket.destroy();
        else resolve(tapped!);
      };
      const options: Dispatcher.DispatchOptions = {
        path: request.path,
        method: 'GET',
        upgrade: UPGRADE,
        headers: { ...request.headers, [PROTOCOL_HEADER]: String(PAGE_PROTOCOL) },
      };
      client.dispatch(options, new UpgradeHandler(origin, request.fits, upgraded, reject));
    });
  } finally {
    if (abort !== undefined) signal?.removeEventListener('abort', abort);
    clearTimeout(deadline);
    // an upgraded socket isn't the client's any more
    void client.destroy();
  }
}

/** undici's connector, with a socket of our own making. */
function connectTapped(
  target: buildConnector.Options,
  readBytes: number,
  timeoutMs: number,
  credentials: Credentials | undefined,
  done: buildConnector.Callback,
): TappedSocket {
  const secure = target.protocol === 'https:';
  const port = Number(target.port === '' ? (secure ? 443 : 80) : target.port);
  // that there are some for https was checked with the URL
  const context = secure ? secureContext(credentials!) : undefined;
  const tapped = new TappedSocket(target.hostname.replace(/^\[(.*)\]$/, '$1'), port, readBytes, context);
  const { socket } = tapped;
  const deadline = setTimeout(() => socket.destroy(new Error(`no connection within ${timeoutMs} ms`)), timeoutMs);
  const failed = (error: Error): void => {
    clearTimeout(deadline);
    done(error, null);
  };
  socket.once('error', failed);
  socket.once(secure ? 'secureConnect' : 'connect', () => {
    clearTimeout(deadline);
    socket.off('error', failed);
    done(null, socket);
  });
  return tapped;
}

class UpgradeHandler implements Dispatcher.DispatchHandler {
  readonly #origin: string;
  readonly #wants: StreamRequest['fits'];
  readonly #resolve: () => void;
  readonly #reject: (error: PagetideError) => void;
  #status = 0;
  #body: Buffer[] = [];
  #bytes = 0;

  constructor(
    origin: string,
    fits: StreamRequest['fits'],
    resolve: () => void,
    reject: (error: PagetideError) => void,
  ) {
    this.#origin = origin;
    this.#wants = fits;
    this.#resolve = resolve;
    this.#reject = reject;
  }

  onRequestStart(): void {
    // undici tells the two generations of handlers apart by this method
  }

  onRequestUpgrade(
    _controller: Dispatcher.DispatchController,
    status: number,
    headers: IncomingHttpHeaders,
    socket: Duplex,
  ): void {
    const fits = status === 101 && headers.upgrade === UPGRADE && headers[PROTOCOL_HEADER] === String(PAGE_PROTOCOL);
    try {
      if (fits && this.#wants(headers)) {
        this.#resolve();
        return;
      }
    } catch (unwanted) {
      socket.destroy();
      this.#reject(asPagetideError(unwanted));
      return;
    }
    socket.destroy();
    this.#reject(
      new PagetideError(
        'PT_PROTOCOL',
        `${this.#origin} offers something else than was asked for, or speaks another protocol`,
      ),
    );
  }

  onResponseStart(_controller: Dispatcher.DispatchController, status: number): void {
    this.#status = status;
  }

  onResponseData(_controller: Dispatcher.DispatchController, chunk: Buffer): void {
    this.#bytes += chunk.length;
    if (this.#bytes <= MAX_ERROR_BODY) this.#body.push(chunk);
  }

  onResponseEnd(): void {
    this.#reject(refusal(this.#origin, this.#status, Buffer.concat(this.#body).toString('utf8')));
  }

  onResponseError(_controller: Dispatcher.DispatchController, cause: Error): void {
    this.#reject(trustFailure(this.#origin, cause) ?? unreachable(this.#origin, cause.message, cause));
  }
}

/**
 * The origin of an agent's URL, once it is sure that this agent may talk there: over TLS with certificates of its own, over
 * plain HTTP only within the host.
 * @throws PagetideError `PT_BAD_ARGUMENT`, `PT_PEER_UNTRUSTED`
 */
export function originOf(url: string, credentials: Credentials | undefined): string {
  const parsed = agentUrl(url);
  if (parsed === undefined) {
    throw new PagetideError('PT_BAD_ARGUMENT', `${url} is no URL of an agent`, {
      hint: 'An agent’s URL is like https://host-b:7411, or http://127.0.0.1:7411 on the same host.',
    });
  }
  if (parsed.secure && credentials === undefined) {
    throw new PagetideError('PT_PEER_UNTRUSTED', `${parsed.origin} needs TLS, and this agent has no certificates`);
  }
  if (!parsed.secure && !parsed.loopback) {
    throw new PagetideError('PT_PEER_UNTRUSTED', `${parsed.origin} is another host, and not https`);
  }
  return parsed.origin;
}

/** What an answer with an error status says: the other side's own error where it is one. */
export function refusal(origin: string, status: number, body: string): PagetideError {
  try {
    const json: unknown = JSON.parse(body);
    if (typeof json === 'object' && json !== null && 'code' in json) return errorFromJson(json);
  } catch {
    // not an agent's answer: said below
  }
  return new PagetideError('PT_PEER_FAILED', `${origin} answered with status ${status} and no reason`, {
    hint: 'Check that the address is an agent’s.',
  });
}

export function unreachable(origin: string, why: string, cause?: unknown): PagetideError {
  // a port that speaks TLS ends a plain connection without a word
  const dropped = origin.startsWith('http:') && (cause as NodeJS.ErrnoException | undefined)?.code === 'UND_ERR_SOCKET';
  return new PagetideError('PT_PEER_UNREACHABLE', `cannot reach ${origin}: ${why}`, {
    ...(cause === undefined ? {} : { cause }),
    ...(dropped ? { hint: 'If that agent has certificates its URL begins with https://.' } : {}),
  });
}

export function cancelled(): PagetideError {
  return new PagetideError('PT_CANCELLED', 'the connection was given up');
}
