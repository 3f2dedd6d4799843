/**
 * A migration at its source: drives the source's ownership machine (ownership/source.ts) and does its work: gets the
 * destination ready, pauses the guest, sends map and device state, and serves pages until the destination has them all.
 */
import { randomBytes } from 'node:crypto';
import { closeSync, openSync } from 'node:fs';
import { asPagetideError, PagetideError, type ErrorJson } from '../errors.ts';
import type { GuestRecord, Vmm } from '../guests/driver.ts';
import { native } from '../memory/native.ts';
import { GuestTags } from '../pages/guest-tags.ts';
import { encodeTagRuns } from '../pages/tag-runs.ts';
import { TAG_PAGE, TAG_VERSION } from '../pages/tags.ts';
import type { PageCounters } from '../transport/page-server.ts';
import { mapFromExtents, type MapRuns } from '../transport/wire-map.ts';
import type { PeerClient } from '../transport/peer.ts';
import type { MigrationHost } from './host.ts';
import {
  describe,
  sourceEnded,
  startSource,
  stepSource,
  type SourceAction,
  type SourceEvent,
  type SourceRequest,
  type SourceState,
  type SourceStep,
} from './ownership/index.ts';
import { migrationKey } from './arriving-names.ts';
import { GuestScan } from './guest-scan.ts';
import { claimDomain, type Domain, type DomainClaim } from './domains.ts';
import type { Leaving } from './shared-pages.ts';
import { makeReport, type Departure } from './report.ts';
import { damagedPage, Recheck } from './recheck.ts';
import { MachineRunner } from './runner.ts';
import {
  PEER_PROTOCOL,
  type CompletionFigures,
  type Finding,
  type IncomingStatus,
  type MigrationInfo,
  type MigrationProgress,
  type MigrationReport,
  type Mode,
  type PrepareRequest,
} from './types.ts';

/** Kept with every record of the journal: what a restarted agent needs. */
export interface OutgoingDetails extends Departure {
  token: string;
  mode: Mode;
  verify: boolean;
  /** The guest's memory files serve on when its VMM is gone. */
  vmm: GuestRecord;
  /** The name in the destination's certificate: pages go to it alone, and only its word counts. Absent: over plain HTTP, or not known yet. */
  destination?: string;
}

export interface OutgoingStart {
  guest: string;
  peer: string;
  epoch: number;
  mode: Mode;
  verify: boolean;
}

