/**
 * What operators ask about domains, and what agents tell each other about them (messages.ts).
 *
 * A domain is granted and revoked by the agent that made it, its home. What has to be told to a host that is away is told
 * again and again; and every host asks the home of each of its domains, at its start and from time to time, whether it still
 * has it: whichever of the two happens first.
 */
import type { Logger } from 'pino';
import { asPagetideError, PagetideError, type ErrorJson } from '../errors.ts';
import type { PeerClient } from '../transport/peer.ts';
import { checkSocket, parseAddress } from './address.ts';
import type { DomainAnswer, DomainCheckIn, DomainOffer, Sender } from './messages.ts';
import type { DomainRecord, GrantRecord, Member, RemovedRecord } from './records.ts';
import type { DomainStore } from './store.ts';

/** Other agents that are talked to at once. */
const AT_ONCE = 8;

/** A host that a domain is granted to, as operators see it. */
export interface GrantInfo {
  /** The name in its certificate; or `unix:PATH`. */
  host: string;
  url: string;
  /** `revoking`: it is to forget the domain, and has not said yet that it did. */
  state: 'granting' | 'granted' | 'revoking';
  /** Why it has not been told yet. */
  error?: ErrorJson;
}

/** A domain, as operators see it. Nothing of its secret. */
export interface DomainInfo {
  name: string;
  id: string;
  /** The host that made it; null: this one. */
  home: string | null;
  /** False: its secret is not here, or not the right one. */
  usable: boolean;
  /** Where it was made here: who else has it, or may have. */
  grants: GrantInfo[];
  /** Where it was not: who has it, as its home last said. */
  members: Member[];
  /** Guests of it on this host. */
  guests: string[];
}

/** What became of a domain that was removed. */
export interface DomainRemoval {
  removed: string;
  /** Hosts that have forgotten it; of one that was made elsewhere: the host that made it, which does not count this one any more. */
  told: string[];
  /** Hosts that were not reached; they are told when they are. */
  waiting: string[];
}

/** What of this agent is of a domain. */
export interface DomainUse {
  guests: string[];
  /** Of guests that come or leave. */
  migrations: string[];
}

export interface DomainServiceParts {
  store: DomainStore;
  /** Under which other agents reach this one, over TLS or not. */
  url: string;
  /** The name in this agent's certificate. Undefined: it has none. */
  identity: string | undefined;
  /** This agent's control socket. */
  control: string;
  /** Between two rounds of telling and asking, milliseconds. */
  contactMs: number;
  uses(domain: string): DomainUse;
  connect(url: string, options: { expect?: string | undefined; socketPath?: string | undefined }): PeerClient;
  log: Logger;
}

export class DomainService {
  readonly #parts: DomainServiceParts;
  readonly #store: DomainStore;
  /** Why a host has not been told yet: by domain and host. */
  readonly #failures = new Map<string, ErrorJson>();
  readonly #ending = new AbortController();
  #timer: NodeJS.Timeout | undefined;
  #round: Promise<void> = Promise.resolve();

  constructor(parts: DomainServiceParts) {
    this.#parts = parts;
    this.#store = parts.store;
  }

  // --- for operators

