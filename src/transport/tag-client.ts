/**
 * A connection to another host of a domain, for pages by tag. Used inside a fault worker, a fill worker and the pager;
 * nothing here touches another thread. What comes is not believed: whoever asked compares each page with its tag.
 *
 * Requests are answered in any order; each callback is called once, with the answer or with why there is none.
 */
import type { Socket } from 'node:net';
import { PagetideError, asPagetideError } from '../errors.ts';
import { TAG_BYTES, TAG_VERSION } from '../pages/tags.ts';
import { credentials as ownCredentials, type Credentials } from '../trust/credentials.ts';
import { descriptorOf } from './direct-io.ts';
import { openStream } from './page-connect.ts';
import type { TappedSocket } from './read-tap.ts';
import {
  NONCE_HEADER,
  PROOF_HEADER,
  TAGS_HEADER,
  isNonce,
  isProof,
  newNonce,
  proof,
  type ProofOf,
} from './tag-proof.ts';
import { BACKGROUND_HEADER, tagsPath } from './upgrade.ts';
import { WireBytes } from './wire-bytes.ts';
import { decodeError } from './wire-state.ts';
import { decodeHave, decodeTagPages, encodeTagRequest, type TagPages } from './wire-tag-pages.ts';
import { FrameDecoder, FrameType, WireLimit, encodeFrame, protocolError } from './wire.ts';

/** Bytes of one read. */
const READ_BYTES = 256 << 10;
const BACKGROUND_READ_BYTES = 64 << 10;
/** Bytes unsent above which a ping is not answered. */
const PONG_LIMIT = 64 << 10;

export interface TagAddress {
  /** The other agent's URL. */
  url: string;
  /** The mark of the domain's secret, 32 hex digits. */
  domain: string;
  /** The domain's key, as native code knows it. */
  key: number;
  /** Nobody waits for these pages: both ends mark the packets as of lower effort (RFC 8622), and the holder sends when it likes. */
  background?: boolean;
  /** Milliseconds for the TCP connection, and then for the answer. 3000 by default. */
  timeoutMs?: number;
  /** For an https:// URL; those of the process by default. */
  credentials?: Credentials | undefined;
  /** Gives the attempt up. */
  signal?: AbortSignal;
}

/** Which of the tags that were asked for seem to be there: one bit each. */
export type HaveCallback = (present: Uint8Array | undefined, error: PagetideError | undefined) => void;
/** Pages are valid **until this returns**. */
export type PagesCallback = (pages: TagPages | undefined, error: PagetideError | undefined) => void;

type Waiting =
  | { type: typeof FrameType.Have; count: number; done: HaveCallback }
  | { type: typeof FrameType.TagPages; count: number; done: PagesCallback };

/**
 * Opens a stream, once both ends have proven that they have the domain's secret.
 * @throws PagetideError `PT_PROTOCOL` where it is to be a background stream and the other end does not know that; `PT_DOMAIN_SECRET` where the other end has another secret; `PT_DOMAIN_UNKNOWN` where it does not
 * have the domain, or does not know this host as one that has it; others as {@link openStream}
 */
export async function connectTags(address: TagAddress): Promise<TagConnection> {
  const { url, domain, key, timeoutMs = 3_000, credentials = ownCredentials(), signal, background = false } = address;
  const of: ProofOf = { key, domain, client: newNonce(), server: '' };
  const tapped = await openStream({
    url,
    path: tagsPath(domain),
    headers: {
      [NONCE_HEADER]: of.client,
      [TAGS_HEADER]: String(TAG_VERSION),
      ...(background ? { [BACKGROUND_HEADER]: '1' } : {}),
    },
    readBytes: background ? BACKGROUND_READ_BYTES : READ_BYTES,
    background,
    timeoutMs,
    credentials,
    signal,
    fits: (headers) => {
      // one that ignores the header would send all at once
      if (background && headers[BACKGROUND_HEADER] !== '1') return false;
      const server = headers[NONCE_HEADER];
      if (!isNonce(server)) return false;
      of.server = server;
      if (isProof(Buffer.from(String(headers[PROOF_HEADER]), 'hex'), 'server', of)) return true;
      throw new PagetideError('PT_DOMAIN_SECRET', `${url} has another secret of this domain`);
    },
  });
  return new TagConnection(tapped, proof('client', of));
}

export class TagConnection {
  /** Round trip of the connection's first packet, milliseconds. */
  readonly connectMs: number;
  /** Told once, when it is gone; after every callback. `error`: why, undefined after {@link close}. */
  onClose: ((error: PagetideError | undefined) => void) | undefined;
  readonly #socket: Socket;
  readonly #bytes: WireBytes;
  readonly #decoder: FrameDecoder;
  readonly #waiting = new Map<number, Waiting>();
  #nextStream = 1;
  #closed = false;
  #told = false;
  #why: PagetideError | undefined;

