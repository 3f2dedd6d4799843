/**
 * Keeps the page server told of the domains whose pages other hosts may have by tag, and of who those hosts are:
 *
 *   domain made, granted, revoked, removed; members told by its home ──► page server: share, or unshare
 *
 * A host that lost the domain is cut off as soon as this agent knows; a domain that was removed is shared with nobody before its
 * key is let go.
 */
import type { Logger } from 'pino';
import { asPagetideError } from '../errors.ts';
import type { DomainStore } from '../domains/store.ts';
import type { SharedPages } from '../migration/shared-pages.ts';
import type { DomainKey } from '../pages/tags.ts';
import type { PageServer } from '../transport/page-server.ts';
import type { Snapshots } from './snapshots.ts';

export interface SharedDomainsParts {
  store: Pick<DomainStore, 'all' | 'get' | 'members' | 'onChange'>;
  shared: Pick<SharedPages, 'cache' | 'resident' | 'domain'>;
  snapshots: Pick<Snapshots, 'lookups'>;
  pageServer: Pick<PageServer, 'share' | 'unshare'>;
  log: Logger;
}

interface Told {
  key: DomainKey;
  hosts: string;
}

export class SharedDomains {
  readonly #parts: SharedDomainsParts;
  /** By the mark of the secret: what the page server was told. */
  readonly #told = new Map<string, Told>();
  /** Never rejects. */
  #work: Promise<void> = Promise.resolve();
  #due = false;
  #closed = false;

  constructor(parts: SharedDomainsParts) {
    this.#parts = parts;
  }

  /** Tells what there is, and from now on what changes. Resolves when the first is told. */
  start(): Promise<void> {
    const { store } = this.#parts;
    store.onChange(() => this.#soon());
    this.#soon();
    return this.#work;
  }

  /** Lets go of all keys. When the page server is closed. */
  async close(): Promise<void> {
    this.#closed = true;
    await this.#work;
    for (const { key } of this.#told.values()) key.close();
    this.#told.clear();
  }

  #soon(): void {
    if (this.#due || this.#closed) return;
    this.#due = true;
    this.#work = this.#work.then(async () => {
      this.#due = false;
      try {
        await this.#tell();
      } catch (thrown) {
        const { code, message } = asPagetideError(thrown);
        if (!this.#closed) this.#parts.log.error({ code }, `other hosts of a domain cannot be told apart: ${message}`);
      }
    });
  }

  async #tell(): Promise<void> {
    const { store, shared, snapshots, pageServer } = this.#parts;
    const here = new Set<string>();
    for (const { name } of store.all()) {
      // `domain` of the shared pages, as the cache needs the key to verify what an earlier run left
      const domain = store.get(name);
      if (domain === undefined || shared.domain(name) === undefined) continue;
      const { mark: id } = domain;
      here.add(id);
      const hosts = store.members(name).map(({ host }) => host);
      const known = this.#told.get(id);
      const now = JSON.stringify(hosts);
      if (known?.hosts === now) continue;
      const key = known?.key ?? domain.openKey();
      const place = {
        key: key.id,
        cache: shared.cache?.id ?? 0,
        resident: shared.resident?.lookups(domain.id) ?? 0,
        files: snapshots.lookups(domain.id),
      };
      this.#told.set(id, { key, hosts: now });
      await pageServer.share({ id, place, hosts });
    }
    for (const [id, { key }] of [...this.#told]) {
      if (here.has(id)) continue;
      await pageServer.unshare(id);
      this.#told.delete(id);
      key.close();
    }
  }
}