  list(): DomainInfo[] {
    return [...this.#store.all()].sort((a, b) => a.name.localeCompare(b.name)).map((record) => this.#info(record));
  }

  /** @throws PagetideError `PT_DOMAIN_UNKNOWN` */
  show(name: string): DomainInfo {
    return this.#info(this.#need(name));
  }

  /** @throws PagetideError `PT_DOMAIN_EXISTS`, `PT_NO_SPACE`, `PT_IO` */
  async create(name: string): Promise<DomainInfo> {
    const record = await this.#store.create(name);
    this.#parts.log.info({ domain: name }, 'made a domain');
    return this.#info(record);
  }

  /**
   * Gives the domain with its secret to another host. Who that is, is known before anything is sent, and the connection that
   * carries the secret is to nobody else.
   * @throws PagetideError `PT_DOMAIN_UNKNOWN`, `PT_DOMAIN_ELSEWHERE`, `PT_BAD_ARGUMENT`, `PT_PEER_UNREACHABLE`,
   * `PT_PEER_UNTRUSTED`, what the other host says (`PT_DOMAIN_EXISTS`, …), `PT_NO_SPACE`, `PT_IO`
   */
  async grant(name: string, to: string): Promise<DomainInfo> {
    const record = this.#needMade(name);
    const { id } = record;
    const { url } = parseAddress(to);
    const { host, answer } = await this.#meet(url, id);
    if (answer.made)
      throw new PagetideError('PT_BAD_ARGUMENT', `${to} is the agent that made the domain '${name}'`, {
        hint: 'Give another host.',
      });
    const { epoch, before } = await this.#store.beginGrant(id, host, url);
    try {
      const secret = this.#store.secretOf(name);
      if (secret === undefined) throw new PagetideError('PT_DOMAIN_UNKNOWN', `the secret of '${name}' is not here`);
      const offer: DomainOffer = {
        name,
        secret,
        home: this.#urlFor(url),
        as: host,
        epoch,
        members: this.#membersFor(this.#store.byId(id), host),
      };
      const { url: pages } = await this.#with(url, host, (peer) => peer.giveDomain(id, offer, this.#signal));
      await this.#store.settleGrant(id, host, epoch, { state: 'granted', pages });
    } catch (error) {
      await this.#store.settleGrant(id, host, epoch, afterFailure(error, before));
      throw error;
    }
    this.#failures.delete(failureKey(id, host));
    this.#parts.log.info({ domain: name, host }, 'granted a domain');
    return this.show(name);
  }

  /**
   * The host is to forget the domain. Where it can't be told now, that is done as soon as it can.
   * @param host its name, or the address that it was granted to
   * @throws PagetideError `PT_DOMAIN_UNKNOWN`, `PT_DOMAIN_ELSEWHERE`, `PT_BAD_ARGUMENT`, `PT_NO_SPACE`, `PT_IO`
   */
  async revoke(name: string, host: string): Promise<DomainInfo> {
    const { id, grants } = this.#needMade(name);
    const grant = grants.find((one) => one.host === host || one.url === host);
    if (grant === undefined)
      throw new PagetideError('PT_BAD_ARGUMENT', `the domain '${name}' is not granted to '${host.slice(0, 200)}'`, {
        hint: `\`pagetide domain show ${name}\` lists the hosts that have it.`,
      });
    await this.#store.beginRevoke(id, grant.host);
    this.#parts.log.info({ domain: name, host: grant.host }, 'revokes a domain');
    const now = this.#store.byId(id)?.grants.find((one) => one.host === grant.host);
    if (now !== undefined) await this.#tellRevoked(id, now);
    return this.show(name);
  }

  /**
   * Removes a domain, erases its pages here, and has the hosts forget it that it was granted to. Where it was not made here,
   * only this host forgets it, and the one that made it is told, as soon as it can be.
   * @throws PagetideError `PT_DOMAIN_UNKNOWN`, `PT_DOMAIN_IN_USE`, `PT_NO_SPACE`, `PT_IO`
   */
  async remove(name: string): Promise<DomainRemoval> {
    const { id, tell } = await this.#store.forget(name, () => this.#refuseUsed(name, true), true);
    this.#parts.log.info({ domain: name }, 'removed a domain');
    await each(tell, (one) => this.#tellRemoved(id, one));
    const left = this.#store.removed().find((one) => one.id === id)?.tell ?? [];
    const waiting = left.map(({ host }) => host);
    return { removed: name, told: tell.map(({ host }) => host).filter((host) => !waiting.includes(host)), waiting };
  }

  // --- between agents

  /** Whether this agent has a domain; of one that it made, only that. */
  answer(id: string): DomainAnswer {
    const record = this.#store.byId(id);
    const made = record?.home === null;
    return { made, held: record !== undefined && !made, url: this.#parts.url };
  }

  /** @throws PagetideError as {@link DomainStore.accept}, `PT_BAD_ARGUMENT` */
  async accept(id: string, offer: DomainOffer, sender: Sender): Promise<DomainAnswer> {
    const { name, secret, home: url, as, epoch, members } = offer;
    const { socketPath } = parseAddress(url);
    // another host must not choose among the sockets of this one
    if ((socketPath === undefined) !== (sender !== null))
      throw new PagetideError('PT_BAD_ARGUMENT', `${url} is no address of the host that grants the domain '${name}'`);
    await this.#store.accept({ id, name, secret, home: { host: sender, url, as, epoch }, members });
    this.#parts.log.info({ domain: name, home: sender ?? url }, 'was granted a domain');
    return this.answer(id);
  }

  /** @throws PagetideError as {@link DomainStore.withdraw}; `PT_DOMAIN_IN_USE` while a guest of it comes or leaves */
  async withdraw(id: string, epoch: number, sender: Sender): Promise<void> {
    const name = this.#store.byId(id)?.name;
    await this.#store.withdraw(id, epoch, sender, () => this.#refuseUsed(name!, false));
    if (name !== undefined && this.#store.byId(id) === undefined)
      this.#parts.log.info({ domain: name, home: sender }, 'forgot a domain that was withdrawn');
  }

  /** A host asks whether it still has a domain of this agent's. @param as what it is called here, where no certificate says so */
  checkIn(id: string, as: string, sender: Sender): DomainCheckIn {
    const host = sender ?? as;
    const record = this.#store.byId(id);
    if (record === undefined || record.home !== null) {
      const removed = this.#store.removed().some((one) => one.id === id);
      return { state: removed ? 'revoked' : 'unknown', members: [] };
    }
    const grant = record.grants.find((one) => one.host === host);
    if (grant === undefined || grant.state === 'revoking') return { state: 'revoked', members: [] };
    return { state: 'granted', members: this.#membersFor(record, host) };
  }

  /**
   * A host has removed a domain of this agent's that it was granted with that epoch. It has it no more, unless it was granted again since.
   * @param as as of {@link checkIn}
   * @throws PagetideError `PT_NO_SPACE`, `PT_IO`, and why the host can't be asked what it has: it tells again then
   */
  async gaveUp(id: string, as: string, epoch: number, sender: Sender): Promise<void> {
    const host = sender ?? as;
    const record = this.#store.byId(id);
    const grant = record?.home === null ? record.grants.find((one) => one.host === host) : undefined;
    if (grant === undefined) return;
    const { log } = this.#parts;
    if (grant.epoch === epoch) {
      await this.#store.settleGrant(id, host, epoch, 'gone');
      log.info({ domain: record!.name, host }, 'a host has given a domain up');
      return;
    }
    // Another message was sent to it since. One that withdraws the domain says the same; one that granted it again may have come before
    // or after this, or never: the host knows. Where it has nothing, that one must not bring it back later, as then nobody knew.
    if (grant.state !== 'granted') return;
    const { held } = await this.#with(grant.url, host, (peer) => peer.hasDomain(id, this.#signal));
    if (held) return;
    await this.#store.settleGrant(id, host, grant.epoch, { state: 'revoking' });
    log.info({ domain: record!.name, host }, 'a host has given a domain up');
    const now = this.#store.byId(id)?.grants.find((one) => one.host === host);
    if (now?.state === 'revoking') await this.#tellRevoked(id, now);
  }

  /** Begins to tell and to ask. */
  start(): void {
    const next = (): void => {
      this.#round = this.contact();
      void this.#round.then(() => {
        if (!this.#ending.signal.aborted) this.#timer = setTimeout(next, this.#parts.contactMs).unref();
      });
    };
    next();
  }

  /** Ends what is under way; what was not told is told by the next agent. */
  async close(): Promise<void> {
    this.#ending.abort();
    clearTimeout(this.#timer);
    await this.#round;
  }

  /** One round: tells hosts what they have yet to hear, asks the homes of the domains that were granted. Never rejects. */
  async contact(): Promise<void> {
    const all = this.#store.all();
    const work: (() => Promise<void>)[] = [
      ...all.flatMap(({ id, grants }) =>
        grants.filter(({ state }) => state === 'revoking').map((grant) => () => this.#tellRevoked(id, grant)),
      ),
      ...this.#store.removed().flatMap(({ id, tell }) => tell.map((one) => () => this.#tellRemoved(id, one))),
      ...all.filter(({ home }) => home !== null).map((record) => () => this.#ask(record)),
    ];
    await each(work, (one) => one());
  }

  async #tellRevoked(id: string, { host, url, epoch }: Readonly<GrantRecord>): Promise<void> {
    if (await this.#tell(id, host, url, epoch)) await this.#quietly(this.#store.settleGrant(id, host, epoch, 'gone'));
  }

  async #tellRemoved(id: string, { host, url, epoch, as }: RemovedRecord['tell'][number]): Promise<void> {
    if (await this.#tell(id, host, url, epoch, as)) await this.#quietly(this.#store.toldRemoval(id, host));
  }

  /**
   * Resolves to whether the host has nothing of the domain any more, as far as it says; or, being its home (`as`: what it calls this
   * host), knows that this one has not.
   */
  async #tell(id: string, host: string, url: string, epoch: number, as?: string): Promise<boolean> {
    const key = failureKey(id, host);
    try {
      await this.#with(url, host, (peer) =>
        as === undefined
          ? peer.withdrawDomain(id, epoch, this.#signal)
          : peer.giveUpDomain(id, as, epoch, this.#signal),
      );
    } catch (thrown) {
      const error = asPagetideError(thrown);
      // it has this domain from somebody else by now, or has made it: not for this agent to withdraw
      const others = error.code === 'PT_NO_PERMISSION' || error.code === 'PT_DOMAIN_EXISTS';
      if (!others) {
        this.#failures.set(key, error.toJSON());
        this.#parts.log.debug(
          { host, url, code: error.code },
          `a host does not know yet that a domain was removed: ${error.message}`,
        );
        return false;
      }
    }
    this.#failures.delete(key);
    return true;
  }

  /** Asks the home of a domain whether this host still has it, and does as it says. */
  async #ask({ id, name, home }: Readonly<DomainRecord>): Promise<void> {
    const { log } = this.#parts;
    const { host, url, as } = home!;
    try {
      const { state, members } = await this.#with(url, host, (peer) => peer.checkDomain(id, as, this.#signal));
      if (state === 'granted') {
        await this.#store.setMembers(id, members);
      } else if (state === 'revoked') {
        if (this.#store.byId(id)?.home?.epoch !== home!.epoch) return; // granted again meanwhile
        await this.#store.forget(name, () => this.#refuseUsed(name, false));
        log.info({ domain: name, home: host ?? url }, 'forgot a domain that was withdrawn while this agent was away');
      } else {
        log.warn({ domain: name, home: host ?? url }, 'the agent that granted this domain does not know it any more');
      }
    } catch (thrown) {
      const { code, message } = asPagetideError(thrown);
      log.debug({ domain: name, home: host ?? url, code }, `cannot ask for a domain: ${message}`);
    }
  }

  async #quietly(writing: Promise<void>): Promise<void> {
    await writing.catch((thrown: unknown) => {
      const { code, message } = asPagetideError(thrown);
      this.#parts.log.error({ code }, message);
    });
  }

  /** Who listens there. The first message says nothing but the domain's public id. */
  async #meet(url: string, id: string): Promise<{ host: string; answer: DomainAnswer }> {
    return this.#with(url, null, async (peer) => {
      const answer = await peer.hasDomain(id, this.#signal);
      const { socketPath } = parseAddress(url);
      const host = socketPath === undefined ? peer.identity : url;
      if (host === undefined) throw new PagetideError('PT_PEER_UNTRUSTED', `${url} has not said who it is`);
      return { host, answer };
    });
  }

  /** @param host whom the other end must be, over TLS; null: anybody of the cluster */
  async #with<T>(url: string, host: string | null, work: (peer: PeerClient) => Promise<T>): Promise<T> {
    const { socketPath } = parseAddress(url);
    if (socketPath !== undefined) await checkSocket(socketPath);
    const expect = socketPath === undefined && host !== null ? host : undefined;
    const peer = this.#parts.connect(url, { expect, socketPath });
    try {
      return await work(peer);
    } finally {
      await peer.close();
    }
  }

  get #signal(): { signal: AbortSignal } {
    return { signal: this.#ending.signal };
  }

  /** How another agent, that is reached at `url`, reaches this one. */
  #urlFor(url: string): string {
    const { socketPath } = parseAddress(url);
    return socketPath === undefined ? this.#parts.url : `unix:${this.#parts.control}`;
  }

  /** Everybody else who has it, with the place of their pages. */
  #membersFor(record: Readonly<DomainRecord> | undefined, host: string): Member[] {
    const others = (record?.grants ?? []).filter((one) => one.state === 'granted' && one.host !== host);
    const { url, identity = `unix:${this.#parts.control}` } = this.#parts;
    return [{ host: identity, url }, ...others.map((one) => ({ host: one.host, url: one.pages ?? one.url }))];
  }

