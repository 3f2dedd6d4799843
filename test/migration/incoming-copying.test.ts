/** Rounds at the destination, as they are asked for: again, too late, out of order, and when they fail. */
import t from 'tap';
import { PagetideError } from '../../src/errors.ts';
import type { FillRound } from '../../src/memory/fill-service.ts';
import type { ServiceFigures } from '../../src/memory/guest-service.ts';
import { Copying, type CopyingOptions } from '../../src/migration/incoming-copying.ts';
import { deferred, type Deferred } from '../transport/support.ts';

class Bed {
  /** What happened, in order. */
  readonly seen: string[] = [];
  told = 0;
  installed = 0;
  outstanding = 0;
  readonly #waiting: { round: number; is: Deferred<true> }[] = [];
  /** The round of the worker that is under way. */
  round: Deferred<boolean> | undefined;
  readonly copying: Copying;

  constructor(answerMs = 60_000) {
    const counts = () => ({ outstanding: this.outstanding, zero: 7 });
    this.copying = new Copying({
      copy: { counts } as unknown as CopyingOptions['copy'],
      names: {
        takeTold: () => {
          this.seen.push('take');
          return { missing: 3, zero: 2 };
        },
      } as unknown as CopyingOptions['names'],
      service: {
        round: (kind: FillRound) => {
          this.seen.push(kind);
          this.round = deferred<boolean>();
          return this.round.promise;
        },
        halt: () => {
          this.seen.push('halt');
          this.round?.resolve(false);
        },
        figures: () =>
          ({
            counts: counts(),
            ...{ cached: 0, resident: 0, repeated: 0, fromPeers: 0, installed: this.installed },
          }) as unknown as ServiceFigures,
        wireBytes: () => this.installed * 100,
      },
      channel: {
        told: async (round) => {
          if (round <= this.told) return;
          const is = deferred<true>();
          this.#waiting.push({ round, is });
          await is.promise;
        },
      },
      answerMs,
    });
  }

  tell(round: number): void {
    this.told = round;
    for (const { round: waited, is } of this.#waiting) if (waited <= round) is.resolve(true);
  }

  async began(): Promise<void> {
    while (this.round === undefined) await new Promise((resolve) => setImmediate(resolve));
  }

  end(copied: boolean | PagetideError, installed = 0): void {
    const { round } = this;
    this.round = undefined;
    this.installed += installed;
    if (copied instanceof PagetideError) round?.reject(copied);
    else round?.resolve(copied);
  }
}

void t.test('a round begins once it is told, and is answered again as it was', async (t) => {
  const bed = new Bed();
  const first = bed.copying.round(1);
  const again = bed.copying.round(1);
  t.same(bed.seen, []);
  t.notOk(bed.copying.hasTaken, 'nobody knows yet what is lacking');
  bed.tell(1);
  await bed.began();
  t.ok(bed.copying.hasTaken);
  t.same(bed.seen, ['take', 'loose']);
  bed.outstanding = 4;
  bed.end(true, 9);
  const copied = await first;
  t.match(copied, {
    ...{ round: 1, lacking: 4, wireBytes: 900 },
    frames: { zero: 7, cache: 0, resident: 0, duplicate: 0, peer: 0, source: 9 },
  });
  t.equal(await again, copied);
  t.equal(await bed.copying.round(1), copied);
  t.equal(bed.seen.length, 2, 'copied once');

  bed.tell(2);
  const second = bed.copying.round(2);
  await t.rejects(bed.copying.round(3), { code: 'PT_PROTOCOL' }, 'another one while it is under way');
  await bed.began();
  bed.end(true, 5);
  t.match(await second, { round: 2, frames: { zero: 2, source: 5 }, wireBytes: 500 });
  await t.rejects(bed.copying.round(1), { code: 'PT_PROTOCOL' }, 'one that is over');
});

void t.test('a round that takes its time is answered without figures, and goes on', async (t) => {
  const bed = new Bed(1);
  bed.tell(1);
  t.equal(await bed.copying.round(1), undefined);
  t.equal(await bed.copying.round(1), undefined);
  await bed.began();
  bed.end(true, 1);
  for (let copied; copied === undefined;) copied = await bed.copying.round(1);
  t.same(bed.seen, ['take', 'loose']);
});

void t.test('one that failed may be asked for again', async (t) => {
  const bed = new Bed();
  bed.tell(1);
  const failed = t.rejects(bed.copying.round(1), { code: 'PT_NO_SPACE' });
  await bed.began();
  bed.end(new PagetideError('PT_NO_SPACE', 'full'));
  await failed;
  const again = bed.copying.round(1);
  await bed.began();
  bed.end(true);
  t.match(await again, { round: 1 });
});

void t.test('the end of it', async (t) => {
  await t.test('while it waits to be told', async (t) => {
    const bed = new Bed();
    const waits = t.rejects(bed.copying.round(1), { code: 'PT_CANCELLED' });
    await bed.copying.end();
    await waits;
    bed.tell(1);
    t.same(bed.seen, ['halt'], 'nothing is taken over behind its back');
    await t.rejects(bed.copying.round(1), { code: 'PT_PROTOCOL' });
  });

  await t.test('while it copies', async (t) => {
    const bed = new Bed();
    bed.tell(1);
    const halted = t.rejects(bed.copying.round(1), { code: 'PT_CANCELLED' });
    await bed.began();
    await bed.copying.end();
    await halted;
    bed.copying.settle();
    t.same(bed.seen, ['take', 'loose', 'halt', 'take']);
    bed.outstanding = 0;
    await bed.copying.rest();
    t.equal(bed.seen.length, 4, 'nothing is left');
    bed.outstanding = 2;
    bed.round = undefined;
    const rest = bed.copying.rest();
    await bed.began();
    t.equal(bed.seen.at(-1), 'strict');
    bed.end(true);
    await rest;
  });
});
