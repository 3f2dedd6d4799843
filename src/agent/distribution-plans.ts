/**
 * Operators' plans, kept in the directories of domains so that every member sees them. Everything is checked before the first directory
 * is told.
 */
import { AFFINITY_HOSTS_LIMIT, HINT_LIMIT_MS, type Hint } from '../directory/hint.ts';
import { asPagetideError, PagetideError } from '../errors.ts';
import type { DomainStore } from '../domains/store.ts';
import type { DomainFailure, GuestPlan, GuestPlans, PlanSubject, WithdrawnPlans } from './distribution-service.ts';

/** Clocks of two hosts run at slightly different speeds, and messages take time. Milliseconds. */
const SLACK_MS = 5_000;

/** What of a directory is needed here. */
export interface HintDirectory {
  hints(domain: string): Promise<Hint[]>;
  hint(domain: string, hint: Hint): Promise<void>;
  withdraw(domain: string, subject: PlanSubject): Promise<boolean>;
  empty(): Promise<void>;
}

/** The directory of a domain. */
export interface DomainDirectory {
  directory: HintDirectory;
  /** The domain's id. */
  domain: string;
  /** This host, as the domain's home calls it. */
  self: string;
}

export interface PlansParts {
  directories: { get(name: string): DomainDirectory | undefined };
  domains: Pick<DomainStore, 'all' | 'members'>;
  /** The domain of a guest that is here. @throws PagetideError `PT_GUEST_UNKNOWN` */
  domainOf(guest: string): string | undefined;
  /** Other names of this host: the agent's, and that in its certificate. */
  names: readonly string[];
  /** Under which other agents reach this one. */
  url: string;
}

interface Place extends DomainDirectory {
  name: string;
}

export class Plans {
  readonly #parts: PlansParts;

  constructor(parts: PlansParts) {
    this.#parts = parts;
  }

