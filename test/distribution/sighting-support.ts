/** Guests as sightings see them, and a directory behind a network that loses messages. */
import { pino } from 'pino';
import type { Directory, HostInfo, Report, ReportAnswer } from '../../src/directory/directory.ts';
import type { Sightings } from '../../src/distribution/sightings.ts';
import { PagetideError } from '../../src/errors.ts';
import { Manifest } from '../../src/pages/manifest.ts';
import { TAG_BYTES } from '../../src/pages/tags.ts';
import type { Fate } from '../directory/model.ts';
import { tagsOf } from '../directory/model.ts';

export const silent = pino({ level: 'silent' });

/** A guest's memory as its watch knows it. Pages are numbers; undefined is the zero page. */
export class SeenGuest {
  readonly pages: (number | undefined)[];
  manifest: Manifest;
  changed: Uint8Array;

  constructor(frames: number) {
    this.pages = Array.from({ length: frames }, () => undefined);
    this.manifest = new Manifest(frames);
    this.changed = new Uint8Array(frames);
  }

  write(frame: number, page: number | undefined): void {
    this.pages[frame] = page;
  }

  /** Tags what was written. */
  scan(): void {
    this.pages.forEach((page, frame) => {
      const at = frame * TAG_BYTES;
      const tag = page === undefined ? new Uint8Array(TAG_BYTES) : tagsOf(page);
      if (Buffer.compare(tag, this.manifest.tags.subarray(at, at + TAG_BYTES)) === 0) return;
      this.manifest.tags.set(tag, at);
      this.changed[frame] = 1;
    });
  }

  /** Another watch of it begins. */
  anew(): void {
    const { frames, tags } = this.manifest;
    this.manifest = new Manifest(frames);
    this.manifest.tags.set(tags);
    this.changed = new Uint8Array(frames);
  }

  holds(page: number): boolean {
    return this.pages.includes(page);
  }
}

/** A whole pass. Returns in how many pieces. */
export function pass(sightings: Sightings, name: string, guest: SeenGuest, domain = 'shop'): number {
  let pieces = 1;
  guest.scan();
  const work = sightings.pass(name, domain, guest.manifest, guest.changed);
  while (work.next().done !== true) pieces++;
  return pieces;
}

const unreachable = (): never => {
  throw new PagetideError('PT_PEER_UNREACHABLE', 'the network lost it');
};

/** The part of a directory that reporters use. */
export class LossyDirectory {
  /** Of the next call, and those after it. */
  fate: Fate = 'arrives';
  readonly reports: Report[] = [];
  readonly #inner: Directory;

  constructor(inner: Directory) {
    this.#inner = inner;
  }

  report(report: Report): Promise<ReportAnswer> {
    this.reports.push(report);
    return this.#send(() => this.#inner.report(report));
  }

  heartbeat(host: string, epoch: number): Promise<ReportAnswer> {
    return this.#send(() => this.#inner.heartbeat(host, epoch));
  }

  hosts(): Promise<HostInfo[]> {
    return this.#send(() => this.#inner.hosts());
  }

  get asDirectory(): Directory {
    return this as unknown as Directory;
  }

  async #send<T>(call: () => Promise<T>): Promise<T> {
    if (this.fate === 'request lost') unreachable();
    let answer = await call();
    if (this.fate === 'twice') answer = await call();
    if (this.fate === 'answer lost') unreachable();
    return answer;
  }
}

/** Epochs of an agent, kept in memory. */
export class MemoryEpochs {
  last: number;

  constructor(last = 0) {
    this.last = last;
  }

  next(above = 0): Promise<number> {
    this.last = Math.max(this.last, above) + 1;
    return Promise.resolve(this.last);
  }
}
