/** The destination, as its source talks with it: over TLS it is one host from the first question to the last word. */
import { setTimeout as delay } from 'node:timers/promises';
import { asPagetideError, PagetideError } from '../errors.ts';
import type { PeerClient } from '../transport/peer.ts';
import type { MigrationHost } from './host.ts';
import { givenUp } from './outgoing-memory.ts';
import type { MigrationKey } from './ownership/index.ts';
import type { CopiedRound, IncomingStatus } from './types.ts';

/** Failed tries to reach the destination before the guest is handed over; about two seconds. */
export const TRIES = 4;
/** Least time between two questions whether a round is copied, milliseconds: an answer comes when it is, or after some seconds. */
const ROUND_ASK_MS = 100;

export interface OutgoingPeerOptions {
  host: Pick<MigrationHost, 'connectPeer' | 'pageServer' | 'log'>;
  key: MigrationKey;
  url: string;
  /** `destination`: the name in its certificate. Absent: over plain HTTP, or not known yet. Set here, once. */
  details: { destination?: string };
  /** Resolves when what was asked for of the page server is done. */
  settled: () => Promise<void>;
}

export class OutgoingPeer {
  readonly #options: OutgoingPeerOptions;
  #connection: PeerClient | undefined;

  constructor(options: OutgoingPeerOptions) {
    this.#options = options;
  }

  get client(): PeerClient {
    const { host, url, details } = this.#options;
    return (this.#connection ??= host.connectPeer(url, details.destination));
  }

  /** Without certificates, and on the control socket, nobody has a name. Until the destination's is known, it is asked to come again. */
  stranger(sender: string | undefined): PagetideError | undefined {
    if (sender === undefined || sender === this.#options.details.destination) return undefined;
    return new PagetideError('PT_UNAUTHORIZED', `${sender} is not the host that this guest moves to`);
  }

  /**
   * Over TLS: learns who the destination is, by a question that tells it nothing, and has the pages opened to it, before the
   * token leaves. `handing-over` carries the name to the journal: earlier, a restarted agent takes the guest back.
   */
  async meet(): Promise<void> {
    const { key, details } = this.#options;
    if (this.client.isSecure && details.destination === undefined) await this.client.status(key.migration);
    await this.admit();
  }

  /** Also after a restart, where the journal is of a version that didn't keep the name: no stream is opened until then. */
  async admit(): Promise<void> {
    const { host, key, details, settled } = this.#options;
    const identity = this.#connection?.identity;
    if (identity === undefined || details.destination !== undefined) return;
    // an offer that is made from now on has the name; one that is made already, or just now, is told it
    details.destination = identity;
    await settled();
    if (host.pageServer.counters(key.migration) !== undefined) await host.pageServer.admit(key.migration, identity);
  }

  /**
   * Asks until a round is copied. Silence gets a few tries, as with every question before the hand-over.
   * @param isWanted asked before each question, and after it
   * @param onStatus whatever the destination answers
   * @throws PagetideError the destination's, `PT_PEER_UNREACHABLE`, `PT_CANCELLED` where it is not wanted any more
   */
  async copy(round: number, isWanted: () => boolean, onStatus: (status: IncomingStatus) => void): Promise<CopiedRound> {
    const { host, key } = this.#options;
    for (let silent = 0; ;) {
      if (!isWanted()) throw givenUp();
      const askedAt = performance.now();
      const status = await this.client.copy(key.migration, key.epoch, round).catch((thrown: unknown) => {
        const error = asPagetideError(thrown);
        if (error.code !== 'PT_PEER_UNREACHABLE' || ++silent >= TRIES || !isWanted()) throw error;
        host.log.warn({ migration: key.migration, request: 'copy', round, code: error.code }, error.message);
        return undefined;
      });
      if (status !== undefined) {
        silent = 0;
        if (!isWanted()) throw givenUp();
        onStatus(status);
        if (status.copied?.round === round) return status.copied;
      }
      await delay(Math.max(0, ROUND_ASK_MS * 2 ** silent - (performance.now() - askedAt)), undefined, { ref: false });
    }
  }

  /** Bytes at the sockets of the control messages, both directions. */
  get bytes(): number {
    const { received, sent } = this.client.bytes;
    return received + sent;
  }

  /** Ends the connections; the next question makes new ones. */
  close(): void {
    void this.#connection?.close();
    this.#connection = undefined;
  }
}
