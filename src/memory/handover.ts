/**
 * Receiving a userfaultfd from a VMM, as Firecracker sends it.
 *
 *   VMM                                   pager
 *    │  connect to a Unix socket            │  listens before the VMM is told to load
 *    │  ── one JSON array, one fd ────────► │  may come in pieces; the fd comes with the first
 *    │                                      │  nothing is answered, ever
 *    │  keeps the connection open           │  its end means that the VMM is gone
 *
 *   [{"base_host_virt_addr": u64, "size": bytes, "offset": bytes, "page_size": bytes, "page_size_kib": bytes}, …]
 *
 * `page_size_kib` holds bytes in spite of its name; older VMMs send only that one. Other fields are ignored.
 */
import { readlinkSync, rmSync } from 'node:fs';
import { z } from 'zod';
import { PagetideError, asPagetideError } from '../errors.ts';
import { native, type FdWatcher, type MemoryRegion } from './native.ts';

/** The longest message that is read. */
export const MAX_HANDOVER_BYTES = 64 * 1024;
/** User-space addresses on x86-64 and (by default) arm64 lie below this, and so fit a JavaScript number exactly. */
const ADDRESS_LIMIT = 2 ** 47;
const LARGEST_PAGE = 2 ** 30;
/** Connections that have not sent their message, and hand-overs that nobody has asked for. */
const MOST_WAITING = 64;

const regionShape = z.object({
  base_host_virt_addr: z.int().nonnegative(),
  size: z.int().positive(),
  offset: z.int().nonnegative(),
  page_size: z.int().positive().optional(),
  page_size_kib: z.int().positive().optional(),
});

/** What the message says. */
export interface HandoverMessage {
  /** In the order of their offsets. */
  regions: MemoryRegion[];
  /** Bytes. */
  pageSize: number;
}

/** A VMM's userfaultfd and what it covers. Whoever takes it owns both descriptors. */
export interface Handover extends HandoverMessage {
  uffd: number;
  /** The VMM's process, by the socket's credentials. */
  pid: number;
  /** The connection; readable when the VMM is gone. */
  connection: number;
}

function invalid(why: string, cause?: unknown): PagetideError {
  return new PagetideError('PT_HANDOVER_INVALID', `hand-over refused: ${why}`, cause === undefined ? {} : { cause });
}

function overlap(regions: MemoryRegion[], by: 'hostAddress' | 'offset'): boolean {
  const sorted = regions.toSorted((a, b) => a[by] - b[by]);
  return sorted.some((region, i) => i > 0 && sorted[i - 1]![by] + sorted[i - 1]!.size > region[by]);
}

/**
 * Reads and checks the regions of a hand-over message.
 * @throws PT_HANDOVER_INVALID, PT_HANDOVER_TOO_LARGE
 */
export function parseHandover(text: string): HandoverMessage {
  if (text.length > MAX_HANDOVER_BYTES) throw tooLarge();
  let json: unknown;
  try {
    json = JSON.parse(text);
  } catch (error) {
    throw invalid('the message is no JSON', error);
  }
  const parsed = z.array(regionShape).min(1).safeParse(json);
  if (!parsed.success) {
    const issue = parsed.error.issues[0]!;
    throw invalid(`${issue.path.map(String).join('.') || 'the message'}: ${issue.message}`);
  }
  const pageSizes = new Set(parsed.data.map((region) => region.page_size ?? region.page_size_kib));
  const [pageSize] = pageSizes;
  if (pageSize === undefined || pageSizes.size !== 1) throw invalid('regions lack a page size, or differ in it');
  if (pageSize < 4096 || pageSize > LARGEST_PAGE || !Number.isInteger(Math.log2(pageSize))) {
    throw invalid(`page size ${pageSize} is no power of two from 4096 to ${LARGEST_PAGE}`);
  }
  const regions = parsed.data.map((region) => {
    const { base_host_virt_addr: hostAddress, size, offset } = region;
    if (size % pageSize !== 0) throw invalid(`size ${size} is no multiple of the page size ${pageSize}`);
    if (hostAddress % pageSize !== 0) throw invalid(`address ${hostAddress} is not aligned to the page size`);
    if (offset % pageSize !== 0) throw invalid(`offset ${offset} is not aligned to the page size`);
    if (hostAddress === 0 || hostAddress + size > ADDRESS_LIMIT)
      throw invalid(`address ${hostAddress} is out of range`);
    if (!Number.isSafeInteger(offset + size)) throw invalid(`offset ${offset} is out of range`);
    return { hostAddress, size, offset };
  });
  if (overlap(regions, 'hostAddress')) throw invalid('regions overlap in address');
  if (overlap(regions, 'offset')) throw invalid('regions overlap in offset');
  return { regions: regions.sort((a, b) => a.offset - b.offset), pageSize };
}

