/**
 * Tells the directory what the guests of one domain hold here: a stream of reports, one at a time, with an epoch and a sequence of its own.
 *
 *                    report that begins: applied                nothing to tell: heartbeat, at a third of the lease
 *    beginning ──────────────────────────────► telling ◄─────────────────────────────────────────────────────────╮
 *      ▲  ▲  ▲                                  │ │ │ ╰─ differences, answers to what is wanted ─────────────────╯
 *      │  │  ╰── answered with anew ────────────╯ │ │
 *      │  ╰───── refused (PT_BAD_ARGUMENT), later ╯ │
 *      │                                            │ PT_SUPERSEDED, also while beginning
 *      │  the namesake's lease has run out:         ▼
 *      ╰─ a later epoch ─────────────────────── superseded
 *
 *    away: any of them, while the directory isn't reached. What is outstanding is sent again, unchanged: it may have been applied
 *
 * *Repeats.* A report is made once, and kept until it is answered: one, of 65,536 tags at most. What it tells is told from when it is made, whatever
 * becomes of it: either it is applied some time, or the directory asks for all anew, and then nothing is told. So no difference is lost or told twice,
 * and while the directory is away nothing grows but what guests hold: the rest is in the states of ./tag-table.ts.
 *
 * *Namesakes.* Two agents of one name must not take the name from each other for ever. The one that started later has it. The other one says so, and looks
 * now and then whether the name is free: whether no lease of that name runs. Only then it takes a later epoch. So there is a change of hands when the holder is gone,
 * and at no other time. An agent that lost its epochs, whose clock was set back, is superseded by its own former self: its lease runs
 * out, and it begins; by larger and larger steps of the epoch where the directory remembers a greater one.
 *
 * *Storms.* After a start, and when it is asked to begin anew, it waits for a random part of its interval. Batches follow each other at a rate in bytes a
 * second. Retries double their wait, half of which is random.
 */
import { setTimeout as delay } from 'node:timers/promises';
import type { Logger } from 'pino';
import {
  MOST_REPORT_TAGS,
  MOST_WANTED,
  type Directory,
  type Held,
  type Report,
  type ReportAnswer,
} from '../directory/directory.ts';
import { LEAST_REPORT, type TagPacing } from '../directory/paced-lists.ts';
import { asPagetideError, type PagetideError } from '../errors.ts';
import { TAG_BYTES } from '../pages/tags.ts';
import type { ReportSource } from './sightings.ts';

export interface ReporterSettings {
  /** Between two reports where all is told, milliseconds; a fifth more or less, by chance. */
  intervalMs: number;
  /** The directory's lease, milliseconds: what was told is dropped when nothing was heard for so long. */
  leaseMs: number;
  /** Bytes a second, on average over two reports, while there is more to tell. */
  bytesPerSecond: number;
  /** Between two looks whether the name is free, milliseconds. */
  supersededMs: number;
}

export const REPORTER_SETTINGS: Readonly<ReporterSettings> = {
  intervalMs: 10_000,
  leaseMs: 60_000,
  bytesPerSecond: 2 ** 20,
  supersededMs: 60_000,
};

export interface ReporterParts {
  directory: Directory;
  /** The domain's id, as the directory knows it. */
  domain: string;
  /** This host's name there. */
  host: string;
  source: ReportSource;
  /** See {@link Epochs.next}. */
  epochs: { next(above?: number): Promise<number> };
  log: Logger;
  /** Of this and all else that this host tells of tags; without one a report is as large as may be. */
  pace?: TagPacing | undefined;
  settings?: Partial<ReporterSettings>;
  /** Milliseconds, never backwards; default `performance.now`. */
  clock?: () => number;
  /** 0 to 1; default `Math.random`. */
  random?: () => number;
}

export interface ReporterState {
  /** `telling`: what was told before is known there, and there are differences. `superseded`: another agent has this one's name. */
  state: 'beginning' | 'telling' | 'told' | 'away' | 'superseded' | 'closed';
  /** Undefined: none was taken yet. */
  epoch: number | undefined;
  /** Milliseconds since the directory last answered; undefined: never. */
  lastReportMs: number | undefined;
  /** Tags, a guest each, in the reported state; and differences to what is held. */
  reportedTags: number;
  pendingTags: number;
  /** Of reports and heartbeats, also those sent again; calculated: see {@link reportBytes}. */
  bytesSent: number;
  /** Reports that the directory has taken. */
  reports: number;
  /** The last failure since the directory last answered. */
  error: string | undefined;
}

const FIRST_RETRY_MS = 1_000;
const MOST_RETRY_MS = 300_000;
/** Between two reports of a stream, at least. */
const LEAST_GAP_MS = 50;
/** Of a report: host, epoch, sequence, framing. And of a guest's change or a domain's answers. */
const HEAD_BYTES = 64;
const PART_BYTES = 48;

