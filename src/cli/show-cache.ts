/** The cache as people read it. */
import type { CacheInfo } from '../agent/service.ts';
import { formatSize } from '../agent/units.ts';
import { percent } from './show.ts';
import { pairs } from './table.ts';

const PAGE = 4096;

export function showCache(info: CacheInfo): string {
  const { hits, misses } = info;
  const lookups = hits + misses;
  return pairs([
    ['file', `${info.path}${info.lost ? ' (CUT OFF: of no use until the agent is restarted)' : ''}`],
    ['pages', `${info.used} of ${info.slots} (${formatSize(info.used * PAGE)} of ${formatSize(info.slots * PAGE)})`],
    ['pinned', `${info.pinned} by running migrations`],
    ['lookups', lookups === 0 ? 'none' : `${lookups}: ${hits} hits (${percent(hits, lookups)}%), ${misses} misses`],
    ['inserted', `${info.insertions}, ${info.evictions} evicted, ${info.refused} found no room`],
    ['not right', `${info.rejected} refused, ${info.dropped} dropped`],
    ['chunks', `${info.chunks} known`],
    ['index', formatSize(info.indexBytes)],
  ]);
}
