/** What an agent tells Prometheus of distribution; see metrics.ts. */
import { Counter, Gauge, type Registry } from 'prom-client';
import { DISTRIBUTION_STATES, type DistributionInfo } from '../distribution/info.ts';

/** What is not in {@link DistributionInfo}. */
export interface DistributionCosts {
  /** Bytes that this host sent to others that brought pages. */
  servedBytes: number;
  /** CPU that finding stable pages took since the agent began, seconds. */
  sightingSeconds: number;
  /** Reports that directories took since the agent began. */
  reports: number;
}

/** Registers them. @returns sets all of them */
export function distributionMetrics(registers: Registry[]): (info: DistributionInfo, costs: DistributionCosts) => void {
  const state = new Gauge({
    name: 'pagetide_distribution_state',
    help: '1 for the state that distribution is in, by state',
    labelNames: ['state'] as const,
    registers,
  });
  const held = new Gauge({
    name: 'pagetide_distribution_held_pages',
    help: 'Pages that were brought and are in the cache, by domain',
    labelNames: ['domain'] as const,
    registers,
  });
  const heldBytes = new Gauge({
    name: 'pagetide_distribution_held_bytes',
    help: 'Bytes of them, in all domains',
    registers,
  });
  const budget = new Gauge({
    name: 'pagetide_distribution_budget_bytes',
    help: 'Bytes of the cache that they may take',
    registers,
  });
  const queued = new Gauge({
    name: 'pagetide_distribution_queued_pages',
    help: 'Pages that are still to be brought by the last plan, by domain',
    labelNames: ['domain'] as const,
    registers,
  });
  const worth = new Gauge({
    name: 'pagetide_distribution_worth_bytes',
    help: 'Bytes that bringing took (spent) and that migrations did not send for it (saved), by domain; fading by half in a day',
    labelNames: ['domain', 'kind'] as const,
    registers,
  });
  const pages = new Counter({
    name: 'pagetide_distribution_pages_total',
    help: 'Pages of distribution, by what became of them (brought; served: to guests that arrived; left: gave way; evicted; absent: nobody had them; wrong: not those of their tags, never kept)',
    labelNames: ['what'] as const,
    registers,
  });
  const bytes = new Counter({
    name: 'pagetide_distribution_bytes_total',
    help: 'Bytes on the wire of bringing pages, by direction (in: brought here; out: to other hosts)',
    labelNames: ['direction'] as const,
    registers,
  });
  const reachable = new Gauge({
    name: 'pagetide_directory_reachable',
    help: '1 where the directory of a domain answered when it was asked last, by domain',
    labelNames: ['domain'] as const,
    registers,
  });
  const reported = new Gauge({
    name: 'pagetide_directory_reported_pages',
    help: 'Pages of guests here that the directory of a domain was told of, by domain',
    labelNames: ['domain'] as const,
    registers,
  });
  const reports = new Counter({
    name: 'pagetide_directory_reports_total',
    help: 'Reports of what guests here have that directories took',
    registers,
  });
  const sightings = new Counter({
    name: 'pagetide_sightings_cpu_seconds_total',
    help: 'CPU that finding out which pages of guests are stable took',
    registers,
  });

  const perDomain = [held, queued, worth, reachable, reported];
  return (info, costs) => {
    for (const one of DISTRIBUTION_STATES) state.set({ state: one }, info.state === one ? 1 : 0);
    heldBytes.set(info.heldBytes);
    budget.set(info.budgetBytes);
    // a domain that was removed is told no more
    for (const gauge of perDomain) gauge.reset();
    for (const { domain, directory, ...one } of info.domains) {
      held.set({ domain }, one.heldPages);
      queued.set({ domain }, one.queuedPages);
      worth.set({ domain, kind: 'spent' }, one.spentBytes);
      worth.set({ domain, kind: 'saved' }, one.savedBytes);
      if (directory.reachable !== null) reachable.set({ domain }, directory.reachable ? 1 : 0);
      if (directory.reportedTags !== null) reported.set({ domain }, directory.reportedTags);
    }
    for (const counter of [pages, bytes, reports, sightings]) counter.reset(); // as with the cache
    const { broughtPages, servedPages, leftPages, evictedPages, absentPages, wrongPages, broughtBytes } = info.totals;
    for (const [what, count] of Object.entries({
      brought: broughtPages,
      served: servedPages,
      left: leftPages,
      evicted: evictedPages,
      absent: absentPages,
      wrong: wrongPages,
    }))
      pages.inc({ what }, count);
    bytes.inc({ direction: 'in' }, broughtBytes);
    bytes.inc({ direction: 'out' }, costs.servedBytes);
    reports.inc(costs.reports);
    sightings.inc(costs.sightingSeconds);
  };
}
