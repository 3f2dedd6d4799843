/**
 * What an agent can do, seen from its control API: the API's routes are a thin skin over this interface, and tests of
 * the API stand on a fake of it.
 */
import type { ErrorJson } from '../errors.ts';
import type { Directory } from '../directory/directory.ts';
import type { DomainAnswer, DomainCheckIn, DomainOffer, Sender } from '../domains/messages.ts';
import type { DomainInfo, DomainRemoval } from '../domains/service.ts';
import type { PreparationInfo } from './evacuation-preparation.ts';
import type { DistributionService } from './distribution-service.ts';
import type { GuestDescription, GuestStats, MemoryFile, VerifyResult } from '../guests/driver.ts';
import type { CacheStats } from '../pages/cache.ts';
import type { ResidentStats } from '../pages/resident.ts';
import type { Kept } from '../pages/keep-task.ts';
import type {
  Capabilities,
  CompletionFigures,
  Finding,
  Rest,
  IncomingStatus,
  FrameClasses,
  MigrationInfo,
  MigrationProgress,
  MigrationReport,
  Mode,
  ModeWanted,
  OnNoConvergence,
  PrepareRequest,
} from '../migration/types.ts';
import type { TagPage, TagPageAsked } from './guest-tag-pages.ts';

export interface AgentInfo {
  name: string;
  version: string;
  /** URL under which other agents reach this one. */
  url: string;
  pid: number;
  uptimeSeconds: number;
  faultWorkers: { total: number; busy: number };
}

/** `running` and `paused` guests are owned here; `incoming` ones are not yet. */
export type GuestState = 'running' | 'paused' | 'incoming' | 'in-doubt' | 'alarm' | 'gone';

export interface GuestInfo {
  name: string;
  driver: 'embedded' | 'qemu';
  state: GuestState;
  pid: number;
  launched: boolean;
  /** Bytes. */
  memory: number;
  pageSize: number;
  files: MemoryFile[];
  description: GuestDescription;
  /** The guests that it may share pages with; none: nobody. */
  domain?: string;
  /** The migration under way, if any. */
  migration?: { id: string; direction: 'outgoing' | 'incoming'; progress: MigrationProgress };
  stats?: GuestStats;
  error?: ErrorJson;
}

export interface GuestRequest {
  name: string;
  driver: 'embedded' | 'qemu';
  /** The driver's own; it validates them. */
  options: Record<string, unknown>;
  /** One that this host has; guests of no domain share pages with nobody. */
  domain?: string;
}

export interface MigrateRequest {
  guest: string;
  /** URL of the destination's agent, e.g. `http://127.0.0.1:7412`. */
  to: string;
  mode: ModeWanted;
  /** How long the guest may stand still, milliseconds. */
  maxDowntimeMs?: number;
  /** Rounds in which memory is copied, at most. */
  maxRounds?: number;
  /** Bytes of pages that the destination fetches a second, at most. */
  bandwidth?: number;
  /** What becomes of a pre-copy that does not fit `maxDowntimeMs`. */
  onNoConvergence?: OnNoConvergence;
  /** Let the guest check itself after completion, where it can. */
  verify: boolean;
}

/** All guests of a host are to go. */
export interface EvacuateRequest {
  /** URLs of the agents that may take them. */
  to: string[];
  /** Guests under way at once, at most. */
  parallel: number;
  mode: ModeWanted;
  /** Of each guest, as of {@link MigrateRequest}. */
  maxDowntimeMs?: number;
  maxRounds?: number;
  onNoConvergence?: OnNoConvergence;
  /** Bytes of pages that all targets together fetch a second, at most. */
  bandwidth?: number;
  verify: boolean;
  /** Targets bring pages of the guests first, as long as this at most, milliseconds; undefined: they don't. */
  prepareMs?: number;
  /** The plan to evacuate this host, that was made for that, stays in force afterwards. */
  keepPlan?: boolean;
}

/**
 * waiting → moving → moved
 *      ╲       ╲──→ waiting (another target) | stays
 *       ╰──→ stays
 */
export type EvacuatedState = 'waiting' | 'moving' | 'moved' | 'stays';