  /** Takes over a socket that has been upgraded; see {@link connectTags}. */
  constructor(tapped: TappedSocket, proven: Uint8Array) {
    const { socket } = tapped;
    this.connectMs = tapped.connectMs;
    this.#socket = socket;
    this.#bytes = new WireBytes(socket);
    this.#decoder = new FrameDecoder('client-tags', 4096, (type, flags, stream, argument, buffer, offset, length) => {
      this.#take(type, flags, stream, argument, buffer.subarray(offset, offset + length));
    });
    socket.ref();
    socket.on('error', (cause) =>
      this.#shut(new PagetideError('PT_PEER_UNREACHABLE', `the stream broke: ${cause.message}`, { cause })),
    );
    socket.on('end', () => this.#shut(new PagetideError('PT_PEER_UNREACHABLE', 'the other agent closed the stream')));
    socket.on('close', () => this.#gone());
    if (socket.destroyed) {
      queueMicrotask(() => this.#gone());
      return;
    }
    socket.write(encodeFrame(FrameType.Proof, 0, 0, 0, proven));
    process.nextTick(() => tapped.divert((buffer, bytes) => this.#read(buffer, bytes)));
  }

  get closed(): boolean {
    return this.#closed;
  }
  /** Of its TCP socket; -1: none to be had. */
  get descriptor(): number {
    return this.#closed ? -1 : descriptorOf(this.#socket);
  }
  /** Requests without an answer. */
  get outstanding(): number {
    return this.#waiting.size;
  }
  /** Bytes at the socket, HTTP heads included. */
  get bytesReceived(): number {
    return this.#bytes.received;
  }
  get bytesSent(): number {
    return this.#bytes.sent;
  }

  /**
   * Asks which of the tags are there.
   * @param tags 16 bytes each; 1 to {@link WireLimit.tagPages} of them
   * @returns false when it can't be asked now: the connection is gone, or has {@link WireLimit.tagRequests} outstanding
   */
  have(tags: Uint8Array, done: HaveCallback): boolean {
    return this.#ask(FrameType.HaveRequest, tags, { type: FrameType.Have, count: tags.length / TAG_BYTES, done });
  }

  /** Asks for pages; one is answered at once and raw, more are packed together. Otherwise as {@link have}. */
  pages(tags: Uint8Array, done: PagesCallback): boolean {
    return this.#ask(FrameType.TagRequest, tags, { type: FrameType.TagPages, count: tags.length / TAG_BYTES, done });
  }

  /** Ends the connection at once. Idempotent. */
  close(): void {
    this.#shut(undefined);
  }

  #ask(type: typeof FrameType.HaveRequest | typeof FrameType.TagRequest, tags: Uint8Array, waiting: Waiting): boolean {
    const { count } = waiting;
    if (!Number.isInteger(count) || count < 1 || count > WireLimit.tagPages)
      throw new PagetideError(
        'PT_BAD_ARGUMENT',
        `a request by tag names 1 to ${WireLimit.tagPages} pages, not ${count}`,
      );
    if (this.#closed || this.#waiting.size === WireLimit.tagRequests) return false;
    while (this.#nextStream === 0 || this.#waiting.has(this.#nextStream))
      this.#nextStream = (this.#nextStream + 1) >>> 0;
    const stream = this.#nextStream;
    this.#nextStream = (stream + 1) >>> 0;
    this.#waiting.set(stream, waiting);
    this.#socket.write(encodeTagRequest(type, stream, tags));
    return true;
  }

  #read(buffer: Buffer, bytes: number): void {
    try {
      this.#decoder.feed(buffer, bytes);
    } catch (error) {
      this.#shut(asPagetideError(error));
    }
  }

  #take(type: FrameType, flags: number, stream: number, argument: number, payload: Buffer): void {
    if (type === FrameType.Ping) {
      if (this.#socket.writableLength < PONG_LIMIT) this.#socket.write(encodeFrame(FrameType.Pong, 0, 0, argument));
      return;
    }
    if (type === FrameType.Pong) return;
    if (type === FrameType.Error && stream === 0) {
      this.#shut(decodeError(payload));
      return;
    }
    const waiting = this.#waiting.get(stream);
    if (waiting === undefined || argument !== waiting.count) throw protocolError('an answer was not asked for');
    if (type === FrameType.Error) {
      this.#waiting.delete(stream);
      waiting.done(undefined, decodeError(payload));
      return;
    }
    if (type !== waiting.type) throw protocolError('an answer is to another request');
    // decoded first: an answer that is none ends the connection, and with it this request
    if (waiting.type === FrameType.Have) {
      const present = decodeHave(payload, waiting.count);
      this.#waiting.delete(stream);
      waiting.done(present, undefined);
    } else {
      const pages = decodeTagPages(payload, flags, waiting.count);
      this.#waiting.delete(stream);
      waiting.done(pages, undefined);
    }
  }

  #shut(error: PagetideError | undefined): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#why = error;
    this.#decoder.stop();
    this.#bytes.look();
    this.#socket.destroy();
  }

  #gone(): void {
    this.#shut(new PagetideError('PT_PEER_UNREACHABLE', 'the stream was cut'));
    if (this.#told) return;
    this.#told = true;
    const why = this.#why ?? new PagetideError('PT_CANCELLED', 'the stream was closed');
    const waiting = [...this.#waiting.values()];
    this.#waiting.clear();
    for (const { done } of waiting) done(undefined, why);
    this.onClose?.(this.#why);
  }
}
