/**
 * A host that has pages of a domain, as the distribution worker asks it.
 *
 *             ┌────── rest is over ───────┐
 *             ▼                           │
 *   idle ─► connecting ──► up ──────► resting: 1 s, doubled each time that no page came in between; after a wrong page a minute
 *     ▲           └─ fails ─┘ └─ cut, too slow, or wrong
 *     └── nobody needs it ───┘
 */
import type { PagesCallback } from '../transport/tag-client.ts';
import { connectTags, type TagConnection } from '../transport/tag-client.ts';
import type { BringControl } from './bring-control.ts';
import type { BringLimits } from './errand.ts';
import { Carried } from './wire-cost.ts';

/** Requests that it may owe answers to. */
const MOST_REQUESTS = 8;

interface Asked {
  pages: number;
  atMs: number;
}

export class Holder {
  readonly url: string;
  readonly mark: string;
  readonly secure: boolean;
  /** Of the domain key that the connection is being made with. */
  connectingKey = 0;
  readonly #limits: BringLimits;
  readonly #control: BringControl;
  #state: 'idle' | 'connecting' | 'up' | 'resting' = 'idle';
  #connection: TagConnection | undefined;
  #carried = new Carried();
  #abort: AbortController | undefined;
  readonly #asked = new Set<Asked>();
  #pages = 0;
  #total = 0;
  #restUntil = 0;
  #rests = 0;
  #wrongs = 0;
  /** What had come in when something last did, and when that was. */
  #received = 0;
  #sent = 0;
  #progressMs = 0;
  #usedMs = performance.now();

  constructor(url: string, mark: string, limits: BringLimits, control: BringControl) {
    this.url = url;
    this.mark = mark;
    this.secure = url.startsWith('https:');
    this.#limits = limits;
    this.#control = control;
  }

  get state(): 'idle' | 'connecting' | 'up' | 'resting' {
    if (this.#state === 'resting' && performance.now() >= this.#restUntil) this.#state = 'idle';
    return this.#state;
  }
  get canBeAsked(): boolean {
    return this.#state === 'up' && this.#asked.size < MOST_REQUESTS;
  }
  /** Pages that it owes; of holders that owe as many, who has sent less is asked. */
  isLessBusyThan(other: Holder): boolean {
    return this.#pages === other.#pages ? this.#total < other.#total : this.#pages < other.#pages;
  }

  /** @param done once: whether it is up */
  connect(key: number, done: (up: boolean) => void): void {
    this.#state = 'connecting';
    this.connectingKey = key;
    const abort = (this.#abort = new AbortController());
    const { url, mark: domain } = this;
    const timeoutMs = this.#limits.connectMs;
    connectTags({ url, domain, key, timeoutMs, signal: abort.signal, background: true }).then(
      (connection) => {
        if (abort.signal.aborted) connection.close();
        else this.#up(connection);
        done(!abort.signal.aborted);
      },
      () => {
        if (!abort.signal.aborted) this.#rest(this.#limits.restMs, this.#rests++);
        done(false);
      },
    );
  }

  /** Gives up a connection that is being made: whose key it is needs it no more. */
  giveUp(): void {
    if (this.#state !== 'connecting') return;
    this.#abort?.abort();
    this.#state = 'idle';
  }

  /** @returns false when it can't be asked; `done` is not called then */
  ask(tags: Uint8Array, pages: number, done: PagesCallback): boolean {
    if (!this.canBeAsked) return false;
    const asked: Asked = { pages, atMs: performance.now() };
    if (this.#asked.size === 0) this.#progressMs = asked.atMs;
    const sent = this.#connection!.pages(tags, (answer, error) => {
      if (this.#asked.delete(asked)) this.#pages -= pages;
      this.#usedMs = performance.now();
      if (answer !== undefined) this.#rests = 0;
      done(answer, error);
    });
    if (!sent) return false;
    this.#asked.add(asked);
    this.#pages += pages;
    this.#total += pages;
    return true;
  }

  /** Bytes on the wire since this was asked last, of the connection that is up; undefined: nobody knows. */
  carried(): number | undefined {
    return this.#carried.since(this.#connection?.descriptor ?? -1);
  }

  /** It sent a wrong page: it is left out for a while. What it owes is answered by errors. */
  lied(): void {
    const connection = this.#connection;
    this.#rest(this.#limits.wrongRestMs, this.#wrongs++);
    connection?.close();
  }

  /** To be called now and then: ends a connection that is too slow, or that nobody needs. */
  look(nowMs: number, needed: boolean): void {
    const connection = this.#connection;
    if (connection === undefined) return;
    if (connection.bytesReceived !== this.#received) this.#progressMs = nowMs;
    this.#count(connection);
    if (needed) this.#usedMs = nowMs;
    const { waitMs, answerMs, idleMs } = this.#limits;
    const [oldest] = this.#asked;
    if (oldest === undefined) {
      if (nowMs - this.#usedMs > idleMs) this.close();
    } else if (nowMs - this.#progressMs > waitMs || nowMs - oldest.atMs > answerMs) {
      this.#rest(this.#limits.restMs, this.#rests++);
      connection.close();
    }
  }

  /** Ends it; what it owes is answered by errors. */
  close(): void {
    this.giveUp();
    const connection = this.#connection;
    if (connection !== undefined) this.#state = 'idle';
    this.#forget();
    connection?.close();
  }

  #up(connection: TagConnection): void {
    this.#state = 'up';
    this.#connection = connection;
    this.#received = this.#sent = 0;
    this.#carried = new Carried();
    // the connection itself has a cost of its own
    this.carried();
    this.#usedMs = this.#progressMs = performance.now();
    connection.onClose = () => {
      // rests already, or was ended here
      if (this.#connection === connection) this.#rest(this.#limits.restMs, this.#rests++);
    };
  }

  #rest(ms: number, times: number): void {
    this.#state = 'resting';
    this.#restUntil = performance.now() + Math.min(this.#limits.mostRestMs, ms * 2 ** Math.min(times, 20));
    this.#forget();
  }

  #forget(): void {
    const connection = this.#connection;
    this.#connection = undefined;
    if (connection !== undefined) this.#count(connection);
  }

  #count({ bytesReceived, bytesSent }: TagConnection): void {
    this.#control.count(bytesReceived - this.#received, bytesSent - this.#sent);
    this.#received = bytesReceived;
    this.#sent = bytesSent;
  }
}
