/**
 * The port of an agent that has certificates: TLS 1.3, both sides with a certificate of the cluster.
 *
 *   TCP ─► handshake ─► certificate of this cluster? ─ yes ─► HTTP
 *                                    └─ no ─► one answer that says why, and the end
 *
 * OpenSSL could refuse the certificate in the handshake; but then the other side sees an alert without a reason, or a
 * reset. So the handshake ends for everybody, and who isn't trusted gets one fixed answer: not a byte of what he sends is
 * looked at, neither by the HTTP parser nor by anything behind it.
 */
import { constants } from 'node:crypto';
import type { RequestListener } from 'node:http';
import { createServer, type Server } from 'node:https';
import type { Socket } from 'node:net';
import type { TLSSocket } from 'node:tls';
import { PagetideError, asPagetideError } from '../errors.ts';
import { contextOptions, type Credentials } from '../trust/credentials.ts';
import { peerIdentity } from '../trust/identity.ts';

/** For the whole handshake, milliseconds. */
const HANDSHAKE_MS = 5_000;
/** How long who is refused may take to read why, milliseconds. */
const LINGER_MS = 1_000;

export interface SecureListener {
  server: Server;
  /** Ends those connections that speak HTTP, and those that don't yet or never will. Page streams end by themselves. */
  closeConnections: () => void;
}

/** @param refused told of each connection that isn't let in */
export function secureListener(
  credentials: Credentials,
  listener: RequestListener,
  refused: (error: PagetideError, from: string) => void,
): SecureListener {
  const server = createServer(
    {
      ...contextOptions(credentials),
      requestCert: true,
      rejectUnauthorized: false,
      handshakeTimeout: HANDSHAKE_MS,
      noDelay: true,
      // A session that is resumed is not verified again, and would outlive its certificate.
      secureOptions: constants.SSL_OP_NO_TICKET,
    },
    listener,
  );
  // The HTTP server listens for this event; nobody but it may come between the two.
  const [serve] = server.listeners('secureConnection') as ((this: Server, socket: TLSSocket) => void)[];
  server.removeAllListeners('secureConnection');
  server.on('secureConnection', (socket) => {
    try {
      peerIdentity(socket);
    } catch (thrown) {
      const error = asPagetideError(thrown);
      refused(error, socket.remoteAddress ?? '');
      refuse(socket, error);
      return;
    }
    strangers.delete(endOf(socket));
    serve!.call(server, socket);
  });
  server.on('tlsClientError', (error: NodeJS.ErrnoException, socket) => {
    // who gives up, or is given up, during the handshake is no news
    if (error.code !== 'ERR_SSL_HTTP_REQUEST') return;
    refused(new PagetideError('PT_PEER_UNTRUSTED', 'it spoke plain HTTP'), socket.remoteAddress ?? '');
  });
  // TLS doesn't tell which TCP connection it stands on, but both tell where it comes from
  const strangers = new Map<string, Socket>();
  server.on('connection', (socket: Socket) => {
    const from = endOf(socket);
    strangers.set(from, socket);
    socket.once('close', () => {
      if (strangers.get(from) === socket) strangers.delete(from);
    });
  });
  const closeConnections = (): void => {
    server.closeAllConnections();
    for (const socket of strangers.values()) socket.destroy();
  };
  return { server, closeConnections };
}

function endOf({ remoteAddress, remotePort }: Socket): string {
  return `${remoteAddress ?? ''} ${remotePort ?? ''}`;
}

function refuse(socket: TLSSocket, error: PagetideError): void {
  const body = JSON.stringify(error.toJSON());
  socket.on('error', () => socket.destroy());
  // What he sends is taken and dropped: unread bytes would turn the end into a reset, and the answer would be lost.
  socket.resume();
  socket.end(
    `HTTP/1.1 ${error.status} Refused\r\nConnection: close\r\nContent-Type: application/json\r\n` +
      `Content-Length: ${Buffer.byteLength(body)}\r\n\r\n${body}`,
  );
  const linger = setTimeout(() => socket.destroy(), LINGER_MS);
  socket.once('close', () => clearTimeout(linger));
}
