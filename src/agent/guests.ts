/** The guests of this host: made, attached, found again after a restart, adopted when they arrive, dropped when they left. */
import { mkdir, rm } from 'node:fs/promises';
import type { Logger } from 'pino';
import { asPagetideError, PagetideError, type ErrorJson } from '../errors.ts';
import type {
  Driver,
  GuestDescription,
  GuestPlace,
  GuestRecord,
  PrepareNeeds,
  Vmm,
  VmmStatus,
} from '../guests/driver.ts';
import { embeddedDriver } from '../guests/embedded/driver.ts';
import { isAlive } from '../guests/process.ts';
import { assertCompatible, qemuDriver } from '../guests/qemu/driver.ts';
import { closeStaleTrackers } from '../memory/stale-trackers.ts';
import { lastRecords, type OwnershipRecord } from '../migration/ownership/index.ts';
import { guestSocketFolder, type AgentConfig } from './config.ts';
import type { Journal } from './journal.ts';
import type { GuestRequest } from './service.ts';
import { endStrays } from './strays.ts';

const DRIVERS: Record<GuestDescription['driver'], Driver> = { embedded: embeddedDriver, qemu: qemuDriver };

/** A guest whose VMM this agent knows. */
export interface Guest {
  readonly name: string;
  readonly vmm: Vmm;
  /** It was attached while it waited for a guest to come. */
  readonly awaiting: boolean;
  /** Why it is not well. */
  error?: ErrorJson;
}

export class Guests {
  readonly #config: AgentConfig;
  readonly #journal: Journal;
  readonly #log: Logger;
  readonly #guests = new Map<string, Guest>();
  /** Names that are being made right now. */
  readonly #making = new Set<string>();
  #onChange: (() => void) | undefined;

  constructor(config: AgentConfig, journal: Journal, log: Logger) {
    this.#config = config;
    this.#journal = journal;
    this.#log = log;
  }

  /** Called when the guests that are here, or what is known of one, have changed. */
  onChange(callback: () => void): void {
    this.#onChange = callback;
  }

  /**
   * Finds the guests of the journal again. One whose VMM is gone is reported and forgotten, one that was being started is
   * ended. None is waited for: a guest may stand still until this agent serves its memory.
   */
  async recover(): Promise<void> {
    const last = new Map<string, GuestRecord | undefined>();
    const steps: OwnershipRecord[] = [];
    for (const record of this.#journal.records()) {
      if (record.kind === 'guest') last.set(record.name, record.guest);
      else if (record.kind === 'guest-starting') last.set(record.name, undefined);
      else if (record.kind === 'guest-gone') last.delete(record.name);
      else steps.push(record.record);
    }
    // A destination may still need the memory of a guest whose VMM is gone.
    const leaving = new Set(
      lastRecords(steps).flatMap(({ state, guest }) => (state === 'handing-over' || state === 'gone' ? [guest] : [])),
    );
    await Promise.all(
      [...last].map(async ([name, record]) => {
        const vmm = record === undefined ? undefined : await this.find(name, record);
        if (vmm !== undefined) {
          this.#closeTrackers(name, vmm);
          const awaiting = !vmm.record.launched && (await statusOf(vmm)) === 'incoming';
          this.#keep({ name, vmm, awaiting });
          return;
        }
        if (record === undefined) this.#log.warn({ guest: name }, 'the agent died while it started this guest');
        else this.#log.error({ guest: name, pid: record.pid }, 'the VMM ended while the agent was away');
        if (!leaving.has(name)) await this.endStrays(name);
        await this.#journal.append({ kind: 'guest-gone', name });
      }),
    );
  }

