/**
 * A page stream that is made again when it drops. A guest that runs at the destination needs its missing pages however
 * long the network is away, so this never gives up by itself.
 *
 *   start ─► connecting ──► connected ──► (drops) ─┐
 *               ▲  └─ fails ─┐                     │
 *               └─── wait ◄──┴─────────────────────┘      close() from anywhere ─► closed
 *
 * The wait doubles from `firstMs` to `maxMs`, with jitter, and starts over only once a connection has been heard from:
 * a source that accepts and drops is not hammered.
 */
import { PagetideError, asPagetideError } from '../errors.ts';
import type { DeltaRequest, PageConnection, PageHandlers, Runs } from './page-client.ts';

export interface Timers {
  /** Calls back after `ms`; returns what undoes it. */
  after(ms: number, callback: () => void): () => void;
  /** Milliseconds, monotonic. */
  now(): number;
}

const REAL_TIMERS: Timers = {
  after(ms, callback) {
    const timer = setTimeout(callback, ms);
    return () => clearTimeout(timer);
  },
  now: () => performance.now(),
};

export interface StreamState {
  status: 'connecting' | 'connected' | 'closed';
  /** When it came into that status, by `timers.now()`. 'connecting' counts from the drop, over all attempts. */
  since: number;
  /** Attempts since it was last connected. */
  attempts: number;
  /** Connections that were made so far. */
  connections: number;
  /** Why the last attempt failed or the last connection dropped. Also while connected. */
  lastError?: PagetideError;
}

export interface ReconnectOptions {
  /** Makes a connection with these handlers: `(handlers, signal) => connectPages({ …, handlers, signal })`. */
  connect(handlers: PageHandlers, signal: AbortSignal): Promise<PageConnection>;
  /** As for one connection; `onClose` is not called for a drop, only once, after {@link ReconnectingPages.close} or when given up. */
  handlers: PageHandlers;
  /**
   * A connection is there, the first or another: ask for everything that is wanted and not here, also what had been asked
   * for before. Map and state come again by themselves.
   */
  onConnected?(connection: PageConnection, first: boolean): void;
  /** The state has changed. */
  onState?(state: StreamState): void;
  /** True: this error is final; the stream closes with it. By default none is. */
  giveUp?(error: PagetideError): boolean;
  /** Milliseconds, 50 and 2000 by default. */
  backoff?: { firstMs: number; maxMs: number };
  timers?: Timers;
  /** 0 … 1, for the jitter. */
  random?: () => number;
}

export class ReconnectingPages {
  readonly #options: ReconnectOptions;
  readonly #timers: Timers;
  readonly #abort = new AbortController();
  #connection: PageConnection | undefined;
  #cancelWait: (() => void) | undefined;
  #state: StreamState;
  /** Failures since a connection was last heard from: the exponent of the wait. */
  #failures = 0;
  #started = false;
  /** Bytes of connections that are gone. */
  #received = 0;
  #sent = 0;

  constructor(options: ReconnectOptions) {
    this.#options = options;
    this.#timers = options.timers ?? REAL_TIMERS;
    this.#state = { status: 'connecting', since: this.#timers.now(), attempts: 0, connections: 0 };
  }

  /** Begins to connect. */
  start(): this {
    if (!this.#started) {
      this.#started = true;
      void this.#attempt();
    }
    return this;
  }

  get state(): StreamState {
    return this.#state;
  }
  /** The connection, while there is one. */
  get connection(): PageConnection | undefined {
    return this.#connection;
  }
  /** Bytes at the sockets of all connections so far. */
  get bytes(): { received: number; sent: number } {
    const live = this.#connection;
    return { received: this.#received + (live?.bytesReceived ?? 0), sent: this.#sent + (live?.bytesSent ?? 0) };
  }

  /** As {@link PageConnection.requestPage}; false also while there is no connection: `onConnected` is the time to ask again. */
  requestPage(frame: number): boolean {
    return this.#connection?.requestPage(frame) ?? false;
  }
  /** As {@link PageConnection.requestBatch}; 0 also while there is no connection. */
  requestBatch(runs: Runs): number {
    return this.#connection?.requestBatch(runs) ?? 0;
  }

  /** As {@link PageConnection.requestDeltas}, likewise. */
  requestDeltas(request: DeltaRequest, measure: boolean): number {
    return this.#connection?.requestDeltas(request, measure) ?? 0;
  }

  /** Ends it. `onClose` comes without an error. Idempotent. */
  close(): void {
    this.#end(undefined);
  }

  async #attempt(): Promise<void> {
    this.#cancelWait = undefined;
    this.#set({ attempts: this.#state.attempts + 1 });
    // the close of this connection, if it comes before we have it
    let connection: PageConnection | undefined;
    let dropped: { error: PagetideError } | undefined;
    const handlers: PageHandlers = {
      ...this.#options.handlers,
      onClose: (error) => {
        const why = error ?? new PagetideError('PT_PEER_UNREACHABLE', 'the page stream was closed');
        dropped = { error: why };
        if (connection !== undefined) this.#dropped(connection, why);
      },
    };
    try {
      connection = await this.#options.connect(handlers, this.#abort.signal);
    } catch (error) {
      this.#retry(asPagetideError(error, 'PT_PEER_UNREACHABLE'));
      return;
    }
    if (this.#isClosed()) {
      this.#count(connection);
      connection.close();
      return;
    }
    this.#connection = connection;
    if (dropped !== undefined) {
      this.#dropped(connection, dropped.error);
      return;
    }
    const first = this.#state.connections === 0;
    this.#set({
      status: 'connected',
      since: this.#timers.now(),
      attempts: 0,
      connections: this.#state.connections + 1,
    });
    if (this.#connection === connection) this.#options.onConnected?.(connection, first);
  }

  #dropped(connection: PageConnection, error: PagetideError): void {
    if (this.#connection !== connection) return;
    this.#connection = undefined;
    this.#count(connection);
    if (connection.heard) this.#failures = 0;
    if (this.#isClosed()) return;
    this.#set({ status: 'connecting', since: this.#timers.now() });
    this.#retry(error);
  }

  #retry(error: PagetideError): void {
    if (this.#isClosed()) return;
    this.#set({ lastError: error });
    if (this.#options.giveUp?.(error) === true) {
      this.#end(error);
      return;
    }
    const { firstMs, maxMs } = this.#options.backoff ?? { firstMs: 50, maxMs: 2_000 };
    const most = Math.min(maxMs, firstMs * 2 ** Math.min(this.#failures, 20));
    this.#failures++;
    // half of it fixed, half random: agents that lost one source at once don't come back at once
    const wait = most / 2 + (most / 2) * (this.#options.random ?? Math.random)();
    if (!this.#isClosed()) this.#cancelWait = this.#timers.after(wait, () => void this.#attempt());
  }

  #end(error: PagetideError | undefined): void {
    if (this.#isClosed()) return;
    const connection = this.#connection;
    this.#connection = undefined;
    this.#cancelWait?.();
    this.#set({ status: 'closed', since: this.#timers.now() });
    this.#abort.abort();
    if (connection !== undefined) {
      this.#count(connection);
      connection.close();
    }
    this.#options.handlers.onClose?.(error);
  }

  #isClosed(): boolean {
    return this.#state.status === 'closed';
  }

  #count(connection: PageConnection): void {
    this.#received += connection.bytesReceived;
    this.#sent += connection.bytesSent;
  }

  #set(change: Partial<StreamState>): void {
    this.#state = { ...this.#state, ...change };
    this.#options.onState?.(this.#state);
  }
}