export class Reporter {
  readonly #parts: ReporterParts;
  readonly #settings: ReporterSettings;
  readonly #clock: () => number;
  readonly #random: () => number;
  readonly #stop = new AbortController();
  #running: Promise<void> = Promise.resolve();
  #epoch: number | undefined;
  #sequence = 0;
  #mustBegin = true;
  #outstanding: Report | undefined;
  #wanted: Uint8Array = new Uint8Array(0);
  #superseded = false;
  /** Later epochs that were taken in vain, in a row. */
  #leaps = 0;
  /** Tags that the directory lets a report have; undefined: it was not heard yet. */
  #told: number | undefined;
  /** Tags that the report under way might have had. */
  #room = MOST_REPORT_TAGS;
  /** Failures in a row, and the last. */
  #failures = 0;
  #error: PagetideError | undefined;
  #answeredAt: number | undefined;
  #bytesSent = 0;
  #reports = 0;

  constructor(parts: ReporterParts) {
    this.#parts = parts;
    this.#settings = { ...REPORTER_SETTINGS, ...parts.settings };
    this.#clock = parts.clock ?? (() => performance.now());
    this.#random = parts.random ?? Math.random;
  }

  /** Begins to report. Once. */
  start(): void {
    this.#running = this.#run();
  }

  /** What was told stays until the lease runs out: an agent that starts again begins anew. Idempotent. */
  async close(): Promise<void> {
    if (this.#stopped) return;
    this.#stop.abort();
    await this.#running;
    this.#outstanding = undefined;
    this.#parts.source.untell();
  }

  state(): ReporterState {
    const { told, pending } = this.#parts.source.stats();
    let state: ReporterState['state'] = pending > 0 || this.#outstanding !== undefined ? 'telling' : 'told';
    if (this.#mustBegin) state = 'beginning';
    if (this.#failures > 0) state = 'away';
    if (this.#superseded) state = 'superseded';
    if (this.#stopped) state = 'closed';
    return {
      state,
      epoch: this.#epoch,
      lastReportMs: this.#answeredAt === undefined ? undefined : this.#clock() - this.#answeredAt,
      reportedTags: told,
      pendingTags: pending,
      bytesSent: this.#bytesSent,
      reports: this.#reports,
      error: this.#error?.message,
    };
  }

  /**
   * One exchange with the directory, where one is due; never rejects. {@link start} calls it again and again.
   * @returns milliseconds until the next
   */
  async step(): Promise<number> {
    try {
      if (this.#superseded && !(await this.#isFree())) return this.#about(this.#settings.supersededMs);
      this.#epoch ??= await this.#parts.epochs.next();
      this.#outstanding ??= this.#next();
      const report = this.#outstanding;
      if (report === undefined) {
        const leftMs = this.#answeredAt! + this.#settings.leaseMs / 3 - this.#clock();
        if (leftMs > 0) return Math.min(leftMs, this.#about(this.#settings.intervalMs));
      }
      const bytes = reportBytes(report);
      const { directory, host, pace } = this.#parts;
      // a heartbeat is less than its headers, and must not be late
      if (report !== undefined && pace !== undefined)
        await this.#orStopped(pace.pass(bytes, { signal: this.#stop.signal, report: true }));
      if (this.#stopped) return 0;
      this.#bytesSent += bytes;
      const answering =
        report === undefined ? directory.heartbeat(host, this.#epoch, this.#sequence) : directory.report(report);
      const answer = await this.#orStopped(answering);
      return answer === undefined ? 0 : this.#heard(answer, bytes);
    } catch (error) {
      return this.#failed(asPagetideError(error));
    }
  }

  async #run(): Promise<void> {
    let ms = this.#random() * this.#settings.intervalMs;
    for (;;) {
      await delay(ms, undefined, { signal: this.#stop.signal }).catch(() => undefined);
      if (this.#stopped) return;
      ms = await this.step();
    }
  }

  get #stopped(): boolean {
    return this.#stop.signal.aborted;
  }

  /** Tags in one report. */
  get #most(): number {
    const { pace } = this.#parts;
    if (pace === undefined) return MOST_REPORT_TAGS;
    // all hosts may begin at once
    return Math.min(MOST_REPORT_TAGS, pace.most, this.#told ?? LEAST_REPORT);
  }

  /** The next report; undefined: there is nothing to tell. */
  #next(): Report | undefined {
    const { source, domain, host } = this.#parts;
    const begins = this.#mustBegin;
    if (begins) source.untell();
    const tags = this.#wanted;
    this.#room = this.#most;
    const differences = source.take(Math.max(0, this.#room - tags.length / TAG_BYTES));
    if (!begins && differences.length + tags.length === 0) return undefined;
    // of the state after this report: not before its differences were taken
    const held: Held[] = tags.length === 0 ? [] : [{ domain, tags, guests: source.holding(tags) }];
    this.#mustBegin = false;
    this.#wanted = new Uint8Array(0);
    const changes = differences.map((difference) => ({ domain, ...difference }));
    const report: Report = { host, epoch: this.#epoch!, sequence: ++this.#sequence, changes, held };
    return begins ? { ...report, begins } : report;
  }

  #heard({ state, wanted, most }: ReportAnswer, bytes: number): number {
    const { domain, log } = this.#parts;
    const { intervalMs, leaseMs, bytesPerSecond } = this.#settings;
    if (this.#failures > 0) log.info({ domain }, 'the directory is reached again');
    this.#failures = this.#leaps = 0;
    this.#error = undefined;
    this.#answeredAt = this.#clock();
    this.#told = most ?? MOST_REPORT_TAGS;
    const taken = this.#outstanding !== undefined;
    this.#outstanding = undefined;
    if (taken && state === 'applied') this.#reports++;
    if (state === 'anew') {
      this.#beginAnew();
      return this.#random() * intervalMs;
    }
    const ours = wanted.find((one) => one.domain === domain)?.tags ?? new Uint8Array(0);
    // of the rest it asks again
    this.#wanted = ours.subarray(0, Math.min(MOST_WANTED, Math.floor(this.#most / 2)) * TAG_BYTES);
    const gapMs = Math.max(LEAST_GAP_MS, (bytes / bytesPerSecond) * 1000);
    // there may be more than was told, and answers are awaited
    if (bytes > this.#room * TAG_BYTES || this.#wanted.length > 0) return gapMs;
    return Math.max(gapMs, Math.min(this.#about(intervalMs), leaseMs / 3));
  }

  #failed(error: PagetideError): number {
    const { domain, host, log } = this.#parts;
    const { code, message } = error;
    this.#error = error;
    if (code === 'PT_SUPERSEDED') {
      if (!this.#superseded)
        log.warn(
          { domain, host, code },
          `what guests hold here is not reported, another agent has this name: ${message}`,
        );
      this.#superseded = true;
      this.#beginAnew();
      return this.#about(this.#settings.intervalMs);
    }
    // nothing has changed there; and what is refused once is refused again
    if (code === 'PT_BAD_ARGUMENT') this.#beginAnew();
    if (this.#failures++ === 0)
      log.warn({ domain, code }, `the directory does not answer, tried again later: ${message}`);
    const ms = Math.min(MOST_RETRY_MS, FIRST_RETRY_MS * 2 ** Math.min(this.#failures - 1, 30));
    return ms * (0.5 + 0.5 * this.#random());
  }

  #beginAnew(): void {
    this.#outstanding = undefined;
    this.#wanted = new Uint8Array(0);
    this.#mustBegin = true;
  }

  /** Whether the name is, and with it a later epoch was taken. */
  async #isFree(): Promise<boolean> {
    const { directory, host, epochs, log, domain } = this.#parts;
    const hosts = await this.#orStopped(directory.hosts());
    if (hosts === undefined) return false;
    const holder = hosts.find((one) => one.host === host);
    const own = this.#epoch ?? 0;
    if (holder !== undefined && holder.epoch > own) return false;
    // the directory remembers a greater one, that nobody tells
    const leap = Math.min(2 ** 50, this.#settings.supersededMs * 2 ** this.#leaps++);
    this.#epoch = await epochs.next(own + leap);
    this.#sequence = 0;
    this.#superseded = false;
    log.info({ domain, host, epoch: this.#epoch }, 'no other agent has this name any more, reporting begins again');
    return true;
  }

  /** Undefined: it was closed before; what is answered then doesn't matter. */
  async #orStopped<T>(answering: Promise<T>): Promise<T | undefined> {
    const { signal } = this.#stop;
    let stopped: (() => void) | undefined;
    const stopping = new Promise<undefined>((resolve) => {
      stopped = () => resolve(undefined);
      signal.addEventListener('abort', stopped, { once: true });
    });
    try {
      return await Promise.race([answering, stopping]);
    } finally {
      signal.removeEventListener('abort', stopped!);
    }
  }

  /** A fifth more or less. */
  #about(ms: number): number {
    return ms * (0.8 + 0.4 * this.#random());
  }
}

/** About how many bytes a report, or without one a heartbeat, takes on the wire. */
export function reportBytes(report?: Report): number {
  let bytes = HEAD_BYTES;
  for (const { added, removed } of report?.changes ?? []) bytes += PART_BYTES + added.length + removed.length;
  for (const { tags, guests } of report?.held ?? []) bytes += PART_BYTES + tags.length + guests.byteLength;
  return bytes;
}