/** Failed tries to reach the destination before the guest is handed over; about two seconds. */
const TRIES = 4;
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
  #connection: PeerClient | undefined;
  #scan: GuestScan | undefined;
  #domain: Domain | undefined;
  #claim: DomainClaim | undefined;
  /** What is kept of the guest once it is gone. */
  #leaving: Leaving | undefined;
  #report: MigrationReport | undefined;
  #failure: ErrorJson | undefined;
  #unreachable = 0;
  /** Since when telling the destination to abort has failed, milliseconds since the epoch. */
  #tellingSince: number | undefined;
  #pushed = false;
  #told = false;
  readonly #recheck = new Recheck({
    onAlarm: (frames) => this.#tellDamage(frames),
    onMended: (frames) =>
      this.#host.log.warn({ migration: this.state.migration, frames }, 'pages of the paused guest are right again'),
  });
  /** The manifest is that of the guest as it was handed over. */
  #finished = false;
  #figures: CompletionFigures | undefined;
  /** Bytes of the page streams at this end, both directions. */
  #streamed = 0;
  #remote: IncomingStatus | undefined;
  #poll: NodeJS.Timeout | undefined;
  #acknowledged: (() => void)[] = [];
  #cancels: { resolve: () => void; reject: (error: PagetideError) => void }[] = [];

  private constructor(host: MigrationHost, vmm: Vmm | undefined, state: SourceState, details: OutgoingDetails) {
    super(state);
    this.#host = host;
    this.#vmm = vmm;
    this.details = details;
    void vmm?.exited.then(() => this.dispatch({ type: 'vmm-died' }));
  }

  /** Begins a migration of a guest that runs here. */
  static start(host: MigrationHost, vmm: Vmm, start: OutgoingStart): OutgoingMigration {
    const migration = randomBytes(8).toString('hex');
    const step = startSource({ migration, epoch: start.epoch, guest: start.guest, peer: start.peer, copies: false });
    const token = randomBytes(32).toString('base64url');
    const details = { token, mode: start.mode, verify: start.verify, startedAt: Date.now(), vmm: vmm.record };
    return OutgoingMigration.#begin(host, vmm, step, details);
  }

  /** Takes one up after a restart. `vmm` is undefined when its process is gone. */
  static recover(
    host: MigrationHost,
    vmm: Vmm | undefined,
    step: SourceStep,
    details: OutgoingDetails,
  ): OutgoingMigration {
    const migration = OutgoingMigration.#begin(host, vmm, step, details);
    if (vmm === undefined) migration.dispatch({ type: 'vmm-died' });
    return migration;
  }

  static #begin(
    host: MigrationHost,
    vmm: Vmm | undefined,
    step: SourceStep,
    details: OutgoingDetails,
  ): OutgoingMigration {
    const migration = new OutgoingMigration(host, vmm, step.state, details);
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
      peer,
      direction: 'outgoing',
      progress: this.#progress(),
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
    const stranger = this.#stranger(sender);
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
    const stranger = this.#stranger(sender);
    if (stranger !== undefined) throw stranger;
    const { description, pageSize } = this.details.vmm;
    const beyond = frames.find((frame) => frame >= description.memory.size / pageSize);
    if (beyond !== undefined) throw new PagetideError('PT_BAD_ARGUMENT', `the guest has no frame ${beyond}`);
    const parts = pageSize / TAG_PAGE;
    const scan = this.#finished ? this.#scan : undefined;
    const findings = await this.#recheck.run(
      frames,
      scan && ((frame) => scan.isAsTagged(frame * parts, parts)),
      standsStill,
    );
    this.changed();
    return findings;
  }

  /** Frames for which there was an alarm so far: their page was altered while the guest stood still. */
  get damagedFrames(): number {
    return this.#recheck.alarms;
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

  /** Without certificates, and on the control socket, nobody has a name. Until the destination's is known, it is asked to come again. */
  #stranger(sender: string | undefined): PagetideError | undefined {
    const { destination } = this.details;
    if (sender === undefined || sender === destination) return undefined;
    return new PagetideError('PT_UNAUTHORIZED', `${sender} is not the host that this guest moves to`);
  }

  override close(): void {
    super.close();
    this.#scan?.close();
    clearTimeout(this.#poll);
    void this.#connection?.close();
    this.#connection = undefined;
    this.#leaving?.drop();
  }

  override shed(): void {
    this.#scan?.close();
    this.#scan = undefined;
    clearTimeout(this.#poll);
    void this.#connection?.close();
    this.#connection = undefined;
  }

  protected step(state: SourceState, event: SourceEvent): SourceStep {
    return stepSource(state, event);
  }

  protected perform(action: SourceAction): void {
    switch (action.do) {
      case 'journal':
        this.#host.journal(action.record, { ...this.details }).then(
          () => this.dispatch({ type: 'journaled', record: action.record.state }),
          (error: unknown) => {
            this.dispatch({
              type: 'journal-failed',
              record: action.record.state,
              error: asPagetideError(error).toJSON(),
            });
            this.retrySoon();
          },
        );
        return;
      case 'send':
        void this.#send(action.request);
        return;
      case 'serve-pages':
        this.onVmm(
          () => this.#offerPages(),
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
        return; // comes with the rounds
      case 'pause':
        this.onVmm(
          async () => {
            const { unixMicros } = await this.#need().pause();
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
            await this.#need().resume();
            return { type: 'resumed' };
          },
          (error) => ({ type: 'resume-failed', error: asPagetideError(error).toJSON() }),
        );
        return;
      case 'release-vmm':
        this.onVmm(
          async () => {
            this.#leaving ??= this.#leave();
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

  /** Before the VMM and its memory go; only where the manifest is that of the memory as it is now, and for ever. */
  #leave(): Leaving | undefined {
    if (this.#domain === undefined || this.#scan === undefined || !this.#finished) return undefined;
    const { shared } = this.#host;
    return shared.leave(this.details.vmm, this.state.guest, this.#domain, this.#scan.manifest);
  }

  get #peer(): PeerClient {
    return (this.#connection ??= this.#host.connectPeer(this.state.peer, this.details.destination));
  }

  #need(): Vmm {
    if (this.#vmm === undefined) throw new PagetideError('PT_VMM_GONE', 'the VMM of this guest is gone');
    return this.#vmm;
  }

  async #offerPages(): Promise<undefined> {
    const { files, pageSize, description } = this.details.vmm;
    const { migration } = this.state;
    if (this.#host.pageServer.counters(migration) !== undefined) return undefined;
    await this.#host.pageServer.offer({
      migration,
      token: this.details.token,
      pageSize,
      frames: description.memory.size / pageSize,
      files: files.map(({ path, size, offset }) => ({ path, size, offset })),
      destination: this.details.destination,
    });
    return undefined;
  }

  /**
   * Over TLS: learns who the destination is, by a question that tells it nothing, and has the pages opened to it, before the
   * token leaves. `handing-over` carries the name to the journal: earlier, a restarted agent takes the guest back.
   */
  async #meet(): Promise<void> {
    if (this.#peer.isSecure && this.details.destination === undefined) await this.#peer.status(this.state.migration);
    await this.#admit();
  }

  /** Also after a restart, where the journal is of a version that didn't keep the name: no stream is opened until then. */
  async #admit(): Promise<void> {
    const identity = this.#connection?.identity;
    const { migration } = this.state;
    if (identity === undefined || this.details.destination !== undefined) return;
    // an offer that is made from now on has the name; one that is made already, or just now, is told it
    this.details.destination = identity;
    await this.vmmSettled();
    if (this.#host.pageServer.counters(migration) !== undefined) await this.#host.pageServer.admit(migration, identity);
  }

  async #send(request: SourceRequest): Promise<void> {
    const { migration, epoch, guest } = this.state;
    let status: IncomingStatus;
    try {
      switch (request) {
        case 'prepare':
          await this.vmmSettled(); // the pages are offered by then
          await this.#meet();
          status = await this.#peer.prepare({
            ...(await this.#offer()),
            protocol: PEER_PROTOCOL,
            migration,
            epoch,
            guest,
            mode: this.details.mode,
            description: this.details.vmm.description,
            source: { url: this.#host.url, token: this.details.token },
            verify: this.details.verify,
            copies: false,
            serves: true,
            bandwidth: 0,
          });
          break;
        case 'load':
          status = await this.#load(migration, epoch);
          break;
        case 'take-over':
          status = await this.#peer.takeOver(migration, epoch);
          break;
        case 'abort':
          status = await this.#peer.abort(migration, epoch);
          break;
        case 'status':
          status = await this.#peer.status(migration);
      }
    } catch (thrown) {
      this.#unanswered(request, asPagetideError(thrown));
      return;
    }
    if (this.closed) return;
    this.#unreachable = 0;
    try {
      await this.#admit();
      if (status.wants !== undefined) await this.#tellManifest(status.wants);
      // Not before the chunks were told that were offered: what is tagged anew after that is sent at the end.
      if (request === 'prepare' && this.#told && this.state.at === 'preparing') await this.#scan?.catchUp();
    } catch (thrown) {
      this.dispatch({ type: 'failed', error: asPagetideError(thrown).toJSON() });
      return;
    }
    this.#learn(status);
  }

  #learn(status: IncomingStatus): void {
    this.#remote = status;
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

  /** Makes the manifest while the guest runs, once; a preparation that is repeated offers the same. */
  async #offer(): Promise<Pick<PrepareRequest, 'manifest' | 'domain'>> {
    const { log, tagPool, shared } = this.#host;
    if (this.#scan === undefined) {
      const vmm = this.#need();
      const { record } = vmm;
      const domain = shared.domain(record.domain);
      // A guest must not be stuck here because its domain is gone: it shares nothing then.
      if (domain === undefined && record.domain !== undefined)
        log.warn(
          { guest: this.state.guest, domain: record.domain },
          'the domain of this guest is not known here any more',
        );
      const watched = domain && (await this.#host.watched(vmm, domain));
      if (!this.#isPreparing()) {
        watched?.close();
        throw givenUp();
      }
      const key = domain?.openKey() ?? migrationKey(this.details.token);
      if (domain !== undefined) this.#claim = claimDomain(domain, key, this.state.migration);
      this.#domain = domain;
      // its tags are made with a key of its own
      if (watched !== undefined) key.close();
      const tags = watched ?? new GuestTags({ record, key, pool: tagPool, log });
      const scan = new GuestScan(tags, {
        tracking: () => vmm.tracking?.() ?? Promise.resolve('hints'),
        constant: vmm.constantDevices === true,
      });
      this.#scan = scan;
      await scan.build();
      if (!this.#isPreparing()) throw givenUp();
    }
    const { manifest } = this.#scan;
    const chunks = encodeTagRuns(manifest.chunkTags(), 0, manifest.chunks).toString('base64');
    return {
      manifest: { version: TAG_VERSION, frames: manifest.frames, chunks },
      ...(this.#claim === undefined ? {} : { domain: this.#claim }),
    };
  }

  #isPreparing(): boolean {
    return !this.closed && this.state.at === 'preparing';
  }

  /** The page server keeps what is told, and tells it to every connection that comes: once is enough. */
  async #tellManifest(wants: readonly number[]): Promise<void> {
    if (this.#told || this.#scan === undefined) return;
    this.#told = true;
    await this.#host.pageServer.pushManifest(this.state.migration, this.#scan.tell(wants));
  }

  /** Streams manifest, map and device state to the destination, and waits until it has loaded them. */
  async #load(migration: string, epoch: number): Promise<IncomingStatus> {
    if (!this.#pushed) {
      this.#pushed = true; // the page server keeps them for every connection that comes
      const vmm = this.#need();
      const scan = this.#scan;
      if (scan === undefined) throw new PagetideError('PT_INTERNAL', 'there is no manifest of this guest');
      await this.#tellManifest([0, scan.manifest.chunks]); // where it never said what it wants
      await this.#host.pageServer.pushManifest(migration, await scan.finish());
      this.#finished = true;
      const state = this.#host.pageServer.pushState(migration);
      await this.#host.pageServer.pushMap(migration, this.#map(vmm));
      try {
        await vmm.saveState(state);
      } catch (error) {
        state.on('error', () => undefined); // the reason is on its way already
        state.destroy(asPagetideError(error));
        throw error;
      }
    }
    return this.#peer.load(migration, epoch);
  }

  /** Which frames hold content: the guest is paused, so this is final. A hole of the memory file reads as zero. */
  #map(vmm: Vmm): MapRuns {
    const { files, pageSize, description } = vmm.record;
    const extents = files.flatMap((file) => {
      const fd = openSync(file.path, 'r');
      try {
        return native()
          .dataExtents(fd, 0, file.size)
          .map(({ offset, length }) => ({ offset: file.offset + offset, length }));
      } finally {
        closeSync(fd);
      }
    });
    return mapFromExtents(extents, description.memory.size / pageSize, pageSize);
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
      this.#scan?.close();
    }
    if (what === 'released') {
      clearTimeout(this.#poll);
      this.#report = this.#makeReport();
      // acknowledged by now: nobody waits for this
      void this.#leaving?.keep();
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

  #progress(): MigrationProgress {
    const { phase, note } = describe(this.state);
    const remote = this.#remote?.progress;
    const { description, pageSize } = this.details.vmm;
    const total = description.memory.size / pageSize;
    const counters = this.#host.pageServer.counters(this.state.migration);
    const alarmed =
      (phase === 'serving' && remote?.phase === 'failed') || (phase === 'done' && this.#failure !== undefined);
    return {
      phase: alarmed
        ? 'failed'
        : phase === 'serving' && remote !== undefined && remote.phase === 'completing'
          ? 'completing'
          : phase,
      framesTotal: remote?.framesTotal ?? this.#report?.frames.total ?? total,
      framesPresent: this.#report?.frames.total ?? remote?.framesPresent ?? 0,
      faultsServed: this.#report?.faults.count ?? remote?.faultsServed ?? 0,
      wireBytes: this.#report?.bytes.wire ?? (counters === undefined ? 0 : counters.bytesIn + counters.bytesOut),
      elapsedMs: Date.now() - this.details.startedAt,
      note: this.#damage?.message ?? remote?.note ?? note,
    };
  }

  #countStreams(counters: PageCounters | undefined): void {
    if (counters !== undefined) this.#streamed = counters.bytesIn + counters.bytesOut;
  }

  #makeReport(): MigrationReport | undefined {
    const figures = this.#figures;
    if (figures === undefined) return undefined;
    const { received, sent } = this.#peer.bytes;
    // The destination closes its streams once it has every page, with answers still under way that a fault was faster than:
    // the network has carried them. An agent that was restarted has only counted what came after; so the larger one.
    const streams = Math.max(figures.bytes.wire, this.#streamed);
    const { mode, vmm } = this.details;
    const about = { guest: this.state.guest, mode, driver: vmm.driver };
    return makeReport(about, this.details, figures, streams + received + sent, Date.now());
  }
}

function givenUp(): PagetideError {
  return new PagetideError('PT_CANCELLED', 'the migration was given up meanwhile');
}
