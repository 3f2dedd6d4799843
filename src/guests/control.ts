/**
 * Client of the embedded guest's control socket: newline-delimited JSON, raw bytes behind `save` and `load`.
 *
 * Each request has a connection of its own. That costs some tens of microseconds, and a request that takes long
 * (`verify`), or waits for a page that never comes, stands in nobody's way.
 */
import { connect, type Socket } from 'node:net';
import { once } from 'node:events';
import type { Readable, Writable } from 'node:stream';
import { finished } from 'node:stream/promises';
import { z } from 'zod';
import { PagetideError, asPagetideError, type ErrorCode } from '../errors.ts';

/** The largest state that is sent or taken; keep equal to `kMaxStateBytes` in native/guest/state.h. */
export const MAX_STATE_BYTES = 64 * 2 ** 20;
/** The longest answer line, far above any that a guest gives. */
const MAX_LINE_BYTES = 2 ** 20;

const hash = z.string().regex(/^[0-9a-f]{16}$/);
const moment = z.object({ unixMicros: z.number().int().nonnegative() });
const region = z.object({ hostAddress: z.number().int(), size: z.number().int(), offset: z.number().int() });

const statusShape = z.object({
  state: z.enum(['running', 'paused', 'incoming']),
  pid: z.number().int().positive(),
  /** Bytes. */
  memorySize: z.number().int().positive(),
  pageSize: z.number().int().positive(),
  /** Pages of `pageSize`. */
  frames: z.number().int().positive(),
  private: z.boolean(),
  memoryFile: z.string().nullable(),
  regions: z.array(region).min(1),
  /** The userfaultfd's number in the guest's process. */
  uffd: z.number().int().nullable(),
  userModeOnly: z.boolean(),
  threads: z.number().int().positive(),
  seed: z.string(),
  writeRate: z.number(),
  readRate: z.number(),
  workingSet: z.number(),
  zeroFraction: z.number(),
  operations: z.number().int().nonnegative(),
  /** When the workload last did something, microseconds since the epoch; 0: never. */
  beat: z.number().int(),
  /** Sum over all frames, as of the last stop. */
  root: hash,
  /** Over everything that the workload has seen, as of the last stop. */
  chain: hash,
  failureCount: z.number().int(),
  /** Wrong memory that the workload met; the first few. */
  failures: z.array(
    z.object({
      kind: z.enum(['page', 'hole', 'table', 'root']),
      frame: z.number().int(),
      offset: z.number().int(),
      expected: hash,
      actual: hash,
      operation: z.number().int(),
    }),
  ),
});
export type ControlStatus = z.infer<typeof statusShape>;

const verifyShape = z.object({
  verified: z.boolean(),
  checked: z.number().int(),
  bad: z.array(z.number().int()),
  badCount: z.number().int(),
  detail: z.string(),
});
const statsShape = z.object({
  longestGapMs: z.number(),
  stalls: z.object({ count: z.number(), p50Us: z.number(), p99Us: z.number(), maxUs: z.number() }),
  operations: z.number(),
});
const digestShape = z.object({
  frame: z.number().int(),
  hash,
  zero: z.boolean(),
  /** In the workload's working set. */
  hot: z.boolean(),
  /** What the guest's table says; null while it has no state, and for the tables themselves. */
  expected: hash.nullable(),
});
const touchShape = z.object({ touched: z.array(z.object({ hash, ns: z.number() })) });

/** What an answer is made of, beside bytes. */
type Fields = Record<string, unknown>;

export interface RequestOptions {
  /** How long the whole request may take. */
  timeoutMs?: number;
  /** The code of an error that the guest itself answers. */
  refused?: ErrorCode;
}

/** Reads lines and bytes from one connection, and fails every read when the connection ends or is too late. */
class Conversation {
  readonly #socket: Socket;
  readonly #what: string;
  #pieces: Buffer = Buffer.alloc(0);
  #ended = false;
  #failure: PagetideError | undefined;
  #arrived: (() => void) | undefined;
  readonly #timer: NodeJS.Timeout;

