/**
 * What goes over the links of a network, recorded by bench/reference/link-recorder.c:
 *
 *   counters   of all hosts every few milliseconds; for whole experiments. Three hosts every 5 ms take 3 to 5% of a core
 *   capture    each frame of one host, stamped by the kernel; for proofs. Peaks over any window are exact. About 4 µs a frame: some
 *              15% of a core at 350 Mbit/s
 *
 * Sizes are those of Ethernet frames without their check sum, as the buckets count them. Stamps are nanoseconds of CLOCK_MONOTONIC,
 * the clock of `process.hrtime` and, in milliseconds, of {@link monotonicMs}, the same in all processes of the machine.
 */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdirSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { PagetideError } from '../../../src/errors.ts';
import { buildReferences } from '../references.ts';
import { folderOf, MARK } from './names.ts';
import { DEVICE, type Network, type NetworkHost } from './network.ts';

/** Milliseconds of the clock of all stamps here. */
export function monotonicMs(): number {
  return Number(process.hrtime.bigint()) / 1e6;
}

/** One host's counters; index i of all arrays is one look. */
export interface Counters {
  /** Milliseconds, see {@link monotonicMs}. */
  atMs: Float64Array;
  /** Since the interface is there. */
  bytesIn: Float64Array;
  framesIn: Float64Array;
  bytesOut: Float64Array;
  framesOut: Float64Array;
}

/** Frames of one host's link; index i of all arrays is one frame. Not strictly sorted: each direction is. */
export interface Frames {
  /** Milliseconds, see {@link monotonicMs}. */
  atMs: Float64Array;
  bytes: Uint32Array;
  /** 1: sent by the host, 0: received. */
  out: Uint8Array;
  /** IPv4's byte of DSCP and ECN; 0 for other frames. */
  tos: Uint8Array;
  /** IPv4 address of the other side as a number, first byte highest; 0 for what isn't IPv4. */
  peer: Uint32Array;
  sourcePort: Uint16Array;
  destinationPort: Uint16Array;
  /** Frames that were not recorded: the socket had no room. Anything but 0: the capture proves nothing. */
  missed: number;
}

export interface Recorder<T> {
  /** Of the recording process. */
  readonly pid: number;
  /** Ends it; everything until now is in what it resolves to. May be called again. */
  stop(): Promise<T>;
}

const COUNTER_BYTES = 40;
const FRAME_BYTES = 24;

/** Counts at all hosts' links, every `intervalMs`. Resolves when it counts. The index of the result is the host's number less 1. */
export async function startCounters(network: Network, intervalMs = 5): Promise<Recorder<Counters[]>> {
  const namespaces = network.hosts.map(({ namespace }) => namespace);
  const options = {
    mode: 'counters',
    namespaces: namespaces.join(','),
    'interval-us': String(Math.round(intervalMs * 1000)),
  };
  return start(network, options, (records) => {
    const count = namespaces.length;
    const looks = Math.floor(records.length / COUNTER_BYTES / count);
    return namespaces.map((_, host) => {
      const column = (field: number): Float64Array =>
        Float64Array.from({ length: looks }, (_, i) =>
          Number(records.readBigUInt64LE((i * count + host) * COUNTER_BYTES + field * 8)),
        );
      const atMs = column(0).map((ns) => ns / 1e6);
      return { atMs, bytesIn: column(1), framesIn: column(2), bytesOut: column(3), framesOut: column(4) };
    });
  });
}

/** Captures a host's link. Resolves when each frame from now on is recorded. */
export async function startCapture(network: Network, host: NetworkHost): Promise<Recorder<Frames>> {
  return start(network, { mode: 'capture', namespaces: host.namespace }, (records, missed) => {
    const length = Math.floor(records.length / FRAME_BYTES);
    const field =
      <T>(of: { from(source: { length: number }, map: (v: unknown, i: number) => number): T }) =>
      (read: (at: number) => number): T =>
        of.from({ length }, (_, i) => read(i * FRAME_BYTES));
    return {
      atMs: field(Float64Array)((at) => Number(records.readBigUInt64LE(at)) / 1e6),
      bytes: field(Uint32Array)((at) => records.readUInt32LE(at + 8)),
      peer: field(Uint32Array)((at) => records.readUInt32LE(at + 12)),
      sourcePort: field(Uint16Array)((at) => records.readUInt16LE(at + 16)),
      destinationPort: field(Uint16Array)((at) => records.readUInt16LE(at + 18)),
      out: field(Uint8Array)((at) => records.readUInt8(at + 22)),
      tos: field(Uint8Array)((at) => records.readUInt8(at + 23)),
      missed,
    };
  });
}

