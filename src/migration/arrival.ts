/**
 * A guest's memory at the destination: its userfaultfd, session and workers, from acquiring to unregistering; also
 * taking all of it up again after a restart of the agent.
 */
import { closeSync, openSync, rmSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { asPagetideError, PagetideError } from '../errors.ts';
import type { Acquired, GuestPlace, Vmm } from '../guests/driver.ts';
import { memoryPrefix } from '../guests/marks.ts';
import { GuestService } from '../memory/guest-service.ts';
import { FrameState, native, type Extent, type FaultSession } from '../memory/native.ts';
import type { PeerPagesSpec } from '../memory/worker-messages.ts';
import type { Place } from '../memory/worker-pools.ts';
import type { ArrivingNames } from './arriving-names.ts';
import type { MigrationHost } from './host.ts';

/** How the userfaultfd is found again; kept in the journal. */
export type AcquiredRecord = Omit<Acquired, 'uffd'>;

export class Arrival {
  readonly session: FaultSession;
  readonly service: GuestService;
  /** Frames that had got their content before this took the guest up: where from was known to the agent that died. */
  readonly before: number;
  readonly #vmm: Vmm;
  readonly #acquired: AcquiredRecord;
  readonly #tablePath: string;
  readonly #names: ArrivingNames;
  readonly #arrived: MigrationHost['arrived'];

  private constructor(
    host: MigrationHost,
    vmm: Vmm,
    acquired: AcquiredRecord,
    session: FaultSession,
    service: GuestService,
    tablePath: string,
    names: ArrivingNames,
  ) {
    this.#vmm = vmm;
    this.#acquired = acquired;
    this.session = session;
    this.service = service;
    this.before = session.counts().installed;
    this.#tablePath = tablePath;
    this.#names = names;
    this.#arrived = (...all) => host.arrived(...all);
  }

  /**
   * Registers the memory of a VMM that waits, and begins to connect to the source: see {@link ready}. Nothing is served
   * yet. Takes place and userfaultfd and names over, also when it fails.
   * @throws PagetideError `PT_MEMORY_PRESENT` when a page is there already
   */
  static open(
    host: MigrationHost,
    place: Place,
    at: GuestPlace,
    vmm: Vmm,
    acquired: Acquired,
    pages: PeerPagesSpec,
    names: ArrivingNames,
  ): Arrival {
    const tablePath = tableOf(at, pages.migration);
    let session: FaultSession;
    try {
      rmSync(tablePath, { force: true });
      session = makeSession(acquired, tablePath, false);
    } catch (error) {
      place.free();
      names.remove();
      throw error;
    }
    try {
      session.register();
      checkNothingPresent(vmm, acquired);
    } catch (error) {
      discard(session, place, tablePath);
      names.remove();
      throw error;
    }
    const service = new GuestService({ session, place, pages: { ...pages, named: names.spec }, ...host.settings });
    return new Arrival(host, vmm, acquired, session, service, tablePath, names);
  }

  /** Of the manifest as it is now, hex. */
  get digest(): string {
    return this.#names.manifest.digest().toString('hex');
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
  ): Arrival {
    const tablePath = tableOf(at, pages.migration);
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
      service = new GuestService({ session, place, pages: { ...pages, named: names.spec }, ...host.settings });
    } catch (error) {
      discard(session, place, undefined);
      names.close();
      throw error;
    }
    return new Arrival(host, vmm, acquired, session, service, tablePath, names);
  }

  /** The manifest is final: serves by it from now on, before the device state is loaded, which touches memory. */
  serve(): void {
    checkNothingPresent(this.#vmm, this.#acquired);
    this.#names.settle();
    const zeroRuns = this.#names.zeroRuns(this.session.pageSize);
    for (let i = 0; i < zeroRuns.length; i += 2) this.session.reset(zeroRuns[i]!, zeroRuns[i + 1]!, FrameState.Zero);
    this.service.serve();
  }

  /** The guest runs here: see {@link ArrivingNames.hold}. Nothing waits for it. */
  hold({ shared, log }: Pick<MigrationHost, 'shared' | 'log'>): void {
    this.#names.hold(shared.chunks).catch((error: unknown) => {
      log.debug({ error: asPagetideError(error).message }, 'the cached pages of a guest are not held');
    });
  }

  /** Serves on after {@link reopen}: what faulted while nobody listened was read by the one who died, and faults again. */
  serveAgain(): void {
    this.service.serve();
    this.session.wake(0, this.session.frames);
  }

  /**
   * Ends it well: nothing is missing, so the memory needs no userfaultfd any more. {@link partWith} has to follow.
   * @throws PagetideError when content is outstanding after all; nothing has changed then
   */
  finish(): Promise<void> {
    this.session.unregister();
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
}

/**
 * Parts a VMM from its userfaultfd, once it is durable that no frame lacks anything. From any point in which an earlier
 * attempt was broken off, so it doesn't look at the page table: since unregistering, the guest makes pages of its own.
 */
export function partWith(vmm: Vmm, acquired: AcquiredRecord, at: GuestPlace, migration: string): void {
  const { pid } = vmm.record;
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
  rmSync(tableOf(at, migration), { force: true });
  rmSync(tagsOf(at, migration), { force: true });
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

function discard(session: FaultSession, place: Place, tablePath: string | undefined): void {
  session.stop();
  native().destroySession(session.id);
  session.close();
  place.free();
  if (tablePath !== undefined) rmSync(tablePath, { force: true });
}

/** What of guest memory exists, as the kernel says, in bytes of guest memory space. */
function presentExtents(vmm: Vmm, acquired: AcquiredRecord): Extent[] {
  if (!acquired.shared) {
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
function checkNothingPresent(vmm: Vmm, acquired: AcquiredRecord): void {
  const extents = presentExtents(vmm, acquired);
  const data = extents.reduce((sum, extent) => sum + extent.length, 0);
  const allocated = acquired.shared
    ? vmm.record.files.reduce((sum, { path }) => sum + statSync(path).blocks * 512, 0)
    : 0;
  const bytes = Math.max(data, allocated);
  if (bytes === 0) return;
  throw new PagetideError('PT_MEMORY_PRESENT', `${bytes} bytes of the destination's guest memory exist already`);
}
