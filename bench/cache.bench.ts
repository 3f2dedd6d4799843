/**
 * The shared-page cache: what looking a page up adds to installing it from a slot that is known, and how well what it
 * keeps is chosen.
 */
import { createHash } from 'node:crypto';
import { closeSync, openSync, readFileSync, truncateSync, writeSync } from 'node:fs';
import { FrameState, Insertion, native, Outcome, OUTCOME_FIELDS, type FaultSession } from '../src/memory/native.ts';
import { CACHE_PAGE, PageCache, TAG_BYTES } from '../src/pages/cache.ts';
import { ResidentIndex } from '../src/pages/resident.ts';
import { DomainKey, HASH_BYTES } from '../src/pages/tags.ts';
import { PagetideError } from '../src/errors.ts';
import { alternate } from './lib/alternate.ts';
import { withScope, type Scope } from './lib/scope.ts';
import { checkSettings, setting } from './lib/settings.ts';
import { judge, seededRandom } from './lib/statistics.ts';
import { leastRecentlyUsedHits, TRACES } from './lib/traces.ts';
import type { BenchModule, BenchOptions, Target } from './lib/types.ts';

export const description = 'Lookup and install of a cached page against a known slot; hit ratio against LRU.';

/** Frames that are tagged at once. */
const BATCH = 64;
const KEY = new Uint8Array(32).fill(7);

/** Page `n` into `page`. */
function fillPage(page: Uint8Array, n: number): void {
  const words = new Uint32Array(page.buffer, page.byteOffset, CACHE_PAGE / 4);
  for (let i = 0; i < words.length; i++) words[i] = Math.imul(n + 1, 0x9e3779b1) ^ i;
}

function tagOf(page: Uint8Array): Uint8Array {
  return createHash('sha256').update(KEY).update(page).digest().subarray(0, TAG_BYTES);
}

function openCache(path: string, slots: number): PageCache {
  const bytes = CACHE_PAGE * (1 + Math.ceil((slots * 32) / CACHE_PAGE) + slots);
  const cache = PageCache.open({ path, bytes });
  cache.setKey(0, KEY);
  return cache;
}

/** Memory of this process, all of it missing, and how to be rid of it. */
function makeGuest(path: string, frames: number): { session: FaultSession; end: () => void } {
  const bytes = frames * CACHE_PAGE;
  const arena = native().createArena(path, CACHE_PAGE, frames);
  truncateSync(path, 0); // holes: what is allocated never faults
  truncateSync(path, bytes);
  const line = readFileSync('/proc/self/maps', 'latin1')
    .split('\n')
    .find((text) => text.endsWith(path));
  const hostAddress = parseInt(line!.split('-')[0]!, 16);
  const { fd: uffd } = native().createUserfault(0n);
  const regions = [{ hostAddress, size: bytes, offset: 0 }];
  const session = native().createSession({ uffd, regions, pageSize: CACHE_PAGE, shared: true });
  session.register();
  const end = (): void => {
    session.unregister({ force: true });
    native().destroySession(session.id);
    session.close();
    native().destroyArena(arena);
    truncateSync(path, 0);
  };
  return { session, end };
}

interface Sources {
  frames: number;
  /** Frames in the order in which they are installed. */
  order: Uint32Array;
  arena: number;
  slots: Uint32Array;
  cache: PageCache;
  /** Lookups of a resident index that lists a file of the same pages. */
  lookups: number;
  tags: Uint8Array;
}

function shuffled(length: number, seed: number): Uint32Array {
  const random = seededRandom(seed);
  const numbers = Uint32Array.from({ length }, (_, i) => i);
  for (let i = length - 1; i > 0; i--) {
    const other = Math.floor(random() * (i + 1));
    const number = numbers[i]!;
    numbers[i] = numbers[other]!;
    numbers[other] = number;
  }
  return numbers;
}

/** The same pages in the slots of an arena, in a cache and in the memory file of another guest, all scattered. */
function makeSources(scope: Scope, frames: number): Sources {
  const arena = native().createArena(scope.path('arena'), CACHE_PAGE, frames);
  scope.defer(() => native().destroyArena(arena));
  const cache = openCache(scope.path('cache'), frames);
  scope.defer(() => cache.close());
  const slots = shuffled(frames, 1);
  const tags = new Uint8Array(new SharedArrayBuffer(frames * TAG_BYTES));
  const view = native().arenaView(arena);
  const page = new Uint8Array(CACHE_PAGE);
  const fd = openSync(scope.path('other'), 'w+');
  scope.defer(() => closeSync(fd));
  for (const frame of shuffled(frames, 2)) {
    fillPage(page, frame);
    view.set(page, slots[frame]! * CACHE_PAGE);
    writeSync(fd, page, 0, CACHE_PAGE, slots[frame]! * CACHE_PAGE);
    tags.set(tagOf(page), frame * TAG_BYTES);
    if (cache.insert(0, tags, frame * TAG_BYTES, page) !== Insertion.Inserted) {
      throw new PagetideError('PT_INTERNAL', `page ${frame} did not go into the cache`);
    }
  }
  const key = new DomainKey(KEY);
  const index = ResidentIndex.open(frames);
  scope.defer(() => index.close());
  // tagged and listed as a guest that runs here is
  const others = new Uint8Array(frames * TAG_BYTES);
  const hashes = new Uint8Array(frames * HASH_BYTES);
  const scratch = new Uint8Array(BATCH * CACHE_PAGE);
  for (let at = 0; at < frames; at += BATCH) {
    const count = Math.min(BATCH, frames - at);
    native().tagFile(key.id, fd, at * CACHE_PAGE, count, others, at, scratch, hashes.subarray(at * HASH_BYTES));
  }
  const listed = index.add({ domain: 0, key, fd, frames });
  listed.set(0, frames, others, 0, hashes);
  key.close(); // the index has it
  return { frames, order: shuffled(frames, 3), arena, slots, cache, lookups: index.lookups(0), tags };
}

