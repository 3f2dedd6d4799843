/**
 * Talks to a guest that can check its own memory, over a serial port that QEMU offers as a Unix socket. The lines are
 * described in test/qemu-guest/guest.h; any guest that speaks them will do.
 *
 * Half lines are normal here: one begins where the last listener left, and one that was under way when the guest moved
 * ends on the other host. What doesn't parse is dropped; requests carry ids, heartbeats count.
 */
import { connect, type Socket } from 'node:net';
import { PagetideError } from '../../errors.ts';
import type { VerifyResult } from '../driver.ts';

/** Lines of the protocol have fewer than 256 bytes. */
const MAX_LINE = 1024;
const RECONNECT_MS = 200;
const MASK = (1n << 64n) - 1n;

/** The guest's own heartbeat, as it arrived here. */
export interface Heartbeats {
  firstNumber: number;
  firstUnixMicros: number;
  lastNumber: number;
  lastUnixMicros: number;
}

function mix(x: bigint): bigint {
  x = (x + 0x9e3779b97f4a7c15n) & MASK;
  x = ((x ^ (x >> 30n)) * 0xbf58476d1ce4e5b9n) & MASK;
  x = ((x ^ (x >> 27n)) * 0x94d049bb133111ebn) & MASK;
  return x ^ (x >> 31n);
}

/** What beat `n` must carry, given the beat before it and the guest's operations. */
export function nextChain(previous: bigint, n: number, operations: number): bigint {
  return mix((previous + mix(BigInt(n)) + BigInt(operations)) & MASK);
}

interface Waiter {
  prefix: string;
  resolve: (line: string) => void;
}

export class SelfCheck {
  readonly path: string;
  /** What the heartbeats prove wrong: the chain broke, or the guest went back in time. Never forgotten. */
  readonly complaints: string[] = [];
  longestGapMs: number | null = null;
  operations: number | null = null;
  heartbeats: Heartbeats | undefined;
  #socket: Socket | undefined;
  #retry: NodeJS.Timeout | undefined;
  #closed = false;
  #buffer = '';
  #nextId = 1;
  #waiters = new Set<Waiter>();
  #beatListeners = new Set<() => void>();
  #chain: bigint | undefined;
  #lastNumber: number | undefined;
  /** `performance.now()` of the last beat, ms. */
  #lastAt: number | undefined;

  /** Connects, and connects again whenever the connection is lost, until closed. */
  constructor(path: string) {
    this.path = path;
    this.#connect();
  }

