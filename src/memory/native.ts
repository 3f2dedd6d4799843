/**
 * The one typed door to the native shim. Nothing else loads the addon.
 *
 * Every native call checks its arguments; a failed system call throws a {@link PagetideError} with code `PT_SYSCALL`
 * (or a closer one), whose message names the call, the errno and the address range.
 */
import { createRequire } from 'node:module';
import { existsSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { PagetideError } from '../errors.ts';

/** State of one frame, as the byte in the page table has it. Keep equal to `FrameState` in native/core/page_table.h. */
export const FrameState = {
  /** Not here, nobody asked for it. */
  Missing: 0,
  /** A fault waits for it: asked for on the demand connection. */
  Wanted: 1,
  /** The fill has asked for it. */
  InFlight: 2,
  /** One thread is installing it right now. */
  Installing: 3,
  /** Its content is in the guest. */
  Present: 4,
  /** The guest gave it up: reads as zero from now on. */
  Removed: 5,
  /** Known to be zero; a zero page is installed when it faults, never by the fill. */
  Zero: 6,
  /** One thread is installing a zero page right now. */
  InstallingZero: 7,
} as const;
export type FrameState = (typeof FrameState)[keyof typeof FrameState];

/** What an install call came to. Keep equal to `Outcome` in native/core/session.h. */
export const Outcome = {
  /** Every frame of the run is dealt with: installed now, or already present, removed or zero. */
  Done: 0,
  /** The layout is changing (EAGAIN): drain events with `wait`, then call again from `outcome[Next]`. */
  Again: 1,
  /** The guest's process is gone (ESRCH). */
  Gone: 2,
  /** A page that nobody here installed is in the way (EEXIST): an alarm. The frame is not woken. */
  Foreign: 3,
  /** The source could not give the whole page (short read). Nothing was installed for that frame. */
  Short: 4,
  /** Any other error; `outcome[Errno]` has the number. */
  Failed: 5,
  /** The shared-page cache, or the resident index, lacks the page of frame `outcome[Next]`: ask elsewhere. */
  Absent: 6,
  /** What the source has is not the page that the tag of frame `outcome[Next]` names. Of no native call, but of sources here. */
  Wrong: 100,
} as const;
export type Outcome = (typeof Outcome)[keyof typeof Outcome];

/** Where the page of a frame came from. Keep equal to `Origin` in native/core/session.h. */
export const Origin = { None: 0, Source: 1, Cache: 2, Resident: 3, Duplicate: 4, Peer: 5 } as const;
export type Origin = (typeof Origin)[keyof typeof Origin];

/** What inserting a page into the cache came to. Keep equal to `Insertion` in native/core/page_cache.h. */
export const Insertion = {
  Inserted: 0,
  /** It was there already. */
  Present: 1,
  /** The page does not have that tag, or the tag is the zero page's, which is never cached. */
  Rejected: 2,
  /** The domain has no key here: the page could not be verified. */
  Unverified: 3,
  /** Every slot is held by a running migration, or just being read; or pages are being removed right now. */
  Full: 4,
  /** The cache's file was cut off: it is of no use any more. */
  Lost: 5,
} as const;
export type Insertion = (typeof Insertion)[keyof typeof Insertion];

/** Counters since the cache was opened. */
export interface CacheStats {
  /** Pages that there is room for. */
  slots: number;
  /** Pages that there are. */
  used: number;
  /** Pages that running migrations hold. */
  pinned: number;
  /** Lookups, by installs and reads. */
  hits: number;
  misses: number;
  insertions: number;
  evictions: number;
  /** Insertions whose page did not have its tag, or could not be verified. */
  rejected: number;
  /** Slots of an earlier run that were half written, damaged, or whose page did not have its tag at its first use. */
  dropped: number;
  /** Insertions for which no slot was to be had. */
  refused: number;
  /** Bytes of the index, which is in memory: 46 a slot. */
  indexBytes: number;
  /** The file was cut off while in use: every lookup misses. */
  lost: boolean;
}

/** What the resident index holds, and counters since it was opened. */
export interface ResidentStats {
  /** Memory files of guests. */
  files: number;
  /** Their frames. */
  frames: number;
  /** Frames that are listed under a tag. */
  listed: number;
  /** Different tags among them. */
  different: number;
  /** Lookups that gave a page, and those that did not. */
  hits: number;
  misses: number;
  /** Frames that were listed and held another page when they were copied. */
  stale: number;
  /** Bytes of the index: at most 24 a frame, and 4 KiB. */
  indexBytes: number;
}

/** Indices into the Int32Array that install calls fill. */
export const OutcomeField = { Installed: 0, Skipped: 1, Next: 2, Errno: 3 } as const;
export const OUTCOME_FIELDS = 4;

/** Bits of `WaitField.Flags`. */
export const WaitFlag = {
  /** The session was told to stop. */
  Stop: 1,
  /** The event loop of this thread has something to do. */
  Loop: 2,
  /** Removes were applied: parked frames may have become zero. */
  Removed: 4,
  /** The guest's process closed its last copy of the userfaultfd, or is gone. */
  Hangup: 8,
  /** `socketFd` is readable. */
  Socket: 16,
} as const;

/**
 * Indices into the Float64Array that `wait` fills. Times are CLOCK_MONOTONIC in microseconds: `Entered` when the wait
 * began (what was served before was done by then), `Now` when the faults had been read, or when `clock` was called.
 */
export const WaitField = { Flags: 0, Removes: 1, Entered: 2, Now: 3 } as const;
export const WAIT_FIELDS = 4;

/** One contiguous piece of guest memory. */
export interface MemoryRegion {
  /** Address in the guest's process, page aligned, below 2^47. */
  hostAddress: number;
  /** Bytes, a multiple of the page size. */
  size: number;
  /** Where it begins in guest memory space (bytes), page aligned: frame = offset / page size. */
  offset: number;
}

export interface SessionOptions {
  /** The userfaultfd. The session owns it from now on and closes it in `destroySession`. */
  uffd: number;
  /** Non-overlapping in address and in offset. */
  regions: MemoryRegion[];
  /** Bytes: 4096 or 2 MiB; a power of two. */
  pageSize: number;
  /** True when the guest's memory is shared (tmpfs, memfd): removes do not take content away, punches do. */
  shared: boolean;
  /** Where the page table lives, so that it outlives the agent (a file on tmpfs); without it, in anonymous memory. */
  tablePath?: string;
  /** Take over the page table that `tablePath` holds instead of making a new one. */
  recover?: boolean;
}

export interface SessionCounts {
  /** Frames in all regions. */
  total: number;
  /** Frames whose content still has to come: missing, wanted, in flight or being installed. */
  outstanding: number;
  /** Of those: wanted by a fault, or set aside by a round of copying. */
  wanted: number;
  present: number;
  zero: number;
  removed: number;
  /** Installs so far: frames that got content / a zero page. */
  installed: number;
  zeroInstalled: number;
  /** Answers that came for frames which were dealt with already. */
  skipped: number;
  /** Fault messages read so far. */
  faults: number;
  /** Remove events read so far. */
  removes: number;
  /** EEXIST where nobody here had installed: alarms. */
  foreign: number;
}

/** A memory file of a guest that is written while the guest does not run here. */
export interface TargetFile {
  /** Open for reading and writing; the session makes a descriptor of its own of it. */
  fd: number;
  /** Bytes. */
  size: number;
  /** Where it begins in guest memory space, bytes. */
  offset: number;
}

/**
 * A page fault session: one guest's userfaultfd, regions and page table. Shared by threads through its id.
 *
 * Or a session over the guest's memory files ({@link Native.createFileSession}), by which pages are copied before the guest runs
 * here: the same, but that pages are written (`pwrite`), and that all that needs a userfaultfd is refused.
 */
export interface FaultSession {
  readonly id: number;
  readonly frames: number;
  readonly pageSize: number;
  /** A live view of the page table, a byte a frame ({@link FrameState}). Read it; only native code writes it. */
  readonly table: Uint8Array;
  /** Over files only: a live view, {@link Origin} of each frame's page as it was last put there. */
  readonly origins?: Uint8Array;

  /** `UFFDIO_REGISTER` (missing) on every region. */
  register(): void;
  /** `UFFDIO_UNREGISTER` on every region; missing frames read as zero from then on. Refused while content is outstanding. */
  unregister(options?: { force?: boolean }): void;
  /**
   * Waits until a fault, an event, work for this thread's event loop, or stop; spins `spinUs` microseconds before it
   * sleeps, sleeps `timeoutMs` at most (0: not at all). Removes among the events are applied before it returns.
   * @param socketFd another descriptor that ends the wait: the demand connection; -1: none
   * @param frames gets the faulting frames, in the order read
   * @param status gets {@link WaitField}
   * @returns how many faults were read, 0 to `frames.length`
   */
  wait(frames: Uint32Array, status: Float64Array, timeoutMs: number, spinUs: number, socketFd?: number): number;
  /** Sets `status[WaitField.Now]`. */
  clock(status: Float64Array): void;
  /** Makes `wait` return with {@link WaitFlag.Stop}, in every thread, now and in future. */
  stop(): void;

  /**
   * As Wanted: Missing or InFlight → Wanted for each of the frames. As InFlight: the leading run of Missing frames, up to
   * the first that is not. Returns how many frames changed.
   */
  claim(frame: number, count: number, as: 1 | 2): number;
  /** Gives frames in state Wanted/InFlight (given as `from`) back to Missing, e.g. after a lost connection; returns how many. */
  release(frame: number, count: number, from: 1 | 2): number;
  /** First frame ≥ `frame` that is Missing, or -1. */
  nextMissing(frame: number): number;

  /**
   * Installs `count` pages from `source` at `byteOffset` into consecutive frames from `frame`. Frames that need no
   * content any more are skipped. Contiguous frames go into one `UFFDIO_COPY`, or one `pwrite`, 64 KiB at a time.
   * @param origin kept in {@link origins}; the source by default
   */
  install(
    frame: number,
    count: number,
    source: Uint8Array,
    byteOffset: number,
    outcome: Int32Array,
    origin?: Origin,
  ): Outcome;
  /** The same from file `fd` at `fileOffset`, by `pread` (a file that shrank gives `Short`, never zeros). */
  installFromFile(frame: number, count: number, fd: number, fileOffset: number, outcome: Int32Array): Outcome;
  /** The same from slots of a mapped arena: frame `frame + i` gets slot `slots[first + i]`. */
  installFromArena(
    frame: number,
    count: number,
    arena: number,
    slots: Uint32Array,
    first: number,
    outcome: Int32Array,
  ): Outcome;
  /**
   * The same from the shared-page cache, page by page, up to the first frame that it lacks: `Absent`, that frame in
   * `outcome[Next]`. A cache that was closed lacks everything. Frames whose tag is all zero become Zero, and count as
   * skipped: their page of zeros comes with {@link installZero} when they fault. Guests with pages of 4096 bytes only.
   * @param tags of all frames, 16 bytes each; the tag of frame n is at 16 n. Usually over shared memory.
   * @param cache id of the cache
   */
  installFromCache(frame: number, count: number, tags: Uint8Array, cache: number, outcome: Int32Array): Outcome;
  /**
   * The same from the guests that run on this host: a page is copied out of a guest's memory, the copy is verified against the
   * tag, and the copy is installed. `Absent` where no guest of the domain has the page (any more); closed lookups lack everything.
   * @param lookups {@link ResidentIndex.lookups} of the guest's domain
   */
  installFromResident(frame: number, count: number, tags: Uint8Array, lookups: number, outcome: Int32Array): Outcome;
  /** Installs zero pages where the frame is Zero, Removed, or Present but gone (punched); wakes where a page is there. */
  installZero(frame: number, count: number, outcome: Int32Array): Outcome;
  /**
   * Content turned out to be zero: Missing/Wanted/InFlight → Zero. Installs nothing. Returns how many frames changed. Over files
   * what stands there is punched first; where that fails the frame is Missing.
   */
  markZero(frame: number, count: number): number;
  /** `UFFDIO_WAKE`. */
  wake(frame: number, count: number): void;

  /** Sets frames while nothing is being served: the initial map. */
  reset(frame: number, count: number, state: FrameState): void;
  /**
   * What another session (its id) has of the same memory, while neither is in use: Present and Zero as there, all else Missing.
   */
  adopt(from: number): void;
  /**
   * Over files, while nothing is installed: takes the pages of these frames out of their files, then sets their state.
   * @throws PagetideError; no state has changed then
   */
  punch(frame: number, count: number, state: FrameState): void;
  /** The same for whatever is in frames that are not Present, without a change of state: only what is Present is there then. */
  punchAbsent(): void;
  /**
   * After a restart: brings the page table in line with what the kernel has. `present` holds (first, count) pairs, sorted
   * and disjoint. Returns how many frames are there that nobody here installed (0, or it is an alarm).
   */
  reconcile(present: Uint32Array): number;
  /** Lets go of the session in this thread. The userfaultfd is closed with the last view of a destroyed session. */
  close(): void;
  counts(): SessionCounts;
}

export interface Extent {
  /** Bytes from the beginning of the file. */
  offset: number;
  length: number;
}

export interface AttachResult {
  /** The userfaultfd in this process. */
  fd: number;
  /** Its number in the target, where it stays open on purpose. */
  remoteFd: number;
}

export interface FdMessage {
  /** Bytes received; 0 at end of file, -1 where it would block. */
  bytes: number;
  fds: number[];
}

/** What a {@link TlsSession} tells without a call: bytes to be taken, whether it is established, bytes at the network. */
export const TlsSessionField = { Unsent: 0, Established: 1, Received: 2, Sent: 3 } as const;
export const TLS_SESSION_FIELDS = 4;

/**
 * OpenSSL's TLS 1.3 over a socket that is read and written by native calls, between two that know the same 32 bytes. None
 * of its calls throws or waits; -1 says that it failed, and then it is of no more use.
 */
export interface TlsSession {
  /** Goes on with the handshake. 1: done; 0: not yet, more has to come; -1: failed. */
  handshake(fd: number): number;
  /** Bytes read into `into`, as many as there are and fit; 0: nothing now; -1: the connection has ended, or failed. */
  recv(fd: number, into: Uint8Array): number;
  /**
   * Encrypts `length` bytes of `data`, and sends them; with a negative `fd` they are only encrypted. Established only.
   * @returns encrypted bytes that the socket did not take: see {@link takeUnsent}; -1: failed
   */
  send(fd: number, data: Uint8Array, length: number): number;
  /** The encrypted bytes that were not sent, to be sent before anything else. */
  takeUnsent(): Buffer;
}

/** Watches a descriptor on this thread's event loop. */
export interface FdWatcher {
  /** Stops watching. Does not close the descriptor. Idempotent. */
  close(): void;
  ref(): void;
  unref(): void;
}

export interface UserfaultProbe {
  /** Ways to create a userfaultfd, in the order tried, with the errno name of those that failed. */
  ways: { way: 'syscall' | 'device' | 'user-mode-only'; ok: boolean; errno?: string }[];
  /** Feature bits that the kernel offers (`UFFDIO_API`), as bigint; absent where none could be created. */
  features?: bigint;
  /** Whether `PAGEMAP_SCAN` works. */
  pagemapScan: boolean;
  /** Whether shared memory (tmpfs) and huge pages can be registered. */
  shmem: boolean;
  hugetlbfs: boolean;
}

/** The addon's half of {@link WriteTracker} in write-tracker.ts; a thing of one thread. */
export interface NativeWriteTracker {
  /** Frames in all regions. */
  readonly frames: number;
  /**
   * Fills `runs` with (first frame, count) pairs. Returns how many, n ≥ 0, where the pass is complete, or −1 − n where it goes on
   * with the next call. Allocates nothing.
   */
  scan(runs: Uint32Array): number;
  close(): void;
}

/** The addon's exports. */
export interface Native {
  createSession(options: SessionOptions): FaultSession;
  /**
   * A session over memory files in which nothing is; every frame is Missing. Files lie one after the other in guest memory space.
   * @param pageSize bytes, as in {@link SessionOptions}
   */
  createFileSession(files: TargetFile[], pageSize: number): FaultSession;
  /** A view of a session made by another thread. Throws `PT_INTERNAL` when there is none. */
  openSession(id: number): FaultSession;
  /** Stops the session, closes its userfaultfd here, and frees it when the last view is gone. Unlinks nothing. */
  destroySession(id: number): void;

  /** Gives memory that native code has freed back to the kernel, of the whole process. Takes a few milliseconds. */
  trimMemory(): void;

  /** What this host's kernel and rights allow. */
  probe(): UserfaultProbe;
  /** A userfaultfd of this process, created in the first way that is permitted. */
  createUserfault(features: bigint): { fd: number; userModeOnly: boolean };
  /**
   * Creates a userfaultfd inside process `pid`, which must be no child of this process; see native/core/attach.h.
   * `remoteDevice`: number, in that process, of an open /dev/userfaultfd to make it from.
   */
  attach(pid: number, features: bigint, remoteDevice?: number): AttachResult;
  /** `pidfd_getfd`: a copy of descriptor `remoteFd` of `pid`. */
  takeFd(pid: number, remoteFd: number): number;
  /** Closes descriptor `remoteFd` inside `pid`. */
  closeRemote(pid: number, remoteFd: number): void;
  /** Numbers of the userfaultfds that `pid` has open, from /proc. */
  findUserfaults(pid: number): number[];
  /** Which of the region's frames the process has in memory, as extents; from `/proc/pid/pagemap` (private memory). */
  presentExtents(pid: number, address: number, size: number): Extent[];

  /**
   * Tracks what process `pid` writes; see native/core/write_tracking.h. `uffd`: a userfaultfd of that process with
   * {@link Native.trackingFeatures}, the tracker's own from now on unless this throws. `regions`: address, size and offset of
   * each, one after the other.
   */
  createWriteTracker(pid: number, uffd: number, pageSize: number, regions: Float64Array): NativeWriteTracker;
  /** Features that a userfaultfd for write tracking is made with. */
  trackingFeatures: bigint;

  /** Extents of `fd` that hold data, from `SEEK_DATA`/`SEEK_HOLE`, within [offset, offset+length). */
  dataExtents(fd: number, offset: number, length: number): Extent[];
  /**
   * Begins to count changes of an open file that are not made through a mapping (`write`, `fallocate`, `MADV_REMOVE`); see
   * native/core/file_changes.h. Returns the watch's number; it outlives `fd`. Throws `PT_UNSUPPORTED_HOST` for a memfd, `PT_SYSCALL`.
   */
  watchChanges(fd: number): number;
  /** A number that is larger than the last one where the file was changed meanwhile. */
  countChanges(watch: number): number;
  /** Idempotent. */
  unwatchChanges(watch: number): void;
  /** Whether `length` bytes of `data` from `offset` are all zero. */
  isZero(data: Uint8Array, offset: number, length: number): boolean;

  /** An arena of page slots in a mapped file of ours (`fallocate`d); returns its id, valid in every thread. */
  createArena(path: string, slotSize: number, slots: number): number;
  destroyArena(id: number): void;
  /** A view of the arena's memory. */
  arenaView(id: number): Uint8Array;

  /**
   * Takes a copy of a domain's secret of 32 bytes into native memory (kept out of core dumps, wiped when closed) and returns its
   * number, valid in every thread. The caller wipes its own copy. Throws `PT_BAD_ARGUMENT` for another length.
   */
  openDomainKey(bytes: Uint8Array): number;
  /** Forgets the key. Calls of other threads that use it just now end first. Idempotent. */
  closeDomainKey(key: number): void;
  /**
   * Tags `count` pages of 4096 bytes from the beginning of `pages` into `tags` (16 bytes each); both may be views of shared
   * memory. Returns how many are zero. See native/core/tags.h for the scheme.
   */
  tagPages(key: number, pages: Uint8Array, count: number, tags: Uint8Array): number;
  /**
   * Tags `count` frames (1 to 512) of 4096 bytes of the open file `fd` from byte `fileOffset`, a multiple of 4096; the first tag
   * becomes tag number `firstTag` of `tags`. Holes are zero pages and aren't read; the rest is read with `pread`, never through
   * a mapping. `hashes`, 8 bytes a frame from the first on, gets the page hashes for `residentSet` (native/core/page_hash.h); those of
   * zero pages are zero. `scratch`, which no other thread writes, holds a page at least, 256 KiB at best. Returns how many are zero. Throws `PT_SYSCALL` (EIO), with the
   * range, where the file ends inside it.
   */
  tagFile(
    key: number,
    fd: number,
    fileOffset: number,
    count: number,
    tags: Uint8Array,
    firstTag: number,
    scratch: Uint8Array,
    hashes?: Uint8Array,
  ): number;
  /** Whether a page of 4096 bytes has this tag of 16. Allocates nothing. */
  verifyPage(key: number, page: Uint8Array, tag: Uint8Array): boolean;
  /**
   * Deltas of pages of 4096 bytes: native/core/block_delta.h says what they are. Digests of the blocks of `count` pages from the beginning
   * of `pages` into `digests`, 64 bytes a page. `seed`: 64 bits, the same for {@link encodeDeltas}.
   */
  digestBlocks(seed: bigint, pages: Uint8Array, count: number, digests: Uint8Array): void;
  /** Deltas of `count` pages against the versions with these digests; `into` has room for 4100 bytes a page. Returns the bytes used. */
  encodeDeltas(seed: bigint, pages: Uint8Array, count: number, digests: Uint8Array, into: Uint8Array): number;
  /**
   * Makes `count` pages of their older versions, in place. False where `deltas`, all of it, is not what belongs to so many pages: they
   * are then as they were. What it makes is to be compared with its tag before it is used.
   */
  applyDeltas(pages: Uint8Array, count: number, deltas: Uint8Array): boolean;
  /** What digests pages on this CPU: `sha-ni` or `portable`. */
  digestEngine: string;

  /**
   * Opens or makes the shared-page cache file of at most `bytes` bytes; returns its id, valid in every thread. Used by
   * src/pages/cache.ts, which says more, as do the calls below.
   */
  createCache(path: string, bytes: number, replace: boolean): number;
  destroyCache(id: number): void;
  /** 1 to 64 bytes; none: the domain's key is forgotten. */
  cacheKey(id: number, domain: number, key: Uint8Array): void;
  /** The same with a domain key (`openDomainKey`) by its number: the secret stays in native memory. */
  cacheUseKey(id: number, domain: number, key: number): void;
  cacheInsert(
    id: number,
    domain: number,
    tags: Uint8Array,
    tagOffset: number,
    pages: Uint8Array,
    pageOffset: number,
    value: number,
  ): Insertion;
  cacheRead(id: number, tags: Uint8Array, tagOffset: number, into: Uint8Array, offset: number): boolean;
  /** `present` gets a byte a tag, 1 where it is there. Returns how many are. */
  cacheHas(id: number, tags: Uint8Array, present: Uint8Array): number;
  cacheSetValue(id: number, tags: Uint8Array, value: number): number;
  cachePin(id: number, set: number, tags: Uint8Array): number;
  cacheUnpin(id: number, set: number): number;
  cacheRemoveDomain(id: number, domain: number): number;
  cacheClear(id: number): number;
  cacheStats(id: number): CacheStats;

  /** A resident index with room for so many frames; returns its id, valid in every thread. Used by src/pages/resident.ts. */
  createResident(frames: number): number;
  destroyResident(id: number): void;
  /** Returns the file's number. */
  residentAdd(id: number, fd: number, frames: number, domain: number, key: number): number;
  /** `hashes`: 8 bytes a frame from `first` on, as `tagFile` gave them together with the tags. */
  residentSet(
    id: number,
    file: number,
    first: number,
    count: number,
    tags: Uint8Array,
    firstTag: number,
    hashes?: Uint8Array,
  ): void;
  residentRemove(id: number, file: number): void;
  residentRemoveDomain(id: number, domain: number): number;
  residentLookups(id: number, domain: number): number;
  closeResidentLookups(lookups: number): void;
  residentCopy(lookups: number, tags: Uint8Array, firstTag: number, into: Uint8Array, offset: number): boolean;
  /** `present`, a byte a tag, becomes 1 where the tag seems to be listed, and stays as it is elsewhere. */
  residentHas(lookups: number, tags: Uint8Array, present: Uint8Array): void;
  residentStats(id: number): ResidentStats;

  /** A listening Unix socket, mode 0600, non-blocking. Throws `PT_SOCKET_IN_USE`. */
  listenUnix(path: string): number;
  connectUnix(path: string): number;
  /** Accepts one connection, or -1. */
  accept(fd: number): number;
  peerPid(fd: number): number;
  /** One `recvmsg`; at most 16 descriptors, more are closed. */
  receive(fd: number, into: Uint8Array): FdMessage;
  send(fd: number, data: Uint8Array, fds: number[]): void;
  /** `recv` without waiting: bytes (0: end of file), or the negative errno. Throws and allocates nothing. */
  recvSocket(fd: number, into: Uint8Array): number;
  /** `send` without waiting: bytes taken, or the negative errno. Throws and allocates nothing. */
  sendSocket(fd: number, data: Uint8Array, offset: number, length: number): number;
  /** Bytes of a TCP socket that the other end has not acknowledged, sent or not; or the negative errno. Throws nothing. */
  unacknowledged(fd: number): number;
  /**
   * Bytes that have crossed the network for a TCP socket, both ways, with `header` bytes for each packet: what came, what left and was
   * acknowledged, and acknowledgements. -1: the kernel does not tell. Throws nothing.
   */
  carried(fd: number, header: number): number;
  /** Another descriptor of the same socket, so that it can be watched beside its own handle. */
  duplicate(fd: number): number;
  close(fd: number): void;
  /** @param key 32 bytes, which both ends know and nobody else; `status`: see {@link TlsSessionField} */
  createTlsSession(server: boolean, key: Uint8Array, status: Float64Array): TlsSession;
  watch(fd: number, callback: () => void): FdWatcher;

  pidfdOpen(pid: number): number;
  /** Sets DSCP on a socket. Used by background traffic. */
  setTrafficClass(fd: number, dscp: number): void;
}

const here = dirname(fileURLToPath(import.meta.url));

/** Finds the built native folder from `src/` as well as from `dist/src/`. */
function buildFolder(): string {
  for (const up of ['../..', '../../..']) {
    const folder = join(here, up, 'native/build/Release');
    if (existsSync(folder)) return folder;
  }
  throw new PagetideError('PT_UNSUPPORTED_HOST', 'the native part of Pagetide is not built', {
    hint: 'Run `npm run build:native` in the installation folder; it needs a C++20 compiler, make and Python 3.',
  });
}

/** Path of a native program that is built beside the addon. */
export function nativeProgram(name: 'pagetide-launch' | 'pagetide-guest'): string {
  return join(buildFolder(), name);
}

function load(): Native {
  if (process.platform !== 'linux') {
    throw new PagetideError('PT_UNSUPPORTED_HOST', `userfaultfd exists on Linux only, this is ${process.platform}`, {
      hint: 'Run Pagetide on a Linux host, kernel 5.7 or newer.',
    });
  }
  const path = join(buildFolder(), 'pagetide.node');
  try {
    const addon = createRequire(import.meta.url)(path) as Native & { setErrorClass(c: typeof PagetideError): void };
    addon.setErrorClass(PagetideError);
    return addon;
  } catch (cause) {
    throw new PagetideError('PT_UNSUPPORTED_HOST', `cannot load ${path}`, {
      cause,
      hint: 'Run `npm run build:native`: it was built for another Node.js or machine.',
    });
  }
}

let loaded: Native | undefined;

/** The addon, loaded at first use. */
export function native(): Native {
  return (loaded ??= load());
}