async function start<T>(
  network: Network,
  options: Record<string, string>,
  parse: (records: Buffer, missed: number) => T,
): Promise<Recorder<T>> {
  const program = join(buildReferences(), 'link-recorder');
  // on tmpfs, and gone with the network
  mkdirSync(folderOf(network.name), { recursive: true, mode: 0o700 });
  const folder = mkdtempSync(join(folderOf(network.name), 'record-'));
  const out = join(folder, 'records');
  const args = Object.entries({ ...options, device: DEVICE, out }).flatMap(([key, value]) => [`--${key}`, value]);
  const env = { ...process.env, [MARK]: folderOf(network.name) };
  const child = spawn(program, args, { stdio: ['pipe', 'pipe', 'inherit'], env, detached: true });
  let said = '';
  const closed = once(child, 'close');
  closed.catch(() => undefined);
  child.stdin.on('error', () => undefined);
  const ready = new Promise<void>((resolve) => {
    child.stdout.setEncoding('utf8').on('data', (text: string) => {
      said += text;
      if (said.includes('\n')) resolve();
    });
  });
  await Promise.race([ready, closed]);
  const failed = (): PagetideError => new PagetideError('PT_IO', `the recorder of links failed: ${said.trim()}`);
  if (!said.includes('"ready"')) {
    rmSync(folder, { recursive: true, force: true });
    throw failed();
  }
  let result: Promise<T> | undefined;
  const stop = async (): Promise<T> => {
    child.stdin.end();
    try {
      await closed;
      const done = said.trim().split('\n').at(-1)!;
      if (child.exitCode !== 0) throw failed();
      const { missed } = JSON.parse(done) as { missed: number };
      return parse(readFileSync(out), missed);
    } finally {
      rmSync(folder, { recursive: true, force: true });
    }
  };
  return { pid: child.pid!, stop: () => (result ??= stop()) };
}

/** The most bytes in any window of `windowMs`, exact: of frames at `atMs`, which ascends. `atMs` of the result: where it begins. */
export function peak(
  atMs: ArrayLike<number>,
  bytes: ArrayLike<number>,
  windowMs = 100,
): { bytes: number; atMs: number } {
  let [first, sum] = [0, 0];
  let most = { bytes: 0, atMs: atMs[0] ?? 0 };
  for (let i = 0; i < atMs.length; i++) {
    sum += bytes[i]!;
    while (atMs[i]! - atMs[first]! >= windowMs) sum -= bytes[first++]!;
    if (sum > most.bytes) most = { bytes: sum, atMs: atMs[first]! };
  }
  return most;
}

/**
 * The same of a counter, over windows that end at a look. Between two looks the counter is taken to have grown evenly, so this is
 * exact but for what one interval carried.
 */
export function counterPeak(
  atMs: ArrayLike<number>,
  counter: ArrayLike<number>,
  windowMs = 100,
): { bytes: number; atMs: number } {
  let first = 0;
  let most = { bytes: 0, atMs: atMs[0] ?? 0 };
  for (let i = 0; i < atMs.length; i++) {
    const start = atMs[i]! - windowMs;
    while (first + 1 < i && atMs[first + 1]! <= start) first++;
    const next = Math.min(first + 1, i);
    const span = atMs[next]! - atMs[first]!;
    const share = span === 0 ? 0 : Math.min(1, Math.max(0, (start - atMs[first]!) / span));
    const before = counter[first]! + share * (counter[next]! - counter[first]!);
    if (counter[i]! - before > most.bytes) most = { bytes: counter[i]! - before, atMs: start };
  }
  return most;
}

/** Of frames, those sent (`out`) or received, in order of time. */
export function oneWay(frames: Frames, out: boolean): { atMs: Float64Array; bytes: Uint32Array } {
  const picked = [...frames.out.keys()].filter((i) => (frames.out[i] === 1) === out);
  return {
    atMs: Float64Array.from(picked, (i) => frames.atMs[i]!),
    bytes: Uint32Array.from(picked, (i) => frames.bytes[i]!),
  };
}
