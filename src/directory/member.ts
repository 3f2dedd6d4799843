/**
 * A domain's directory as one member of the domain may use it: in its own name, and for that domain alone. What it can say is what its
 * own guests hold, and hints; a wrong word of it costs others bytes and time, never a page (docs/security.md).
 */
import { PagetideError } from '../errors.ts';
import type { Directory, Holders, HostInfo, LackingPage, Report, ReportAnswer } from './directory.ts';
import type { Hint, HintSubject } from './hint.ts';
import type { AnsweredLists } from './paced-lists.ts';

export interface Answering {
  /** How lists are answered; without one as they are. */
  lists: AnsweredLists | undefined;
  /** Other hosts that have the domain. */
  hosts: number;
  /** Whether the member still is one, asked when an answer has waited. @throws PagetideError `PT_NO_PERMISSION`, `PT_DOMAIN_UNKNOWN` */
  check(): void;
}

export class MemberDirectory implements Directory {
  readonly #inner: Directory;
  readonly #domain: string;
  readonly #host: string;
  readonly #answering: Answering | undefined;

  /** @param domain its id @param host what the domain's home calls the member */
  constructor(inner: Directory, domain: string, host: string, answering?: Answering) {
    this.#inner = inner;
    this.#domain = domain;
    this.#host = host;
    this.#answering = answering;
  }

  async report(report: Report): Promise<ReportAnswer> {
    this.#checkHost(report.host);
    for (const { domain } of [...report.changes, ...(report.held ?? [])]) this.#checkDomain(domain);
    return this.#answered(report, await this.#inner.report(report));
  }

  async heartbeat(host: string, epoch: number, sequence?: number): Promise<ReportAnswer> {
    this.#checkHost(host);
    return this.#answered(undefined, await this.#inner.heartbeat(host, epoch, sequence));
  }

  async holders(domain: string, tags: Uint8Array): Promise<Holders> {
    this.#checkDomain(domain);
    const make = (some: Uint8Array): Promise<Holders> => this.#inner.holders(domain, some);
    return this.#stillMine(await (this.#answering?.lists?.holders(tags, make) ?? make(tags)));
  }

  async lacking(domain: string, host: string, options: { limit: number; cursor?: string }): Promise<LackingPage> {
    this.#checkDomain(domain);
    const make = (limit: number): Promise<LackingPage> => this.#inner.lacking(domain, host, { ...options, limit });
    return this.#stillMine(await (this.#answering?.lists?.lacking(options.limit, make) ?? make(options.limit)));
  }

  hosts(): Promise<HostInfo[]> {
    return this.#inner.hosts();
  }

  async hints(domain: string): Promise<Hint[]> {
    this.#checkDomain(domain);
    return this.#inner.hints(domain);
  }

  async hint(domain: string, hint: Hint): Promise<void> {
    this.#checkDomain(domain);
    return this.#inner.hint(domain, hint);
  }

  async withdraw(domain: string, subject: HintSubject): Promise<boolean> {
    this.#checkDomain(domain);
    return this.#inner.withdraw(domain, subject);
  }

  removeHost(): Promise<void> {
    return Promise.reject(refused('only the home of the domain takes a host out'));
  }

  removeDomain(): Promise<void> {
    return Promise.reject(refused('only the home of the domain removes it'));
  }

  empty(): Promise<void> {
    return Promise.reject(refused('only the operator of the home empties a directory'));
  }

  /** It is the home's. */
  async close(): Promise<void> {
    return Promise.resolve();
  }

  async #answered(report: Report | undefined, answer: ReportAnswer): Promise<ReportAnswer> {
    const { lists, hosts = 0 } = this.#answering ?? {};
    return this.#stillMine((await lists?.answer(report, answer, hosts)) ?? answer);
  }

  /** It may have lost the domain while its answer waited. */
  #stillMine<T>(answer: T): T {
    this.#answering?.check();
    return answer;
  }

  #checkHost(host: string): void {
    if (host !== this.#host) throw refused(`${this.#host} cannot report for ${host.slice(0, 300)}`);
  }

  #checkDomain(domain: string): void {
    if (domain !== this.#domain) throw refused('this is the directory of another domain');
  }
}

function refused(message: string): PagetideError {
  return new PagetideError('PT_NO_PERMISSION', message, { hint: 'docs/security.md says what a member may do.' });
}
