/** An AgentService that does nothing but remember what it was asked, and answer what a test wants. */
import { once, EventEmitter } from 'node:events';
import { PagetideError } from '../../src/errors.ts';
import type { DomainAnswer, DomainCheckIn, DomainOffer, Sender } from '../../src/domains/messages.ts';
import type { DomainInfo, DomainRemoval } from '../../src/domains/service.ts';
import type { Directory } from '../../src/directory/directory.ts';
import { EmbeddedDirectory } from '../../src/directory/embedded.ts';
import type { VerifyResult } from '../../src/guests/driver.ts';
import type { TagPage } from '../../src/agent/guest-tag-pages.ts';
import type {
  Capabilities,
  CompletionFigures,
  IncomingStatus,
  MigrationInfo,
  MigrationReport,
  Phase,
  PrepareRequest,
  Rest,
} from '../../src/migration/types.ts';
import type { DistributionService } from '../../src/agent/distribution-service.ts';
import { fakeDistribution } from './fake-distribution.ts';
import type {
  AgentDirectories,
  AgentDomains,
  AgentInfo,
  AgentService,
  CacheInfo,
  Check,
  EvacuatedGuest,
  EvacuateRequest,
  EvacuationInfo,
  GuestInfo,
  GuestRequest,
  MigrateRequest,
  SnapshotInfo,
  SnapshotRequest,
  WarmRequest,
} from '../../src/agent/service.ts';

export const ID = '0123456789abcdef';

export function guestInfo(name: string): GuestInfo {
  const size = 256 * 1024 * 1024;
  return {
    name,
    driver: 'embedded',
    state: 'running',
    pid: 4242,
    launched: true,
    memory: size,
    pageSize: 4096,
    files: [{ id: 'ram', path: `/dev/shm/${name}`, size, offset: 0 }],
    description: {
      driver: 'embedded',
      memory: { size, pageSize: 4096, files: [{ id: 'ram', size, offset: 0 }] },
      config: { seed: 1 },
    },
    stats: { longestGapMs: 1.5, stalls: { count: 3, p50Us: 4.1, p99Us: 80, maxUs: 1300 }, operations: 10 },
  };
}

export const snapshotInfo: SnapshotInfo = { file: '/srv/snapshot/mem', domain: 'shop', frames: 65536, zero: 536 };

export const cacheInfo: CacheInfo = {
  cache: {
    path: '/dev/shm/pagetide-0-a/shared-pages',
    slots: 65000,
    used: 32000,
    pinned: 10,
    hits: 300,
    misses: 100,
    insertions: 32100,
    evictions: 100,
    rejected: 1,
    dropped: 2,
    refused: 3,
    indexBytes: 2_990_000,
    lost: false,
  },
  resident: {
    files: 2,
    frames: 20000,
    listed: 15000,
    different: 9000,
    hits: 90,
    misses: 10,
    stale: 4,
    indexBytes: 484_096,
  },
  chunks: 64,
};

export const DOMAIN = '0123456789abcdef0123456789abcdef';
const members = [{ host: 'host-a', url: 'https://host-a:7411' }];

export function domainInfo(name: string): DomainInfo {
  const waiting = new PagetideError('PT_PEER_UNREACHABLE', 'cannot reach https://host-c:7411').toJSON();
  return {
    name,
    id: DOMAIN,
    home: null,
    usable: true,
    grants: [
      { host: 'host-b', url: 'https://host-b:7411', state: 'granted' },
      { host: 'host-c', url: 'https://host-c:7411', state: 'revoking', error: waiting },
    ],
    members: [],
    guests: ['web1'],
  };
}

export const domainRemoval: DomainRemoval = { removed: 'shop', told: ['host-b'], waiting: ['host-c'] };

export function domainOffer(): DomainOffer {
  const home = 'https://host-a:7411';
  return { name: 'shop', secret: 'ab'.repeat(32), home, as: 'host-b', epoch: 9, members };
}

export const domainAnswer: DomainAnswer = { made: false, held: true, url: 'https://host-b:7411' };
export const domainCheckIn: DomainCheckIn = { state: 'granted', members };

export const kept = { pages: 1000, inserted: 900, present: 98, refused: 2 };

export const report: MigrationReport = {
  guest: 'web1',
  mode: 'post-copy',
  driver: 'embedded',
  verified: true,
  frames: { total: 65536, zero: 536, present: 0, cache: 0, resident: 0, duplicate: 1000, peer: 0, source: 64000 },
  bytes: { wire: 100_000_000, manifest: 1_000_000, pages: 98_000_000, state: 200_000, raw: 262_144_000 },
  ms: { prepare: 120.5, downtime: 3.25, total: 1900, journal: 1.5 },
  faults: { count: 321, p50Us: 41.5, p99Us: 310, maxUs: 2100 },
  longestGapMs: 4.5,
};

