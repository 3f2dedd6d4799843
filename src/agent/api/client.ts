/**
 * A client of the control API, for the CLI, tests and tools. Plain `node:http`: it speaks over Unix sockets, streams, and
 * loads in a few milliseconds.
 */
import { request, type IncomingMessage } from 'node:http';
import { asPagetideError, errorFromJson, PagetideError } from '../../errors.ts';
import type { DomainInfo, DomainRemoval } from '../../domains/service.ts';
import type { DistributionInfo } from '../../distribution/info.ts';
import type { VerifyResult } from '../../guests/driver.ts';
import type { MigrationInfo } from '../../migration/types.ts';
import type { Kept } from '../../pages/keep-task.ts';
import type { ExplainedGuest, GuestPlans, PlanSubject, RatesWanted, WithdrawnPlans } from '../distribution-service.ts';
import type {
  AgentInfo,
  CacheInfo,
  Check,
  EvacuateRequest,
  EvacuationInfo,
  GuestInfo,
  GuestRequest,
  MigrateRequest,
  SnapshotInfo,
  SnapshotRequest,
  WarmRequest,
} from '../service.ts';

/** For answers that come at once. Milliseconds. */
const SHORT_MS = 30_000;
/** For answers that come when work is done: starting, checking, ending a guest. Milliseconds. */
const LONG_MS = 600_000;
/** Largest answer that is read into memory, bytes. */
const ANSWER_LIMIT = 64 * 1024 * 1024;

type Target = { socketPath: string } | { host: string; port: number };

interface Call {
  method: 'GET' | 'POST' | 'DELETE';
  path: string;
  body?: unknown;
  timeoutMs?: number;
  signal?: AbortSignal;
}

/** One agent, by `http://HOST:PORT` or `unix:PATH`. Failures are PagetideErrors: the agent's own, or `PT_PEER_UNREACHABLE`. */
export class AgentClient {
  readonly address: string;
  readonly #target: Target;

  constructor(address: string) {
    this.address = address;
    this.#target = parseAddress(address);
  }

  info(): Promise<AgentInfo> {
    return this.#json({ method: 'GET', path: '/v1/info' });
  }

  doctor(): Promise<Check[]> {
    return this.#json({ method: 'GET', path: '/v1/doctor' });
  }

  listGuests(): Promise<GuestInfo[]> {
    return this.#json({ method: 'GET', path: '/v1/guests' });
  }

  showGuest(name: string): Promise<GuestInfo> {
    return this.#json({ method: 'GET', path: `/v1/guests/${encodeURIComponent(name)}` });
  }

  attachGuest(body: GuestRequest): Promise<GuestInfo> {
    return this.#json({ method: 'POST', path: '/v1/guests/attach', body, timeoutMs: LONG_MS });
  }

  runGuest(body: GuestRequest): Promise<GuestInfo> {
    return this.#json({ method: 'POST', path: '/v1/guests/run', body, timeoutMs: LONG_MS });
  }

  /** Null: this guest can't check itself. */
  async verifyGuest(name: string): Promise<VerifyResult | null> {
    const path = `/v1/guests/${encodeURIComponent(name)}/verify`;
    const answer = await this.#json<{ result: VerifyResult | null }>({ method: 'POST', path, timeoutMs: LONG_MS });
    return answer.result;
  }

  async removeGuest(name: string): Promise<void> {
    const path = `/v1/guests/${encodeURIComponent(name)}`;
    await this.#json({ method: 'DELETE', path, timeoutMs: LONG_MS });
  }

  listDomains(): Promise<DomainInfo[]> {
    return this.#json({ method: 'GET', path: '/v1/domains' });
  }

  showDomain(name: string): Promise<DomainInfo> {
    return this.#json({ method: 'GET', path: `/v1/domains/${encodeURIComponent(name)}` });
  }

  createDomain(name: string): Promise<DomainInfo> {
    return this.#json({ method: 'POST', path: '/v1/domains', body: { name } });
  }