  #need(name: string): Readonly<DomainRecord> {
    const record = this.#store.record(name);
    if (record === undefined)
      throw new PagetideError('PT_DOMAIN_UNKNOWN', `there is no domain '${name}' on this host`, {
        hint: '`pagetide domain list` shows those that there are.',
      });
    return record;
  }

  #needMade(name: string): Readonly<DomainRecord> {
    const record = this.#need(name);
    if (record.home === null) return record;
    throw new PagetideError(
      'PT_DOMAIN_ELSEWHERE',
      `the domain '${name}' was made by ${record.home.host ?? record.home.url}`,
    );
  }

  /** @param guests whether guests that just run here count, too */
  #refuseUsed(name: string, guests: boolean): void {
    const uses = this.#parts.uses(name);
    const [first] = guests ? [...uses.migrations, ...uses.guests] : uses.migrations;
    if (first === undefined) return;
    const moving = uses.migrations.includes(first);
    throw new PagetideError(
      'PT_DOMAIN_IN_USE',
      `guest '${first}' is of the domain '${name}'${moving ? ', and on its way' : ''}`,
      {
        hint: moving ? 'Wait until its migration has ended.' : 'Remove its guests first, or move them away.',
      },
    );
  }

  #info({ name, id, home, grants, members }: Readonly<DomainRecord>): DomainInfo {
    return {
      name,
      id,
      home: home === null ? null : (home.host ?? home.url),
      usable: this.#store.get(name) !== undefined,
      grants: grants.map(({ host, url, state }) => {
        const error = state === 'revoking' ? this.#failures.get(failureKey(id, host)) : undefined;
        return { host, url, state, ...(error === undefined ? {} : { error }) };
      }),
      members: [...members],
      guests: this.#parts.uses(name).guests,
    };
  }
}

/** How a grant stands that failed. What was not reached, or did not answer, may have the secret all the same. */
function afterFailure(thrown: unknown, before: GrantRecord | undefined): Partial<GrantRecord> | 'gone' {
  if (before?.state === 'granted') return { state: 'granted' };
  const { code } = asPagetideError(thrown);
  const unsure = code === 'PT_PEER_UNREACHABLE' || code === 'PT_CANCELLED' || code === 'PT_PEER_FAILED';
  return unsure || before !== undefined ? { state: 'revoking' } : 'gone';
}

function failureKey(id: string, host: string): string {
  return `${id} ${host}`;
}

/** Does `work` for each, a few at a time. Rejects as soon as one does. */
async function each<T>(items: readonly T[], work: (item: T) => Promise<void>): Promise<void> {
  const left = [...items];
  const worker = async (): Promise<void> => {
    for (let item = left.shift(); item !== undefined; item = left.shift()) await work(item);
  };
  await Promise.all(Array.from({ length: Math.min(AT_ONCE, left.length) }, worker));
}