  async list(): Promise<GuestPlans> {
    const plans: GuestPlan[] = [];
    const failed = await this.#each(this.#known(), async ({ name, directory, domain }) => {
      for (const hint of await directory.hints(domain)) plans.push(planOf(name, hint));
    });
    plans.sort((a, b) => a.domain.localeCompare(b.domain) || a.leftMs - b.leftMs);
    return { plans, failed: failed.map(told) };
  }

  /** See {@link DistributionService.evacuate}. */
  evacuate(host: string, forMs: number, domain?: string): Promise<GuestPlans> {
    checkTime(forMs);
    const planned = this.#placesOf(host, domain);
    return this.#tell(
      planned.map(({ place, host: called }) => [place, { kind: 'evacuate', host: called, leftMs: forMs }]),
    );
  }

  /** See {@link DistributionService.affinity}. */
  affinity(guest: string, hosts: readonly string[], forMs: number, domain?: string): Promise<GuestPlans> {
    checkTime(forMs);
    const place = this.#need(domain ?? this.#domainOf(guest));
    const called = [...new Set(hosts.map((host) => this.#hostIn(place, host) ?? unknownHost(host, [place])))];
    if (called.length < 1 || called.length > AFFINITY_HOSTS_LIMIT)
      throw new PagetideError(
        'PT_BAD_ARGUMENT',
        `an affinity names 1 to ${AFFINITY_HOSTS_LIMIT} hosts, not ${called.length}`,
      );
    return this.#tell([[place, { kind: 'affinity', guest, hosts: called, leftMs: forMs }]]);
  }

  /** See {@link DistributionService.withdraw}. */
  async withdraw(subject: PlanSubject, domain?: string): Promise<WithdrawnPlans> {
    const withdrawn: string[] = [];
    const failed = await this.#each(domain === undefined ? this.#all() : [this.#need(domain)], async (place) => {
      // a host that is a member no more may have left a plan behind
      const about: PlanSubject =
        subject.kind === 'evacuate'
          ? { kind: 'evacuate', host: this.#hostIn(place, subject.host) ?? subject.host }
          : subject;
      if (await place.directory.withdraw(place.domain, about)) withdrawn.push(place.name);
    });
    if (withdrawn.length > 0) return { withdrawn: withdrawn.sort(), failed: failed.map(told) };
    if (failed[0] !== undefined) throw failed[0].thrown;
    const what = subject.kind === 'evacuate' ? `to evacuate '${subject.host}'` : `for guest '${subject.guest}'`;
    throw new PagetideError('PT_PLAN_UNKNOWN', `no plan ${what} is in force`);
  }

  /**
   * Sees to it that a plan to evacuate this host is in force for that time; a longer one of an operator is left alone.
   * @returns puts things back to where they were, as far as directories are reached; never rejects
   * @throws PagetideError as {@link evacuate}
   */
  async hold(forMs: number): Promise<() => Promise<void>> {
    const places = this.#placesOf('self', undefined);
    const before = new Map<string, number>();
    const failed = await this.#each(
      places.map(({ place }) => place),
      async ({ name, directory, domain, self }) => {
        before.set(name, evacuationOf(self, await directory.hints(domain))?.leftMs ?? 0);
      },
    );
    const at = performance.now();
    const lacking = places.filter(({ place }) => (before.get(place.name) ?? Infinity) < forMs);
    if (lacking.length === 0 && failed[0] !== undefined) throw failed[0].thrown;
    const release = async (): Promise<void> => {
      const passed = performance.now() - at;
      // also where the answer was lost: it may be in force all the same
      await this.#each(
        lacking.map(({ place }) => place),
        async ({ name, directory, domain, self }) => {
          const now = evacuationOf(self, await directory.hints(domain));
          // withdrawn by an operator meanwhile, or one of his that is in force for longer
          if (now === undefined || now.leftMs > forMs - passed + SLACK_MS) return;
          const leftMs = before.get(name)! - passed;
          if (leftMs > 0) await directory.hint(domain, { kind: 'evacuate', host: self, leftMs });
          else await directory.withdraw(domain, { kind: 'evacuate', host: self });
        },
      );
    };
    if (lacking.length === 0) return release;
    try {
      await this.#tell(lacking.map(({ place, host }) => [place, { kind: 'evacuate', host, leftMs: forMs }]));
    } catch (thrown) {
      await release();
      throw thrown;
    }
    return release;
  }

  /** The directory of a domain of this host. @throws PagetideError `PT_DOMAIN_UNKNOWN` */
  directory(name: string): DomainDirectory {
    return this.#need(name);
  }

  async #tell(hints: [Place, Hint][]): Promise<GuestPlans> {
    const plans: GuestPlan[] = [];
    const about = new Map(hints);
    const failed = await this.#each([...about.keys()], async (place) => {
      const hint = about.get(place)!;
      await place.directory.hint(place.domain, hint);
      plans.push(planOf(place.name, hint));
    });
    if (plans.length === 0) throw failed[0]!.thrown;
    return { plans, failed: failed.map(told) };
  }

  /** Runs for all at once. */
  async #each(
    places: Place[],
    work: (place: Place) => Promise<void>,
  ): Promise<(DomainFailure & { thrown: PagetideError })[]> {
    const failed: (DomainFailure & { thrown: PagetideError })[] = [];
    await Promise.all(
      places.map(async (place) => {
        try {
          await work(place);
        } catch (error) {
          const thrown = asPagetideError(error);
          failed.push({ domain: place.name, error: thrown.toJSON(), thrown });
        }
      }),
    );
    return failed;
  }

  #known(): Place[] {
    return this.#parts.domains.all().flatMap(({ name }) => {
      const found = this.#parts.directories.get(name);
      return found === undefined ? [] : [{ ...found, name }];
    });
  }

  #all(): Place[] {
    const all = this.#known();
    if (all.length > 0) return all;
    throw new PagetideError('PT_DOMAIN_UNKNOWN', 'this host has no domain, and plans are about guests of a domain');
  }

  #need(name: string): Place {
    const found = this.#parts.directories.get(name);
    if (found === undefined) throw new PagetideError('PT_DOMAIN_UNKNOWN', `there is no domain '${name}' on this host`);
    return { ...found, name };
  }

  #domainOf(guest: string): string {
    let domain: string | undefined;
    try {
      domain = this.#parts.domainOf(guest);
    } catch (thrown) {
      const { code, message } = asPagetideError(thrown);
      throw new PagetideError(code, message, {
        cause: thrown,
        hint: 'Name its domain (--domain) where it is at another host.',
      });
    }
    if (domain !== undefined) return domain;
    throw new PagetideError('PT_GUEST_STATE', `guest '${guest}' is of no domain: its pages are brought nowhere`, {
      hint: 'Give guests a domain with --domain of `guest run` or `guest attach`.',
    });
  }

  /** Where that host is a member, and how it is called there; at least one. */
  #placesOf(host: string, domain: string | undefined): { place: Place; host: string }[] {
    const places = domain === undefined ? this.#all() : [this.#need(domain)];
    const found = places.flatMap((place) => {
      const called = this.#hostIn(place, host);
      return called === undefined ? [] : [{ place, host: called }];
    });
    return found.length > 0 ? found : unknownHost(host, places);
  }

  #hostIn({ name, self }: Place, host: string): string | undefined {
    const members = this.#parts.domains.members(name);
    if (host === self || members.some((member) => member.host === host)) return host;
    const { names, url } = this.#parts;
    if (host === 'self' || names.includes(host) || sameOrigin(host, url)) return self;
    return members.find((member) => sameOrigin(host, member.url))?.host;
  }
}

function evacuationOf(host: string, hints: readonly Hint[]): Hint | undefined {
  return hints.find((hint) => hint.kind === 'evacuate' && hint.host === host);
}

function told({ domain, error }: DomainFailure): DomainFailure {
  return { domain, error };
}

function planOf(domain: string, hint: Hint): GuestPlan {
  const leftMs = Math.max(0, hint.leftMs);
  return hint.kind === 'evacuate'
    ? { domain, kind: hint.kind, host: hint.host, leftMs }
    : { domain, kind: hint.kind, guest: hint.guest, hosts: [...hint.hosts], leftMs };
}

function checkTime(forMs: number): void {
  if (forMs > 0 && forMs <= HINT_LIMIT_MS) return;
  throw new PagetideError('PT_BAD_ARGUMENT', `a plan is in force for more than 0 and at most 30 days, not ${forMs} ms`);
}

function unknownHost(host: string, places: readonly Place[]): never {
  const where = places.length === 1 ? `the domain '${places[0]!.name}' has` : 'no domain of this agent has';
  throw new PagetideError('PT_BAD_ARGUMENT', `${where} ${places.length === 1 ? 'no ' : 'a '}host '${host}'`, {
    hint: '`pagetide domain list` shows the hosts of each domain; `self` is this one.',
  });
}

/** Whether two URLs are of one agent; false where one is none. */
export function sameOrigin(a: string, b: string): boolean {
  return URL.canParse(a) && URL.canParse(b) && new URL(a).origin !== 'null' && new URL(a).origin === new URL(b).origin;
}