export interface EvacuatedGuest {
  guest: string;
  state: EvacuatedState;
  /** Bytes. */
  memory: number;
  /** URL of its target; absent: there is none. */
  to?: string;
  /** Bytes of pages that are expected to be fetched for it, before compression; absent: it was under way before. */
  expectedBytes?: number;
  /** Its last migration, once it has begun. */
  migration?: string;
  mode?: Mode;
  progress?: MigrationProgress;
  report?: MigrationReport;
  /** Why it stays, or did not get to another target before. */
  error?: ErrorJson;
}

/** Of the guests that have moved. */
export interface EvacuationTotals {
  moved: number;
  stay: number;
  frames: FrameClasses;
  bytes: Omit<MigrationReport['bytes'], 'deltas'>;
  /** Milliseconds; null: nobody has moved, or it is not known. */
  longestDowntimeMs: number | null;
}

export interface EvacuationInfo {
  /** `planned`: nothing is done. `preparing`: targets bring pages, nobody has begun. `stopping`: nobody begins any more. */
  state: 'planned' | 'preparing' | 'running' | 'stopping' | 'ended';
  to: string[];
  parallel: number;
  /** Of all together, bytes a second. */
  bandwidth?: number;
  elapsedMs: number;
  /** In the order in which they go; those that nobody takes last. */
  guests: EvacuatedGuest[];
  totals: EvacuationTotals;
  /** Of one that was to be prepared. */
  preparation?: PreparationInfo;
}

/** What an agent has of pages by tag: counters since it started. */
export interface CacheInfo {
  /** The shared-page cache and the path of its file; none: the agent has no cache. */
  cache?: CacheStats & { path: string };
  /** The resident index; none: there was no room for it. */
  resident?: ResidentStats;
  /** Chunks of manifests that are known. */
  chunks: number;
}

/** Where pages for the cache come from: a guest of the agent, or a memory file on its host; one of them. */
export interface WarmRequest {
  domain: string;
  guest?: string;
  /** An absolute path. */
  file?: string;
}

/** One thing that `pagetide doctor` looks at. */
export interface Check {
  name: string;
  status: 'ok' | 'warning' | 'missing';
  /** What was found. */
  found: string;
  /** How to get it; only where something is missing. */
  fix?: string;
  /** What does not work without it. */
  needed?: string;
  /** Without it no guest can be migrated from or to this host at all. */
  essential?: boolean;
}

/** A memory file that is to be shared with other hosts of a domain. */
export interface SnapshotRequest {
  /** Absolute path on the agent's host. */
  file: string;
  domain: string;
  /** Its manifest, made with the domain's secret: it need not be tagged then. */
  manifest?: string;
}

/** One that is. */
export interface SnapshotInfo {
  file: string;
  domain: string;
  /** Of 4096 bytes, and how many of them are zero. */
  frames: number;
  zero: number;
}

/** Domains: what operators ask, and agents of each other. src/domains/service.ts says what each does. */
export interface AgentDomains {
  list(): DomainInfo[];
  show(name: string): DomainInfo;
  create(name: string): Promise<DomainInfo>;
  grant(name: string, to: string): Promise<DomainInfo>;
  revoke(name: string, host: string): Promise<DomainInfo>;
  remove(name: string): Promise<DomainRemoval>;

  // between agents; each may be repeated
  answer(id: string): DomainAnswer;
  accept(id: string, offer: DomainOffer, sender: Sender): Promise<DomainAnswer>;
  withdraw(id: string, epoch: number, sender: Sender): Promise<void>;
  checkIn(id: string, as: string, sender: Sender): DomainCheckIn;
  gaveUp(id: string, as: string, epoch: number, sender: Sender): Promise<void>;
}

/** Directories of domains: what an operator asks, and other agents. src/agent/directories.ts says what each does. */
export interface AgentDirectories {
  empty(domainName: string): Promise<void>;

  // between agents; each may be repeated
  member(id: string, as: string | undefined, sender: Sender): Directory;
  guests(id: string, as: string | undefined, sender: Sender): string[];
  guestTags(id: string, guest: string, page: TagPageAsked, as: string | undefined, sender: Sender): Promise<TagPage>;
}

