/**
 * The destination's state stream: collects tags and the device state, each whole and checked before any is used.
 *
 *   Tags … ManifestEnd   Tags … ManifestEnd   …   Tags … ManifestEnd  Settled
 *          told (1)             told (2)                 told (last)  ▲ settled
 *                                       State …  State …      StateEnd             the two go their own ways:
 *                                                             ▲ whole, if settled  the VMM saves its state while the last tags are made
 *
 * On a new connection everything comes again from the start. So the tags go back to what they were before anything was told, and
 * ends are counted anew: a round is told when as many ends have come on the connection that there is. Once the manifest is settled nothing
 * of it is written again: it is in use by then.
 */
import { PagetideError } from '../errors.ts';
import type { Manifest } from '../pages/manifest.ts';
import { connectPages } from '../transport/page-client.ts';
import { ReconnectingPages } from '../transport/reconnect.ts';
import { checkManifestEnd, decodeTags } from '../transport/wire-tags.ts';

export interface SwitchState {
  device: Buffer;
  /** Payload bytes of the manifest. */
  manifestBytes: number;
}

export interface StateChannelOptions {
  url: string;
  migration: string;
  token: string;
  frames: number;
  pageSize: number;
  /** Takes the tags in. It is final, its digest checked, when {@link StateChannel.settled} resolves. */
  manifest: Manifest;
  /** Tags of these frames were taken in. */
  onTags?: (first: number, count: number) => void;
  /** The tags went back to what they were, and all comes again. */
  onRestart?: () => void;
}

interface Deferred<T> {
  promise: Promise<T>;
  resolve: (value: T) => void;
  reject: (error: PagetideError) => void;
}

function deferred<T>(): Deferred<T> {
  const made: Partial<Deferred<T>> = {};
  made.promise = new Promise<T>((resolve, reject) => {
    made.resolve = resolve;
    made.reject = reject;
  });
  return made as Deferred<T>;
}

export class StateChannel {
  /** Resolves with the first connection; rejects when the source refuses. */
  readonly connected: Promise<true>;
  /** Resolves when the manifest is final; rejects when the source gives up. */
  readonly settled: Promise<true>;
  /** Resolves when the manifest is final and the state is here; rejects when the source gives up. */
  readonly whole: Promise<SwitchState>;
  readonly #pages: ReconnectingPages;
  readonly #manifest: Manifest;
  /** Ends of the manifest on the connection that there is, or was last. */
  #ends = 0;
  #waiting: { round: number; told: Deferred<true> }[] = [];
  #closed: PagetideError | undefined;

  constructor(options: StateChannelOptions) {
    const connected = deferred<true>();
    const settled = deferred<true>();
    const whole = deferred<SwitchState>();
    this.connected = connected.promise;
    this.settled = settled.promise;
    this.whole = whole.promise;
    this.connected.catch(() => undefined);
    this.settled.catch(() => undefined);
    this.whole.catch(() => undefined);
    let manifestBytes = 0;
    let isSettled = false;
    let device: Buffer | undefined;
    const { manifest, onTags, onRestart } = options;
    this.#manifest = manifest;
    // What this host knew by itself. An end is checked against the whole table: tags of later rounds must not be in it.
    const before = Uint8Array.from(manifest.tags);
    let isTouched = false;
    let chunks: Buffer[] = [];
    const arrived = (): void => {
      if (isSettled && device !== undefined) whole.resolve({ manifestBytes, device });
    };
    const restart = (): void => {
      if (isSettled) return;
      this.#ends = 0;
      if (!isTouched) return;
      manifest.tags.set(before);
      manifest.touch(0, manifest.frames);
      isTouched = false;
      onRestart?.();
    };
    this.#pages = new ReconnectingPages({
      connect: (handlers, signal) => connectPages({ ...options, channel: 'state', handlers, signal }),
      handlers: {
        onTags: (payload, first) => {
          if (isSettled) return;
          isTouched = true;
          decodeTags(payload, first, manifest, onTags);
          manifestBytes += payload.length;
        },
        onManifestEnd: (payload, frames) => {
          if (isSettled) return;
          checkManifestEnd(payload, frames, manifest);
          manifestBytes += payload.length;
          this.#tell(++this.#ends);
        },
        onSettled: () => {
          isSettled = true;
          settled.resolve(true);
          arrived();
        },
        onState: (chunk, offset) => {
          if (offset === 0) chunks = [];
          chunks.push(Buffer.from(chunk)); // the connection uses its memory again
        },
        onStateEnd: () => {
          device ??= Buffer.concat(chunks);
          arrived();
        },
        onClose: (error) => {
          const why = error ?? new PagetideError('PT_CANCELLED', 'the state stream was closed');
          connected.reject(why);
          settled.reject(why);
          whole.reject(why);
          this.#closed = why;
          for (const { told } of this.#waiting.splice(0)) told.reject(why);
        },
      },
      // before anything of this connection is heard
      onConnected: () => {
        restart();
        connected.resolve(true);
      },
      giveUp: (error) => error.code !== 'PT_PEER_UNREACHABLE',
    }).start();
  }

  /** Rounds of which the manifest is told, on the connection that there is. */
  get rounds(): number {
    return this.#ends;
  }

  /** Of the manifest as it is told now, hex. */
  get digest(): string {
    return this.#manifest.digest().toString('hex');
  }

  /** Resolves once the manifest of this round (1: the first) is told; rejects when the source gives up, or after {@link close}. */
  async told(round: number): Promise<void> {
    // whoever waited is called later: by then there may be a new connection, on which it is told again
    while (this.#ends < round) {
      if (this.#closed !== undefined) throw this.#closed;
      const told = deferred<true>();
      this.#waiting.push({ round, told });
      await told.promise;
    }
  }

  #tell(round: number): void {
    const told = this.#waiting.filter((waiting) => waiting.round <= round);
    this.#waiting = this.#waiting.filter((waiting) => waiting.round > round);
    for (const waiting of told) waiting.told.resolve(true);
  }

  /** Milliseconds since there was a connection; 0 while there is one. */
  get silentMs(): number {
    const { status, since } = this.#pages.state;
    return status === 'connected' ? 0 : performance.now() - since;
  }

  /** Bytes at the sockets, both directions. */
  get bytes(): number {
    const { received, sent } = this.#pages.bytes;
    return received + sent;
  }

  close(): void {
    this.#pages.close();
  }
}
