/**
 * What operators see of distribution, and what they set: plain data, as the API gives it. All pages have 4096 bytes; all times of the
 * past are Unix milliseconds (`…At`), all durations milliseconds (`…Ms`).
 */
import type { Hint } from '../directory/hint.ts';
import type { ErrorJson } from '../errors.ts';
import type { Prices } from './importance.ts';
import type { Rates } from './token-bucket.ts';

/**
 *   off              there is no cache here, or its budget is 0: nothing is brought, the host's own pages are still reported
 *   paused           an operator said so; outlives a restart
 *   standing-back    a migration runs here
 *   planning         candidates are being looked at
 *   bringing         pages are on their way
 *   idle             what is to be brought was brought, until the next plan
 *   directory-away   no domain's directory could be reached, and nothing is left of the last plan
 */
export const DISTRIBUTION_STATES = [
  'off',
  'paused',
  'standing-back',
  'planning',
  'bringing',
  'idle',
  'directory-away',
] as const;
export type DistributionState = (typeof DISTRIBUTION_STATES)[number];

/** What the configuration says. Rates, pause and budget that an operator sets later outlive a restart, and go before it. */
export interface DistributionSettings {
  /** Bytes a second, at most, of what is brought here. */
  rates: Rates;
  /** Bytes of the cache that brought pages may take; undefined: half of the cache. 0: nothing is brought. */
  budgetBytes?: number;
  /** How far ahead a plan looks: a page pays if a guest with it comes within this time. */
  horizonMs: number;
  /** Between the end of a plan and the next; a hint that comes or goes makes one sooner. */
  intervalMs: number;
  /** How likely a guest of which nothing is said moves within the horizon, 0 to 1. */
  moves: number;
  prices: Prices;
}

export const DISTRIBUTION_DEFAULTS = {
  rates: { average: 2_000_000, peak: 4_000_000 },
  horizonMs: 3_600_000,
  intervalMs: 60_000,
  moves: 0.5,
  prices: { hold: 1 / 32, bring: 1 / 4, hysteresis: 1.25 },
} as const satisfies DistributionSettings;

export interface DistributionInfo {
  state: DistributionState;
  /** Why it is off; null: it is not. */
  offBecause: 'no cache' | 'no budget' | null;
  /** Also while it stands back. */
  paused: boolean;
  rates: Rates;
  budgetBytes: number;
  /** Brought pages that are in the cache, in all domains. */
  heldBytes: number;
  heldPages: number;
  /** Pages that the last plan wants and that are still to be brought. */
  queuedPages: number;
  /** By name. */
  domains: DomainDistribution[];
  /** Null: none was made since the agent began. */
  lastPlan: PlanInfo | null;
  totals: DistributionTotals;
}

export interface DomainDistribution {
  /** Its name. */
  domain: string;
  heldPages: number;
  queuedPages: number;
  /** Bytes on the wire, fading by half in a day (score.ts). */
  spentBytes: number;
  /** Bytes that migrations did not send, fading likewise. */
  savedBytes: number;
  /** 1/4 to 4: what the expected bytes of a page are multiplied with, of all classes together. */
  factor: number;
  directory: DirectoryState;
}

export interface DirectoryState {
  /** The host that keeps it, as the domain's home calls it; null: this one. */
  home: string | null;
  /** Whether it answered when it was asked last; null: it was not asked yet. */
  reachable: boolean | null;
  /** Since it took this host's last report; null: none yet. The caller of {@link DistributionInfo} fills it in from its reporter. */
  lastReportMs: number | null;
  /** Tags of this host's guests that it was told of; filled in likewise. */
  reportedTags: number | null;
  /** Why what this host reports is not taken, or is worth nothing there; filled in likewise. */
  error?: ErrorJson;
}

export interface PlanInfo {
  at: number;
  /** Pages that were looked at. */
  candidates: number;
  /** Of them: to be brought, and held pages that stay. */
  chosen: number;
  bring: number;
  /** Held pages that leave. */
  leaving: number;
  /** From its beginning to its end; its pieces never hold the thread up for long. */
  tookMs: number;
  /** Domains whose directory did not answer: for those the plan before goes on. */
  away: string[];
  /** False: there were more candidates than one plan looks at. */
  complete: boolean;
}

