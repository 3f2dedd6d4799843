/**
 * Another host of the guest's domain, as one worker asks it for pages by tag.
 *
 *             ┌────── rest is over ───────┐
 *             ▼                           │
 *   idle ─► connecting ──► up ──────► resting: 1 s, doubled up to a minute each time that nothing came in between
 *                 └─ fails ─┘ ├─ cut, or silent for too long while it owes an answer
 *                             └─ wrong pages, too many of them ──► left out, for good
 *
 * It costs a bounded wait, and no more: a request is owed an answer for as long as bytes keep coming, and when none came for
 * `waitMs` the connection is ended, and with it every request that was under way. Whoever asked then asks somebody else.
 */
import { PagetideError, asPagetideError } from '../errors.ts';
import { TAG_BYTES } from '../pages/tags.ts';
import type { HaveCallback, PagesCallback, TagConnection } from '../transport/tag-client.ts';

/** What is used of a {@link TagConnection}. */
export type TagStream = Pick<
  TagConnection,
  'connectMs' | 'outstanding' | 'closed' | 'bytesReceived' | 'bytesSent' | 'have' | 'pages' | 'close' | 'onClose'
>;

export interface PeerOptions {
  url: string;
  connect(url: string, signal: AbortSignal): Promise<TagStream>;
  /** Milliseconds without a byte after which a peer that owes an answer is given up for a while. */
  waitMs: number;
  /** Longest rest, milliseconds; a minute by default. Less where there may be nobody else. */
  mostRestMs?: number;
  /** It has become available, or is not available any more. */
  onChange?(): void;
  /** It is left out from now on, for good. */
  onLeftOut?(url: string, error: PagetideError): void;
  /** Milliseconds, monotonic. */
  now?: () => number;
}

/** Wrong pages after which a peer is left out. */
export const MOST_WRONG = 3;
const FIRST_REST_MS = 1_000;
const LAST_REST_MS = 60_000;
/** Refusals that no time mends: the peer is another cluster's, or has another secret. */
const FINAL: ReadonlySet<string> = new Set(['PT_DOMAIN_SECRET', 'PT_PEER_UNTRUSTED', 'PT_BAD_ARGUMENT']);

/** A tag that no page has. */
const NOBODYS = new Uint8Array(TAG_BYTES).fill(0xff);

/** Tags after which a peer that has next to nothing is asked less often, and the share that is next to nothing. */
const SAMPLE = 1_024;
const SCARCE = 1 / 64;
const SELDOM = 8;

export class Peer {
  readonly url: string;
  /** Wrong pages that it sent. */
  wrong = 0;
  readonly #options: PeerOptions;
  readonly #now: () => number;
  readonly #abort = new AbortController();
  #stream: TagStream | undefined;
  #state: 'idle' | 'connecting' | 'up' | 'resting' | 'out' = 'idle';
  #restUntil = 0;
  #rests = 0;
  /** What had come in at the last sign of progress, and when that was. */
  #seen = 0;
  #seenAt = 0;
  #received = 0;
  #sent = 0;
  #asked = 0;
  #found = 0;
  #turn = 0;
  #fastest = Infinity;

  constructor(options: PeerOptions) {
    this.url = options.url;
    this.#options = options;
    this.#now = options.now ?? (() => performance.now());
  }

