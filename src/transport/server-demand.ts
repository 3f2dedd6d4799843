/** The demand channel at the source: a page request is answered where it is read, before anything else happens. */
import type { Socket } from 'node:net';
import { asPagetideError } from '../errors.ts';
import type { LiveOffer } from './live-offer.ts';
import type { OwnSession } from './own-session.ts';
import { isZero, readMemory } from './memory-file.ts';
import { Counter } from './server-messages.ts';
import { ServerStream } from './server-stream.ts';
import { FrameFlag, FrameType, HEADER_SIZE, WireLimit, protocolError, writeHeader } from './wire.ts';

/** Bytes that may wait in the socket before requests wait instead. Above Node's own mark, so that 'drain' comes. */
const UNSENT_LIMIT = 256 << 10;

/**
 * Fast path: decode → pread → one write of header and page, in one buffer that is used again as soon as the kernel has
 * taken it. Requests wait (in a fixed ring) only while the destination doesn't read what it asked for.
 */
export class DemandStream extends ServerStream<LiveOffer> {
  #answer: Buffer;
  readonly #waitingFrame = new Uint32Array(WireLimit.pageRequests);
  readonly #waitingStream = new Uint32Array(WireLimit.pageRequests);
  #first = 0;
  #waiting = 0;

  constructor(offer: LiveOffer, socket: Socket, livenessMs: number, own?: OwnSession) {
    super(offer, 'demand', socket, livenessMs, own);
    this.#answer = Buffer.allocUnsafeSlow(HEADER_SIZE + offer.pageSize);
    this.goDirect();
  }

  protected override take(_type: FrameType, stream: number, frame: number): void {
    const { owner: offer } = this;
    if (frame >= offer.frames) throw protocolError(`frame ${frame} is outside the guest's ${offer.frames}`);
    offer.counters[Counter.demandRequests]!++;
    if (this.#waiting === 0 && this.socket.writableLength < UNSENT_LIMIT) {
      this.#serve(stream, frame);
      return;
    }
    if (this.#waiting === WireLimit.pageRequests) throw protocolError('too many page requests are outstanding');
    const slot = (this.#first + this.#waiting++) % WireLimit.pageRequests;
    this.#waitingFrame[slot] = frame;
    this.#waitingStream[slot] = stream;
  }

  protected override drained(): void {
    while (this.#waiting > 0 && this.socket.writableLength < UNSENT_LIMIT && !this.closing) {
      const slot = this.#first;
      this.#first = (slot + 1) % WireLimit.pageRequests;
      this.#waiting--;
      this.#serve(this.#waitingStream[slot]!, this.#waitingFrame[slot]!);
    }
  }

  #serve(stream: number, frame: number): void {
    const { owner: offer } = this;
    const size = offer.pageSize;
    // Nothing left in the socket: the last answer has left, and its buffer is ours again. Else it stays the socket's.
    if (this.socket.writableLength !== 0) this.#answer = Buffer.allocUnsafeSlow(HEADER_SIZE + size);
    const answer = this.#answer;
    try {
      readMemory(offer.files.segments, frame * size, size, answer, HEADER_SIZE);
    } catch (error) {
      this.sendError(asPagetideError(error), stream, frame);
      return;
    }
    let length = HEADER_SIZE;
    if (isZero(answer, HEADER_SIZE, size)) {
      offer.counters[Counter.demandZero]!++;
      writeHeader(answer, 0, 0, FrameType.Page, FrameFlag.Zero, stream, frame);
    } else {
      offer.counters[Counter.demandPages]!++;
      offer.counters[Counter.rawBytes]! += size;
      offer.counters[Counter.pageBytes]! += size;
      writeHeader(answer, 0, size, FrameType.Page, 0, stream, frame);
      length += size;
    }
    if (this.direct !== undefined) {
      this.sendDirect(answer, length);
      return;
    }
    this.send(length === answer.length ? answer : answer.subarray(0, length));
  }
}
