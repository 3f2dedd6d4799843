/** What Prometheus is told of distribution, and that docs/distribution.md lists it. */
import { existsSync, readFileSync } from 'node:fs';
import t from 'tap';
import { createMetrics } from '../../src/agent/metrics.ts';
import { distributionInfo } from './fake-distribution.ts';

const costs = { servedBytes: 4000, sightingSeconds: 1.5, reports: 12 };

async function samples(metrics: ReturnType<typeof createMetrics>): Promise<Record<string, number>> {
  const lines = (await metrics.text()).matchAll(/^pagetide_((?:distribution|directory|sightings)_\S+) (\S+)$/gm);
  return Object.fromEntries([...lines].map(([, name, value]) => [name!, Number(value)]));
}

void t.test('names and values', async (t) => {
  const metrics = createMetrics();
  metrics.setDistribution(distributionInfo, costs);
  metrics.setDistribution(distributionInfo, costs); // sums are not added again
  const shop = 'domain="shop"';
  const told = await samples(metrics);
  t.match(told, {
    'distribution_state{state="bringing"}': 1,
    'distribution_state{state="off"}': 0,
    [`distribution_held_pages{${shop}}`]: 256,
    distribution_held_bytes: 2 ** 20,
    distribution_budget_bytes: 2 ** 30,
    [`distribution_queued_pages{${shop}}`]: 100,
    [`distribution_worth_bytes{${shop},kind="spent"}`]: 500_000.5,
    [`distribution_worth_bytes{${shop},kind="saved"}`]: 900_000.25,
    'distribution_pages_total{what="brought"}': 300,
    'distribution_pages_total{what="served"}': 200,
    'distribution_pages_total{what="left"}': 10,
    'distribution_pages_total{what="evicted"}': 20,
    'distribution_pages_total{what="absent"}': 5,
    'distribution_pages_total{what="wrong"}': 0,
    'distribution_bytes_total{direction="in"}': 600_000,
    'distribution_bytes_total{direction="out"}': 4000,
    [`directory_reachable{${shop}}`]: 1,
    [`directory_reported_pages{${shop}}`]: 7000,
    directory_reports_total: 12,
    sightings_cpu_seconds_total: 1.5,
  });

  const [domain] = distributionInfo.domains;
  const directory = { home: 'host-c', reachable: false, lastReportMs: null, reportedTags: null };
  metrics.setDistribution({ ...distributionInfo, domains: [{ ...domain!, domain: 'bank', directory }] }, costs);
  const later = await samples(metrics);
  t.notOk(
    Object.keys(later).some((name) => name.includes('shop')),
    'a domain that was removed is told no more',
  );
  t.equal(later['directory_reachable{domain="bank"}'], 0);
  t.equal(later['directory_reported_pages{domain="bank"}'], undefined, 'nothing is known of it');
});

void t.test('docs/distribution.md lists them all, and no other', (t) => {
  const root = existsSync(new URL('../../docs', import.meta.url)) ? '../../' : '../../../';
  const text = readFileSync(new URL(`${root}docs/distribution.md`, import.meta.url), 'utf8');
  const listed = [...text.matchAll(/^\| `(pagetide_\w+)/gm)].map(([, name]) => name).sort();
  const named = createMetrics()
    .registry.getMetricsAsArray()
    .map(({ name }) => name)
    .filter((name) => /^pagetide_(distribution|directory|sightings)_/.test(name));
  t.same(listed, named.sort());
  t.end();
});
