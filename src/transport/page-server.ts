/**
 * The main thread's door to the page server, which has a thread of its own (sockets can't move between threads, and a
 * fault must not wait for the agent's control work).
 *
 *   main thread ── Request ──► page server's thread ── task ──► batch workers (piscina)
 *               ◄── Reply ───  listener, streams    ◄─ frame ─
 */
import { Writable } from 'node:stream';
import { Worker } from 'node:worker_threads';
import { PagetideError, asPagetideError, errorFromJson } from '../errors.ts';
import {
  COUNTERS,
  readCounters,
  type FromThread,
  type Offer,
  type PageCounters,
  type PageServerSettings,
  type Request,
  type RequestBody,
  type SharedDomain,
} from './server-messages.ts';
import type { Rates } from '../distribution/token-bucket.ts';
import { checkRates } from '../distribution/wire-cost.ts';
import { WORKER_LIMITS } from '../memory/release-memory.ts';
import { credentials as ownCredentials, type Credentials } from '../trust/credentials.ts';
import { isMigrationId } from './upgrade.ts';

export type { Offer, OfferedFile, PageCounters, SharedDomain } from './server-messages.ts';

export interface PageServerOptions {
  host: string;
  /** 0: any free one; {@link PageServer.address} tells which. */
  port: number;
  /** The agent's control API, a Unix socket; need not exist yet. */
  controlSocket: string;
  /** Threads that read and compress batches; 1 by default. */
  batchThreads?: number;
  /** Milliseconds of silence after which a connection is pinged, 5000 by default; three times that ends it. */
  livenessMs?: number;
  /** What background streams may send, all together; 8 MiB a second and twice that as peak by default. */
  background?: Rates;
  /** With them the port speaks mutual TLS and nothing else. Those of the process by default. */
  credentials?: Credentials | undefined;
}

/** Bytes of a device state that may be on their way to the thread. */
const STATE_AHEAD = 1 << 20;

const BACKGROUND: Rates = { average: 8 << 20, peak: 16 << 20 };

interface Pending {
  resolve: () => void;
  reject: (error: PagetideError) => void;
}

export class PageServer {
  readonly #worker: Worker;
  readonly #exited: Promise<void>;
  readonly #pending = new Map<number, Pending>();
  readonly #counters = new Map<string, SharedArrayBuffer>();
  readonly #tagCounters: SharedArrayBuffer;
  readonly #scheme: 'http' | 'https';
  #nextId = 1;
  #standing = 0;
  #address = { host: '', port: 0 };
  #ended: PagetideError | undefined;
  #closing: Promise<void> | undefined;
  #onFailure: ((error: PagetideError) => void) | undefined;
  #onRefused: ((error: PagetideError, from: string) => void) | undefined;

