/**
 * What a driver does for the agent: the one interface behind which every kind of VMM stands.
 *
 *   source       describe → depart → (destination owns) → kill
 *   destination  prepare → acquire (userfaultfd and regions) → expectState → loadState → resume
 *
 * A VMM is never a child of the agent: `prepare` and `run` start it through the launcher, and a driver finds it again
 * after a restart of the agent from its {@link GuestRecord} alone.
 */
import type { Readable, Writable } from 'node:stream';
import type { MemoryRegion } from '../memory/native.ts';
import type { WriteTracking } from './tracking.ts';

/** One file of shared guest memory (tmpfs). Guest memory space is the concatenation of the files by `offset`. */
export interface MemoryFile {
  /** Name within the guest, e.g. QEMU's object id. */
  id: string;
  path: string;
  /** Bytes; a multiple of the page size. */
  size: number;
  /** Where it begins in guest memory space, bytes. */
  offset: number;
}

/** What a destination needs to know to start the same guest. Travels as JSON between agents; holds no host path. */
export interface GuestDescription {
  driver: 'embedded' | 'qemu';
  memory: {
    /** Bytes in all. */
    size: number;
    pageSize: number;
    files: { id: string; size: number; offset: number }[];
  };
  /** The driver's own: command line with placeholders, machine type, workload. The driver validates it. */
  config: Record<string, unknown>;
}

/** How a running VMM is found again. Kept in the agent's journal; local to this host. */
export interface GuestRecord {
  driver: 'embedded' | 'qemu';
  pid: number;
  /** Field 22 of /proc/pid/stat: with `pid` it names one process for ever. */
  startTime: number;
  /** Started by an agent (and ended by it), or attached (and left alone). */
  launched: boolean;
  files: MemoryFile[];
  pageSize: number;
  description: GuestDescription;
  /** The driver's own: sockets and the like. */
  local: Record<string, string>;
  /** The guests that it may share pages with; none: nobody. The agent's, not the driver's. */
  domain?: string;
}

export type VmmStatus = 'running' | 'paused' | 'incoming' | 'gone';

/** A moment by the VMM's own clock where it gives one. Microseconds since the epoch. */
export interface Moment {
  unixMicros: number;
}

/** A userfaultfd for a destination's memory. */
export interface Acquired {
  /** The userfaultfd in this process. */
  uffd: number;
  /** Its number in the VMM, where it stays open until completion. */
  remoteFd: number;
  /** How the VMM parts with it: `injected` ones are closed inside the VMM after completion. */
  origin: 'injected' | 'handed-over';
  regions: MemoryRegion[];
  pageSize: number;
  shared: boolean;
}

export interface VerifyResult {
  ok: boolean;
  /** Frames that the guest checked. */
  checked: number;
  /** Bad frames, the first few. */
  bad: number[];
  detail?: string;
}

/** What the guest itself can tell about how it fared. */
export interface GuestStats {
  /** Longest silence of the guest's heartbeat since the last reset, milliseconds. */
  longestGapMs: number | null;
  /** Stalls that faults caused, by the touching thread. Null where the guest can't tell. */
  stalls: { count: number; p50Us: number; p99Us: number; maxUs: number } | null;
  /** Work units done, ever growing. */
  operations: number | null;
  /**
   * The heartbeats that arrived on this host since the last reset. A migration's own gap lies between the last here and
   * the first there; and numbers only grow: a guest that repeats one went back in time.
   */
  heartbeats?: { firstNumber: number; firstUnixMicros: number; lastNumber: number; lastUnixMicros: number };
}

/** How a guest that can be moved may go. */
export interface Movable {
  /** Why by pre-copy alone: it must not run at the destination before all of its pages are there. Absent: by any mode. */
  preCopyOnly?: string;
}

/** A guest that leaves: both may reject, and the caller need not wait for them. */
export interface Departure {
  /** It stands still: its memory does not change any more. Rejects with `PT_GUEST_STATE` where it did so before, by somebody else. */
  stopped: Promise<Moment>;
  /** The state is written. Takes as long as it takes, after `stopped`. */
  saved: Promise<void>;
}