type Side = 'cache' | 'resident' | 'slots';

/** Nanoseconds a page, over all frames, `run` frames a call. */
function installAll(side: Side, from: Sources, path: string, run: number): number {
  const { frames, order, arena, slots, cache, lookups, tags } = from;
  const { session, end } = makeGuest(path, frames);
  try {
    const outcome = new Int32Array(OUTCOME_FIELDS);
    const calls = frames / run;
    let wrong = 0;
    const start = process.hrtime.bigint();
    for (let i = 0; i < calls; i++) {
      const frame = run === 1 ? order[i]! : i * run;
      const result =
        side === 'cache'
          ? session.installFromCache(frame, run, tags, cache.id, outcome)
          : side === 'resident'
            ? session.installFromResident(frame, run, tags, lookups, outcome)
            : session.installFromArena(frame, run, arena, slots, frame, outcome);
      if (result !== Outcome.Done) wrong++;
    }
    const elapsed = Number(process.hrtime.bigint() - start);
    if (wrong > 0 || session.table.some((state) => state !== FrameState.Present)) {
      throw new PagetideError('PT_INTERNAL', `${wrong} installs failed`);
    }
    const page = new Uint8Array(CACHE_PAGE);
    const memory = readFileSync(path);
    for (let frame = 0; frame < frames; frame += 7) {
      fillPage(page, frame);
      if (memory.compare(page, 0, CACHE_PAGE, frame * CACHE_PAGE, (frame + 1) * CACHE_PAGE) !== 0) {
        throw new PagetideError('PT_INTERNAL', `frame ${frame} has the wrong page`);
      }
    }
    return elapsed / frames;
  } finally {
    end();
  }
}

/** Asks the real cache, and inserts what it lacks. */
function cacheHits(cache: PageCache, requests: Iterable<number>): number {
  const page = Buffer.alloc(CACHE_PAGE);
  const into = new Uint8Array(CACHE_PAGE);
  const tags = new Map<number, Uint8Array>();
  let hits = 0;
  for (const number of requests) {
    page.writeUInt32LE(number + 1);
    let tag = tags.get(number);
    if (tag === undefined) tags.set(number, (tag = tagOf(page)));
    if (cache.read(tag, 0, into)) hits++;
    else cache.insert(0, tag, 0, page);
  }
  return hits;
}

export async function run(options: BenchOptions): ReturnType<BenchModule['run']> {
  checkSettings(options, ['frames', 'slots', 'requests']);
  const frames = Math.ceil(setting(options, 'frames', 32768, 64) / 64) * 64;
  const slots = setting(options, 'slots', 4096, 16);
  const length = setting(options, 'requests', 50 * slots);
  return withScope(async (scope) => {
    const targets: Target[] = [];
    const raw: Record<string, unknown> = {};
    const sources = makeSources(scope, frames);
    const ram = scope.path('ram');
    for (const [name, side, perCall, target] of [
      ['cache: lookup and install, a page a call', 'cache', 1, 1.15],
      ['cache: lookup and install, 64 pages a call', 'cache', 64, 1.15],
      ['another guest: lookup, copy, verify, install, a page a call', 'resident', 1, 1.6],
    ] as const) {
      options.progress(name);
      const pairs = await alternate({
        rounds: options.rounds,
        a: () => Promise.resolve(installAll(side, sources, ram, perCall)),
        b: () => Promise.resolve(installAll('slots', sources, ram, perCall)),
      });
      raw[name] = pairs;
      const figures = pairs.map(({ a, b }) => ({ value: a, baseline: b }));
      targets.push(judge(name, 'ns', figures, { target, direction: 'at-most' }));
    }
    for (const trace of TRACES) {
      options.progress(`hits: ${trace.name}`);
      const cache = openCache(scope.path(`trace-${targets.length}`), slots);
      try {
        const value = cacheHits(cache, trace.requests(slots, length)) / length;
        const baseline = leastRecentlyUsedHits(slots, trace.requests(slots, length)) / length;
        raw[trace.name] = { value, baseline };
        const goal = { target: trace.target, direction: 'at-least' } as const;
        targets.push(judge(`hits, ${trace.name}`, 'of 1', [{ value, baseline }], goal));
      } finally {
        cache.close();
      }
    }
    const { indexBytes, slots: room } = sources.cache.stats();
    targets.push(
      judge('index', 'bytes', [{ value: indexBytes / room, baseline: 48 }], { target: 1, direction: 'at-most' }),
    );
    const notes = [
      'install: one thread, memory of this process on tmpfs, frames in random order (a page a call) from scattered slots on both sides; no fault waits, so no thread is woken',
      `hits: ${length} requests of a cache with ${slots} slots, which starts empty; the baseline evicts the least recently used`,
    ];
    return { targets, raw, notes };
  });
}
