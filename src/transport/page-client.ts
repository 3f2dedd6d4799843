/**
 * A destination's connection to the page server of the source. Used inside a fault worker (demand) and a fill worker;
 * nothing here touches another thread.
 *
 * Fast path, one page: `requestPage` is one 16-byte write from memory that is used again; the answer is decoded where
 * the socket put it and handed on as (buffer, offset). Nothing is allocated beyond what the socket itself does.
 */
import type { Socket } from 'node:net';
import { PagetideError, asPagetideError } from '../errors.ts';
import { openPageSocket, type PageAddress } from './page-connect.ts';
import { DirectIo, mayBeDirect } from './direct-io.ts';
import type { PageSocket } from './read-tap.ts';
import { checkRuns, decodeBatch, encodeBatchRequest, type Batch, type Runs } from './wire-batch.ts';
import { WireBytes } from './wire-bytes.ts';
import { decodeDeltas, encodeDeltaRequest, type DeltaRequest, type Deltas } from './wire-deltas.ts';
import { StateReader, decodeError } from './wire-state.ts';
import {
  FrameDecoder,
  FrameFlag,
  FrameType,
  HEADER_SIZE,
  WireLimit,
  encodeFrame,
  protocolError,
  writeHeader,
} from './wire.ts';

export type { PageAddress } from './page-connect.ts';
export { eachPiece, type Batch, type Runs } from './wire-batch.ts';
export type { DeltaRequest, Deltas } from './wire-deltas.ts';

/** What comes in. Buffers are valid **until the callback returns**. A callback that throws ends the connection. */
export interface PageHandlers {
  /** A page that was asked for; `buffer[byteOffset … + pageSize)`, or nothing when `isZero`. */
  onPage?(frame: number, buffer: Buffer, byteOffset: number, isZero: boolean): void;
  /** A batch that was asked for, unpacked and checked; `stream` is what `requestBatch` returned. */
  onBatch?(batch: Batch, stream: number): void;
  /** Deltas that were asked for, unpacked; `stream` is what `requestDeltas` returned. */
  onDeltas?(deltas: Deltas, stream: number): void;
  /** Tags of frames from `first`: see wire-tags.ts. From the start on every connection. */
  onTags?(payload: Uint8Array, first: number): void;
  /** The manifest as it was told up to here: its frames, and its digest. */
  onManifestEnd?(payload: Uint8Array, frames: number): void;
  /** It is final: what its last end said. Once on every connection. */
  onSettled?(): void;
  /** A piece of the device state. Starts again at offset 0 on every connection. */
  onState?(chunk: Buffer, offset: number): void;
  /** The device state is whole, and its digest right. */
  onStateEnd?(length: number): void;
  /** The source can't give this frame; the connection goes on. */
  onPageError?(frame: number, error: PagetideError): void;
  /** The source can't give this batch, or these deltas; the connection goes on. */
  onBatchError?(stream: number, runs: Runs, error: PagetideError): void;
  /** The connection is gone, once. `error`: why, undefined after `close()`. What was asked for and not answered is lost. */
  onClose?(error: PagetideError | undefined): void;
}

export interface ConnectOptions extends PageAddress {
  handlers: PageHandlers;
  /** Milliseconds of silence after which the source is pinged, 2000 by default; three times that ends the connection. */
  livenessMs?: number;
  /**
   * Its owner polls {@link PageConnection.directFd} himself: bytes then don't go through the stream, where the socket allows
   * that. For the fault worker, whose every wait is a native poll.
   */
  direct?: boolean;
}

const SLOTS = WireLimit.pageRequests;
const QUIET_INTERVALS = 3;
/** Most bytes of one direct read: some pages with their headers. */
const DIRECT_BYTES = 64 << 10;
/** Bytes unsent above which a ping is not answered. */
const PONG_LIMIT = 64 << 10;

/** Opens a page stream. @throws PagetideError as {@link openPageSocket} */
export async function connectPages(options: ConnectOptions): Promise<PageConnection> {
  return new PageConnection(await openPageSocket(options, options.direct === true && mayBeDirect()), options);
}

