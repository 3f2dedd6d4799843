/**
 * A TCP proxy in front of an agent's port, for tests of bad networks: connections can be cut, held up, refused, slowed
 * down, and what the agent sends can be altered. Page streams are told apart by the request that they begin with.
 */
import { connect, createServer, type AddressInfo, type Server, type Socket } from 'node:net';

export type Kind = 'demand' | 'fill' | 'state' | 'tags' | 'control';

export interface Passing {
  readonly kind: Kind;
  /** Of this kind, from 0. */
  readonly nth: number;
}

/** What to do with bytes that the agent sends: other bytes, the same, or 'cut' to end the connection here. */
export type Alter = (bytes: Buffer, passing: Passing, seen: number) => Buffer | 'cut';

interface Link extends Passing {
  near: Socket;
  far: Socket;
}

export class TcpProxy {
  /** Where it leads; set it before anyone connects. */
  target = '';
  /** Kinds whose new connections are accepted and then left without an answer. */
  readonly held = new Set<Kind>();
  /** Closes each new connection at once. */
  down = false;
  /** Bytes a second from the agent on each connection; 0: no limit. */
  rate = 0;
  alter: Alter | undefined;
  /** Connections so far, by kind. */
  readonly counts: Record<Kind, number> = { demand: 0, fill: 0, state: 0, tags: 0, control: 0 };
  readonly #server: Server;
  readonly #links = new Set<Link>();
  readonly #sockets = new Set<Socket>();

  private constructor() {
    this.#server = createServer((near) => this.#accept(near));
  }

  static async start(t: { teardown(fn: () => unknown): unknown }): Promise<TcpProxy> {
    const proxy = new TcpProxy();
    await new Promise<void>((done) => proxy.#server.listen(0, '127.0.0.1', done));
    t.teardown(() => proxy.close());
    return proxy;
  }

  get url(): string {
    return `http://127.0.0.1:${(this.#server.address() as AddressInfo).port}`;
  }

  /** Resets the connections of these kinds (all by default); returns how many. */
  cut(...kinds: Kind[]): number {
    const chosen = [...this.#links].filter(({ kind }) => kinds.length === 0 || kinds.includes(kind));
    for (const { near, far } of chosen) {
      near.resetAndDestroy();
      far.destroy();
    }
    return chosen.length;
  }

  close(): Promise<void> {
    for (const socket of this.#sockets) socket.destroy();
    return new Promise((done) => this.#server.close(() => done()));
  }

  #track(socket: Socket): void {
    this.#sockets.add(socket);
    socket.on('error', () => socket.destroy());
    socket.on('close', () => this.#sockets.delete(socket));
  }

  #accept(near: Socket): void {
    this.#track(near);
    if (this.down) {
      near.destroy();
      return;
    }
    near.once('data', (first: Buffer) => {
      near.pause();
      const kind = kindOf(first.toString('latin1', 0, 200));
      const nth = this.counts[kind]++;
      if (!this.held.has(kind)) this.#pass({ kind, nth }, near, first);
    });
  }

  #pass(passing: Passing, near: Socket, first: Buffer): void {
    const { hostname, port } = new URL(this.target);
    const far = connect({ host: hostname, port: Number(port) });
    this.#track(far);
    const link: Link = { ...passing, near, far };
    this.#links.add(link);
    near.on('close', () => {
      this.#links.delete(link);
      far.destroy();
    });
    // all of it may have to reach the other side first
    far.on('end', () => near.end());
    far.on('close', () => {
      if (!near.writableEnded) near.destroy();
    });
    far.write(first);
    near.pipe(far);
    let seen = 0;
    far.on('data', (bytes: Buffer) => {
      const altered = this.alter === undefined ? bytes : this.alter(bytes, passing, seen);
      seen += bytes.length;
      if (altered === 'cut') {
        near.destroy();
        return;
      }
      if (near.destroyed) return;
      const full = !near.write(altered);
      if (this.rate > 0) {
        far.pause();
        setTimeout(() => far.resume(), (bytes.length / this.rate) * 1000).unref();
      } else if (full) {
        far.pause();
        near.once('drain', () => far.resume());
      }
    });
  }
}

function kindOf(request: string): Kind {
  if (request.startsWith('GET /v1/tags/')) return 'tags';
  const channel = /^GET \/v1\/pages\/[^ ?]+\?channel=(\w+)/.exec(request)?.[1];
  return channel === 'demand' || channel === 'fill' || channel === 'state' ? channel : 'control';
}