export function migrationInfo(phase: Phase, more: Partial<MigrationInfo> = {}): MigrationInfo {
  return {
    id: ID,
    guest: 'web1',
    mode: 'post-copy',
    peer: 'http://127.0.0.1:7412',
    direction: 'outgoing',
    progress: { phase, framesTotal: 65536, framesPresent: 100, faultsServed: 3, wireBytes: 4096, elapsedMs: 12.5 },
    ...(phase === 'done' ? { report } : {}),
    ...more,
  };
}

export function evacuateRequest(): EvacuateRequest {
  const { mode, maxDowntimeMs, maxRounds, bandwidth, onNoConvergence, verify } = migrateRequest();
  const limits = { maxDowntimeMs: maxDowntimeMs!, maxRounds: maxRounds!, onNoConvergence: onNoConvergence! };
  return { to: ['http://127.0.0.1:7412'], parallel: 3, mode, ...limits, bandwidth: bandwidth!, verify };
}

/** Of web1, which moves or has moved, and web2, which stays or waits. */
export function evacuationInfo(state: EvacuationInfo['state'], more: Partial<EvacuationInfo> = {}): EvacuationInfo {
  const isOver = state === 'ended';
  const to = 'http://127.0.0.1:7412';
  const memory = 256 * 1024 * 1024;
  const { id: migration, mode, progress } = migrationInfo(isOver ? 'done' : 'serving');
  const moving = { migration, mode, progress, ...(isOver ? { report } : {}) };
  const error = new PagetideError('PT_GUEST_UNSAFE', 'web2 has a device that cannot be moved').toJSON();
  const first: EvacuatedGuest = {
    ...{ guest: 'web1', state: isOver ? 'moved' : 'moving', memory, to, expectedBytes: 262_144_000 },
    ...(state === 'planned' ? { state: 'waiting' } : moving),
  };
  const second: EvacuatedGuest = isOver
    ? { guest: 'web2', state: 'stays', memory, error }
    : { guest: 'web2', state: 'waiting', memory, to, expectedBytes: 4096 };
  const { frames, bytes, ms } = report;
  const none = { total: 0, zero: 0, present: 0, cache: 0, resident: 0, duplicate: 0, peer: 0, source: 0 };
  const totals = isOver
    ? { moved: 1, stay: 1, frames, bytes, longestDowntimeMs: ms.downtime }
    : {
        moved: 0,
        stay: 0,
        frames: none,
        bytes: { wire: 0, manifest: 0, pages: 0, state: 0, raw: 0 },
        longestDowntimeMs: null,
      };
  return { state, to: [to], parallel: 2, elapsedMs: 12.5, guests: [first, second], totals, ...more };
}

export function migrateRequest(): MigrateRequest {
  const limits = { maxDowntimeMs: 200, maxRounds: 9, bandwidth: 1 << 20, onNoConvergence: 'pause' } as const;
  return { guest: 'web1', to: 'http://127.0.0.1:7412', mode: 'pre-copy', ...limits, verify: true };
}

export function figures(): CompletionFigures {
  const { frames, bytes, faults, longestGapMs, verified } = report;
  return {
    frames,
    bytes,
    faults,
    longestGapMs,
    verified,
    resumedAt: 1_700_000_000_000_000,
    verifyMs: 310,
    journalMs: 1,
  };
}

export const capabilities: Capabilities = {
  protocol: 3,
  userfaultfd: { ok: false, why: 'no right' },
  room: { bytes: 1 << 30, guests: 4 },
};

export function prepareRequest(): PrepareRequest {
  return {
    protocol: 1,
    migration: ID,
    epoch: 3,
    guest: 'web1',
    mode: 'post-copy',
    description: guestInfo('web1').description,
    verify: true,
    copies: false,
    serves: true,
    bandwidth: 0,
    manifest: { version: 1, frames: 65536, chunks: 'fwA=' },
    source: { url: 'http://127.0.0.1:7411', token: 'a-secret-of-at-least-16' },
  };
}

export class FakeService implements AgentService {
  /** Every call: method, then arguments. */
  readonly calls: unknown[][] = [];
  /** Thrown by every method while set. */
  failure: unknown;
  verifyResult: VerifyResult | null = { ok: true, checked: 65536, bad: [] };
  /** Where the migration stands; `change` announces it. */
  migration: MigrationInfo | undefined;
  checks: Check[] = [{ name: 'kernel', status: 'ok', found: 'Linux 6.18' }];
  /** Watchers that are looking. */
  watchers = 0;
  readonly #changes = new EventEmitter().setMaxListeners(100);

