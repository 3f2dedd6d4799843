/** What members of a domain ask each other for `distribution explain`, as JSON. What comes from another agent is checked here. */
import { PagetideError } from '../errors.ts';
import {
  DISTRIBUTION_STATES,
  PAGE_DECISIONS,
  PAGE_REASONS,
  type DecisionCount,
  type DistributionState,
  type HostExplanation,
} from './info.ts';

/** Characters of a hint's text: its names, 64 hosts at most. */
const LONGEST_HINT = 64 * 1024;

export interface ExplainQuestion {
  /** Id of the domain. */
  domain: string;
  /** Packed, base64. */
  tags: string;
  /** How likely a guest with them comes to the host that is asked, as the one that asks sees it. */
  likelihood?: number;
}

/** What a member of a domain answers about tags. */
export interface TagsExplained {
  state: DistributionState;
  /** Since the last plan there began, milliseconds; null: none was made yet, or the directory did not answer it. */
  planAgeMs: number | null;
  explanation: HostExplanation;
}

/** @param count of the tags that were asked about. @throws PagetideError `PT_PEER_FAILED` */
export function tagsExplained(json: unknown, count: number, origin: string): TagsExplained {
  const { state, planAgeMs, explanation } = object(json);
  const { decisions, hints, ...counts } = object(explanation);
  const { pages, guests, cache, brought, queued, missing } = counts;
  const numbers = [pages, guests, cache, brought, queued, missing];
  if (
    !DISTRIBUTION_STATES.includes(state as DistributionState) ||
    !(planAgeMs === null || isFigure(planAgeMs)) ||
    !numbers.every((number) => Number.isSafeInteger(number) && isFigure(number) && number <= count) ||
    pages !== count ||
    !isHints(hints) ||
    !Array.isArray(decisions) ||
    decisions.length > PAGE_DECISIONS.length * PAGE_REASONS.length ||
    !decisions.every(isDecision)
  )
    throw new PagetideError('PT_PEER_FAILED', `${origin} did not say where the pages stand`);
  return json as TagsExplained;
}

function isDecision(json: unknown): json is DecisionCount {
  const { decision, reason, ...figures } = object(json);
  const { pages, wireBytes, expectedBytes, costBytes } = figures;
  return (
    PAGE_DECISIONS.includes(decision as never) &&
    PAGE_REASONS.includes(reason as never) &&
    [pages, wireBytes, expectedBytes, costBytes].every(isFigure)
  );
}

function isHints(json: unknown): boolean {
  return (
    json === null ||
    (Array.isArray(json) && json.every((hint: unknown) => typeof hint === 'string' && hint.length <= LONGEST_HINT))
  );
}

function isFigure(value: unknown): value is number {
  return typeof value === 'number' && Number.isFinite(value) && value >= 0;
}

function object(json: unknown): Record<string, unknown> {
  return (typeof json === 'object' && json !== null ? json : {}) as Record<string, unknown>;
}
