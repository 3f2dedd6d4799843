/** The cache and the resident index as people read them. */
import type { CacheInfo } from '../agent/service.ts';
import { formatSize } from '../agent/units.ts';
import { percent } from './show.ts';
import { pairs } from './table.ts';

const PAGE = 4096;

export function showCache({ cache, resident, chunks }: CacheInfo): string {
  const parts = [
    pairs(cache === undefined ? [['cache', 'none (cache.size in the configuration of the agent)']] : cacheRows(cache)),
    pairs(resident === undefined ? [['guests here', 'not listed: there was no room']] : residentRows(resident)),
    pairs([['chunks', `${chunks} known`]]),
  ];
  return parts.join('\n\n');
}

type Rows = [string, string][];

function cacheRows(info: NonNullable<CacheInfo['cache']>): Rows {
  return [
    ['file', `${info.path}${info.lost ? ' (CUT OFF: of no use until the agent is restarted)' : ''}`],
    ['pages', `${info.used} of ${info.slots} (${formatSize(info.used * PAGE)} of ${formatSize(info.slots * PAGE)})`],
    ['pinned', `${info.pinned} by running migrations`],
    ['lookups', lookups(info)],
    ['inserted', `${info.insertions}, ${info.evictions} evicted, ${info.refused} found no room`],
    ['not right', `${info.rejected} refused, ${info.dropped} dropped`],
    ['index', formatSize(info.indexBytes)],
  ];
}

function residentRows(info: NonNullable<CacheInfo['resident']>): Rows {
  const { files, frames, listed, different, stale } = info;
  return [
    ['guests here', `${listed} of ${frames} pages listed, ${different} different, in ${files} memory files`],
    ['lookups', `${lookups(info)}${stale === 0 ? '' : `, ${stale} pages had changed`}`],
    ['index', formatSize(info.indexBytes)],
  ];
}

function lookups({ hits, misses }: { hits: number; misses: number }): string {
  const all = hits + misses;
  return all === 0 ? 'none' : `${all}: ${hits} hits (${percent(hits, all)}%), ${misses} misses`;
}
