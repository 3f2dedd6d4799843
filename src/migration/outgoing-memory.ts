/**
 * What a source tells of its guest's memory, in this order, and the page server keeps for every connection that comes:
 *
 *   offerPages ─► build ─► tell ──────────────► settle
 *   open for      names    of the chunks that    guest paused: the rest of the names, and that this was the last of them
 *   reading                are wanted, once
 *                            │  ▲
 *                            └──┘ in rounds, where memory is copied first (copying.ts)
 */
import type { Writable } from 'node:stream';
import { PagetideError } from '../errors.ts';
import type { GuestRecord, Vmm } from '../guests/driver.ts';
import { GuestTags } from '../pages/guest-tags.ts';
import { encodeTagRuns } from '../pages/tag-runs.ts';
import { TAG_PAGE, TAG_VERSION } from '../pages/tags.ts';
import { migrationKey } from './arriving-names.ts';
import { claimDomain, type Domain, type DomainClaim } from './domains.ts';
import { GuestScan } from './guest-scan.ts';
import type { MigrationHost } from './host.ts';
import type { Leaving } from './shared-pages.ts';
import type { PrepareRequest } from './types.ts';

export interface OutgoingMemoryOptions {
  host: Pick<MigrationHost, 'log' | 'tagPool' | 'shared' | 'pageServer' | 'watched'>;
  migration: string;
  guest: string;
  /** Opens the page streams; names pages of guests that have no domain. */
  token: string;
  record: GuestRecord;
  /** Stops the guest for a scan; see {@link GuestScan}. Without it no scan does. */
  drained?: (work: () => void) => Promise<void>;
}

export class OutgoingMemory {
  readonly #options: OutgoingMemoryOptions;
  #scan: GuestScan | undefined;
  #domain: Domain | undefined;
  #claim: DomainClaim | undefined;
  #told = false;
  #telling: Promise<void> | undefined;
  #completing: Promise<void> | undefined;
  #settling: Promise<void> | undefined;
  /** The manifest is that of the guest as it was handed over. */
  #finished = false;
  /** What is kept of the guest once it is gone. */
  #leaving: Leaving | undefined;

  constructor(options: OutgoingMemoryOptions) {
    this.#options = options;
  }

  /** The tags, once {@link build} has begun, until {@link close}. */
  get scan(): GuestScan | undefined {
    return this.#scan;
  }

  /** Whether the first manifest was told. */
  get told(): boolean {
    return this.#told;
  }

  /** Opens the guest's memory files to the destination's page streams; once. @param destination its name, where it is known */
  async offerPages(destination: string | undefined): Promise<void> {
    const { host, migration, token, record } = this.#options;
    const { files, pageSize, description } = record;
    if (host.pageServer.counters(migration) !== undefined) return;
    await host.pageServer.offer({
      migration,
      token,
      pageSize,
      frames: description.memory.size / pageSize,
      files: files.map(({ path, size, offset }) => ({ path, size, offset })),
      destination,
    });
  }

