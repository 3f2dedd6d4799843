/** The next errand of a plan: what is to be brought now, and from whom. */
import { copyResident } from '../pages/resident.ts';
import { TAG_WORDS } from '../directory/tag-words.ts';
import type { PageCache } from '../pages/cache.ts';
import type { Member } from './bringing.ts';
import type { Errand } from './errand.ts';
import { SKIP } from './candidates.ts';
import { Turns } from './pieces.ts';
import type { DomainPlan } from './planner.ts';

/** Tags of one errand at most. */
export const MOST_ERRAND = 1024;
/** Least worth of a brought page in the cache: it outlives so many rounds of the queue. */
const VALUE = 4;
const MOST_VALUE = 15;

export interface RowErrand extends Errand {
  plan: DomainPlan;
  /** Row of the plan's table, a tag. */
  rows: number[];
}

/** The plan whose next page is the most important; undefined: nothing is left to be brought. */
export function nextPlan(plans: Iterable<DomainPlan>): DomainPlan | undefined {
  let best: DomainPlan | undefined;
  for (const plan of plans)
    if (plan.queued > 0 && !plan.gone && (best === undefined || plan.importance[plan.at]! > best.importance[best.at]!))
      best = plan;
  return best;
}

/**
 * Takes up to `most` pages off the plan's queue. Left out, and not brought by this plan: what came to the cache meanwhile, what a guest here has,
 * and what only hosts have whose agents aren't known.
 *
 * @param lookups of the resident index; undefined: there is none
 */
export async function makeErrand(
  plan: DomainPlan,
  most: number,
  members: readonly Member[],
  cache: Pick<PageCache, 'has'>,
  lookups: number | undefined,
): Promise<RowErrand> {
  const { table, domain } = plan;
  const end = Math.min(plan.queue.length, plan.at + most);
  const taken = plan.queue.slice(plan.at, end);
  const value = Math.min(MOST_VALUE, VALUE + Math.floor(Math.log2(1 + plan.importance[plan.at]!)));
  plan.at = end;
  const tags = table.index.tagsOf(taken);
  const present = new Uint8Array(taken.length);
  cache.has(tags, present);
  const urls = members.map(({ url }) => url);
  const urlOf = table.hosts.map((name) => members.findIndex(({ host }) => host === name));
  const rows: number[] = [];
  const first = [0];
  const holder: number[] = [];
  const wanted = new Uint8Array(tags.length);
  const page = new Uint8Array(lookups === undefined ? 0 : 4096);
  const turns = new Turns();
  for (const [i, row] of taken.entries()) {
    if (i % 16 === 15) await turns.next();
    if (present[i] !== 1 && !(lookups !== undefined && copyResident(lookups, tags, i, page))) {
      table.eachHolder(row, (host) => {
        if (urlOf[host]! >= 0) holder.push(urlOf[host]!);
      });
      if (holder.length > first.at(-1)!) {
        wanted.set(tags.subarray(i * TAG_WORDS * 4, (i + 1) * TAG_WORDS * 4), rows.length * TAG_WORDS * 4);
        rows.push(row);
        first.push(holder.length);
        continue;
      }
    }
    table.decide(row, SKIP);
  }
  return {
    ...{ plan, rows, domain, urls, tags: wanted.slice(0, rows.length * TAG_WORDS * 4) },
    ...{ first: Uint32Array.from(first), holder: Uint16Array.from(holder), value },
  };
}
