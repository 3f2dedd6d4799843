/**
 * A client of QEMU's monitor protocol (QMP): lines of JSON over a Unix socket.
 *
 *   VMM    {"QMP": {…}}                                     greeting
 *   client {"execute": "qmp_capabilities", "id": 1}
 *   VMM    {"return": {}, "id": 1}
 *   client {"execute": …, "arguments": …, "id": n}          any number under way at once
 *   VMM    {"return": …, "id": n} | {"error": {"class", "desc"}, "id": n}
 *   VMM    {"event": NAME, "data": …, "timestamp": {"seconds", "microseconds"}}     at any time
 *
 * Anything else breaks the connection with PT_VMM_PROTOCOL: after one line that makes no sense, none that follows can be
 * trusted to be what it seems. An answer to a command that timed out meanwhile is not that; it is dropped.
 * A monitor serves one client at a time: while another is connected, the greeting doesn't come (PT_VMM_TIMEOUT).
 */
import { connect, type Socket } from 'node:net';
import { PagetideError, type ErrorCode } from '../../errors.ts';

/** A command that QEMU refused, with QMP's own error class and description. */
export class QmpError extends PagetideError {
  readonly command: string;
  readonly qmpClass: string;
  readonly description: string;

  constructor(command: string, qmpClass: string, description: string) {
    super('PT_VMM_FAILED', `QEMU refused \`${command}\`: ${description}`);
    this.command = command;
    this.qmpClass = qmpClass;
    this.description = description;
  }
}

export interface QmpEvent {
  event: string;
  data: Record<string, unknown>;
  /** QEMU's own clock, microseconds since the epoch. */
  unixMicros: number;
}

export interface QmpOptions {
  /** For connecting and the greeting. Milliseconds. */
  timeoutMs?: number;
  /** For negotiation, and for each command and event that names no other; `timeoutMs` by default. Milliseconds. */
  commandMs?: number;
  /** Longest line taken, characters; longer ones are a protocol error. `qom-list-types` is about 40,000. */
  maxLine?: number;
}

interface Pending {
  command: string;
  resolve: (value: unknown) => void;
  reject: (error: PagetideError) => void;
  timer: NodeJS.Timeout;
}

type Json = Record<string, unknown>;

