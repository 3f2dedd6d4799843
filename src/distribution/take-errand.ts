/** What became of an errand: into the account, and what was not brought back to the queue or not. */
import { TAG_WORDS, toWords } from '../directory/tag-words.ts';
import { KEEP, SKIP } from './candidates.ts';
import { Outcome, type ErrandResult } from './errand.ts';
import type { HeldPages } from './held-pages.ts';
import type { DistributionInfo } from './info.ts';
import type { RowErrand } from './make-errand.ts';
import { pageClassOf, type Score } from './score.ts';
import type { WireMeans } from './wire-means.ts';

export interface Account {
  held: HeldPages;
  score: Score;
  means: WireMeans;
  totals: DistributionInfo['totals'];
  nowMs: number;
  /** Whether pages that were stopped go back to the queue. */
  putsBack: boolean;
}

/** Takes nothing over where the domain is no more. */
export function takeErrand({ plan, rows, tags }: RowErrand, result: ErrandResult, account: Account): void {
  if (plan.gone) return;
  const { held, score, means, totals, nowMs } = account;
  const { outcome, wireBytes, unreachable } = result;
  const { domain, table } = plan;
  const words = toWords(tags);
  const stopped: number[] = [];
  let brought = 0;
  let full = false;
  for (const [i, row] of rows.entries()) {
    if (outcome[i] === Outcome.Stopped && account.putsBack) {
      stopped.push(row);
      continue;
    }
    table.decide(row, SKIP);
    if (outcome[i] === Outcome.Absent) totals.absentPages++;
    if (outcome[i] === Outcome.Full) full = true;
    if (outcome[i] !== Outcome.Brought) continue;
    table.decide(row, KEEP);
    const bytes = wireBytes[i]!;
    const guests = table.guests(row);
    held.add(
      words,
      i * TAG_WORDS,
      { domain: domain.id, guests, likelihood: table.likelihood(row), wireBytes: bytes },
      nowMs,
    );
    score.brought(domain.name, pageClassOf(guests), bytes);
    means.brought(domain.id, bytes);
    totals.broughtBytes += bytes;
    brought++;
  }
  totals.broughtPages += brought;
  plan.putBack(stopped);
  // no holder there now, or no room: the next plan knows more
  if (full || (brought === 0 && unreachable.length > 0)) plan.clear();
}
