/**
 * The shortest way between a plain TCP socket and its bytes, for the demand channel: `send` and `recv` by native calls on
 * the socket's own descriptor, while its stream rests. A stream's own read and write cost several microseconds each
 * (a 64 KiB buffer a read, a request object a write), as much as the kernel's whole part of a page.
 *
 * The stream stays the owner: it closes the descriptor, and takes over what a full socket does not. Bytes keep their
 * order, because the direct way is taken only while the stream holds nothing unsent. A socket without a descriptor that
 * can be had (another runtime) has no direct way, nor has TLS that is Node's, and its user goes on with the stream. How TLS
 * gets a direct way is in own-session.ts.
 */
import type { Socket } from 'node:net';
import { getEnvironmentData, setEnvironmentData } from 'node:worker_threads';
import { native, type FdWatcher } from '../memory/native.ts';

const EAGAIN = -11;

interface Handle {
  fd?: unknown;
  readStop?: () => void;
}

const OFF = 'pagetide.no-direct';

/** Keeps this process's threads from the direct way, to measure what it is worth. Before the first of them is started. */
export function forgoDirect(): void {
  setEnvironmentData(OFF, true);
}

export function mayBeDirect(): boolean {
  return getEnvironmentData(OFF) !== true;
}

/**
 * The descriptor of a socket's TCP connection, also of one that speaks TLS; -1 where there is none to be had. Not in Node's
 * documentation, and there since the beginning; without it nothing is lost but time.
 */
export function descriptorOf(socket: Socket): number {
  const fd = (socket as unknown as { _handle?: Handle | null })._handle?.fd;
  return typeof fd === 'number' ? fd : -1;
}

/** The socket's handle reads nothing from now on; as it still counts as reading, nothing starts it again. */
export function stopReading(socket: Socket): void {
  (socket as unknown as { _handle?: Handle | null })._handle?.readStop?.();
}

export class DirectIo {
  #received = 0;
  #sent = 0;
  readonly socket: Socket;
  readonly #fd: number;
  #watcher: FdWatcher | undefined;
  #watched = -1;

  protected constructor(socket: Socket, fd: number) {
    this.socket = socket;
    this.#fd = fd;
    socket.once('close', () => this.#release());
  }

  /** Undefined where the socket gives no descriptor. Reading goes on through the stream until {@link takeReading}. */
  static of(socket: Socket): DirectIo | undefined {
    if (socket.destroyed || 'encrypted' in socket || !mayBeDirect()) return undefined;
    const fd = descriptorOf(socket);
    return fd >= 0 ? new DirectIo(socket, fd) : undefined;
  }

  /** Bytes that went the direct way; the stream's counters lack them. */
  get received(): number {
    return this.#received;
  }
  get sent(): number {
    return this.#sent;
  }

  /** The socket's descriptor, to be polled; -1 once it is destroyed, as its number may be somebody else's by then. */
  get fd(): number {
    return this.socket.destroyed ? -1 : this.#fd;
  }

  /**
   * Whoever calls this reads with {@link recv}, when `fd` is readable; the stream stops reading a moment later.
   *
   * Not by `pause()`: a stream that was told to flow still reads once after it, and what it gets then would lie in its
   * buffer for ever. So it goes on flowing, and what it still reads comes the old way, in order, as both read from the one
   * queue of the kernel in one thread. Then the handle rests, and as it still counts as reading, nothing starts it again.
   */
  takeReading(): void {
    setImmediate(() => {
      if (!this.socket.destroyed) stopReading(this.socket);
    });
  }

  /** Has this thread's event loop call back when there is something to {@link recv}. */
  watch(callback: () => void): void {
    this.#watched = native().duplicate(this.fd);
    this.#watcher = native().watch(this.#watched, callback);
    // the stream's handle is what keeps the thread alive, or not
    this.#watcher.unref();
  }

  /** Bytes read into `into`; 0: nothing now; -1: the connection has ended, or failed. */
  recv(into: Uint8Array): number {
    const { fd } = this;
    if (fd < 0) return -1;
    const bytes = native().recvSocket(fd, into);
    if (bytes > 0) {
      this.#received += bytes;
      return bytes;
    }
    return bytes === EAGAIN ? 0 : -1;
  }

  /** Sends `length` bytes of `data`, which may be used again when this returns. */
  send(data: Uint8Array, length: number): void {
    let done = 0;
    const { fd } = this;
    if (fd >= 0 && this.socket.writableLength === 0) {
      const taken = native().sendSocket(fd, data, 0, length);
      if (taken > 0) {
        done = taken;
        this.#sent += taken;
      }
    }
    // The rest, or an error, is the stream's business; a copy, as the caller uses its memory again.
    if (done < length) this.socket.write(Uint8Array.prototype.slice.call(data, done, length));
  }

  #release(): void {
    this.#watcher?.close();
    this.#watcher = undefined;
    if (this.#watched >= 0) native().close(this.#watched);
    this.#watched = -1;
  }
}
