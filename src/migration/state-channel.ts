/** The destination's state stream: collects the frame map and the device state, whole and checked, before any is used. */
import { PagetideError } from '../errors.ts';
import type { Manifest } from '../pages/manifest.ts';
import { connectPages } from '../transport/page-client.ts';
import { ReconnectingPages } from '../transport/reconnect.ts';
import { runCount, runHasData } from '../transport/wire-map.ts';
import { checkManifestEnd, decodeTags } from '../transport/wire-tags.ts';

export interface SwitchState {
  /** [first frame, count, …] of the frames that are zero. */
  zeroRuns: number[];
  zeroFrames: number;
  device: Buffer;
  /** Payload bytes of manifest and map. */
  manifestBytes: number;
}

export interface StateChannelOptions {
  url: string;
  migration: string;
  token: string;
  frames: number;
  pageSize: number;
  /** Takes the tags in. It is final, its digest checked, when {@link StateChannel.whole} resolves. */
  manifest: Manifest;
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
  /** Resolves when map and state are here; rejects when the source gives up. */
  readonly whole: Promise<SwitchState>;
  readonly #pages: ReconnectingPages;

  constructor(options: StateChannelOptions) {
    const connected = deferred<true>();
    const whole = deferred<SwitchState>();
    this.connected = connected.promise;
    this.whole = whole.promise;
    this.connected.catch(() => undefined);
    this.whole.catch(() => undefined);
    let zeroRuns: number[] = [];
    let zeroFrames = 0;
    let manifestBytes = 0;
    let isFinal = false;
    let isWhole = false;
    const { manifest } = options;
    let chunks: Buffer[] = [];
    this.#pages = new ReconnectingPages({
      connect: (handlers, signal) => connectPages({ ...options, channel: 'state', handlers, signal }),
      handlers: {
        onTags: (payload, first) => {
          // On a new connection everything comes again from the start. What is final is in use by then, and never written again.
          if (isWhole) return;
          isFinal = false;
          decodeTags(payload, first, manifest);
          manifestBytes += payload.length;
        },
        onManifestEnd: (payload, frames) => {
          if (isWhole) return;
          checkManifestEnd(payload, frames, manifest);
          manifestBytes += payload.length;
          isFinal = true;
        },
        onMap: (runs, first) => {
          if (first === 0) {
            // a new connection begins from the start
            zeroRuns = [];
            zeroFrames = 0;
          }
          manifestBytes += runs.byteLength;
          let at = first;
          for (const run of runs) {
            const count = runCount(run);
            if (!runHasData(run)) {
              zeroRuns.push(at, count);
              zeroFrames += count;
            }
            at += count;
          }
        },
        onState: (chunk, offset) => {
          if (offset === 0) chunks = [];
          chunks.push(Buffer.from(chunk)); // the connection uses its memory again
        },
        onStateEnd: () => {
          if (!isFinal) throw new PagetideError('PT_PROTOCOL', 'the device state came without a manifest');
          isWhole = true;
          whole.resolve({ zeroRuns, zeroFrames, manifestBytes, device: Buffer.concat(chunks) });
        },
        onClose: (error) => {
          const why = error ?? new PagetideError('PT_CANCELLED', 'the state stream was closed');
          connected.reject(why);
          whole.reject(why);
        },
      },
      onConnected: () => connected.resolve(true),
      giveUp: (error) => error.code !== 'PT_PEER_UNREACHABLE',
    }).start();
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
