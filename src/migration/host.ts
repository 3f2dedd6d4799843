/** What a migration needs of the agent that it runs in. */
import type { Logger } from 'pino';
import type { GuestDescription, GuestPlace, GuestRecord, PrepareNeeds, Vmm } from '../guests/driver.ts';
import type { WorkerPools } from '../memory/worker-pools.ts';
import type { GuestTags } from '../pages/guest-tags.ts';
import type { Manifest } from '../pages/manifest.ts';
import type { TagPool } from '../pages/tag-pool.ts';
import type { PageServer } from '../transport/page-server.ts';
import type { PeerClient } from '../transport/peer.ts';
import type { Domain } from './domains.ts';
import type { SharedPages } from './shared-pages.ts';
import type { OwnershipRecord } from './ownership/index.ts';

export interface MigrationSettings {
  spinMicros: number;
  fill: { batchFrames: number; window: number; bandwidth: number; deltas: boolean };
  /** The source may be silent this long before a destination that doesn't own the guest yet lets go, milliseconds. */
  silenceMs: number;
  prepareMs: number;
  loadMs: number;
  /** `off`: no guest is served here before it has every page. */
  userfaultfd: 'auto' | 'off';
}

export interface MigrationHost {
  readonly log: Logger;
  readonly settings: MigrationSettings;
  readonly pageServer: PageServer;
  readonly pools: WorkerPools;
  readonly tagPool: TagPool;
  /** What this host keeps of guests' pages, by domain. */
  readonly shared: SharedPages;
  /**
   * What is known of the memory of a guest that was watched while it ran, tagged with the domain's key: the caller closes it.
   * Undefined: it wasn't.
   */
  watched(vmm: Vmm, domain: Domain): Promise<GuestTags | undefined>;
  /** What is known of the memory of a guest that is watched now; for estimates, it goes on changing. */
  manifestOf(vmm: Vmm): Manifest | undefined;
  /** A guest has all of its memory. What that was when it began to run here; to be copied, it is gone afterwards. */
  arrived(vmm: Vmm, domain: number, manifest: Manifest): void;
  /** Whether guests may arrive here before all of their pages do; `why` not. Asked anew each time. */
  userfaultfd(): { ok: boolean; why?: string };
  /** Under which the other agent reaches this one. */
  readonly url: string;
  /** A client of its own for each migration: its bytes are counted. `expect`: the name that the agent there must have, where it is known. */
  connectPeer(url: string, expect?: string): PeerClient;
  /** Resolves when durable. */
  journal(record: OwnershipRecord, details: Record<string, unknown>): Promise<void>;
  place(guest: string): GuestPlace;
  /** Starts a VMM that waits for the guest, or takes the one that was attached as incoming under its name. */
  prepareVmm(guest: string, description: GuestDescription, needs: PrepareNeeds): Promise<Vmm>;
  /** Finds one again after a restart. */
  findVmm(guest: string, record: GuestRecord): Promise<Vmm | undefined>;
  /**
   * For a guest that does not live here: ends whatever was started in its name, recorded or not, waits until it is dead,
   * and removes what it left.
   */
  killStrays(guest: string): Promise<void>;
  /** Refuses a guest that does not fit: memory and tmpfs space. @throws PT_NO_MEMORY, PT_NO_SPACE */
  checkRoom(description: GuestDescription): Promise<void>;
  /** The guest lives here from now on, durably. */
  adopt(guest: string, vmm: Vmm): Promise<void>;
  /**
   * Ends its VMM, waits until it is dead, and forgets the guest, durably. Without `vmm` it is gone already, and what
   * `record` names is removed.
   */
  release(guest: string, vmm: Vmm | undefined, record: GuestRecord): Promise<void>;
}
