/** A host that brings, and errands, for tests of it. */
import { join } from 'node:path';
import { PageBringer, type Errand, type ErrandResult } from '../../src/distribution/bringer.ts';
import { Outcome, type BringLimits } from '../../src/distribution/errand.ts';
import type { Rates } from '../../src/distribution/token-bucket.ts';
import type { Domain } from '../../src/migration/domains.ts';
import { PageCache } from '../../src/pages/cache.ts';
import { DomainKey, TAG_BYTES } from '../../src/pages/tags.ts';
import { folder } from '../transport/support.ts';
import { DOMAIN, NUMBER, keyOf } from '../transport/tag-support.ts';

interface Test {
  teardown(fn: () => unknown): unknown;
}

export const FAST: Rates = { average: 50e6, peak: 100e6 };

export interface Puller {
  bringer: PageBringer;
  cache: PageCache;
  domain: Domain;
}

/** @param bytes of its cache */
export function puller(
  t: Test,
  {
    rates = FAST,
    limits = {},
    bytes = 16 << 20,
  }: { rates?: Rates; limits?: Partial<BringLimits>; bytes?: number } = {},
): Puller {
  const cache = PageCache.open({ path: join(folder(t), 'cache'), bytes });
  t.teardown(() => cache.close());
  cache.useKey(NUMBER, keyOf(t, 1));
  const bringer = new PageBringer({ cache, rates, limits });
  t.teardown(() => bringer.close());
  const domain = { name: 'd', id: NUMBER, mark: DOMAIN, openKey: () => new DomainKey(Buffer.alloc(32, 1)) };
  return { bringer, cache, domain };
}

/** An errand in which every holder may have every page. */
export function errand({ domain }: Puller, tags: Uint8Array, urls: readonly string[], value = 3): Errand {
  const count = tags.length / TAG_BYTES;
  return {
    domain,
    urls,
    tags,
    first: Uint32Array.from({ length: count + 1 }, (_, i) => i * urls.length),
    holder: Uint16Array.from({ length: count * urls.length }, (_, i) => i % urls.length),
    value,
  };
}

/** How many tags came to each outcome. */
export function tally({ outcome }: ErrandResult): Partial<Record<keyof typeof Outcome, number>> {
  const counts: Partial<Record<keyof typeof Outcome, number>> = {};
  for (const [name, number] of Object.entries(Outcome)) {
    const count = outcome.filter((one) => one === number).length;
    if (count > 0) counts[name as keyof typeof Outcome] = count;
  }
  return counts;
}