  constructor(socket: Socket, what: string, timeoutMs: number) {
    this.#socket = socket;
    this.#what = what;
    this.#timer = setTimeout(() => {
      this.#fail(new PagetideError('PT_VMM_TIMEOUT', `the guest did not answer ${what} within ${timeoutMs} ms`));
    }, timeoutMs);
    socket.on('data', (piece: Buffer) => {
      this.#pieces = this.#pieces.length === 0 ? piece : Buffer.concat([this.#pieces, piece]);
      this.#arrived?.();
    });
    socket.on('error', (error) => this.#fail(goneError(error)));
    socket.on('close', () => {
      this.#ended = true;
      this.#arrived?.();
    });
  }

  #fail(error: PagetideError): void {
    this.#failure ??= error;
    this.#socket.destroy();
    this.#arrived?.();
  }

  #check(): void {
    if (this.#failure !== undefined) throw this.#failure;
  }

  async #more(): Promise<void> {
    this.#check();
    if (this.#ended) throw new PagetideError('PT_VMM_GONE', `the guest closed its control socket during ${this.#what}`);
    await new Promise<void>((resolve) => {
      this.#arrived = resolve;
    });
    this.#arrived = undefined;
    this.#check();
  }

  async line(): Promise<string> {
    for (;;) {
      const end = this.#pieces.indexOf(10);
      if (end >= 0) {
        const line = this.#pieces.toString('utf8', 0, end);
        this.#pieces = this.#pieces.subarray(end + 1);
        return line;
      }
      if (this.#pieces.length > MAX_LINE_BYTES) {
        throw new PagetideError('PT_VMM_PROTOCOL', `the guest's answer to ${this.#what} is too long`);
      }
      await this.#more();
    }
  }

  /** Hands `count` bytes over as they come. */
  async bytes(count: number, each: (piece: Buffer) => Promise<void>): Promise<void> {
    for (let left = count; left > 0;) {
      if (this.#pieces.length === 0) {
        await this.#more();
        continue;
      }
      const piece = this.#pieces.subarray(0, left);
      this.#pieces = this.#pieces.subarray(piece.length);
      left -= piece.length;
      await each(piece);
    }
  }

  close(): void {
    clearTimeout(this.#timer);
    this.#socket.destroy();
  }
}

function goneError(error: Error): PagetideError {
  const code = (error as NodeJS.ErrnoException).code;
  const gone = code === 'ENOENT' || code === 'ECONNREFUSED' || code === 'EPIPE' || code === 'ECONNRESET';
  return new PagetideError(gone ? 'PT_VMM_GONE' : 'PT_IO', `the guest's control socket: ${error.message}`, {
    cause: error,
  });
}

/** The embedded guest, by its control socket. All methods reject with a PagetideError. */
export class GuestControl {
  readonly path: string;
  readonly #timeoutMs: number;
  readonly #open = new Set<Conversation>();
  #closed = false;

  constructor(path: string, timeoutMs = 10_000) {
    this.path = path;
    this.#timeoutMs = timeoutMs;
  }

