/**
 * A guest's memory at the destination: its userfaultfd, sessions and workers, from acquiring to unregistering; also
 * taking all of it up again after a restart of the agent.
 *
 *            ┌─ session: userfaultfd, page table on tmpfs      while the guest runs here and pages are missing
 *   memory ──┤
 *            └─ copy: the memory files, by pwrite              before that, where rounds come
 *
 * The userfaultfd is registered from the start: a VMM that touches its memory too early waits, it does not read zeros. A page that was
 * written into a file is no missing page to the kernel, so the two do not get into each other's way; and they are never in use at once.
 *
 *   rest serve: what is not Present in `copy` is punched out of the files; then the kernel has exactly what is Present there, which is
 *               checked; `session` begins with that, and what is missing faults, or is zero.
 *   rest copy:  nothing is missing, the same is checked, and the memory needs no userfaultfd from then on.
 */
import { closeSync, openSync, rmSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { asPagetideError, PagetideError } from '../errors.ts';
import type { Acquired, GuestPlace, Vmm } from '../guests/driver.ts';
import { memoryPrefix } from '../guests/marks.ts';
import { GuestService } from '../memory/guest-service.ts';
import { FrameState, native, Origin, type Extent, type FaultSession, type TargetFile } from '../memory/native.ts';
import type { PeerPagesSpec } from '../memory/worker-messages.ts';
import type { Place } from '../memory/worker-pools.ts';
import { TAG_PAGE } from '../pages/tags.ts';
import type { ArrivingNames } from './arriving-names.ts';
import type { MigrationHost } from './host.ts';
import type { FrameClasses } from './types.ts';

/** How the userfaultfd is found again; kept in the journal. */
export type AcquiredRecord = Omit<Acquired, 'uffd'>;

/** Frames that were copied before the guest ran here, by where their pages came from. */
export type CopiedFrames = Pick<FrameClasses, 'cache' | 'resident' | 'duplicate' | 'peer' | 'source'>;

export const NO_FRAMES: CopiedFrames = { cache: 0, resident: 0, duplicate: 0, peer: 0, source: 0 };

const CLASSES: Readonly<Record<number, keyof CopiedFrames>> = {
  [Origin.Cache]: 'cache',
  [Origin.Resident]: 'resident',
  [Origin.Duplicate]: 'duplicate',
  [Origin.Peer]: 'peer',
  [Origin.Source]: 'source',
};

const LACKING: ReadonlySet<number | undefined> = new Set([
  FrameState.Missing,
  FrameState.Wanted,
  FrameState.InFlight,
  FrameState.Installing,
]);

/** What {@link Arrival.open} takes over. */
export interface ArrivalParts {
  place: Place;
  at: GuestPlace;
  vmm: Vmm;
  /** Undefined: the guest is copied whole, and needs none. */
  acquired: Acquired | undefined;
  pages: PeerPagesSpec;
  names: ArrivingNames;
  /** Whether rounds come. */
  copies: boolean;
  /** Bytes of pages a second, at most; 0: the host's own limit alone. */
  bandwidth: number;
}

export class Arrival {
  /** Over the memory files, where rounds come; see {@link classes}. */
  readonly copy: FaultSession | undefined;
  readonly service: GuestService;
  /** Frames that had got their content before this took the guest up: where from was known to the agent that died. */
  readonly before: number;
  /** What the service had counted when it began to serve: of rounds, which a frame may be in many times. */
  counted: CopiedFrames = NO_FRAMES;
  readonly #session: FaultSession | undefined;
  readonly #vmm: Vmm;
  readonly #acquired: AcquiredRecord | undefined;
  readonly #tablePath: string;
  readonly #names: ArrivingNames;
  readonly #arrived: MigrationHost['arrived'];
  /** The host's own limit, bytes of pages a second; 0: none. */
  readonly #mostBandwidth: number;
  /** The memory needs no userfaultfd any more. */
  #isWhole = false;

  private constructor(
    host: MigrationHost,
    vmm: Vmm,
    acquired: AcquiredRecord | undefined,
    session: FaultSession | undefined,
    copy: FaultSession | undefined,
    service: GuestService,
    tablePath: string,
    names: ArrivingNames,
  ) {
    this.#vmm = vmm;
    this.#acquired = acquired;
    this.#session = session;
    this.copy = copy;
    this.service = service;
    this.before = session?.counts().installed ?? 0;
    this.#tablePath = tablePath;
    this.#names = names;
    this.#arrived = (...all) => host.arrived(...all);
    this.#mostBandwidth = host.settings.fill.bandwidth;
  }

  /**
   * Registers the memory of a VMM that waits, and begins to connect to the source: see {@link ready}. Nothing is served
   * yet. Takes place and userfaultfd and names over, also when it fails.
   * @throws PagetideError `PT_MEMORY_PRESENT` when a page is there already; `PT_MODE_UNSUPPORTED` where rounds come and the memory is
   *   not in files of pages of 4096 bytes
   */
  static open(host: MigrationHost, parts: ArrivalParts): Arrival {
    const { place, at, vmm, acquired, pages, names, copies, bandwidth } = parts;
    const tablePath = tableOf(at, pages.migration);
    let session: FaultSession | undefined;
    let copy: FaultSession | undefined;
    try {
      rmSync(tablePath, { force: true });
      if (acquired !== undefined) {
        session = makeSession(acquired, tablePath, false);
        session.register();
      }
      if (copies) copy = filesOf(vmm, acquired);
      checkNothingPresent(vmm, acquired);
    } catch (error) {
      discard(session, place, tablePath);
      discard(copy, place, undefined);
      names.remove();
      throw error;
    }
    // as the manifest has nothing but zero pages so far, and the files have none: see ArrivingNames.takeTold
    copy?.reset(0, copy.frames, FrameState.Zero);
    const { spinMicros, fill } = host.settings;
    const service = new GuestService({
      session,
      copy,
      place,
      pages: { ...pages, named: { ...names.spec, ...(copies ? { own: vmm.record.files } : {}) } },
      spinMicros,
      fill: { ...fill, bandwidth: least(fill.bandwidth, bandwidth) },
    });
    return new Arrival(host, vmm, acquired, session, copy, service, tablePath, names);
  }

  /** Whether pages are compared with what the source has told last. */
  get isAsTold(): boolean {
    return this.#names.isAsTold;
  }

  /** Bytes of pages a second from now on, at most; 0: the host's own limit alone. */
  limit(bandwidth: number): void {
    this.service.limit(least(this.#mostBandwidth, bandwidth));
  }

  /** Resolves when the source answers on both page connections. */
  ready(): Promise<void> {
    return this.service.ready();
  }

  /**
   * After a restart: takes the userfaultfd out of the VMM again, brings the page table in line with what the kernel has,
   * and connects. The guest's threads that wait are woken by {@link serveAgain}.
   */
  static reopen(
    host: MigrationHost,
    place: Place,
    at: GuestPlace,
    vmm: Vmm,
    acquired: AcquiredRecord,
    pages: PeerPagesSpec,
    names: ArrivingNames,
    bandwidth: number,
  ): Arrival {
    const tablePath = tableOf(at, pages.migration);
    const { spinMicros, fill } = host.settings;
    let session: FaultSession;
    try {
      const uffd = native().takeFd(vmm.record.pid, acquired.remoteFd);
      session = makeSession({ ...acquired, uffd }, tablePath, true);
    } catch (error) {
      names.close();
      throw error;
    }
    let service: GuestService;
    try {
      session.reconcile(presentFrames(vmm, acquired));
      service = new GuestService({
        session,
        place,
        // Frames of a ring may be here and others not, after rounds, or as only some of them had been filled when the agent died.
        // What the guest has written or given up since does not have its frame's tag any more, and is not used (own-pages.ts).
        pages: { ...pages, named: { ...names.spec, ...(acquired.shared ? { own: vmm.record.files } : {}) } },
        spinMicros,
        fill: { ...fill, bandwidth: least(fill.bandwidth, bandwidth) },
      });
    } catch (error) {
      discard(session, place, undefined);
      names.close();
      throw error;
    }
    return new Arrival(host, vmm, acquired, session, undefined, service, tablePath, names);
  }

  /** Whether the page of `frame` is still to come. */
  lacks(frame: number): boolean {
    return LACKING.has(this.service.table.table[frame]);
  }

  /**
   * The first of what the source tells is here, and the guest runs there still: makes of it what {@link serve} would have to, but for
   * what is told later. Not where rounds come. On a connection that comes late all may be told at once, and be served already: then this
   * does nothing, as frames are no longer this one's to set.
   */
  begin(): void {
    if (this.#names.begin()) this.#takeZeros([0, this.#names.manifest.frames]);
  }

  /** Nothing is served yet, and nothing asked for: which frames are zero may change back and forth. */
  #takeZeros(runs: readonly number[]): void {
    const session = this.#needSession();
    this.#names.eachZeroRun(runs, session.pageSize, (first, count, isZero) =>
      session.reset(first, count, isZero ? FrameState.Zero : FrameState.Missing),
    );
  }

  /** The manifest is final: serves by it from now on, before the device state is loaded, which touches memory. */
  serve(): void {
    const session = this.#needSession();
    if (this.copy === undefined) {
      checkNothingPresent(this.#vmm, this.#acquired);
      this.#takeZeros(this.#names.settle() ?? [0, this.#names.manifest.frames]);
    } else {
      this.copy.punchAbsent();
      checkPresent(this.#vmm, this.copy);
      session.adopt(this.copy.id);
      const { cached, resident, repeated, fromPeers, installed } = this.service.figures();
      this.counted = { cache: cached, resident, duplicate: repeated, peer: fromPeers, source: installed };
    }
    this.service.serve();
  }

  /**
   * Every page was copied, and the guest does not run yet: parts the memory from its userfaultfd, where it has one. {@link finish} has to
   * follow, as ever.
   * @throws PagetideError `PT_MEMORY_PRESENT` when the files have other pages than were copied
   */
  completeCopy(): void {
    const { copy } = this;
    const lacking = copy?.counts().outstanding;
    if (copy === undefined || lacking !== 0)
      throw new PagetideError('PT_INTERNAL', `${lacking ?? 'all'} frames still lack their content`);
    checkPresent(this.#vmm, copy);
    // Its own table knows nothing of what was copied.
    this.#session?.unregister({ force: true });
    this.#isWhole = true;
  }

  /** Where the pages of the files came from, as {@link completeCopy} and {@link serve} have found them. */
  classes(): CopiedFrames {
    const frames = { ...NO_FRAMES };
    if (this.copy === undefined) return frames;
    const { table, origins } = this.copy;
    // in a table of numbers first: it is done once a migration, while the guest stands still, by code that has not run warm
    const counts = new Uint32Array(256);
    for (let frame = 0; frame < table.length; frame++)
      if (table[frame] === FrameState.Present) counts[origins![frame]!]!++;
    for (const [origin, name] of Object.entries(CLASSES)) frames[name] = counts[Number(origin)]!;
    return frames;
  }

  /** The guest runs here: see {@link ArrivingNames.hold}. Nothing waits for it. */
  hold({ shared, log }: Pick<MigrationHost, 'shared' | 'log'>): void {
    this.#names.hold(shared.chunks).catch((error: unknown) => {
      log.debug({ error: asPagetideError(error).message }, 'the cached pages of a guest are not held');
    });
  }

  /** Serves on after {@link reopen}: what faulted while nobody listened was read by the one who died, and faults again. */
  serveAgain(): void {
    const session = this.#needSession();
    this.service.serve();
    session.wake(0, session.frames);
  }

  /**
   * Ends it well: nothing is missing, so the memory needs no userfaultfd any more. {@link partWith} has to follow.
   * @throws PagetideError when content is outstanding after all; nothing has changed then
   */
  finish(): Promise<void> {
    if (!this.#isWhole) this.#needSession().unregister();
    const { domain, manifest } = this.#names;
    if (domain !== undefined) this.#arrived(this.#vmm, domain, manifest);
    return this.service.stop().finally(() => this.#names.close());
  }

  /** Ends it with the VMM that it belongs to. */
  async abandon(): Promise<void> {
    await this.service.stop();
    this.#names.remove();
    rmSync(this.#tablePath, { force: true });
  }

  /** Lets go without ending anything: the VMM keeps its userfaultfd, the table stays. */
  release(): Promise<void> {
    return this.service.stop().finally(() => this.#names.close());
  }

  #needSession(): FaultSession {
    if (this.#session === undefined) throw new PagetideError('PT_INTERNAL', 'there is no userfaultfd');
    return this.#session;
  }
}

/**
 * Parts a VMM from its userfaultfd, once it is durable that no frame lacks anything. From any point in which an earlier
 * attempt was broken off, so it doesn't look at the page table: since unregistering, the guest makes pages of its own.
 */
export function partWith(vmm: Vmm, acquired: AcquiredRecord | undefined, at: GuestPlace, migration: string): void {
  if (acquired !== undefined) closeUserfault(vmm.record.pid, acquired);
  rmSync(tableOf(at, migration), { force: true });
  rmSync(tagsOf(at, migration), { force: true });
}

function closeUserfault(pid: number, acquired: AcquiredRecord): void {
  const { remoteFd, origin } = acquired;
  if (origin === 'handed-over' || native().findUserfaults(pid).includes(remoteFd)) {
    const session = makeSession({ ...acquired, uffd: native().takeFd(pid, remoteFd) }, undefined, false);
    try {
      // not missing, as is known for certain, but the table of this session is a blank one
      session.unregister({ force: true });
    } finally {
      native().destroySession(session.id);
      session.close();
    }
    if (origin === 'injected') native().closeRemote(pid, remoteFd);
  }
}

/** The page table lies beside the guest's memory, on tmpfs: it lives as long as that. */
export function tableOf(at: GuestPlace, migration: string): string {
  return join(at.memoryFolder, `${memoryPrefix(at)}.${migration}.frames`);
}

/** So do the tags of its frames. */
export function tagsOf(at: GuestPlace, migration: string): string {
  return join(at.memoryFolder, `${memoryPrefix(at)}.${migration}.tags`);
}

function makeSession(acquired: Acquired, tablePath: string | undefined, recover: boolean): FaultSession {
  const { uffd, regions, pageSize, shared } = acquired;
  const table = tablePath === undefined ? {} : { tablePath, recover };
  try {
    return native().createSession({ uffd, regions, pageSize, shared, ...table });
  } catch (error) {
    native().close(uffd);
    throw error;
  }
}

function discard(session: FaultSession | undefined, place: Place, tablePath: string | undefined): void {
  if (session !== undefined) {
    session.stop();
    native().destroySession(session.id);
    session.close();
  }
  place.free();
  if (tablePath !== undefined) rmSync(tablePath, { force: true });
}

/** The session over a guest's memory files, of which the kernel may have nothing yet. */
function filesOf(vmm: Vmm, acquired: AcquiredRecord | undefined): FaultSession {
  const { files, pageSize } = vmm.record;
  if (pageSize !== TAG_PAGE || acquired?.shared === false)
    throw new PagetideError('PT_MODE_UNSUPPORTED', 'only memory in files of pages of 4096 bytes is copied in rounds', {
      hint: 'Choose post-copy.',
    });
  const opened: TargetFile[] = [];
  try {
    for (const { path, size, offset } of files) opened.push({ fd: openSync(path, 'r+'), size, offset });
    return native().createFileSession(opened, pageSize);
  } catch (error) {
    throw asPagetideError(error, 'PT_MEMORY_FILE', "the guest's memory files cannot be written");
  } finally {
    for (const { fd } of opened) closeSync(fd);
  }
}

/** The smaller of two limits, of which 0 is none. */
function least(a: number, b: number): number {
  return a === 0 || b === 0 ? a + b : Math.min(a, b);
}

/** What of guest memory exists, as the kernel says, in bytes of guest memory space. @param acquired undefined: of shared memory */
function presentExtents(vmm: Vmm, acquired: AcquiredRecord | undefined): Extent[] {
  if (acquired?.shared === false) {
    return acquired.regions.flatMap((region) =>
      native()
        .presentExtents(vmm.record.pid, region.hostAddress, region.size)
        .map(({ offset, length }) => ({ offset: region.offset + offset, length })),
    );
  }
  return vmm.record.files.flatMap((file) => {
    const fd = openSync(file.path, 'r');
    try {
      return native()
        .dataExtents(fd, 0, file.size)
        .map(({ offset, length }) => ({ offset: file.offset + offset, length }));
    } finally {
      closeSync(fd);
    }
  });
}

function presentFrames(vmm: Vmm, acquired: AcquiredRecord): Uint32Array {
  const extents = presentExtents(vmm, acquired).sort((a, b) => a.offset - b.offset);
  return Uint32Array.from(
    extents.flatMap(({ offset, length }) => [offset / acquired.pageSize, length / acquired.pageSize]),
  );
}

/**
 * A page that is there never faults: the guest would read what stands in it, most likely zeros. Pages of tmpfs that were
 * only allocated (fallocate) look like holes to SEEK_DATA and are there all the same: the file's blocks tell.
 */
function checkNothingPresent(vmm: Vmm, acquired: AcquiredRecord | undefined): void {
  const extents = presentExtents(vmm, acquired);
  const data = extents.reduce((sum, extent) => sum + extent.length, 0);
  const bytes = Math.max(data, acquired?.shared === false ? 0 : allocatedBytes(vmm));
  if (bytes === 0) return;
  throw new PagetideError('PT_MEMORY_PRESENT', `${bytes} bytes of the destination's guest memory exist already`);
}

/**
 * The files have the pages that were copied, and no other. As every page that is Present was written, and tmpfs never drops one, it is
 * enough to count: no pass over the memory, which waits for this.
 */
function checkPresent(vmm: Vmm, copy: FaultSession): void {
  const copied = copy.counts().present * copy.pageSize;
  const bytes = allocatedBytes(vmm);
  if (bytes === copied) return;
  throw new PagetideError(
    'PT_MEMORY_PRESENT',
    `${bytes} bytes of the destination's guest memory exist, and ${copied} were copied`,
    {
      hint: 'Something else touched it: a VMM that looks into its memory before it has its state, or huge pages on tmpfs.',
    },
  );
}

function allocatedBytes(vmm: Vmm): number {
  return vmm.record.files.reduce((sum, { path }) => sum + statSync(path).blocks * 512, 0);
}
