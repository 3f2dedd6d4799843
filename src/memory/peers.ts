/**
 * The other hosts of the guest's domain, as one worker uses them: who of them is there, who is near enough, who is asked.
 *
 * Nearness is the shortest round trip: of the source the time that its TCP connection took, of a peer likewise, or the time of
 * its fastest answer. Only what is clearly farther than the source is left alone, another site say: among hosts of one network the
 * differences are noise, and asking many of them takes load off the source. One time that was long may be noise, too: who seems too far is
 * measured again and again.
 */
import type { PagetideError } from '../errors.ts';
import { TAG_PAGE } from '../pages/tags.ts';
import { connectTags } from '../transport/tag-client.ts';
import { Peer, type TagStream } from './peer.ts';
import type { PagesSpec } from './worker-messages.ts';

/** What travels to a worker. */
export interface PeersSpec {
  /** The mark of the domain's secret, 32 hex digits. */
  domain: string;
  /** URLs of other agents that have the domain; not the source's. {@link MOST_PEERS} at most. */
  urls: readonly string[];
  /** See {@link PeerOptions.waitMs}. */
  waitMs: number;
  /** See {@link PeerOptions.mostRestMs}. */
  restMs?: number;
}

/** Peers that one guest's workers ask: a bit each in a byte. */
export const MOST_PEERS = 8;
/** A peer whose round trip is longer than the source's this many times, and by this many milliseconds, is too far. */
const FAR_TIMES = 2;
const FAR_MS = 5;
/** For a connection, and then for the answer, milliseconds: nobody waits for one that is being made. */
const CONNECT_MS = 3_000;
/** How often peers are looked after, milliseconds. */
const LOOK_MS = 50;
/** So often are those measured again that seem too far: in looks. */
const MEASURE_LOOKS = 5;

export interface PeersOptions {
  spec: PeersSpec;
  /** The domain key, as native code knows it. */
  key: number;
  /** Round trip to the source, milliseconds; undefined while it is not connected, or where there is none: then nobody is too far. */
  sourceMs(): number | undefined;
  /** A peer is left out from now on. */
  onLeftOut?: (url: string, error: PagetideError) => void;
  /** A peer has come or gone. */
  onChange?: () => void;
  /** For tests. */
  connect?: (url: string, signal: AbortSignal) => Promise<TagStream>;
}

/** Those of a guest. Undefined where there are none, or they can't serve it: pages by tag have 4096 bytes. */
export function openPeers(
  pages: PagesSpec,
  pageSize: number,
  options: Omit<PeersOptions, 'spec' | 'key'>,
): Peers | undefined {
  if ((pages.kind !== 'peer' && pages.kind !== 'by-tag') || pages.named === undefined || pages.peers === undefined)
    return undefined;
  if (pageSize !== TAG_PAGE || pages.peers.urls.length === 0) return undefined;
  return new Peers({ ...options, spec: pages.peers, key: pages.named.key });
}

export class Peers {
  readonly all: readonly Peer[];
  readonly #options: PeersOptions;
  #timer: NodeJS.Timeout | undefined;

  constructor(options: PeersOptions) {
    const { spec, key, onLeftOut, onChange } = options;
    const { domain, waitMs, restMs, urls } = spec;
    this.#options = options;
    const connect =
      options.connect ??
      ((url: string, signal: AbortSignal) => connectTags({ url, domain, key, timeoutMs: CONNECT_MS, signal }));
    this.all = urls.slice(0, MOST_PEERS).map(
      (url) =>
        new Peer({
          url,
          waitMs,
          ...(restMs === undefined ? {} : { mostRestMs: restMs }),
          connect,
          ...(onLeftOut === undefined ? {} : { onLeftOut }),
          ...(onChange === undefined ? {} : { onChange }),
        }),
    );
  }

  /** Begins to connect. Idempotent. */
  start(): void {
    if (this.#timer !== undefined || this.all.length === 0) return;
    for (const peer of this.all) peer.connect();
    let looks = 0;
    this.#timer = setInterval(() => {
      for (const peer of this.all) peer.look();
      if (++looks % MEASURE_LOOKS === 0) this.measureFar();
    }, LOOK_MS);
    this.#timer.unref();
  }

  /** Those that can be asked now, and are near enough. */
  near(): Peer[] {
    const far = this.#far;
    return this.all.filter((peer) => peer.isUp && peer.roundTripMs <= far);
  }

  /** Measures those again that are too far, as far as is known. */
  measureFar(): void {
    const far = this.#far;
    for (const peer of this.all) if (peer.isUp && peer.roundTripMs > far) peer.measure();
  }

  /** A longer round trip is too long, milliseconds. */
  get #far(): number {
    const source = this.#options.sourceMs();
    return source === undefined ? Infinity : Math.max(source * FAR_TIMES, source + FAR_MS);
  }

  /** Bytes at the sockets so far, HTTP heads included. */
  get bytes(): { received: number; sent: number } {
    let received = 0;
    let sent = 0;
    for (const { bytes } of this.all) {
      received += bytes.received;
      sent += bytes.sent;
    }
    return { received, sent };
  }

  /** Ends all; what was asked for is answered by errors, by the event loop. */
  close(): void {
    clearInterval(this.#timer);
    for (const peer of this.all) peer.close();
  }
}
