/**
 * Pages by tag at the host that has them. A question what is here, and a request for one page, which somebody's guest waits
 * for, are answered where they are read, as far as memory has it; other requests are bulk. Of a background stream all are, and what it sends is
 * paced: nobody waits for that.
 */
import type { Socket } from 'node:net';
import { BACKGROUND_PAGES } from '../distribution/wire-cost.ts';
import { PagetideError } from '../errors.ts';
import { TAG_PAGE } from '../pages/tags.ts';
import type { BackgroundPace, PacedStream } from './background.ts';
import type { BatchResult } from './batch-task.ts';
import type { DomainStream, LiveDomain } from './live-domain.ts';
import { BulkStream, type BulkParts } from './server-bulk.ts';
import { Counter } from './server-messages.ts';
import { hasTags, readByTag } from './tag-place.ts';
import { isProof, type ProofOf } from './tag-proof.ts';
import { decodeTagRequest, encodeHave, encodeTagPages } from './wire-tag-pages.ts';
import { FrameType, HEADER_SIZE, WireLimit, protocolError } from './wire.ts';

export class TagStream extends BulkStream<LiveDomain> implements DomainStream, PacedStream {
  readonly host: string | undefined;
  readonly #of: ProofOf;
  readonly #parts: BulkParts;
  /** Of a background stream. */
  readonly #pace: BackgroundPace | undefined;
  #proven = false;

  /**
   * @param of the nonces of this connection: what the other end has yet to prove
   * @param pace of background streams, where this is one
   */
  constructor(
    domain: LiveDomain,
    socket: Socket,
    parts: BulkParts,
    host: string | undefined,
    of: ProofOf,
    pace?: BackgroundPace,
  ) {
    super(domain, 'tags', socket, parts, WireLimit.tagRequests);
    this.host = host;
    this.#of = of;
    this.#parts = parts;
    this.#pace = pace;
    if (pace !== undefined) domain.count(Counter.backgroundStreams);
  }

  protected override take(
    type: FrameType,
    stream: number,
    argument: number,
    buffer: Buffer,
    offset: number,
    length: number,
  ): void {
    const payload = buffer.subarray(offset, offset + length);
    if (!this.#proven) {
      this.#prove(type, payload);
      return;
    }
    if (type === FrameType.Proof) throw protocolError('a proof comes once, and first');
    const { place } = this.owner;
    const tags = decodeTagRequest(payload, argument);
    if (type === FrameType.HaveRequest) {
      this.owner.count(Counter.tagsAsked, argument);
      this.finish(encodeHave(stream, hasTags(place, tags)));
    } else if (this.#pace !== undefined) {
      if (argument > BACKGROUND_PAGES)
        throw protocolError(`a request of a background stream names ${BACKGROUND_PAGES} pages at most`);
      this.#pace.note(this, HEADER_SIZE + length);
      this.enqueue({ stream, argument, task: { kind: 'tags', place, stream, tags, urgent: false } });
    } else if (argument !== 1 || !this.#one(stream, tags)) {
      this.enqueue({ stream, argument, task: { kind: 'tags', place, stream, tags, urgent: argument === 1 } });
    }
  }

  #prove(type: FrameType, payload: Uint8Array): void {
    if (type !== FrameType.Proof) throw protocolError('the proof of the domain comes first');
    if (!isProof(payload, 'client', this.#of))
      throw new PagetideError('PT_DOMAIN_SECRET', 'you have another secret of this domain');
    this.#proven = true;
  }

  /** Answers at once, from memory. False: the page may be in a file, which this thread must not wait for. */
  #one(stream: number, tags: Uint8Array): boolean {
    const page = Buffer.allocUnsafe(TAG_PAGE);
    const found = readByTag(this.owner.place, tags, 0, page, 0);
    if (!found && this.owner.place.files !== 0) return false;
    const bytes = found ? TAG_PAGE : 0;
    this.#count(found ? 1 : 0, found ? 0 : 1, bytes, bytes);
    this.finish(encodeTagPages(stream, 1, Uint8Array.of(found ? 1 : 0), page.subarray(0, bytes), bytes, false));
    return true;
  }

  protected override retainTask(): void {
    // the place's numbers name things that native code keeps while they are used, and refuses afterwards
  }

  protected override releaseTask(): void {
    // as above
  }

  protected override countResult({
    pages,
    absent,
    rawBytes,
    bodyBytes,
  }: Exclude<BatchResult, { error: unknown }>): void {
    this.#count(pages, absent, rawBytes, bodyBytes);
  }

  get pacedSocket(): Socket {
    return this.socket;
  }

  override get isBackground(): boolean {
    return this.#pace !== undefined;
  }

  protected override grant(bytes: number, answers: boolean): number {
    const pace = this.#pace;
    if (pace === undefined) return bytes;
    if (answers) return pace.take(this, bytes);
    pace.note(this, bytes);
    return bytes;
  }

  protected override mayMake(): boolean {
    const pace = this.#pace;
    if (pace === undefined) return super.mayMake();
    const { pool } = this.#parts;
    if (pace.standsBack) pace.wait(this);
    else if (pool.isIdle) return true;
    else this.waitFor((callback) => pool.whenIdle(callback));
    return false;
  }

  protected override holdsBack(): boolean {
    return this.#pace?.standsBack === true;
  }

  protected override gone(): void {
    super.gone();
    this.#pace?.gone(this);
  }

  #count(pages: number, absent: number, raw: number, sent: number): void {
    const { owner } = this;
    owner.count(Counter.tagPages, pages);
    owner.count(Counter.tagAbsent, absent);
    owner.count(Counter.rawBytes, raw);
    owner.count(Counter.pageBytes, sent);
    if (this.#pace === undefined) return;
    owner.count(Counter.backgroundPages, pages);
    owner.count(Counter.backgroundBytes, sent);
  }
}
