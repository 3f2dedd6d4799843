/**
 * What operators ask of distribution, and members of a domain of each other: the API's routes and the CLI stand on this.
 * src/distribution/info.ts has what an agent tells of its own; distribution-control.ts does it.
 */
import type { HintSubject } from '../directory/hint.ts';
import type { Sender } from '../domains/messages.ts';
import type { TagsExplained } from '../distribution/explain-message.ts';
import type { DistributionInfo, DistributionState, GuestAtHost, GuestExplanation } from '../distribution/info.ts';
import type { ErrorJson } from '../errors.ts';

/** How long a plan is in force where nobody says. Milliseconds. */
export const PLAN_MS = 2 * 3_600_000;
/** Tags in one question of a member to another. */
export const MOST_EXPLAINED = 65_536;

/**
 * What operators say about where guests of a domain will go, for a while: all guests of a host leave it, or one guest goes to
 * one of these hosts. Hosts are called as the domain's home calls them.
 */
export type GuestPlan = { domain: string; leftMs: number } & (
  { kind: 'evacuate'; host: string } | { kind: 'affinity'; guest: string; hosts: string[] }
);

/** What plans are about. */
export type PlanSubject = HintSubject;

/** A domain whose directory could not be asked. */
export interface DomainFailure {
  domain: string;
  error: ErrorJson;
}

export interface GuestPlans {
  plans: GuestPlan[];
  failed: DomainFailure[];
}

export interface WithdrawnPlans {
  /** Domains that had it. */
  withdrawn: string[];
  failed: DomainFailure[];
}

/** A host of the guest's domain, and what it has of the guest. */
export interface ExplainedHost extends GuestAtHost {
  /** Pages that it would send to others now, by its own word; null: it was not reached. */
  present: number | null;
  /** As of {@link TagsExplained}; null: it did not answer. */
  state: DistributionState | null;
  planAgeMs: number | null;
  /** Why it did not. */
  error?: ErrorJson;
}

export interface ExplainedGuest extends Omit<GuestExplanation, 'hosts'> {
  /** False: nothing of it is known to be stable yet, and these are all of its pages. */
  stable: boolean;
  hosts: ExplainedHost[];
}

export interface RatesWanted {
  /** Bytes a second. */
  average: number;
  /** Undefined: four times the average. */
  peak?: number;
}

export interface DistributionService {
  status(): DistributionInfo;
  /** Nothing is brought until {@link resume}; outlives a restart. */
  pause(): Promise<DistributionInfo>;
  resume(): Promise<DistributionInfo>;
  /** Outlives a restart. @throws PagetideError `PT_BAD_ARGUMENT` */
  setRates(rates: RatesWanted): Promise<DistributionInfo>;
  /** Bytes of the cache that brought pages may take; outlives a restart. @throws PagetideError `PT_BAD_ARGUMENT` */
  setBudget(bytes: number): Promise<DistributionInfo>;

  /**
   * Where the pages of a guest of this host are, and what each other host of its domain will do about the rest.
   * @throws PagetideError `PT_GUEST_UNKNOWN`; `PT_GUEST_STATE`: it has no domain, or no page of it is known yet
   */
  explain(guest: string): Promise<ExplainedGuest>;
  /** Every host of the domain tells it all anew. @throws PagetideError `PT_DOMAIN_UNKNOWN`, `PT_PEER_UNREACHABLE` */
  emptyDirectory(domain: string): Promise<void>;

  /** Those in force in the domains of this host. */
  plans(): Promise<GuestPlans>;
  /**
   * The guests of `host` leave it within that time: in each domain of this agent and that host, or in one.
   * @param host as members call it, its agent's URL, or `self`
   * @throws PagetideError `PT_BAD_ARGUMENT`, `PT_DOMAIN_UNKNOWN`, `PT_PEER_UNREACHABLE` where no directory was reached
   */
  evacuate(host: string, forMs: number, domain?: string): Promise<GuestPlans>;
  /** @param domain needed where the guest is not here. @throws PagetideError as {@link evacuate}, `PT_GUEST_UNKNOWN` */
  affinity(guest: string, hosts: readonly string[], forMs: number, domain?: string): Promise<GuestPlans>;
  /** @throws PagetideError `PT_PLAN_UNKNOWN` where none was in force, `PT_DOMAIN_UNKNOWN`, `PT_PEER_UNREACHABLE` */
  withdraw(subject: PlanSubject, domain?: string): Promise<WithdrawnPlans>;

  // between agents
  /**
   * Where packed tags stand at this host, for another member of the domain.
   * @param id of the domain
   * @param likelihood how likely a guest with them comes here, as the member sees it
   * @throws PagetideError `PT_DOMAIN_UNKNOWN`, `PT_NO_PERMISSION`, `PT_BAD_ARGUMENT`
   */
  explainTags(id: string, tags: Uint8Array, likelihood: number | undefined, sender: Sender): Promise<TagsExplained>;
}
