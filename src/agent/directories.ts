/**
 * Which directory each domain has, as this agent reaches it:
 *
 *   a Redis is configured      the domain's there, as for all its hosts; see redis-directories.ts
 *   made here                  embedded, kept in <state>/directory/<domain id>/; other hosts of the domain use it by way of `member`
 *   granted from elsewhere     the one of its home
 *
 * One instance a domain, so its limits are a domain's. It comes and goes with the domain: what follows is told by the store of domains, one
 * change after the other. A host whose grant is revoked may not ask from that moment on, and is taken out with what it told.
 */
import { readdir, rm } from 'node:fs/promises';
import { join } from 'node:path';
import type { Logger } from 'pino';
import type { Sender } from '../domains/messages.ts';
import type { DomainRecord } from '../domains/records.ts';
import type { DomainStore } from '../domains/store.ts';
import { MOST_QUERY_TAGS, type Directory } from '../directory/directory.ts';
import type { TagPace } from '../distribution/tag-pace.ts';
import { MemberDirectory } from '../directory/member.ts';
import { AnsweredLists } from '../directory/paced-lists.ts';
import { PersistentDirectory } from '../directory/persistent.ts';
import { asPagetideError, PagetideError } from '../errors.ts';
import { TAG_BYTES } from '../pages/tags.ts';
import { RemoteDirectory } from '../transport/directory-client.ts';
import type { ConnectPeer } from '../transport/member-peer.ts';
import { DirectoryWatch, type DirectoryState } from './directory-watch.ts';
import type { RedisDirectories } from './redis-directories.ts';
import { isMarked, markRedis } from './redis-mark.ts';
import { ListedTags, tagsFrom, type TagPage, type TagPageAsked } from './guest-tag-pages.ts';
import type { AgentDirectories } from './service.ts';

const LEASE_MS = 120_000;
const SAVE_MS = 180_000;
const LOOK_MS = 60_000;

export interface DirectoriesParts {
  store: Pick<DomainStore, 'all' | 'byId' | 'record' | 'members' | 'onChange'>;
  /** `<state>/directory`. */
  folder: string;
  /** The name in this agent's certificate. Undefined: it has none. */
  identity: string | undefined;
  /** This agent's control socket. */
  control: string;
  connect: ConnectPeer;
  /** Names of the guests of a domain that are here. */
  guests(domainName: string): string[];
  /** Of a guest here: its domain's name, and what of it is stable, packed, each once. Undefined: there is no such guest. */
  stableTags(guest: string): { domain: string; tags: Uint8Array } | undefined;
  log: Logger;
  /** Of tags that others ask for; without one they are told at once. */
  pace?: TagPace | undefined;
  /** Where directories are instead, whoever made their domains. Closed with this. */
  redis?: RedisDirectories | undefined;
  /** Between two looks at what only the home knows of a domain in a Redis, milliseconds; 60,000 by default. */
  lookMs?: number;
  /** After which a host that says nothing is taken out, milliseconds; 120,000 by default. */
  leaseMs?: number;
  /** Between two snapshots, milliseconds; 180,000 by default. */
  saveMs?: number;
  /** Monotonic, and wall clock, milliseconds. */
  clock?: () => number;
  wall?: () => number;
}

interface Open {
  name: string;
  /** Where it was made, and what is used of that; as text. */
  place: string;
  self: string;
  directory: DirectoryWatch;
  /** Made here, and embedded. */
  own: PersistentDirectory | undefined;
  /** A member's, in a Redis: where to ask whether its home has it there, too. Undefined: no need, or known. */
  home?: RemoteDirectory | undefined;
}

export class Directories implements AgentDirectories {
  readonly #parts: DirectoriesParts;
  /** By the domain's id. */
  readonly #open = new Map<string, Open>();
  readonly #callbacks: (() => void)[] = [];
  #timer: NodeJS.Timeout | undefined;
  /** Never rejects. */
  #work: Promise<void> = Promise.resolve();
  #due = false;
  #lookTimer: NodeJS.Timeout | undefined;
  /** Never rejects. */
  #looking: Promise<void> = Promise.resolve();
  #lookDue = false;
  readonly #listed = new ListedTags();
  readonly #lists: AnsweredLists | undefined;
  /** Of the Redis, when it was looked at last: it would lose records. */
  #evicting: PagetideError | undefined;
  #closed = false;

  constructor(parts: DirectoriesParts) {
    this.#parts = parts;
    if (parts.pace !== undefined) this.#lists = new AnsweredLists(parts.pace);
  }