  get isUp(): boolean {
    return this.#state === 'up';
  }
  get isLeftOut(): boolean {
    return this.#state === 'out';
  }
  /** The shortest round trip that it was seen to take, milliseconds: of the connection, or of a question. */
  get roundTripMs(): number {
    return Math.min(this.#fastest, this.#stream?.connectMs ?? Infinity);
  }
  get outstanding(): number {
    return this.#stream?.outstanding ?? 0;
  }
  get bytes(): { received: number; sent: number } {
    const live = this.#stream;
    return { received: this.#received + (live?.bytesReceived ?? 0), sent: this.#sent + (live?.bytesSent ?? 0) };
  }

  /** Whether it is worth asking what it has: one that had next to nothing is asked every so often only. */
  get isWorthAsking(): boolean {
    if (this.#asked < SAMPLE || this.#found >= this.#asked * SCARCE) return true;
    return this.#turn++ % SELDOM === 0;
  }

  /** Connects where there is no connection, and none is to be let alone. */
  connect(): void {
    const due = this.#state === 'idle' || (this.#state === 'resting' && this.#now() >= this.#restUntil);
    if (!due || this.#abort.signal.aborted) return;
    this.#state = 'connecting';
    this.#options.connect(this.url, this.#abort.signal).then(
      (stream) => this.#connected(stream),
      (error: unknown) => this.#failed(asPagetideError(error)),
    );
  }

  /** @returns false when it can't be asked now; `done` is not called then */
  have(tags: Uint8Array, done: HaveCallback): boolean {
    const count = tags.length / TAG_BYTES;
    const begun = this.#now();
    const counted: HaveCallback = (present, error) => {
      if (present !== undefined) {
        this.#fastest = Math.min(this.#fastest, this.#now() - begun);
        this.#countFound(count, present);
      }
      done(present, error);
    };
    return this.#ask((stream) => stream.have(tags, counted));
  }

  /** @returns false when it can't be asked now; `done` is not called then */
  pages(tags: Uint8Array, done: PagesCallback): boolean {
    return this.#ask((stream) => stream.pages(tags, done));
  }

  /** Finds out anew how long a round trip takes, where nothing else is under way: asks for a page that nobody has. */
  measure(): void {
    if (this.outstanding > 0) return;
    const begun = this.#now();
    this.#ask((stream) =>
      stream.have(NOBODYS, (present) => {
        if (present !== undefined) this.#fastest = Math.min(this.#fastest, this.#now() - begun);
      }),
    );
  }

  /** A page that it sent did not have its tag. */
  sentWrong(pages: number): void {
    this.wrong += pages;
    if (this.wrong < MOST_WRONG || this.#state === 'out') return;
    const error = new PagetideError(
      'PT_PAGE_MISMATCH',
      `${this.url} sent ${this.wrong} pages that are not those of their tags`,
    );
    this.#leaveOut(error);
  }

  /** To be called now and then: connects again what has rested, gives up what is silent. */
  look(): void {
    if (this.#state === 'resting') this.connect();
    const stream = this.#stream;
    if (stream === undefined) return;
    const { bytesReceived: received } = stream;
    if (stream.outstanding === 0 || received !== this.#seen) this.#seenAt = this.#now();
    this.#seen = received;
    if (this.#now() - this.#seenAt > this.#options.waitMs) this.#drop(stream);
  }

  /** Ends it; what was asked for is answered by an error. */
  close(): void {
    this.#abort.abort();
    const stream = this.#stream;
    if (this.#state !== 'out') this.#state = 'idle';
    this.#forget();
    stream?.close();
  }

  #ask(ask: (stream: TagStream) => boolean): boolean {
    const stream = this.#stream;
    if (stream === undefined || this.#state !== 'up') return false;
    if (stream.outstanding === 0) this.#seenAt = this.#now();
    return ask(stream);
  }

  #connected(stream: TagStream): void {
    if (this.#state !== 'connecting' || this.#abort.signal.aborted) {
      stream.close();
      return;
    }
    this.#state = 'up';
    this.#stream = stream;
    this.#seen = 0;
    this.#seenAt = this.#now();
    stream.onClose = (error) => {
      if (this.#stream !== stream) return;
      if (stream.bytesReceived > 0) this.#rests = 0;
      this.#forget();
      this.#failed(error ?? new PagetideError('PT_PEER_UNREACHABLE', 'it was too slow'));
      this.#options.onChange?.();
    };
    this.#options.onChange?.();
  }

  #failed(error: PagetideError): void {
    if (this.#state === 'out' || this.#abort.signal.aborted) return;
    if (FINAL.has(error.code)) {
      this.#leaveOut(error);
      return;
    }
    this.#state = 'resting';
    this.#restUntil = this.#now() + this.#restMs(this.#rests++);
  }

  /** Too slow. The rest grows with each time: a peer that answers, and stops again, is of little use. */
  #drop(stream: TagStream): void {
    const rests = this.#rests;
    stream.close();
    // its callbacks come by the event loop; until then it is not asked any more
    this.#state = 'resting';
    this.#restUntil = this.#now() + this.#restMs(rests);
    this.#rests = rests + 1;
    this.#forget();
    this.#options.onChange?.();
  }

  #restMs(rests: number): number {
    return Math.min(this.#options.mostRestMs ?? LAST_REST_MS, FIRST_REST_MS * 2 ** Math.min(rests, 10));
  }

  #leaveOut(error: PagetideError): void {
    this.#state = 'out';
    const stream = this.#stream;
    this.#forget();
    stream?.close();
    this.#options.onLeftOut?.(this.url, error);
    this.#options.onChange?.();
  }

  #forget(): void {
    const stream = this.#stream;
    this.#stream = undefined;
    if (stream === undefined) return;
    this.#received += stream.bytesReceived;
    this.#sent += stream.bytesSent;
  }

  #countFound(count: number, present: Uint8Array): void {
    this.#asked += count;
    for (const byte of present) for (let bits = byte; bits !== 0; bits &= bits - 1) this.#found++;
    // what it had long ago says less than what it had just now
    if (this.#asked < 8 * SAMPLE) return;
    this.#asked /= 2;
    this.#found /= 2;
  }
}
