/** Background streams beside others at the host that has the pages: in which order they are served, whatever the time it takes. */
import { join } from 'node:path';
import { setImmediate } from 'node:timers/promises';
import t from 'tap';
import { BACKGROUND_PAGES } from '../../src/distribution/wire-cost.ts';
import { PageCache } from '../../src/pages/cache.ts';
import { TAG_BYTES, TAG_PAGE } from '../../src/pages/tags.ts';
import { BatchPool } from '../../src/transport/batch-pool.ts';
import { BulkWriter } from '../../src/transport/server-bulk.ts';
import { connectTags } from '../../src/transport/tag-client.ts';
import { WireLimit } from '../../src/transport/wire.ts';
import { open, source, until } from './support.ts';
import { DOMAIN, NUMBER, keyOf, tagged } from './tag-support.ts';

void t.test('a slice of a background stream is written when no other stream has one', async (t) => {
  const writer = new BulkWriter();
  const written: string[] = [];
  const stream = (name: string, isBackground: boolean, slices: number) => {
    const self = {
      isBackground,
      writeSlice: () => {
        written.push(name);
        if (--slices > 0) writer.add(self);
      },
    };
    writer.add(self);
  };
  stream('background', true, 3);
  stream('fill', false, 3);
  stream('other', false, 2);
  await until(() => written.length === 8);
  t.same(written, ['fill', 'other', 'fill', 'other', 'fill', 'background', 'background', 'background']);
});

void t.test('a batch of a background stream waits until who got one has asked for the next', async (t) => {
  const pool = new BatchPool(1);
  t.teardown(() => pool.close());
  const made: string[] = [];
  const make = async (name: string): Promise<void> => {
    made.push(name);
    // of a domain that is not here: whatever the answer, it is one
    const place = { key: 0, cache: 0, resident: 0, files: 0 };
    await pool.run({ kind: 'tags', place, stream: 1, tags: new Uint8Array(TAG_BYTES), urgent: false });
  };
  t.ok(pool.isIdle);
  const fill = (async () => {
    for (const name of ['fill 1', 'fill 2', 'fill 3']) {
      await make(name);
      t.notOk(pool.isIdle, `${name} has ended, and nothing runs yet`);
    }
  })();
  const background = new Promise<void>((resolve) =>
    pool.whenIdle(() => {
      t.ok(pool.isIdle);
      resolve(make('background'));
    }),
  );
  await Promise.all([fill, background]);
  t.same(made, ['fill 1', 'fill 2', 'fill 3', 'background']);
});

void t.test('no batch of a saturated background stream is made while fill requests wait', async (t) => {
  const background = { average: 200e6, peak: 400e6 };
  const from = await source(t, 256, 'm1', { background });
  const key = keyOf(t, 1);
  const cache = PageCache.open({ path: join(from.folder, 'cache'), bytes: 4 << 20 });
  t.teardown(() => cache.close());
  cache.useKey(NUMBER, key);
  const { pages, tags } = tagged(key, BACKGROUND_PAGES);
  for (let i = 0; i < BACKGROUND_PAGES; i++) cache.insert(NUMBER, tags, i * TAG_BYTES, pages, i * TAG_PAGE);
  await from.server.share({ id: DOMAIN, place: { key: key.id, cache: cache.id, resident: 0, files: 0 }, hosts: [] });
  const stream = await connectTags({ url: from.url, domain: DOMAIN, key: key.id, background: true });
  t.teardown(() => stream.close());
  let answers = 0;
  const again = (): void =>
    void stream.pages(tags, (answer) => {
      if (answer === undefined) return;
      answers++;
      again();
    });
  for (let i = 0; i < 8; i++) again();
  await until(() => answers > 10);

  let batches = 0;
  const connection = await open(t, from, 'fill', {
    onBatch: () => {
      batches++;
    },
  });
  const most = WireLimit.batchRequests;
  for (let i = 0; i < most; i++) connection.requestBatch(Uint32Array.of(0, 256));
  // counted by the page server's thread, as batches are made
  const all = most * 256;
  const made: number[] = [];
  while (batches < most) {
    const { backgroundPages } = from.server.tagCounters();
    const { fillPages, fillZero } = from.server.counters('m1')!;
    // while some were made, and two at least were still to be: all had been read by then
    if (fillPages + fillZero > 0 && fillPages + fillZero <= all - 2 * 256) made.push(backgroundPages);
    await setImmediate();
  }
  t.ok(made.length > 2, `${made.length} looks`);
  const during = made.at(-1)! - made[1]!;
  t.ok(during <= BACKGROUND_PAGES, `${during} pages of the background meanwhile: what had been begun at most`);
  const before = answers;
  await until(() => answers > before + 10);
  t.pass('and it goes on');
});
