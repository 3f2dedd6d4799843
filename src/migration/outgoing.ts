/**
 * A migration at its source: drives the source's ownership machine (ownership/source.ts) and does its work: gets the
 * destination ready, has memory copied in rounds where the mode is one that does, pauses the guest, sends map and device state, and
 * serves pages until the destination has them all.
 */
import { randomBytes } from 'node:crypto';
import { asPagetideError, PagetideError, type ErrorJson } from '../errors.ts';
import type { Departure, Moment, Vmm } from '../guests/driver.ts';
import type { PageCounters } from '../transport/page-server.ts';
import type { MigrationHost } from './host.ts';
import type { Plan } from './modes.ts';
import type { OutgoingDetails, OutgoingStart } from './outgoing-details.ts';
import { givenUp, OutgoingMemory } from './outgoing-memory.ts';
import { OutgoingPeer, TRIES } from './outgoing-peer.ts';
import { OutgoingRounds } from './outgoing-rounds.ts';
import { sourceProgress } from './outgoing-progress.ts';
import {
  sourceEnded,
  startSource,
  stepSource,
  type SourceAction,
  type SourceEvent,
  type SourceRequest,
  type SourceState,
  type SourceStep,
} from './ownership/index.ts';
import { makeReport } from './report.ts';
import { damagedPage, Recheck } from './recheck.ts';
import { MachineRunner } from './runner.ts';
import {
  PEER_PROTOCOL,
  type CompletionFigures,
  type Finding,
  type IncomingStatus,
  type MigrationInfo,
  type MigrationReport,
} from './types.ts';

/** Where only the destination's answer leads on. */
const WAITS_FOR_ANSWER: ReadonlySet<SourceState['at']> = new Set([
  'preparing',
  'loading',
  'handing-over',
  'undoing',
  'rolled-back',
  'lost',
]);
/** Where the guest stands still, its final manifest made: what it holds is what the destination must get. */
const STANDS_STILL: ReadonlySet<SourceState['at']> = new Set([
  'loading',
  'committing',
  'undoing',
  'handing-over',
  'fencing',
  'leaving',
  'gone',
]);
/**
 * A destination that can't be told to abort lets go by itself when the source is silent, and refuses when it restarts: so
 * telling it may end after a time that is longer than that, milliseconds. Nothing but its waste depends on it.
 */
const TELL_MS = 300_000;
/** How often the destination is asked how far it is, milliseconds. */
const POLL_MS = 200;

