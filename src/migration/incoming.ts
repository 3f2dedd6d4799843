/**
 * A migration at its destination: drives the destination's ownership machine (ownership/destination.ts) and does its
 * work: starts the VMM, acquires its memory, copies in rounds where they come (incoming-copying.ts), loads the device state once every page
 * is there or faults are served, runs the guest, fills, lets go of the memory when every page is there, and lets the guest check itself.
 */
import { asPagetideError, errorFromJson, PagetideError, type ErrorJson } from '../errors.ts';
import type { Vmm } from '../guests/driver.ts';
import { Readable } from 'node:stream';
import type { PeerPagesSpec } from '../memory/worker-messages.ts';
import type { PeerClient } from '../transport/peer.ts';
import { partWith, type Arrival } from './arrival.ts';
import type { Copying } from './incoming-copying.ts';
import type { MigrationHost } from './host.ts';
import type { IncomingDetails } from './incoming-details.ts';
import { askGuest, bytesOf, classesOf, copiedClasses, figuresOf, verified } from './incoming-figures.ts';
import { reopenArrival, startArrival } from './incoming-start.ts';
import { infoOf, statusOf, type Seen } from './incoming-status.ts';
import { IncomingWatch } from './incoming-watch.ts';
import {
  answerState,
  destinationEnded,
  newDestination,
  stepDestination,
  type DestinationAction,
  type DestinationEvent,
  type DestinationRecord,
  type DestinationState,
  type DestinationStep,
} from './ownership/index.ts';
import { MachineRunner } from './runner.ts';
import type { StateChannel } from './state-channel.ts';
import { within } from './within.ts';
import type {
  CompletionFigures,
  CopiedRound,
  Finding,
  IncomingStatus,
  MigrationInfo,
  PrepareRequest,
  Rest,
} from './types.ts';

/** Where the guest needs its pages served. */
const SERVED: ReadonlySet<DestinationState['at']> = new Set(['reattaching', 'resuming', 'serving', 'unregistering']);
const LIVENESS_MS = 500;
/** Pause before a failed worker of a running guest is replaced once more, milliseconds. */
const REATTACH_MS = 1_000;

export type { IncomingDetails } from './incoming-details.ts';

export class IncomingMigration extends MachineRunner<DestinationState, DestinationEvent, DestinationAction> {
  details: IncomingDetails;
  protected readonly retryEvent: DestinationEvent = { type: 'retry' };
  readonly #host: MigrationHost;
  #vmm: Vmm | undefined;
  #arrival: Arrival | undefined;
  #copying: Copying | undefined;
  #state: StateChannel | undefined;
  #peer: PeerClient | undefined;
  #wants: number[] | undefined;
  #waiters: ((status: IncomingStatus) => void)[] = [];
  #figures: CompletionFigures | undefined;
  readonly #watched: IncomingWatch;
  /** The VMM is taking the device state just now. */
  #isLoading = false;
  #watch: NodeJS.Timeout | undefined;
  #again: NodeJS.Timeout | undefined;

