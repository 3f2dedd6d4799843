/** One connection of another host, as the page server's thread sees it: what all kinds have in common. */
import type { Socket } from 'node:net';
import { PagetideError, asPagetideError } from '../errors.ts';
import { DirectIo } from './direct-io.ts';
import type { OwnSession } from './own-session.ts';
import { Counter } from './server-messages.ts';
import type { OwnedStream, StreamOwner } from './stream-owner.ts';
import { encodeError } from './wire-state.ts';
import { WireBytes } from './wire-bytes.ts';
import { FrameDecoder, FrameType, encodeFrame, type StreamKind } from './wire.ts';

/** Quiet intervals after which a connection is given up; it is pinged after the first. */
const QUIET_INTERVALS = 3;
/** How long a connection that was told to end may take to read why. Milliseconds. */
const LINGER_MS = 1_000;
/** Most bytes of one direct read: requests are 16 bytes each. */
const DIRECT_BYTES = 16 << 10;
/** Bytes unsent above which a ping is not answered. */
const PONG_LIMIT = 64 << 10;

export abstract class ServerStream<Owner extends StreamOwner> implements OwnedStream {
  readonly kind: StreamKind;
  protected readonly owner: Owner;
  protected readonly socket: Socket;
  protected closing = false;
  protected direct: DirectIo | undefined;
  readonly #decoder: FrameDecoder;
  readonly #liveness: NodeJS.Timeout;
  readonly #bytes: WireBytes;
  /** Its TLS session where it has one of its own: then all bytes go through that. */
  readonly #own: OwnSession | undefined;
  /** Under TLS what leaves is known only when it has; else it is counted as it is sent. */
  readonly #secure: boolean;
  #seenIn = 0;
  #seenOut = 0;
  #quiet = 0;
  /** What had left the process at the last look; see {@link #look}. */
  #flushed = 0;

