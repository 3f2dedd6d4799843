/** What the transport's tests share: a guest memory file, a page server over it, and things to wait for. */
import { randomBytes } from 'node:crypto';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import {
  connectPages,
  type ConnectOptions,
  type PageConnection,
  type PageHandlers,
} from '../../src/transport/page-client.ts';
import { PageServer, type PageServerOptions } from '../../src/transport/page-server.ts';
import { FrameDecoder, type Channel, type FrameType, type Reader } from '../../src/transport/wire.ts';

export const PAGE = 4096;
export const TOKEN = 'the-secret-of-this-test-0123456789';

/** Tap's part that is used here. */
interface Test {
  teardown(fn: () => unknown): unknown;
}

export function folder(t: Test): string {
  const path = mkdtempSync(join(tmpdir(), 'pt-transport-'));
  t.teardown(() => rmSync(path, { recursive: true, force: true }));
  return path;
}

/** Memory with every kind of page: random ones, ones that compress, zero ones (each fifth frame). */
export function memory(frames: number): Buffer {
  const bytes = Buffer.alloc(frames * PAGE);
  for (let frame = 0; frame < frames; frame++) {
    const at = frame * PAGE;
    if (frame % 5 === 0) continue;
    if (frame % 2 === 0) bytes.fill(`frame ${frame} `, at, at + PAGE);
    else randomBytes(PAGE).copy(bytes, at);
  }
  return bytes;
}

export interface Source {
  server: PageServer;
  url: string;
  file: string;
  bytes: Buffer;
  frames: number;
  folder: string;
}

/** A page server with one guest on offer; over TLS to `destination`. */
export async function source(
  t: Test,
  frames = 256,
  migration = 'm1',
  options: Partial<PageServerOptions> = {},
  destination?: string,
): Promise<Source> {
  const path = folder(t);
  const server = await PageServer.start({
    host: '127.0.0.1',
    port: 0,
    controlSocket: join(path, 'control'),
    ...options,
  });
  t.teardown(() => server.close());
  const file = join(path, 'ram');
  const bytes = memory(frames);
  writeFileSync(file, bytes);
  await server.offer({
    migration,
    token: TOKEN,
    pageSize: PAGE,
    frames,
    files: [{ path: file, size: bytes.length, offset: 0 }],
    destination,
  });
  return { server, url: server.address().url, file, bytes, frames, folder: path };
}

export async function open(
  t: Test,
  from: Source,
  channel: Channel,
  handlers: PageHandlers = {},
  options: Partial<ConnectOptions> = {},
): Promise<PageConnection> {
  const connection = await connectPages({
    url: from.url,
    migration: 'm1',
    token: TOKEN,
    channel,
    pageSize: PAGE,
    frames: from.frames,
    handlers,
    ...options,
  });
  t.teardown(() => connection.close());
  return connection;
}

/** A promise with its handles, to wait for what a callback brings. */
export interface Deferred<T> {
  promise: Promise<T>;
  resolve(value: T): void;
  reject(error: unknown): void;
}
export function deferred<T = void>(): Deferred<T> {
  let resolve!: (value: T) => void;
  let reject!: (error: unknown) => void;
  const promise = new Promise<T>((yes, no) => {
    resolve = yes;
    reject = no;
  });
  return { promise, resolve, reject };
}

/** One page through a connection whose `onPage` is this collector's. */
export class PageCollector {
  readonly pages = new Map<number, Buffer>();
  readonly errors = new Map<number, Error>();
  closed = deferred<Error | undefined>();
  #waiting: (() => void)[] = [];

  readonly handlers: PageHandlers = {
    onPage: (frame, buffer, byteOffset, isZero) => {
      // a copy: the buffer is the connection's
      this.pages.set(frame, isZero ? Buffer.alloc(PAGE) : Buffer.from(buffer.subarray(byteOffset, byteOffset + PAGE)));
      this.#wake();
    },
    onPageError: (frame, error) => {
      this.errors.set(frame, error);
      this.#wake();
    },
    onClose: (error) => {
      this.closed.resolve(error);
      this.#wake();
    },
  };

  /** Waits until `count` answers came, pages or errors. */
  async answers(count: number): Promise<void> {
    while (this.pages.size + this.errors.size < count)
      await new Promise<void>((resolve) => this.#waiting.push(resolve));
  }

  #wake(): void {
    for (const waiting of this.#waiting.splice(0)) waiting();
  }
}

/** Waits until something is so. Looks once a millisecond: spinning would take the core that the page server needs. */
export async function until(condition: () => boolean): Promise<void> {
  while (!condition()) await new Promise((resolve) => setTimeout(resolve, 1));
}

export interface Frame {
  type: FrameType;
  flags: number;
  stream: number;
  argument: number;
  payload: Buffer;
}

/** What the other side makes of a frame that comes in two pieces. */
export function receive(reader: Reader, bytes: Buffer, cut: number): Frame {
  const got: Frame[] = [];
  const decoder = new FrameDecoder(reader, PAGE, (type, flags, stream, argument, buffer, offset, length) => {
    got.push({ type, flags, stream, argument, payload: Buffer.from(buffer.subarray(offset, offset + length)) });
  });
  decoder.feed(bytes.subarray(0, cut));
  decoder.feed(bytes.subarray(cut));
  return got[0]!;
}
