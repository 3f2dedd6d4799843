/** The agent: {@link AgentService} over guests, migrations and the host's own figures. */
import { createRequire } from 'node:module';
import { dirname, join } from 'node:path';
import { existsSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import type { Logger } from 'pino';
import { PagetideError } from '../errors.ts';
import type { Movable, VerifyResult, Vmm } from '../guests/driver.ts';
import { MemoryReleaser } from '../memory/release-memory.ts';
import { IncomingMigration } from '../migration/incoming.ts';
import type { MigrationHost } from '../migration/host.ts';
import { planMigration, type Plan } from '../migration/modes.ts';
import { OutgoingMigration } from '../migration/outgoing.ts';
import { describe } from '../migration/ownership/index.ts';
import {
  PEER_PROTOCOL,
  type Capabilities,
  type CompletionFigures,
  type Finding,
  type IncomingStatus,
  type MigrationInfo,
  type PrepareRequest,
  type Rest,
} from '../migration/types.ts';
import { DomainService, type DomainUse } from '../domains/service.ts';
import type { DomainStore } from '../domains/store.ts';
import type { Kept } from '../pages/keep-task.ts';
import { PeerClient } from '../transport/peer.ts';
import { cachePath } from './cache.ts';
import { writeTracking } from './capabilities.ts';
import { CacheService } from './cache-service.ts';
import type { AgentConfig } from './config.ts';
import type { Directories } from './directories.ts';
import type { AgentDistribution } from './distribution.ts';
import type { DistributionControl } from './distribution-control.ts';
import { runDoctor } from './doctor.ts';
import { Evacuations } from './evacuations.ts';
import type { GuestWatches } from './guest-watches.ts';
import { roomLeft } from './room.ts';
import { statusOf, type Guest, type Guests } from './guests.ts';
import type { Journal } from './journal.ts';
import { createMetrics, type Metrics } from './metrics.ts';
import { MigrationCounts } from './migration-counts.ts';
import { Migrations } from './migrations.ts';
import type {
  AgentInfo,
  AgentService,
  CacheInfo,
  Check,
  EvacuateRequest,
  EvacuationInfo,
  GuestInfo,
  GuestRequest,
  GuestState,
  MigrateRequest,
  SnapshotInfo,
  SnapshotRequest,
  WarmRequest,
} from './service.ts';
import type { Snapshots } from './snapshots.ts';

/** A watcher is told at least this often, milliseconds: figures change without an event. */
const WATCH_MS = 200;
/** How long a request for a guest waits for its arrival to be written down, milliseconds. */
const ARRIVAL_MS = 2_000;

export class Agent implements AgentService {
  readonly migrations: Migrations;
  readonly domains: DomainService;
  readonly directories: Directories;
  #distribution: AgentDistribution | undefined;
  readonly #config: AgentConfig;
  readonly #host: MigrationHost;
  readonly #guests: Guests;
  readonly #cache: CacheService;
  readonly #snapshots: Snapshots;
  readonly #evacuations: Evacuations;
  readonly #metrics: Metrics = createMetrics({ process: true });
  readonly #startedAt = performance.now();
  readonly #counts = new MigrationCounts(this.#metrics);
  readonly #watchers = new Set<() => void>();
  #follow: (() => void) | undefined;
  readonly #memory = new MemoryReleaser(() => this.#isIdle(), true);

  /** @param identity the name in this host's certificate, where it has one */
  constructor(
    config: AgentConfig,
    host: MigrationHost,
    guests: Guests,
    journal: Journal,
    store: DomainStore,
    snapshots: Snapshots,
    identity: string | undefined,
    directories: Directories,
    log: Logger,
  ) {
    this.directories = directories;
    this.#config = config;
    this.#host = host;
    this.#guests = guests;
    this.#snapshots = snapshots;
    this.#cache = new CacheService(host.shared, guests, cachePath(config));
    this.migrations = new Migrations(host, guests, journal, log);
    this.#evacuations = new Evacuations({
      ...{ host, guests, migrations: this.migrations, log },
      migrate: (request) => this.migrate(request),
      preparer: () => this.distribution?.preparer(),
      watch: (migration, signal) => this.watchMigration(migration, signal),
      cancel: (guest) => this.cancel(guest),
      limit: (migration, bandwidth) => {
        const machine = this.migrations.all().findLast(({ state }) => state.migration === migration);
        if (machine instanceof OutgoingMigration && !machine.ended) machine.limit(bandwidth);
      },
    });
    this.domains = new DomainService({
      store,
      url: host.url,
      identity,
      control: config.control,
      contactMs: config.domains.contactMs,
      uses: (domain) => this.#uses(domain),
      connect: (url, whom) => new PeerClient(url, { ...whom, answerMs: config.timeouts.peerMs }),
      log,
    });
    this.migrations.onChange(() => {
      this.#counts.look(this.migrations.all());
      if (this.#isIdle()) this.#memory.ended();
      this.#distribution?.standBack(!this.#isIdle());
      this.#follow?.();
      for (const told of [...this.#watchers]) told();
    });
  }

  /** From now on guests of a domain are watched. Once it is known which of them are in a migration: others must be let alone. */
  watchGuests(watches: GuestWatches): void {
    const follow = (): void => {
      const guests = this.#guests.all().map(({ name, vmm, awaiting, error }) => {
        return { name, vmm, free: !awaiting && error === undefined && this.migrations.of(name) === undefined };
      });
      watches.follow(guests);
    };
    this.#follow = follow;
    this.#guests.onChange(follow);
    this.#host.shared.onRemoved(follow);
    follow();
  }

  /** From now on this agent takes part in distribution. */
  distribute(distribution: AgentDistribution): void {
    this.#distribution = distribution;
    distribution.standBack(!this.#isIdle());
  }

  get distribution(): DistributionControl | undefined {
    return this.#distribution?.control;
  }

  info(): AgentInfo {
    const { pools, url } = this.#host;
    return {
      name: this.#config.name,
      version: VERSION,
      url,
      pid: process.pid,
      uptimeSeconds: Math.round((performance.now() - this.#startedAt) / 1000),
      faultWorkers: { total: pools.size, busy: pools.busy },
    };
  }

  doctor(): Promise<Check[]> {
    return runDoctor();
  }

  async metrics(): Promise<string> {
    const infos = await this.listGuests();
    this.#metrics.setGuests(infos.map(({ state }) => state));
    this.#metrics.faultWorkersBusy.set(this.#host.pools.busy);
    const { cache, resident } = this.#host.shared;
    if (cache !== undefined) this.#metrics.setCache(cache.stats());
    this.#metrics.setPeers(this.#host.pageServer.tagCounters());
    this.#metrics.setMismatches(this.#counts.mismatches(this.migrations.all()));
    if (resident !== undefined) this.#metrics.setResident(resident.stats());
    if (this.#distribution !== undefined)
      this.#metrics.setDistribution(this.#distribution.control.status(), this.#distribution.costs());
    this.#metrics.setEvacuations(this.#evacuations.figures());
    return this.#metrics.text();
  }

  listGuests(): Promise<GuestInfo[]> {
    return Promise.all(this.#guests.all().map((guest) => this.#info(guest, false)));
  }

  showGuest(name: string): Promise<GuestInfo> {
    return this.#info(this.#guests.need(name), true);
  }

  async attachGuest(request: GuestRequest): Promise<GuestInfo> {
    this.#refuseBusy(request.name); // a migration may be bringing, or still ending, one of that name
    this.#checkDomain(request);
    return this.#info(await this.#guests.attach(request), false);
  }

  async runGuest(request: GuestRequest): Promise<GuestInfo> {
    this.#refuseBusy(request.name);
    this.#checkDomain(request);
    return this.#info(await this.#guests.run(request), false);
  }

  async verifyGuest(name: string): Promise<VerifyResult | null> {
    const { vmm } = this.#guests.need(name);
    const state = await vmm.status();
    if (state !== 'running')
      throw new PagetideError('PT_GUEST_STATE', `guest '${name}' is ${state}: only a running guest can check itself`);
    return vmm.verify();
  }

  async removeGuest(name: string): Promise<void> {
    this.#guests.need(name);
    await this.#arrived(name);
    const machine = this.migrations.of(name);
    if (machine instanceof OutgoingMigration && machine.isLostThere) {
      // What is kept here for a destination that lost the guest: only the operator can give that up, and does.
      await machine.discard();
      return;
    }
    this.#refuseBusy(name);
    await this.#guests.remove(name);
  }

  cacheInfo(): CacheInfo {
    return this.#cache.stats();
  }

  clearCache(): number {
    return this.#cache.clear();
  }

  warmCache(request: WarmRequest): Promise<Kept> {
    return this.#cache.warm(request);
  }

  listSnapshots(): SnapshotInfo[] {
    return this.#snapshots.list();
  }

  async shareSnapshot(request: SnapshotRequest): Promise<SnapshotInfo> {
    return this.#snapshots.share(request);
  }

  unshareSnapshot(file: string): Promise<void> {
    return this.#snapshots.unshare(file);
  }

  async migrate(request: MigrateRequest): Promise<MigrationInfo> {
    const { guest: name, to } = request;
    const { vmm } = this.#guests.need(name);
    await this.#arrived(name);
    this.#refuseBusy(name);
    if (sameUrl(to, this.#host.url)) {
      throw new PagetideError('PT_BAD_ARGUMENT', `guest '${name}' is at ${to} already`, {
        hint: 'Give the URL of another agent.',
      });
    }
    const state = await vmm.status();
    if (state !== 'running')
      throw new PagetideError('PT_GUEST_STATE', `guest '${name}' is ${state}: only a running guest is migrated`);
    const plan = await this.#plan(request, vmm, (await vmm.checkMovable?.()) ?? {});
    await vmm.resetStats();
    this.#refuseBusy(name); // another request may have come meanwhile
    const machine = this.migrations.start(request, plan);
    await settled(machine);
    return machine.info();
  }

  /**
   * How the guest is to move. An explicit post-copy needs no question: a destination that can't says so when it is to prepare, and
   * nothing has changed by then.
   */
  async #plan(request: MigrateRequest, { record }: Vmm, movable: Movable): Promise<Plan> {
    const source = { pageSize: record.pageSize, tracking: writeTracking(), ...movable };
    if (request.mode === 'post-copy') return planMigration(request, source, undefined);
    // what can't be is refused also where the destination can't be asked
    if (request.mode !== 'auto') planMigration(request, source, undefined);
    const peer = this.#host.connectPeer(request.to);
    try {
      return planMigration(request, source, await peer.capabilities());
    } finally {
      await peer.close();
    }
  }

  listMigrations(): MigrationInfo[] {
    return this.migrations.all().map((machine) => machine.info());
  }

  showMigration(id: string): MigrationInfo {
    return this.migrations.need(id).info();
  }

  async *watchMigration(id: string, signal: AbortSignal): AsyncIterable<MigrationInfo> {
    for (;;) {
      const info = this.showMigration(id);
      yield info;
      if (isOver(info) || signal.aborted) return;
      await this.#nextChange(signal);
    }
  }

  async cancel(name: string): Promise<MigrationInfo> {
    this.#guests.need(name);
    const machine = this.migrations.of(name);
    if (machine === undefined) throw new PagetideError('PT_MIGRATION_UNKNOWN', `guest '${name}' is not being migrated`);
    if (machine instanceof IncomingMigration) {
      throw new PagetideError('PT_NOT_CANCELLABLE', `guest '${name}' is arriving here`, {
        hint: 'Cancel at the source, before it has left.',
      });
    }
    await machine.cancel();
    return machine.info();
  }

  planEvacuation(request: EvacuateRequest): Promise<EvacuationInfo> {
    return this.#evacuations.plan(request);
  }

  evacuate(request: EvacuateRequest): Promise<EvacuationInfo> {
    return this.#evacuations.start(request);
  }

  showEvacuation(): EvacuationInfo {
    return this.#evacuations.show();
  }

  watchEvacuation(signal: AbortSignal): AsyncIterable<EvacuationInfo> {
    return this.#evacuations.watch(signal);
  }

  stopEvacuation(cancel: boolean): EvacuationInfo {
    return this.#evacuations.stop(cancel);
  }

  /** Stops driving what is under way; the next agent takes the migrations up. */
  async close(): Promise<void> {
    await this.#evacuations.close();
    await this.migrations.close();
  }

  // --- between agents

  async capabilities(): Promise<Capabilities> {
    const { pools } = this.#host;
    const bytes = await roomLeft(this.#config.memoryFolder);
    return {
      protocol: PEER_PROTOCOL,
      userfaultfd: this.#host.userfaultfd(),
      room: { bytes, guests: Math.max(0, pools.size - pools.busy) },
    };
  }

  async prepareIncoming(request: PrepareRequest, sender?: string): Promise<IncomingStatus> {
    return this.migrations.prepare(request, sender);
  }

  incomingStatus(migration: string, sender?: string): Promise<IncomingStatus> {
    return Promise.resolve(this.migrations.status(migration, sender));
  }

  async loadIncoming(migration: string, epoch: number, rest: Rest, sender?: string): Promise<IncomingStatus> {
    return this.migrations.load(migration, epoch, rest, sender);
  }

  async copyIncoming(migration: string, epoch: number, round: number, sender?: string): Promise<IncomingStatus> {
    return this.migrations.copy(migration, epoch, round, sender);
  }

  limitIncoming(migration: string, epoch: number, bandwidth: number, sender?: string): Promise<IncomingStatus> {
    return Promise.resolve(this.migrations.limit(migration, epoch, bandwidth, sender));
  }

  async takeOver(migration: string, epoch: number, sender?: string): Promise<IncomingStatus> {
    return this.migrations.ask('take-over', migration, epoch, sender);
  }

  async abortIncoming(migration: string, epoch: number, sender?: string): Promise<IncomingStatus> {
    return this.migrations.ask('abort', migration, epoch, sender);
  }

  completeOutgoing(migration: string, epoch: number, figures: CompletionFigures, sender?: string): Promise<void> {
    return this.migrations.complete(migration, epoch, figures, sender);
  }

  recheckOutgoing(migration: string, epoch: number, frames: number[], sender?: string): Promise<Finding[]> {
    return this.migrations.recheck(migration, epoch, frames, sender);
  }

  /**
   * The source reports an arrival as done when it has freed its copy; the destination then still has its own last record
   * to write. Whoever read that report must not be told that the guest is busy: wait for it, a while.
   */
  async #arrived(name: string): Promise<void> {
    const machine = this.migrations.of(name);
    if (!(machine instanceof IncomingMigration)) return;
    const patience = AbortSignal.timeout(ARRIVAL_MS);
    while (!patience.aborted && !machine.ended && describe(machine.state).phase === 'completing') {
      await this.#nextChange(patience);
    }
  }

  #uses(domain: string): DomainUse {
    const guests = this.#guests.all().filter(({ vmm }) => vmm.record.domain === domain);
    const under = this.migrations.all().filter((machine) => !machine.ended && domainOf(machine) === domain);
    return { guests: guests.map(({ name }) => name), migrations: under.map((machine) => machine.state.guest ?? '?') };
  }

  #checkDomain({ domain }: GuestRequest): void {
    if (domain === undefined || this.#host.shared.domain(domain) !== undefined) return;
    throw new PagetideError('PT_DOMAIN_UNKNOWN', `there is no domain '${domain}' on this host`);
  }

  #refuseBusy(name: string): void {
    if (this.migrations.of(name) === undefined) return;
    throw new PagetideError('PT_GUEST_BUSY', `guest '${name}' is being migrated`);
  }

  async #info(guest: Guest, withStats: boolean): Promise<GuestInfo> {
    const { name, vmm, error } = guest;
    const { record } = vmm;
    const machine = this.migrations.of(name);
    const status = await statusOf(vmm);
    const stats = withStats && status === 'running' ? await vmm.stats().catch(() => null) : null;
    return {
      name,
      driver: record.driver,
      state: stateOf(status, machine),
      pid: record.pid,
      launched: record.launched,
      memory: record.description.memory.size,
      pageSize: record.pageSize,
      files: record.files,
      description: record.description,
      ...(record.domain === undefined ? {} : { domain: record.domain }),
      ...(machine === undefined
        ? {}
        : {
            migration: {
              id: machine.state.migration,
              direction: machine.info().direction,
              progress: machine.info().progress,
            },
          }),
      ...(stats === null ? {} : { stats }),
      ...(error === undefined ? {} : { error }),
    };
  }

  /** Resolves at the next change of any migration, after a moment, or when the watcher leaves. */
  #nextChange(signal: AbortSignal): Promise<void> {
    return new Promise((resolve) => {
      const done = (): void => {
        clearTimeout(timer);
        this.#watchers.delete(done);
        signal.removeEventListener('abort', done);
        resolve();
      };
      const timer = setTimeout(done, WATCH_MS);
      this.#watchers.add(done);
      signal.addEventListener('abort', done, { once: true });
    });
  }

  #isIdle(): boolean {
    return this.migrations.all().every((machine) => machine.ended);
  }
}

