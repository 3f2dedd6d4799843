/** One running QEMU, as the agent sees it. */
import { lstat, open, readdir, rm } from 'node:fs/promises';
import type { Socket } from 'node:net';
import { join } from 'node:path';
import type { Readable, Writable } from 'node:stream';
import { asPagetideError, PagetideError } from '../../errors.ts';
import { native } from '../../memory/native.ts';
import type {
  Acquired,
  Departure,
  GuestRecord,
  GuestStats,
  MemoryFile,
  Moment,
  Movable,
  VerifyResult,
  Vmm,
  VmmStatus,
} from '../driver.ts';
import { endProcess, isAlive, watchProcess, type ProcessWatch } from '../process.ts';
import { trackingOf, type WriteTracking } from '../tracking.ts';
import { assertSafe } from './allow-list.ts';
import { wasMadeWithBalloon, whyPreCopyOnly } from './balloon.ts';
import { expectDeviceState, loadDeviceState, saveDeviceState, stoppedByOthers, type Saving } from './device-state.ts';
import { collectDisks, collectInventory } from './inventory.ts';
import { findRegions } from './memory-map.ts';
import { QmpClient } from './qmp.ts';
import { SelfCheck } from './self-check.ts';
import { logTail } from './vmm-log.ts';

/** For anything that QEMU's main thread answers; it may be busy, or wait for a page. Milliseconds. */
const COMMAND_MS = 10_000;
const STATUS_MS = 2_000;
const STATE_MS = 60_000;
/** A guest of some GiB checks itself at about 1 GiB/s on KVM, a tenth of that without. */
const VERIFY_MS = 300_000;
const GRACE_MS = 2_000;

/** How often, and how far apart (ms), QEMU tells the network where the guest is now. */
const ANNOUNCE = { initial: 50, max: 550, rounds: 5, step: 100 };

/** What {@link GuestRecord.local} holds for QEMU. Paths on this host. */
export interface QemuLocal extends Record<string, string> {
  qmp: string;
  /** Where the device state passes. */
  state: string;
  /** The guest's folder. */
  folder: string;
}

/**
 * Refuses memory that holds pages before anything was put there: such pages never fault.
 * @throws PT_MEMORY_PRESENT, PT_MEMORY_FILE
 */
export async function assertNothingPresent(files: readonly MemoryFile[]): Promise<void> {
  for (const { id, path, size } of files) {
    const file = await open(path, 'r').catch((cause: unknown) => {
      throw new PagetideError('PT_MEMORY_FILE', `cannot open memory file ${path}`, { cause });
    });
    try {
      const extents = native().dataExtents(file.fd, 0, size);
      const bytes = extents.reduce((sum, { length }) => sum + length, 0);
      if (bytes > 0) {
        throw new PagetideError(
          'PT_MEMORY_PRESENT',
          `memory ${id} (${path}) of the destination already holds ${bytes} bytes`,
        );
      }
    } finally {
      await file.close();
    }
  }
}

export class QemuVmm implements Vmm {
  readonly record: GuestRecord;
  readonly exited: Promise<void>;
  /** The channel to the guest's own check, where it has one. */
  readonly selfCheck: SelfCheck | undefined;
  #qmp: QmpClient | undefined;
  #connecting: Promise<QmpClient> | undefined;
  #watch: ProcessWatch;
  #gone = false;
  #setGone: () => void = () => undefined;
  #closed = false;
  /** The last STOP and RESUME that this connection has seen. */
  #stopped: Moment | undefined;
  #resumed: Moment | undefined;
  #saving: Promise<Saving> | undefined;
  /** Where it listens for its state. */
  #incoming: Socket | undefined;
  /** Known to have left `inmigrate`: `cont` there would be taken, and do nothing. */
  #arrived = false;

