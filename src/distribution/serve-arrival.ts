/** What of an arriving guest's pages was there because it had been brought. */
import { TAG_WORDS, toWords } from '../directory/tag-words.ts';
import type { Domain } from '../migration/domains.ts';
import type { PageCache } from '../pages/cache.ts';
import { HELD, type HeldPages } from './held-pages.ts';
import { Turns } from './pieces.ts';
import type { Score } from './score.ts';

const SOME = 2048;

/**
 * Counts the arrival, and each held page of the guest once: unless the cache has lost it, or a guest that it served before is still here, which
 * would have given it as well.
 *
 * @param tags of the guest's frames, packed; they may change meanwhile
 */
export async function serveArrival(
  domain: Pick<Domain, 'id' | 'name'>,
  tags: Uint8Array,
  held: HeldPages,
  score: Score,
  cache: Pick<PageCache, 'has'>,
): Promise<{ pages: number; bytes: number }> {
  const sum = { pages: 0, bytes: 0 };
  if (held.count(domain.id) === 0) return sum;
  held.countArrival(domain.id);
  const turns = new Turns();
  for (let from = 0; from < tags.length; from += SOME * 16) {
    await turns.next();
    const some = tags.slice(from, from + SOME * 16);
    const words = toWords(some);
    const present = new Uint8Array(words.length / TAG_WORDS);
    cache.has(some, present);
    for (let i = 0; i < present.length; i++) {
      if (present[i] !== 1) continue;
      const row = held.find(domain.id, words, i * TAG_WORDS);
      if (row < 0 || held.state(row) !== HELD || held.isResident(row)) continue;
      const bytes = held.serve(row);
      score.served(domain.name, held.classOf(row), bytes);
      sum.pages++;
      sum.bytes += bytes;
    }
  }
  return sum;
}