export class OutgoingMigration extends MachineRunner<SourceState, SourceEvent, SourceAction> {
  readonly details: OutgoingDetails;
  protected readonly retryEvent: SourceEvent = { type: 'retry' };
  readonly #host: MigrationHost;
  readonly #vmm: Vmm | undefined;
  /** How it is to go about it; undefined after a restart, when all of that is over. */
  readonly #plan: Plan | undefined;
  readonly #memory: OutgoingMemory;
  readonly #peer: OutgoingPeer;
  readonly #rounds: OutgoingRounds;
  /** The guest is being stopped for a scan, or let run on after it. */
  #draining: Promise<unknown> = Promise.resolve();
  /**
   * The guest stands still by this migration's doing, or may: after a restart, too, and where a VMM's answer is not known. Only such a guest
   * is let run on. One that its operator has stopped is neither moved, as it would run there, nor resumed.
   */
  #stopped: boolean;
  /** The guest stops, or has, and its device state is saved. */
  #departure: Departure | undefined;
  #report: MigrationReport | undefined;
  #failure: ErrorJson | undefined;
  #unreachable = 0;
  /** Since when telling the destination to abort has failed, milliseconds since the epoch. */
  #tellingSince: number | undefined;
  readonly #recheck = new Recheck({
    onAlarm: (frames) => this.#tellDamage(frames),
    onMended: (frames) =>
      this.#host.log.warn({ migration: this.state.migration, frames }, 'pages of the paused guest are right again'),
  });
  #figures: CompletionFigures | undefined;
  /** Bytes of the page streams at this end, both directions. */
  #streamed = 0;
  #remote: IncomingStatus | undefined;
  #poll: NodeJS.Timeout | undefined;
  #acknowledged: (() => void)[] = [];
  /**
   * Bytes of pages a second, at most: what is wanted (undefined: taken up after a restart, and nobody said), and what the destination was
   * told, as far as this agent knows.
   */
  #bandwidth: number | undefined;
  #toldBandwidth: number | undefined;
  #isTelling = false;
  #cancels: { resolve: () => void; reject: (error: PagetideError) => void }[] = [];

  private constructor(
    host: MigrationHost,
    vmm: Vmm | undefined,
    state: SourceState,
    details: OutgoingDetails,
    plan: Plan | undefined,
  ) {
    super(state);
    this.#host = host;
    this.#vmm = vmm;
    this.#plan = plan;
    this.#stopped = plan === undefined;
    this.#bandwidth = plan?.bandwidth;
    this.details = details;
    const { migration, guest } = state;
    const inRounds = plan?.copying !== undefined;
    this.#memory = new OutgoingMemory({
      ...{ host, migration, guest, token: details.token, record: details.vmm },
      ...(inRounds && vmm?.drained !== undefined ? { drained: (work) => this.#drained(work) } : {}),
    });
    this.#peer = new OutgoingPeer({
      ...{ host, details, url: state.peer, settled: () => this.vmmSettled() },
      key: { migration, epoch: state.epoch },
    });
    this.#rounds = new OutgoingRounds({
      ...{ plan, details, memory: this.#memory, peer: this.#peer },
      log: host.log.child({ migration, guest }),
      isCopying: () => !this.closed && this.state.at === 'copying',
      onStatus: (status) => this.#learn(status),
      changed: () => this.changed(),
    });
    void vmm?.exited.then(() => this.dispatch({ type: 'vmm-died' }));
  }

  /** Begins a migration of a guest that runs here. */
  static start(host: MigrationHost, vmm: Vmm, start: OutgoingStart): OutgoingMigration {
    const migration = randomBytes(8).toString('hex');
    const { epoch, guest, peer, plan, verify } = start;
    const step = startSource({ migration, epoch, guest, peer, copies: plan.copying !== undefined });
    const token = randomBytes(32).toString('base64url');
    const { mode, why } = plan;
    const details = {
      token,
      mode,
      ...(why === undefined ? {} : { why }),
      verify,
      startedAt: Date.now(),
      vmm: vmm.record,
    };
    return OutgoingMigration.#begin(host, vmm, step, details, plan);
  }

  /** Takes one up after a restart. `vmm` is undefined when its process is gone. */
  static recover(
    host: MigrationHost,
    vmm: Vmm | undefined,
    step: SourceStep,
    details: OutgoingDetails,
  ): OutgoingMigration {
    const migration = OutgoingMigration.#begin(host, vmm, step, details, undefined);
    if (vmm === undefined) migration.dispatch({ type: 'vmm-died' });
    return migration;
  }

  static #begin(
    host: MigrationHost,
    vmm: Vmm | undefined,
    step: SourceStep,
    details: OutgoingDetails,
    plan: Plan | undefined,
  ): OutgoingMigration {
    const migration = new OutgoingMigration(host, vmm, step.state, details, plan);
    migration.begin(step.actions);
    return migration;
  }

  get ended(): boolean {
    return sourceEnded(this.state) && this.#cancels.length === 0;
  }

  /** Whether the guest is still in this migration. One that was rolled back is free, although the destination may yet have to hear of it. */
  get holdsGuest(): boolean {
    return !this.ended && this.state.at !== 'rolled-back' && this.state.at !== 'lost';
  }

  info(): MigrationInfo {
    const { migration, guest, peer } = this.state;
    const error =
      this.#failure ?? this.#damage?.toJSON() ?? (this.state.at === 'gone' ? this.#remote?.error : undefined);
    return {
      id: migration,
      guest,
      mode: this.details.mode,
      ...(this.details.why === undefined ? {} : { why: this.details.why }),
      peer,
      direction: 'outgoing',
      progress: sourceProgress({
        state: this.state,
        frames: this.#frames,
        startedAt: this.details.startedAt,
        remote: this.#remote?.progress,
        report: this.#report,
        counters: this.#host.pageServer.counters(migration),
        copying: this.#rounds.progress,
        hasFailed: this.#failure !== undefined,
        alarm: this.#damage?.message,
        note: this.details.note,
      }),
      ...(this.#report === undefined ? {} : { report: this.#report }),
      ...(error === undefined ? {} : { error }),
    };
  }

  /** Resolves when the cancel is accepted. @throws PagetideError `PT_NOT_CANCELLABLE` */
  cancel(): Promise<void> {
    return new Promise((resolve, reject) => {
      this.#cancels.push({ resolve, reject });
      this.dispatch({ type: 'cancel' });
      // turned down: rejected by now
      this.#settleCancels(undefined);
    });
  }

  /** Bytes of pages that the destination fetches a second from now on, at most; 0: its own limit alone. It is told as soon as it can be. */
  limit(bandwidth: number): void {
    this.#bandwidth = bandwidth;
    void this.#tellLimit();
  }

  /**
   * The destination is told with its preparation, and what has become another one since, once that was answered. One at a time, so that
   * the last one that it hears is the last one. Nothing depends on it but how fast it goes: where it does not get there, it is tried again
   * at the next answer.
   */
  async #tellLimit(): Promise<void> {
    const { migration, epoch } = this.state;
    // it has answered, and its preparation said what was wanted then
    if (this.#isTelling || this.#remote === undefined) return;
    this.#isTelling = true;
    try {
      while (!this.closed && !this.ended) {
        const bandwidth: number | undefined = this.#bandwidth;
        if (bandwidth === undefined || bandwidth === this.#toldBandwidth) return;
        await this.#peer.client.limit(migration, epoch, bandwidth);
        this.#toldBandwidth = bandwidth;
      }
    } catch (thrown) {
      const { code, message } = asPagetideError(thrown);
      this.#host.log.debug({ migration, code }, `the destination was not told its bandwidth: ${message}`);
    } finally {
      this.#isTelling = false;
    }
  }

  /** Whether the destination said that it lost the guest: what is kept here is kept until {@link discard}. */
  get isLostThere(): boolean {
    return this.state.at === 'gone' && this.state.peerLost;
  }

  /** The operator gives up what is kept of a guest that the destination lost. Resolves when it is gone, durably. */
  discard(): Promise<void> {
    this.#failure ??= this.#remote?.error;
    return new Promise((resolve) => {
      const stop = this.onChange(() => {
        if (!this.ended) return;
        stop();
        resolve();
      });
      this.dispatch({ type: 'discard' });
    });
  }

  /**
   * The destination says that it has every page. Resolves when that is durable here and the guest's copy is gone.
   * @param sender the name in the certificate of who says it; undefined where it showed none
   */
  complete(epoch: number, figures: CompletionFigures, sender?: string): Promise<void> {
    if (epoch !== this.state.epoch) {
      return Promise.reject(new PagetideError('PT_MIGRATION_UNKNOWN', `no migration of epoch ${epoch}`));
    }
    const stranger = this.#peer.stranger(sender);
    if (stranger !== undefined) return Promise.reject(stranger);
    this.#figures = figures;
    return new Promise((resolve) => {
      this.#acknowledged.push(resolve);
      this.dispatch({ type: 'complete', migration: this.state.migration, epoch });
    });
  }

  /**
   * The destination has got pages that are not those of their tags: are they right here? See {@link Recheck}.
   * @param frames of the guest's page size, all that are in doubt now
   * @throws PagetideError `PT_MIGRATION_UNKNOWN`, `PT_UNAUTHORIZED`, `PT_BAD_ARGUMENT`, `PT_TOO_SOON`
   */
  async recheck(epoch: number, frames: readonly number[], sender?: string): Promise<Finding[]> {
    const standsStill = (): boolean => !this.closed && STANDS_STILL.has(this.state.at);
    if (epoch !== this.state.epoch || !standsStill())
      throw new PagetideError('PT_MIGRATION_UNKNOWN', 'that migration is not under way here');
    const stranger = this.#peer.stranger(sender);
    if (stranger !== undefined) throw stranger;
    const beyond = frames.find((frame) => frame >= this.#frames);
    if (beyond !== undefined) throw new PagetideError('PT_BAD_ARGUMENT', `the guest has no frame ${beyond}`);
    const findings = await this.#recheck.run(frames, this.#memory.isAsTagged(), standsStill);
    this.changed();
    return findings;
  }

  /** Frames for which there was an alarm so far: their page was altered while the guest stood still. */
  get damagedFrames(): number {
    return this.#recheck.alarms;
  }

  /** Of the guest's page size. */
  get #frames(): number {
    const { description, pageSize } = this.details.vmm;
    return description.memory.size / pageSize;
  }

  get #damage(): PagetideError | undefined {
    const { damaged } = this.#recheck;
    return damaged.length > 0 && STANDS_STILL.has(this.state.at) ? damagedPage(damaged) : undefined;
  }

  #tellDamage(frames: readonly number[]): void {
    const { migration, guest } = this.state;
    const error = damagedPage(frames);
    this.#host.log.fatal({ migration, guest, code: error.code, frames }, error.message);
  }

  override close(): void {
    super.close();
    this.#memory.close();
    clearTimeout(this.#poll);
    this.#peer.close();
    this.#memory.drop();
  }

  /** The same for an agent that ends: a guest that is stopped for a scan just now runs on when this resolves. */
  async detach(): Promise<void> {
    this.close();
    await this.#draining;
  }

  override shed(): void {
    this.#memory.shed();
    clearTimeout(this.#poll);
    this.#peer.close();
  }

  protected step(state: SourceState, event: SourceEvent): SourceStep {
    return stepSource(state, event);
  }

  protected perform(action: SourceAction): void {
    switch (action.do) {
      case 'journal': {
        const { state } = action.record;
        const began = performance.now();
        this.#host.journal(action.record, { ...this.details }).then(
          () => {
            // the guest stands still, and nothing else is done meanwhile
            if (state === 'handing-over') this.details.journalMs = performance.now() - began;
            this.dispatch({ type: 'journaled', record: state });
          },
          (error: unknown) => {
            this.dispatch({
              type: 'journal-failed',
              record: state,
              error: asPagetideError(error).toJSON(),
            });
            this.retrySoon();
          },
        );
        return;
      }
      case 'send':
        void this.#send(action.request);
        return;
      case 'serve-pages':
        this.onVmm(
          async () => {
            await this.#memory.offerPages(this.details.destination);
            return undefined;
          },
          (error) => ({ type: 'failed', error: asPagetideError(error).toJSON() }),
        );
        return;
      case 'stop-pages':
        this.onVmm(
          async () => {
            this.#countStreams(await this.#host.pageServer.withdraw(this.state.migration));
            return undefined;
          },
          () => undefined,
        );
        return;
      case 'copy':
        this.#rounds.begin((event) => this.dispatch(event));
        return;
      case 'pause':
        this.onVmm(
          async () => {
            const { unixMicros } = await this.#depart(this.#need());
            // `handing-over` carries it to the journal
            this.details.pausedAt = unixMicros;
            // what this host knows of the guest's heartbeat; not waited for, the guest stands still
            void this.#need()
              .stats()
              .then((stats) => {
                if (stats === null) return;
                const { longestGapMs, heartbeats } = stats;
                this.details.heard = { longestGapMs, ...(heartbeats === undefined ? {} : { heartbeats }) };
              })
              .catch(() => undefined);
            return { type: 'paused' };
          },
          (error) => ({ type: 'pause-failed', error: asPagetideError(error).toJSON() }),
        );
        return;
      case 'resume':
        this.onVmm(
          async () => {
            if (this.#stopped) await this.#need().resume();
            this.#stopped = false;
            return { type: 'resumed' };
          },
          (error) => ({ type: 'resume-failed', error: asPagetideError(error).toJSON() }),
        );
        return;
      case 'release-vmm':
        this.onVmm(
          async () => {
            this.#memory.leave();
            this.#memory.untrack(); // while there is a VMM: its answer to the take-over may have been lost
            await this.#host.release(this.state.guest, this.#vmm, this.details.vmm);
            return { type: 'vmm-released' };
          },
          (error) => ({ type: 'release-failed', error: asPagetideError(error).toJSON() }),
        );
        return;
      case 'acknowledge':
        for (const resolve of this.#acknowledged.splice(0)) resolve();
        return;
      case 'turn-down':
        this.#settleCancels(action.error);
        return;
      case 'report':
        this.#take(action.what, action.error);
    }
  }

  #need(): Vmm {
    if (this.#vmm === undefined) throw new PagetideError('PT_VMM_GONE', 'the VMM of this guest is gone');
    return this.#vmm;
  }

  /**
   * Stops the guest. Its device state is saved from then on, while the last of its tags are made.
   * @throws PagetideError `PT_GUEST_STATE` where it doesn't run, and what {@link Vmm.depart} throws
   */
  async #depart(vmm: Vmm): Promise<Moment> {
    if (this.#departure !== undefined) return this.#departure.stopped;
    if (!this.#stopped) {
      const state = await vmm.status();
      if (state === 'paused')
        throw new PagetideError(
          'PT_GUEST_STATE',
          `guest '${this.state.guest}' was stopped meanwhile: only a running guest is moved`,
          {
            hint: 'Let it run, and migrate it again.',
          },
        );
    }
    this.#stopped = true; // a stop that fails may have come to pass
    this.#departure = vmm.depart(this.#memory.stateSink());
    try {
      return await this.#departure.stopped;
    } catch (error) {
      if (error instanceof PagetideError && error.code === 'PT_GUEST_STATE') this.#stopped = false; // by somebody else
      throw error;
    }
  }

  /**
   * All that the destination needs to run the guest, and its answer when it has loaded it. It is asked at once: its question takes as long
   * as the rest.
   */
  async #load(): Promise<IncomingStatus> {
    const { migration, epoch } = this.state;
    const loaded = this.#peer.client.load(migration, epoch, this.#rounds.rest);
    // the question, and the VMM's next command, leave before this thread is busy with tags
    const settled = new Promise(setImmediate).then(() => this.#memory.settle());
    const [status] = await Promise.all([loaded, settled, this.#departure?.saved]);
    return status;
  }

  async #send(request: SourceRequest): Promise<void> {
    const { migration, epoch, guest } = this.state;
    let status: IncomingStatus;
    try {
      switch (request) {
        case 'prepare':
          await this.vmmSettled(); // the pages are offered by then
          await this.#peer.meet();
          this.#toldBandwidth ??= this.#bandwidth ?? 0;
          status = await this.#peer.client.prepare({
            ...(await this.#names()),
            protocol: PEER_PROTOCOL,
            migration,
            epoch,
            guest,
            mode: this.details.mode,
            description: this.details.vmm.description,
            source: { url: this.#host.url, token: this.details.token },
            verify: this.details.verify,
            copies: this.#plan?.copying !== undefined,
            serves: this.#plan?.serves ?? true,
            bandwidth: this.#toldBandwidth,
          });
          break;
        case 'load':
          status = await this.#load();
          break;
        case 'take-over':
          status = await this.#peer.client.takeOver(migration, epoch);
          this.#memory.untrack();
          break;
        case 'abort':
          status = await this.#peer.client.abort(migration, epoch);
          break;
        case 'status':
          status = await this.#peer.client.status(migration);
      }
    } catch (thrown) {
      this.#unanswered(request, asPagetideError(thrown));
      return;
    }
    if (this.closed) return;
    this.#unreachable = 0;
    try {
      await this.#peer.admit();
      if (status.wants !== undefined) await this.#memory.tell(status.wants);
      // Not before the chunks were told that were offered. Rounds do it themselves.
      const isTold = request === 'prepare' && this.#memory.told && this.state.at === 'preparing';
      if (isTold && !this.state.copies) await this.#memory.catchUp();
    } catch (thrown) {
      this.dispatch({ type: 'failed', error: asPagetideError(thrown).toJSON() });
      return;
    }
    this.#learn(status);
  }

  #learn(status: IncomingStatus): void {
    this.#remote = status;
    void this.#tellLimit();
    if (status.figures !== undefined) this.#figures ??= status.figures;
    const { migration, epoch, state, error } = status;
    const { at } = this.state;
    this.dispatch({ type: 'answer', migration, epoch, state, ...(error === undefined ? {} : { error }) });
    // It decided nothing, and nothing else is waited for: ask again.
    if (this.state.at === at && WAITS_FOR_ANSWER.has(at) && !this.ended) this.retrySoon();
    if (this.state.at === 'gone' || this.state.at === 'leaving') this.#pollSoon();
    this.changed();
  }

  #unanswered(request: SourceRequest, error: PagetideError): void {
    if (this.closed || sourceEnded(this.state)) return; // shed meanwhile
    this.#host.log.warn({ migration: this.state.migration, request, code: error.code }, error.message);
    if (request === 'abort') this.#tellingSince ??= Date.now();
    // An answer that is an error is final before the hand-over; silence gets a few tries.
    const silent = error.code === 'PT_PEER_UNREACHABLE';
    if (!silent || ++this.#unreachable >= TRIES) {
      if (request === 'prepare' || request === 'load') this.dispatch({ type: 'failed', error: error.toJSON() });
    }
    if (request === 'abort' && this.#tellingSince !== undefined && Date.now() - this.#tellingSince > TELL_MS) {
      this.#host.log.warn({ migration: this.state.migration }, 'the destination is not told to abort any more');
      this.dispatch({ type: 'peer-gone' });
    }
    if (request === 'status') this.#pollSoon();
    else if (!this.ended) this.retrySoon();
  }

  async #names(): ReturnType<OutgoingMemory['build']> {
    const names = await this.#memory.build(this.#need(), () => this.#isPreparing());
    this.#rounds.look();
    return names;
  }

  #isPreparing(): boolean {
    return !this.closed && (this.state.at === 'preparing' || this.state.at === 'copying');
  }

  /**
   * Stops the guest for a scan. In turn with what the machine does to the VMM, so that its own pause or resume can't come in
   * between; and not once it has moved on, when the guest stands still, or has been let run.
   */
  #drained(work: () => void): Promise<void> {
    const drained = this.inTurn(async () => {
      if (!this.#isPreparing()) throw givenUp();
      // set back only where it is known that it runs on, or was left as it was
      const before = this.#stopped;
      this.#stopped = true;
      await this.#need().drained?.(work);
      this.#stopped = before;
    });
    this.#draining = drained.catch(() => undefined);
    return drained;
  }

  #take(
    what: 'in-doubt' | 'rolled-back' | 'guest-lost' | 'left' | 'released' | 'conflict',
    error: ErrorJson | undefined,
  ): void {
    const { migration, guest } = this.state;
    this.#host.log.info({ migration, guest, error }, `migration: ${what}`);
    if (what === 'left') this.#pollSoon();
    if (what === 'rolled-back' || what === 'guest-lost') {
      this.#failure = error;
      this.#memory.close();
    }
    if (what === 'released') {
      clearTimeout(this.#poll);
      this.#report = this.#makeReport();
      // acknowledged by now: nobody waits for this
      this.#memory.keep();
    }
  }

  #settleCancels(error: ErrorJson | undefined): void {
    for (const { resolve, reject } of this.#cancels.splice(0)) {
      if (error === undefined) resolve();
      else reject(new PagetideError(error.code, error.message));
    }
  }

  #pollSoon(): void {
    clearTimeout(this.#poll);
    if (this.closed) return;
    this.#poll = setTimeout(() => {
      if (this.state.at === 'gone' || this.state.at === 'leaving') void this.#send('status');
    }, POLL_MS);
  }

  #countStreams(counters: PageCounters | undefined): void {
    if (counters !== undefined) this.#streamed = counters.bytesIn + counters.bytesOut;
  }

  #makeReport(): MigrationReport | undefined {
    const figures = this.#figures;
    if (figures === undefined) return undefined;
    // The destination closes its streams once it has every page, with answers still under way that a fault was faster than:
    // the network has carried them. An agent that was restarted has only counted what came after; so the larger one.
    const streams = Math.max(figures.bytes.wire, this.#streamed);
    const { mode, vmm } = this.details;
    const about = { guest: this.state.guest, mode, driver: vmm.driver };
    return makeReport(about, this.details, figures, streams + this.#peer.bytes, Date.now());
  }
}
