/**
 * A migration at its destination: drives the destination's ownership machine (ownership/destination.ts) and does its
 * work: starts the VMM, acquires its memory, loads the device state while faults are served, runs the guest, fills, lets
 * go of the memory when every page is there, and lets the guest check itself.
 */
import { asPagetideError, errorFromJson, PagetideError, type ErrorJson } from '../errors.ts';
import type { GuestRecord, Vmm } from '../guests/driver.ts';
import { Readable } from 'node:stream';
import type { Serving } from '../memory/serving.ts';
import type { PeerPagesSpec } from '../memory/worker-messages.ts';
import type { PeerClient } from '../transport/peer.ts';
import { FrameState, native } from '../memory/native.ts';
import { Arrival, partWith, tagsOf, type AcquiredRecord } from './arrival.ts';
import { Doubts } from './doubts.ts';
import { ArrivingNames, checkOffer } from './arriving-names.ts';
import type { MigrationHost } from './host.ts';
import {
  answerState,
  describe,
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
import { StateChannel, type SwitchState } from './state-channel.ts';
import type {
  CompletionFigures,
  CopiedRound,
  Finding,
  IncomingStatus,
  MigrationInfo,
  MigrationProgress,
  PrepareRequest,
  Rest,
} from './types.ts';

/** Kept with every record of the journal: what a restarted agent needs. */
export interface IncomingDetails {
  request?: PrepareRequest;
  /** The name in the certificate of the source, where it showed one: nobody else has a say in this migration. */
  source?: string;
  vmm?: GuestRecord;
  acquired?: AcquiredRecord;
  resumedAt?: number;
  startedAt: number;
  /** Bytes that the switch took: map and device state, and the connection that carried them. */
  switchBytes?: { manifest: number; state: number; wire: number };
  /** Of the final manifest, hex: by it the tags are known again after a restart. */
  digest?: string;
  /**
   * Every page is here: from now on the memory is parted from its userfaultfd, and the page table says nothing any more.
   * Durable before that begins, with the figures that go with the table.
   */
  whole?: CompletionFigures;
}

/** Where the guest needs its pages served. */
const SERVED: ReadonlySet<DestinationState['at']> = new Set(['reattaching', 'resuming', 'serving', 'unregistering']);
const LACKING: ReadonlySet<number | undefined> = new Set([
  FrameState.Missing,
  FrameState.Wanted,
  FrameState.InFlight,
  FrameState.Installing,
]);
const LIVENESS_MS = 500;
/** Pause before a failed worker of a running guest is replaced once more, milliseconds. */
const REATTACH_MS = 1_000;

export class IncomingMigration extends MachineRunner<DestinationState, DestinationEvent, DestinationAction> {
  details: IncomingDetails;
  protected readonly retryEvent: DestinationEvent = { type: 'retry' };
  readonly #host: MigrationHost;
  #vmm: Vmm | undefined;
  #arrival: Arrival | undefined;
  /** Of all that served the guest, one after the other. */
  readonly #served: Serving[] = [];
  #state: StateChannel | undefined;
  #peer: PeerClient | undefined;
  #wants: number[] | undefined;
  #waiters: ((status: IncomingStatus) => void)[] = [];
  #figures: CompletionFigures | undefined;
  #alarm: ErrorJson | undefined;
  readonly #doubts: Doubts;
  #note: string | undefined;
  #watch: NodeJS.Timeout | undefined;
  #again: NodeJS.Timeout | undefined;

  constructor(host: MigrationHost, state: DestinationState, details: IncomingDetails) {
    super(state);
    this.#host = host;
    this.details = details;
    this.#doubts = new Doubts({
      ask: (frames) => this.#askAgain(frames),
      isMissing: (frame) => this.#arrival === undefined || LACKING.has(this.#arrival.session.table[frame]),
      onChange: () => this.changed(),
      log: host.log.child({ migration: state.migration }),
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

  /** Fetches what is lacking of the manifest of this round. @throws PagetideError `PT_PROTOCOL` when no rounds were agreed on */
  copy(round: number): Promise<CopiedRound> {
    return Promise.reject(new PagetideError('PT_PROTOCOL', `this migration has no round ${round}`));
  }

  /** The source asks; resolves with the machine's answer, when it has decided. */
  ask(event: DestinationEvent): Promise<IncomingStatus> {
    return new Promise((resolve) => {
      this.#waiters.push(resolve);
      this.dispatch(event);
    });
  }

  status(): IncomingStatus {
    const { migration, epoch, at } = this.state;
    const state = answerState(at);
    const error = this.#alarm ?? this.#doubts.error ?? this.state.error ?? undefined;
    const { resumedAt } = this.details;
    return {
      migration,
      epoch,
      state,
      progress: this.#progress(),
      ...(resumedAt === undefined ? {} : { resumedAt }),
      ...(error === undefined ? {} : { error }),
      ...(this.#wants === undefined || state !== 'prepared' ? {} : { wants: this.#wants }),
      ...(this.#figures === undefined ? {} : { figures: this.#figures }),
    };
  }

  info(): MigrationInfo {
    const error = this.#alarm ?? this.#doubts.error ?? this.state.error ?? undefined;
    return {
      id: this.state.migration,
      guest: this.state.guest ?? '',
      mode: this.details.request?.mode ?? 'post-copy',
      peer: this.state.peer ?? '',
      direction: 'incoming',
      progress: this.#progress(),
      ...(error === undefined ? {} : { error }),
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
    this.#doubts.close();
    this.#state?.close();
    void this.#peer?.close();
  }

  override shed(): void {
    clearInterval(this.#watch);
    this.#doubts.close();
    this.#state?.close();
    this.#state = undefined;
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
    this.#host.journal(record, { ...this.details }).then(
      () => this.dispatch({ type: 'journaled', record: record.state }),
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
    const { guest, description, source, migration, domain, manifest: offered } = this.#request();
    this.#host.shared.check(this.#request());
    await this.#host.checkRoom(description);
    const chunkTags = checkOffer(offered, description.memory.size);
    const place = this.#host.pools.take();
    let uffd: number | undefined;
    let names: ArrivingNames;
    try {
      const vmm = await this.#host.prepareVmm(guest, description);
      this.#vmm = vmm;
      if (domain !== undefined) vmm.record.domain = domain.name;
      this.details.vmm = vmm.record;
      void vmm.exited.then(() => this.dispatch({ type: 'vmm-died' }));
      this.#unlessRefusing();
      const acquired = await vmm.acquire();
      ({ uffd } = acquired);
      const { remoteFd, origin, regions, pageSize, shared } = acquired;
      this.details.acquired = { remoteFd, origin, regions, pageSize, shared };
      await this.#keep('incoming');
      this.#unlessRefusing();
      const at = this.#host.place(guest);
      names = ArrivingNames.create(tagsOf(at, migration), offered.frames, this.#host.shared.openKey(this.#request()));
      uffd = undefined;
      this.#arrival = Arrival.open(this.#host, place, at, vmm, acquired, this.#pages(false), names);
    } catch (error) {
      if (uffd !== undefined) native().close(uffd);
      place.free();
      throw error;
    }
    this.#listen(this.#arrival);
    // before the source is told what is wanted, and so before it sends any tags
    const wants = names.learn(chunkTags, this.#host.shared.chunks);
    const { pageSize, frames } = this.#pages(false);
    const { manifest } = names;
    const state = new StateChannel({ url: source.url, migration, token: source.token, pageSize, frames, manifest });
    this.#state = state;
    // A source that has gone away for good must not leave this waiting for ever.
    const connected = Promise.all([this.#arrival.ready(), state.connected]);
    await within(connected, this.#host.settings.prepareMs, 'the source did not answer on its page connections');
    this.#watchSource(state);
    this.#wants = wants;
    return { type: 'vmm-started' };
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
    const state = await within(
      this.#state!.whole,
      this.#host.settings.loadMs,
      "the source did not send the guest's state",
    );
    this.#countSwitch(state);
    this.details.digest = arrival.digest;
    arrival.serve();
    await vmm.loadState(Readable.from([state.device]));
    return { type: 'loaded' };
  }

  #countSwitch(state: SwitchState): void {
    this.details.switchBytes = { manifest: state.manifestBytes, state: state.device.length, wire: this.#state!.bytes };
  }

  async #resume(): Promise<DestinationEvent> {
    const vmm = this.#needVmm();
    if (this.#alarm !== undefined) throw errorFromJson(this.#alarm);
    const { unixMicros } = await vmm.resume();
    this.details.resumedAt ??= unixMicros;
    clearInterval(this.#watch);
    this.#state?.close();
    this.#arrival?.service.fill();
    this.#arrival?.hold(this.#host);
    // for the report after a restart; nothing waits for it
    this.#keep('owner').catch(() => undefined);
    await this.#host.adopt(this.#request().guest, vmm);
    return { type: 'resumed' };
  }

  async #serveAgain(): Promise<DestinationEvent> {
    const { vmm: record, acquired } = this.details;
    const { guest } = this.#request();
    if (record === undefined || acquired === undefined)
      throw new PagetideError('PT_INTERNAL', 'the journal lacks the VMM');
    if (this.#vmm === undefined) {
      this.#vmm = await this.#host.findVmm(guest, record);
      void this.#vmm?.exited.then(() => this.dispatch({ type: 'vmm-died' }));
    }
    if (this.#vmm === undefined) return { type: 'vmm-died' };
    const vmm = this.#vmm;
    if (this.details.whole !== undefined) {
      // first: the guest may wait for a page of zeros
      partWith(vmm, acquired, this.#host.place(guest), this.state.migration);
      this.dispatch({ type: 'filled' });
      return { type: 'served' };
    }
    const place = this.#host.pools.take();
    try {
      const at = this.#host.place(guest);
      const names = this.#namesAgain(tagsOf(at, this.state.migration));
      this.#arrival = Arrival.reopen(this.#host, place, at, vmm, acquired, this.#pages(true), names);
    } catch (error) {
      place.free();
      throw error;
    }
    this.#listen(this.#arrival);
    // The connection may take its time; faults are read and wait until then.
    this.#arrival.serveAgain();
    this.#arrival.hold(this.#host);
    if (this.#arrival.service.counts().foreign > 0)
      this.#raise(new PagetideError('PT_FOREIGN_PAGE', 'a page is there that Pagetide did not install'));
    return { type: 'served' };
  }

  #namesAgain(path: string): ArrivingNames {
    const { manifest } = this.#request();
    const { digest } = this.details;
    if (digest === undefined) throw new PagetideError('PT_INTERNAL', "the journal lacks the manifest's digest");
    return ArrivingNames.reopen(path, manifest.frames, this.#host.shared.openKey(this.#request()), digest);
  }

  async #unregister(): Promise<DestinationEvent> {
    if (this.#alarm !== undefined) throw errorFromJson(this.#alarm);
    const vmm = this.#needVmm();
    const figures = this.details.whole ?? (await this.#noteWhole(vmm));
    const arrival = this.#arrival;
    if (arrival !== undefined) {
      await arrival.finish();
      this.#arrival = undefined;
      figures.bytes.wire = this.#wire(arrival);
    }
    partWith(vmm, this.details.acquired!, this.#host.place(this.#request().guest), this.state.migration);
    const begun = performance.now();
    if (this.#request().verify) {
      // A guest that can't be asked is not a wrong guest: null.
      const result = await vmm.verify().catch((error: unknown) => {
        this.#host.log.warn(
          { guest: this.state.guest, error: asPagetideError(error).message },
          'the guest could not check itself',
        );
        return null;
      });
      figures.verified = result === null ? null : result.ok;
      if (result?.ok === false)
        this.#host.log.error({ guest: this.state.guest, bad: result.bad }, 'the guest found wrong pages');
    }
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
    this.#doubts.clear();
    const whole = await this.#measure(vmm, arrival);
    whole.bytes.wire = this.#wire(arrival);
    await this.#keep('owner', { ...this.details, whole });
    this.details.whole = whole;
    return whole;
  }

  #wire(arrival: Arrival): number {
    return arrival.service.wireBytes() + (this.details.switchBytes?.wire ?? 0);
  }

  async #measure(vmm: Vmm, arrival: Arrival): Promise<CompletionFigures> {
    const stats = await vmm.stats().catch(() => null);
    const { counts, faults, pageBytes, rawBytes, cached, resident, repeated, fromPeers } = arrival.service.figures();
    const installed = Math.min(counts.total, counts.installed);
    const before = Math.min(installed, arrival.before);
    const { stalls } = stats ?? { stalls: null };
    return {
      frames: {
        total: counts.total,
        zero: counts.total - installed,
        present: before,
        cache: cached,
        resident,
        duplicate: repeated,
        peer: fromPeers,
        source: installed - before - cached - resident - repeated - fromPeers,
      },
      bytes: {
        wire: 0,
        manifest: this.details.switchBytes?.manifest ?? 0,
        pages: pageBytes,
        state: this.details.switchBytes?.state ?? 0,
        raw: rawBytes,
      },
      faults: {
        count: Math.max(faults.count, counts.faults),
        p50Us: stalls?.p50Us ?? faults.p50Us,
        p99Us: stalls?.p99Us ?? faults.p99Us,
        maxUs: stalls?.maxUs ?? faults.maxUs,
      },
      longestGapMs: stats?.longestGapMs ?? null,
      ...(stats?.heartbeats === undefined ? {} : { firstBeatAt: stats.heartbeats.firstUnixMicros }),
      verified: null,
      resumedAt: this.details.resumedAt ?? 0,
      verifyMs: 0,
    };
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
    this.#served.push(service.serving);
    service.on('filled', () => this.dispatch({ type: 'filled' }));
    service.on('foreign', (frame) => {
      this.#raise(
        new PagetideError('PT_FOREIGN_PAGE', `a page stands in frame ${frame} that Pagetide did not put there`),
      );
    });
    service.on('note', (text, code) => {
      if (code === 'PT_PAGE_MISMATCH') return; // see 'mismatch'
      this.#note = text;
      this.changed();
    });
    service.on('leftOut', (url, { code, message }) => {
      this.#host.log.warn({ guest: this.state.guest, url, code }, `a peer is not asked for pages any more: ${message}`);
    });
    service.on('mismatch', (frame) => {
      this.#host.log.warn(
        { guest: this.state.guest, frame, code: 'PT_PAGE_MISMATCH' },
        'a page came that is not the one of its tag',
      );
      this.#doubts.add(frame);
    });
    service.on('failed', (error) => {
      this.#host.log.error({ guest: this.state.guest, code: error.code }, error.message);
      if (error.code === 'PT_FOREIGN_PAGE') this.#raise(error);
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
    return this.#doubts.alarms;
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

  /** A wrong page may be in the guest's memory: it must not run on. */
  #raise(error: PagetideError): void {
    if (this.#alarm !== undefined) return;
    this.#alarm = error.toJSON();
    this.#host.log.fatal({ guest: this.state.guest, code: error.code }, error.message);
    void this.#vmm?.pause().catch(() => undefined);
    this.changed();
  }

  /** Pages that came, and were not those of their tags, since this agent has the guest. */
  get mismatches(): { source: number; peer: number } {
    let [source, peer] = [0, 0];
    for (const { mismatches, peerMismatches } of this.#served) {
      source += mismatches;
      peer += peerMismatches;
    }
    return { source, peer };
  }

  get alarmed(): ErrorJson | undefined {
    return this.#alarm;
  }

  #progress(): MigrationProgress {
    const described = describe(this.state);
    const service = this.#arrival?.service;
    // asked at any moment, also while the arrival is being let go of
    const counts = service?.counts();
    const memory = this.details.request?.description.memory;
    const total = memory === undefined ? 0 : memory.size / memory.pageSize;
    const done = described.phase === 'completing' || described.phase === 'done';
    return {
      phase: this.#alarm === undefined ? described.phase : 'failed',
      framesTotal: total,
      framesPresent: counts === undefined ? (done ? total : 0) : counts.total - counts.outstanding,
      faultsServed: service?.serving.faultsServed ?? this.#figures?.faults.count ?? 0,
      wireBytes: service === undefined ? (this.#figures?.bytes.wire ?? 0) : service.wireBytes(),
      elapsedMs: Date.now() - this.details.startedAt,
      note: this.#doubts.note ?? this.#note ?? described.note,
    };
  }
}

/** Rejects with `PT_PEER_UNREACHABLE` when `promise` takes longer. */
async function within<T>(promise: Promise<T>, ms: number, what: string): Promise<T> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => {
      reject(new PagetideError('PT_PEER_UNREACHABLE', `${what} within ${ms} ms`));
    }, ms);
  });
  try {
    return await Promise.race([promise, late]);
  } finally {
    clearTimeout(timer);
  }
}