  #connect(): void {
    const socket = connect(this.path);
    this.#socket = socket;
    this.#buffer = '';
    socket.setEncoding('latin1');
    socket.unref();
    socket.on('data', (text: string) => this.#take(text));
    socket.on('error', () => undefined); // 'close' follows
    socket.on('close', () => {
      this.#socket = undefined;
      if (this.#closed) return;
      this.#retry = setTimeout(() => this.#connect(), RECONNECT_MS);
      this.#retry.unref();
    });
  }

  /** Forgets gaps and first beat; what is known of the chain stays. */
  reset(): void {
    this.longestGapMs = null;
    this.heartbeats = undefined;
  }

  /** Resolves with the next heartbeat: the guest runs, and its init is up. */
  async nextBeat(timeoutMs: number): Promise<void> {
    let listener: () => void = () => undefined;
    try {
      await withTimeout(timeoutMs, `no heartbeat on ${this.path}`, (resolve) => {
        listener = () => resolve(undefined);
        this.#beatListeners.add(listener);
      });
    } finally {
      this.#beatListeners.delete(listener);
    }
  }

  /** Asks the guest to check every page of its own. The guest must be running. */
  async verify(timeoutMs: number): Promise<VerifyResult> {
    const line = await this.#ask('verify', 'verified', '', timeoutMs);
    const [verdict, count = '0', ...pages] = line.split(' ');
    if (verdict === 'ok') {
      const ok = this.complaints.length === 0;
      return { ok, checked: Number(count), bad: [], ...(ok ? {} : { detail: this.complaints.join('; ') }) };
    }
    return {
      ok: false,
      checked: 0,
      bad: pages.map(Number),
      detail: [`the guest found ${count} wrong pages of its own`, ...this.complaints].join('; '),
    };
  }

  /** How many pages the guest checks, how many it has rewritten, by how many threads, at which rate a second. */
  async stats(timeoutMs: number): Promise<{ pages: number; operations: number; workers: number; rate: number }> {
    const [pages, operations, workers, rate] = (await this.#ask('stats', 'stats', '', timeoutMs))
      .split(' ')
      .map(Number);
    return { pages: pages!, operations: operations!, workers: workers!, rate: rate! };
  }

  /** Sets how many pages a second the guest rewrites. */
  async setRate(rate: number, timeoutMs: number): Promise<void> {
    await this.#ask('rate', 'rate', ` ${rate}`, timeoutMs);
  }

  /** Idempotent. */
  close(): void {
    this.#closed = true;
    clearTimeout(this.#retry);
    this.#socket?.destroy();
  }

  async #ask(request: string, answer: string, rest: string, timeoutMs: number): Promise<string> {
    const id = this.#nextId++;
    const prefix = `${answer} ${id} `;
    let waiter: Waiter | undefined;
    try {
      return await withTimeout<string>(
        timeoutMs,
        `the guest did not answer \`${request}\` on ${this.path}`,
        (resolve) => {
          waiter = { prefix, resolve };
          this.#waiters.add(waiter);
          // The line before ours may have been cut off half-way by another listener's end; a newline of our own ends it.
          this.#socket?.write(`\n${request} ${id}${rest}\n`);
        },
      );
    } finally {
      if (waiter) this.#waiters.delete(waiter);
    }
  }

  #take(text: string): void {
    const now = performance.now();
    this.#buffer += text;
    const lines = this.#buffer.split('\n');
    this.#buffer = lines.pop()!.slice(-MAX_LINE);
    for (const line of lines) this.#line(line.replace(/\r$/, ''), now);
  }

  #line(line: string, now: number): void {
    const beat = /^beat (\d{1,15}) ([0-9a-f]{1,16}) (\d{1,15})$/.exec(line);
    if (beat) {
      this.#beat(Number(beat[1]), BigInt(`0x${beat[2]!}`), Number(beat[3]), now);
    } else if (/^wrong \d+ \d+$/.test(line)) {
      this.complaints.push(`the guest met a wrong page: ${line}`);
    } else {
      for (const waiter of this.#waiters) {
        if (line.startsWith(waiter.prefix)) waiter.resolve(line.slice(waiter.prefix.length));
      }
    }
  }

  #beat(n: number, chain: bigint, operations: number, now: number): void {
    const last = this.#lastNumber;
    if (last !== undefined && n <= last)
      this.complaints.push(`heartbeat ${n} came after ${last}: the guest went back in time`);
    if (last !== undefined && n === last + 1 && nextChain(this.#chain!, n, operations) !== chain) {
      this.complaints.push(`the chain of heartbeats broke at ${n}`);
    }
    if (this.#lastAt !== undefined) this.longestGapMs = Math.max(this.longestGapMs ?? 0, now - this.#lastAt);
    const unixMicros = Math.round((performance.timeOrigin + now) * 1000);
    this.heartbeats ??= { firstNumber: n, firstUnixMicros: unixMicros, lastNumber: n, lastUnixMicros: unixMicros };
    this.heartbeats.lastNumber = n;
    this.heartbeats.lastUnixMicros = unixMicros;
    this.operations = operations;
    this.#lastNumber = n;
    this.#chain = chain;
    this.#lastAt = now;
    for (const listener of [...this.#beatListeners]) listener();
  }
}

function withTimeout<T>(timeoutMs: number, what: string, start: (resolve: (value: T) => void) => void): Promise<T> {
  return new Promise<T>((resolve, reject) => {
    const timer = setTimeout(
      () => reject(new PagetideError('PT_VMM_TIMEOUT', `${what} within ${timeoutMs} ms`)),
      timeoutMs,
    );
    start((value) => {
      clearTimeout(timer);
      resolve(value);
    });
  });
}