export interface AgentService {
  readonly domains: AgentDomains;
  readonly directories: AgentDirectories;
  /** Undefined: this agent does not take part in it. */
  readonly distribution?: DistributionService | undefined;
  info(): AgentInfo;
  doctor(): Promise<Check[]>;
  /** Prometheus text. */
  metrics(): Promise<string>;

  listGuests(): Promise<GuestInfo[]>;
  showGuest(name: string): Promise<GuestInfo>;
  attachGuest(request: GuestRequest): Promise<GuestInfo>;
  runGuest(request: GuestRequest): Promise<GuestInfo>;
  /** Null: this guest can't check itself. */
  verifyGuest(name: string): Promise<VerifyResult | null>;
  /** Ends a guest that was launched; lets go of one that was attached. */
  removeGuest(name: string): Promise<void>;

  cacheInfo(): CacheInfo;
  /** Erases every page; returns how many. @throws PagetideError `PT_NO_CACHE`, as the next one */
  clearCache(): number;
  /** Resolves when the pages are in the cache, as far as there is room. */
  warmCache(request: WarmRequest): Promise<Kept>;

  listSnapshots(): SnapshotInfo[];
  /** Resolves when every page of it is listed. */
  shareSnapshot(request: SnapshotRequest): Promise<SnapshotInfo>;
  unshareSnapshot(file: string): Promise<void>;

  /** Starts a migration; resolves once it is journaled. */
  migrate(request: MigrateRequest): Promise<MigrationInfo>;
  listMigrations(): MigrationInfo[];
  showMigration(id: string): MigrationInfo;
  /** The migration now and at every change, until it ends. */
  watchMigration(id: string, signal: AbortSignal): AsyncIterable<MigrationInfo>;
  /** Cancels the guest's migration; rejects with `PT_NOT_CANCELLABLE` once ownership has passed. */
  cancel(guest: string): Promise<MigrationInfo>;

  /** What an evacuation would do now. @throws PagetideError as {@link evacuate} */
  planEvacuation(request: EvacuateRequest): Promise<EvacuationInfo>;
  /** Begins an evacuation; one at a time. @throws PagetideError `PT_EVACUATING`, `PT_BAD_ARGUMENT`, `PT_NO_TARGET`, why a target can't be asked */
  evacuate(request: EvacuateRequest): Promise<EvacuationInfo>;
  /** The one that is under way, or the last one. @throws PagetideError `PT_EVACUATION_UNKNOWN`, as the next two */
  showEvacuation(): EvacuationInfo;
  /** The same now and at every change, until it ends. */
  watchEvacuation(signal: AbortSignal): AsyncIterable<EvacuationInfo>;
  /** Nobody begins any more. `cancel`: guests under way are cancelled where that is possible still; otherwise they move on. */
  stopEvacuation(cancel: boolean): EvacuationInfo;

  // between agents; each may be repeated
  capabilities(): Promise<Capabilities>;
  // `sender`: the name in the certificate of who asks, where it has one
  prepareIncoming(request: PrepareRequest, sender?: string): Promise<IncomingStatus>;
  incomingStatus(migration: string, sender?: string): Promise<IncomingStatus>;
  /** Waits until the state that the source streams is loaded. */
  loadIncoming(migration: string, epoch: number, rest: Rest, sender?: string): Promise<IncomingStatus>;
  /** Fetches what is lacking of the manifest of this round. */
  copyIncoming(migration: string, epoch: number, round: number, sender?: string): Promise<IncomingStatus>;
  /** Bytes of pages a second from now on, at most; 0: the host's own limit alone. */
  limitIncoming(migration: string, epoch: number, bandwidth: number, sender?: string): Promise<IncomingStatus>;
  takeOver(migration: string, epoch: number, sender?: string): Promise<IncomingStatus>;
  abortIncoming(migration: string, epoch: number, sender?: string): Promise<IncomingStatus>;
  completeOutgoing(migration: string, epoch: number, figures: CompletionFigures, sender?: string): Promise<void>;
  /** Looks again at frames of a guest that has left, or leaves: a finding for each, in order. */
  recheckOutgoing(migration: string, epoch: number, frames: number[], sender?: string): Promise<Finding[]>;
}
