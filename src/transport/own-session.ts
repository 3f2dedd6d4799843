/**
 * How a demand channel over TLS gets a direct way (direct-io.ts): a second TLS session that is its own, on the same TCP
 * connection.
 *
 *   destination                                        source
 *   ── TLS 1.3 of Node: certificates, HTTP, `pagetide-session: own` ──►
 *                                                      stops reading in Node's session
 *   ◄── 101, `pagetide-session: own` ── the last bytes of Node's session
 *   stops reading in Node's session
 *   ── TLS 1.3 of ours: handshake with the key of both ──►          read and written by native calls from here
 *
 * Node's TLS sockets take a turn of the event loop for each message, and most of a miss's time (docs/benchmarks.md); there
 * is no way around their streams, and none to OpenSSL's state inside of them. So there is a session whose state is ours.
 *
 * Who is at the other end is known from Node's session, and is the same for ours: its key is exported from Node's
 * (RFC 5705, RFC 8446 7.5), which only the two ends of that can, and nobody gets in without (native/addon/tls_session.cc).
 * It is used once. Both handshakes, the records and their ciphers are OpenSSL's.
 *
 * Why no byte gets into the wrong session: the destination sends nothing between its request and its ClientHello, which
 * it sends when it has the 101; by then the source reads nothing in Node's session any more. The source sends nothing after
 * the 101 until it got the ClientHello, and then only from ours. Node's socket stays as it is until the connection
 * ends, and says no more: it holds the connection's place in the server, and is destroyed, not ended.
 */
import { Socket } from 'node:net';
import { TLSSocket } from 'node:tls';
import { PagetideError } from '../errors.ts';
import { native, TlsSessionField, TLS_SESSION_FIELDS, type FdWatcher, type TlsSession } from '../memory/native.ts';
import { DirectIo, descriptorOf, mayBeDirect, stopReading } from './direct-io.ts';
import { WireBytes } from './wire-bytes.ts';

export const SESSION_HEADER = 'pagetide-session';
/** The one value of {@link SESSION_HEADER}: in a request, that the destination can; in the answer, that it is so. */
export const OWN_SESSION = 'own';

const KEY_LABEL = 'EXPERIMENTAL pagetide own session';
const KEY_BYTES = 32;

/** A socket of Node's that has been told to read no more, and the key that both its ends know. */
export interface Handed {
  socket: TLSSocket;
  key: Buffer;
}

/**
 * Takes the reading from Node's session, at once. Not before the other side is known to send nothing until it is told to.
 * Undefined: this socket has no direct way, and goes on as it was.
 * @param context what the stream is for; both ends must say the same
 */
export function handOver(socket: Socket, context: string): Handed | undefined {
  if (!(socket instanceof TLSSocket) || socket.destroyed || socket.getProtocol() !== 'TLSv1.3') return undefined;
  if (descriptorOf(socket) < 0 || !mayBeDirect()) return undefined;
  const key = socket.exportKeyingMaterial(KEY_BYTES, KEY_LABEL, Buffer.from(context));
  stopReading(socket);
  return { socket, key };
}

/** `socket` is the TCP connection: its stream reads nothing, and writes what the kernel did not take, encrypted bytes only. */
export class OwnSession extends DirectIo {
  readonly #outerBytes: WireBytes;
  readonly #session: TlsSession;
  readonly #status = new Float64Array(TLS_SESSION_FIELDS);
  /** Sent before the handshake was done. */
  #early: Uint8Array[] = [];

  /** @throws PagetideError `PT_SYSCALL` */
  static begin(handed: Handed, server: boolean): OwnSession {
    const fd = native().duplicate(descriptorOf(handed.socket));
    const socket = new Socket({ fd, readable: true, writable: true, allowHalfOpen: true });
    // before the loop polls it for the first time: the stream never reads a byte
    stopReading(socket);
    return new OwnSession(socket, fd, handed, server);
  }

  private constructor(socket: Socket, fd: number, { socket: outer, key }: Handed, server: boolean) {
    super(socket, fd);
    this.#outerBytes = new WireBytes(outer);
    this.#outerBytes.look();
    try {
      this.#session = native().createTlsSession(server, key, this.#status);
    } finally {
      key.fill(0);
    }
    outer.setTimeout(0);
    socket.on('error', () => socket.destroy());
    socket.once('close', () => outer.destroy());
    outer.once('close', () => socket.destroy());
    if (outer.destroyed) socket.destroy();
  }

  /** Bytes at the network, without what the stream of {@link socket} wrote; with those of Node's session. */
  override get received(): number {
    return this.#outerBytes.received + this.#status[TlsSessionField.Received]!;
  }
  override get sent(): number {
    return this.#outerBytes.sent + this.#status[TlsSessionField.Sent]!;
  }

  /**
   * The client's handshake; the server's goes on by itself as it reads.
   * @throws PagetideError `PT_PEER_UNREACHABLE`
   */
  async handshake(timeoutMs: number): Promise<void> {
    if (this.#advance() === 1) return;
    const { socket } = this;
    let watcher: FdWatcher | undefined;
    let deadline: NodeJS.Timeout | undefined;
    const watched = native().duplicate(this.fd);
    let failed = (): void => undefined;
    try {
      await new Promise<void>((resolve, reject) => {
        failed = (): void => reject(new PagetideError('PT_PEER_UNREACHABLE', 'the page stream’s TLS failed to begin'));
        deadline = setTimeout(failed, timeoutMs);
        socket.once('close', failed);
        watcher = native().watch(watched, () => {
          const done = this.#advance();
          if (done === 1) resolve();
          else if (done < 0) failed();
        });
      });
    } catch (error) {
      socket.destroy();
      throw error;
    } finally {
      clearTimeout(deadline);
      socket.off('close', failed);
      watcher?.close();
      native().close(watched);
    }
  }

  #advance(): number {
    const { fd } = this;
    if (fd < 0) return -1;
    const done = this.#session.handshake(fd);
    this.#pass();
    return done;
  }

  override recv(into: Uint8Array): number {
    const { fd } = this;
    if (fd < 0) return -1;
    const bytes = this.#session.recv(fd, into);
    if (this.#status[TlsSessionField.Unsent]! > 0) this.#pass();
    if (this.#early.length > 0 && this.#status[TlsSessionField.Established] === 1) {
      const early = this.#early;
      this.#early = [];
      for (const data of early) this.send(data, data.length);
    }
    return bytes;
  }

  override send(data: Uint8Array, length: number): void {
    if (this.#status[TlsSessionField.Established] === 0) {
      this.#early.push(Uint8Array.prototype.slice.call(data, 0, length));
      return;
    }
    // not past what the stream still holds
    const unsent = this.#session.send(this.socket.writableLength === 0 ? this.fd : -1, data, length);
    if (unsent > 0) this.#pass();
    else if (unsent < 0) this.socket.destroy();
  }

  /** What the socket did not take is the stream's business, in order: nothing goes past it while the stream holds some. */
  #pass(): void {
    if (this.#status[TlsSessionField.Unsent]! > 0) this.socket.write(this.#session.takeUnsent());
  }
}
