/**
 * The connection to Redis: one server, or a cluster. All that is sent are scripts, by their digest, each with one key.
 *
 * ioredis connects again by itself, with pauses that grow, and sends again what it doesn't know to have arrived. That is safe, as every
 * script may run twice. A call that takes longer than its limit is given up here; it may still happen there, late.
 */
import { createHash } from 'node:crypto';
import { setMaxListeners } from 'node:events';
import { readFileSync } from 'node:fs';
import { Cluster, Redis } from 'ioredis';
import { PagetideError } from '../../errors.ts';

export interface RedisAddress {
  /** `redis://` or `rediss://` (TLS), with or without `user:password@`; several, or {@link cluster}: nodes of a cluster. */
  urls: readonly string[];
  /** The one URL is a node of a cluster. */
  cluster?: boolean;
  /** Instead of one in the URL, which others may see. */
  username?: string;
  /** File that holds the password; a line end at its end is not part of it. */
  passwordFile?: string;
  /** File with certificates to believe, PEM; default: the system's. */
  ca?: string;
  /** Files of this side's own certificate and key, where the server wants one. */
  certificate?: string;
  key?: string;
  /** Limit of one call, milliseconds; default 10,000. */
  timeoutMs?: number;
}

export type Argument = string | number | Uint8Array;

export interface Script {
  text: string;
  sha: string;
}

export function script(text: string): Script {
  return { text, sha: createHash('sha1').update(text).digest('hex') };
}

const LONGEST_PAUSE_MS = 5000;
const CONNECT_MS = 3000;

/** One client of the server or the cluster, for any number of {@link Connection}s. */
export class RedisClient {
  readonly client: Redis | Cluster;
  readonly timeoutMs: number;
  /** How often a connection was lost, or a call failed: what was written may be gone then. */
  breaks = 0;

  /** Connects in the background. @throws PagetideError `PT_BAD_ARGUMENT`: URLs or files that are no such */
  constructor(address: RedisAddress) {
    this.timeoutMs = address.timeoutMs ?? 10_000;
    this.client = connect(address);
    // calls reject by themselves, so an error needs no more than to be heard
    for (const event of ['error', 'node error', 'close', 'reconnecting', '+node', '-node'])
      this.client.on(event, () => this.breaks++);
  }

  /**
   * The `maxmemory-policy` of each node that writes and tells it; INFO tells, which needs fewer rights than CONFIG.
   * @throws PagetideError `PT_PEER_UNREACHABLE`
   */
  async evictionPolicies(): Promise<string[]> {
    const { client } = this;
    const nodes = client instanceof Cluster ? client.nodes('master') : [client];
    if (nodes.length === 0)
      throw new PagetideError('PT_PEER_UNREACHABLE', 'Redis: no node of the cluster is known yet');
    const late = AbortSignal.timeout(this.timeoutMs);
    try {
      const texts = await Promise.race([
        Promise.all(nodes.map((node) => node.info('memory'))),
        new Promise<never>((_, reject) => {
          late.addEventListener('abort', () => reject(new Error(`no answer within ${this.timeoutMs} ms`)));
        }),
      ]);
      return texts.flatMap((text) => /^maxmemory_policy:(\S+)/m.exec(text)?.[1] ?? []);
    } catch (error) {
      throw explain(error);
    }
  }

  /** Drops what is under way. Idempotent. */
  close(): void {
    this.client.disconnect();
  }
}

/** A directory's use of a client, which it has alone or with others: closed, it gives up its own calls, and no other's. */
export class Connection {
  readonly #shared: RedisClient;
  readonly #isOwn: boolean;
  readonly #ending = new AbortController();

