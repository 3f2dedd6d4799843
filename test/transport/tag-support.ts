/** A host that has pages of a domain, for tests of pages by tag. */
import { randomBytes } from 'node:crypto';
import { join } from 'node:path';
import { native } from '../../src/memory/native.ts';
import { PageCache } from '../../src/pages/cache.ts';
import { DomainKey, TAG_BYTES, TAG_PAGE } from '../../src/pages/tags.ts';
import { PageServer, type PageServerOptions } from '../../src/transport/page-server.ts';
import { connectTags, type TagAddress, type TagConnection } from '../../src/transport/tag-client.ts';
import { folder } from './support.ts';

interface Test {
  teardown(fn: () => unknown): unknown;
}

export const DOMAIN = 'd0'.repeat(16);
/** By which the caches of these tests know the domain. */
export const NUMBER = 7;

/** A key of its own in native memory. */
export function keyOf(t: Test, secret: string | number): DomainKey {
  const key = new DomainKey(Buffer.alloc(32, secret));
  t.teardown(() => key.close());
  return key;
}

/** `count` pages, every other one random, and their tags. */
export function tagged(key: DomainKey, count: number): { pages: Buffer; tags: Uint8Array } {
  const pages = Buffer.alloc(count * TAG_PAGE);
  for (let i = 0; i < count; i++) {
    if (i % 2 === 0) pages.fill(`page ${i} `, i * TAG_PAGE, (i + 1) * TAG_PAGE);
    else randomBytes(TAG_PAGE).copy(pages, i * TAG_PAGE);
  }
  const tags = new Uint8Array(count * TAG_BYTES);
  native().tagPages(key.id, pages, count, tags);
  return { pages, tags };
}

export interface Holder {
  server: PageServer;
  url: string;
  cache: PageCache;
  key: DomainKey;
  /** Puts pages into its cache. */
  hold(pages: Buffer, tags: Uint8Array, which?: (index: number) => boolean): void;
}

/** An agent's page server with a cache, which shares the domain. */
export async function holder(
  t: Test,
  options: { secret?: string | number; hosts?: string[] } & Partial<PageServerOptions> = {},
): Promise<Holder> {
  const { secret = 1, hosts = [], ...server } = options;
  const path = folder(t);
  const key = keyOf(t, secret);
  const cache = PageCache.open({ path: join(path, 'cache'), bytes: 4 << 20 });
  t.teardown(() => cache.close());
  cache.useKey(NUMBER, key);
  const made = await PageServer.start({
    host: '127.0.0.1',
    port: 0,
    controlSocket: join(path, 'control'),
    ...server,
  });
  t.teardown(() => made.close());
  await made.share({ id: DOMAIN, place: { key: key.id, cache: cache.id, resident: 0, files: 0 }, hosts });
  return {
    server: made,
    url: made.address().url,
    cache,
    key,
    hold: (pages, tags, which = () => true) => {
      for (let i = 0; i < tags.length / TAG_BYTES; i++)
        if (which(i)) cache.insert(NUMBER, tags, i * TAG_BYTES, pages, i * TAG_PAGE);
    },
  };
}

export async function ask(t: Test, from: Holder, options: Partial<TagAddress> = {}): Promise<TagConnection> {
  const connection = await connectTags({ url: from.url, domain: DOMAIN, key: from.key.id, ...options });
  t.teardown(() => connection.close());
  return connection;
}

/** The callbacks as promises; pages are copied. */
export function have(connection: TagConnection, tags: Uint8Array): Promise<Uint8Array> {
  return new Promise((resolve, reject) => {
    const asked = connection.have(tags, (present, error) => {
      if (present === undefined) reject(error!);
      else resolve(present);
    });
    if (!asked) reject(new Error('it could not be asked'));
  });
}

export function pagesOf(
  connection: TagConnection,
  tags: Uint8Array,
): Promise<{ present: Uint8Array; pages: Buffer; bodyBytes: number }> {
  return new Promise((resolve, reject) => {
    const asked = connection.pages(tags, (answer, error) => {
      if (answer === undefined) reject(error!);
      else
        resolve({
          present: Uint8Array.from(answer.present),
          pages: Buffer.from(Uint8Array.from(answer.pages)),
          bodyBytes: answer.bodyBytes,
        });
    });
    if (!asked) reject(new Error('it could not be asked'));
  });
}