  /**
   * Makes the manifest while the guest runs, once; a preparation that is repeated offers it as it is then. Some of it may be made while the
   * destination gets ready: {@link tell} waits for that.
   * @param isWanted asked when something has taken its time; where it isn't any more, nothing is left of it
   * @throws PagetideError `PT_CANCELLED` then, and what {@link GuestScan.build} throws
   */
  async build(vmm: Vmm, isWanted: () => boolean): Promise<Pick<PrepareRequest, 'manifest' | 'domain'>> {
    if (this.#scan === undefined) {
      this.#scan = await this.#open(vmm, isWanted);
      await this.#scan.begin();
      if (!isWanted()) throw givenUp();
    }
    const { manifest } = this.#scan;
    const chunks = encodeTagRuns(this.#scan.offer(), 0, manifest.chunks).toString('base64');
    this.#completing ??= this.#scan.complete();
    this.#completing.catch(() => undefined); // thrown where it is told
    return {
      manifest: { version: TAG_VERSION, frames: manifest.frames, chunks },
      ...(this.#claim === undefined ? {} : { domain: this.#claim }),
    };
  }

  async #open(vmm: Vmm, isWanted: () => boolean): Promise<GuestScan> {
    const { host, migration, guest, token, drained } = this.#options;
    const { log, tagPool, shared } = host;
    const { record } = vmm;
    const domain = shared.domain(record.domain);
    // A guest must not be stuck here because its domain is gone: it shares nothing then.
    if (domain === undefined && record.domain !== undefined)
      log.warn({ guest, domain: record.domain }, 'the domain of this guest is not known here any more');
    const watched = domain && (await host.watched(vmm, domain));
    if (!isWanted()) {
      watched?.close();
      throw givenUp();
    }
    const key = domain?.openKey() ?? migrationKey(token);
    if (domain !== undefined) this.#claim = claimDomain(domain, key, migration);
    this.#domain = domain;
    // its tags are made with a key of its own
    if (watched !== undefined) key.close();
    const tags = watched ?? new GuestTags({ record, key, pool: tagPool, log });
    return new GuestScan(tags, {
      tracking: () => vmm.tracking?.() ?? Promise.resolve('hints'),
      constant: vmm.constantDevices === true,
      ...(drained === undefined ? {} : { drained }),
    });
  }

  /**
   * The page server keeps what is told, and tells it to every connection that comes: once is enough. Asked for again it ends as the first does.
   * @throws PagetideError also what {@link GuestScan.complete} throws
   */
  tell(wants: readonly number[]): Promise<void> {
    if (this.#scan === undefined) return Promise.resolve();
    return (this.#telling ??= this.#tell(this.#scan, wants));
  }

  async #tell(scan: GuestScan, wants: readonly number[]): Promise<void> {
    await this.#completing; // whoever else would use the tags meanwhile waits for this, too
    await this.tellFrames(scan.tellAll(wants));
    this.#told = true;
  }

  /** Tags of a further round, and its end. */
  async tellFrames(frames: readonly Buffer[]): Promise<void> {
    await this.#options.host.pageServer.pushManifest(this.#options.migration, frames);
  }

  /** Right before the guest is paused: tells what it has written since {@link tell}, so that little is left for then. */
  async catchUp(): Promise<void> {
    const scan = this.#scan;
    if (scan === undefined) return;
    await scan.catchUp();
    await this.tellFrames(scan.tellChanged());
  }

  /** The guest stands still: the final manifest. Asked for again it is the same. @throws PagetideError what {@link GuestScan.finish} throws */
  settle(): Promise<void> {
    return (this.#settling ??= this.#settle());
  }

  async #settle(): Promise<void> {
    const { host, migration } = this.#options;
    const scan = this.#scan;
    if (scan === undefined) throw new PagetideError('PT_INTERNAL', 'there is no manifest of this guest');
    await this.tell([0, scan.manifest.chunks]); // where it never said what it wants
    const told = this.tellFrames(await scan.finish());
    this.#finished = true;
    await Promise.all([told, host.pageServer.settle(migration)]);
  }

  /** Takes the device state of the guest, for the destination; once. To be destroyed with the reason where there will be none. */
  stateSink(): Writable {
    return this.#options.host.pageServer.pushState(this.#options.migration);
  }

  /** Nothing waits for the guest any more: what tracked its writes goes. */
  untrack(): void {
    if (this.#finished) this.#scan?.untrack();
  }

  /**
   * How a frame is compared with what the destination was told of it, while the guest stands still; undefined where nobody knows (any more).
   * @returns takes a frame of the guest's page size
   */
  isAsTagged(): ((frame: number) => Promise<boolean>) | undefined {
    const scan = this.#finished ? this.#scan : undefined;
    const parts = this.#options.record.pageSize / TAG_PAGE;
    return scan && ((frame) => scan.isAsTagged(frame * parts, parts));
  }

  /** Before the VMM and its memory go; only where the manifest is that of the memory as it is now, and for ever. Repeatable. */
  leave(): void {
    if (this.#leaving !== undefined || this.#domain === undefined || this.#scan === undefined || !this.#finished)
      return;
    const { host, record, guest } = this.#options;
    this.#leaving = host.shared.leave(record, guest, this.#domain, this.#scan.manifest);
  }

  /** The guest is gone: its pages and manifest go where arriving guests look for them. Nobody waits for it. */
  keep(): void {
    void this.#leaving?.keep();
  }

  /** What {@link leave} has prepared is not needed. */
  drop(): void {
    this.#leaving?.drop();
  }

  /** Ends whatever is under way, and lets go of the tags. Idempotent. */
  close(): void {
    this.#scan?.close();
  }

  /** The same, for one that is over: it gives their memory back. */
  shed(): void {
    this.close();
    this.#scan = undefined;
  }
}

/** What was asked for is not wanted any more. */
export function givenUp(): PagetideError {
  return new PagetideError('PT_CANCELLED', 'the migration was given up meanwhile');
}