  /** Moves the migration on and tells the watchers. */
  change(info: MigrationInfo): void {
    this.migration = info;
    this.#changes.emit('change');
  }

  /** Resolves at the next event of the fake itself: `watch`, `unwatch`, `call`. */
  async next(event: 'watch' | 'unwatch' | 'call'): Promise<void> {
    await once(this.#changes, event);
  }

  #called<T>(method: string, args: unknown[], answer: () => T): T {
    this.calls.push([method, ...args]);
    this.#changes.emit('call');
    if (this.failure !== undefined) throw this.failure as Error;
    return answer();
  }

  async #promised<T>(method: string, args: unknown[], answer: () => T): Promise<T> {
    return Promise.resolve().then(() => this.#called(method, args, answer));
  }

  #migration(): MigrationInfo {
    if (this.migration === undefined) throw new PagetideError('PT_MIGRATION_UNKNOWN', `no migration ${ID}`);
    return this.migration;
  }

  #evacuation(): EvacuationInfo {
    if (this.evacuation === undefined) throw new PagetideError('PT_EVACUATION_UNKNOWN', 'there is none');
    return this.evacuation;
  }

  /** Moves the evacuation on and tells the watchers. */
  changeEvacuation(info: EvacuationInfo): void {
    this.evacuation = info;
    this.#changes.emit('change');
  }

  #incoming(state: IncomingStatus['state'], epoch = 3): IncomingStatus {
    return { migration: ID, epoch, state };
  }

  info(): AgentInfo {
    return this.#called('info', [], () => ({
      name: 'fake',
      version: '0.1.0',
      url: 'http://127.0.0.1:7411',
      pid: process.pid,
      uptimeSeconds: 1.5,
      faultWorkers: { total: 4, busy: 0 },
    }));
  }

  doctor = () => this.#promised('doctor', [], () => this.checks);
  metrics = () => this.#promised('metrics', [], () => 'pagetide_guests{state="running"} 1\n');
  listGuests = () => this.#promised('listGuests', [], () => [guestInfo('web1'), guestInfo('web2')]);
  showGuest = (name: string) => this.#promised('showGuest', [name], () => guestInfo(name));
  attachGuest = (request: GuestRequest) =>
    this.#promised('attachGuest', [request], () => ({ ...guestInfo(request.name), launched: false }));
  runGuest = (request: GuestRequest) => this.#promised('runGuest', [request], () => guestInfo(request.name));
  verifyGuest = (name: string) => this.#promised('verifyGuest', [name], () => this.verifyResult);
  removeGuest = (name: string) => this.#promised('removeGuest', [name], () => undefined);
  /** What the next ones are told. */
  cache: CacheInfo = cacheInfo;
  cacheInfo = () => this.#called('cacheInfo', [], () => this.cache);
  clearCache = () => this.#called('clearCache', [], () => 12);
  warmCache = (request: WarmRequest) => this.#promised('warmCache', [request], () => kept);
  listSnapshots = () => this.#called('listSnapshots', [], () => [snapshotInfo]);
  shareSnapshot = (request: SnapshotRequest) => this.#promised('shareSnapshot', [request], () => snapshotInfo);
  unshareSnapshot = (file: string) => this.#promised('unshareSnapshot', [file], () => undefined);
  migrate = (request: MigrateRequest) =>
    this.#promised('migrate', [request], () => (this.migration ??= migrationInfo('preparing')));
  listMigrations = () =>
    this.#called('listMigrations', [], () => (this.migration === undefined ? [] : [this.migration]));
  showMigration = (id: string) => this.#called('showMigration', [id], () => this.#migration());
  cancel = (guest: string) => this.#promised('cancel', [guest], () => this.#migration());
  /** Where the evacuation stands; `evacuation` of an agent that knows of none is undefined. */
  evacuation: EvacuationInfo | undefined;
  planEvacuation = (request: EvacuateRequest) =>
    this.#promised('planEvacuation', [request], () => evacuationInfo('planned'));
  evacuate = (request: EvacuateRequest) =>
    this.#promised('evacuate', [request], () => (this.evacuation ??= evacuationInfo('running')));
  showEvacuation = () => this.#called('showEvacuation', [], () => this.#evacuation());
  stopEvacuation = (cancel: boolean) => this.#called('stopEvacuation', [cancel], () => this.#evacuation());
  capabilities = () => this.#promised('capabilities', [], () => capabilities);
  prepareIncoming = (request: PrepareRequest) =>
    this.#promised('prepareIncoming', [request], () => this.#incoming('prepared', request.epoch));
  incomingStatus = (id: string) => this.#promised('incomingStatus', [id], () => this.#incoming('unknown'));
  loadIncoming = (id: string, epoch: number, rest: Rest) =>
    this.#promised('loadIncoming', [id, epoch, rest], () => this.#incoming('loaded', epoch));
  copyIncoming = (id: string, epoch: number, round: number) =>
    this.#promised('copyIncoming', [id, epoch, round], () => this.#incoming('prepared', epoch));
  limitIncoming = (id: string, epoch: number, bandwidth: number) =>
    this.#promised('limitIncoming', [id, epoch, bandwidth], () => this.#incoming('owner', epoch));
  takeOver = (id: string, epoch: number) =>
    this.#promised('takeOver', [id, epoch], () => this.#incoming('owner', epoch));
  abortIncoming = (id: string, epoch: number) =>
    this.#promised('abortIncoming', [id, epoch], () => this.#incoming('refused', epoch));
  completeOutgoing = (id: string, epoch: number, sent: CompletionFigures) =>
    this.#promised('completeOutgoing', [id, epoch, sent], () => undefined);
  recheckOutgoing = (id: string, epoch: number, frames: number[]) =>
    this.#promised('recheckOutgoing', [id, epoch, frames], () => frames.map(() => 'right' as const));

  /** What every domain is told of. */
  directory: Directory = new EmbeddedDirectory({ leaseMs: 60_000 });
  guestTagPage: TagPage = { tags: new Uint8Array(16).fill(7), next: 0 };
  readonly directories: AgentDirectories = {
    empty: (name) => this.#promised('directories.empty', [name], () => undefined),
    member: (id, as, sender) => this.#called('directories.member', [id, as, sender], () => this.directory),
    guests: (...args) => this.#called('directories.guests', args, () => ['web1']),
    guestTags: (...args) => this.#promised('directories.guestTags', args, () => this.guestTagPage),
  };
  /** Undefined: this agent has none. */
  distribution: DistributionService | undefined = fakeDistribution((method, args, answer) =>
    this.#promised(method, args, answer),
  );

  readonly domains: AgentDomains = {
    list: () => this.#called('domains.list', [], () => [domainInfo('shop')]),
    show: (name) => this.#called('domains.show', [name], () => domainInfo(name)),
    create: (name) => this.#promised('domains.create', [name], () => ({ ...domainInfo(name), grants: [], guests: [] })),
    grant: (name, to) => this.#promised('domains.grant', [name, to], () => domainInfo(name)),
    revoke: (name, host) => this.#promised('domains.revoke', [name, host], () => domainInfo(name)),
    remove: (name) => this.#promised('domains.remove', [name], () => domainRemoval),
    answer: (id) => this.#called('domains.answer', [id], () => domainAnswer),
    accept: (id, offer, sender: Sender) => this.#promised('domains.accept', [id, offer, sender], () => domainAnswer),
    withdraw: (id, epoch, sender: Sender) => this.#promised('domains.withdraw', [id, epoch, sender], () => undefined),
    gaveUp: (id, as, epoch, sender: Sender) =>
      this.#promised('domains.gaveUp', [id, as, epoch, sender], () => undefined),
    checkIn: (id, as, sender: Sender) => this.#called('domains.checkIn', [id, as, sender], () => domainCheckIn),
  };

  watchMigration(_id: string, signal: AbortSignal): AsyncGenerator<MigrationInfo> {
    const ended = ['done', 'failed', 'cancelled'];
    return this.#watch(
      () => this.#migration(),
      ({ progress }) => ended.includes(progress.phase),
      signal,
    );
  }

  watchEvacuation(signal: AbortSignal): AsyncGenerator<EvacuationInfo> {
    return this.#watch(
      () => this.#evacuation(),
      ({ state }) => state === 'ended',
      signal,
    );
  }

  async *#watch<T>(look: () => T, isLast: (info: T) => boolean, signal: AbortSignal): AsyncGenerator<T> {
    this.watchers++;
    this.#changes.emit('watch');
    try {
      for (;;) {
        const changed = once(this.#changes, 'change', { signal });
        // an abort rejects it also when nobody waits any more
        changed.catch(() => undefined);
        const info = look();
        yield info;
        if (isLast(info)) return;
        try {
          await changed;
        } catch {
          return;
        }
      }
    } finally {
      this.watchers--;
      this.#changes.emit('unwatch');
    }
  }
}