export class PageConnection {
  readonly channel: ConnectOptions['channel'];
  readonly #socket: Socket;
  readonly #bytes: WireBytes;
  readonly #handlers: PageHandlers;
  readonly #pageSize: number;
  readonly #frames: number;
  readonly #decoder: FrameDecoder;
  readonly #liveness: NodeJS.Timeout;
  /** What connecting took, milliseconds: see {@link TappedSocket.connectMs}. */
  readonly connectMs: number;
  #hasManifest = false;
  #isSettled = false;
  readonly #state = new StateReader();
  /** Outstanding page requests: slot = stream % SLOTS; stream 0: free. */
  readonly #slotStream = new Uint32Array(SLOTS);
  readonly #slotFrame = new Uint32Array(SLOTS);
  #pagesOut = 0;
  readonly #batches = new Map<number, { runs: Runs; total: number; deltas: boolean }>();
  #nextStream = 1;
  readonly #request = Buffer.allocUnsafeSlow(HEADER_SIZE);
  #direct: DirectIo | undefined;
  /** All that is sent goes through {@link #direct}: the socket's own stream carries encrypted bytes. */
  readonly #own: boolean;
  #memory: Buffer | undefined;
  #quiet = 0;
  #closed = false;
  #why: PagetideError | undefined;
  #heard = false;
  #told = false;

