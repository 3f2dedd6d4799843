/**
 * Runs hits through the real fault service in a process of its own, and prints what they left on the JavaScript heap.
 *
 *   node --expose-gc --min-semi-space-size=64 --max-semi-space-size=64 hit-loop.js fake|single|leaky|real|cached HITS FOLDER
 *
 * fake: faults of a session without a kernel, 64 a read: what the service itself allocates. single: one a read. leaky: the same, and each hit leaves
 * one small object, which the measurement has to notice. real: memory of this process, registered with a userfaultfd
 * and touched by another thread: what the calls of the native shim allocate on top. cached: the same, pages from the
 * shared-page cache.
 */
import { readFileSync, truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { PerformanceObserver } from 'node:perf_hooks';
import { getHeapSpaceStatistics } from 'node:v8';
import { Worker } from 'node:worker_threads';
import { FaultService } from '../../src/memory/fault-service.ts';
import type { CachedFileSpec } from '../../src/memory/cached-file.ts';
import { openLocalPages, type LocalPages } from '../../src/memory/local-pages.ts';
import { FrameState, Outcome, WaitField, WaitFlag, native, type FaultSession } from '../../src/memory/native.ts';
import { Serving } from '../../src/memory/serving.ts';
import { PageCache } from '../../src/pages/cache.ts';
import { DomainKey, TAG_BYTES } from '../../src/pages/tags.ts';

export interface HitFigures {
  /** Hits a window. */
  hits: number;
  /** Bytes that the hits of the best window left in new space. */
  bytes: number;
  /** Windows without a collection; one would hide what was allocated before it. */
  windows: number;
}

const PAGE = 4096;
const WINDOWS = 8;

/** When each collection began, milliseconds; told with the event loop, so later. */
const collected: number[] = [];
new PerformanceObserver((list) => {
  for (const entry of list.getEntries()) collected.push(entry.startTime);
}).observe({ entryTypes: ['gc'] });

function young(): number {
  let bytes = 0;
  for (const space of getHeapSpaceStatistics()) if (space.space_name.startsWith('new_')) bytes += space.space_used_size;
  return bytes;
}

/**
 * Counts the faults of `wait`, looks at the heap window by window, and stops the service after the last. The best window
 * counts: what each hit allocates shows in all of them, what the compiler does until the loop is optimized only in some.
 */
class Probe {
  private readonly hits: number;
  private seen = 0;
  private began = 0;
  private before = 0;
  private readonly windows: { from: number; to: number; bytes: number }[] = [];

  constructor(hits: number) {
    this.hits = hits;
  }

  /** @returns true once it is over */
  read(faults: number): boolean {
    const window = Math.floor(this.seen / this.hits);
    this.seen += faults;
    if (this.began > 0 && Math.floor(this.seen / this.hits) === window) return false;
    if (this.began > 0) {
      this.windows.push({ bytes: young() - this.before, from: this.began, to: performance.now() });
    }
    globalThis.gc!();
    this.began = performance.now();
    this.before = young();
    return this.windows.length >= WINDOWS;
  }

  figures(): HitFigures {
    const clean = this.windows.filter(({ from, to }) => !collected.some((at) => at >= from && at < to));
    return { hits: this.hits, bytes: Math.min(...clean.map(({ bytes }) => bytes)), windows: clean.length };
  }
}

/** As much of a session as hits need. Time goes on by a microsecond a fault. */
function fakeSession(probe: Probe, batch: number): FaultSession {
  // an array: a variable would be an object made anew with each time
  const clock = new Float64Array(1);
  const table = new Uint8Array(4096).fill(FrameState.Missing);
  const session: Partial<FaultSession> = {
    pageSize: PAGE,
    frames: table.length,
    table,
    wait(frames, status) {
      status[WaitField.Entered] = clock[0]!;
      for (let i = 0; i < batch; i++) frames[i] = (Math.floor(clock[0]!) + i) & 4095;
      // as real times are: no whole numbers
      clock[0]! += batch + 0.25;
      status[WaitField.Now] = clock[0]!;
      status[WaitField.Flags] = probe.read(batch) ? WaitFlag.Stop : 0;
      return batch;
    },
  };
  return session as FaultSession;
}

/** A session over memory of this process, which another thread touches page by page. */
function realSession(
  probe: Probe,
  frames: number,
  folder: string,
  cached: boolean,
): { session: FaultSession; local: LocalPages } {
  const bytes = frames * PAGE;
  const ram = join(folder, 'ram');
  const arena = native().createArena(ram, PAGE, frames);
  // Holes: what was allocated would never fault.
  truncateSync(ram, 0);
  truncateSync(ram, bytes);
  const line = readFileSync('/proc/self/maps', 'latin1')
    .split('\n')
    .find((text) => text.endsWith(ram));
  const hostAddress = parseInt(line!.split('-')[0]!, 16);
  const { fd: uffd } = native().createUserfault(0n);
  const regions = [{ hostAddress, size: bytes, offset: 0 }];
  const session = native().createSession({ uffd, regions, pageSize: PAGE, shared: true });
  session.register();
  const memory = join(folder, 'memory');
  writeFileSync(memory, '');
  truncateSync(memory, bytes);
  const toucher = new Worker(new URL('./hit-toucher.js', import.meta.url), { workerData: { arena, frames } });
  toucher.on('error', (error) => {
    throw error;
  });
  const wait = session.wait.bind(session);
  // the shim's own methods cannot be assigned to
  Object.defineProperty(session, 'wait', {
    value: (into: Uint32Array, status: Float64Array, timeoutMs: number, spinUs: number) => {
      const faults = wait(into, status, timeoutMs, spinUs);
      if (probe.read(faults)) session.stop();
      return faults;
    },
  });
  const spec = cached ? cachedFile(folder, memory, frames) : ({ kind: 'file', path: memory } as const);
  return { session, local: openLocalPages(spec, PAGE, new Serving(), 'demand') };
}

/** All frames have one page, which is in the cache; the file would give zeros, and so be refused. */
function cachedFile(folder: string, path: string, frames: number): CachedFileSpec {
  const secret = new Uint8Array(32).fill(7);
  const cache = PageCache.open({ path: join(folder, 'cache'), bytes: 16 * PAGE });
  cache.setKey(0, secret);
  const key = new DomainKey(secret);
  const page = new Uint8Array(PAGE).fill(3);
  const tags = new Uint8Array(new SharedArrayBuffer(frames * TAG_BYTES));
  native().tagPages(key.id, page, 1, tags);
  for (let frame = 1; frame < frames; frame++) tags.copyWithin(frame * TAG_BYTES, 0, TAG_BYTES);
  cache.insert(0, tags, 0, page);
  return { kind: 'cached-file', path, tags, key: key.id, cache: cache.id, domain: 0 };
}

const [kind, count, folder] = process.argv.slice(2) as [string, string, string];
const hits = Number(count);
const probe = new Probe(hits);
const left: object[] = [];
const { session, local } =
  kind === 'real' || kind === 'cached'
    ? realSession(probe, (WINDOWS + 1) * hits, folder, kind === 'cached')
    : {
        session: fakeSession(probe, kind === 'single' ? 1 : 64),
        local: {
          install(_session: FaultSession, frame: number, _count: number, outcome: Int32Array): Outcome {
            outcome[0] = 1;
            if (kind === 'leaky') left[frame & 63] = { frame };
            return Outcome.Done;
          },
          close: () => undefined,
        },
      };
const events: string[] = [];
const service = new FaultService({
  session,
  serving: new Serving(),
  local,
  spinMicros: 20,
  onEvent: (event) => events.push(event.event),
});
const end = await service.run();
// a thread that waits for a page could not be ended
if (kind === 'real' || kind === 'cached') session.unregister({ force: true });
// what the observer has to tell comes with the event loop
await new Promise((resolve) => setTimeout(resolve, 0));
process.stdout.write(`${JSON.stringify({ end, events, ...probe.figures() })}\n`);
process.exit(0);
