/**
 * The domains of this host, and their secrets, on the disk:
 *
 *   <state>/domains/domains.json    who made them, which hosts have them (records.ts); no secrets
 *   <state>/domains/<name>.key      a secret: 64 hex digits, mode 0600, as `--domain-key` of other commands takes it
 *
 * Every change is one new `domains.json`, written beside the old one, made durable, and renamed over it: it counts from that
 * moment, in memory as on the disk. The order of the two files makes a crash between them harmless:
 *
 *   a domain comes    key ──► records       without a record the key is nobody's, and is removed at the next start
 *   a domain goes     records ──► pages erased (onRemoved) ──► key ──► records: erased
 *                             ╰─ from here on it is told again at the next start
 *
 * One that goes is of no use any more before the first of that is written: a migration that began a moment ago either has
 * its handle on the key, and the domain is in use, or will not get one.
 */
import { randomBytes } from 'node:crypto';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import type { Logger } from 'pino';
import { asPagetideError, PagetideError } from '../errors.ts';
import type { Domain, Domains } from '../migration/domains.ts';
import { keyMark, keyNumber, MARK_PREFIX, readKeyFile } from '../pages/key-file.ts';
import { DOMAIN_KEY_BYTES, DomainKey } from '../pages/tags.ts';
import { keepToOwner, openFolder, removeFile, writeWhole } from './files.ts';
import {
  forgetOldest,
  MOST_DOMAINS,
  MOST_GRANTS,
  noRecords,
  parseRecords,
  printRecords,
  type DomainRecord,
  type DomainRecords,
  type GrantRecord,
  type Member,
  type RemovedRecord,
} from './records.ts';

const RECORDS = 'domains.json';
const KEY = '.key';
/** Withdrawn domains whose epochs are remembered. */
const MOST_WITHDRAWN = 1000;

/** What the host that made a domain gives to another. */
export interface GivenDomain {
  id: string;
  name: string;
  /** Hex. */
  secret: string;
  home: { host: string | null; url: string; as: string; epoch: number };
  members: Member[];
}

export class DomainStore implements Domains {
  readonly #folder: string;
  readonly #log: Logger;
  #records: DomainRecords;
  /** By name. One that isn't here can't be used, whatever is recorded. */
  readonly #secrets = new Map<string, Buffer>();
  /** Names of those that are being removed. */
  readonly #going = new Set<string>();
  /** Epochs of what was withdrawn here, by host and id. A message that was overtaken can't arrive after a restart: not on the disk. */
  readonly #withdrawn = new Map<string, number>();
  readonly #told: ((domain: { name: string; id: number }) => void)[] = [];
  readonly #changed: (() => void)[] = [];
  /** Changes, one after the other. Never rejects. */
  #work: Promise<void> = Promise.resolve();

  private constructor(folder: string, records: DomainRecords, log: Logger) {
    this.#folder = folder;
    this.#records = records;
    this.#log = log;
  }

  /**
   * Opens the store, or makes it. A domain whose secret is not there, or another, stays recorded and can't be used: an agent
   * that didn't start for that would leave its guests without their memory.
   * @throws PagetideError `PT_IO` where it can't be read or is damaged, `PT_STATE_VERSION`
   */
  static async open(folder: string, log: Logger): Promise<DomainStore> {
    const names = await openFolder(folder);
    const path = join(folder, RECORDS);
    let records = noRecords();
    if (names.includes(RECORDS)) {
      try {
        records = parseRecords(await readFile(path, 'utf8'), path);
      } catch (error) {
        throw asPagetideError(error, 'PT_IO', `cannot read ${path}`);
      }
    }
    const store = new DomainStore(folder, records, log);
    for (const record of records.domains) await store.#readSecret(record);
    const known = new Set(records.domains.map(({ name }) => name + KEY));
    for (const name of names) if (name.endsWith(KEY) && !known.has(name)) await removeFile(join(folder, name));
    return store;
  }

