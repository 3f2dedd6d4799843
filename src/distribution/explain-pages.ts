/** Where pages stand at this host, summed: for `explain`, and for who waits until a host has what it will bring. */
import { TAG_WORDS, toWords } from '../directory/tag-words.ts';
import type { PageCache } from '../pages/cache.ts';
import type { DirectoryPlace } from './bringing.ts';
import { BRING, KEEP, LEAVE } from './candidates.ts';
import { HELD, HELD_BYTES, type HeldPages } from './held-pages.ts';
import { SHARED_LIFE_MS, stability } from './importance.ts';
import {
  hintText,
  type DecisionCount,
  type DistributionSettings,
  type HostExplanation,
  type PageReason,
} from './info.ts';
import { Turns } from './pieces.ts';
import type { DomainPlan } from './planner.ts';
import { pageClassOf, type Score } from './score.ts';

export interface ExplainTask {
  /** The domain's number. */
  domain: number;
  tags: Uint8Array;
  plan: DomainPlan | undefined;
  place: DirectoryPlace | undefined;
  held: HeldPages;
  cache: Pick<PageCache, 'has'> | undefined;
  score: Score;
  settings: Pick<DistributionSettings, 'horizonMs' | 'prices'>;
  wireMean: number;
  nowMs: number;
}

/** Never rejects for the directory's sake: where it is away, no guest here is known to have a page. */
export async function explainPages(task: ExplainTask): Promise<HostExplanation> {
  const { tags, plan, held, cache } = task;
  const words = toWords(tags);
  const pages = words.length / TAG_WORDS;
  const present = new Uint8Array(pages);
  cache?.has(tags, present);
  const here = await guestsHere(task);
  const sums = new Map<string, DecisionCount>();
  const sum = {
    ...{ pages, guests: 0, cache: 0, brought: 0, queued: 0, missing: 0 },
    hints: plan?.hints.map(hintText) ?? null,
  };
  const turns = new Turns();
  for (let i = 0; i < pages; i++) {
    if (i % 256 === 255) await turns.next();
    const at = i * TAG_WORDS;
    const row = plan?.table.index.find(words, at) ?? -1;
    const own = held.find(task.domain, words, at);
    const brought = own >= 0 && held.state(own) === HELD && present[i] === 1;
    const queued = row >= 0 && plan!.decision(row) === BRING && present[i] !== 1;
    sum.guests += here[i]!;
    sum.cache += present[i]!;
    if (brought) sum.brought++;
    if (queued && here[i] !== 1) sum.queued++;
    if (!queued && present[i] !== 1 && here[i] !== 1) sum.missing++;
    const [decision, reason] = decide(task, row, { brought, here: here[i] === 1, cached: present[i] === 1 });
    const key = decision + reason;
    let count = sums.get(key);
    if (count === undefined)
      sums.set(key, (count = { decision, reason, pages: 0, wireBytes: 0, expectedBytes: 0, costBytes: 0 }));
    const figures = figuresOf(task, row, own);
    count.pages++;
    count.wireBytes += figures.wire;
    count.expectedBytes += figures.expected;
    count.costBytes += figures.cost;
  }
  return { ...sum, decisions: [...sums.values()] };
}

function decide(
  task: ExplainTask,
  row: number,
  { brought, here, cached }: { brought: boolean; here: boolean; cached: boolean },
): [DecisionCount['decision'], PageReason] {
  if (row >= 0 && task.plan!.decision(row) === LEAVE && !brought) return ['leave', reasonOf(task, row)];
  if (brought) return ['keep', 'important'];
  if (here) return ['skip', 'a guest has it'];
  if (cached) return ['skip', 'in the cache anyway'];
  if (row < 0) return ['skip', 'unknown'];
  // one that was to be kept and is gone: the cache evicted it since
  if (task.plan!.decision(row) === BRING || task.plan!.decision(row) === KEEP) return ['bring', 'important'];
  return ['skip', reasonOf(task, row)];
}

function reasonOf(task: ExplainTask, row: number): PageReason {
  if (task.plan!.table.isUnpaid(row)) return 'never paid';
  const { expected, cost } = figuresOf(task, row, -1);
  return expected >= cost ? 'no room in the budget' : 'not worth its cost';
}

function figuresOf(task: ExplainTask, row: number, own: number): { wire: number; expected: number; cost: number } {
  const { plan, held, score, settings } = task;
  const wire = own < 0 ? task.wireMean : held.wireBytes(own);
  const cost = HELD_BYTES * settings.prices.hold + wire * settings.prices.bring;
  if (row < 0) return { wire, expected: 0, cost };
  const { table } = plan!;
  const stable = stability(task.nowMs - table.sinceMs(row), settings.horizonMs, SHARED_LIFE_MS);
  const factor = score.factor(plan!.domain.name, own < 0 ? pageClassOf(table.guests(row)) : held.classOf(own));
  return { wire, expected: table.likelihood(row) * stable * wire * factor, cost };
}

/** 1: a guest of this host has it, says the directory. */
async function guestsHere({ place, tags }: ExplainTask): Promise<Uint8Array> {
  const here = new Uint8Array(tags.length / 16);
  if (place === undefined || tags.length === 0) return here;
  try {
    const { hosts, first, host, held } = await place.directory.holders(place.domain, tags);
    const self = hosts.indexOf(place.self);
    for (let i = 0; i < here.length; i++)
      for (let at = first[i]!; at < first[i + 1]!; at++) if (host[at] === self && held[at]! > 0) here[i] = 1;
  } catch {
    // away
  }
  return here;
}
