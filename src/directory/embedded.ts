/**
 * The directory inside an agent: all in memory, in the thread that calls it. It answers at once, so calls don't overlap, and
 * a report is applied whole or not at all.
 *
 *                  report that begins                     lease runs out, or is taken out
 *   not known ───────────────────────────► known ─────────────────────────────────────────► lapsed: epoch and sequence only
 *                                           │  ▲                                               │
 *                                           ╰──╯ the next report                               │ report that begins, and is later
 *                                           ▲                                                  │
 *                                           ╰──────────────────────────────────────────────────╯
 *
 * Time is a monotonic clock's, so a wall clock that jumps doesn't matter. It is looked at when something is asked or told: there is no timer. Where the
 * thread stood still for longer than a lease, every host's has run out: they begin anew.
 *
 * A snapshot (`save`) is the whole of it at one moment, but for leases and hints. What goes on from it knows each host up to a sequence:
 *
 *   the host has told no more since    its next report is the next one; nothing was lost
 *   it has told more                   its next report is behind a gap, its heartbeat names a later sequence: anew
 *
 * So nothing is wrong for longer than until a host is next heard of, and every host gets a whole lease for that.
 */
import { PagetideError } from '../errors.ts';
import type { ByteReader, ByteWriter } from './bytes.ts';
import {
  checkNumber,
  checkReport,
  checkTags,
  MOST_QUERY_TAGS,
  MOST_WANTED,
  type Directory,
  type Holders,
  type HostInfo,
  type LackingPage,
  type Report,
  type ReportAnswer,
  type Wanted,
} from './directory.ts';
import { DirectoryDomain } from './domain.ts';
import type { Hint, HintSubject } from './hint.ts';
import { HintBook } from './hint-book.ts';
import { checkHost, checkName } from './names.ts';

/** Every tag that has no record is looked up in the filters of all hosts; so their rates add up, too: to 64/1024 at most. */
export const MOST_HOSTS = 64;
export const MOST_DOMAINS = 1024;
/** Hosts that are gone and whose epochs are remembered: the last ones. */
const MOST_LAPSED = 1024;

export interface EmbeddedOptions {
  /** Milliseconds, without a report or a heartbeat, after which a host is taken out. */
  leaseMs: number;
  /** Milliseconds, never backwards; default `performance.now`. */
  clock?: () => number;
}

interface Host {
  /** Of `#names`; a table counts by it. */
  number: number;
  epoch: number;
  /** Of the last report applied. */
  sequence: number;
  leaseEnd: number;
  /** Something that it told is of no use any more: its next report must begin. */
  anew: boolean;
  /** Known from a snapshot alone: it may have told more than that. */
  unsure: boolean;
  /** Domains that were removed since it began: what it holds there isn't known. */
  readonly lost: Set<string>;
}

export interface EmbeddedStats {
  hosts: number;
  domains: number;
  records: number;
  /** Of memory. */
  recordBytes: number;
  filterBytes: number;
}

export class EmbeddedDirectory implements Directory {
  readonly #leaseMs: number;
  readonly #clock: () => number;
  readonly #hosts = new Map<string, Host>();
  /** The oldest first. */
  readonly #lapsed = new Map<string, { epoch: number; sequence: number }>();
  /** By number; '' is free. */
  readonly #names: string[] = [];
  readonly #domains = new Map<string, DirectoryDomain>();
  readonly #hints: HintBook;
  /** Grows with each change of what {@link save} saves. */
  changes = 0;

  /** @throws PagetideError `PT_BAD_ARGUMENT` */
  constructor({ leaseMs, clock = () => performance.now() }: EmbeddedOptions) {
    checkNumber(leaseMs, 'a lease');
    this.#leaseMs = leaseMs;
    this.#clock = clock;
    this.#hints = new HintBook(clock);
  }