  /** @param to a host's name, an https:// URL, or unix:PATH */
  grantDomain(name: string, to: string): Promise<DomainInfo> {
    const path = `/v1/domains/${encodeURIComponent(name)}/grant`;
    return this.#json({ method: 'POST', path, body: { to }, timeoutMs: LONG_MS });
  }

  revokeDomain(name: string, host: string): Promise<DomainInfo> {
    const path = `/v1/domains/${encodeURIComponent(name)}/revoke`;
    return this.#json({ method: 'POST', path, body: { host }, timeoutMs: LONG_MS });
  }

  removeDomain(name: string): Promise<DomainRemoval> {
    return this.#json({ method: 'DELETE', path: `/v1/domains/${encodeURIComponent(name)}`, timeoutMs: LONG_MS });
  }

  cacheInfo(): Promise<CacheInfo> {
    return this.#json({ method: 'GET', path: '/v1/cache' });
  }

  clearCache(): Promise<{ erased: number }> {
    return this.#json({ method: 'DELETE', path: '/v1/cache', timeoutMs: LONG_MS });
  }

  warmCache(body: WarmRequest): Promise<Kept> {
    return this.#json({ method: 'POST', path: '/v1/cache/warm', body, timeoutMs: LONG_MS });
  }

  listSnapshots(): Promise<SnapshotInfo[]> {
    return this.#json({ method: 'GET', path: '/v1/snapshots' });
  }

  shareSnapshot(body: SnapshotRequest): Promise<SnapshotInfo> {
    return this.#json({ method: 'POST', path: '/v1/snapshots', body, timeoutMs: LONG_MS });
  }

  unshareSnapshot(file: string): Promise<void> {
    return this.#json({ method: 'DELETE', path: `/v1/snapshots?file=${encodeURIComponent(file)}`, timeoutMs: LONG_MS });
  }

  migrate(body: MigrateRequest): Promise<MigrationInfo> {
    return this.#json({ method: 'POST', path: '/v1/migrations', body, timeoutMs: LONG_MS });
  }

  listMigrations(): Promise<MigrationInfo[]> {
    return this.#json({ method: 'GET', path: '/v1/migrations' });
  }

  showMigration(id: string): Promise<MigrationInfo> {
    return this.#json({ method: 'GET', path: `/v1/migrations/${encodeURIComponent(id)}` });
  }

  /** `signal` only stops the waiting for the answer. */
  cancel(guest: string, signal?: AbortSignal): Promise<MigrationInfo> {
    const path = `/v1/guests/${encodeURIComponent(guest)}/cancel`;
    return this.#json({ method: 'POST', path, timeoutMs: LONG_MS, ...(signal === undefined ? {} : { signal }) });
  }

  /**
   * The migration now and at every change. Ends when the agent ends the stream, which alone doesn't mean that the
   * migration has ended: look at the last phase. Throws when the connection breaks. Leaving the loop hangs up.
   */
  watchMigration(id: string, signal?: AbortSignal): AsyncGenerator<MigrationInfo> {
    return this.#events<MigrationInfo>(`/v1/migrations/${encodeURIComponent(id)}/events`, signal);
  }

  evacuate(body: EvacuateRequest): Promise<EvacuationInfo> {
    return this.#json({ method: 'POST', path: '/v1/evacuation', body, timeoutMs: LONG_MS });
  }

  planEvacuation(body: EvacuateRequest): Promise<EvacuationInfo> {
    return this.#json({ method: 'POST', path: '/v1/evacuation/plan', body, timeoutMs: LONG_MS });
  }

  showEvacuation(): Promise<EvacuationInfo> {
    return this.#json({ method: 'GET', path: '/v1/evacuation' });
  }

  /** @param cancel the guests under way, too; `signal` only stops the waiting for the answer */
  stopEvacuation(cancel: boolean, signal?: AbortSignal): Promise<EvacuationInfo> {
    const call = { method: 'POST', path: '/v1/evacuation/stop', body: { cancel } } as const;
    return this.#json({ ...call, ...(signal === undefined ? {} : { signal }) });
  }

