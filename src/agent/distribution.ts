/**
 * Distribution, as an agent has it: its parts put together, and told of what happens around them.
 *
 *   guest watches ──► sightings ──► reporters, one a domain ──► directories
 *                                                                   │
 *   page cache ◄── bringer ◄── distributor (plans, keeps score) ◄───╯
 *        migrations here: bringer and page server stand back ; a guest arrived: the distributor keeps score
 *
 * Reporters come and go with their domain's directory. A host without a cache brings nothing, and reports all the same.
 */
import { join } from 'node:path';
import type { Logger } from 'pino';
import type { DomainStore } from '../domains/store.ts';
import type { Surroundings } from '../distribution/bringing.ts';
import { PageBringer } from '../distribution/bringer.ts';
import { Distributor } from '../distribution/distributor.ts';
import { Epochs } from '../distribution/epochs.ts';
import { Reporter } from '../distribution/reporter.ts';
import type { Sightings } from '../distribution/sightings.ts';
import { pageRates, type TagPace } from '../distribution/tag-pace.ts';
import type { Rates } from '../distribution/token-bucket.ts';
import { asPagetideError } from '../errors.ts';
import type { SharedPages } from '../migration/shared-pages.ts';
import type { Manifest } from '../pages/manifest.ts';
import type { PageServer } from '../transport/page-server.ts';
import { fetchGuestTags, fetchGuests } from '../transport/directory-client.ts';
import type { ConnectPeer } from '../transport/member-peer.ts';
import type { AgentConfig } from './config.ts';
import { distributionSettings } from './config-distribution.ts';
import type { Directories } from './directories.ts';
import { DistributionControl, type ReportState } from './distribution-control.ts';
import { differentTags } from './distribution-explain.ts';
import type { DistributionCosts } from './metrics-distribution.ts';

export interface DistributionParts {
  config: Pick<AgentConfig, 'state' | 'name' | 'distribution' | 'directory'>;
  store: DomainStore;
  directories: Directories;
  shared: SharedPages;
  sightings: Sightings;
  /** Of all tags that this host tells and asks for. */
  pace: TagPace;
  pageServer: PageServer;
  /** The name in this host's certificate. */
  identity: string | undefined;
  url: string;
  connect: ConnectPeer;
  /** What is known of a guest that is here; undefined: nothing yet. @throws PagetideError `PT_GUEST_UNKNOWN` */
  guest(name: string): { domain: string | undefined; manifest: Manifest | undefined };
  /** Seconds of CPU that looking at guests has taken. */
  watchedS: () => number;
  log: Logger;
}

interface Reporting {
  directory: object;
  reporter: Reporter;
}

export class AgentDistribution {
  readonly control: DistributionControl;
  readonly #parts: DistributionParts;
  readonly #bringer: PageBringer | undefined;
  readonly #distributor: Distributor;
  readonly #epochs: Epochs;
  /** By the domain's name. */
  readonly #reporting = new Map<string, Reporting>();
  readonly #closing = new Set<Promise<unknown>>();
  /** Taken from reporters that have ended. */
  #reports = 0;
  #standing: (() => void)[] = [];
  #closed = false;

