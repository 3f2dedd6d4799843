/**
 * Pages of another agent, for a worker of one guest: one page stream (demand or fill) that is made again when it drops,
 * its traffic counted in the guest's shared figures, and its ups and downs told to the main thread.
 */
import type { PagetideError } from '../errors.ts';
import { connectPages, type DeltaRequest, type PageHandlers, type Runs } from '../transport/page-client.ts';
import { ReconnectingPages } from '../transport/reconnect.ts';
import type { ServicePort } from './service-port.ts';
import type { Serving } from './serving.ts';
import type { PeerPagesSpec } from './worker-messages.ts';

/** Bytes at sockets, so far. */
interface Bytes {
  received: number;
  sent: number;
}

export interface PeerPagesHandlers extends Omit<PageHandlers, 'onClose'> {
  /** There is a connection (again): what is wanted has to be asked for. */
  onConnected?: () => void;
  /** What was asked for will not be answered. */
  onDisconnected?: () => void;
}

const FIRST_MS = 20;
const LAST_MS = 1_000;
/** How often the traffic counters are brought up to date, milliseconds. */
const COUNT_MS = 100;

export class PeerPages {
  /** Resolves with the first connection; rejects when the source refuses for good before that. */
  readonly connected: Promise<void>;
  private readonly pages: ReconnectingPages;
  private readonly counting: NodeJS.Timeout;
  private readonly count: () => void;
  /** Other connections whose bytes count as this one's. */
  private others: (() => Bytes) | undefined;

  constructor(
    spec: PeerPagesSpec,
    channel: 'demand' | 'fill',
    serving: Serving,
    port: ServicePort,
    handlers: PeerPagesHandlers,
  ) {
    let resolveConnected: () => void;
    let rejectConnected: (error: PagetideError) => void;
    this.connected = new Promise((resolve, reject) => {
      resolveConnected = resolve;
      rejectConnected = reject;
    });
    let ever = false;
    let down = false;
    let told = false;
    const { onConnected, onDisconnected, ...page } = handlers;
    this.pages = new ReconnectingPages({
      connect: (own, signal) => {
        const { url, migration, token, pageSize, frames } = spec;
        return connectPages({
          url,
          migration,
          token,
          pageSize,
          frames,
          channel,
          handlers: own,
          signal,
          direct: channel === 'demand',
        });
      },
      handlers: {
        ...page,
        onClose: (error) => {
          if (error !== undefined && !ever) rejectConnected(error);
        },
      },
      onConnected: () => {
        if (ever) {
          serving.reconnected();
          port.tell({ event: 'connected' });
        }
        ever = true;
        down = false;
        told = false;
        resolveConnected();
        onConnected?.();
      },
      onState: (state) => {
        if (state.status !== 'connecting' || !ever) return;
        if (!down) onDisconnected?.();
        down = true;
        if (told || state.lastError === undefined) return;
        told = true;
        port.tell({ event: 'disconnected', error: state.lastError.toJSON() });
      },
      // A source that refuses the first connection is the migration's business. Later the guest runs here: never give up.
      giveUp: (error) => !ever && !spec.patient && error.code !== 'PT_PEER_UNREACHABLE',
      backoff: { firstMs: FIRST_MS, maxMs: LAST_MS },
    });
    this.count = () => {
      const { received, sent } = this.pages.bytes;
      const others = this.others?.();
      serving.setTraffic(channel, received + (others?.received ?? 0), sent + (others?.sent ?? 0));
    };
    this.counting = setInterval(this.count, COUNT_MS);
    this.counting.unref();
    this.pages.start();
  }

  /** Brings the traffic counters up to date. */
  countNow(): void {
    this.count();
  }

  /** Counts the bytes of other connections with those of this one. */
  alsoCount(others: () => Bytes): void {
    this.others = others;
  }

  /** Round trip to the source, milliseconds; undefined while there is no connection. */
  get roundTripMs(): number | undefined {
    return this.pages.connection?.connectMs;
  }

  requestPage(frame: number): boolean {
    return this.pages.requestPage(frame);
  }

  /** Of the connection, to be polled by a worker that reads itself; -1 where there is none, or its bytes come by the event loop. */
  get directFd(): number {
    return this.pages.connection?.directFd ?? -1;
  }

  /** Takes in what has come on {@link directFd}. Returns false when the connection has ended. */
  readDirect(): boolean {
    return this.pages.connection?.readDirect() ?? false;
  }

  /** @returns the request's stream; 0 when it can't be asked for now */
  requestBatch(runs: Runs): number {
    return this.pages.requestBatch(runs);
  }

  /** The same for deltas. */
  requestDeltas(request: DeltaRequest, measure: boolean): number {
    return this.pages.requestDeltas(request, measure);
  }

  close(): void {
    clearInterval(this.counting);
    this.count();
    this.pages.close();
  }
}