  /** As {@link watchMigration}; look at the last state. */
  watchEvacuation(signal?: AbortSignal): AsyncGenerator<EvacuationInfo> {
    return this.#events<EvacuationInfo>('/v1/evacuation/events', signal);
  }

  distribution(): Promise<DistributionInfo> {
    return this.#json({ method: 'GET', path: '/v1/distribution' });
  }

  pauseDistribution(): Promise<DistributionInfo> {
    return this.#json({ method: 'POST', path: '/v1/distribution/pause' });
  }

  resumeDistribution(): Promise<DistributionInfo> {
    return this.#json({ method: 'POST', path: '/v1/distribution/resume' });
  }

  setDistributionRates(body: RatesWanted): Promise<DistributionInfo> {
    return this.#json({ method: 'POST', path: '/v1/distribution/rates', body });
  }

  setDistributionBudget(bytes: number): Promise<DistributionInfo> {
    return this.#json({ method: 'POST', path: '/v1/distribution/budget', body: { bytes } });
  }

  explainGuest(name: string): Promise<ExplainedGuest> {
    const path = `/v1/distribution/guests/${encodeURIComponent(name)}`;
    return this.#json({ method: 'GET', path, timeoutMs: LONG_MS });
  }

  async emptyDirectory(domain: string): Promise<void> {
    await this.#json({ method: 'DELETE', path: `/v1/distribution/directories/${encodeURIComponent(domain)}` });
  }

  listPlans(): Promise<GuestPlans> {
    return this.#json({ method: 'GET', path: '/v1/plans' });
  }

  /** @param domain all that this agent and the host have without */
  planEvacuate(host: string, forMs: number, domain?: string): Promise<GuestPlans> {
    const body = { host, forMs, ...(domain === undefined ? {} : { domain }) };
    return this.#json({ method: 'POST', path: '/v1/plans/evacuate', body });
  }

  planAffinity(guest: string, hosts: string[], forMs: number, domain?: string): Promise<GuestPlans> {
    const body = { guest, hosts, forMs, ...(domain === undefined ? {} : { domain }) };
    return this.#json({ method: 'POST', path: '/v1/plans/affinity', body });
  }

  withdrawPlan(about: PlanSubject, domain?: string): Promise<WithdrawnPlans> {
    const body = { about, ...(domain === undefined ? {} : { domain }) };
    return this.#json({ method: 'POST', path: '/v1/plans/withdraw', body });
  }