  /** Takes over a socket that has been upgraded; see {@link connectPages}. */
  constructor(tapped: PageSocket, options: Omit<ConnectOptions, 'url' | 'migration' | 'token'>) {
    const { socket } = tapped;
    this.channel = options.channel;
    this.connectMs = tapped.connectMs;
    this.#socket = socket;
    this.#bytes = new WireBytes(socket);
    this.#own = tapped.own !== undefined;
    if (tapped.own !== undefined) this.#readVia(tapped.own);
    this.#handlers = options.handlers;
    this.#pageSize = options.pageSize;
    this.#frames = options.frames;
    this.#decoder = new FrameDecoder(
      `client-${options.channel}`,
      options.pageSize,
      (type, flags, stream, argument, buffer, offset, length) => {
        this.#take(type, flags, stream, argument, buffer, offset, length);
      },
    );
    socket.ref();
    socket.on('error', (cause) =>
      this.#shut(new PagetideError('PT_PEER_UNREACHABLE', `the page stream broke: ${cause.message}`, { cause })),
    );
    socket.on('end', () => this.#shut(new PagetideError('PT_PEER_UNREACHABLE', 'the source closed the page stream')));
    socket.on('close', () => this.#gone());
    this.#liveness = setInterval(() => this.#look(), options.livenessMs ?? 2_000);
    this.#liveness.unref();
    // it may have died between the upgrade and now
    if (socket.destroyed) queueMicrotask(() => this.#gone());
    // not before the caller has the connection: its handlers may use it
    else {
      process.nextTick(() => {
        // what came with the handshake's end lies in memory: nothing makes the descriptor readable for it
        if (this.#own) this.readDirect();
        tapped.divert((buffer, bytes) => this.#read(buffer, bytes));
        if (options.direct === true && !this.#own && !this.#closed) this.#goDirect();
      });
    }
  }

  /**
   * The descriptor that its owner polls, and calls {@link readDirect} when it is readable; -1: bytes come by the event
   * loop. May change at any time.
   */
  get directFd(): number {
    return this.#direct?.fd ?? -1;
  }

  /** Takes in what has come. Returns false when the connection has ended; `onClose` follows by the event loop. */
  readDirect(): boolean {
    const direct = this.#direct;
    while (direct !== undefined && !this.#closed) {
      const bytes = direct.recv(this.#memory!);
      if (bytes < 0) this.#shut(new PagetideError('PT_PEER_UNREACHABLE', 'the source closed the page stream'));
      else if (bytes > 0) this.#read(this.#memory!, bytes);
      // less than there was room for: that was all
      if (bytes < this.#memory!.length) break;
    }
    return !this.#closed;
  }

  #goDirect(): void {
    const direct = DirectIo.of(this.#socket);
    if (direct === undefined) return;
    this.#readVia(direct);
    direct.takeReading();
  }

  #readVia(direct: DirectIo): void {
    this.#direct = direct;
    this.#memory = Buffer.allocUnsafeSlow(DIRECT_BYTES);
  }

  #write(frame: Uint8Array): void {
    if (this.#own) this.#direct!.send(frame, frame.length);
    else this.#socket.write(frame);
  }

  /** Page requests without an answer yet. */
  get outstandingPages(): number {
    return this.#pagesOut;
  }
  get outstandingBatches(): number {
    return this.#batches.size;
  }
  get closed(): boolean {
    return this.#closed;
  }
  /** Whether the source has said anything since the upgrade: what a reconnect takes as proof that the connection works. */
  get heard(): boolean {
    return this.#heard;
  }
  /** Bytes at the socket, HTTP heads included. */
  get bytesReceived(): number {
    return this.#bytes.received + (this.#direct?.received ?? 0);
  }
  get bytesSent(): number {
    return this.#bytes.sent + (this.#direct?.sent ?? 0);
  }

  /**
   * Asks for one page; any number may be under way, and answers may come in another order.
   * @returns false when the connection is gone, or {@link WireLimit.pageRequests} are outstanding: ask again later
   */
  requestPage(frame: number): boolean {
    if (this.#closed || this.#pagesOut === SLOTS) return false;
    if (frame >>> 0 !== frame || frame >= this.#frames) throw new PagetideError('PT_BAD_ARGUMENT', `no frame ${frame}`);
    const stream = this.#freeStream();
    const slot = stream % SLOTS;
    this.#slotStream[slot] = stream;
    this.#slotFrame[slot] = frame;
    this.#pagesOut++;
    const socket = this.#socket;
    // an empty socket has given the last request to the kernel, and its memory back to us
    if (this.#direct !== undefined) {
      writeHeader(this.#request, 0, 0, FrameType.PageRequest, 0, stream, frame);
      this.#direct.send(this.#request, HEADER_SIZE);
      return true;
    }
    const request = socket.writableLength === 0 ? this.#request : Buffer.allocUnsafe(HEADER_SIZE);
    writeHeader(request, 0, 0, FrameType.PageRequest, 0, stream, frame);
    socket.write(request);
    return true;
  }

  /** A stream id whose slot is free; there is one. With answers in order it is the next. */
  #freeStream(): number {
    let stream = this.#nextStream;
    while (stream === 0 || this.#slotStream[stream % SLOTS] !== 0) stream = (stream + 1) >>> 0;
    this.#nextStream = (stream + 1) >>> 0;
    return stream;
  }

  /**
   * Asks for a batch. `runs` must not be changed until it is answered.
   * @returns its stream id; 0 when the connection is gone, or {@link WireLimit.batchRequests} are outstanding
   * @throws PagetideError `PT_BAD_ARGUMENT`: runs outside the guest, or more than a batch holds
   */
  requestBatch(runs: Runs): number {
    const total = this.#totalOf(runs);
    const stream = this.#batchStream(runs, total, false);
    if (stream !== 0) this.#write(encodeBatchRequest(stream, runs, total));
    return stream;
  }

  /**
   * The same for frames of which there are older versions here.
   * @param request digests of as many frames as there are in its runs
   * @param measure tell what whole pages would have taken, too
   */
  requestDeltas(request: DeltaRequest, measure: boolean): number {
    const total = this.#totalOf(request.runs);
    const stream = this.#batchStream(request.runs, total, true);
    if (stream !== 0) this.#write(encodeDeltaRequest(stream, request, total, measure));
    return stream;
  }

  #totalOf(runs: Runs): number {
    try {
      return checkRuns(runs, this.#frames, this.#pageSize);
    } catch (error) {
      throw new PagetideError('PT_BAD_ARGUMENT', asPagetideError(error).message);
    }
  }

  /** 0: it can't be asked for now. */
  #batchStream(runs: Runs, total: number, deltas: boolean): number {
    if (this.#closed || this.#batches.size === WireLimit.batchRequests) return 0;
    while (this.#nextStream === 0 || this.#batches.has(this.#nextStream))
      this.#nextStream = (this.#nextStream + 1) >>> 0;
    const stream = this.#nextStream;
    this.#nextStream = (stream + 1) >>> 0;
    this.#batches.set(stream, { runs, total, deltas });
    return stream;
  }

  /** Ends the connection at once. `onClose` comes without an error. Idempotent. */
  close(): void {
    this.#shut(undefined);
  }

  #read(buffer: Buffer, bytes: number): void {
    this.#quiet = 0;
    this.#heard = true;
    try {
      this.#decoder.feed(buffer, bytes);
    } catch (error) {
      this.#shut(asPagetideError(error));
    }
  }

  #take(
    type: FrameType,
    flags: number,
    stream: number,
    argument: number,
    buffer: Buffer,
    offset: number,
    length: number,
  ): void {
    switch (type) {
      case FrameType.Page: {
        this.#answered(stream, argument);
        this.#handlers.onPage?.(argument, buffer, offset, flags === FrameFlag.Zero);
        return;
      }
      case FrameType.Batch: {
        const { runs, total } = this.#batchAnswered(stream, argument, false);
        const batch = decodeBatch(buffer.subarray(offset, offset + length), flags, runs, total, this.#pageSize);
        this.#handlers.onBatch?.(batch, stream);
        return;
      }
      case FrameType.Deltas: {
        const { total } = this.#batchAnswered(stream, argument, true);
        this.#handlers.onDeltas?.(decodeDeltas(buffer.subarray(offset, offset + length), flags, total), stream);
        return;
      }
      case FrameType.Tags:
        if (this.#isSettled) throw protocolError('a manifest goes on after its end');
        this.#handlers.onTags?.(buffer.subarray(offset, offset + length), argument);
        return;
      case FrameType.ManifestEnd:
        if (this.#isSettled) throw protocolError('a manifest ends after its end');
        this.#hasManifest = true;
        this.#handlers.onManifestEnd?.(buffer.subarray(offset, offset + length), argument);
        return;
      case FrameType.Settled:
        if (this.#isSettled || !this.#hasManifest) throw protocolError('there is no manifest that could be final');
        this.#isSettled = true;
        this.#handlers.onSettled?.();
        return;
      case FrameType.State: {
        const chunk = buffer.subarray(offset, offset + length);
        this.#state.chunk(chunk, argument);
        this.#handlers.onState?.(chunk, argument);
        return;
      }
      case FrameType.StateEnd:
        this.#state.end(buffer.subarray(offset, offset + length));
        this.#handlers.onStateEnd?.(this.#state.length);
        return;
      case FrameType.Error:
        this.#refused(stream, argument, decodeError(buffer.subarray(offset, offset + length)));
        return;
      case FrameType.Ping:
        // a source that pings and doesn't read must not pile pongs up here
        if (this.#socket.writableLength < PONG_LIMIT) this.#write(encodeFrame(FrameType.Pong, 0, 0, argument));
        return;
      case FrameType.Pong:
        return;
      case FrameType.PageRequest:
      case FrameType.BatchRequest:
      case FrameType.DeltaRequest:
      case FrameType.Proof:
      case FrameType.HaveRequest:
      case FrameType.Have:
      case FrameType.TagRequest:
      case FrameType.TagPages:
        // the decoder has refused them
        return;
    }
  }

  /** @throws PagetideError `PT_PROTOCOL` when it answers nothing that was asked. */
  #answered(stream: number, frame: number): void {
    const slot = stream % SLOTS;
    if (stream === 0 || this.#slotStream[slot] !== stream || this.#slotFrame[slot] !== frame) {
      throw protocolError(`page ${frame} was not asked for`);
    }
    this.#slotStream[slot] = 0;
    this.#pagesOut--;
  }

  /** @param deltas whether it is answered with deltas; undefined: with an error */
  #batchAnswered(stream: number, total: number, deltas?: boolean): { runs: Runs; total: number } {
    const asked = this.#batches.get(stream);
    if (asked?.total !== total || (deltas !== undefined && asked.deltas !== deltas))
      throw protocolError('a batch was not asked for');
    this.#batches.delete(stream);
    return asked;
  }

  #refused(stream: number, argument: number, error: PagetideError): void {
    if (stream === 0) {
      this.#shut(error);
    } else if (this.channel === 'demand') {
      this.#answered(stream, argument);
      this.#handlers.onPageError?.(argument, error);
    } else {
      const { runs } = this.#batchAnswered(stream, argument);
      this.#handlers.onBatchError?.(stream, runs, error);
    }
  }

  /** Once an interval: pings a source that is silent, and gives it up when it stays so. */
  #look(): void {
    if (++this.#quiet > QUIET_INTERVALS)
      this.#shut(new PagetideError('PT_PEER_UNREACHABLE', 'the source has gone silent'));
    else if (this.#quiet > 1 && this.#socket.writableLength === 0) this.#write(encodeFrame(FrameType.Ping, 0, 0, 0));
  }

  #shut(error: PagetideError | undefined): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#why = error;
    this.#decoder.stop();
    clearInterval(this.#liveness);
    this.#bytes.look();
    this.#socket.destroy();
  }

  #gone(): void {
    this.#shut(new PagetideError('PT_PEER_UNREACHABLE', 'the page stream was cut'));
    if (this.#told) return;
    this.#told = true;
    this.#handlers.onClose?.(this.#why);
  }
}
