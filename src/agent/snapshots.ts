/**
 * Snapshots that this host shares: memory files of guests that were saved, whose pages other hosts of a domain get by tag, and
 * restore them without the file (`pagetide pager --from`).
 *
 *   share(file) ─► tagged, or its manifest read ─► listed by tag in an index of their own ─► written down
 *                                                        │
 *        another host asks by tag ─► the page is read from the file, compared with its tag, sent; or it is not here
 *
 * So a file that is written, cut off or removed meanwhile gives fewer pages, never wrong ones. The files are on disks, most
 * likely: they have an index of their own, which nobody asks on the way of a fault of a guest of this host.
 *
 * `<state>/snapshots/snapshots.json` says what is shared, and a manifest beside it spares a restarted agent the tagging.
 */
import { createHash } from 'node:crypto';
import { readFile } from 'node:fs/promises';
import { isAbsolute, join } from 'node:path';
import type { Logger } from 'pino';
import { z } from 'zod';
import { openFolder, removeFile, writeWhole } from '../domains/files.ts';
import { asPagetideError, PagetideError } from '../errors.ts';
import type { Domain } from '../migration/domains.ts';
import type { SharedPages } from '../migration/shared-pages.ts';
import { memoryFileOf, openMemory, scanMemory } from '../pages/file-manifest.ts';
import { MARK_PREFIX } from '../pages/key-file.ts';
import { readManifest, writeManifest } from '../pages/manifest-file.ts';
import type { Manifest } from '../pages/manifest.ts';
import { ResidentIndex, type ResidentFile } from '../pages/resident.ts';
import { isZeroTag } from '../pages/tag-runs.ts';
import type { TagPool } from '../pages/tag-pool.ts';
import { TAG_PAGE } from '../pages/tags.ts';
import type { SnapshotInfo, SnapshotRequest } from './service.ts';

const RECORDS = 'snapshots.json';
const MANIFEST = '.manifest';
/** Frames that are listed in one go: about a millisecond. */
const SLICE = 8192;
/** Most snapshots of an agent. */
const MOST = 1000;

const records = z.array(z.strictObject({ file: z.string().min(1), domain: z.string().min(1) })).max(MOST);

export interface SnapshotsParts {
  /** Where they are written down. */
  folder: string;
  shared: Pick<SharedPages, 'domain' | 'onRemoved'>;
  tagPool: TagPool;
  log: Logger;
}

interface Shared {
  info: SnapshotInfo;
  listed: ResidentFile;
}

export class Snapshots {
  readonly #parts: SnapshotsParts;
  /** What is written down, by file; undefined until it was read. What can't be shared just now is there too. */
  #written: Map<string, string> | undefined;
  /** By file. */
  readonly #shared = new Map<string, Shared>();
  #index: ResidentIndex | undefined;
  readonly #ending = new AbortController();
  /** Changes, one after the other; never rejects. */
  #work: Promise<void> = Promise.resolve();

  constructor(parts: SnapshotsParts) {
    this.#parts = parts;
    parts.shared.onRemoved(({ name, id }) => {
      this.#index?.removeDomain(id);
      // one that can't be written down now finds no domain at the next start
      void this.#after(() => this.#forget((_file, domain) => domain !== name)).catch(() => undefined);
    });
  }

  /** Lookups of a domain's pages in shared snapshots, for the page server; 0 where there is no room for an index. */
  lookups(domain: number): number {
    try {
      return this.#need().lookups(domain);
    } catch (error) {
      this.#parts.log.warn({ code: asPagetideError(error).code }, 'snapshots can’t be shared on this host');
      return 0;
    }
  }

  list(): SnapshotInfo[] {
    return [...this.#shared.values()].map(({ info }) => info).sort((a, b) => a.file.localeCompare(b.file));
  }

  /**
   * Shares a memory file, or shares it anew after it was written. Resolves when every page is listed.
   * @throws PagetideError `PT_BAD_ARGUMENT`, `PT_DOMAIN_UNKNOWN`, `PT_MEMORY_FILE`, `PT_MANIFEST_INVALID`, `PT_NO_SPACE`,
   * `PT_IO`, `PT_CANCELLED`; what was shared of that file still is then
   */
  share(request: SnapshotRequest): Promise<SnapshotInfo> {
    const { file, domain: name, manifest } = request;
    for (const path of [file, manifest])
      if (path !== undefined && !isAbsolute(path))
        throw new PagetideError('PT_BAD_ARGUMENT', `the path of the file is not absolute: ${path}`);
    return this.#after(async () => {
      const written = await this.#read();
      if (!written.has(file) && written.size >= MOST)
        throw new PagetideError('PT_BAD_ARGUMENT', `an agent shares ${MOST} snapshots at most`);
      const domain = this.#parts.shared.domain(name);
      if (domain === undefined)
        throw new PagetideError('PT_DOMAIN_UNKNOWN', `there is no domain '${name}' on this host`);
      const made = await this.#list(file, domain, manifest);
      try {
        writeManifest(this.#manifestOf(file), made.manifest, markOf(domain));
        await this.#write(new Map([...(await this.#read()), [file, name]]));
      } catch (error) {
        made.shared.listed.remove();
        throw error;
      }
      this.#shared.get(file)?.listed.remove();
      this.#shared.set(file, made.shared);
      this.#parts.log.info({ ...made.shared.info }, 'shares a snapshot');
      return made.shared.info;
    });
  }

