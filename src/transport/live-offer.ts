/** A guest's memory as the page server's thread holds it while a migration is under way. */
import { asPagetideError, PagetideError } from '../errors.ts';
import { MemoryFiles } from './memory-file.ts';
import { Counter, type Offer } from './server-messages.ts';
import type { OwnedStream, StreamOwner } from './stream-owner.ts';
import { tokenDigest } from './upgrade.ts';
import { StateEncoder } from './wire-state.ts';
import { encodeFrame, FrameType } from './wire.ts';

/** Connections of one channel that may be open at once: a new one beside an old one that is half-open, and some. */
const STREAMS_PER_CHANNEL = 4;

/**
 * Files, secret, counters and connections of one offer, and the *log*: the frames of the manifest and the device state as they
 * were pushed. The log only grows, and is kept until the offer is withdrawn: each state connection sends it from the start.
 */
export class LiveOffer implements StreamOwner {
  readonly migration: string;
  readonly pageSize: number;
  readonly frames: number;
  readonly tokenDigest: Buffer;
  readonly files: MemoryFiles;
  readonly counters: Float64Array;
  readonly log: Buffer[] = [];
  /** See {@link Offer.destination}. */
  destination: string | undefined;
  readonly #streams = new Set<OwnedStream>();
  #isSettled = false;
  #state: StateEncoder | undefined;
  #stateEnded = false;

  /** @throws PagetideError `PT_BAD_ARGUMENT`, `PT_MEMORY_FILE` */
  constructor(offer: Offer, counters: SharedArrayBuffer) {
    this.migration = offer.migration;
    this.pageSize = offer.pageSize;
    this.frames = offer.frames;
    this.tokenDigest = tokenDigest(offer.token);
    this.files = MemoryFiles.open(offer.files, offer.frames, offer.pageSize);
    this.counters = new Float64Array(counters);
    this.destination = offer.destination;
  }

  count(counter: number, by = 1): void {
    this.counters[counter]! += by;
  }

  /** Takes a connection in; the oldest of its channel goes when there are too many. */
  add(stream: OwnedStream): void {
    const same = [...this.#streams].filter((other) => other.kind === stream.kind);
    this.#streams.add(stream);
    this.count(Counter.connections);
    this.count(Counter.open);
    if (same.length >= STREAMS_PER_CHANNEL) {
      same[0]!.close(new PagetideError('PT_PROTOCOL', `more than ${STREAMS_PER_CHANNEL} ${stream.kind} connections`));
    }
  }

  remove(stream: OwnedStream): void {
    if (this.#streams.delete(stream)) this.count(Counter.open, -1);
  }

  /** @throws PagetideError `PT_BAD_ARGUMENT` */
  settle(): void {
    if (this.#isSettled) throw new PagetideError('PT_BAD_ARGUMENT', 'the manifest is final already');
    this.#isSettled = true;
    this.#append([encodeFrame(FrameType.Settled, 0, 0, 0)]);
  }

  /**
   * Frames of wire-tags.ts, as they are to be sent: back to back in `bytes`, which is kept.
   * @throws PagetideError `PT_BAD_ARGUMENT` after {@link settle}
   */
  pushManifest(bytes: Uint8Array, lengths: Uint32Array): void {
    if (this.#isSettled) throw new PagetideError('PT_BAD_ARGUMENT', 'the manifest is final already');
    const frames: Buffer[] = [];
    let at = bytes.byteOffset;
    for (const length of lengths) {
      frames.push(Buffer.from(bytes.buffer, at, length));
      at += length;
    }
    this.#append(frames);
  }

  /** @throws PagetideError `PT_BAD_ARGUMENT`, `PT_NO_SPACE` */
  pushState(chunk: Uint8Array): void {
    this.#checkState();
    this.#state ??= new StateEncoder();
    let frames: Buffer[];
    try {
      frames = this.#state.encode(chunk);
    } catch (error) {
      // pieces that follow may be on their way already, and its end: without this one there is no state
      this.abortState(asPagetideError(error));
      throw error;
    }
    this.#append(frames);
  }

  endState(): void {
    this.#checkState();
    this.#append([(this.#state ?? new StateEncoder()).end()]);
    this.#stateEnded = true;
  }

  /** The state can't be had: whoever waits for it is told, and so is who comes later. */
  abortState(error: PagetideError): void {
    this.#checkState();
    this.#stateEnded = true;
    for (const stream of this.#streams) if (stream.kind === 'state') stream.close(error);
  }

  /** Ends all connections and lets go of the files. */
  close(error: PagetideError): void {
    for (const stream of this.#streams) stream.close(error);
    this.files.release();
  }

  #checkState(): void {
    if (this.#stateEnded) throw new PagetideError('PT_BAD_ARGUMENT', 'the device state was pushed already');
  }

  #append(frames: Buffer[]): void {
    for (const frame of frames) this.log.push(frame);
    for (const stream of this.#streams) stream.logGrew();
  }
}
