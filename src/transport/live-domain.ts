/** A domain as the page server's thread holds it: who may have its pages by tag, where they are, and who is connected. */
import { PagetideError } from '../errors.ts';
import { TAG_PAGE } from '../pages/tags.ts';
import { Counter, type SharedDomain } from './server-messages.ts';
import type { OwnedStream, StreamOwner } from './stream-owner.ts';
import { newNonce, type ProofOf } from './tag-proof.ts';
import type { TagPlace } from './tag-place.ts';

/** Connections of one domain that may be open at once: a few of each of its guests that arrive anywhere. */
const MOST_STREAMS = 256;

/** A connection of a domain. */
export interface DomainStream extends OwnedStream {
  /** The name in the other end's certificate; undefined on a plain connection. */
  readonly host: string | undefined;
}

export class LiveDomain implements StreamOwner {
  readonly pageSize = TAG_PAGE;
  readonly counters: Float64Array;
  readonly place: TagPlace;
  readonly #id: string;
  #hosts: ReadonlySet<string>;
  readonly #streams = new Set<DomainStream>();

  constructor({ id, place, hosts }: SharedDomain, counters: SharedArrayBuffer) {
    this.#id = id;
    this.place = place;
    this.#hosts = new Set(hosts);
    this.counters = new Float64Array(counters);
  }

  isOf(host: string): boolean {
    return this.#hosts.has(host);
  }

  /** What proofs of a new connection are made of, with a nonce of this end. */
  proofOf(client: string): ProofOf {
    return { key: this.place.key, domain: this.#id, client, server: newNonce() };
  }

  /** Other hosts have it now: who lost it is cut off. */
  change({ hosts }: SharedDomain): void {
    this.#hosts = new Set(hosts);
    for (const stream of this.#streams) {
      if (stream.host !== undefined && !this.isOf(stream.host))
        stream.close(new PagetideError('PT_DOMAIN_UNKNOWN', 'the domain is not shared with you any more'));
    }
  }

  count(counter: number, by = 1): void {
    this.counters[counter]! += by;
  }

  /** The oldest goes when there are too many. */
  add(stream: OwnedStream): void {
    const [oldest] = this.#streams;
    if (this.#streams.size >= MOST_STREAMS)
      oldest?.close(new PagetideError('PT_PROTOCOL', `more than ${MOST_STREAMS} connections of one domain`));
    this.#streams.add(stream as DomainStream);
    this.count(Counter.connections);
    this.count(Counter.open);
  }

  remove(stream: OwnedStream): void {
    if (this.#streams.delete(stream as DomainStream)) this.count(Counter.open, -1);
  }

  /** Ends all connections. */
  close(error: PagetideError): void {
    for (const stream of this.#streams) stream.close(error);
  }
}