  private constructor(settings: PageServerSettings) {
    this.#tagCounters = settings.tagCounters;
    this.#scheme = settings.credentials === undefined ? 'http' : 'https';
    this.#worker = new Worker(new URL('../../workers/page-server.js', import.meta.url), {
      workerData: settings,
      name: 'pagetide-pages',
      resourceLimits: WORKER_LIMITS,
      // flags that are the program's own (loaders, --input-type) would slow the thread's start or fail it
      execArgv: [],
    });
    this.#exited = new Promise((resolve) => {
      this.#worker.once('exit', (code) => {
        this.#end(new PagetideError('PT_INTERNAL', `the page server's thread has ended (${code})`));
        resolve();
      });
    });
    this.#worker.once('error', (cause) => {
      this.#end(new PagetideError('PT_INTERNAL', "the page server's thread has failed", { cause }));
    });
  }

  /**
   * Starts the thread and binds the port.
   * @throws PagetideError `PT_PORT_IN_USE`, `PT_NO_PERMISSION`, `PT_BAD_ARGUMENT`
   */
  static async start(options: PageServerOptions): Promise<PageServer> {
    const { host, port, controlSocket, batchThreads = 1, livenessMs = 5_000, credentials = ownCredentials() } = options;
    const background = checkRates(options.background ?? BACKGROUND);
    if (!Number.isInteger(port) || port < 0 || port > 65535)
      throw new PagetideError('PT_BAD_ARGUMENT', `${port} is no port`);
    if (!Number.isInteger(batchThreads) || batchThreads < 1 || batchThreads > 64) {
      throw new PagetideError('PT_BAD_ARGUMENT', 'batchThreads must be 1 to 64');
    }
    const server = new PageServer({
      host,
      port,
      controlSocket,
      batchThreads,
      livenessMs,
      credentials,
      background,
      tagCounters: new SharedArrayBuffer(COUNTERS * 8),
    });
    const first = await new Promise<FromThread>((resolve, reject) => {
      server.#worker.once('message', resolve);
      void server.#exited.then(() => reject(server.#ended!));
    });
    if (first.type === 'listening') {
      server.#address = { host: first.host, port: first.port };
      server.#worker.on('message', (message: FromThread) => server.#receive(message));
      return server;
    }
    await server.#exited;
    throw first.type === 'failed' ? errorFromJson(first.error) : new PagetideError('PT_INTERNAL', 'unexpected message');
  }

  /** Where it listens, and the URL of that. */
  address(): { host: string; port: number; url: string } {
    const { host, port } = this.#address;
    return { host, port, url: `${this.#scheme}://${host.includes(':') ? `[${host}]` : host}:${port}` };
  }

  /** Calls back if the thread dies by itself. The agent can't serve any more then. */
  onFailure(callback: (error: PagetideError) => void): void {
    this.#onFailure = callback;
  }

  /** Calls back for each connection that was not let in, with the address that it came from. */
  onRefused(callback: (error: PagetideError, from: string) => void): void {
    this.#onRefused = callback;
  }

  /**
   * Opens a guest's memory to whoever knows the token; over TLS, to its destination alone. The files are opened now, once, and read by `pread` only.
   * @throws PagetideError `PT_BAD_ARGUMENT`, `PT_MEMORY_FILE`
   */
  async offer(offer: Offer): Promise<void> {
    if (!isMigrationId(offer.migration)) throw new PagetideError('PT_BAD_ARGUMENT', 'not a migration id');
    if (!/^[!-~]{16,256}$/.test(offer.token)) {
      throw new PagetideError('PT_BAD_ARGUMENT', 'a token is 16 to 256 printable ASCII characters');
    }
    const counters = new SharedArrayBuffer(COUNTERS * 8);
    await this.#ask({ type: 'offer', offer, counters });
    this.#counters.set(offer.migration, counters);
  }

  /**
   * Over TLS: opens a migration's streams to the host of that name, and to no other.
   * @throws PagetideError `PT_MIGRATION_UNKNOWN`
   */
  admit(migration: string, destination: string): Promise<void> {
    return this.#ask({ type: 'admit', migration, destination });
  }

  /** Closes a migration's connections and files. Idempotent. Resolves to its last counters, or undefined if it was unknown. */
  async withdraw(migration: string): Promise<PageCounters | undefined> {
    const shared = this.#counters.get(migration);
    await this.#ask({ type: 'withdraw', migration });
    this.#counters.delete(migration);
    return shared === undefined ? undefined : readCounters(shared);
  }

  /**
   * Lets other hosts of a domain have its pages by tag; again, to change who they are. The key's handle, and whatever else the
   * place names, must stay until {@link unshare} has resolved.
   */
  share(domain: SharedDomain): Promise<void> {
    return this.#ask({ type: 'share', domain });
  }

  /** Ends the streams of a domain. Idempotent. @param domain the mark of its secret */
  unshare(domain: string): Promise<void> {
    return this.#ask({ type: 'unshare', domain });
  }

  /** What background streams may send from now on, all together. @throws PagetideError `PT_BAD_ARGUMENT` */
  async setBackgroundRates(rates: Rates): Promise<void> {
    await this.#ask({ type: 'background-rates', rates: checkRates(rates) });
  }

  /**
   * A migration runs here: background streams get nothing until what this returns is called. Several may hold them back at once; letting go twice
   * is letting go once.
   */
  standBack(): () => void {
    this.#stand(1);
    let holds = true;
    return () => {
      if (holds) this.#stand(-1);
      holds = false;
    };
  }

  #stand(by: number): void {
    this.#standing += by;
    if (this.#standing > 1 || by > 0 !== (this.#standing === 1)) return;
    // a server that has ended sends nothing either
    this.#ask({ type: 'stand-back', stands: by > 0 }).catch(() => undefined);
  }

  /** What the streams of pages by tag have carried so far, of all domains. */
  tagCounters(): PageCounters {
    return readCounters(this.#tagCounters);
  }

  /**
   * Gives frames of a manifest (wire-tags.ts) to the destination, now or when it connects: as often as there is something
   * to tell, before {@link settle}.
   * @throws PagetideError `PT_BAD_ARGUMENT`, `PT_MIGRATION_UNKNOWN`
   */
  pushManifest(migration: string, frames: readonly Uint8Array[]): Promise<void> {
    // In one piece: at the switch there may be thousands of small ones, and each would cross the threads with all of the
    // pool that it lies in.
    const lengths = Uint32Array.from(frames, ({ length }) => length);
    const bytes = new Uint8Array(lengths.reduce((sum, length) => sum + length, 0));
    let at = 0;
    for (const frame of frames) {
      bytes.set(frame, at);
      at += frame.length;
    }
    return this.#ask({ type: 'manifest', migration, bytes, lengths }, [bytes.buffer]);
  }

  /**
   * The guest stands still, and the manifest that was pushed is the one of what it holds. Once a migration, after an end of it.
   * @throws PagetideError `PT_BAD_ARGUMENT`, `PT_MIGRATION_UNKNOWN`
   */
  settle(migration: string): Promise<void> {
    return this.#ask({ type: 'settle', migration });
  }

  /**
   * A stream for the device state, once a migration: before, while and after the manifest comes to its end. What is written is kept and sent, from the start to
   * each connection, until the migration is withdrawn. `finish` comes when the page server has all of it; `destroy` with
   * an error tells the destination that there will be none.
   */
  pushState(migration: string): Writable {
    let unanswered = 0;
    let refusal: PagetideError | undefined;
    let more: ((error?: Error) => void) | undefined;
    return new Writable({
      highWaterMark: STATE_AHEAD,
      // The guest stands still meanwhile: a piece does not wait for the answer to the one before.
      write: (chunk: Buffer, _encoding, done) => {
        if (refusal !== undefined) {
          done(refusal);
          return;
        }
        // a copy: `chunk` is the writer's, and may lie in a pool that can't be handed over
        const answered = this.#ask({ type: 'state', migration, chunk: Uint8Array.from(chunk) });
        unanswered += chunk.length;
        if (unanswered < STATE_AHEAD) done();
        else more = done;
        const go = (error?: PagetideError): void => {
          unanswered -= chunk.length;
          refusal ??= error;
          const waiting = more;
          more = undefined;
          waiting?.(error);
        };
        answered.then(
          () => go(),
          (error: unknown) => go(asPagetideError(error)),
        );
      },
      final: (done) => {
        // where a piece was refused, so is its end: answers come in the order of the questions
        this.#ask({ type: 'state-end', migration }).then(() => done(refusal), done);
      },
      destroy: (error, done) => {
        if (error === null) {
          done(null);
          return;
        }
        const why = asPagetideError(error, 'PT_CANCELLED', 'the source could not save the device state').toJSON();
        const finished = (): void => done(error);
        this.#ask({ type: 'state-abort', migration, error: why }).then(finished, finished);
      },
    });
  }

  /** What a migration's streams have carried so far. Undefined when it isn't offered. */
  counters(migration: string): PageCounters | undefined {
    const shared = this.#counters.get(migration);
    return shared === undefined ? undefined : readCounters(shared);
  }

  /** Ends all connections, gives the port and the thread back. Idempotent. */
  close(): Promise<void> {
    return (this.#closing ??= this.#close());
  }

  async #close(): Promise<void> {
    if (this.#ended === undefined) {
      await this.#ask({ type: 'close' }).catch(() => undefined);
      // It ends by itself; a thread that hangs is ended. The port must not stay taken.
      const deadline = setTimeout(() => void this.#worker.terminate(), 5_000);
      await this.#exited;
      clearTimeout(deadline);
    }
    this.#counters.clear();
  }

  #ask(body: RequestBody, transfer: ArrayBuffer[] = []): Promise<void> {
    if (this.#ended !== undefined) return Promise.reject(this.#ended);
    const id = this.#nextId++;
    return new Promise((resolve, reject) => {
      this.#pending.set(id, { resolve, reject });
      const request: Request = { ...body, id };
      this.#worker.postMessage(request, transfer);
    });
  }

  #receive(message: FromThread): void {
    if (message.type === 'refused') this.#onRefused?.(errorFromJson(message.error), message.from);
    if (message.type !== 'reply') return;
    const pending = this.#pending.get(message.id);
    this.#pending.delete(message.id);
    if (message.error === undefined) pending?.resolve();
    else pending?.reject(errorFromJson(message.error));
  }

  #end(error: PagetideError): void {
    if (this.#ended !== undefined) return;
    this.#ended = error;
    for (const { reject } of this.#pending.values()) reject(error);
    this.#pending.clear();
    if (this.#closing === undefined) this.#onFailure?.(error);
  }
}