  /** Copies all but leases and hints. */
  save(to: ByteWriter): void {
    to.u32(this.#names.length);
    for (const name of this.#names) to.text(name);
    for (const name of this.#names) {
      const host = this.#hosts.get(name);
      if (host === undefined) continue;
      to.whole(host.epoch);
      to.whole(host.sequence);
      to.u8(host.anew ? 1 : 0);
      to.u32(host.lost.size);
      for (const domain of host.lost) to.text(domain);
    }
    to.u32(this.#lapsed.size);
    for (const [name, { epoch, sequence }] of this.#lapsed) {
      to.text(name);
      to.whole(epoch);
      to.whole(sequence);
    }
    to.u32(this.#domains.size);
    for (const [name, domain] of this.#domains) {
      to.text(name);
      domain.save(to);
    }
  }

  /** What was saved; every host has a whole lease. @throws PagetideError `PT_PROTOCOL`, `PT_BAD_ARGUMENT` */
  static load(from: ByteReader, options: EmbeddedOptions): EmbeddedDirectory {
    const directory = new EmbeddedDirectory(options);
    for (let left = from.u32(); left > 0; left--) directory.#names.push(from.text());
    directory.#names.forEach((name, number) => {
      if (name === '') return;
      const host = { number, epoch: from.whole(), sequence: from.whole(), anew: from.flag(), unsure: true };
      const lost = new Set<string>();
      for (let left = from.u32(); left > 0; left--) lost.add(from.text());
      const known = { ...host, leaseEnd: 0, lost };
      directory.#renew(known);
      directory.#hosts.set(name, known);
    });
    for (let left = from.u32(); left > 0; left--)
      directory.#lapsed.set(from.text(), { epoch: from.whole(), sequence: from.whole() });
    for (let left = from.u32(); left > 0; left--) directory.#domains.set(from.text(), DirectoryDomain.load(from));
    from.end();
    return directory;
  }

  async report(report: Report): Promise<ReportAnswer> {
    return settled(() => this.#report(report));
  }

  async heartbeat(name: string, epoch: number, sequence?: number): Promise<ReportAnswer> {
    return settled(() => {
      checkHost(name);
      checkNumber(epoch, 'an epoch');
      if (sequence !== undefined) checkNumber(sequence, 'a sequence');
      this.#expire();
      this.#checkEpoch(name, epoch);
      const host = this.#hosts.get(name);
      if (host?.epoch !== epoch) return ANEW();
      this.#renew(host);
      const forgotten = sequence === undefined ? host.unsure : sequence > host.sequence;
      return host.anew || forgotten ? ANEW() : this.#applied(host);
    });
  }

  async holders(domain: string, tags: Uint8Array): Promise<Holders> {
    return settled(() => {
      checkName(domain, 'domain');
      checkTags(tags, MOST_QUERY_TAGS);
      this.#expire();
      return (this.#domains.get(domain) ?? new DirectoryDomain()).holders(tags, this.#names);
    });
  }

  async lacking(
    domain: string,
    host: string,
    { limit, cursor = '0' }: { limit: number; cursor?: string },
  ): Promise<LackingPage> {
    return settled(() => {
      checkName(domain, 'domain');
      checkHost(host);
      checkNumber(limit, 'a limit');
      if (limit > MOST_QUERY_TAGS) throw new PagetideError('PT_BAD_ARGUMENT', `${limit} tags in a page`);
      if (!/^[0-9a-f]{1,8}$/.test(cursor))
        throw new PagetideError('PT_BAD_ARGUMENT', `${JSON.stringify(cursor)} is no cursor`);
      this.#expire();
      const number = this.#hosts.get(host)?.number ?? -1;
      const from = Number.parseInt(cursor, 16);
      return (this.#domains.get(domain) ?? new DirectoryDomain()).lacking(number, limit, from, this.#names);
    });
  }

  async hosts(): Promise<HostInfo[]> {
    return settled(() => {
      this.#expire();
      const now = this.#clock();
      return [...this.#hosts].map(([host, { number, epoch, leaseEnd }]) => {
        let guests = 0;
        for (const domain of this.#domains.values()) guests += domain.share(number)?.guests.size ?? 0;
        return { host, epoch, leaseMs: leaseEnd - now, guests };
      });
    });
  }

  async removeHost(name: string): Promise<void> {
    return settled(() => {
      checkHost(name);
      const host = this.#hosts.get(name);
      if (host !== undefined) this.#lapse(name, host);
    });
  }

  async removeDomain(name: string): Promise<void> {
    return settled(() => {
      checkName(name, 'domain');
      const domain = this.#domains.get(name);
      this.#hints.removeDomain(name);
      if (domain === undefined) return;
      this.changes++;
      for (const host of this.#hosts.values()) if (domain.share(host.number) !== undefined) host.lost.add(name);
      this.#domains.delete(name);
    });
  }

  async hints(domain: string): Promise<Hint[]> {
    return settled(() => {
      checkName(domain, 'domain');
      return this.#hints.list(domain);
    });
  }

  async hint(domain: string, hint: Hint): Promise<void> {
    return settled(() => {
      checkName(domain, 'domain');
      this.#hints.set(domain, hint);
    });
  }

  async withdraw(domain: string, subject: HintSubject): Promise<boolean> {
    return settled(() => {
      checkName(domain, 'domain');
      return this.#hints.withdraw(domain, subject);
    });
  }

  /** Takes these in the place of the domain's hints; those with no time left are left out. */
  restoreHints(domain: string, hints: readonly Hint[]): void {
    this.#hints.restore(domain, hints);
  }

  async empty(): Promise<void> {
    return settled(() => {
      this.changes++;
      this.#domains.clear();
      for (const [name, host] of this.#hosts) this.#lapse(name, host);
    });
  }

  async close(): Promise<void> {
    return settled(() => {
      this.#domains.clear();
      this.#hosts.clear();
    });
  }

  stats(): EmbeddedStats {
    const stats = { hosts: this.#hosts.size, domains: this.#domains.size, records: 0, recordBytes: 0, filterBytes: 0 };
    for (const domain of this.#domains.values()) {
      const { records, filters } = domain.bytes();
      stats.records += domain.records;
      stats.recordBytes += records;
      stats.filterBytes += filters;
    }
    return stats;
  }

  #report(report: Report): ReportAnswer {
    checkReport(report);
    this.#expire();
    const { epoch, sequence, begins = false } = report;
    this.#checkEpoch(report.host, epoch);
    const known = this.#hosts.get(report.host);
    const last = known ?? this.#lapsed.get(report.host);
    const lastSequence = last?.epoch === epoch ? last.sequence : 0;
    if (known?.epoch === epoch) {
      this.#renew(known);
      if (sequence <= lastSequence) return this.#applied(known);
    }
    if (sequence <= lastSequence) return ANEW(); // it was applied, and is gone since
    if (!begins) {
      if (known?.epoch !== epoch || known.anew || sequence !== lastSequence + 1) return ANEW();
      if (report.changes.some(({ domain, added }) => added.length > 0 && known.lost.has(domain))) return ANEW();
    }
    this.#checkRoom(report, known === undefined);
    this.changes++;
    const host = begins ? this.#begin(report.host, known, epoch) : known!;
    host.sequence = sequence;
    host.unsure = false;
    for (const change of report.changes) {
      if (host.lost.has(change.domain)) continue; // takes out what isn't there
      let domain = this.#domains.get(change.domain);
      if (domain === undefined) this.#domains.set(change.domain, (domain = new DirectoryDomain()));
      if (domain.change(host.number, change)) host.anew = true;
    }
    for (const held of report.held ?? []) this.#domains.get(held.domain)?.held(host.number, held);
    return this.#applied(host);
  }

  /** A host with nothing told. */
  #begin(name: string, known: Host | undefined, epoch: number): Host {
    if (known !== undefined) this.#drop(known);
    this.#lapsed.delete(name);
    const free = this.#names.indexOf('');
    const number = known?.number ?? (free < 0 ? this.#names.length : free);
    this.#names[number] = name;
    const host = { number, epoch, sequence: 0, leaseEnd: 0, anew: false, unsure: false, lost: new Set<string>() };
    this.#renew(host);
    this.#hosts.set(name, host);
    return host;
  }

  #lapse(name: string, host: Host): void {
    this.changes++;
    this.#drop(host);
    this.#hosts.delete(name);
    this.#names[host.number] = '';
    this.#lapsed.set(name, { epoch: host.epoch, sequence: host.sequence });
    for (const oldest of this.#lapsed.keys()) {
      if (this.#lapsed.size <= MOST_LAPSED) break;
      this.#lapsed.delete(oldest);
    }
  }

  #drop({ number }: Host): void {
    for (const [name, domain] of this.#domains) {
      domain.dropHost(number);
      if (domain.isEmpty) this.#domains.delete(name);
    }
  }

  #expire(): void {
    const now = this.#clock();
    for (const [name, host] of this.#hosts) if (host.leaseEnd <= now) this.#lapse(name, host);
  }

  #renew(host: Host): void {
    host.leaseEnd = this.#clock() + this.#leaseMs;
  }

  #checkEpoch(name: string, epoch: number): void {
    const last = this.#hosts.get(name) ?? this.#lapsed.get(name);
    if (last !== undefined && epoch < last.epoch)
      throw new PagetideError('PT_SUPERSEDED', `an agent '${name}' that started later (${last.epoch}) has reported`);
  }

  #checkRoom({ changes }: Report, isNew: boolean): void {
    if (isNew && this.#hosts.size >= MOST_HOSTS)
      throw new PagetideError('PT_BAD_ARGUMENT', `an embedded directory knows ${MOST_HOSTS} hosts at most`);
    const fresh = new Set(changes.map(({ domain }) => domain).filter((domain) => !this.#domains.has(domain)));
    if (fresh.size > 0 && this.#domains.size + fresh.size > MOST_DOMAINS)
      throw new PagetideError('PT_BAD_ARGUMENT', `an embedded directory knows ${MOST_DOMAINS} domains at most`);
  }

  #applied({ number }: Host): ReportAnswer {
    const wanted: Wanted[] = [];
    let room = MOST_WANTED;
    for (const [name, domain] of this.#domains) {
      const queue = domain.share(number)?.wanted;
      if (queue === undefined || queue.length === 0) continue;
      if (room === 0) break;
      const asked = Math.min(room, queue.length);
      wanted.push({ domain: name, tags: queue.first(asked) });
      room -= asked;
    }
    return { state: 'applied', wanted };
  }
}

const ANEW = (): ReportAnswer => ({ state: 'anew', wanted: [] });

/** What `work` throws becomes a rejection. */
function settled<T>(work: () => T): Promise<T> {
  return new Promise((resolve) => {
    resolve(work());
  });
}
