/**
 * The page server, inside its thread: the agent's TCP listener. Requests for page streams become streams; all others go
 * to the control API. Nothing here waits on the main thread to answer a fault.
 */
import { createServer, type IncomingMessage, type RequestListener, type Server } from 'node:http';
import type { Server as SecureServer } from 'node:https';
import { Socket, type AddressInfo } from 'node:net';
import type { Duplex } from 'node:stream';
import { PagetideError, asPagetideError, errorFromJson } from '../errors.ts';
import { peerIdentity } from '../trust/identity.ts';
import { BackgroundPace, markBackground } from './background.ts';
import { BatchPool } from './batch-pool.ts';
import { answerError, proxyRequest } from './control-proxy.ts';
import { LiveDomain } from './live-domain.ts';
import { LiveOffer } from './live-offer.ts';
import { DemandStream } from './server-demand.ts';
import { BulkWriter, type BulkParts } from './server-bulk.ts';
import { FillStream } from './server-fill.ts';
import { TagStream } from './server-tags.ts';
import {
  Counter,
  type FromThread,
  type PageServerSettings,
  type Request,
  type SharedDomain,
} from './server-messages.ts';
import { OWN_SESSION, OwnSession, SESSION_HEADER, handOver } from './own-session.ts';
import { StateStream } from './server-state.ts';
import { NONCE_HEADER, PROOF_HEADER, proof } from './tag-proof.ts';
import { secureListener } from './tls-listener.ts';
import {
  BACKGROUND_HEADER,
  FRAMES_HEADER,
  PAGE_PROTOCOL,
  PAGE_SIZE_HEADER,
  PROTOCOL_HEADER,
  UPGRADE,
  UpgradeRefused,
  isStreamPath,
  isTagsPath,
  parseTagsUpgrade,
  parseUpgrade,
  sameToken,
  type TagsUpgradeRequest,
  type UpgradeRequest,
} from './upgrade.ts';

/** Connections that the port takes in all. */
const MAX_CONNECTIONS = 1024;
/** How long the answer to an upgrade may take to leave, milliseconds. */
const ANSWER_MS = 5_000;

export class PageServerThread {
  readonly #settings: PageServerSettings;
  readonly #post: (message: FromThread) => void;
  readonly #server: Server | SecureServer;
  readonly #closeConnections: () => void;
  readonly #offers = new Map<string, LiveOffer>();
  /** By the mark of the secret. */
  readonly #domains = new Map<string, LiveDomain>();
  readonly #pool: BatchPool;
  readonly #bulk: BulkParts;
  readonly #background: BackgroundPace;

  /** @param post sends a message to the main thread */
  constructor(settings: PageServerSettings, post: (message: FromThread) => void) {
    this.#settings = settings;
    this.#post = post;
    this.#pool = new BatchPool(settings.batchThreads);
    this.#bulk = { livenessMs: settings.livenessMs, pool: this.#pool, writer: new BulkWriter() };
    this.#background = new BackgroundPace(settings.background);
    const { credentials, controlSocket } = settings;
    const listener: RequestListener = (request, response) => {
      if (isStreamPath(request.url ?? '')) {
        answerError(response, new PagetideError('PT_PROTOCOL', 'page streams begin with an HTTP upgrade'), 426);
      } else {
        proxyRequest(request, response, controlSocket, peerIdentity(request.socket));
      }
    };
    if (credentials === undefined) {
      const server = createServer({ noDelay: true }, listener);
      this.#server = server;
      this.#closeConnections = () => server.closeAllConnections();
    } else {
      const { server, closeConnections } = secureListener(credentials, listener, (error, from) =>
        post({ type: 'refused', error: error.toJSON(), from }),
      );
      this.#server = server;
      this.#closeConnections = closeConnections;
    }
    this.#server.maxConnections = MAX_CONNECTIONS;
    this.#server.on('upgrade', (request, socket, head) => this.#upgrade(request, socket, head));
  }