  get(name: string): Domain | undefined {
    const record = this.record(name);
    const secret = this.#secrets.get(name);
    if (record === undefined || secret === undefined || this.#going.has(name)) return undefined;
    const openKey = (): DomainKey => {
      // wiped with its domain: what is left of it is no secret
      if (this.#secrets.get(name) !== secret) throw unknown(name);
      return new DomainKey(secret);
    };
    return { name, id: record.number, mark: record.mark.slice(MARK_PREFIX.length), openKey };
  }

  onRemoved(callback: (domain: { name: string; id: number }) => void): void {
    this.#told.push(callback);
  }

  /** Calls back whenever a domain, or who has it, may have changed. */
  onChange(callback: () => void): void {
    this.#changed.push(callback);
  }

  /** Every domain that is recorded; not to be changed. */
  all(): readonly Readonly<DomainRecord>[] {
    return this.#records.domains;
  }

  record(name: string): Readonly<DomainRecord> | undefined {
    return this.#records.domains.find((domain) => domain.name === name);
  }

  byId(id: string): Readonly<DomainRecord> | undefined {
    return this.#records.domains.find((domain) => domain.id === id);
  }

  /** Other hosts that have the domain, and the URLs of their agents; as far as this one knows. */
  members(name: string): readonly Member[] {
    const record = this.record(name);
    if (record === undefined) return [];
    if (record.home !== null) return record.members;
    const granted = record.grants.filter(({ state }) => state === 'granted');
    return granted.map(({ host, url, pages }) => ({ host, url: pages ?? url }));
  }

  /** What was removed here, the last one last; not to be changed. */
  removed(): readonly Readonly<RemovedRecord>[] {
    return this.#records.removed;
  }

  /** The secret as hex, for another host. Undefined: this agent doesn't have it. */
  secretOf(name: string): string | undefined {
    return this.#secrets.get(name)?.toString('hex');
  }

  /** Makes a domain, with a secret of its own. @throws PagetideError `PT_DOMAIN_EXISTS`, `PT_NO_SPACE`, `PT_IO` */
  create(name: string): Promise<DomainRecord> {
    const secret = randomBytes(DOMAIN_KEY_BYTES);
    return this.#change((draft) => {
      const record = newRecord(draft, name, randomBytes(16).toString('hex'), secret);
      return this.#add(draft, record, secret);
    });
  }

  /**
   * Takes a domain that the host which made it gives to this one; again, it takes over what is new.
   * @throws PagetideError `PT_DOMAIN_EXISTS` where another has its name, or it was made here; `PT_DOMAIN_SECRET`;
   * `PT_NO_PERMISSION` where another host gave it; `PT_DOMAIN_UNKNOWN` where it was withdrawn since; `PT_NO_SPACE`, `PT_IO`
   */
  accept({ id, name, secret: hex, home, members }: GivenDomain): Promise<DomainRecord> {
    const secret = Buffer.from(hex, 'hex');
    return this.#change((draft) => {
      if (home.epoch <= (this.#withdrawn.get(byHost(home.host, id)) ?? -1))
        throw new PagetideError('PT_DOMAIN_UNKNOWN', `the domain '${name}' was withdrawn meanwhile`);
      const known = draft.domains.find((domain) => domain.id === id);
      if (known === undefined) {
        const record = newRecord(draft, name, id, secret);
        return this.#add(draft, { ...record, home, members }, secret);
      }
      checkHome(known, home.host);
      if (known.name !== name || known.mark !== keyMark(secret))
        throw new PagetideError('PT_DOMAIN_SECRET', `the domain '${known.name}' has another name or secret here`);
      if (home.epoch < known.home!.epoch) return known;
      Object.assign(known, { home, members });
      return this.#secrets.has(name) ? known : this.#add(draft, known, secret);
    });
  }

