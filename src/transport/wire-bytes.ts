/**
 * What a socket has really carried. A TLS socket's own counters are of what went into TLS and came out of it: handshake,
 * record headers and authentication tags are missing, half a percent of bulk and a hundred times a small message.
 */
import type { Socket } from 'node:net';

interface Counted {
  readonly bytesRead: number;
  readonly bytesWritten: number;
}

/**
 * Bytes at the network, both ways. A plain socket tells them for ever; below TLS the TCP handle forgets them when it is
 * closed, so whoever is about to end the connection, or has just used it, looks: what is lost then is TLS's own good-bye.
 */
export class WireBytes {
  readonly #socket: Socket;
  /** The TCP handle below TLS; not in Node's documentation: without it the counters are TLS's own. */
  readonly #tcp: Counted | undefined;
  #received = 0;
  #sent = 0;

  constructor(socket: Socket) {
    this.#socket = socket;
    if (!('encrypted' in socket)) return;
    const tcp = (socket as unknown as { _handle?: { _parent?: Partial<Counted> } })._handle?._parent;
    if (typeof tcp?.bytesRead === 'number' && typeof tcp.bytesWritten === 'number') this.#tcp = tcp as Counted;
  }

  get received(): number {
    if (this.#tcp === undefined) return this.#socket.bytesRead;
    this.look();
    return this.#received;
  }

  get sent(): number {
    if (this.#tcp === undefined) return this.#socket.bytesWritten;
    this.look();
    return this.#sent;
  }

  /** Takes both down. */
  look(): void {
    if (this.#tcp === undefined) return;
    this.#received = Math.max(this.#received, this.#tcp.bytesRead);
    this.#sent = Math.max(this.#sent, this.#tcp.bytesWritten);
  }
}
