/** The migrations of this agent, both directions: one machine a key, made, found by key, and taken up after a restart. */
import type { Logger } from 'pino';
import { PagetideError } from '../errors.ts';
import { IncomingMigration, type IncomingDetails } from '../migration/incoming.ts';
import type { MigrationHost } from '../migration/host.ts';
import type { Plan } from '../migration/modes.ts';
import type { OutgoingDetails } from '../migration/outgoing-details.ts';
import { OutgoingMigration } from '../migration/outgoing.ts';
import {
  admission,
  answerState,
  highestEpoch,
  isOver,
  machineName,
  recoverDestination,
  recoverSource,
  type OwnershipRecord,
} from '../migration/ownership/index.ts';
import {
  PEER_PROTOCOL,
  type CompletionFigures,
  type Finding,
  type IncomingStatus,
  type PrepareRequest,
  type Rest,
} from '../migration/types.ts';
import type { Guests } from './guests.ts';
import type { Journal } from './journal.ts';
import type { MigrateRequest } from './service.ts';

type Machine = OutgoingMigration | IncomingMigration;

/** How long a new try waits for the end of the last one, and how often it looks, milliseconds. */
const OUTLIVE_MS = 10_000;
const OUTLIVE_LOOK_MS = 100;

/** Resolves at the machine's next change, or after `ms`. */
function changeOf(machine: IncomingMigration, ms: number): Promise<void> {
  return new Promise((resolve) => {
    const done = (): void => {
      clearTimeout(timer);
      stop();
      resolve();
    };
    const timer = setTimeout(done, ms);
    const stop = machine.onChange(done);
  });
}

/** Ended migrations that can still be looked at. */
const KEPT = 100;

export class Migrations {
  readonly #host: MigrationHost;
  readonly #guests: Guests;
  readonly #journal: Journal;
  readonly #log: Logger;
  readonly #machines = new Map<string, Machine>();
  #onChange: (() => void) | undefined;

  constructor(host: MigrationHost, guests: Guests, journal: Journal, log: Logger) {
    this.#host = host;
    this.#guests = guests;
    this.#journal = journal;
    this.#log = log;
  }

  /** Called when any migration of this agent has changed. */
  onChange(callback: () => void): void {
    this.#onChange = callback;
  }

  /** Takes up what the journal leaves to be done. */
  async recover(): Promise<void> {
    const last = new Map<string, { record: OwnershipRecord; details: Record<string, unknown> }>();
    for (const entry of this.#journal.records()) {
      if (entry.kind !== 'migration') continue;
      const name = machineName(entry.record.side, entry.record);
      last.set(name, { record: entry.record, details: entry.details ?? last.get(name)?.details ?? {} });
    }
    for (const { record, details } of last.values()) {
      if (record.side === 'destination') {
        const step = recoverDestination(record);
        const machine = new IncomingMigration(this.#host, step.state, details as unknown as IncomingDetails);
        this.#add(machine);
        machine.begin(step.actions);
      } else if (!isOver(record)) {
        const guest = record.guest === null ? undefined : this.#guests.get(record.guest);
        this.#log.info({ migration: record.migration, state: record.state }, 'taking a migration up again');
        this.#add(
          OutgoingMigration.recover(
            this.#host,
            guest?.vmm,
            recoverSource(record),
            details as unknown as OutgoingDetails,
          ),
        );
      }
    }
    await Promise.resolve();
  }