/** One VMM process on this host. All methods reject with a PagetideError; all have timeouts. */
export interface Vmm {
  readonly record: GuestRecord;
  status(): Promise<VmmStatus>;
  /** How the guest, as it is now (devices come and go), may be moved. Rejects with PT_GUEST_UNSAFE when it cannot be. Before preparing. */
  checkMovable?(): Promise<Movable>;
  /** Its devices are the same from its start to its end: what tracking is worth now, it was worth before. */
  readonly constantDevices?: boolean;
  /** What tracking its writes is worth, with the devices that it has now. A VMM that can't tell: hints. */
  tracking?(): Promise<WriteTracking>;
  /** Stops the guest and waits until it has stopped, its I/O included. Idempotent. */
  pause(): Promise<Moment>;
  /** Lets the guest run and waits until it does. Idempotent. Announces it to the network where the VMM can. */
  resume(): Promise<Moment>;
  /**
   * Stops the guest, its I/O included, calls `work`, and lets it run on, without a word to the network. One that stands still already
   * is left so. Rejects with what `work` throws; the guest runs on then, too. A driver whose tracking is exact needs none.
   */
  drained?(work: () => void): Promise<void>;
  /**
   * Stops the guest, its I/O included, and writes everything but its RAM to `sink`, which it ends; where that fails `sink` is destroyed with
   * the reason. The guest can be resumed afterwards, and {@link resume} ends a departure that is under way. Much of it may be written before
   * the guest stops (video memory): a sink that does not take it keeps the guest running.
   */
  depart(sink: Writable): Departure;
  /** Gets ready to take a state, while nobody waits for that. Idempotent; {@link loadState} makes up for it. */
  expectState?(): Promise<void>;
  /** Takes the state from `source`. Guest memory may fault meanwhile. Ends paused. */
  loadState(source: Readable): Promise<void>;
  /**
   * Gets the userfaultfd over the whole of guest memory, not yet registered. Destination, before loadState. Rejects with
   * PT_MODE_UNSUPPORTED where the guest must not run before all of its pages are there.
   */
  acquire(): Promise<Acquired>;
  /** Asks the guest to check every frame of its memory. Null when the guest can't. Guest must be running. */
  verify(): Promise<VerifyResult | null>;
  /** Null when the guest can't. */
  stats(): Promise<GuestStats | null>;
  /** Begins a new measurement of gaps and stalls. */
  resetStats(): Promise<void>;
  /** Ends a VMM and waits until it is dead; removes its memory files and sockets. Idempotent. Launched VMMs only, unless `force`. */
  destroy(options?: { force?: boolean }): Promise<void>;
  /** Resolves when the process is gone. */
  readonly exited: Promise<void>;
  /** Lets go of connections and watchers; leaves the VMM alone. */
  close(): void;
}

/** Where a driver puts things. */
export interface GuestPlace {
  name: string;
  /** Sockets, logs: the agent's state folder for this guest; short, as Unix socket paths are bounded. */
  folder: string;
  /** Memory files: a folder on tmpfs. */
  memoryFolder: string;
}

/** What a VMM that waits for a guest is started for. */
export interface PrepareNeeds {
  /** {@link Vmm.acquire} will be asked for. Without it the VMM must start where no userfaultfd is to be had. */
  userfaultfd: boolean;
}

export interface Driver {
  readonly name: 'embedded' | 'qemu';
  /** Refuses what cannot be moved safely, before anything is started. */
  validate(description: GuestDescription): void;
  /** Starts a guest afresh, running. `options` are the operator's, validated here. */
  run(place: GuestPlace, options: Record<string, unknown>): Promise<Vmm>;
  /** Takes on a VMM that runs, or waits as incoming, started by someone else. */
  attach(place: GuestPlace, options: Record<string, unknown>): Promise<Vmm>;
  /** Starts a VMM that waits for the state of `description`; touches no guest memory. */
  prepare(place: GuestPlace, description: GuestDescription, needs?: PrepareNeeds): Promise<Vmm>;
  /** Finds a VMM again after a restart of the agent. Resolves to undefined when it is gone. */
  find(place: GuestPlace, record: GuestRecord): Promise<Vmm | undefined>;
}
