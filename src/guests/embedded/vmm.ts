/** One embedded guest on this host. */
import { rm } from 'node:fs/promises';
import type { Readable, Writable } from 'node:stream';
import { asPagetideError, PagetideError } from '../../errors.ts';
import { closeHandover, type Handover } from '../../memory/handover.ts';
import { native } from '../../memory/native.ts';
import { GuestControl } from '../control.ts';
import type { Acquired, Departure, GuestRecord, GuestStats, Moment, VerifyResult, Vmm, VmmStatus } from '../driver.ts';
import { endProcess, isAlive, watchProcess, type ProcessWatch } from '../process.ts';
import type { WriteTracking } from '../tracking.ts';

/** A guest that is asked to check itself may have to fetch pages for it. */
const VERIFY_TIMEOUT_MS = 600_000;
/** Loading a state touches memory that may come from another host. */
const LOAD_TIMEOUT_MS = 60_000;

/** {@link Vmm} of an embedded guest. `record.local` holds `control`, and `handover` where that was used. */
export class EmbeddedVmm implements Vmm {
  readonly record: GuestRecord;
  readonly control: GuestControl;
  readonly exited: Promise<void>;
  readonly #watch: ProcessWatch;
  /** Came with the hand-over; its userfaultfd is given away by the first `acquire`. */
  #handover: Handover | undefined;
  #uffdGiven = false;

  constructor(record: GuestRecord, handover?: Handover) {
    const path = record.local.control;
    if (path === undefined) throw new PagetideError('PT_INTERNAL', 'the record of an embedded guest lacks its socket');
    this.record = record;
    this.control = new GuestControl(path);
    this.#handover = handover;
    this.#watch = watchProcess(record);
    this.exited = this.#watch.exited;
  }

  async status(): Promise<VmmStatus> {
    if (!isAlive(this.record)) return 'gone';
    try {
      return (await this.control.status()).state;
    } catch (error) {
      if (!isAlive(this.record)) return 'gone';
      throw error;
    }
  }

  readonly constantDevices = true;

  /** It has no devices: its own threads are all that writes. */
  tracking(): Promise<WriteTracking> {
    return Promise.resolve('exact');
  }

  pause(): Promise<Moment> {
    return this.control.pause();
  }

  resume(): Promise<Moment> {
    return this.control.resume();
  }

  depart(sink: Writable): Departure {
    sink.on('error', () => undefined); // told by what is returned
    const stopped = this.pause();
    const saved = stopped
      .then(async () => {
        await this.control.save(sink);
      })
      .catch((error: unknown) => {
        sink.destroy(asPagetideError(error));
        throw error;
      });
    saved.catch(() => undefined);
    return { stopped, saved };
  }

  async loadState(source: Readable): Promise<void> {
    await this.control.load(source, { timeoutMs: LOAD_TIMEOUT_MS });
  }

  async acquire(): Promise<Acquired> {
    const status = await this.control.status();
    if (status.uffd === null) {
      throw new PagetideError('PT_GUEST_STATE', 'the guest was not started as incoming: it has no userfaultfd', {
        hint: 'Start it with --incoming.',
      });
    }
    const { uffd: remoteFd, regions, pageSize } = status;
    const given = { remoteFd, origin: 'handed-over', regions, pageSize, shared: !status.private } as const;
    const handover = this.#handover;
    if (handover !== undefined && !this.#uffdGiven) {
      this.#uffdGiven = true;
      return { ...given, uffd: handover.uffd };
    }
    // Taken again, e.g. by an agent that was restarted: the guest keeps its copy open for this.
    return { ...given, uffd: native().takeFd(this.record.pid, remoteFd) };
  }

  async verify(): Promise<VerifyResult> {
    const { verified, checked, bad, detail } = await this.control.verify({ timeoutMs: VERIFY_TIMEOUT_MS });
    return { ok: verified, checked, bad, ...(detail === '' ? {} : { detail }) };
  }

  stats(): Promise<GuestStats> {
    return this.control.stats();
  }

  resetStats(): Promise<void> {
    return this.control.resetStats();
  }

  async destroy({ force = false } = {}): Promise<void> {
    if (!this.record.launched && !force) {
      throw new PagetideError('PT_GUEST_STATE', 'the guest was attached, not launched: it is not ended', {
        hint: 'End it where it was started.',
      });
    }
    await endProcess(this.record);
    this.close();
    await removeTraces(this.record);
  }

  close(): void {
    this.control.close();
    this.#watch.close();
    const handover = this.#handover;
    this.#handover = undefined;
    if (handover === undefined) return;
    if (this.#uffdGiven) native().close(handover.connection);
    else closeHandover(handover);
  }
}

/** Removes what a guest that is dead has left in the file system. */
export async function removeTraces(record: Pick<GuestRecord, 'files' | 'local'>): Promise<void> {
  const paths = [...record.files.map((file) => file.path), record.local.control, record.local.handover];
  for (const path of paths) {
    if (path !== undefined) await rm(path, { force: true });
  }
}
