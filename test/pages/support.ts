/** Pages with tags, and caches of them. */
import { createHash } from 'node:crypto';
import { readFileSync, truncateSync } from 'node:fs';
import { join } from 'node:path';
import type { Test } from 'tap';
import { native, type FaultSession } from '../../src/memory/native.ts';
import { CACHE_PAGE, PageCache, TAG_BYTES } from '../../src/pages/cache.ts';
import { scratch } from '../guests/embedded-support.ts';

export const KEYS = [0, 1, 2].map((domain) => new Uint8Array(32).fill(domain + 1));

/** Page number `n`: no two alike, none zero. */
export function makePage(n: number): Uint8Array {
  const page = new Uint8Array(CACHE_PAGE);
  const words = new Uint32Array(page.buffer);
  for (let i = 0; i < words.length; i++) words[i] = Math.imul(n + 1, 0x9e3779b1) + Math.imul(i, 0x85ebca6b);
  return page;
}

export function makeTag(domain: number, page: Uint8Array): Uint8Array {
  return new Uint8Array(createHash('sha256').update(KEYS[domain]!).update(page).digest()).slice(0, TAG_BYTES);
}

/** Bytes of a cache file with `slots` slots. */
export function bytesOf(slots: number): number {
  return CACHE_PAGE * (1 + Math.ceil((slots * 32) / CACHE_PAGE) + slots);
}

/** Opens, with all keys; closed when the test ends. */
export function openCache(t: Test, path: string, slots: number, replace = false): PageCache {
  const cache = PageCache.open({ path, bytes: bytesOf(slots), replace });
  t.teardown(() => cache.close());
  KEYS.forEach((key, domain) => cache.setKey(domain, key));
  return cache;
}

export function cachePath(t: Test): string {
  return join(scratch(t), 'cache');
}

/** Memory of this process on tmpfs, missing; `read` gives a frame as the file has it. */
export function makeGuest(t: Test, frames: number): { session: FaultSession; read: (frame: number) => Buffer } {
  const path = `${cachePath(t)}-ram`;
  const arena = native().createArena(path, CACHE_PAGE, frames);
  t.teardown(() => native().destroyArena(arena));
  truncateSync(path, 0);
  truncateSync(path, frames * CACHE_PAGE);
  const line = readFileSync('/proc/self/maps', 'latin1')
    .split('\n')
    .find((text) => text.endsWith(path));
  const hostAddress = parseInt(line!.split('-')[0]!, 16);
  const { fd: uffd } = native().createUserfault(0n);
  const regions = [{ hostAddress, size: frames * CACHE_PAGE, offset: 0 }];
  const session = native().createSession({ uffd, regions, pageSize: CACHE_PAGE, shared: true });
  session.register();
  t.teardown(() => {
    session.unregister({ force: true });
    native().destroySession(session.id);
    session.close();
  });
  return { session, read: (frame) => readFileSync(path).subarray(frame * CACHE_PAGE, (frame + 1) * CACHE_PAGE) };
}
