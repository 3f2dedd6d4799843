/** Pages that do not come as they were: the source's second look, and the destination's doubts until they are in. */
import { closeSync, openSync, readFileSync, writeFileSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { PagetideError } from '../../src/errors.ts';
import type { GuestRecord } from '../../src/guests/driver.ts';
import { Doubts } from '../../src/migration/doubts.ts';
import { GuestScan } from '../../src/migration/guest-scan.ts';
import { Recheck } from '../../src/migration/recheck.ts';
import type { Finding } from '../../src/migration/types.ts';
import { GuestTags } from '../../src/pages/guest-tags.ts';
import { TAG_PAGE } from '../../src/pages/tags.ts';
import { scratch, until } from '../guests/embedded-support.ts';
import { openKey, openPool, silent } from '../pages/guest-support.ts';

const SOON = 5;

/** Memory of 16 + 16 frames in two files, each third of zeros, of a process that does not exist: nothing tracks it. */
function memory(t: Test): { scan: GuestScan; alter: (frame: number) => () => void } {
  const folder = scratch(t);
  const size = 16 * TAG_PAGE;
  const files = [0, 1].map((i) => {
    const path = join(folder, `ram${i}`);
    const bytes = Buffer.alloc(size);
    for (let f = 0; f < 16; f++) if (f % 3 > 0) bytes.fill(1 + i * 16 + f, f * TAG_PAGE, (f + 1) * TAG_PAGE);
    writeFileSync(path, bytes);
    return { id: `ram${i}`, path, size, offset: i * size };
  });
  const record = {
    driver: 'embedded',
    pid: 0,
    startTime: 0,
    launched: false,
    files,
    pageSize: TAG_PAGE,
    description: { driver: 'embedded', memory: { size: 2 * size, pageSize: TAG_PAGE, files }, config: {} },
    local: {},
  } as unknown as GuestRecord;
  const tags = new GuestTags({ record, key: openKey(0), pool: openPool(t), log: silent });
  t.teardown(() => tags.close());
  const alter = (frame: number): (() => void) => {
    const { path } = files[frame >> 4]!;
    const at = (frame & 15) * TAG_PAGE + 77;
    const before = readFileSync(path)[at]!;
    const write = (byte: number): void => {
      const fd = openSync(path, 'r+');
      writeSync(fd, Buffer.of(byte), 0, 1, at);
      closeSync(fd);
    };
    write(before ^ 0x10);
    return () => write(before);
  };
  return { scan: new GuestScan(tags), alter };
}

void t.test('frames are compared with the manifest, across files, and the manifest stays', async (t) => {
  const { scan, alter } = memory(t);
  await scan.finish();
  const before = Buffer.from(scan.manifest.tags);
  const wrong = async (): Promise<number[]> => {
    const right = await Promise.all(Array.from({ length: 32 }, (_, frame) => scan.isAsTagged(frame, 1)));
    return right.flatMap((is, frame) => (is ? [] : [frame]));
  };
  t.same(await wrong(), []);
  const mend = [2, 3, 17, 31].map((frame) => alter(frame));
  t.same(await wrong(), [2, 3, 17, 31], 'also a page of zeros');
  t.notOk(await scan.isAsTagged(0, 32));
  t.ok(await scan.isAsTagged(4, 13), 'a large page, whose parts lie in both files');
  for (const undo of mend) undo();
  t.ok(await scan.isAsTagged(0, 32));
  t.ok(before.equals(scan.manifest.tags));
  scan.close();
  await t.rejects(scan.isAsTagged(0, 1), { code: 'PT_CANCELLED' });
});

void t.test('an alarm a frame, once, until it is mended', async (t) => {
  const told: [string, readonly number[]][] = [];
  const recheck = new Recheck({
    everyMs: 0,
    onAlarm: (frames) => told.push(['alarm', frames]),
    onMended: (frames) => told.push(['mended', frames]),
  });
  const bad = new Set([4, 7]);
  const look = (frames: number[], stands = true): Promise<Finding[]> =>
    recheck.run(
      frames,
      (frame) => Promise.resolve(!bad.has(frame)),
      () => stands,
    );
  t.same(await look([3, 4]), ['right', 'changed']);
  t.same(await look([3, 4]), ['right', 'changed']);
  t.same(await look([4, 7]), ['changed', 'changed']);
  t.same(recheck.damaged, [4, 7]);
  await t.rejects(look([4], false), { code: 'PT_MIGRATION_UNKNOWN' }, 'of a guest that runs again');
  t.same(recheck.damaged, [4, 7], 'that reading says nothing');
  bad.delete(4);
  t.same(await look([4, 7]), ['right', 'changed']);
  t.same(await look([]), [], 'the destination has no doubts any more');
  t.same(told, [
    ['alarm', [4]],
    ['alarm', [7]],
    ['mended', [4]],
    ['mended', [7]],
  ]);
  t.equal(recheck.alarms, 2);
  t.same(await recheck.run([1], undefined, () => true), ['unknown']);
  t.equal(recheck.alarms, 2);
});

void t.test('one request at a time, and not too often', async (t) => {
  const recheck = new Recheck({ onAlarm: () => undefined, onMended: () => undefined, everyMs: 0 });
  let read!: (right: boolean) => void;
  const under = recheck.run(
    [1],
    () => new Promise<boolean>((resolve) => (read = resolve)),
    () => true,
  );
  const second = (): Promise<Finding[]> => recheck.run([1], undefined, () => true);
  await t.rejects(second(), { code: 'PT_TOO_SOON', status: 429 });
  read(true);
  t.same(await under, ['right']);
  t.same(await second(), ['unknown']);
  const seldom = new Recheck({ onAlarm: () => undefined, onMended: () => undefined, everyMs: 60_000 });
  await seldom.run([1], undefined, () => true);
  await t.rejects(
    seldom.run([1], undefined, () => true),
    { code: 'PT_TOO_SOON' },
  );
});

interface Bed {
  doubts: Doubts;
  /** What the source was asked, in order. */
  asked: number[][];
  missing: Set<number>;
  /** What the source finds; an error: it can't be asked. */
  found: Map<number, Finding>;
  source: { error: PagetideError | undefined };
}

function bed(t: Test): Bed {
  const asked: number[][] = [];
  const missing = new Set(Array.from({ length: 100 }, (_, frame) => frame));
  const found = new Map<number, Finding>();
  const source: Bed['source'] = { error: undefined };
  const doubts = new Doubts({
    ask: (frames) => {
      asked.push(frames);
      if (source.error !== undefined) return Promise.reject(source.error);
      return Promise.resolve(frames.map((frame) => found.get(frame) ?? 'right'));
    },
    isMissing: (frame) => missing.has(frame),
    onChange: () => undefined,
    log: silent,
    everyMs: SOON,
  });
  t.teardown(() => doubts.close());
  return { doubts, asked, missing, found, source };
}

/** Resolves when the source was asked as often again, and has answered. */
async function rounds({ asked }: Bed, count = 2): Promise<void> {
  const before = asked.length;
  await until('it is asked', () => Promise.resolve(asked.length >= before + count));
}

void t.test('damaged on its way: asked until the page is in, no alarm', async (t) => {
  const b = bed(t);
  b.doubts.add(5);
  b.doubts.add(5);
  await rounds(b);
  t.same(b.asked[0], [5]);
  t.match(b.doubts.note, /^frame 5 came damaged and is right at the source/);
  t.equal(b.doubts.error, undefined);
  b.missing.delete(5);
  t.equal(b.doubts.note, undefined, 'at once');
  b.doubts.add(6);
  await until('the next one', () => Promise.resolve(b.asked.at(-1)?.[0] === 6));
  t.same(b.asked.at(-1), [6]);
  t.equal(b.doubts.alarms, 0);
});

void t.test(
  'altered at the source: an alarm as long as the page is missing, and the source hears of its end',
  async (t) => {
    const b = bed(t);
    b.found.set(5, 'changed').set(6, 'changed');
    b.doubts.add(5);
    b.doubts.add(6);
    await rounds(b);
    t.match(b.doubts.error, { code: 'PT_PAGE_DAMAGED', message: /^frame 5 and 1 more of the paused guest/ });
    t.match(b.doubts.note, /the guest waits where it needs it/);
    t.equal(b.doubts.alarms, 2);
    b.found.set(5, 'unknown').set(6, 'unknown');
    await rounds(b);
    t.match(b.doubts.error, { message: /^frame 5 and 1 more/ }, 'a source that forgot mends nothing');
    b.found.set(5, 'right').set(6, 'changed');
    await rounds(b);
    t.match(b.doubts.error, { message: /^frame 6 of/ });
    b.missing.clear();
    t.equal(b.doubts.error, undefined, 'it is in: the alarm is over');
    await until('the source is told', () => Promise.resolve(b.asked.at(-1)?.length === 0));
    const told = b.asked.length;
    b.missing.add(9);
    b.doubts.add(9);
    await rounds(b, 1);
    t.same([...new Set(b.asked.slice(told).flat())], [9]);
    t.ok(
      b.asked.slice(told).every(({ length }) => length === 1),
      'and told once',
    );
    t.equal(b.doubts.alarms, 2, 'one alarm a frame');
  },
);

void t.test('a source that cannot be asked, or cannot tell', async (t) => {
  const b = bed(t);
  b.source.error = new PagetideError('PT_PEER_UNREACHABLE', 'away');
  b.doubts.add(5);
  await rounds(b);
  t.equal(b.doubts.error, undefined);
  b.source.error = undefined;
  b.found.set(5, 'unknown');
  await rounds(b);
  t.match(b.doubts.note, /^frame 5 does not come as it was, and the source cannot tell why/);
  t.equal(b.doubts.error, undefined);
});

void t.test('no more frames than may be asked about; those that came make room', async (t) => {
  const b = bed(t);
  for (let frame = 0; frame < 40; frame++) b.doubts.add(frame);
  await rounds(b);
  t.equal(b.asked.at(-1)!.length, 32);
  b.missing.delete(0);
  b.doubts.add(39);
  await rounds(b);
  t.same([b.asked.at(-1)!.length, b.asked.at(-1)!.includes(39)], [32, true]);
  b.doubts.close();
  b.doubts.add(50);
  t.equal(b.doubts.note, undefined, 'closed');
});