  /** Binds the port and says so, or says why not. */
  listen(): void {
    const { host, port } = this.#settings;
    this.#server.once('error', (error: NodeJS.ErrnoException) => {
      this.#post({ type: 'failed', error: listenError(error, host, port).toJSON() });
      void this.#pool.close();
    });
    this.#server.listen({ host, port, exclusive: true }, () => {
      const address = this.#server.address() as AddressInfo;
      this.#post({ type: 'listening', host: address.address, port: address.port });
    });
  }

  /** Does what the main thread asks, and answers. */
  async handle(request: Request): Promise<void> {
    let error: PagetideError | undefined;
    try {
      await this.#do(request);
    } catch (thrown) {
      error = asPagetideError(thrown);
    }
    this.#post({ type: 'reply', id: request.id, ...(error === undefined ? {} : { error: error.toJSON() }) });
  }

  async #do(request: Request): Promise<void> {
    switch (request.type) {
      case 'offer':
        if (this.#offers.has(request.offer.migration)) {
          throw new PagetideError('PT_BAD_ARGUMENT', `migration ${request.offer.migration} is offered already`);
        }
        this.#offers.set(request.offer.migration, new LiveOffer(request.offer, request.counters));
        return;
      case 'admit':
        this.#offer(request.migration).destination = request.destination;
        return;
      case 'withdraw':
        this.#withdraw(request.migration);
        return;
      case 'share':
        this.#share(request.domain);
        return;
      case 'unshare':
        this.#unshare(request.domain);
        return;
      case 'settle':
        this.#offer(request.migration).settle();
        return;
      case 'manifest':
        this.#offer(request.migration).pushManifest(request.bytes, request.lengths);
        return;
      case 'state':
        this.#offer(request.migration).pushState(request.chunk);
        return;
      case 'state-end':
        this.#offer(request.migration).endState();
        return;
      case 'state-abort':
        this.#offer(request.migration).abortState(errorFromJson(request.error));
        return;
      case 'background-rates':
        this.#background.setRates(request.rates);
        return;
      case 'stand-back':
        this.#background.standBack(request.stands);
        return;
      case 'close':
        await this.#close();
        return;
    }
  }

  #offer(migration: string): LiveOffer {
    const offer = this.#offers.get(migration);
    if (offer === undefined)
      throw new PagetideError('PT_MIGRATION_UNKNOWN', `migration ${migration} is not offered here`);
    return offer;
  }

  #withdraw(migration: string): void {
    const offer = this.#offers.get(migration);
    this.#offers.delete(migration);
    offer?.close(new PagetideError('PT_MIGRATION_UNKNOWN', 'the source has withdrawn the migration'));
  }

  #share(domain: SharedDomain): void {
    const known = this.#domains.get(domain.id);
    if (known === undefined) this.#domains.set(domain.id, new LiveDomain(domain, this.#settings.tagCounters));
    else known.change(domain);
  }

  #unshare(id: string): void {
    const domain = this.#domains.get(id);
    this.#domains.delete(id);
    domain?.close(new PagetideError('PT_DOMAIN_UNKNOWN', 'this host has lost the domain'));
  }

  async #close(): Promise<void> {
    for (const migration of [...this.#offers.keys()]) this.#withdraw(migration);
    for (const domain of [...this.#domains.keys()]) this.#unshare(domain);
    const closed = new Promise<void>((resolve) => this.#server.close(() => resolve()));
    this.#closeConnections();
    await Promise.all([closed, this.#pool.close()]);
    this.#background.close();
  }

  #upgrade(request: IncomingMessage, socket: Duplex, head: Buffer): void {
    // until a stream has taken over, an error on the socket is nobody else's
    const swallow = (): void => {
      socket.destroy();
    };
    socket.on('error', swallow);
    try {
      if (!(socket instanceof Socket)) throw new PagetideError('PT_INTERNAL', 'the HTTP server gave no TCP socket');
      if (isTagsPath(request.url ?? '')) {
        this.#openTags(parseTagsUpgrade(request.url ?? '', request.headers), socket, head);
        return;
      }
      const wanted = parseUpgrade(request.url ?? '', request.headers);
      const offer = this.#authorize(wanted, socket);
      if (wanted.channel !== 'demand' || request.headers[SESSION_HEADER] !== OWN_SESSION || head.length > 0)
        this.#open(wanted, offer, socket, head);
      else this.#openOwn(wanted, offer, socket, request.url!);
    } catch (thrown) {
      const refused = thrown instanceof UpgradeRefused ? thrown : new UpgradeRefused(asPagetideError(thrown));
      refuse(socket, refused);
    }
  }

  #openTags({ domain: id, nonce, background }: TagsUpgradeRequest, socket: Socket, head: Buffer): void {
    const domain = this.#domains.get(id);
    const host = peerIdentity(socket);
    // one answer to both: whether a domain is here is nobody's business who does not have it
    if (domain === undefined || (host !== undefined && !domain.isOf(host)))
      throw new UpgradeRefused(new PagetideError('PT_DOMAIN_UNKNOWN', 'that domain is not shared with you here'));
    const of = domain.proofOf(nonce);
    const proven = Buffer.from(proof('server', of)).toString('hex');
    if (background) markBackground(socket);
    const answer = { [NONCE_HEADER]: of.server, [PROOF_HEADER]: proven };
    socket.write(switching(background ? { ...answer, [BACKGROUND_HEADER]: 1 } : answer));
    if (head.length > 0) socket.unshift(head);
    new TagStream(domain, socket, this.#bulk, host, of, background ? this.#background : undefined);
  }

  #authorize({ migration, token }: UpgradeRequest, socket: Socket): LiveOffer {
    const offer = this.#offers.get(migration);
    if (offer === undefined)
      throw new UpgradeRefused(new PagetideError('PT_MIGRATION_UNKNOWN', 'that migration is not offered here'));
    if (token === undefined || !sameToken(token, offer.tokenDigest)) {
      throw new UpgradeRefused(
        new PagetideError('PT_UNAUTHORIZED', 'that token does not open the page streams of this migration'),
      );
    }
    this.#checkDestination(offer, socket);
    return offer;
  }

  /**
   * Over TLS the pages of a guest are for the host alone that it moves to: another host of the cluster may have read the
   * token, in a journal or a core file. Only who has the token is worth a line in the log.
   */
  #checkDestination(offer: LiveOffer, socket: Socket): void {
    if (this.#settings.credentials === undefined) return;
    const name = peerIdentity(socket);
    if (name !== undefined && name === offer.destination) return;
    const error = new PagetideError('PT_UNAUTHORIZED', `${name} is not the host that this guest moves to`);
    offer.count(Counter.errors);
    this.#post({ type: 'refused', error: error.toJSON(), from: socket.remoteAddress ?? '' });
    throw new UpgradeRefused(error);
  }

  /** A demand channel whose destination asks for a TLS session of its own: see own-session.ts. */
  #openOwn(wanted: UpgradeRequest, offer: LiveOffer, socket: Socket, path: string): void {
    const handed = handOver(socket, path);
    if (handed === undefined) {
      this.#open(wanted, offer, socket, Buffer.alloc(0));
      return;
    }
    // one that doesn't read its answer has no stream yet that would notice
    const deadline = setTimeout(() => socket.destroy(), ANSWER_MS);
    socket.once('close', () => clearTimeout(deadline));
    const answer = switching({ ...about(offer), [SESSION_HEADER]: OWN_SESSION });
    // when it is the kernel's: what follows goes past Node's session
    socket.write(answer, (error) => {
      clearTimeout(deadline);
      // withdrawn meanwhile: nobody would close the stream
      if (error instanceof Error || socket.destroyed || this.#offers.get(wanted.migration) !== offer) {
        socket.destroy();
        return;
      }
      try {
        const own = OwnSession.begin(handed, true);
        new DemandStream(offer, own.socket, this.#settings.livenessMs, own);
      } catch {
        // no descriptor left: the destination tries again
        socket.destroy();
      }
    });
  }

  #open({ channel }: UpgradeRequest, offer: LiveOffer, socket: Socket, head: Buffer): void {
    socket.write(switching(about(offer)));
    if (head.length > 0) socket.unshift(head);
    const { livenessMs } = this.#settings;
    switch (channel) {
      case 'demand':
        new DemandStream(offer, socket, livenessMs);
        return;
      case 'fill':
        new FillStream(offer, socket, this.#bulk);
        return;
      case 'state':
        new StateStream(offer, socket, livenessMs);
        return;
    }
  }
}

function about({ pageSize, frames }: LiveOffer): Record<string, number> {
  return { [PAGE_SIZE_HEADER]: pageSize, [FRAMES_HEADER]: frames };
}

function switching(headers: Record<string, string | number>): string {
  const lines = Object.entries({ [PROTOCOL_HEADER]: PAGE_PROTOCOL, ...headers }).map(
    ([name, value]) => `${name}: ${value}\r\n`,
  );
  return `HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: ${UPGRADE}\r\n${lines.join('')}\r\n`;
}

function refuse(socket: Duplex, { error, status }: UpgradeRefused): void {
  const body = JSON.stringify(error.toJSON());
  socket.end(
    `HTTP/1.1 ${status} Refused\r\nConnection: close\r\n${status === 426 ? `Upgrade: ${UPGRADE}\r\n` : ''}` +
      `Content-Type: application/json\r\nContent-Length: ${Buffer.byteLength(body)}\r\n\r\n${body}`,
    () => socket.destroy(),
  );
}

function listenError(error: NodeJS.ErrnoException, host: string, port: number): PagetideError {
  const where = `${host}:${port}`;
  if (error.code === 'EADDRINUSE') return new PagetideError('PT_PORT_IN_USE', `${where} is in use`, { cause: error });
  if (error.code === 'EACCES')
    return new PagetideError('PT_NO_PERMISSION', `not allowed to listen on ${where}`, { cause: error });
  return new PagetideError('PT_BAD_ARGUMENT', `cannot listen on ${where}`, { cause: error });
}
