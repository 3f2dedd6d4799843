/** A directory as this agent uses it, and how that goes: for its log and its status. */
import type { Logger } from 'pino';
import type { Directory, Holders, HostInfo, LackingPage, Report, ReportAnswer } from '../directory/directory.ts';
import type { Hint, HintSubject } from '../directory/hint.ts';
import { AskedLists, type TagPacing } from '../directory/paced-lists.ts';
import { asPagetideError, type ErrorJson, type PagetideError } from '../errors.ts';

export interface DirectoryState {
  /** The agent, or the Redis, that has it; null: this agent. */
  home: string | null;
  /** The last call was answered, by a refusal too; or there was none yet. */
  reachable: boolean;
  /** Why this host's reports are not taken: `PT_SUPERSEDED`, `PT_NO_PERMISSION`, …, until one is; or don't meet others': {@link DirectoryWatch.mistaken}. */
  error?: ErrorJson;
}

export class DirectoryWatch implements Directory {
  readonly #inner: Directory;
  readonly #log: Logger;
  readonly #home: string | null;
  readonly #lists: AskedLists | undefined;
  #reachable = true;
  #error: PagetideError | undefined;
  #mistake: PagetideError | undefined;

  /** @param log tells of the domain already @param pace of lists, where it is elsewhere */
  constructor(inner: Directory, home: string | null, log: Logger, pace?: TagPacing) {
    this.#lists = pace === undefined ? undefined : new AskedLists(pace);
    this.#inner = inner;
    this.#home = home;
    this.#log = log;
  }

  get state(): DirectoryState {
    const why = this.#error ?? this.#mistake;
    const error = why === undefined ? {} : { error: why.toJSON() };
    return { home: this.#home, reachable: this.#reachable, ...error };
  }

  /** That the domain's home uses another directory, or that this one forgets; undefined: neither. */
  mistaken(mistake: PagetideError | undefined): void {
    if (mistake !== undefined && this.#mistake === undefined) {
      const { code, message, hint } = mistake;
      this.#log.error({ code, hint }, message);
    }
    this.#mistake = mistake;
  }

  report(report: Report): Promise<ReportAnswer> {
    return this.#watch(this.#inner.report(report), true);
  }
  heartbeat(host: string, epoch: number, sequence?: number): Promise<ReportAnswer> {
    return this.#watch(this.#inner.heartbeat(host, epoch, sequence), true);
  }
  holders(domain: string, tags: Uint8Array): Promise<Holders> {
    const ask = (some: Uint8Array): Promise<Holders> => this.#inner.holders(domain, some);
    return this.#watch(this.#lists?.holders(tags, ask) ?? ask(tags));
  }
  lacking(domain: string, host: string, options: { limit: number; cursor?: string }): Promise<LackingPage> {
    const ask = (limit: number): Promise<LackingPage> => this.#inner.lacking(domain, host, { ...options, limit });
    return this.#watch(this.#lists?.lacking(options.limit, ask) ?? ask(options.limit));
  }
  hosts(): Promise<HostInfo[]> {
    return this.#watch(this.#inner.hosts());
  }
  hints(domain: string): Promise<Hint[]> {
    return this.#watch(this.#inner.hints(domain));
  }
  hint(domain: string, hint: Hint): Promise<void> {
    return this.#watch(this.#inner.hint(domain, hint));
  }
  withdraw(domain: string, subject: HintSubject): Promise<boolean> {
    return this.#watch(this.#inner.withdraw(domain, subject));
  }
  removeHost(host: string): Promise<void> {
    return this.#watch(this.#inner.removeHost(host));
  }
  removeDomain(domain: string): Promise<void> {
    return this.#watch(this.#inner.removeDomain(domain));
  }
  empty(): Promise<void> {
    return this.#watch(this.#inner.empty());
  }
  close(): Promise<void> {
    return this.#inner.close();
  }

  /** @param tells whether it is this host's report, or instead of one */
  async #watch<T>(call: Promise<T>, tells = false): Promise<T> {
    try {
      const result = await call;
      this.#reached(true);
      if (tells && this.#error !== undefined) {
        this.#log.info('the directory takes reports of this host again');
        this.#error = undefined;
      }
      return result;
    } catch (thrown) {
      const error = asPagetideError(thrown);
      const away = error.code === 'PT_PEER_UNREACHABLE';
      if (error.code !== 'PT_CANCELLED') this.#reached(!away, error.message);
      // once, not with every try
      if (tells && !away && error.code !== 'PT_CANCELLED') {
        const { code, message, hint } = error;
        if (this.#error?.code !== code)
          this.#log.warn({ code, hint }, `the directory takes no report of this host: ${message}`);
        this.#error = error;
      }
      throw thrown;
    }
  }

  #reached(is: boolean, why?: string): void {
    if (is === this.#reachable) return;
    this.#reachable = is;
    if (is) this.#log.info({ home: this.#home }, 'the directory is reached again');
    else this.#log.warn({ home: this.#home }, `the directory is not reached: ${why}`);
  }
}