  place(name: string): GuestPlace {
    return { name, folder: guestSocketFolder(this.#config, name), memoryFolder: this.#config.memoryFolder };
  }

  all(): Guest[] {
    return [...this.#guests.values()].sort((a, b) => a.name.localeCompare(b.name));
  }

  get(name: string): Guest | undefined {
    return this.#guests.get(name);
  }

  /** @throws PagetideError `PT_GUEST_UNKNOWN` */
  need(name: string): Guest {
    const guest = this.#guests.get(name);
    if (guest === undefined) throw new PagetideError('PT_GUEST_UNKNOWN', `there is no guest '${name}'`);
    return guest;
  }

  run(request: GuestRequest): Promise<Guest> {
    return this.#make(request, async (driver, place) => {
      // What is launched from here on is found and ended after a crash.
      await this.#journal.append({ kind: 'guest-starting', name: request.name });
      try {
        return await driver.run(place, request.options);
      } catch (error) {
        await this.#journal.append({ kind: 'guest-gone', name: request.name });
        throw error;
      }
    });
  }

  attach(request: GuestRequest): Promise<Guest> {
    return this.#make(request, (driver, place) => driver.attach(place, request.options));
  }

  /** Starts a VMM that waits for the guest, or gives the one that was attached as incoming under its name. */
  async prepare(name: string, description: GuestDescription, needs: PrepareNeeds): Promise<Vmm> {
    const attached = this.#guests.get(name);
    if (attached !== undefined) {
      if (!attached.awaiting) throw exists(name);
      this.#forget(name);
      return attached.vmm;
    }
    const place = this.place(name);
    await makeFolder(place.folder);
    return DRIVERS[description.driver].prepare(place, description, needs);
  }

  /**
   * Whether a guest of this description can come here: into the VMM that was attached as incoming under its name, or
   * into one that its driver starts.
   * @throws PagetideError `PT_VMM_REFUSED_STATE` when the attached one is another machine, or the driver's own reasons
   */
  validate(name: string, description: GuestDescription): void {
    const attached = this.#guests.get(name);
    if (attached?.awaiting !== true) {
      DRIVERS[description.driver].validate(description);
      return;
    }
    const own = attached.vmm.record.description;
    if (own.driver !== description.driver || own.memory.size !== description.memory.size) {
      const shape = (of: GuestDescription): string => `${of.driver} with ${of.memory.size} bytes`;
      throw new PagetideError(
        'PT_VMM_REFUSED_STATE',
        `the VMM attached for '${name}' is ${shape(own)}, the guest ${shape(description)}`,
      );
    }
    if (description.driver === 'qemu') assertCompatible(description, own);
  }

  find(name: string, record: GuestRecord): Promise<Vmm | undefined> {
    const known = this.#guests.get(name);
    if (known !== undefined && known.vmm.record.pid === record.pid) return Promise.resolve(known.vmm);
    return DRIVERS[record.driver].find(this.place(name), record);
  }

  /** The guest lives here from now on. */
  async adopt(name: string, vmm: Vmm): Promise<void> {
    if (this.#guests.get(name)?.vmm === vmm) return;
    // first: who is in the list is in the journal, also when this fails and is tried again
    await this.#journal.append({ kind: 'guest', name, guest: vmm.record });
    this.#keep({ name, vmm, awaiting: false });
  }

  /** The guest lives elsewhere: ends its VMM here and forgets it. */
  async release(name: string, vmm: Vmm | undefined, record: GuestRecord): Promise<void> {
    // out of the list first: this end is no surprise
    this.#forget(name);
    if (vmm !== undefined) await vmm.destroy({ force: true });
    else if (record.launched) for (const { path } of record.files) await rm(path, { force: true });
    await this.#drop(name);
  }

  async #drop(name: string): Promise<void> {
    await this.#journal.append({ kind: 'guest-gone', name });
    await rm(this.place(name).folder, { recursive: true, force: true });
  }

  /** Ends a guest that was launched, lets go of one that was attached. */
  async remove(name: string): Promise<void> {
    const guest = this.need(name);
    const { vmm } = guest;
    this.#forget(name);
    try {
      if (vmm.record.launched) await vmm.destroy();
      else vmm.close();
    } catch (error) {
      this.#guests.set(name, guest);
      this.#onChange?.();
      throw error;
    }
    await this.#drop(name);
  }

  /** Whether a guest of this name is here, or is about to be. */
  has(name: string): boolean {
    return this.#guests.has(name) || this.#making.has(name);
  }

  /** For a guest that does not live here: ends what was started in its name, recorded or not, removes what it left. */
  async endStrays(name: string): Promise<void> {
    const known = this.#guests.get(name);
    if (known !== undefined && !isAlive(known.vmm.record)) {
      this.#forget(name);
      known.vmm.close();
      await this.#journal.append({ kind: 'guest-gone', name });
    }
    const records = this.all().map(({ vmm }) => vmm.record);
    const pids = new Set(records.map(({ pid }) => pid));
    const files = new Set(records.flatMap((record) => record.files.map(({ path }) => path)));
    const place = this.place(name);
    await endStrays(place, { pids, files });
    if (!this.#guests.has(name)) await rm(place.folder, { recursive: true, force: true });
  }

  close(): void {
    for (const { vmm } of this.#guests.values()) vmm.close();
  }

  async #make(request: GuestRequest, make: (driver: Driver, place: GuestPlace) => Promise<Vmm>): Promise<Guest> {
    const { name } = request;
    if (this.#guests.has(name) || this.#making.has(name)) throw exists(name);
    this.#making.add(name);
    const place = this.place(name);
    try {
      await makeFolder(place.folder);
      const vmm = await make(DRIVERS[request.driver], place);
      if (request.domain !== undefined) vmm.record.domain = request.domain;
      const twin = this.all().find(({ vmm: { record } }) => record.pid === vmm.record.pid && isAlive(record));
      if (twin !== undefined) {
        // under two names it could be at two hosts
        vmm.close();
        throw new PagetideError('PT_GUEST_EXISTS', `process ${vmm.record.pid} is guest '${twin.name}' already`);
      }
      try {
        await this.#journal.append({ kind: 'guest', name, guest: vmm.record });
      } catch (error) {
        if (vmm.record.launched) await vmm.destroy();
        throw error;
      }
      if (!vmm.record.launched) this.#closeTrackers(name, vmm);
      const awaiting = (await statusOf(vmm)) === 'incoming';
      return this.#keep({ name, vmm, awaiting });
    } catch (error) {
      // The VMM's own log may say why: keep the folder only while it holds one that says something.
      await rm(place.folder, { recursive: true, force: true });
      throw asPagetideError(error);
    } finally {
      this.#making.delete(name);
    }
  }

  /** What an agent that died while it tracked this guest's writes has left in it. */
  #closeTrackers(guest: string, vmm: Vmm): void {
    try {
      const closed = closeStaleTrackers(vmm.record.pid);
      if (closed > 0) this.#log.info({ guest, closed }, 'closed what an earlier agent tracked the writes with');
    } catch (error) {
      // it costs no page: where writes can't be tracked every frame is tagged instead
      this.#log.warn({ guest, code: asPagetideError(error).code }, 'cannot look for trackers of an earlier agent');
    }
  }

  /** Whoever looks into the guest's process lets go of it before this returns. */
  #forget(name: string): void {
    if (this.#guests.delete(name)) this.#onChange?.();
  }

  #keep(guest: Guest): Guest {
    this.#guests.set(guest.name, guest);
    void guest.vmm.exited.then(() => {
      if (this.#guests.get(guest.name) !== guest) return;
      this.#log.warn({ guest: guest.name, pid: guest.vmm.record.pid }, 'the VMM of this guest has ended');
      guest.error = new PagetideError('PT_VMM_GONE', 'the VMM of this guest has ended').toJSON();
      this.#onChange?.();
    });
    this.#onChange?.();
    return guest;
  }
}

/** What the VMM says, `gone` also where it can't be asked. */
export async function statusOf(vmm: Vmm): Promise<VmmStatus> {
  try {
    return await vmm.status();
  } catch {
    return 'gone';
  }
}

function exists(name: string): PagetideError {
  return new PagetideError('PT_GUEST_EXISTS', `there is a guest '${name}' already`);
}

async function makeFolder(folder: string): Promise<void> {
  await mkdir(folder, { recursive: true, mode: 0o700 });
}
