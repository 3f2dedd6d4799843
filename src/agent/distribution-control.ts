/** {@link DistributionService} over the parts of distribution: what operators see and set, and what members of a domain ask. */
import type { Sender } from '../domains/messages.ts';
import type { DomainStore } from '../domains/store.ts';
import type { DistributionInfo, HostExplanation } from '../distribution/info.ts';
import type { TagsExplained } from '../distribution/explain-message.ts';
import type { Rates } from '../distribution/token-bucket.ts';
import { PagetideError, type ErrorJson } from '../errors.ts';
import { TAG_BYTES } from '../pages/tags.ts';
import { PEAK_FACTOR } from './config-distribution.ts';
import { LEAST_RATE } from './config-units.ts';
import { explainGuest, type ExplainParts } from './distribution-explain.ts';
import { Plans, sameOrigin, type PlansParts } from './distribution-plans.ts';
import type { Preparer } from './evacuation-preparation.ts';
import {
  MOST_EXPLAINED,
  type DistributionService,
  type ExplainedGuest,
  type GuestPlans,
  type PlanSubject,
  type RatesWanted,
  type WithdrawnPlans,
} from './distribution-service.ts';

/** What of a distributor is needed here. */
export interface ControlledDistributor {
  status(): DistributionInfo;
  pause(): void | Promise<void>;
  resume(): void | Promise<void>;
  setRates(rates: Rates): void | Promise<void>;
  setBudget(bytes: number): void | Promise<void>;
  explain(domainName: string, tags: Uint8Array, likelihood?: number): HostExplanation | Promise<HostExplanation>;
}

/** What this host has reported of a domain. */
export interface ReportState {
  /** Since the last report was taken; null: none was. */
  lastReportMs: number | null;
  reportedTags: number | null;
  /** Whether its directory answered whoever asked it last, also where nothing is planned here. */
  reachable: boolean | null;
  /** Why its directory does not take them, or that it can't be relied on. */
  error?: ErrorJson;
}

export interface DistributionControlParts extends PlansParts, ExplainParts {
  distributor: ControlledDistributor;
  directories: PlansParts['directories'];
  domains: Pick<DomainStore, 'all' | 'byId' | 'get' | 'members' | 'record'>;
  /** By the domain's name; undefined: nothing is reported of it. */
  reported(domain: string): ReportState | undefined;
  /** Of a domain that was made here, and none else's. Without: whatever its directory lets this host do. */
  emptyDirectory?: (domain: string) => Promise<void>;
  /** Unix milliseconds, as plans are stamped with; tests give their own. */
  now?: () => number;
}

export class DistributionControl implements DistributionService {
  readonly #parts: DistributionControlParts;
  readonly #plans: Plans;

  constructor(parts: DistributionControlParts) {
    this.#parts = parts;
    this.#plans = new Plans(parts);
  }

  status(): DistributionInfo {
    const info = this.#parts.distributor.status();
    const domains = info.domains.map((one) => ({
      ...one,
      directory: { ...one.directory, ...this.#parts.reported(one.domain) },
    }));
    return { ...info, domains };
  }

  async pause(): Promise<DistributionInfo> {
    await this.#parts.distributor.pause();
    return this.status();
  }

  async resume(): Promise<DistributionInfo> {
    await this.#parts.distributor.resume();
    return this.status();
  }

  async setRates({ average, peak = average * PEAK_FACTOR }: RatesWanted): Promise<DistributionInfo> {
    if (!(average >= LEAST_RATE) || !Number.isSafeInteger(average) || !Number.isSafeInteger(peak))
      throw new PagetideError(
        'PT_BAD_ARGUMENT',
        `the average is ${LEAST_RATE} bytes a second at least, not ${average}`,
      );
    if (peak < average)
      throw new PagetideError('PT_BAD_ARGUMENT', `the peak, ${peak}, is below the average, ${average}`);
    await this.#parts.distributor.setRates({ average, peak });
    return this.status();
  }

  async setBudget(bytes: number): Promise<DistributionInfo> {
    if (!Number.isSafeInteger(bytes) || bytes < 0)
      throw new PagetideError('PT_BAD_ARGUMENT', `a budget is a number of bytes, not ${bytes}`);
    await this.#parts.distributor.setBudget(bytes);
    return this.status();
  }

  explain(guest: string): Promise<ExplainedGuest> {
    return explainGuest(this.#parts, guest);
  }

  async emptyDirectory(domain: string): Promise<void> {
    const { emptyDirectory } = this.#parts;
    if (emptyDirectory === undefined) await this.#plans.directory(domain).directory.empty();
    else await emptyDirectory(domain);
  }

  plans(): Promise<GuestPlans> {
    return this.#plans.list();
  }

  // async: what is refused is a rejection, too
  async evacuate(host: string, forMs: number, domain?: string): Promise<GuestPlans> {
    return this.#plans.evacuate(host, forMs, domain);
  }

  async affinity(guest: string, hosts: readonly string[], forMs: number, domain?: string): Promise<GuestPlans> {
    return this.#plans.affinity(guest, hosts, forMs, domain);
  }

  withdraw(subject: PlanSubject, domain?: string): Promise<WithdrawnPlans> {
    return this.#plans.withdraw(subject, domain);
  }

  /** For evacuations that are prepared. */
  preparer(): Preparer {
    return {
      hold: (forMs) => this.#plans.hold(forMs),
      explain: (guest, urls) => explainGuest(this.#parts, guest, ({ url }) => urls.some((to) => sameOrigin(to, url))),
    };
  }

  async explainTags(
    id: string,
    tags: Uint8Array,
    likelihood: number | undefined,
    sender: Sender,
  ): Promise<TagsExplained> {
    const { domains, distributor, now = Date.now } = this.#parts;
    const record = domains.byId(id);
    if (record === undefined) throw new PagetideError('PT_DOMAIN_UNKNOWN', 'this host does not have that domain');
    // without a name it came by the control socket, whose file only this user can open
    if (sender !== null && !domains.members(record.name).some(({ host }) => host === sender))
      throw new PagetideError('PT_NO_PERMISSION', `${sender} is no host of the domain '${record.name}'`, {
        hint: '`pagetide domain show` lists its hosts.',
      });
    const count = tags.length / TAG_BYTES;
    if (!Number.isInteger(count) || count > MOST_EXPLAINED)
      throw new PagetideError(
        'PT_BAD_ARGUMENT',
        `tags have ${TAG_BYTES} bytes each, ${MOST_EXPLAINED} at once at most`,
      );
    const { state, lastPlan } = distributor.status();
    return {
      state,
      // whichever of its two ends it was stamped at. A plan that the domain's directory had no part in says nothing of the domain
      planAgeMs:
        lastPlan === null || lastPlan.away.includes(record.name)
          ? null
          : Math.max(0, now() - lastPlan.at) + lastPlan.tookMs,
      explanation: await distributor.explain(record.name, tags, likelihood),
    };
  }
}