  all(): Machine[] {
    return [...this.#machines.values()];
  }

  /** @throws PagetideError `PT_MIGRATION_UNKNOWN` */
  need(id: string): Machine {
    const found = this.all().findLast((machine) => machine.state.migration === id);
    if (found === undefined) throw new PagetideError('PT_MIGRATION_UNKNOWN', `there is no migration ${id}`);
    return found;
  }

  /** The migration that a guest is in. */
  of(guest: string): Machine | undefined {
    return this.all().findLast((machine) => machine.state.guest === guest && machine.holdsGuest);
  }

  start({ guest, to, verify }: MigrateRequest, plan: Plan): OutgoingMigration {
    const { vmm } = this.#guests.need(guest);
    // Epochs grow over all hosts that a guest of this name was ever on: the clock carries that over hosts that never met.
    const epoch = Math.max(Date.now(), highestEpoch(this.#records(), guest) + 1);
    const machine = OutgoingMigration.start(this.#host, vmm, { guest, peer: to, epoch, plan, verify });
    this.#add(machine);
    return machine;
  }

  // --- what the other agents ask

  /**
   * @param sender the name in the certificate of who asks, undefined where it showed none: from then on nobody else is listened to
   * @throws PagetideError `PT_PROTOCOL`, `PT_UNAUTHORIZED`
   */
  async prepare(request: PrepareRequest, sender?: string): Promise<IncomingStatus> {
    const { migration, epoch, guest, source } = request;
    if (request.protocol !== PEER_PROTOCOL) {
      throw new PagetideError(
        'PT_PROTOCOL',
        `the source speaks version ${request.protocol}, this agent ${PEER_PROTOCOL}`,
      );
    }
    await this.#outlive(guest, epoch);
    let machine = this.#incoming(migration, epoch);
    machine?.checkSource(sender);
    const obstacle = machine === undefined ? this.#obstacle(request) : undefined;
    machine ??= this.#fresh(migration, epoch, sender);
    if (obstacle === undefined) machine.details.request ??= request;
    return machine.ask({
      type: 'prepare',
      migration,
      epoch,
      guest,
      peer: source.url,
      ...(obstacle === undefined ? {} : { obstacle: obstacle.toJSON() }),
    });
  }

  /** @throws PagetideError `PT_UNAUTHORIZED` where another host has prepared it */
  load(migration: string, epoch: number, rest: Rest, sender?: string): Promise<IncomingStatus> {
    const machine = this.#incoming(migration, epoch);
    machine?.checkSource(sender);
    if (machine !== undefined) machine.rest = rest;
    return this.ask('load', migration, epoch, sender);
  }

  /** @throws PagetideError `PT_MIGRATION_UNKNOWN`, `PT_UNAUTHORIZED`, `PT_PROTOCOL` */
  async copy(migration: string, epoch: number, round: number, sender?: string): Promise<IncomingStatus> {
    const machine = this.#incoming(migration, epoch);
    if (machine === undefined) throw new PagetideError('PT_MIGRATION_UNKNOWN', 'that migration is not under way here');
    machine.checkSource(sender);
    const copied = await machine.copy(round);
    return { ...machine.status(), ...(copied === undefined ? {} : { copied }) };
  }

  /** @throws PagetideError `PT_MIGRATION_UNKNOWN`, `PT_UNAUTHORIZED` */
  limit(migration: string, epoch: number, bandwidth: number, sender?: string): IncomingStatus {
    const machine = this.#incoming(migration, epoch);
    if (machine === undefined) throw new PagetideError('PT_MIGRATION_UNKNOWN', 'that migration is not under way here');
    machine.checkSource(sender);
    machine.limit(bandwidth);
    return machine.status();
  }

  /** @throws PagetideError `PT_UNAUTHORIZED` where another host has prepared it */
  ask(
    type: 'load' | 'take-over' | 'abort',
    migration: string,
    epoch: number,
    sender?: string,
  ): Promise<IncomingStatus> {
    const machine = this.#incoming(migration, epoch) ?? this.#fresh(migration, epoch, sender);
    machine.checkSource(sender);
    return machine.ask({ type, migration, epoch });
  }

  /** @throws PagetideError `PT_UNAUTHORIZED` where another host has prepared it */
  status(migration: string, sender?: string): IncomingStatus {
    const machine = this.all().findLast((m) => m instanceof IncomingMigration && m.state.migration === migration);
    if (!(machine instanceof IncomingMigration)) return { migration, epoch: 0, state: 'unknown' };
    machine.checkSource(sender);
    return machine.status();
  }

  async complete(migration: string, epoch: number, figures: CompletionFigures, sender?: string): Promise<void> {
    const machine = this.#machines.get(machineName('source', { migration, epoch }));
    if (machine instanceof OutgoingMigration) {
      await machine.complete(epoch, figures, sender);
      return;
    }
    // Over since before a restart, and forgotten since: the destination wants to hear that nobody waits for it.
    this.#log.info({ migration, epoch }, 'a migration that is not known here says that it is complete');
  }

  recheck(migration: string, epoch: number, frames: readonly number[], sender?: string): Promise<Finding[]> {
    const machine = this.#machines.get(machineName('source', { migration, epoch }));
    if (machine instanceof OutgoingMigration) return machine.recheck(epoch, frames, sender);
    return Promise.reject(new PagetideError('PT_MIGRATION_UNKNOWN', 'that migration is not under way here'));
  }

  /** Stops driving; VMMs, userfaultfds and journals stay as they are. */
  async close(): Promise<void> {
    await Promise.all(
      this.all().map(async (machine) => {
        await machine.detach();
      }),
    );
  }

  #incoming(migration: string, epoch: number): IncomingMigration | undefined {
    const machine = this.#machines.get(machineName('destination', { migration, epoch }));
    return machine instanceof IncomingMigration ? machine : undefined;
  }

  /**
   * A source that rolled back may come again at once, while its last try is still being refused here (its VMM dies, the
   * refusal is written down): that is no reason to turn it away. An older try that never got further is given up.
   */
  async #outlive(guest: string, epoch: number): Promise<void> {
    const patience = performance.now() + OUTLIVE_MS;
    const older = (): IncomingMigration | undefined =>
      this.all().find(
        (machine): machine is IncomingMigration =>
          machine instanceof IncomingMigration &&
          machine.state.guest === guest &&
          machine.state.epoch < epoch &&
          !machine.ended &&
          answerState(machine.state.at) !== 'owner',
      );
    for (let last = older(); last !== undefined && performance.now() < patience; last = older()) {
      last.dispatch({ type: 'timeout' });
      await changeOf(last, OUTLIVE_LOOK_MS);
    }
  }

  #fresh(migration: string, epoch: number, sender: string | undefined): IncomingMigration {
    const machine = IncomingMigration.fresh(this.#host, migration, epoch, sender);
    this.#add(machine);
    return machine;
  }

  #obstacle(request: PrepareRequest): PagetideError | undefined {
    const { guest, epoch, description, domain } = request;
    const local = this.#guests.get(guest);
    const refused = admission({
      guest,
      epoch,
      highest: highestEpoch(this.#records(), guest),
      present: local === undefined ? this.#guests.has(guest) : !local.awaiting,
      busy: this.of(guest) !== undefined,
    });
    if (refused !== undefined) return new PagetideError(refused.code, refused.message, { hint: refused.hint });
    try {
      this.#guests.validate(guest, description);
      const own = local?.vmm.record.domain;
      if (own !== undefined && own !== domain?.name)
        return new PagetideError('PT_VMM_REFUSED_STATE', `the VMM attached for '${guest}' is of the domain '${own}'`, {
          hint: 'Attach it with the domain of the guest that is to come.',
        });
      return undefined;
    } catch (error) {
      if (error instanceof PagetideError) return error;
      throw error;
    }
  }

  #records(): OwnershipRecord[] {
    return this.#journal.records().flatMap((entry) => (entry.kind === 'migration' ? [entry.record] : []));
  }

  #add(machine: Machine): void {
    const side = machine instanceof OutgoingMigration ? 'source' : 'destination';
    this.#machines.set(machineName(side, machine.state), machine);
    machine.onChange(() => {
      if (machine.ended) machine.shed();
      this.#onChange?.();
    });
    const over = [...this.#machines].filter(([, other]) => other.ended && other !== machine);
    for (const [name, other] of over.slice(0, Math.max(0, over.length - KEPT))) {
      other.close();
      this.#machines.delete(name);
    }
  }
}