  /** Who has the domain, as its home says. */
  async setMembers(id: string, members: Member[]): Promise<void> {
    const known = this.byId(id)?.members;
    if (known === undefined || JSON.stringify(known) === JSON.stringify(members)) return;
    await this.#change((draft) => {
      const record = draft.domains.find((domain) => domain.id === id);
      if (record !== undefined) record.members = members;
    });
  }

  /**
   * Forgets a domain and erases its pages here. Resolves to what is left to be told to other hosts.
   * @param check throws where the domain is in use; nothing changes then
   * @param givesUp of its own accord: where the domain was made elsewhere, its home has yet to hear of that
   * @throws PagetideError `PT_DOMAIN_UNKNOWN`, `PT_NO_SPACE`, `PT_IO`, and what `check` throws
   */
  async forget(name: string, check: () => void, givesUp = false): Promise<Readonly<RemovedRecord>> {
    let secret: Buffer | undefined;
    const removed = await this.#change((draft) => {
      const record = draft.domains.find((domain) => domain.name === name);
      if (record === undefined) throw unknown(name);
      // together, so that nothing begins to use it in between
      check();
      this.#going.add(name);
      secret = this.#secrets.get(name);
      const { id, number, grants, home } = record;
      const epoch = nextEpoch(draft);
      const tell: RemovedRecord['tell'] = grants.map(({ host, url }) => ({ host, url, epoch }));
      if (givesUp && home !== null) {
        // what brought it here must not bring it back, should it come twice
        this.#noteWithdrawn(byHost(home.host, id), home.epoch);
        tell.push({ host: home.host ?? home.url, url: home.url, epoch: home.epoch, as: home.as });
      }
      const entry: RemovedRecord = { id, name, number, erased: false, tell };
      draft.domains = draft.domains.filter((domain) => domain !== record);
      draft.removed = [...draft.removed.filter((other) => other.id !== id), entry];
      return entry;
    }).finally(() => this.#going.delete(name));
    // one of that name may come the next moment
    if (secret !== undefined && this.#secrets.get(name) === secret) this.#secrets.delete(name);
    secret?.fill(0);
    await this.#erase(removed);
    return removed;
  }

  /**
   * Forgets a domain that its home withdraws. One that is not known here, or was given again since, is none.
   * @throws PagetideError `PT_NO_PERMISSION` where another host gave it, or it was made here; others as {@link forget}
   */
  async withdraw(id: string, epoch: number, host: string | null, check: () => void): Promise<void> {
    const record = this.byId(id);
    if (record !== undefined) {
      checkHome(record, host);
      if (epoch < record.home!.epoch) return;
    }
    // first: what comes too late must not bring it back
    this.#noteWithdrawn(byHost(host, id), epoch);
    if (record !== undefined) await this.forget(record.name, check);
  }

  /** Erases what a crash left behind of domains that were removed. When everybody who keeps pages is told of removals. */
  async eraseRest(): Promise<void> {
    for (const removed of this.#records.removed) if (!removed.erased) await this.#erase(removed);
  }

  /**
   * Writes down that a host is about to get the secret. Resolves to the epoch of the message, and how it stood before.
   * @throws PagetideError `PT_DOMAIN_UNKNOWN`, `PT_BAD_ARGUMENT` (too many), `PT_NO_SPACE`, `PT_IO`
   */
  beginGrant(id: string, host: string, url: string): Promise<{ epoch: number; before: GrantRecord | undefined }> {
    return this.#change((draft) => {
      const { name, grants } = needDomain(draft, id);
      const before = grants.find((grant) => grant.host === host);
      if (before === undefined && grants.length >= MOST_GRANTS)
        throw new PagetideError('PT_BAD_ARGUMENT', `the domain '${name}' is granted to ${MOST_GRANTS} hosts already`);
      const epoch = nextEpoch(draft);
      const copy = before && structuredClone(before);
      if (before === undefined) grants.push({ host, url, state: 'granting', epoch });
      else Object.assign(before, { url, state: 'granting', epoch });
      return { epoch, before: copy };
    });
  }

  /** Writes down that a host is to forget the domain. Resolves to the epoch of the message; undefined: it doesn't have it. */
  beginRevoke(id: string, host: string): Promise<number | undefined> {
    return this.#change((draft) => {
      const grant = needDomain(draft, id).grants.find((one) => one.host === host);
      if (grant === undefined) return undefined;
      grant.state = 'revoking';
      return (grant.epoch = nextEpoch(draft));
    });
  }

  /**
   * What became of the message of that epoch: the grant stands, is in doubt, or is gone. Does nothing where a later one was
   * sent since, or the domain was removed.
   */
  settleGrant(id: string, host: string, epoch: number, to: Partial<GrantRecord> | 'gone'): Promise<void> {
    return this.#change((draft) => {
      const record = draft.domains.find((domain) => domain.id === id);
      const grant = record?.grants.find((one) => one.host === host && one.epoch === epoch);
      if (record === undefined || grant === undefined) return;
      if (to === 'gone') record.grants = record.grants.filter((one) => one !== grant);
      else Object.assign(grant, to);
    });
  }

  /** A host has heard that a domain was removed. */
  toldRemoval(id: string, host: string): Promise<void> {
    return this.#change((draft) => {
      const removed = draft.removed.find((one) => one.id === id);
      if (removed !== undefined) removed.tell = removed.tell.filter((one) => one.host !== host);
    });
  }

  #noteWithdrawn(key: string, epoch: number): void {
    const last = this.#withdrawn.get(key) ?? 0;
    this.#withdrawn.delete(key);
    this.#withdrawn.set(key, Math.max(last, epoch));
    for (const oldest of this.#withdrawn.keys()) {
      if (this.#withdrawn.size <= MOST_WITHDRAWN) break;
      this.#withdrawn.delete(oldest);
    }
  }

  #add(draft: DomainRecords, record: DomainRecord, secret: Buffer): Promise<DomainRecord> {
    const { name } = record;
    if (!draft.domains.includes(record)) draft.domains.push(record);
    return writeWhole(join(this.#folder, name + KEY), `${secret.toString('hex')}\n`).then(() => {
      // usable once the records say so: `get` needs both
      this.#secrets.set(name, secret);
      return record;
    });
  }

  /**
   * Changes the records: all of what `work` does to the draft, or nothing. It counts once it is on the disk.
   *
   * A secret that came with a change that could not be written down goes again; were the agent to die first, its file is
   * nobody's, and goes at the next start.
   */
  #change<T>(work: (draft: DomainRecords) => T | Promise<T>): Promise<T> {
    const run = async (): Promise<T> => {
      const draft = structuredClone(this.#records);
      try {
        const result = await work(draft);
        forgetOldest(draft);
        await writeWhole(join(this.#folder, RECORDS), printRecords(draft));
        this.#records = draft;
        for (const changed of this.#changed) changed();
        return result;
      } catch (error) {
        await this.#dropStrays();
        throw error;
      }
    };
    const result = this.#work.then(run);
    this.#work = result.then(
      () => undefined,
      () => undefined,
    );
    return result;
  }

  async #dropStrays(): Promise<void> {
    for (const [name, secret] of this.#secrets) {
      if (this.record(name) !== undefined) continue;
      secret.fill(0);
      this.#secrets.delete(name);
      await removeFile(join(this.#folder, name + KEY)).catch(() => undefined);
    }
  }

  async #erase({ id, name, number }: Readonly<RemovedRecord>): Promise<void> {
    for (const tell of this.#told) tell({ name, id: number });
    await this.#change(async (draft) => {
      // one of that name may have come since
      if (!draft.domains.some((domain) => domain.name === name)) await removeFile(join(this.#folder, name + KEY));
      const removed = draft.removed.find((one) => one.id === id);
      if (removed !== undefined) removed.erased = true;
    });
  }

  async #readSecret({ name, mark }: DomainRecord): Promise<void> {
    const path = join(this.#folder, name + KEY);
    try {
      if (await keepToOwner(path))
        this.#log.warn({ domain: name, path }, 'others could read the secret of this domain: better make a new one');
      const secret = readKeyFile(path);
      if (keyMark(secret) !== mark) throw new PagetideError('PT_IO', `${path} holds the secret of another domain`);
      this.#secrets.set(name, secret);
    } catch (error) {
      const { code, message } = asPagetideError(error, 'PT_IO', `cannot read ${path}`);
      this.#log.error({ domain: name, code }, `this domain can't be used here: ${message}`);
    }
  }
}

/** Grows for ever; with the clock, so that it also does where the records were restored from an older copy. */
function nextEpoch(draft: DomainRecords): number {
  return (draft.epoch = Math.max(draft.epoch + 1, Date.now()));
}

function byHost(host: string | null, id: string): string {
  return `${host ?? ''} ${id}`;
}

/** A record of a domain that nobody has here yet. */
function newRecord(draft: DomainRecords, name: string, id: string, secret: Buffer): DomainRecord {
  if (draft.domains.some((domain) => domain.name === name))
    throw new PagetideError('PT_DOMAIN_EXISTS', `there is a domain '${name}' already`);
  if (draft.domains.length >= MOST_DOMAINS)
    throw new PagetideError('PT_BAD_ARGUMENT', `an agent has ${MOST_DOMAINS} domains at most`);
  // of the secret, so that pages of an earlier time are found; never that of another whose pages may still be there
  const taken = new Set([...draft.domains, ...draft.removed].map(({ number }) => number));
  let number = keyNumber(secret);
  while (taken.has(number) && draft.removed.find((one) => one.number === number)?.id !== id)
    number = (number + 1) >>> 0;
  return { name, id, number, mark: keyMark(secret), home: null, grants: [], members: [] };
}

/** Only who gave a domain may change or withdraw it; over the control socket (null) that is the operator, for any. */
function checkHome({ name, home }: Readonly<DomainRecord>, host: string | null): void {
  if (home === null)
    throw new PagetideError('PT_DOMAIN_EXISTS', `the domain '${name}' was made on this host`, {
      hint: 'Grant it from here, or remove it here.',
    });
  if (host === null || home.host === host) return;
  throw new PagetideError('PT_NO_PERMISSION', `the domain '${name}' was not granted by ${host}`, {
    hint: 'Only the host that made a domain grants and revokes it.',
  });
}

function needDomain(draft: DomainRecords, id: string): DomainRecord {
  const record = draft.domains.find((domain) => domain.id === id);
  if (record === undefined) throw new PagetideError('PT_DOMAIN_UNKNOWN', 'the domain was removed meanwhile');
  return record;
}

function unknown(name: string): PagetideError {
  return new PagetideError('PT_DOMAIN_UNKNOWN', `there is no domain '${name}' on this host`);
}
