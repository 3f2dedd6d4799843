/**
 * What guests that were here leave behind: their manifests, a file each, below a folder a domain.
 *
 *    <state>/history/<domain>/<guest>.manifest
 *
 * A guest that comes back is asked only for the chunks that changed, and its pages are in the cache as far as there was room.
 * The guests that left longest ago are forgotten first. Files are written whole or not at all, and checked when they are
 * read (manifest-file.ts): one that is damaged is removed.
 */
import { mkdirSync, readdirSync, rmSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { asPagetideError, type PagetideError } from '../errors.ts';
import type { Manifest } from './manifest.ts';
import { readManifest, writeManifest } from './manifest-file.ts';

const END = '.manifest';

export interface Past {
  domain: string;
  guest: string;
  path: string;
  /** When it left, milliseconds since the epoch; and bytes of the file. */
  at: number;
  bytes: number;
}

export interface HistoryLimits {
  /** Guests. 0: nothing is kept. */
  guests: number;
  /** Of all files. */
  bytes: number;
}

export class History {
  readonly #folder: string;
  readonly #limits: HistoryLimits;

  constructor(folder: string, limits: HistoryLimits) {
    this.#folder = folder;
    this.#limits = limits;
  }

  get keeps(): boolean {
    return this.#limits.guests > 0;
  }

  /**
   * Keeps the manifest of a guest that left. Blocks: for a worker thread.
   * @throws PagetideError `PT_IO`, `PT_NO_SPACE`; what was there of that guest is there still
   */
  keep(domain: string, guest: string, manifest: Manifest): void {
    if (!this.keeps) return;
    mkdirSync(join(this.#folder, domain), { recursive: true, mode: 0o700 });
    writeManifest(join(this.#folder, domain, `${guest}${END}`), manifest, domain);
    const past = this.list();
    let bytes = 0;
    past.forEach((one, index) => {
      bytes += one.bytes;
      if (index >= this.#limits.guests || (index > 0 && bytes > this.#limits.bytes)) rmSync(one.path, { force: true });
    });
  }

  /** The last to leave comes first. */
  list(): Past[] {
    const found = names(this.#folder).flatMap((domain) =>
      names(join(this.#folder, domain)).flatMap((file): Past[] => {
        if (!file.endsWith(END)) return [];
        const path = join(this.#folder, domain, file);
        const info = statSync(path, { throwIfNoEntry: false });
        if (info === undefined) return [];
        return [{ domain, guest: file.slice(0, -END.length), path, at: info.mtimeMs, bytes: info.size }];
      }),
    );
    return found.sort((a, b) => b.at - a.at);
  }

  /** Undefined where it can't be read: told to `refused`, and removed where it is damaged. */
  read(past: Past, refused: (error: PagetideError) => void): Manifest | undefined {
    try {
      return readManifest(past.path, past.domain);
    } catch (thrown) {
      const error = asPagetideError(thrown);
      if (error.code === 'PT_MANIFEST_INVALID') rmSync(past.path, { force: true });
      refused(error);
      return undefined;
    }
  }

  /** Forgets the guests of a domain. */
  removeDomain(domain: string): void {
    rmSync(join(this.#folder, domain), { recursive: true, force: true });
  }
}

function names(folder: string): string[] {
  try {
    return readdirSync(folder);
  } catch {
    return []; // nothing was kept yet
  }
}