  /** @throws PagetideError `PT_BAD_ARGUMENT` where it isn't shared, `PT_NO_SPACE`, `PT_IO` */
  unshare(file: string): Promise<void> {
    return this.#after(async () => {
      if (!(await this.#read()).has(file)) throw new PagetideError('PT_BAD_ARGUMENT', `${file} is not shared here`);
      await this.#forget((one) => one !== file);
      this.#parts.log.info({ file }, 'shares a snapshot no more');
    });
  }

  /** Shares again what an earlier agent shared. Never rejects: what can't be shared now stays written down, and is told. */
  recover(): Promise<void> {
    return this.#after(async () => {
      const { folder, log } = this.#parts;
      for (const [file, name] of await this.#read()) {
        if (this.#ending.signal.aborted) return;
        const domain = this.#parts.shared.domain(name);
        if (domain === undefined) continue;
        try {
          const { shared } = await this.#list(file, domain, this.#manifestOf(file)).catch((error: unknown) => {
            if (asPagetideError(error).code === 'PT_CANCELLED') throw error;
            return this.#list(file, domain, undefined); // the manifest is of another file by now, or gone
          });
          this.#shared.set(file, shared);
        } catch (error) {
          const { code, message } = asPagetideError(error);
          log.warn({ file, code }, `a snapshot is not shared: ${message}`);
        }
      }
      if (this.#shared.size > 0) log.info({ snapshots: this.#shared.size, folder }, 'shares snapshots again');
    }).catch((error: unknown) => {
      const { code, message } = asPagetideError(error);
      if (code !== 'PT_CANCELLED') this.#parts.log.error({ code }, `snapshots are not shared: ${message}`);
    });
  }

  /** Ends what is under way. When nobody looks up any more. */
  async close(): Promise<void> {
    this.#ending.abort();
    await this.#work;
    this.#index?.close();
  }

  #need(): ResidentIndex {
    return (this.#index ??= ResidentIndex.open());
  }

  async #list(
    file: string,
    domain: Domain,
    manifestPath: string | undefined,
  ): Promise<{ shared: Shared; manifest: Manifest }> {
    const memory = openMemory([memoryFileOf(file)]);
    const key = domain.openKey();
    let listed: ResidentFile | undefined;
    try {
      const { signal } = this.#ending;
      const { fd, end } = memory.segments[0]!;
      const frames = end / TAG_PAGE;
      const manifest =
        manifestPath === undefined
          ? await scanMemory({ memory, key, signal, pool: this.#parts.tagPool })
          : readManifest(manifestPath, markOf(domain));
      if (manifest.frames !== frames)
        throw new PagetideError(
          'PT_MANIFEST_INVALID',
          `${manifestPath ?? ''} names ${manifest.frames} pages, ${file} has ${frames}`,
        );
      listed = this.#need().add({ domain: domain.id, key, fd, frames });
      for (let first = 0; first < frames; first += SLICE) {
        listed.set(first, Math.min(SLICE, frames - first), manifest.tags);
        await new Promise((resolve) => setImmediate(resolve));
        if (signal.aborted) throw new PagetideError('PT_CANCELLED', 'the agent ends');
      }
      let zero = 0;
      for (let frame = 0; frame < frames; frame++) if (isZeroTag(manifest.tags, frame)) zero++;
      return { shared: { info: { file, domain: domain.name, frames, zero }, listed }, manifest };
    } catch (error) {
      listed?.remove();
      throw error;
    } finally {
      // the index has its own hold on both
      key.close();
      memory.release();
    }
  }

  /** Keeps those that `stay`, durably. */
  async #forget(stay: (file: string, domain: string) => boolean): Promise<void> {
    const written = await this.#read();
    const kept = new Map([...written].filter(([file, domain]) => stay(file, domain)));
    if (kept.size === written.size) return;
    await this.#write(kept);
    for (const file of written.keys()) {
      if (kept.has(file)) continue;
      this.#shared.get(file)?.listed.remove();
      this.#shared.delete(file);
      await removeFile(this.#manifestOf(file));
    }
  }

  #manifestOf(file: string): string {
    return join(this.#parts.folder, createHash('sha256').update(file).digest('hex').slice(0, 32) + MANIFEST);
  }

  async #write(written: Map<string, string>): Promise<void> {
    const kept = [...written].map(([file, domain]) => ({ file, domain }));
    await writeWhole(join(this.#parts.folder, RECORDS), `${JSON.stringify(kept, undefined, 1)}\n`);
    this.#written = written;
  }

  async #read(): Promise<ReadonlyMap<string, string>> {
    if (this.#written !== undefined) return this.#written;
    const path = join(this.#parts.folder, RECORDS);
    const there = (await openFolder(this.#parts.folder)).includes(RECORDS);
    try {
      const read = there ? records.parse(JSON.parse(await readFile(path, 'utf8'))) : [];
      return (this.#written = new Map(read.map(({ file, domain }) => [file, domain])));
    } catch (cause) {
      throw new PagetideError('PT_IO', `${path} is damaged`, {
        cause,
        hint: 'Remove it, and share the snapshots anew.',
      });
    }
  }

  #after<T>(work: () => Promise<T>): Promise<T> {
    const result = this.#work.then(() => {
      if (this.#ending.signal.aborted) throw new PagetideError('PT_CANCELLED', 'the agent ends');
      return work();
    });
    this.#work = result.then(
      () => undefined,
      () => undefined,
    );
    return result;
  }
}

function markOf(domain: Domain): string {
  return MARK_PREFIX + domain.mark;
}
