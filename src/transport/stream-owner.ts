/** Whose streams they are, inside the page server's thread: a migration (live-offer.ts) or a domain (live-domain.ts). */
import type { PagetideError } from '../errors.ts';
import type { StreamKind } from './wire.ts';

/** What an owner needs to know of its connections. */
export interface OwnedStream {
  readonly kind: StreamKind;
  /** The owner's log has grown. */
  logGrew(): void;
  /** Says why, then ends. */
  close(error: PagetideError): void;
}

/** What a connection needs to know of its owner. */
export interface StreamOwner {
  readonly pageSize: number;
  /** See `Counter` in server-messages.ts. */
  readonly counters: Float64Array;
  count(counter: number, by?: number): void;
  /** Takes a connection in. */
  add(stream: OwnedStream): void;
  remove(stream: OwnedStream): void;
}
