/**
 * Bulk at the page server: answers that batch workers make, and that are written in slices, behind demand.
 *
 *   request ─► queue ─► batch workers (a few of each connection) ─► finished ─► one slice a turn of the event loop
 */
import type { Socket } from 'node:net';
import { errorFromJson } from '../errors.ts';
import type { BatchPool } from './batch-pool.ts';
import type { BatchResult, BatchTask } from './batch-task.ts';
import { ServerStream } from './server-stream.ts';
import type { StreamOwner } from './stream-owner.ts';
import { FrameType, protocolError, type StreamKind } from './wire.ts';

/** Bytes written in one go: some 20 µs of this thread, the longest that bulk can hold up a fault. */
const SLICE = 64 << 10;
/** Batches that a connection may have in the pool. */
const IN_POOL = 2;
/** Bytes of finished batches that may wait for the socket before no more are made. */
const UNSENT_LIMIT = 1 << 20;

interface SliceWriter {
  /** Nobody waits for what it writes. */
  readonly isBackground: boolean;
  writeSlice(): void;
}

/**
 * Writes bulk, one slice of one connection in each turn of the event loop, round robin.
 *
 * A turn polls all sockets first and comes here (`setImmediate`) only afterwards: every page request that had arrived
 * has been answered by then, so that a slice is never written in front of one. A background stream has its turn when no other has anything.
 */
export class BulkWriter {
  readonly #ready: SliceWriter[] = [];
  readonly #background: SliceWriter[] = [];
  #scheduled = false;

  add(stream: SliceWriter): void {
    (stream.isBackground ? this.#background : this.#ready).push(stream);
    this.#schedule();
  }

  #schedule(): void {
    if (this.#scheduled) return;
    this.#scheduled = true;
    setImmediate(() => {
      this.#scheduled = false;
      (this.#ready.shift() ?? this.#background.shift())?.writeSlice();
      if (this.#ready.length + this.#background.length > 0) this.#schedule();
    });
  }
}

/** What the bulk streams of a page server share. */
export interface BulkParts {
  livenessMs: number;
  pool: BatchPool;
  writer: BulkWriter;
}

/** A request whose answer is still to be made. */
export interface BulkRequest {
  stream: number;
  /** Of its frame: what an error that answers it repeats. */
  argument: number;
  task: BatchTask;
}

/** A frame on its way out. */
interface Outgoing {
  frame: Uint8Array;
  /** It answers a request, which is no longer outstanding once this is written. */
  answers: boolean;
}

export abstract class BulkStream<Owner extends StreamOwner> extends ServerStream<Owner> {
  readonly #pool: BatchPool;
  readonly #writer: BulkWriter;
  readonly #most: number;
  /** Asked for and not yet answered in full. */
  #outstanding = 0;
  /** Asked for, not yet in the pool. */
  #queue: BulkRequest[] = [];
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

  /** @param most requests that may be outstanding */
  constructor(owner: Owner, kind: StreamKind, socket: Socket, parts: BulkParts, most: number) {
    super(owner, kind, socket, parts.livenessMs);
    this.#pool = parts.pool;
    this.#writer = parts.writer;
    this.#most = most;
  }

  /** What the task uses must stay until {@link releaseTask}. */
  protected abstract retainTask(): void;
  protected abstract releaseTask(): void;
  /** How many of `bytes` may be written now; 0: none, until {@link goOn}. @param answers whether they answer a request */
  protected grant(...[bytes]: [bytes: number, answers: boolean]): number {
    return bytes;
  }
  /** Whether the pool may have a task of this stream now; if not, {@link goOn} follows. */
  protected mayMake(): boolean {
    if (this.#pool.hasRoom) return true;
    this.waitFor((callback) => this.#pool.whenRoom(callback));
    return false;
  }
  get isBackground(): boolean {
    return false;
  }
  protected abstract countResult(result: Exclude<BatchResult, { error: unknown }>): void;

  /** @throws PagetideError `PT_PROTOCOL` when too many are outstanding */
  protected enqueue(request: BulkRequest): void {
    if (this.#outstanding === this.#most) throw protocolError('too many batch requests are outstanding');
    this.#outstanding++;
    this.#queue.push(request);
    this.#advance();
  }

  /** A whole frame that answers a request without the pool; in its turn, between two others. */
  protected finish(frame: Uint8Array): void {
    this.#outstanding++;
    this.control(frame);
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
    const answers = frame[4] !== FrameType.Ping && frame[4] !== FrameType.Pong;
    if (!answers && this.#finished.length > this.#most) return;
    this.#finished.splice(half === undefined ? 0 : 1, 0, { frame, answers });
    this.#unsent += frame.length;
    this.#advance();
  }

  /** Hands requests to the pool and finished frames to the writer, as far as there is room. */
  #advance(): void {
    if (this.closing) return;
    while (this.#queue.length > 0 && this.#inPool < IN_POOL && this.#unsent < UNSENT_LIMIT) {
      if (!this.mayMake()) break;
      void this.#make(this.#queue.shift()!);
    }
    if (!this.#writing && this.#finished.length > 0) {
      this.#writing = true;
      this.#writer.add(this);
    }
  }

  /** Has `when` call back once, to go on then. */
  protected waitFor(when: (callback: () => void) => void): void {
    if (this.#waitsForRoom) return;
    this.#waitsForRoom = true;
    when(() => {
      this.#waitsForRoom = false;
      this.#advance();
    });
  }

  /** What {@link grant} refused may be granted now. */
  goOn(): void {
    this.#advance();
  }

  async #make({ stream, argument, task }: BulkRequest): Promise<void> {
    this.#inPool++;
    this.retainTask();
    const result = await this.#pool.run(task);
    this.releaseTask();
    this.#inPool--;
    if (this.closing) return;
    if ('error' in result) {
      this.sendError(errorFromJson(result.error), stream, argument);
      return;
    }
    this.countResult(result);
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
    const granted = this.grant(Math.min(SLICE, first.frame.length - this.#at), first.answers);
    if (granted === 0) {
      this.#writing = false;
      return;
    }
    const slice = first.frame.subarray(this.#at, this.#at + granted);
    this.#at += slice.length;
    this.#unsent -= slice.length;
    if (this.#at === first.frame.length) {
      this.#finished.shift();
      this.#at = 0;
      // counted as answered before the other host can have read it, and so can ask for the next
      if (first.answers) this.#outstanding--;
    }
    this.send(slice, this.#written);
  }
}