/** Since the agent began. */
export interface DistributionTotals {
  broughtPages: number;
  broughtBytes: number;
  /** Brought pages that served an arriving guest, each counted for each guest. */
  servedPages: number;
  savedBytes: number;
  /** Held pages that left for more important ones or a lower budget. */
  leftPages: number;
  /** Held pages that the cache evicted by itself. */
  evictedPages: number;
  /** Tags that no holder had when it was asked. */
  absentPages: number;
  /** Pages that were not what their tag says; never kept. */
  wrongPages: number;
  plans: number;
}

/** What a host does about a page. */
export const PAGE_DECISIONS = ['bring', 'keep', 'leave', 'skip'] as const;
/** Why; 'unknown': it is not among the candidates of the last plan, or none was made. */
export const PAGE_REASONS = [
  'important',
  'not worth its cost',
  'never paid',
  'no room in the budget',
  'a guest has it',
  'in the cache anyway',
  'unknown',
] as const;
export type PageReason = (typeof PAGE_REASONS)[number];

/** So many pages have this decision for this reason. */
export interface DecisionCount {
  decision: (typeof PAGE_DECISIONS)[number];
  reason: PageReason;
  pages: number;
  /** Sum of their wire bytes, expected savings and costs: bytes. */
  wireBytes: number;
  expectedBytes: number;
  costBytes: number;
}

/** Of some tags: where each stands at one host. The sum of two answers for two parts of the tags is that of both: {@link addHostExplanations}. */
export interface HostExplanation {
  pages: number;
  /** Held by a guest that runs there, as far as the directory's last answer says. */
  guests: number;
  /** In the shared-page cache; a page may be in both. */
  cache: number;
  /** Of `cache`: brought by distribution. */
  brought: number;
  /** To be brought by the last plan, and not there yet. */
  queued: number;
  /** In neither, and not to be brought. */
  missing: number;
  /** Hints that the domain's last plan knew, as {@link hintText} says them; null: no plan yet. Who waits for `queued` to be 0 after a hint waits for it here first. */
  hints: string[] | null;
  /** Every page is in exactly one; by decision and reason, only those that occur. */
  decisions: DecisionCount[];
}

/** `distribution explain GUEST`: the guest's stable pages, each content once, and where they are. */
export interface GuestExplanation {
  guest: string;
  domain: string;
  /** Of its stable tags, each once. */
  pages: number;
  /** This host is not among them. */
  hosts: GuestAtHost[];
}

export interface GuestAtHost {
  /** As the domain's home calls it. */
  host: string;
  url: string;
  /** How likely the guest comes there within the horizon, as this host's hints say; null: the directory is away. */
  likelihood: number | null;
  /** Null: the host did not answer. */
  explanation: HostExplanation | null;
}

/** The sum of the explanations of two parts of a guest's tags. */
export function addHostExplanations(a: HostExplanation, b: HostExplanation): HostExplanation {
  const decisions = a.decisions.map((count) => ({ ...count }));
  for (const count of b.decisions) {
    const same = decisions.find(({ decision, reason }) => decision === count.decision && reason === count.reason);
    if (same === undefined) {
      decisions.push({ ...count });
      continue;
    }
    same.pages += count.pages;
    same.wireBytes += count.wireBytes;
    same.expectedBytes += count.expectedBytes;
    same.costBytes += count.costBytes;
  }
  return {
    pages: a.pages + b.pages,
    guests: a.guests + b.guests,
    cache: a.cache + b.cache,
    brought: a.brought + b.brought,
    queued: a.queued + b.queued,
    missing: a.missing + b.missing,
    // a plan may have come between the two: what both knew
    hints: a.hints?.filter((hint) => b.hints?.includes(hint) ?? false) ?? null,
    decisions,
  };
}

/** A hint without its time: `evacuate HOST` or `affinity GUEST HOST…`. */
export function hintText(hint: Hint): string {
  return hint.kind === 'evacuate' ? `evacuate ${hint.host}` : `affinity ${hint.guest} ${hint.hosts.join(' ')}`;
}
