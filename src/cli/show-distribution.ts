/** Distribution and plans as people read them. */
import type { ExplainedGuest, ExplainedHost, GuestPlans, WithdrawnPlans } from '../agent/distribution-service.ts';
import { formatDuration, formatMillis, formatSize } from '../agent/units.ts';
import type { DistributionInfo, DomainDistribution, HostExplanation } from '../distribution/info.ts';
import { percent } from './show.ts';
import { pairs, table } from './table.ts';

const PAGE = 4096;

export function showDistribution(info: DistributionInfo, now = Date.now()): string {
  const { state, offBecause, paused, rates, budgetBytes, heldPages, heldBytes, queuedPages, domains, totals } = info;
  const notes = [...(offBecause === null ? [] : [offBecause]), ...(paused && state !== 'paused' ? ['paused'] : [])];
  const sums = pairs([
    ['state', notes.length === 0 ? state : `${state} (${notes.join(', ')})`],
    ['rate', `${formatSize(rates.average)}/s on average, ${formatSize(rates.peak)}/s at most`],
    ['held', `${heldPages} pages, ${formatSize(heldBytes)} of ${formatSize(budgetBytes)}`],
    ['to come', `${queuedPages} pages`],
    ['last plan', lastPlan(info, now)],
    ['brought', `${totals.broughtPages} pages, ${formatSize(totals.broughtBytes)} on the wire`],
    [
      'served',
      `${totals.servedPages} pages to guests that arrived, ${formatSize(totals.savedBytes)} not sent for them`,
    ],
    [
      'not kept',
      `${totals.leftPages} gave way, ${totals.evictedPages} evicted, ${totals.absentPages} nobody had, ${totals.wrongPages} not right`,
    ],
  ]);
  if (domains.length === 0) return `${sums}\n\nno domains`;
  const columns = ['DOMAIN', 'HELD', 'TO COME', 'SPENT', 'SAVED', 'FACTOR', 'DIRECTORY', 'REPORTED'];
  const errors = domains.flatMap(({ domain, directory: { error } }) =>
    error === undefined ? [] : [`\n\n${domain}: ${error.message} (${error.code})\n  ${error.hint}`],
  );
  return `${sums}\n\n${table(columns, domains.map(domainRow))}${errors.join('')}`;
}

function domainRow({
  domain,
  heldPages,
  queuedPages,
  spentBytes,
  savedBytes,
  factor,
  directory,
}: DomainDistribution): string[] {
  const { home, reachable, lastReportMs, reportedTags } = directory;
  const where = `${home ?? 'here'}${reachable === null ? ', not asked yet' : reachable ? '' : ', AWAY'}`;
  const ago = lastReportMs === null ? '' : `, ${formatDuration(lastReportMs)} ago`;
  return [
    domain,
    String(heldPages),
    String(queuedPages),
    formatSize(Math.round(spentBytes)),
    formatSize(Math.round(savedBytes)),
    factor.toFixed(2),
    where,
    reportedTags === null ? 'nothing yet' : `${reportedTags} pages${ago}`,
  ];
}

function lastPlan({ lastPlan: plan }: DistributionInfo, now: number): string {
  if (plan === null) return 'none yet';
  const { at, candidates, chosen, bring, leaving, tookMs, away, complete } = plan;
  const more = [
    ...(complete ? [] : ['not all were looked at']),
    ...(away.length === 0 ? [] : [`no directory of ${away.join(', ')}`]),
  ];
  return [
    `${formatDuration(Math.max(0, now - at))} ago, in ${formatMillis(tookMs)}: ${chosen} of ${candidates} pages, ${bring} to bring, ${leaving} to go`,
    ...more,
  ].join('; ');
}

export function showExplained({ guest, domain, stable, pages, hosts }: ExplainedGuest): string {
  const head = pairs([
    ['guest', guest],
    ['domain', domain],
    [
      'pages',
      `${pages} different${stable ? ', stable' : '; none is known to be stable yet'}, ${formatSize(pages * PAGE)}`,
    ],
  ]);
  if (hosts.length === 0) return `${head}\n\nno other host has the domain`;
  const columns = ['HOST', 'COMES', 'HAS', 'GUESTS', 'CACHE', 'BROUGHT', 'TO COME', 'NOTE'];
  const rows = hosts.map((host) => hostRow(host, pages));
  const why = hosts.flatMap((one) => whyNot(one));
  const reasons = why.length === 0 ? '' : `\n\n${table(['HOST', 'NOT BROUGHT', 'PAGES', 'WORTH', 'COST'], why)}`;
  return `${head}\n\n${table(columns, rows)}${reasons}`;
}

function hostRow(one: ExplainedHost, pages: number): string[] {
  const { host, likelihood, present, explanation, state, error } = one;
  const comes = likelihood === null ? 'not known' : `${Math.round(likelihood * 100)}%`;
  const has = explanation === null ? present : pagesAt(explanation);
  const share = has === null ? 'not known' : `${has} (${percent(has, pages)}%)`;
  const note = error === undefined ? noteOf(state) : `${error.code}: ${error.message}`;
  if (explanation === null) return [host, comes, share, '', '', '', '', note];
  const { guests, cache, brought, queued } = explanation;
  return [host, comes, share, ...[guests, cache, brought, queued].map(String), note];
}

function noteOf(state: ExplainedHost['state']): string {
  return state === 'off' || state === 'paused' || state === 'directory-away' ? `brings nothing: ${state}` : '';
}

/** Pages that a host has, by its last plan's word. */
export function pagesAt({ pages, queued, missing }: HostExplanation): number {
  return Math.max(0, pages - queued - missing);
}

function whyNot({ host, explanation }: ExplainedHost): string[][] {
  if (explanation === null) return [];
  return explanation.decisions
    .filter(({ decision, pages }) => pages > 0 && (decision === 'skip' || decision === 'leave'))
    .sort((a, b) => b.pages - a.pages)
    .map(({ reason, pages, expectedBytes, costBytes }) => [
      host,
      reason,
      String(pages),
      formatSize(Math.round(expectedBytes)),
      formatSize(Math.round(costBytes)),
    ]);
}

export function showPlans({ plans, failed }: GuestPlans): string {
  const rows = plans.map((plan) => [
    plan.domain,
    plan.kind,
    plan.kind === 'evacuate' ? plan.host : plan.guest,
    plan.kind === 'evacuate' ? '' : plan.hosts.join(', '),
    formatDuration(plan.leftMs),
  ]);
  const list = rows.length === 0 ? 'no plans' : table(['DOMAIN', 'PLAN', 'OF', 'TO', 'LEFT'], rows);
  return [list, ...failures(failed)].join('\n');
}

export function showWithdrawn({ withdrawn, failed }: WithdrawnPlans): string {
  return [`withdrawn in ${withdrawn.join(', ')}`, ...failures(failed)].join('\n');
}

function failures(failed: GuestPlans['failed']): string[] {
  return failed.map(({ domain, error }) => `${domain}: NOT REACHED: ${error.code}: ${error.message}`);
}
