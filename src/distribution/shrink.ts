/** Lets go of the least important held pages until a lower budget holds, without a plan. */
import type { PageCache } from '../pages/cache.ts';
import { HELD, HELD_BYTES, type HeldPages } from './held-pages.ts';
import type { Prices } from './importance.ts';
import { ascendingInPieces } from './order.ts';
import { Turns } from './pieces.ts';
import { rankKey } from './score.ts';

/** Resolves to how many left. They are ranked by what was known when they were brought or planned last. */
export async function shrinkTo(
  budgetBytes: number,
  held: HeldPages,
  cache: Pick<PageCache, 'setValue'>,
  prices: Prices,
  nowMs: number,
): Promise<number> {
  if (held.bytes <= budgetBytes) return 0;
  const turns = new Turns();
  const rows: number[] = [];
  for (let row = 0; row < held.index.rows; row++) if (held.state(row) === HELD) rows.push(row);
  const keys = new Uint32Array(rows.length);
  for (const [i, row] of rows.entries()) {
    if (i % 4096 === 4095) await turns.next();
    const wire = held.wireBytes(row);
    const worth = (held.likelihood(row) * wire) / (HELD_BYTES * prices.hold + wire * prices.bring);
    keys[i] = rankKey(worth, held.isUnpaid(row));
  }
  const order = await turns.run(ascendingInPieces(keys));
  let left = 0;
  for (const nth of order) {
    if (held.bytes <= budgetBytes) break;
    if (left % 64 === 63) await turns.next();
    const row = rows[nth]!;
    // gone meanwhile; its row may be another page's, that is as good as any other then
    if (held.state(row) !== HELD) continue;
    cache.setValue(held.index.tagsOf([row]), 0);
    held.leave(row, nowMs);
    left++;
  }
  return left;
}
