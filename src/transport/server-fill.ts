/** The fill channel at the source: batches are made by the pool and written in slices, behind demand. */
import type { Socket } from 'node:net';
import { errorFromJson } from '../errors.ts';
import type { BatchPool } from './batch-pool.ts';
import type { LiveOffer } from './live-offer.ts';
import { Counter } from './server-messages.ts';
import { ServerStream } from './server-stream.ts';
import { decodeBatchRequest, type Runs } from './wire-batch.ts';
import { FrameType, WireLimit, protocolError } from './wire.ts';

/** Bytes written in one go: some 20 µs of this thread, the longest that bulk can hold up a fault. */
const SLICE = 64 << 10;
/** Batches that a connection may have in the pool. */
const IN_POOL = 2;
/** Bytes of finished batches that may wait for the socket before no more are made. */
const UNSENT_LIMIT = 1 << 20;

/**
 * Writes bulk, one slice of one connection in each turn of the event loop, round robin.
 *
 * A turn polls all sockets first and comes here (`setImmediate`) only afterwards: every page request that had arrived
 * has been answered by then, so that a slice is never written in front of one.
 */
export class BulkWriter {
  #ready: FillStream[] = [];
  #scheduled = false;

  add(stream: FillStream): void {
    this.#ready.push(stream);
    this.#schedule();
  }

  #schedule(): void {
    if (this.#scheduled) return;
    this.#scheduled = true;
    setImmediate(() => {
      this.#scheduled = false;
      this.#ready.shift()?.writeSlice();
      if (this.#ready.length > 0) this.#schedule();
    });
  }
}

interface Waiting {
  stream: number;
  runs: Runs;
  total: number;
}

/** A frame on its way out. */
interface Outgoing {
  frame: Uint8Array;
  /** It answers a batch request, which is no longer outstanding once this is written. */
  answers: boolean;
}

export class FillStream extends ServerStream {
  readonly #pool: BatchPool;
  readonly #writer: BulkWriter;
  /** Asked for and not yet answered in full. */
  #outstanding = 0;
  /** Asked for, not yet in the pool. */
  #queue: Waiting[] = [];
  #inPool = 0;
  #waitsForRoom = false;
  /** Finished frames; of the first, `#at` bytes are written. */
  #finished: Outgoing[] = [];
  #at = 0;
  #unsent = 0;
  /** A slice is with the socket, or the writer has us in its list. */
  #writing = false;
  readonly #written = (): void => {
    this.#writing = false;
    this.#advance();
  };

  constructor(offer: LiveOffer, socket: Socket, livenessMs: number, pool: BatchPool, writer: BulkWriter) {
    super(offer, 'fill', socket, livenessMs);
    this.#pool = pool;
    this.#writer = writer;
  }

  protected override take(stream: number, total: number, buffer: Buffer, offset: number, length: number): void {
    const { frames, pageSize } = this.offer;
    const runs = decodeBatchRequest(buffer, offset, length, total, frames, pageSize);
    if (this.#outstanding === WireLimit.batchRequests) throw protocolError('too many batch requests are outstanding');
    this.#outstanding++;
    this.offer.count(Counter.batchRequests);
    this.#queue.push({ stream, runs, total });
    this.#advance();
  }

  protected override drained(): void {
    // each slice has a callback of its own: 'drain' does not come for small ones
  }

  protected override gone(): void {
    this.#queue = [];
    this.#finished = [];
    this.#unsent = 0;
  }

  protected override control(frame: Uint8Array): void {
    const half = this.#at > 0 ? this.#finished[0] : undefined;
    if (this.closing && half !== undefined) {
      // the last word: what was begun is finished first, in one piece
      this.send(half.frame.subarray(this.#at));
      this.#finished = [];
      this.#at = 0;
    }
    if (this.closing) {
      this.send(frame);
      return;
    }
    const answers = frame[4] === FrameType.Error;
    if (!answers && this.#finished.length > WireLimit.batchRequests) return;
    this.#finished.splice(half === undefined ? 0 : 1, 0, { frame, answers });
    this.#unsent += frame.length;
    this.#advance();
  }

  /** Hands requests to the pool and finished frames to the writer, as far as there is room. */
  #advance(): void {
    if (this.closing) return;
    while (this.#queue.length > 0 && this.#inPool < IN_POOL && this.#unsent < UNSENT_LIMIT) {
      if (!this.#pool.hasRoom) {
        this.#waitForRoom();
        break;
      }
      void this.#make(this.#queue.shift()!);
    }
    if (!this.#writing && this.#finished.length > 0) {
      this.#writing = true;
      this.#writer.add(this);
    }
  }

  #waitForRoom(): void {
    if (this.#waitsForRoom) return;
    this.#waitsForRoom = true;
    this.#pool.whenRoom(() => {
      this.#waitsForRoom = false;
      this.#advance();
    });
  }

  async #make({ stream, runs, total }: Waiting): Promise<void> {
    const { files, pageSize } = this.offer;
    this.#inPool++;
    files.retain();
    const result = await this.#pool.run({ segments: files.segments, pageSize, stream, runs, total });
    files.release();
    this.#inPool--;
    if (this.closing) return;
    if ('error' in result) {
      this.sendError(errorFromJson(result.error), stream, total);
      return;
    }
    this.offer.count(Counter.fillPages, result.pages);
    this.offer.count(Counter.fillZero, result.zero);
    this.offer.count(Counter.rawBytes, result.rawBytes);
    this.offer.count(Counter.pageBytes, result.bodyBytes);
    this.#finished.push({ frame: result.frame, answers: true });
    this.#unsent += result.frame.length;
    this.#advance();
  }

  /** The writer's turn for this connection. */
  writeSlice(): void {
    const first = this.#finished[0];
    if (this.closing || first === undefined) {
      this.#writing = false;
      return;
    }
    const slice = first.frame.subarray(this.#at, this.#at + SLICE);
    this.#at += slice.length;
    this.#unsent -= slice.length;
    if (this.#at === first.frame.length) {
      this.#finished.shift();
      this.#at = 0;
      // counted as answered before the destination can have read it, and so can ask for the next
      if (first.answers) this.#outstanding--;
    }
    this.send(slice, this.#written);
  }
}