  async *#events<T>(path: string, signal?: AbortSignal): AsyncGenerator<T> {
    const response = await this.#send({ method: 'GET', path, ...(signal === undefined ? {} : { signal }) });
    try {
      if (response.statusCode !== 200) throw failure(response.statusCode, await text(response));
      let rest = '';
      response.setEncoding('utf8');
      for await (const chunk of response as AsyncIterable<string>) {
        const lines = (rest + chunk).split('\n');
        rest = lines.pop()!;
        for (const line of lines) if (line !== '') yield parse(line) as T;
      }
    } catch (thrown) {
      throw thrown instanceof PagetideError ? thrown : this.#unreachable(thrown);
    } finally {
      response.destroy();
    }
  }

  async #json<T>(call: Call): Promise<T> {
    const response = await this.#send({ timeoutMs: SHORT_MS, ...call });
    let body: string;
    try {
      body = await text(response);
    } catch (thrown) {
      throw asPagetideError(thrown, 'PT_PEER_UNREACHABLE', `the agent at ${this.address} broke off its answer`);
    }
    const status = response.statusCode ?? 0;
    if (status < 200 || status > 299) throw failure(status, body);
    return (body === '' ? undefined : parse(body)) as T;
  }

  #send(call: Call): Promise<IncomingMessage> {
    const body = call.body === undefined ? undefined : JSON.stringify(call.body);
    return new Promise((resolve, reject) => {
      const sent = request({
        ...this.#target,
        method: call.method,
        path: call.path,
        // a connection of its own for each call: a kept one may die between two calls when the agent restarts
        agent: false,
        headers:
          body === undefined
            ? {}
            : { 'content-type': 'application/json', 'content-length': String(Buffer.byteLength(body)) },
        ...(call.signal === undefined ? {} : { signal: call.signal }),
      });
      if (call.timeoutMs !== undefined) {
        const milliseconds = call.timeoutMs;
        sent.setTimeout(milliseconds, () => {
          sent.destroy(new Error(`no answer to ${call.method} ${call.path} within ${milliseconds / 1000} s`));
        });
      }
      sent.once('response', resolve);
      sent.on('error', (error) => reject(this.#unreachable(error)));
      sent.end(body);
    });
  }

  #unreachable(cause: unknown): PagetideError {
    const reason = cause instanceof Error ? cause.message : String(cause);
    const code = (cause as NodeJS.ErrnoException | undefined)?.code;
    if (code === 'EACCES') {
      return new PagetideError('PT_NO_PERMISSION', `may not talk to the agent at ${this.address}`, {
        cause,
        hint: 'Its control socket belongs to the user it runs as; use that user, or sudo.',
      });
    }
    return new PagetideError('PT_PEER_UNREACHABLE', `no agent at ${this.address}: ${reason}`, {
      cause,
      hint: '`pagetide agent` starts one; --agent or PAGETIDE_AGENT says where it is.',
    });
  }
}

/** Throws `PT_BAD_ARGUMENT` where `address` is neither `http://HOST:PORT` nor `unix:PATH`. */
function parseAddress(address: string): Target {
  if (address.startsWith('unix:')) {
    // also unix:///path, as others write it
    const socketPath = address.slice(5).replace(/^\/\/(?=\/)/, '');
    if (socketPath !== '') return { socketPath };
  }
  let url: URL | undefined;
  try {
    url = new URL(address);
  } catch {
    // said below
  }
  if (url?.protocol === 'http:' && url.hostname !== '' && (url.pathname === '/' || url.pathname === '')) {
    return { host: url.hostname.replace(/^\[(.*)\]$/, '$1'), port: Number(url.port === '' ? 80 : url.port) };
  }
  if (url?.protocol === 'https:') {
    throw new PagetideError('PT_BAD_ARGUMENT', `${address.slice(0, 200)} speaks only with agents of its cluster`, {
      hint: 'Operators use the control socket on that host: unix:PATH, or ssh there.',
    });
  }
  throw new PagetideError('PT_BAD_ARGUMENT', `"${address.slice(0, 200)}" is no address of an agent`, {
    hint: 'E.g. http://127.0.0.1:7411 or unix:/var/lib/pagetide/control.sock.',
  });
}

async function text(response: IncomingMessage): Promise<string> {
  const chunks: Buffer[] = [];
  let size = 0;
  for await (const chunk of response as AsyncIterable<Buffer>) {
    size += chunk.length;
    if (size > ANSWER_LIMIT) throw new PagetideError('PT_PEER_FAILED', `an answer of more than ${ANSWER_LIMIT} bytes`);
    chunks.push(chunk);
  }
  return Buffer.concat(chunks).toString('utf8');
}

function parse(json: string): unknown {
  try {
    return JSON.parse(json);
  } catch (cause) {
    throw new PagetideError('PT_PEER_FAILED', 'the answer is no JSON', {
      cause,
      hint: 'Is that an agent of Pagetide, and of this version?',
    });
  }
}

function failure(status: number | undefined, body: string): PagetideError {
  let json: unknown;
  try {
    json = JSON.parse(body);
  } catch {
    return new PagetideError('PT_PEER_FAILED', `answered with HTTP status ${status ?? 0}`, {
      hint: 'Is that an agent of Pagetide, and of this version?',
    });
  }
  return errorFromJson(json);
}
