/**
 * A guest's own memory as a page source: a frame whose page another frame has already gets it from there.
 *
 * After a round of copying, or once the guest runs, frames come to have tags that others have had all along. The other frame's page is
 * read with `pread`, and only where the page table calls it present: reading a hole through a mapping would create a page. The guest
 * may be writing it: what was read is compared with the tag, and the copy that was compared is what is installed.
 */
import { closeSync, openSync, readSync } from 'node:fs';
import { PagetideError } from '../errors.ts';
import { FrameState, Origin, Outcome, OutcomeField, type FaultSession } from './native.ts';

/** A file of the guest's memory. */
export interface OwnFile {
  path: string;
  /** Bytes. */
  size: number;
  /** Where it begins in guest memory space, bytes. */
  offset: number;
}

/** What it needs of {@link NamedPages}. */
interface Names {
  next(frame: number): number;
  verify(frame: number, page: Uint8Array, offset: number): boolean;
}

/** Frames of a ring that are looked at: a ring may have any number, of which none need be here. */
const MOST_STEPS = 16;
/** Pages that are read and compared for one frame, about 4 µs each. */
const MOST_READS = 3;

export class OwnPages {
  readonly #files: (OwnFile & { fd: number })[] = [];
  readonly #names: Names;
  readonly #page: Uint8Array;

  /** @throws PagetideError `PT_MEMORY_FILE` */
  constructor(files: readonly OwnFile[], pageSize: number, names: Names) {
    this.#names = names;
    this.#page = new Uint8Array(pageSize);
    try {
      for (const file of files) this.#files.push({ ...file, fd: openSync(file.path, 'r') });
    } catch (cause) {
      this.close();
      throw new PagetideError('PT_MEMORY_FILE', "cannot read the guest's own memory file", { cause });
    }
  }

  /** Installs the page of `frame` from another frame: as one install call, `Absent` where none is found. */
  install(session: FaultSession, frame: number, outcome: Int32Array): Outcome {
    const names = this.#names;
    let reads = 0;
    let steps = 0;
    for (let other = names.next(frame); other !== frame && steps++ < MOST_STEPS; other = names.next(other)) {
      if (session.table[other] !== FrameState.Present) continue;
      if (this.#read(other * session.pageSize) && names.verify(frame, this.#page, 0))
        return session.install(frame, 1, this.#page, 0, outcome, Origin.Duplicate);
      if (++reads === MOST_READS) break;
    }
    outcome[OutcomeField.Installed] = 0;
    outcome[OutcomeField.Skipped] = 0;
    outcome[OutcomeField.Next] = frame;
    return Outcome.Absent;
  }

  close(): void {
    for (const { fd } of this.#files.splice(0)) closeSync(fd);
  }

  #read(at: number): boolean {
    for (const { fd, offset, size } of this.#files) {
      if (at < offset || at >= offset + size) continue;
      try {
        return readSync(fd, this.#page, 0, this.#page.length, at - offset) === this.#page.length;
      } catch {
        return false; // it comes from elsewhere
      }
    }
    return false;
  }
}