  /** @throws PagetideError as {@link RedisClient} */
  constructor(address: RedisAddress | RedisClient) {
    this.#isOwn = !(address instanceof RedisClient);
    this.#shared = address instanceof RedisClient ? address : new RedisClient(address);
    // one a call under way
    setMaxListeners(0, this.#ending.signal);
  }

  /** As of {@link RedisClient}: also what another directory met counts, as it is the same server. */
  get breaks(): number {
    return this.#shared.breaks;
  }

  /**
   * Runs a script; strings come as `Buffer`s.
   * @throws PagetideError `PT_PEER_UNREACHABLE`; `PT_PEER_FAILED` where the script failed
   */
  async run({ sha, text }: Script, key: string, args: readonly Argument[]): Promise<unknown> {
    const { timeoutMs } = this.#shared;
    const { signal } = this.#ending;
    if (signal.aborted) throw new PagetideError('PT_PEER_UNREACHABLE', 'the directory is closed');
    const rest = args.map((arg) => (arg instanceof Uint8Array ? asBuffer(arg) : String(arg)));
    let timer: NodeJS.Timeout | undefined;
    const call = new AbortController();
    const late = new Promise<never>((_, reject) => {
      timer = setTimeout(() => {
        reject(new Error(`no answer within ${timeoutMs} ms`));
      }, timeoutMs);
      const ended = (): void => {
        reject(new Error('the directory is closed'));
      };
      signal.addEventListener('abort', ended, { signal: call.signal });
    });
    try {
      return await Promise.race([late, this.#call(sha, text, key, rest)]);
    } catch (error) {
      if (!this.#ending.signal.aborted) this.#shared.breaks++;
      throw explain(error);
    } finally {
      clearTimeout(timer);
      call.abort();
    }
  }

  /** Gives up what is under way. Idempotent. */
  close(): void {
    this.#ending.abort();
    if (this.#isOwn) this.#shared.close();
  }

  async #call(sha: string, text: string, key: string, rest: (string | Buffer)[]): Promise<unknown> {
    const { client } = this.#shared;
    try {
      return await client.callBuffer('evalsha', sha, 1, key, ...rest);
    } catch (error) {
      if (!(error instanceof Error) || !error.message.startsWith('NOSCRIPT')) throw error;
      return client.callBuffer('eval', text, 1, key, ...rest);
    }
  }
}

function asBuffer(bytes: Uint8Array): Buffer {
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}

function explain(error: unknown): PagetideError {
  const message = error instanceof Error ? error.message : String(error);
  if (/^ERR .*script|user_script/i.test(message))
    return new PagetideError('PT_PEER_FAILED', `Redis: ${message}`, { cause: error });
  return new PagetideError('PT_PEER_UNREACHABLE', `Redis: ${message}`, { cause: error });
}

/** Grows from 50 ms; for ever, as calls have limits of their own. */
function pause(times: number): number {
  return Math.min(LONGEST_PAUSE_MS, 50 * 2 ** Math.min(times, 10));
}

function connect(address: RedisAddress): Redis | Cluster {
  const nodes = address.urls.map(parse);
  const first = nodes[0];
  if (first === undefined) throw new PagetideError('PT_BAD_ARGUMENT', 'a Redis directory needs a URL');
  if (nodes.some(({ tls }) => tls !== first.tls))
    throw new PagetideError('PT_BAD_ARGUMENT', 'either all URLs of a cluster are rediss://, or none');
  const username = address.username ?? first.username;
  const password =
    address.passwordFile === undefined ? first.password : file(address.passwordFile).replace(/\r?\n$/, '');
  const own = {
    ...(address.ca === undefined ? {} : { ca: file(address.ca) }),
    ...(address.certificate === undefined ? {} : { cert: file(address.certificate) }),
    ...(address.key === undefined ? {} : { key: file(address.key) }),
  };
  const options = {
    ...(username === '' ? {} : { username }),
    ...(password === '' ? {} : { password }),
    ...(first.tls ? { tls: { minVersion: 'TLSv1.2' as const, ...own } } : {}),
    protocol: 2 as const,
    disableClientInfo: true,
    connectTimeout: CONNECT_MS,
    maxRetriesPerRequest: 3,
    // a server that became a replica is not the one to write to
    reconnectOnError: (error: Error): boolean | 2 => (error.message.startsWith('READONLY') ? 2 : false),
  };
  if (nodes.length === 1 && address.cluster !== true) {
    const { host, port, db } = first;
    return new Redis({ ...options, host, port, db, retryStrategy: pause });
  }
  return new Cluster(
    nodes.map(({ host, port }) => ({ host, port })),
    {
      redisOptions: options,
      clusterRetryStrategy: pause,
      retryDelayOnFailover: 200,
      retryDelayOnClusterDown: 200,
      maxRedirections: 64,
      slotsRefreshTimeout: CONNECT_MS,
      // a certificate is for a name
      dnsLookup: (name, callback) => {
        callback(null, name);
      },
    },
  );
}

interface Node {
  host: string;
  port: number;
  db: number;
  tls: boolean;
  username: string;
  password: string;
}

function parse(text: string): Node {
  const url = URL.canParse(text) ? new URL(text) : undefined;
  const database = /^\/?(\d{0,4})$/.exec(url?.pathname ?? 'x');
  // the text may hold a password
  if (url === undefined || !['redis:', 'rediss:'].includes(url.protocol) || url.hostname === '' || database === null)
    throw new PagetideError('PT_BAD_ARGUMENT', 'a directory URL is redis://HOST:PORT or rediss://HOST:PORT');
  return {
    host: url.hostname.replace(/^\[|\]$/g, ''),
    port: url.port === '' ? 6379 : Number(url.port),
    db: Number(database[1]),
    tls: url.protocol === 'rediss:',
    username: decodeURIComponent(url.username),
    password: decodeURIComponent(url.password),
  };
}

function file(path: string): string {
  try {
    return readFileSync(path, 'utf8');
  } catch (cause) {
    throw new PagetideError('PT_BAD_ARGUMENT', `${path} can't be read`, { cause });
  }
}