  /** @param own a TLS session of the stream's own, over `socket` */
  constructor(owner: Owner, kind: StreamKind, socket: Socket, livenessMs: number, own?: OwnSession) {
    this.owner = owner;
    this.kind = kind;
    this.socket = socket;
    this.#decoder = new FrameDecoder(
      `server-${kind}`,
      owner.pageSize,
      (type, flags, stream, argument, buffer, offset, length) => {
        if (type === FrameType.Ping) this.#pong(argument);
        else if (type !== FrameType.Pong) this.take(type, stream, argument, buffer, offset, length, flags);
      },
    );
    this.#bytes = new WireBytes(socket);
    this.#own = own;
    this.#secure = own !== undefined || 'encrypted' in socket;
    this.#seenOut = this.#sent;
    owner.count(Counter.bytesOut, this.#seenOut);
    this.#seenIn = this.#received;
    owner.count(Counter.bytesIn, this.#seenIn);
    socket.setNoDelay(true);
    socket.setTimeout(0);
    // with a session of its own the stream reads nothing
    if (own === undefined) socket.on('data', (chunk: Buffer) => this.#read(chunk));
    socket.on('drain', () => this.drained());
    // the other host closes when it has everything, or to connect again: an end in its own right, not an error
    socket.on('error', () => socket.destroy());
    socket.on('end', () => {
      this.#countSent();
      socket.end();
    });
    socket.on('close', () => this.#closed());
    this.#liveness = setInterval(() => this.#look(), livenessMs);
    this.#liveness.unref();
    owner.add(this);
  }

  /** A request: of a type that the kind takes. @throws PagetideError `PT_PROTOCOL` */
  protected abstract take(
    type: FrameType,
    stream: number,
    argument: number,
    buffer: Buffer,
    offset: number,
    length: number,
    flags: number,
  ): void;
  /** The socket has room again. */
  protected abstract drained(): void;
  /** The connection is gone. */
  protected gone(): void {
    // only bulk has something to drop
  }
  /** It keeps an answer back of its own accord: the other end's silence says nothing then. */
  protected holdsBack(): boolean {
    return false;
  }
  logGrew(): void {
    // only the state channel reads the log
  }

  /** From now on reads and short writes go past the stream, where the socket allows that. */
  protected goDirect(): void {
    const memory = Buffer.allocUnsafeSlow(DIRECT_BYTES);
    const own = this.#own;
    if (own !== undefined) {
      this.direct = own;
      own.watch(() => this.#readOwn(own, memory));
      return;
    }
    const direct = DirectIo.of(this.socket);
    if (direct === undefined) return;
    this.direct = direct;
    direct.takeReading();
    direct.watch(() => {
      const bytes = direct.recv(memory);
      if (bytes > 0) this.#feed(memory.subarray(0, bytes), bytes);
      else if (bytes < 0) this.socket.destroy();
    });
  }

  #readOwn(own: OwnSession, memory: Buffer): void {
    // what OpenSSL has read already wakes nobody: until there is room left, there may be more
    let bytes = memory.length;
    while (bytes === memory.length && !this.socket.destroyed) {
      bytes = own.recv(memory);
      if (bytes < 0) this.socket.destroy();
      else if (bytes > 0) {
        this.#countReceived();
        this.#countSent();
        this.#feed(memory.subarray(0, bytes), 0);
      }
    }
  }

  /** Bytes at the network, without those of {@link DirectIo}. */
  get #received(): number {
    return this.#bytes.received + (this.#own?.received ?? 0);
  }
  get #sent(): number {
    return this.#bytes.sent + (this.#own?.sent ?? 0);
  }

  protected send(frame: Uint8Array, written?: () => void): void {
    if (this.#own !== undefined) {
      this.#own.send(frame, frame.length);
      // behind what the socket did not take
      if (written !== undefined) this.socket.write('', written);
      return;
    }
    if (this.#secure) {
      // How much it is below TLS is known when it has been given to the kernel: looked at when something comes, and at the end. A
      // callback for that alone would cost each page more than its encryption.
      if (written === undefined) this.socket.write(frame);
      else
        this.socket.write(frame, () => {
          this.#countSent();
          written();
        });
      return;
    }
    this.owner.counters[Counter.bytesOut]! += frame.length;
    if (written === undefined) this.socket.write(frame);
    else this.socket.write(frame, written);
  }

  #countSent(): void {
    if (!this.#secure) return;
    const sent = this.#sent;
    this.owner.counters[Counter.bytesOut]! += sent - this.#seenOut;
    this.#seenOut = sent;
  }

  /** Sends what lies in memory that is used again, by {@link direct}, which is there. */
  protected sendDirect(data: Uint8Array, length: number): void {
    // under TLS as in `send`
    if (!this.#secure) this.owner.counters[Counter.bytesOut]! += length;
    this.direct!.send(data, length);
  }

  /** Sends a frame that isn't the channel's bulk. A channel that writes its frames in slices puts it between two. */
  protected control(frame: Uint8Array): void {
    this.send(frame);
  }

  protected sendError(error: PagetideError, stream: number, argument: number): void {
    this.owner.count(Counter.errors);
    this.control(encodeError(error, stream, argument));
  }

  close(error: PagetideError): void {
    if (this.closing) return;
    this.closing = true;
    this.#decoder.stop();
    if (this.socket.destroyed) return;
    this.sendError(error, 0, 0);
    this.socket.end();
    // an end that the other side doesn't read must not keep the socket for ever
    const linger = setTimeout(() => this.socket.destroy(), LINGER_MS);
    linger.unref();
    this.socket.once('close', () => clearTimeout(linger));
  }

  /** A destination that pings and doesn't read gets no pong: they must not pile up here, and data on its way says more. */
  #pong(argument: number): void {
    if (this.socket.writableLength < PONG_LIMIT) this.control(encodeFrame(FrameType.Pong, 0, 0, argument));
  }

  #read(chunk: Buffer): void {
    this.#countReceived();
    this.#countSent();
    this.#feed(chunk, 0);
  }

  #countReceived(): void {
    const read = this.#received;
    this.owner.counters[Counter.bytesIn]! += read - this.#seenIn;
    this.#seenIn = read;
  }

  /** @param direct bytes that the stream's own counter lacks */
  #feed(chunk: Buffer, direct: number): void {
    this.owner.counters[Counter.bytesIn]! += direct;
    this.#quiet = 0;
    try {
      this.#decoder.feed(chunk);
    } catch (error) {
      this.close(asPagetideError(error));
    }
  }

  /**
   * Once an interval. A sign of life is anything received, or anything that left for a reader that had been slow: so a
   * destination that is busy is not cut off, and one that is gone is.
   */
  #look(): void {
    this.#countSent();
    if (this.holdsBack()) this.#quiet = 0;
    const flushed = this.socket.bytesWritten - this.socket.writableLength;
    if (flushed !== this.#flushed && this.socket.writableLength > 0) this.#quiet = 0;
    this.#flushed = flushed;
    this.#quiet++;
    if (this.#quiet > QUIET_INTERVALS) this.socket.destroy();
    else if (this.#quiet > 1 && this.socket.writableLength === 0 && !this.closing) this.control(PING);
  }

  #closed(): void {
    this.closing = true;
    this.#countSent();
    this.#decoder.stop();
    clearInterval(this.#liveness);
    // a refused or cut connection may have been read without a 'data' event
    this.#countReceived();
    this.owner.remove(this);
    this.gone();
  }
}

const PING = encodeFrame(FrameType.Ping, 0, 0, 0);