  private constructor(parts: DistributionParts, epochs: Epochs) {
    this.#parts = parts;
    this.#epochs = epochs;
    const { config, shared, store, directories, connect, url, identity, log } = parts;
    const settings = distributionSettings(config.distribution);
    const { cache, resident } = shared;
    this.#bringer = cache === undefined ? undefined : new PageBringer({ cache, rates: pageRates(settings.rates) });
    this.#distributor = new Distributor({
      ...{ around: this.#around(), cache, resident, settings, log },
      bringer: {
        bring: (errand, signal) => this.#bringer!.bring(errand, signal),
        setRates: (rates) => this.#setRates(rates),
        stats: () => ({ standingBack: this.#bringer?.stats().standingBack ?? false }),
      },
      folder: join(config.state, 'distribution'),
    });
    this.control = new DistributionControl({
      ...{ distributor: this.#distributor, directories, domains: store, connect, url, moves: settings.moves },
      domainOf: (guest) => parts.guest(guest).domain,
      names: [config.name, ...(identity === undefined ? [] : [identity])],
      reported: (domain) => this.#reported(domain),
      emptyDirectory: (domain) => directories.empty(domain),
      tagsOf: (guest) => {
        const { domain, manifest } = parts.guest(guest);
        const stable = parts.sightings.stableTags(guest);
        if (stable !== undefined && stable.tags.length > 0) return { ...stable, stable: true };
        if (domain === undefined || manifest === undefined) return undefined;
        return { domain, tags: differentTags(manifest), stable: false };
      },
    });
  }

  /** @throws PagetideError `PT_IO`, `PT_NO_SPACE` where its folder can't be used */
  static async start(parts: DistributionParts): Promise<AgentDistribution> {
    const epochs = await Epochs.open(join(parts.config.state, 'distribution'), parts.log);
    const distribution = new AgentDistribution(parts, epochs);
    await distribution.#distributor.start();
    distribution.#follow();
    parts.directories.onChange(() => {
      distribution.#follow();
      distribution.#distributor.nudge();
    });
    parts.shared.onRemoved((domain) => {
      distribution.#bringer?.domainRemoved(domain.id);
      distribution.#quietly(distribution.#distributor.domainRemoved(domain));
    });
    return distribution;
  }

  /** Whether a migration runs here: nothing is brought or sent for others meanwhile. */
  standBack(is: boolean): void {
    if (is === this.#standing.length > 0) return;
    for (const release of this.#standing.splice(0)) release();
    if (!is || this.#closed) return;
    this.#standing.push(this.#parts.pageServer.standBack());
    if (this.#bringer !== undefined) this.#standing.push(this.#bringer.standBack());
  }

  /** A guest of a domain arrived here, with this memory. Before other guests may find its pages here. */
  arrived(domain: number, manifest: Pick<Manifest, 'tags'>): void {
    const name = this.#parts.store.all().find(({ number }) => number === domain)?.name;
    if (name !== undefined && !this.#closed) this.#quietly(this.#distributor.arrived(name, manifest));
  }

  costs(): DistributionCosts {
    const { pageServer, watchedS } = this.#parts;
    return {
      servedBytes: pageServer.tagCounters().backgroundBytes,
      sightingSeconds: watchedS(),
      reports: [...this.#reporting.values()].reduce(
        (sum, { reporter }) => sum + reporter.state().reports,
        this.#reports,
      ),
    };
  }

  async close(): Promise<void> {
    this.#closed = true;
    this.standBack(false);
    for (const [name, reporting] of [...this.#reporting]) this.#end(name, reporting);
    await Promise.all(this.#closing);
    await this.#distributor.close();
    await this.#bringer?.close();
  }

  #around(): Surroundings {
    const { store, directories, connect, shared } = this.#parts;
    return {
      directory: (name) => {
        const place = directories.get(name);
        return place === undefined ? undefined : { ...place, home: directories.state(name)?.home ?? null };
      },
      // also gives the cache their keys, without which nothing can be verified
      domains: () => store.all().flatMap(({ name }) => shared.domain(name) ?? []),
      members: (name) => store.members(name),
      guestTags: (member, domain, guest) =>
        fetchGuestTags(connect, member, { domain, guest, as: this.#self(domain) }, { pace: this.#parts.pace }),
      guestsOf: (member, domain) => fetchGuests(connect, member, { domain, as: this.#self(domain) }),
    };
  }

  #self(domain: string): string {
    const { store, directories } = this.#parts;
    const name = store.byId(domain)?.name;
    return (name === undefined ? undefined : directories.get(name)?.self) ?? '';
  }

  #setRates(rates: Rates): void {
    const pages = pageRates(rates);
    this.#parts.pace.setPeak(rates.peak);
    this.#bringer?.setRates(pages);
    this.#quietly(this.#parts.pageServer.setBackgroundRates(pages));
  }

  /** A reporter for each directory that there is, and none else. */
  #follow(): void {
    if (this.#closed) return;
    const { store, directories, sightings, config, log } = this.#parts;
    const { leaseMs, reportMs } = config.directory;
    const here = new Set<string>();
    for (const { name } of store.all()) {
      const place = directories.get(name);
      if (place === undefined) continue;
      here.add(name);
      const known = this.#reporting.get(name);
      if (known?.directory === place.directory) continue;
      if (known !== undefined) this.#end(name, known);
      const { directory, domain, self } = place;
      const reporter = new Reporter({
        ...{ directory, domain, host: self, epochs: this.#epochs },
        source: sightings.of(name),
        // what is told to this agent itself crosses no wire
        pace: directories.state(name)?.home === null ? undefined : this.#parts.pace,
        log: log.child({ domain: name }),
        settings: { leaseMs, intervalMs: reportMs },
      });
      this.#reporting.set(name, { directory, reporter });
      reporter.start();
    }
    for (const [name, reporting] of [...this.#reporting]) if (!here.has(name)) this.#end(name, reporting);
  }

  #end(name: string, { reporter }: Reporting): void {
    this.#reporting.delete(name);
    this.#reports += reporter.state().reports;
    this.#quietly(reporter.close());
  }

  #reported(domain: string): ReportState | undefined {
    const state = this.#reporting.get(domain)?.reporter.state();
    if (state === undefined) return undefined;
    const { lastReportMs = null, reportedTags } = state;
    // true until it was asked
    const { reachable = null, error } = this.#parts.directories.state(domain) ?? {};
    return {
      ...{ lastReportMs, reportedTags, reachable: lastReportMs === null && reachable ? null : reachable },
      ...(error === undefined ? {} : { error }),
    };
  }

  /** {@link close} waits for it. */
  #quietly(work: Promise<unknown>): void {
    const quiet = work.catch((thrown: unknown) => {
      const { code, message } = asPagetideError(thrown);
      this.#parts.log.warn({ code }, `distribution: ${message}`);
    });
    this.#closing.add(quiet);
    void quiet.finally(() => this.#closing.delete(quiet));
  }
}