function isObject(value: unknown): value is Json {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

export class QmpClient {
  /** Resolves when the connection has ended, for whatever reason; never rejects. */
  readonly closed: Promise<void>;
  readonly path: string;
  #socket: Socket;
  #timeoutMs: number;
  #commandMs: number;
  #maxLine: number;
  #buffer = '';
  #searched = 0;
  #nextId = 1;
  #pending = new Map<number, Pending>();
  #listeners = new Set<(event: QmpEvent) => void>();
  #waiters = new Set<(error: PagetideError) => void>();
  #failure: PagetideError | undefined;
  #greeted: ((error?: PagetideError) => void) | undefined;
  #greeting: Json = {};

  /**
   * Connects and negotiates.
   * @throws PT_VMM_GONE nobody listens, or the VMM hung up; PT_VMM_TIMEOUT; PT_VMM_PROTOCOL it isn't a QMP monitor
   */
  static async connect(path: string, options: QmpOptions = {}): Promise<QmpClient> {
    const client = new QmpClient(path, options);
    try {
      await client.#greet();
      await client.execute('qmp_capabilities');
    } catch (error) {
      client.close();
      throw error;
    }
    return client;
  }

  private constructor(path: string, options: QmpOptions) {
    this.path = path;
    this.#timeoutMs = options.timeoutMs ?? 10_000;
    this.#commandMs = options.commandMs ?? this.#timeoutMs;
    this.#maxLine = options.maxLine ?? 4 << 20;
    this.#socket = connect(path);
    this.#socket.setEncoding('utf8');
    this.closed = new Promise((resolve) => this.#socket.once('close', () => resolve()));
    this.#socket.on('data', (text: string) => this.#take(text));
    this.#socket.on('error', (cause) => this.#fail('PT_VMM_GONE', `QMP socket ${path}: ${cause.message}`, cause));
    this.#socket.on('close', () => this.#fail('PT_VMM_GONE', `QEMU closed its QMP socket ${path}`));
  }

  /** False once the connection has broken or was closed: commands reject at once, connect anew. */
  get usable(): boolean {
    return this.#failure === undefined;
  }

  /** QEMU's version as the greeting has it, e.g. `7.2.22`. */
  get version(): string {
    const version = isObject(this.#greeting['version']) ? this.#greeting['version'] : {};
    const { major, minor, micro } = isObject(version['qemu']) ? version['qemu'] : {};
    return [major, minor, micro].map((part) => (typeof part === 'number' ? part : '?')).join('.');
  }

  /**
   * Runs one command.
   * @throws {@link QmpError} QEMU refused; PT_VMM_TIMEOUT, PT_VMM_GONE, PT_VMM_PROTOCOL as for `connect`
   */
  execute(command: string, args?: Json, options: { timeoutMs?: number } = {}): Promise<unknown> {
    return new Promise((resolve, reject) => {
      if (this.#failure) {
        reject(this.#failure);
        return;
      }
      const id = this.#nextId++;
      const timeoutMs = options.timeoutMs ?? this.#commandMs;
      const timer = setTimeout(() => {
        this.#pending.delete(id);
        reject(new PagetideError('PT_VMM_TIMEOUT', `QEMU did not answer \`${command}\` within ${timeoutMs} ms`));
      }, timeoutMs);
      this.#pending.set(id, { command, resolve, reject, timer });
      this.#socket.write(JSON.stringify({ execute: command, ...(args && { arguments: args }), id }) + '\n');
    });
  }

  /** Calls `listener` for every event from now on; returns what takes it off again. It must not throw. */
  onEvent(listener: (event: QmpEvent) => void): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  /**
   * The next event called `name`, or one of several. Begin waiting *before* the command that causes it: QEMU sends the
   * event ahead of the answer.
   */
  waitForEvent(name: string | readonly string[], options: { timeoutMs?: number } = {}): Promise<QmpEvent> {
    const names = typeof name === 'string' ? [name] : name;
    const timeoutMs = options.timeoutMs ?? this.#commandMs;
    const found = new Promise<QmpEvent>((resolve, reject) => {
      if (this.#failure) {
        reject(this.#failure);
        return;
      }
      const finish = () => {
        clearTimeout(timer);
        stop();
        this.#waiters.delete(abandon);
      };
      const abandon = (error: PagetideError) => {
        finish();
        reject(error);
      };
      const stop = this.onEvent((event) => {
        if (!names.includes(event.event)) return;
        finish();
        resolve(event);
      });
      const timer = setTimeout(
        () => abandon(new PagetideError('PT_VMM_TIMEOUT', `no ${names.join(' or ')} event within ${timeoutMs} ms`)),
        timeoutMs,
      );
      this.#waiters.add(abandon);
    });
    // The command that should cause the event may reject first; then nobody awaits this any more.
    found.catch(() => undefined);
    return found;
  }

  /** Ends the connection; commands under way reject with PT_VMM_GONE. Idempotent. */
  close(): void {
    this.#fail('PT_VMM_GONE', `the connection to QMP socket ${this.path} was closed`);
  }

  #greet(): Promise<void> {
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => {
        const message = `no QMP greeting from ${this.path} within ${this.#timeoutMs} ms`;
        this.#greeted?.(
          new PagetideError('PT_VMM_TIMEOUT', message, {
            hint: 'A QMP monitor serves one client at a time: give QEMU a second -qmp socket for Pagetide alone.',
          }),
        );
      }, this.#timeoutMs);
      this.#greeted = (error) => {
        this.#greeted = undefined;
        clearTimeout(timer);
        if (error) reject(error);
        else resolve();
      };
      if (this.#failure) this.#greeted(this.#failure);
    });
  }

  #take(text: string): void {
    if (this.#failure) return;
    this.#buffer += text;
    for (;;) {
      const end = this.#buffer.indexOf('\n', this.#searched);
      if (end === -1 || end > this.#maxLine) {
        this.#searched = this.#buffer.length;
        if (this.#searched > this.#maxLine) {
          this.#fail('PT_VMM_PROTOCOL', `a QMP line of more than ${this.#maxLine} characters`);
        }
        return;
      }
      const line = this.#buffer.slice(0, end).trim();
      this.#buffer = this.#buffer.slice(end + 1);
      this.#searched = 0;
      if (line !== '') this.#line(line);
      if (!this.usable) return;
    }
  }

  #line(line: string): void {
    let message: unknown;
    try {
      message = JSON.parse(line);
    } catch (cause) {
      this.#fail('PT_VMM_PROTOCOL', `not JSON on QMP socket ${this.path}: ${excerpt(line)}`, cause);
      return;
    }
    if (!isObject(message)) {
      this.#fail('PT_VMM_PROTOCOL', `not a QMP message on ${this.path}: ${excerpt(line)}`);
    } else if (this.#greeted) {
      if (!isObject(message['QMP'])) {
        this.#fail('PT_VMM_PROTOCOL', `no QMP greeting on ${this.path} but: ${excerpt(line)}`);
        return;
      }
      this.#greeting = message['QMP'];
      this.#greeted();
    } else if (typeof message['event'] === 'string') {
      this.#event(message['event'], message);
    } else if ('return' in message || isObject(message['error'])) {
      this.#answer(message);
    } else {
      this.#fail('PT_VMM_PROTOCOL', `neither answer nor event on ${this.path}: ${excerpt(line)}`);
    }
  }

  #answer(message: Json): void {
    const pending = typeof message['id'] === 'number' ? this.#pending.get(message['id']) : undefined;
    if (!pending) return; // late: its command has timed out
    this.#pending.delete(message['id'] as number);
    clearTimeout(pending.timer);
    if ('return' in message) {
      pending.resolve(message['return']);
      return;
    }
    const { class: kind, desc } = message['error'] as Json;
    const text = (value: unknown) => (typeof value === 'string' ? value : 'unknown error');
    pending.reject(new QmpError(pending.command, text(kind), text(desc)));
  }

  #event(name: string, message: Json): void {
    const { seconds, microseconds } = isObject(message['timestamp']) ? message['timestamp'] : {};
    // QEMU sends -1 where it could not read its clock; ours, some microseconds late, is the next best.
    const stamped = typeof seconds === 'number' && typeof microseconds === 'number' && seconds > 0 && microseconds >= 0;
    const event: QmpEvent = {
      event: name,
      data: isObject(message['data']) ? message['data'] : {},
      unixMicros: stamped ? seconds * 1e6 + microseconds : Date.now() * 1000,
    };
    for (const listener of [...this.#listeners]) listener(event);
  }

  /** The first failure decides; it ends the connection and everything that waits on it. */
  #fail(code: ErrorCode, message: string, cause?: unknown): void {
    if (this.#failure) return;
    const failure = new PagetideError(code, message, { cause });
    this.#failure = failure;
    this.#buffer = '';
    this.#socket.destroy();
    this.#greeted?.(failure);
    for (const pending of this.#pending.values()) {
      clearTimeout(pending.timer);
      pending.reject(failure);
    }
    this.#pending.clear();
    for (const abandon of [...this.#waiters]) abandon(failure);
    this.#listeners.clear();
  }
}

function excerpt(line: string): string {
  return JSON.stringify(line.length > 80 ? `${line.slice(0, 80)}…` : line);
}