function domainOf(machine: OutgoingMigration | IncomingMigration): string | undefined {
  return machine instanceof OutgoingMigration ? machine.details.vmm.domain : machine.details.request?.domain?.name;
}

/** Nothing more will change: ended, or stopped by an alarm. */
function isOver({ progress }: MigrationInfo): boolean {
  const { phase } = progress;
  return phase === 'done' || phase === 'failed' || phase === 'cancelled';
}

function stateOf(
  status: Awaited<ReturnType<typeof statusOf>>,
  machine: OutgoingMigration | IncomingMigration | undefined,
): GuestState {
  if (machine instanceof IncomingMigration && machine.alarmed !== undefined) return 'alarm';
  if (machine !== undefined && describe(machine.state).owner === 'unsure') return 'in-doubt';
  return status;
}

/** Resolves when the migration is in the journal, or has failed to get there. */
function settled(machine: OutgoingMigration): Promise<void> {
  return new Promise((resolve) => {
    const look = (): void => {
      if (machine.state.at === 'opening') return;
      stop();
      resolve();
    };
    const stop = machine.onChange(look);
    look();
  });
}

function sameUrl(a: string, b: string): boolean {
  return new URL(a).origin === new URL(b).origin;
}

/** The package's version, from `src/` as well as from `dist/src/`. */
const VERSION = (() => {
  const here = dirname(fileURLToPath(import.meta.url));
  const path = ['../../package.json', '../../../package.json']
    .map((up) => join(here, up))
    .find((file) => existsSync(file));
  return path === undefined ? '0.0.0' : (createRequire(import.meta.url)(path) as { version: string }).version;
})();
