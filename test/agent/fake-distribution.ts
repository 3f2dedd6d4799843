/** A DistributionService that remembers what it was asked, as FakeService does. */
import type { DistributionService, ExplainedGuest, GuestPlans } from '../../src/agent/distribution-service.ts';
import type { TagsExplained } from '../../src/distribution/explain-message.ts';
import type { DistributionInfo } from '../../src/distribution/info.ts';
import { PagetideError } from '../../src/errors.ts';

export const distributionInfo: DistributionInfo = {
  state: 'bringing',
  offBecause: null,
  paused: false,
  rates: { average: 20 * 2 ** 20, peak: 80 * 2 ** 20 },
  budgetBytes: 2 ** 30,
  heldBytes: 2 ** 20,
  heldPages: 256,
  queuedPages: 100,
  domains: [
    {
      ...{
        domain: 'shop',
        heldPages: 256,
        queuedPages: 100,
        spentBytes: 500_000.5,
        savedBytes: 900_000.25,
        factor: 1.01,
      },
      directory: { home: 'host-c', reachable: true, lastReportMs: 5000, reportedTags: 7000 },
    },
  ],
  lastPlan: {
    at: 1_700_000_000_000,
    candidates: 5000,
    chosen: 356,
    bring: 100,
    leaving: 2,
    tookMs: 12.5,
    away: [],
    complete: true,
  },
  totals: {
    ...{ broughtPages: 300, broughtBytes: 600_000, servedPages: 200, savedBytes: 800_000, leftPages: 10 },
    ...{ evictedPages: 20, absentPages: 5, wrongPages: 0, plans: 9 },
  },
};

export const tagsExplained: TagsExplained = {
  state: 'idle',
  planAgeMs: 1000,
  explanation: {
    ...{ pages: 1, guests: 0, cache: 0, brought: 0, queued: 0, missing: 1 },
    hints: null,
    decisions: [
      { decision: 'skip', reason: 'not worth its cost', pages: 1, wireBytes: 2000, expectedBytes: 10, costBytes: 700 },
    ],
  },
};

export const explainedGuest: ExplainedGuest = {
  ...{ guest: 'web1', domain: 'shop', stable: true, pages: 1 },
  hosts: [
    { host: 'host-b', url: 'https://host-b:7411', likelihood: 0.25, present: 0, ...tagsExplained },
    {
      ...{ host: 'host-c', url: 'https://host-c:7411', likelihood: null, present: null, state: null, planAgeMs: null },
      explanation: null,
      error: new PagetideError('PT_PEER_UNREACHABLE', 'cannot reach https://host-c:7411').toJSON(),
    },
  ],
};

export const guestPlans: GuestPlans = {
  plans: [
    { domain: 'shop', kind: 'evacuate', host: 'host-b', leftMs: 7_200_000 },
    { domain: 'shop', kind: 'affinity', guest: 'web1', hosts: ['host-b', 'host-c'], leftMs: 60_000 },
  ],
  failed: [],
};

type Promised = <T>(method: string, args: unknown[], answer: () => T) => Promise<T>;

export function fakeDistribution(promised: Promised): DistributionService {
  const info = (method: string, ...args: unknown[]) => promised(method, args, () => distributionInfo);
  return {
    status: () => distributionInfo,
    pause: () => info('pause'),
    resume: () => info('resume'),
    setRates: (rates) => info('setRates', rates),
    setBudget: (bytes) => info('setBudget', bytes),
    explain: (guest) => promised('explain', [guest], () => explainedGuest),
    emptyDirectory: (domain) => promised('emptyDirectory', [domain], () => undefined),
    plans: () => promised('plans', [], () => guestPlans),
    evacuate: (...args) => promised('plan.evacuate', args, () => guestPlans),
    affinity: (...args) => promised('plan.affinity', args, () => guestPlans),
    withdraw: (...args) => promised('plan.withdraw', args, () => ({ withdrawn: ['shop'], failed: [] })),
    explainTags: () => Promise.resolve(tagsExplained),
  };
}
