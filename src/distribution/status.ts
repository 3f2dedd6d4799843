/** What operators see of a distributor. */
import type { Surroundings } from './bringing.ts';
import { HELD_BYTES, type HeldPages } from './held-pages.ts';
import type { DistributionInfo, DistributionState } from './info.ts';
import type { DomainPlan } from './planner.ts';
import { scoreFactor, type Score } from './score.ts';
import type { Rates } from './token-bucket.ts';

export interface StatusParts {
  around: Surroundings;
  cache: boolean;
  paused: boolean;
  doing: 'planning' | 'bringing' | 'idle';
  standingBack: boolean;
  rates: Rates;
  budgetBytes: number;
  held: HeldPages;
  score: Score;
  plans: ReadonlyMap<number, DomainPlan>;
  lastPlan: DistributionInfo['lastPlan'];
  totals: DistributionInfo['totals'];
  /** By the domain's name. */
  reachable: ReadonlyMap<string, boolean>;
}

export function statusOf(parts: StatusParts): DistributionInfo {
  const { around, held, plans, score, reachable } = parts;
  const offBecause = !parts.cache ? 'no cache' : parts.budgetBytes < HELD_BYTES ? 'no budget' : null;
  const domains = [...around.domains()].map(({ name, id }) => {
    const place = around.directory(name);
    const counts = score.totals(name);
    return {
      ...{ domain: name, heldPages: held.count(id), queuedPages: plans.get(id)?.queued ?? 0, ...counts },
      factor: scoreFactor(counts),
      directory: {
        ...{ home: place?.home ?? null, reachable: reachable.get(name) ?? null },
        ...{ lastReportMs: null, reportedTags: null },
      },
    };
  });
  const queuedPages = domains.reduce((sum, domain) => sum + domain.queuedPages, 0);
  return {
    ...{ state: stateOf(parts, offBecause !== null), offBecause, paused: parts.paused, rates: { ...parts.rates } },
    ...{ budgetBytes: parts.budgetBytes, heldBytes: held.bytes, heldPages: held.count(), queuedPages },
    domains: domains.sort((a, b) => (a.domain < b.domain ? -1 : 1)),
    ...{ lastPlan: parts.lastPlan, totals: { ...parts.totals } },
  };
}

function stateOf({ paused, doing, standingBack, reachable }: StatusParts, off: boolean): DistributionState {
  if (off) return 'off';
  if (paused) return 'paused';
  if (standingBack) return 'standing-back';
  if (doing !== 'idle') return doing;
  const answers = [...reachable.values()];
  return answers.length > 0 && answers.every((answered) => !answered) ? 'directory-away' : 'idle';
}