  constructor(host: MigrationHost, state: DestinationState, details: IncomingDetails) {
    super(state);
    this.#host = host;
    this.details = details;
    this.#watched = new IncomingWatch({
      host,
      migration: state.migration,
      guest: () => this.state.guest,
      ask: (frames) => this.#askAgain(frames),
      isMissing: (frame) => this.#arrival?.lacks(frame) ?? true,
      pause: () => void this.#vmm?.pause().catch(() => undefined),
      onChange: () => this.changed(),
    });
  }

  /** For a key that this host has never heard of: it will refuse it, or prepare. */
  static fresh(host: MigrationHost, migration: string, epoch: number, source?: string): IncomingMigration {
    const details = { startedAt: Date.now(), ...(source === undefined ? {} : { source }) };
    return new IncomingMigration(host, newDestination({ migration, epoch }), details);
  }

  /**
   * Another host of the cluster that says "take over" would have the guest run in two places.
   * @param sender as {@link IncomingDetails.source}
   * @throws PagetideError `PT_UNAUTHORIZED`
   */
  checkSource(sender: string | undefined): void {
    const { source } = this.details;
    if (source === undefined || sender === undefined || sender === source) return;
    throw new PagetideError('PT_UNAUTHORIZED', `${sender} is not the host that this guest comes from`);
  }

  get ended(): boolean {
    return destinationEnded(this.state);
  }

  /** Whether the guest belongs to this host, or may come to. */
  get holdsGuest(): boolean {
    return !this.ended;
  }

  /** What comes of what is lacking at `load`. */
  rest: Rest = 'serve';

  /**
   * Copies what is lacking of the manifest of this round; undefined: it takes longer than an answer may.
   * @throws PagetideError `PT_PROTOCOL` when it can't be asked for now; why it failed, or why this migration is refused
   */
  async copy(round: number): Promise<CopiedRound | undefined> {
    const { at, error } = this.state;
    if (at === 'prepared' && this.#copying !== undefined) return this.#copying.round(round);
    if (error !== null) throw errorFromJson(error);
    throw new PagetideError('PT_PROTOCOL', `no round can be copied: the migration is ${answerState(at)}`);
  }

  /** Bytes of pages a second from now on, at most; 0: the host's own limit alone. With the next record it is durable. */
  limit(bandwidth: number): void {
    const { request } = this.details;
    if (request !== undefined) this.details.request = { ...request, bandwidth };
    this.#arrival?.limit(bandwidth);
  }

  /** The source asks; resolves with the machine's answer, when it has decided. */
  ask(event: DestinationEvent): Promise<IncomingStatus> {
    return new Promise((resolve) => {
      this.#waiters.push(resolve);
      this.dispatch(event);
    });
  }

  status(): IncomingStatus {
    return statusOf(this.#seen);
  }

  info(): MigrationInfo {
    return infoOf(this.#seen);
  }

  get #seen(): Seen {
    const { state, details } = this;
    return {
      ...{ state, details, watched: this.#watched, service: this.#arrival?.service },
      ...{ copying: this.#copying, wants: this.#wants, figures: this.#figures },
    };
  }

  /** Stops driving; VMM and userfaultfd live on for the next agent. */
  async detach(): Promise<void> {
    this.close();
    await this.#arrival?.release();
  }

  override close(): void {
    super.close();
    clearInterval(this.#watch);
    clearTimeout(this.#again);
    this.#watched.close();
    this.#state?.close();
    void this.#peer?.close();
  }

  override shed(): void {
    clearInterval(this.#watch);
    this.#watched.close();
    this.#state?.close();
    this.#state = undefined;
    this.#copying = undefined;
    void this.#peer?.close();
    this.#peer = undefined;
    this.#vmm = undefined;
  }

  protected step(state: DestinationState, event: DestinationEvent): DestinationStep {
    return stepDestination(state, event);
  }

  protected perform(action: DestinationAction): void {
    switch (action.do) {
      case 'journal':
        this.#journal(action.record);
        return;
      case 'send':
        void this.#sendComplete();
        return;
      case 'answer': {
        const { error } = action;
        const status: IncomingStatus = { ...this.status(), state: action.state };
        if (error !== undefined) status.error = error;
        for (const resolve of this.#waiters.splice(0)) resolve(status);
        return;
      }
      case 'start-vmm':
        this.onVmm(
          () => this.#start(),
          (error) => ({ type: 'start-failed', error: asPagetideError(error).toJSON() }),
        );
        return;
      case 'load':
        this.onVmm(
          () => this.#load(),
          (error) => ({ type: 'load-failed', error: asPagetideError(error).toJSON() }),
        );
        return;
      case 'resume':
        this.onVmm(
          () => this.#resume(),
          (error) => ({ type: 'resume-failed', error: asPagetideError(error).toJSON() }),
        );
        return;
      case 'serve':
        this.onVmm(
          () => this.#serveAgain(),
          (error) => ({ type: 'serve-failed', error: asPagetideError(error).toJSON() }),
        );
        return;
      case 'unregister':
        this.onVmm(
          () => this.#unregister(),
          (error) => ({ type: 'unregister-failed', error: asPagetideError(error).toJSON() }),
        );
        return;
      case 'kill-vmm':
        // What it waits for (the source, a VMM that stands still for a page) would hold its own end up.
        this.#state?.close();
        if (!action.unlessRunning) {
          this.#arrival?.release().catch(() => undefined);
          this.#vmm?.destroy({ force: true }).catch(() => undefined); // told when it is this one's turn
        }
        this.onVmm(
          () => this.#kill(action.unlessRunning),
          (error) => ({ type: 'kill-failed', error: asPagetideError(error).toJSON() }),
        );
        return;
      case 'report': {
        const { migration, guest } = this.state;
        this.#host.log.info({ migration, guest, error: action.error }, `migration: ${action.what}`);
        if (action.what === 'guest-lost') this.#bury();
      }
    }
  }

  /** The VMM died while the guest was ours: nothing is served any more. What the guest list holds is the operator's. */
  #bury(): void {
    this.onVmm(
      async () => {
        await this.#arrival?.abandon();
        this.#arrival = undefined;
        if (this.state.guest !== null) await this.#host.killStrays(this.state.guest);
        return undefined;
      },
      () => undefined,
    );
  }

  #journal(record: DestinationRecord): void {
    const began = performance.now();
    this.#host.journal(record, { ...this.details }).then(
      () => {
        // the guest runs once this is durable
        if (record.state === 'owner') this.details.journalMs = performance.now() - began;
        this.dispatch({ type: 'journaled', record: record.state });
      },
      (error: unknown) => {
        this.dispatch({ type: 'journal-failed', record: record.state, error: asPagetideError(error).toJSON() });
        this.retrySoon();
      },
    );
  }

  /** Keeps `details` with a record that is durable already. */
  #keep(state: DestinationRecord['state'], details: IncomingDetails = this.details): Promise<void> {
    const { migration, epoch, guest, peer } = this.state;
    return this.#host.journal({ side: 'destination', state, migration, epoch, guest, peer }, { ...details });
  }

  #request(): PrepareRequest {
    if (this.details.request === undefined)
      throw new PagetideError('PT_INTERNAL', 'no request of this migration is known');
    return this.details.request;
  }

  #pages(patient: boolean): PeerPagesSpec {
    const { source, description, migration } = this.#request();
    const { pageSize, size } = description.memory;
    return {
      kind: 'peer',
      url: source.url,
      migration,
      token: source.token,
      pageSize,
      frames: size / pageSize,
      patient,
      peers: this.#host.shared.peers(this.#request()),
    };
  }

  #need(): { vmm: Vmm; arrival: Arrival } {
    if (this.#arrival === undefined) throw new PagetideError('PT_INTERNAL', 'nothing has arrived yet');
    return { vmm: this.#needVmm(), arrival: this.#arrival };
  }

  #needVmm(): Vmm {
    if (this.#vmm === undefined) throw new PagetideError('PT_INTERNAL', 'there is no VMM yet');
    return this.#vmm;
  }

  async #start(): Promise<DestinationEvent> {
    const { wants, channel, copying } = await startArrival(this.#host, this.#request(), this.#pages(false), {
      vmm: (vmm) => {
        this.#vmm = vmm;
        this.details.vmm = vmm.record;
        void vmm.exited.then(() => this.#died());
        this.#unlessRefusing();
      },
      acquired: async (acquired) => {
        if (acquired !== undefined) this.details.acquired = acquired;
        await this.#keep('incoming');
        this.#unlessRefusing();
      },
      arrival: (arrival) => {
        this.#arrival = arrival;
        this.#listen(arrival);
      },
      channel: (opened) => (this.#state = opened),
    });
    this.#copying = copying;
    this.#watchSource(channel);
    this.#wants = wants;
    return { type: 'vmm-started' };
  }

  /** A VMM that refuses the device state exits: then the reason, which it gives in its log, is told first. */
  async #died(): Promise<void> {
    if (this.#isLoading) await this.vmmSettled();
    this.dispatch({ type: 'vmm-died' });
  }

  /** Ends a start half-way that is not wanted any more; asked after everything that takes time. */
  #unlessRefusing(): void {
    if (this.state.at !== 'starting') throw new PagetideError('PT_CANCELLED', 'the migration was given up meanwhile');
  }

  /** Lets go of a source that stays silent; only before the guest is ours. */
  #watchSource(state: StateChannel): void {
    this.#watch = setInterval(() => {
      if (state.silentMs > this.#host.settings.silenceMs) this.dispatch({ type: 'timeout' });
    }, LIVENESS_MS);
    this.#watch.unref();
  }

  async #load(): Promise<DestinationEvent> {
    const { vmm, arrival } = this.#need();
    const { rest } = this;
    const channel = this.#state!;
    const { loadMs } = this.#host.settings;
    const copying = this.#copying;
    if (rest === 'copy' && copying === undefined)
      throw new PagetideError('PT_PROTOCOL', 'no rounds were agreed on: the rest cannot be copied');
    if (rest === 'serve' && !this.#request().serves)
      throw new PagetideError('PT_PROTOCOL', 'it was agreed on that the guest is copied whole');
    await copying?.end();
    await within(channel.settled, loadMs, "the source did not send the guest's manifest");
    // All of this while the source still saves the device state.
    copying?.settle();
    // Each end was compared with what was told; pages are compared with what was taken over of that.
    if (!arrival.isAsTold) throw new PagetideError('PT_INTERNAL', 'the manifest is not the one that was told');
    this.details.digest = channel.digest;
    if (rest === 'copy') {
      await within(copying!.rest(), loadMs, 'the source did not send the rest of the pages');
      arrival.completeCopy();
    } else {
      arrival.serve();
    }
    const state = await within(channel.whole, loadMs, "the source did not send the guest's state");
    this.details.switchBytes = { manifest: state.manifestBytes, state: state.device.length, wire: channel.bytes };
    // The source need not wait for the VMM to say that this host may have the guest: see docs/ownership.md.
    this.dispatch({ type: 'arrived' });
    this.#isLoading = true;
    try {
      const loading = vmm.loadState(Readable.from([state.device]));
      loading.catch(() => undefined);
      // once it is on its way, and while the VMM is busy with it: nobody waits for figures
      await new Promise(setImmediate);
      this.#countCopied(arrival, rest);
      await loading;
    } finally {
      this.#isLoading = false;
    }
    return { type: 'loaded' };
  }

  #countCopied(arrival: Arrival, rest: Rest): void {
    if (arrival.copy === undefined) return;
    const frames = arrival.classes();
    if (rest === 'serve') {
      this.details.copied = frames;
      this.details.copiedBytes = bytesOf(arrival);
      return;
    }
    this.details.whole = figuresOf(arrival, copiedClasses(arrival.copy.frames, frames), this.details.switchBytes);
    // its workers have nothing to do any more; figures stay
    void arrival.service.stop();
    this.dispatch({ type: 'filled' });
  }

  async #resume(): Promise<DestinationEvent> {
    const vmm = this.#needVmm();
    this.#watched.throwAlarm();
    const { unixMicros } = await vmm.resume();
    this.details.resumedAt ??= unixMicros;
    clearInterval(this.#watch);
    this.#state?.close();
    if (this.details.whole === undefined) this.#arrival?.service.fill();
    this.#arrival?.hold(this.#host);
    // for the report after a restart; nothing waits for it
    this.#keep('owner').catch(() => undefined);
    await this.#host.adopt(this.#request().guest, vmm);
    return { type: 'resumed' };
  }

  async #serveAgain(): Promise<DestinationEvent> {
    const { vmm: record, acquired } = this.details;
    const { guest } = this.#request();
    if (record === undefined) throw new PagetideError('PT_INTERNAL', 'the journal lacks the VMM');
    if (this.#vmm === undefined) {
      this.#vmm = await this.#host.findVmm(guest, record);
      void this.#vmm?.exited.then(() => this.#died());
    }
    if (this.#vmm === undefined) return { type: 'vmm-died' };
    const vmm = this.#vmm;
    if (this.details.whole !== undefined) {
      // first: the guest may wait for a page of zeros
      partWith(vmm, acquired, this.#host.place(guest), this.state.migration);
      this.dispatch({ type: 'filled' });
      return { type: 'served' };
    }
    this.#arrival = reopenArrival(this.#host, this.#request(), this.#pages(true), this.details, vmm);
    this.#listen(this.#arrival);
    // The connection may take its time; faults are read and wait until then.
    this.#arrival.serveAgain();
    this.#arrival.hold(this.#host);
    if (this.#arrival.service.counts().foreign > 0)
      this.#watched.raise(new PagetideError('PT_FOREIGN_PAGE', 'a page is there that Pagetide did not install'));
    return { type: 'served' };
  }

  async #unregister(): Promise<DestinationEvent> {
    this.#watched.throwAlarm();
    const vmm = this.#needVmm();
    const figures = this.details.whole ?? (await this.#noteWhole(vmm));
    const arrival = this.#arrival;
    if (arrival !== undefined) {
      await arrival.finish();
      this.#arrival = undefined;
      figures.bytes.wire = this.#wire(arrival);
    }
    if (figures.resumedAt === 0) {
      // of a guest that was copied whole: it had not run yet
      await askGuest(figures, vmm);
      figures.resumedAt = this.details.resumedAt ?? 0;
    }
    const { journalMs } = this.details;
    if (journalMs !== undefined) figures.journalMs = journalMs;
    partWith(vmm, this.details.acquired, this.#host.place(this.#request().guest), this.state.migration);
    const begun = performance.now();
    if (this.#request().verify) figures.verified = await verified(vmm, this.#host.log, this.state.guest);
    figures.verifyMs = performance.now() - begun;
    this.#host.shared.noteLoss();
    this.#figures = figures;
    return { type: 'unregistered' };
  }

  /** @throws PagetideError when the journal fails, or content is outstanding after all */
  async #noteWhole(vmm: Vmm): Promise<CompletionFigures> {
    const { arrival } = this.#need();
    const { outstanding } = arrival.service.counts();
    if (outstanding > 0) throw new PagetideError('PT_INTERNAL', `${outstanding} frames still lack their content`);
    this.#watched.clear();
    const { copied, copiedBytes, switchBytes } = this.details;
    const classes = classesOf(arrival.service.figures(), arrival, copied);
    // taken up after rounds: nothing of them was this service's
    const whole = figuresOf(arrival, classes, switchBytes, arrival.copy === undefined ? copiedBytes : undefined);
    // as the guest is now: later its memory needs nobody any more, and slow touches are none of ours
    await askGuest(whole, vmm);
    whole.resumedAt = this.details.resumedAt ?? 0;
    await this.#keep('owner', { ...this.details, whole });
    this.details.whole = whole;
    return whole;
  }

  #wire(arrival: Arrival): number {
    const { copiedBytes, switchBytes } = this.details;
    // as in noteWhole: rounds before a restart were another service's
    const earlier = arrival.copy === undefined ? (copiedBytes?.wire ?? 0) : 0;
    return arrival.service.wireBytes() + earlier + (switchBytes?.wire ?? 0);
  }

  async #kill(unlessRunning: boolean): Promise<DestinationEvent> {
    clearInterval(this.#watch);
    const guest = this.state.guest ?? this.details.request?.guest;
    if (unlessRunning && this.#vmm !== undefined && (await this.#vmm.status()) === 'running')
      return { type: 'vmm-running' };
    const arrival = this.#arrival;
    if (arrival !== undefined) {
      await arrival.abandon();
      this.#arrival = undefined;
    }
    if (this.#vmm === undefined && guest !== undefined && this.details.vmm !== undefined) {
      this.#vmm = await this.#host.findVmm(guest, this.details.vmm);
    }
    await this.#vmm?.destroy({ force: true });
    this.#vmm = undefined;
    // Only what this migration may have started: a guest of that name that lives here is none of its business.
    if (guest !== undefined && !unlessRunning) await this.#host.killStrays(guest);
    return { type: 'vmm-dead' };
  }

  async #sendComplete(): Promise<void> {
    const { migration, epoch, peer } = this.state;
    const figures = this.#figures;
    if (peer === null || figures === undefined || this.closed) return;
    this.#peer ??= this.#host.connectPeer(peer);
    try {
      await this.#peer.complete(migration, epoch, figures);
      this.dispatch({ type: 'acknowledged', migration, epoch });
    } catch (error) {
      this.#host.log.warn({ migration, error: asPagetideError(error).message }, 'the source has not acknowledged yet');
      this.retrySoon();
    }
  }

  #listen(arrival: Arrival): void {
    const { service } = arrival;
    this.#watched.follow(service);
    service.on('filled', () => this.dispatch({ type: 'filled' }));
    service.on('failed', (error) => {
      this.#host.log.error({ guest: this.state.guest, code: error.code }, error.message);
      if (error.code === 'PT_FOREIGN_PAGE') this.#watched.raise(error);
      else this.#serveAnew(arrival);
    });
  }

  async #askAgain(frames: number[]): Promise<Finding[]> {
    const { migration, epoch, peer } = this.state;
    if (peer === null) throw new PagetideError('PT_INTERNAL', 'the source is not known');
    this.#peer ??= this.#host.connectPeer(peer);
    return this.#peer.recheck(migration, epoch, frames);
  }

  /** Frames for which there was an alarm so far: their page was altered at the source. */
  get damagedFrames(): number {
    return this.#watched.damagedFrames;
  }

  /** A worker failed while the guest needs it: the same way as after a restart. */
  #serveAnew(arrival: Arrival): void {
    this.onVmm(
      async () => {
        if (this.#arrival !== arrival) return undefined;
        await arrival.release();
        this.#arrival = undefined;
        if (this.details.whole !== undefined || !SERVED.has(this.state.at)) return undefined;
        return this.#reattach();
      },
      () => undefined,
    );
  }

  /** Until it works: the guest stands still at its next missing page as long as it does not. */
  async #reattach(): Promise<DestinationEvent | undefined> {
    try {
      const event = await this.#serveAgain();
      if (event.type !== 'served') return event;
      this.#need().arrival.service.fill();
    } catch (error) {
      this.#host.log.error({ guest: this.state.guest }, `cannot serve the guest: ${asPagetideError(error).message}`);
      this.#again = setTimeout(() => {
        this.onVmm(
          () => this.#reattach(),
          () => undefined,
        );
      }, REATTACH_MS);
    }
    return undefined;
  }

  /** Pages that came, and were not those of their tags, since this agent has the guest. */
  get mismatches(): { source: number; peer: number } {
    return this.#watched.mismatches;
  }

  get alarmed(): ErrorJson | undefined {
    return this.#watched.alarm;
  }
}