function tooLarge(): PagetideError {
  return new PagetideError(
    'PT_HANDOVER_TOO_LARGE',
    `hand-over refused: the message exceeds ${MAX_HANDOVER_BYTES} bytes`,
  );
}

/** Finds where a JSON array ends, as its bytes come, without parsing it again for each piece. */
export class ArrayScanner {
  #depth = 0;
  #inString = false;
  #escaped = false;
  #ended = false;

  /**
   * Takes the next bytes. Returns true once the array is whole.
   * @throws PT_HANDOVER_INVALID where the bytes begin with something else, or go on behind the array's end
   */
  push(bytes: Uint8Array): boolean {
    for (const byte of bytes) this.#take(byte);
    return this.#ended;
  }

  #take(byte: number): void {
    if (this.#inString) {
      if (this.#escaped) this.#escaped = false;
      else if (byte === 0x5c) this.#escaped = true;
      else if (byte === 0x22) this.#inString = false;
      return;
    }
    const blank = byte === 0x20 || (byte >= 9 && byte <= 13);
    if (blank) return;
    if (this.#ended) throw invalid('bytes follow the message');
    const opens = byte === 0x5b || byte === 0x7b;
    if (this.#depth === 0 && byte !== 0x5b) throw invalid('the message is no JSON array');
    if (byte === 0x22) this.#inString = true;
    else if (opens) this.#depth++;
    else if (byte === 0x5d || byte === 0x7d) this.#ended = --this.#depth === 0;
  }
}

/** A connection that has not sent its whole message. */
interface Arriving {
  fd: number;
  pid: number;
  watcher: FdWatcher;
  timer: NodeJS.Timeout;
  pieces: Buffer[];
  bytes: number;
  fds: number[];
  scanner: ArrayScanner;
}

export interface HandoverListenerOptions {
  /** How long a VMM may take from connecting to the end of its message; 5 s unless told. */
  timeoutMs?: number;
}

/**
 * Listens for VMMs that hand their userfaultfd over: any number of them, one after the other or at once.
 * A refused one is told by its connection's end; the listener goes on.
 */
export class HandoverListener {
  readonly path: string;
  readonly #timeoutMs: number;
  readonly #listener: number;
  readonly #watcher: FdWatcher;
  readonly #arriving = new Set<Arriving>();
  /** What came while nobody waited. */
  readonly #outcomes: (Handover | PagetideError)[] = [];
  readonly #waiting: { resolve: (handover: Handover) => void; reject: (error: PagetideError) => void }[] = [];
  readonly #buffer = Buffer.allocUnsafe(MAX_HANDOVER_BYTES);
  #closed = false;

  /** @throws PT_SOCKET_IN_USE */
  constructor(path: string, options: HandoverListenerOptions = {}) {
    this.path = path;
    this.#timeoutMs = options.timeoutMs ?? 5000;
    this.#listener = native().listenUnix(path);
    try {
      this.#watcher = native().watch(this.#listener, () => this.#accept());
    } catch (error) {
      native().close(this.#listener);
      rmSync(path, { force: true });
      throw error;
    }
  }

  /**
   * The next hand-over, in the order in which they were completed. Rejects where one was refused meanwhile (the
   * listener goes on; ask again), with `PT_VMM_TIMEOUT` after `timeoutMs`, with `PT_CANCELLED` when closed.
   */
  next(timeoutMs?: number): Promise<Handover> {
    const ready = this.#outcomes.shift();
    if (ready instanceof PagetideError) return Promise.reject(ready);
    if (ready !== undefined) return Promise.resolve(ready);
    if (this.#closed) return Promise.reject(closedError());
    return new Promise((resolve, reject) => {
      const waiter = {
        resolve: (handover: Handover) => {
          clearTimeout(timer);
          resolve(handover);
        },
        reject: (error: PagetideError) => {
          clearTimeout(timer);
          reject(error);
        },
      };
      const late = () => {
        this.#waiting.splice(this.#waiting.indexOf(waiter), 1);
        reject(new PagetideError('PT_VMM_TIMEOUT', `no VMM handed its memory over within ${timeoutMs ?? 0} ms`));
      };
      const timer = timeoutMs === undefined ? undefined : setTimeout(late, timeoutMs);
      this.#waiting.push(waiter);
    });
  }

  /** Stops listening, drops what nobody has taken, and removes the socket. Idempotent. */
  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#watcher.close();
    native().close(this.#listener);
    rmSync(this.path, { force: true });
    for (const arriving of this.#arriving) this.#drop(arriving);
    for (const outcome of this.#outcomes.splice(0)) {
      if (!(outcome instanceof PagetideError)) closeHandover(outcome);
    }
    for (const waiter of this.#waiting.splice(0)) waiter.reject(closedError());
  }

  #accept(): void {
    for (;;) {
      let fd: number;
      try {
        fd = native().accept(this.#listener);
      } catch (error) {
        this.#deliver(asPagetideError(error, 'PT_SYSCALL', 'accepting a hand-over'));
        return;
      }
      if (fd < 0) return;
      if (this.#arriving.size + this.#outcomes.length >= MOST_WAITING) {
        native().close(fd);
        continue;
      }
      this.#begin(fd);
    }
  }

  #begin(fd: number): void {
    try {
      const arriving: Arriving = {
        fd,
        pid: native().peerPid(fd),
        watcher: native().watch(fd, () => this.#receive(arriving)),
        timer: setTimeout(() => {
          this.#refuse(arriving, invalid(`the message was not whole after ${this.#timeoutMs} ms`));
        }, this.#timeoutMs),
        pieces: [],
        bytes: 0,
        fds: [],
        scanner: new ArrayScanner(),
      };
      this.#arriving.add(arriving);
    } catch (error) {
      native().close(fd);
      this.#deliver(asPagetideError(error, 'PT_SYSCALL', 'accepting a hand-over'));
    }
  }

  #receive(arriving: Arriving): void {
    try {
      for (;;) {
        const { bytes, fds } = native().receive(arriving.fd, this.#buffer);
        arriving.fds.push(...fds);
        if (bytes < 0) return;
        if (bytes === 0 && arriving.bytes === 0) {
          // Nobody's attempt: somebody has looked whether anyone listens here.
          this.#drop(arriving);
          return;
        }
        if (bytes === 0) throw invalid('the VMM closed the connection before its message was whole');
        arriving.bytes += bytes;
        if (arriving.bytes > MAX_HANDOVER_BYTES) throw tooLarge();
        const piece = Buffer.from(this.#buffer.subarray(0, bytes));
        arriving.pieces.push(piece);
        if (!arriving.scanner.push(piece)) continue;
        this.#finish(arriving);
        return;
      }
    } catch (error) {
      this.#refuse(arriving, asPagetideError(error, 'PT_HANDOVER_INVALID', 'hand-over refused'));
    }
  }

  /** The message is whole: checks it, and parts with the connection and its first descriptor. */
  #finish(arriving: Arriving): void {
    const message = parseHandover(Buffer.concat(arriving.pieces).toString('utf8'));
    const uffd = arriving.fds[0];
    if (uffd === undefined) throw invalid('no descriptor came with the message');
    if (!isUserfault(uffd)) throw invalid('the descriptor that came with the message is no userfaultfd');
    arriving.fds.shift();
    const connection = arriving.fd;
    this.#drop(arriving, { keepConnection: true });
    this.#deliver({ ...message, uffd, pid: arriving.pid, connection });
  }

  #refuse(arriving: Arriving, error: PagetideError): void {
    this.#drop(arriving);
    this.#deliver(error);
  }

  #drop(arriving: Arriving, { keepConnection = false } = {}): void {
    clearTimeout(arriving.timer);
    arriving.watcher.close();
    this.#arriving.delete(arriving);
    for (const fd of arriving.fds.splice(0)) native().close(fd);
    if (!keepConnection) native().close(arriving.fd);
  }

  #deliver(outcome: Handover | PagetideError): void {
    const waiter = this.#waiting.shift();
    if (waiter === undefined) this.#outcomes.push(outcome);
    else if (outcome instanceof PagetideError) waiter.reject(outcome);
    else waiter.resolve(outcome);
    // Refusals that nobody asks about must not pile up.
    if (this.#outcomes.length > MOST_WAITING) this.#outcomes.splice(this.#outcomes.findIndex(isRefusal), 1);
  }
}

function isRefusal(outcome: Handover | PagetideError): boolean {
  return outcome instanceof PagetideError;
}

function isUserfault(fd: number): boolean {
  return readlinkSync(`/proc/self/fd/${fd}`) === 'anon_inode:[userfaultfd]';
}

function closedError(): PagetideError {
  return new PagetideError('PT_CANCELLED', 'the hand-over socket was closed', { hint: 'Listen again.' });
}

/** Closes the descriptors of a hand-over that won't be used. */
export function closeHandover(handover: Handover): void {
  native().close(handover.uffd);
  native().close(handover.connection);
}