  /** Ends requests that are under way; later ones are refused. */
  close(): void {
    this.#closed = true;
    for (const conversation of this.#open) conversation.close();
  }

  async #converse<T>(
    cmd: string,
    fields: Fields,
    body: Buffer | undefined,
    options: RequestOptions,
    use: (answer: Fields, conversation: Conversation) => Promise<T> | T,
  ): Promise<T> {
    if (this.#closed) throw new PagetideError('PT_VMM_GONE', 'the connection to this guest was given up');
    const conversation = new Conversation(
      connect(this.path).on('connect', send),
      cmd,
      options.timeoutMs ?? this.#timeoutMs,
    );
    this.#open.add(conversation);
    function send(this: Socket): void {
      this.write(`${JSON.stringify({ cmd, ...fields })}\n`);
      if (body !== undefined) this.write(body);
    }
    try {
      const answer = parseAnswer(await conversation.line(), cmd);
      if (answer.ok !== true) {
        const why = typeof answer.error === 'string' ? answer.error : 'it gave no reason';
        throw new PagetideError(options.refused ?? 'PT_VMM_FAILED', `the guest refused ${cmd}: ${why}`);
      }
      return await use(answer, conversation);
    } finally {
      this.#open.delete(conversation);
      conversation.close();
    }
  }

  /** One request without bytes. `shape` checks the answer. */
  request<T extends z.ZodType>(
    cmd: string,
    fields: Fields,
    shape: T,
    options: RequestOptions = {},
  ): Promise<z.output<T>> {
    return this.#converse(cmd, fields, undefined, options, (answer) => checkAnswer(shape, answer, cmd));
  }

  status(options?: RequestOptions): Promise<ControlStatus> {
    return this.request('status', {}, statusShape, options);
  }

  /** Resolves when every thread of the workload has stopped. */
  pause(options?: RequestOptions): Promise<{ unixMicros: number }> {
    return this.request('pause', {}, moment, { refused: 'PT_GUEST_STATE', ...options });
  }

  resume(options?: RequestOptions): Promise<{ unixMicros: number }> {
    return this.request('resume', {}, moment, { refused: 'PT_GUEST_STATE', ...options });
  }

  verify(options?: RequestOptions): Promise<z.infer<typeof verifyShape>> {
    return this.request('verify', {}, verifyShape, { refused: 'PT_GUEST_STATE', ...options });
  }

  stats(options?: RequestOptions): Promise<z.infer<typeof statsShape>> {
    return this.request('stats', {}, statsShape, options);
  }

  async resetStats(options?: RequestOptions): Promise<void> {
    await this.request('reset-stats', {}, z.object({}), options);
  }

  async quit(options?: RequestOptions): Promise<void> {
    await this.request('quit', {}, z.object({}), options);
  }

  /** A frame's hash, and the one that the guest expects. Reads the frame: it may wait for a pager. */
  digest(frame: number, options?: RequestOptions): Promise<z.infer<typeof digestShape>> {
    return this.request('digest', { frame }, digestShape, { refused: 'PT_BAD_ARGUMENT', ...options });
  }

  /** Reads frames; tells how long each took, nanoseconds. */
  async touch(frame: number, count = 1, options?: RequestOptions): Promise<{ hash: string; ns: number }[]> {
    return (await this.request('touch', { frame, count }, touchShape, { refused: 'PT_BAD_ARGUMENT', ...options }))
      .touched;
  }

  /** One write by the workload's rules; resolves to the frame's new hash. */
  async poke(frame: number, options?: RequestOptions): Promise<string> {
    return (await this.request('poke', { frame }, z.object({ hash }), { refused: 'PT_BAD_ARGUMENT', ...options })).hash;
  }

  /** Makes `count` frames from `frame` on the same as those from `from` on. */
  async copy(frame: number, from: number, count: number, options?: RequestOptions): Promise<void> {
    await this.request('copy', { frame, from, count }, z.object({}), { refused: 'PT_BAD_ARGUMENT', ...options });
  }

  /** Gives frames up like a balloon. */
  async remove(
    frame: number,
    count: number,
    how: 'dontneed' | 'remove' | 'punch',
    options?: RequestOptions,
  ): Promise<void> {
    await this.request('remove', { frame, count, how }, z.object({}), { refused: 'PT_BAD_ARGUMENT', ...options });
  }

  /** Streams the guest's state into `sink` and ends it; resolves to its size in bytes when `sink` has taken it all. */
  async save(sink: Writable, options: RequestOptions = {}): Promise<number> {
    const shape = z.object({ bytes: z.number().int().nonnegative().max(MAX_STATE_BYTES) });
    const done = finished(sink, { readable: false });
    // Awaited below; a sink that fails earlier must not be an unhandled rejection meanwhile.
    done.catch(() => undefined);
    try {
      return await this.#converse(
        'save',
        {},
        undefined,
        { refused: 'PT_GUEST_STATE', ...options },
        async (answer, from) => {
          const { bytes } = checkAnswer(shape, answer, 'save');
          await from.bytes(bytes, async (piece) => {
            if (!sink.write(piece)) await Promise.race([once(sink, 'drain'), done]);
          });
          sink.end();
          await done;
          return bytes;
        },
      );
    } catch (error) {
      const failure = asPagetideError(error, 'PT_IO', 'saving the state');
      // Whoever reads at the other end must not take half a state for a whole one.
      sink.destroy(failure);
      throw failure;
    }
  }

  /** Gives the guest its state. The whole of it is collected first, as the guest wants to know its length. */
  async load(source: Readable, options: RequestOptions = {}): Promise<{ unixMicros: number }> {
    const pieces: Buffer[] = [];
    let bytes = 0;
    try {
      for await (const piece of source) {
        const buffer = Buffer.from(piece as Uint8Array);
        bytes += buffer.length;
        if (bytes > MAX_STATE_BYTES) {
          throw new PagetideError('PT_VMM_REFUSED_STATE', `the state is larger than ${MAX_STATE_BYTES} bytes`);
        }
        pieces.push(buffer);
      }
    } catch (error) {
      throw asPagetideError(error, 'PT_IO', 'reading the state');
    }
    const refused = { refused: 'PT_VMM_REFUSED_STATE', ...options } as const;
    return this.#converse('load', { bytes }, Buffer.concat(pieces, bytes), refused, (answer) =>
      checkAnswer(moment, answer, 'load'),
    );
  }
}

function parseAnswer(line: string, cmd: string): Fields {
  try {
    const answer: unknown = JSON.parse(line);
    if (typeof answer === 'object' && answer !== null) return answer as Fields;
  } catch {
    // told below
  }
  throw new PagetideError('PT_VMM_PROTOCOL', `the guest's answer to ${cmd} is no JSON object`);
}

function checkAnswer<T extends z.ZodType>(shape: T, answer: Fields, cmd: string): z.output<T> {
  const result = shape.safeParse(answer);
  if (result.success) return result.data;
  throw new PagetideError('PT_VMM_PROTOCOL', `the guest's answer to ${cmd} has an unexpected shape`, {
    cause: result.error,
  });
}
