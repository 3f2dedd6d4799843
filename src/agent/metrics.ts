/** What an agent tells Prometheus. Callers change the fields; `text()` is what `GET /metrics` answers. */
import { collectDefaultMetrics, Counter, Gauge, Histogram, Registry } from 'prom-client';
import type { CacheStats } from '../pages/cache.ts';
import type { ResidentStats } from '../pages/resident.ts';
import type { PageCounters } from '../transport/page-server.ts';
import { distributionMetrics } from './metrics-distribution.ts';
import type { EvacuationFigures } from './evacuations.ts';
import type { GuestState } from './service.ts';

const GUEST_STATES: readonly GuestState[] = ['running', 'paused', 'incoming', 'in-doubt', 'alarm', 'gone'];

/** 1 µs to 1 s, finer where hits and misses lie. Seconds, as Prometheus wants them. */
const FAULT_BUCKETS = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 5000, 20_000, 100_000, 1_000_000].map(
  (us) => us / 1e6,
);

export interface MetricsOptions {
  /** Also memory, CPU and event loop of this process. */
  process?: boolean;
}

/** Makes the metrics, in a registry of their own: several agents may live in one process. */
export function createMetrics(options: MetricsOptions = {}) {
  const registry = new Registry();
  const registers = [registry];
  if (options.process === true) collectDefaultMetrics({ register: registry });

  /** Migrations that ended; count each at its end only. */
  const migrations = new Counter({
    name: 'pagetide_migrations_total',
    help: 'Migrations that ended, by direction and outcome (done, failed, cancelled)',
    labelNames: ['direction', 'outcome'] as const,
    registers,
  });
  const faults = new Counter({
    name: 'pagetide_faults_total',
    help: 'Page faults served, by where the page came from',
    labelNames: ['from'] as const,
    registers,
  });
  const faultLatency = new Histogram({
    name: 'pagetide_fault_seconds',
    help: 'From reading a fault to its page installed',
    buckets: FAULT_BUCKETS,
    registers,
  });
  const downtime = new Histogram({
    name: 'pagetide_downtime_seconds',
    help: 'From the guest stopped to the guest running',
    buckets: [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 5],
    registers,
  });
  const bytes = new Counter({
    name: 'pagetide_bytes_total',
    help: 'Bytes of migrations, by direction and kind (wire, manifest, pages, state, raw, deltas, digests)',
    labelNames: ['direction', 'kind'] as const,
    registers,
  });
  const guests = new Gauge({
    name: 'pagetide_guests',
    help: 'Guests of this agent, by state',
    labelNames: ['state'] as const,
    registers,
  });
  const faultWorkersBusy = new Gauge({
    name: 'pagetide_fault_workers_busy',
    help: 'Fault workers that serve a guest',
    registers,
  });
  const cachePages = new Gauge({
    name: 'pagetide_cache_pages',
    help: 'Pages of the shared-page cache, by kind (room: as many as there is room for; used; pinned)',
    labelNames: ['kind'] as const,
    registers,
  });
  const cacheEvents = new Counter({
    name: 'pagetide_cache_events_total',
    help: 'What happened to pages of the shared-page cache since it was opened, by event',
    labelNames: ['event'] as const,
    registers,
  });
  const cacheLost = new Gauge({
    name: 'pagetide_cache_lost',
    help: '1 where the file of the shared-page cache was cut off: it is of no use until a restart',
    registers,
  });
  const mismatches = new Counter({
    name: 'pagetide_page_mismatches_total',
    help: 'Pages that came for guests and were not those of their tags, by where they came from (source, peer): never installed',
    labelNames: ['from'] as const,
    registers,
  });
  const peerPages = new Counter({
    name: 'pagetide_peer_pages_total',
    help: 'Pages by tag that other hosts of a domain wanted of this one, by what became of it (asked: whether they are here; sent; absent)',
    labelNames: ['what'] as const,
    registers,
  });
  const peerBytes = new Counter({
    name: 'pagetide_peer_bytes_total',
    help: 'Bytes of the streams on which they wanted them, by direction (in, out)',
    labelNames: ['direction'] as const,
    registers,
  });
  const residentFiles = new Gauge({
    name: 'pagetide_resident_files',
    help: 'Memory files of guests in the resident index',
    registers,
  });
  const residentFrames = new Gauge({
    name: 'pagetide_resident_frames',
    help: 'Frames of guests in the resident index, by kind (all; listed under a tag; different tags among those)',
    labelNames: ['kind'] as const,
    registers,
  });
  const residentBytes = new Gauge({
    name: 'pagetide_resident_index_bytes',
    help: 'Memory that the resident index takes',
    registers,
  });
  const residentEvents = new Counter({
    name: 'pagetide_resident_events_total',
    help: 'Lookups in the resident index (hits, misses), and frames found to hold another page by then (stale)',
    labelNames: ['event'] as const,
    registers,
  });
  const evacuations = new Gauge({
    name: 'pagetide_evacuations_under_way',
    help: '1 while this host is being evacuated',
    registers,
  });
  const evacuating = new Gauge({
    name: 'pagetide_evacuation_guests',
    help: 'Guests of the evacuation that is under way, by state (waiting, moving)',
    labelNames: ['state'] as const,
    registers,
  });
  const evacuated = new Counter({
    name: 'pagetide_evacuated_guests_total',
    help: 'Guests of evacuations, by outcome (moved; left here: not able to go, no room for it, stopped or cancelled; failed: left as its migration failed)',
    labelNames: ['outcome'] as const,
    registers,
  });
  const distribution = distributionMetrics(registers);
  const alarms = new Counter({
    name: 'pagetide_alarms_total',
    help: 'Things that must never happen, by kind (page-damaged: frames that their source altered; foreign-page: guests stopped for a page that nobody put there): any increase wants a person',
    labelNames: ['kind'] as const,
    registers,
  });

  return {
    registry,
    migrations,
    faults,
    faultLatency,
    downtime,
    bytes,
    faultWorkersBusy,
    alarms,
    /** Sets how many guests are in each state; states that aren't given become 0. */
    setGuests(states: Iterable<GuestState>): void {
      const counts = new Map<GuestState, number>(GUEST_STATES.map((state) => [state, 0]));
      for (const state of states) counts.set(state, counts.get(state)! + 1);
      for (const [state, count] of counts) guests.set({ state }, count);
    },
    /** As the cache counts. */
    setCache(stats: CacheStats): void {
      cachePages.set({ kind: 'room' }, stats.slots);
      cachePages.set({ kind: 'used' }, stats.used);
      cachePages.set({ kind: 'pinned' }, stats.pinned);
      cacheLost.set(stats.lost ? 1 : 0);
      cacheEvents.reset(); // it has counters of its own, which only grow
      const { hits, misses, insertions, evictions, rejected, dropped, refused } = stats;
      for (const [event, count] of Object.entries({ hits, misses, insertions, evictions, rejected, dropped, refused }))
        cacheEvents.inc({ event }, count);
    },
    /** Of all guests that came here so far. */
    setMismatches(counts: { source: number; peer: number }): void {
      mismatches.reset();
      for (const [from, count] of Object.entries(counts)) mismatches.inc({ from }, count);
    },
    /** As the page server counts. */
    setPeers({ tagsAsked, tagPages, tagAbsent, bytesIn, bytesOut }: PageCounters): void {
      peerPages.reset();
      peerPages.inc({ what: 'asked' }, tagsAsked);
      peerPages.inc({ what: 'sent' }, tagPages);
      peerPages.inc({ what: 'absent' }, tagAbsent);
      peerBytes.reset();
      peerBytes.inc({ direction: 'in' }, bytesIn);
      peerBytes.inc({ direction: 'out' }, bytesOut);
    },
    /** As the resident index counts. */
    setResident({ files, frames, listed, different, indexBytes, hits, misses, stale }: ResidentStats): void {
      residentFiles.set(files);
      for (const [kind, count] of Object.entries({ all: frames, listed, different }))
        residentFrames.set({ kind }, count);
      residentBytes.set(indexBytes);
      residentEvents.reset(); // as with the cache
      for (const [event, count] of Object.entries({ hits, misses, stale })) residentEvents.inc({ event }, count);
    },
    /** As the evacuations of this agent count. */
    setEvacuations({ underWay, guests: counts, outcomes }: EvacuationFigures): void {
      evacuations.set(underWay ? 1 : 0);
      for (const [state, count] of Object.entries(counts)) evacuating.set({ state }, count);
      evacuated.reset(); // as with the cache
      for (const [outcome, count] of Object.entries(outcomes)) evacuated.inc({ outcome }, count);
    },
    /** As distribution here counts, and its page server's streams. */
    setDistribution: distribution,
    /** The whole in Prometheus' text format. */
    text: (): Promise<string> => registry.metrics(),
  };
}

export type Metrics = ReturnType<typeof createMetrics>;