  /** Opens those that there are, and from now on follows the domains. Resolves when the first are there. Does not reject: what can't be opened is logged. */
  async start(): Promise<void> {
    const { store, redis, saveMs = SAVE_MS, lookMs = LOOK_MS } = this.#parts;
    store.onChange(() => this.#soon());
    this.#soon();
    await this.#work;
    this.#timer = setInterval(() => void this.save(), saveMs).unref();
    if (redis !== undefined) this.#lookTimer = setInterval(() => this.#look(), lookMs).unref();
  }

  /** Undefined: there is no such domain, or its directory can't be used. @returns domain: its id; self: what this host is called there */
  get(domainName: string): { directory: Directory; domain: string; self: string } | undefined {
    const id = this.#parts.store.record(domainName)?.id;
    const open = id === undefined ? undefined : this.#open.get(id);
    return open === undefined ? undefined : { directory: open.directory, domain: id!, self: open.self };
  }

  /** How it goes with the domain's directory. Undefined as of {@link get}. */
  state(domainName: string): DirectoryState | undefined {
    const id = this.#parts.store.record(domainName)?.id;
    return id === undefined ? undefined : this.#open.get(id)?.directory.state;
  }

  /** Calls back when {@link get} of some domain answers otherwise than before. */
  onChange(callback: () => void): void {
    this.#callbacks.push(callback);
  }

  /** What the store has told until now is done. */
  settled(): Promise<void> {
    return this.#work;
  }

  /** Writes snapshots of what has changed. Does not reject. */
  async save(): Promise<void> {
    for (const [domain, { own }] of this.#open)
      await own?.save().catch((thrown: unknown) => {
        const { code, message } = asPagetideError(thrown);
        this.#parts.log.warn({ domain, code }, `a directory is not kept for the next run: ${message}`);
      });
  }

  /** Ends all; what was made here is kept for the next run. */
  async close(): Promise<void> {
    this.#closed = true;
    clearInterval(this.#timer);
    clearInterval(this.#lookTimer);
    await this.#work;
    for (const { own, directory, home } of this.#open.values()) {
      await (own ?? directory).close();
      await home?.close();
    }
    this.#parts.redis?.close();
    await this.#looking;
    this.#open.clear();
  }

  // --- for operators

  /** @throws PagetideError `PT_DOMAIN_UNKNOWN`, `PT_DOMAIN_ELSEWHERE`, `PT_NO_SPACE`, `PT_IO`, `PT_PEER_UNREACHABLE` */
  async empty(domainName: string): Promise<void> {
    const record = this.#parts.store.record(domainName);
    if (record === undefined)
      throw new PagetideError('PT_DOMAIN_UNKNOWN', `there is no domain '${domainName}' on this host`);
    await this.#made(record).empty();
    this.#parts.log.info({ domain: domainName }, 'emptied the directory of a domain');
  }

  // --- between agents

  /**
   * The directory of a domain that was made here, for a host that has it.
   * @param as what it is called here, where no certificate says so
   * @throws PagetideError `PT_DOMAIN_UNKNOWN`, `PT_DOMAIN_ELSEWHERE`, `PT_NO_PERMISSION`
   */
  member(id: string, as: string | undefined, sender: Sender): Directory {
    const record = this.#need(id);
    const { own } = this.#needOpen(record);
    if (own === undefined) throw inRedis(record.name, this.#parts.redis);
    const host = nameOf(as, sender);
    const hosts = grantedTo(record);
    if (host === undefined || !hosts.includes(host)) throw notGranted(host);
    const check = (): void => {
      if (!grantedTo(this.#need(id)).includes(host)) throw notGranted(host);
    };
    return new MemberDirectory(own, id, host, { lists: this.#lists, hosts: hosts.length, check });
  }

  /** The guests of a domain that are here, by name, for a host that has it. @throws PagetideError `PT_DOMAIN_UNKNOWN`, `PT_NO_PERMISSION` */
  guests(id: string, as: string | undefined, sender: Sender): string[] {
    return this.#parts.guests(this.#asked(id, as, sender));
  }

  /**
   * A page of a guest's stable tags, for a host that has its domain; of `most` tags, or fewer where that is too much at once. Pages are of a moment
   * when somebody asked for the first, or later.
   * @throws PagetideError `PT_DOMAIN_UNKNOWN`, `PT_NO_PERMISSION`, `PT_GUEST_UNKNOWN`
   */
  async guestTags(
    id: string,
    guest: string,
    page: TagPageAsked,
    as: string | undefined,
    sender: Sender,
  ): Promise<TagPage> {
    const { pace } = this.#parts;
    const name = this.#asked(id, as, sender);
    const found = this.#listed.of(guest, page.cursor === 0, () => this.#parts.stableTags(guest));
    // one of another domain is none of the asker's
    if (found?.domain !== name)
      throw new PagetideError('PT_GUEST_UNKNOWN', `there is no guest '${guest}' of that domain here`);
    const most = Math.min(page.most ?? MOST_QUERY_TAGS, pace?.most ?? MOST_QUERY_TAGS);
    // made afterwards: many may wait
    await pace?.pass(Math.min(most * TAG_BYTES, found.tags.length));
    // it may have lost the domain meanwhile
    this.#asked(id, as, sender);
    return tagsFrom(found.tags, page.cursor, most);
  }

  /** The name of a domain that is asked about by a host that has it. */
  #asked(id: string, as: string | undefined, sender: Sender): string {
    const { name } = this.#need(id);
    const host = nameOf(as, sender);
    const members = this.#parts.store.members(name);
    if (host === undefined || !members.some((one) => one.host === host)) throw notGranted(host);
    return name;
  }

  #need(id: string): Readonly<DomainRecord> {
    const record = this.#parts.store.byId(id);
    if (record === undefined) throw new PagetideError('PT_DOMAIN_UNKNOWN', 'there is no such domain on this host');
    return record;
  }

  /** Of a domain made here. */
  #made(record: Readonly<DomainRecord>): Directory {
    const { own, directory } = this.#needOpen(record);
    return own ?? directory;
  }

  #needOpen({ id, name, home }: Readonly<DomainRecord>): Open {
    if (home !== null)
      throw new PagetideError('PT_DOMAIN_ELSEWHERE', `the directory of '${name}' is at ${home.host ?? home.url}`);
    const open = this.#open.get(id);
    if (open === undefined)
      throw new PagetideError('PT_DOMAIN_UNKNOWN', `the directory of '${name}' is not open`, {
        hint: "Try again; where that does not help, the agent's log says why.",
      });
    return open;
  }

  #soon(): void {
    if (this.#due || this.#closed) return;
    this.#due = true;
    this.#work = this.#work.then(async () => {
      this.#due = false;
      if (await this.#follow()) for (const callback of this.#callbacks) callback();
    });
  }

  /** Whether anything is another than before. */
  async #follow(): Promise<boolean> {
    const { store, log } = this.#parts;
    let changed = false;
    for (const [id, open] of [...this.#open]) {
      const record = store.byId(id);
      if (record !== undefined && placeOf(record) === open.place) continue;
      changed = true;
      this.#open.delete(id);
      // also before its folder goes
      await (open.own?.drop() ?? open.directory.close());
      await open.home?.close();
    }
    await this.#removeRest();
    for (const record of store.all()) {
      const { id, name } = record;
      try {
        if (!this.#open.has(id)) {
          this.#open.set(id, await this.#begin(record));
          changed = true;
        }
        const own = this.#open.get(id)?.own;
        if (own !== undefined) await this.#takeOut(id, own);
      } catch (thrown) {
        const { code, message } = asPagetideError(thrown);
        log.error({ domain: name, code }, `the directory of this domain can't be used: ${message}`);
      }
    }
    this.#look();
    return changed;
  }

  async #begin(record: Readonly<DomainRecord>): Promise<Open> {
    const { folder, identity, control, connect, redis, pace, leaseMs = LEASE_MS, clock, wall } = this.#parts;
    const { id: domain, name, home } = record;
    const log = this.#parts.log.child({ domain: name });
    const place = placeOf(record);
    const self = home?.as ?? identity ?? `unix:${control}`;
    const remote = home === null ? undefined : new RemoteDirectory({ ...home, domain, connect });
    if (redis !== undefined) {
      if (home === null) await markRedis(join(folder, domain));
      const most = pace === undefined ? undefined : (): number => pace.most >> 1;
      const directory = new DirectoryWatch(redis.open(domain, home === null, most), redis.shown, log, pace);
      return { name, place, self, own: undefined, directory, home: remote };
    }
    if (remote !== undefined)
      return {
        ...{ name, place, self, own: undefined },
        directory: new DirectoryWatch(remote, home!.host ?? home!.url, log, pace),
      };
    const own = await PersistentDirectory.open({
      ...{ folder: join(folder, domain), domain, leaseMs, log },
      ...(clock === undefined ? {} : { clock }),
      ...(wall === undefined ? {} : { wall }),
    });
    return { name, place, self, own, directory: new DirectoryWatch(own, null, log) };
  }

  /** Takes out who has the domain no more; also what a snapshot brought back, and who wrote to a Redis before it heard. */
  async #takeOut(id: string, directory: Directory): Promise<void> {
    for (const { host } of await directory.hosts()) {
      const open = this.#open.get(id);
      if (open === undefined) return;
      // as of now: later than the answer
      const grants = this.#parts.store.byId(id)?.grants ?? [];
      if (host !== open.self && !grants.some((one) => one.host === host && one.state !== 'revoking'))
        await directory.removeHost(host);
    }
  }

  /** What a Redis can't see by itself. In the background, as it may be away: nobody's start waits for it. */
  #look(): void {
    if (this.#parts.redis === undefined || this.#lookDue || this.#closed) return;
    this.#lookDue = true;
    this.#looking = this.#looking.then(async () => {
      this.#lookDue = false;
      // away: as it was; the watch says so
      const evicting = await this.#parts.redis?.evicting().catch(() => this.#evicting);
      this.#evicting = evicting;
      const all = [...this.#open].map(async ([id, open]) => this.#lookAt(id, open));
      await Promise.all([...all, this.#eraseRest()]);
    });
  }

  /** Does not reject: what fails is tried again with the next look, and the watch says so. */
  async #lookAt(id: string, open: Open): Promise<void> {
    const { directory, home, name } = open;
    // first, as the home may be away
    if (this.#evicting !== undefined) directory.mistaken(this.#evicting);
    else if (home === undefined) directory.mistaken(undefined);
    try {
      if (this.#parts.store.byId(id)?.home === null) await this.#takeOut(id, directory);
      if (home === undefined) return;
      await home.hosts();
      directory.mistaken(this.#evicting ?? notInRedis(name));
    } catch (thrown) {
      if (asPagetideError(thrown).code !== 'PT_DOMAIN_ELSEWHERE') return;
      directory.mistaken(this.#evicting);
    }
  }

  /** Deletes what domains made here left in the Redis, and then their folders. Does not reject. */
  async #eraseRest(): Promise<void> {
    const { folder, redis, log } = this.#parts;
    for (const id of await this.#restIn(folder)) {
      try {
        if (!(await isMarked(join(folder, id))) || !(await redis!.erase(id))) continue;
        await rm(join(folder, id), { recursive: true, force: true });
      } catch (thrown) {
        const { code, message } = asPagetideError(thrown);
        if (!this.#closed) log.warn({ id, code }, `a domain that is gone has something left in Redis: ${message}`);
      }
    }
  }

  /** Folders of domains that are gone. */
  async #restIn(folder: string): Promise<string[]> {
    const names: string[] = await readdir(folder).catch(() => []);
    return names.filter((name) => this.#parts.store.byId(name)?.home !== null && !this.#open.has(name));
  }

  /** Removes the folders of domains that are gone. */
  async #removeRest(): Promise<void> {
    const { folder, log, redis } = this.#parts;
    for (const name of await this.#restIn(folder)) {
      if (await isMarked(join(folder, name))) {
        if (redis !== undefined) continue;
        log.warn({ id: name }, 'what a domain that is gone had in a Redis stays there: none is configured any more');
      }
      await rm(join(folder, name), { recursive: true, force: true }).catch((thrown: unknown) => {
        log.warn({ code: 'PT_IO' }, `cannot remove the directory of a domain that is gone: ${String(thrown)}`);
      });
    }
  }
}

function grantedTo({ grants }: Readonly<DomainRecord>): string[] {
  return grants.filter(({ state }) => state !== 'revoking').map(({ host }) => host);
}

function placeOf({ home }: Readonly<DomainRecord>): string {
  return home === null ? '' : JSON.stringify([home.host, home.url, home.as]);
}

function inRedis(name: string, redis: RedisDirectories | undefined): PagetideError {
  return new PagetideError('PT_DOMAIN_ELSEWHERE', `the directory of '${name}' is in Redis, ${redis?.shown}`, {
    hint: 'All hosts of a domain use the same: set directory.url on this host as on the one that made the domain.',
  });
}

function notInRedis(name: string): PagetideError {
  return new PagetideError('PT_DOMAIN_ELSEWHERE', `the host that made '${name}' keeps its directory itself`, {
    hint: 'All hosts of a domain use the same: set directory.url on the host that made it, or on none.',
  });
}

function nameOf(as: string | undefined, sender: Sender): string | undefined {
  return sender ?? as;
}

function notGranted(host: string | undefined): PagetideError {
  return new PagetideError('PT_NO_PERMISSION', `${host?.slice(0, 300) ?? 'nobody'} does not have that domain`, {
    hint: 'Only hosts that have a domain use its directory: `pagetide domain grant` on the host that made it.',
  });
}