  /** @param qmp a connection that is there already; without it one is made when first needed */
  constructor(record: GuestRecord, qmp?: QmpClient) {
    this.record = record;
    this.#watch = watchProcess(record);
    this.#watch.unref();
    this.exited = new Promise((resolve) => {
      this.#setGone = () => {
        this.#gone = true;
        resolve();
      };
    });
    void this.#watch.exited.then(this.#setGone);
    if (qmp) this.#adopt(qmp);
    const { checkSocket } = record.local;
    if (checkSocket !== undefined) this.selfCheck = new SelfCheck(checkSocket);
  }

  get #local(): QemuLocal {
    return this.record.local as QemuLocal;
  }

  #adopt(qmp: QmpClient): QmpClient {
    this.#qmp = qmp;
    this.#stopped = this.#resumed = undefined;
    qmp.onEvent(({ event, unixMicros }) => {
      if (event !== 'STOP' && event !== 'RESUME') return;
      this.#stopped = event === 'STOP' ? { unixMicros } : undefined;
      this.#resumed = event === 'RESUME' ? { unixMicros } : undefined;
    });
    return qmp;
  }

  /** The monitor; connected anew where the connection was lost but the process lives. */
  async #monitor(): Promise<QmpClient> {
    if (this.#closed) throw new PagetideError('PT_INTERNAL', 'this VMM was let go of');
    if (this.#qmp?.usable) return this.#qmp;
    if (!this.#alive()) throw await this.#goneError();
    this.#connecting ??= QmpClient.connect(this.#local.qmp, { timeoutMs: COMMAND_MS })
      .then((qmp) => {
        if (this.#closed) qmp.close();
        return this.#adopt(qmp);
      })
      .finally(() => {
        this.#connecting = undefined;
      });
    return this.#connecting;
  }

  async #execute<T>(command: string, args?: Record<string, unknown>, timeoutMs = COMMAND_MS): Promise<T> {
    const qmp = await this.#monitor();
    try {
      return (await qmp.execute(command, args, { timeoutMs })) as T;
    } catch (error) {
      if (error instanceof PagetideError && error.code === 'PT_VMM_GONE' && !this.#alive())
        throw await this.#goneError(error);
      throw error;
    }
  }

  #alive(): boolean {
    return !this.#gone && isAlive(this.record);
  }

  async #goneError(cause?: unknown): Promise<PagetideError> {
    return new PagetideError(
      'PT_VMM_GONE',
      `QEMU (process ${this.record.pid}) exited: ${await logTail(this.#local['log'])}`,
      { cause },
    );
  }

  async #runState(timeoutMs = COMMAND_MS): Promise<string> {
    return (await this.#execute<{ status: string }>('query-status', undefined, timeoutMs)).status;
  }

  async status(): Promise<VmmStatus> {
    if (!this.#alive()) return 'gone';
    try {
      const state = await this.#runState(STATUS_MS);
      return state === 'running' ? 'running' : state === 'inmigrate' ? 'incoming' : 'paused';
    } catch (error) {
      if (!this.#alive()) return 'gone';
      throw error;
    }
  }

  async checkMovable(): Promise<Movable> {
    const inventory = await collectInventory(await this.#monitor(), this.record.pid, 'source');
    assertSafe(inventory);
    const preCopyOnly = whyPreCopyOnly(inventory, this.record.description);
    return preCopyOnly === undefined ? {} : { preCopyOnly };
  }

  async tracking(): Promise<WriteTracking> {
    const { block, commandLine } = await collectDisks(await this.#monitor(), this.record.pid);
    return trackingOf(block, commandLine);
  }

  async pause(): Promise<Moment> {
    // QEMU drains disk I/O, sends STOP, then answers; a guest that had stopped already sends none.
    await this.#execute('stop');
    return (this.#stopped ??= { unixMicros: Date.now() * 1000 });
  }

  async resume(): Promise<Moment> {
    await this.#endSaving();
    if (!this.#arrived) {
      if ((await this.#runState()) === 'inmigrate') {
        throw new PagetideError('PT_GUEST_STATE', 'the guest waits for its state; it cannot run before');
      }
      this.#arrived = true;
    }
    await this.#execute('cont');
    if (!this.#resumed) {
      // It ran before this connection was made, or QEMU answered without letting it run.
      const state = await this.#runState();
      if (state !== 'running')
        throw new PagetideError('PT_VMM_FAILED', `QEMU did not let the guest run, it is ${state}`);
      this.#resumed = { unixMicros: Date.now() * 1000 };
    }
    // Switches learn the guest's new port from it. Nobody waits for that, and where it fails the guest's own traffic does.
    this.#execute('announce-self', ANNOUNCE).catch(() => undefined);
    return this.#resumed;
  }

  /** Gives up a departure that is under way; what it did to QEMU is undone when this resolves. */
  async #endSaving(): Promise<void> {
    const saving = this.#saving;
    if (saving === undefined) return;
    try {
      const { abandon, over } = await saving;
      abandon();
      await over;
    } catch {
      // it had not begun to do anything
    }
    if (this.#saving === saving) this.#saving = undefined;
  }

  async drained(work: () => void): Promise<void> {
    await this.#monitor(); // one that is made anew has seen no STOP
    const stoodStill = this.#stopped !== undefined;
    await this.#execute('stop');
    // QEMU tells of a STOP only where the guest ran: one that somebody has paused is not ours to let run
    const ran = !stoodStill && this.#stopped !== undefined;
    try {
      work();
    } finally {
      if (ran) await this.#execute('cont');
    }
  }

  depart(sink: Writable): Departure {
    sink.on('error', () => undefined); // told by what is returned; with no listener it would end the process
    // from the first on: whoever lets the guest run in the same moment has to end this before
    const begun = (this.#saving = this.#endSaving().then(() => this.#save(sink)));
    begun.catch((error: unknown) => sink.destroy(asPagetideError(error)));
    const stopped = begun.then(async ({ halted, abandon }) => {
      await halted;
      if (this.#stopped !== undefined) return this.#stopped;
      // QEMU tells of a STOP only where the guest ran
      abandon();
      throw stoppedByOthers();
    });
    const saved = begun.then((saving) => saving.saved);
    for (const promise of [stopped, saved]) promise.catch(() => undefined);
    return { stopped, saved };
  }

  async #save(sink: Writable): Promise<Saving> {
    const qmp = await this.#monitor();
    // one whose state was saved already must run before that is done again: its disks are let go of
    if ((await this.#runState()) !== 'running') throw stoppedByOthers();
    this.#stopped = undefined;
    return saveDeviceState(qmp, this.#local.state, sink, { timeoutMs: STATE_MS });
  }

  async expectState(): Promise<void> {
    this.#incoming ??= await expectDeviceState(await this.#monitor(), this.#local.state);
  }

  async loadState(source: Readable): Promise<void> {
    source.on('error', () => undefined); // looked at when it is read, and it may fail before
    let qmp: QmpClient;
    try {
      qmp = await this.#monitor();
      await this.expectState();
    } catch (error) {
      source.destroy();
      throw error;
    }
    const describe = async () => {
      // Its last words are whole once it is dead; a QEMU that lives on has refused by an event alone.
      await Promise.race([this.exited, new Promise((resolve) => setTimeout(resolve, 500).unref())]);
      return logTail(this.#local['log']);
    };
    await loadDeviceState(qmp, this.#incoming!, source, { timeoutMs: STATE_MS, describe });
    this.#arrived = true;
  }

  async acquire(): Promise<Acquired> {
    // a source knows that, and asks for pre-copy: a guest that runs here depends on more than its word
    if (wasMadeWithBalloon(this.record.description))
      throw new PagetideError('PT_MODE_UNSUPPORTED', 'a guest with a memory balloon is not served by userfaultfd', {
        hint: 'Choose --mode pre-copy.',
      });
    if (!this.#alive()) throw await this.#goneError();
    await assertNothingPresent(this.record.files);
    const regions = await findRegions(this.record.pid, this.record.files);
    const { fd, remoteFd } = native().attach(this.record.pid, 0n);
    return { uffd: fd, remoteFd, origin: 'injected', regions, pageSize: this.record.pageSize, shared: true };
  }

  async verify(): Promise<VerifyResult | null> {
    return this.selfCheck ? this.selfCheck.verify(VERIFY_MS) : null;
  }

  stats(): Promise<GuestStats | null> {
    if (!this.selfCheck) return Promise.resolve(null);
    const { longestGapMs, operations, heartbeats } = this.selfCheck;
    // Which touch of a page faulted, a guest cannot tell: to it, it is but a slow one.
    return Promise.resolve({
      longestGapMs,
      stalls: null,
      operations,
      ...(heartbeats && { heartbeats: { ...heartbeats } }),
    });
  }

  resetStats(): Promise<void> {
    this.selfCheck?.reset();
    return Promise.resolve();
  }

  async destroy(options: { force?: boolean } = {}): Promise<void> {
    if (!this.record.launched && options.force !== true && this.#alive()) {
      throw new PagetideError('PT_GUEST_STATE', 'this QEMU was started elsewhere; end it there');
    }
    await endProcess(this.record, GRACE_MS);
    this.#setGone(); // a watch that was closed before would never tell
    this.close();
    await removeLeftovers(this.record);
  }

  close(): void {
    this.#closed = true;
    this.#incoming?.destroy();
    this.#watch.close();
    this.#qmp?.close();
    this.selfCheck?.close();
  }
}

/** Removes what a dead QEMU leaves: memory files that we made, and sockets in its folder. The log stays. */
export async function removeLeftovers(record: Pick<GuestRecord, 'launched' | 'files' | 'local'>): Promise<void> {
  if (!record.launched) return;
  await Promise.all(record.files.map(({ path }) => rm(path, { force: true })));
  const { folder } = record.local as QemuLocal;
  const names = await readdir(folder).catch(() => []);
  await Promise.all(
    names.map(async (name) => {
      const path = join(folder, name);
      if ((await lstat(path).catch(() => undefined))?.isSocket()) await rm(path, { force: true });
    }),
  );
}
