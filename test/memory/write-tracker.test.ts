/** Write tracking from JavaScript, on memory of this process: an arena, found by its mapping. */
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import fc from 'fast-check';
import t, { type Test } from 'tap';
import { native } from '../../src/memory/native.ts';
import { WriteTracker, requireTracking, trackingFeatures } from '../../src/memory/write-tracker.ts';

const PAGE = 4096;

/** `frames` pages of shared memory in this process, with a userfaultfd for tracking them. */
function memory(t: Test, frames: number) {
  const folder = mkdtempSync('/dev/shm/pt-tracker-');
  t.teardown(() => rmSync(folder, { recursive: true, force: true }));
  const path = join(folder, 'arena');
  const arena = native().createArena(path, PAGE, frames);
  t.teardown(() => native().destroyArena(arena));
  const line = readFileSync('/proc/self/maps', 'utf8')
    .split('\n')
    .find((entry) => entry.endsWith(path));
  const hostAddress = Number.parseInt(line!, 16);
  const { fd } = native().createUserfault(trackingFeatures());
  const regions = [{ hostAddress, size: frames * PAGE, offset: 0 }];
  return { view: native().arenaView(arena), options: { pid: process.pid, uffd: fd, regions, pageSize: PAGE } };
}

function framesOf(t: Test, tracker: WriteTracker): number[] {
  const frames: number[] = [];
  const count = tracker.scan((first, many) => {
    for (let i = 0; i < many; i++) frames.push(first + i);
  });
  t.equal(count, frames.length);
  return frames;
}

const offered = native().probe();
const skip =
  offered.pagemapScan && ((offered.features ?? 0n) & trackingFeatures()) === trackingFeatures() ? false : 'kernel';

void t.test('a copy that follows the scans is the memory', { skip }, (t) => {
  const frames = 64;
  const { view, options } = memory(t, frames);
  const tracker = new WriteTracker(options, 3);
  t.teardown(() => tracker.close());
  t.equal(tracker.frames, frames);
  t.same(
    framesOf(t, tracker),
    Array.from({ length: frames }, (_, i) => i),
    'the first pass reports everything',
  );
  t.same(framesOf(t, tracker), []);
  const copy = Buffer.from(view);
  const writes = fc.array(fc.record({ at: fc.nat(frames * PAGE - 1), value: fc.nat(255) }), { maxLength: 40 });
  fc.assert(
    fc.property(writes, (round) => {
      for (const { at, value } of round) view[at] = value;
      const reported = framesOf(t, tracker);
      const written = new Set(round.map(({ at }) => Math.floor(at / PAGE)));
      for (const frame of written) t.ok(reported.includes(frame));
      for (const frame of reported) copy.set(view.subarray(frame * PAGE, (frame + 1) * PAGE), frame * PAGE);
      t.ok(copy.equals(view));
      t.same(framesOf(t, tracker), []);
    }),
    { numRuns: 50 },
  );
  t.end();
});

void t.test('what does not fit is refused, and nothing stays registered', { skip }, (t) => {
  const { options } = memory(t, 4);
  t.teardown(() => native().close(options.uffd));
  const bad = { code: 'PT_BAD_ARGUMENT' };
  t.throws(() => new WriteTracker(options, 0), bad);
  t.throws(() => new WriteTracker({ ...options, pid: 0 }), bad);
  t.throws(() => new WriteTracker({ ...options, uffd: -1 }), bad);
  t.throws(() => new WriteTracker({ ...options, uffd: 0 }), bad);
  t.throws(() => new WriteTracker({ ...options, pageSize: 8192 }), bad);
  t.throws(() => new WriteTracker({ ...options, regions: [] }), bad);
  const [region] = options.regions;
  t.throws(() => new WriteTracker({ ...options, regions: [{ ...region!, size: 100 }] }), bad);
  t.throws(() => new WriteTracker({ ...options, regions: [{ ...region!, hostAddress: Number.NaN }] }), bad);
  t.throws(() => new WriteTracker({ ...options, pid: 2 ** 22 + 1 }), { code: 'PT_VMM_GONE' });
  const tracker = new WriteTracker({ ...options, uffd: native().duplicate(options.uffd) });
  t.equal(framesOf(t, tracker).length, 4);
  tracker.close();
  tracker.close();
  t.throws(() => framesOf(t, tracker), { code: 'PT_INTERNAL' });
  t.end();
});

void t.test('a kernel that cannot is named', (t) => {
  const able = { ways: [], features: trackingFeatures(), pagemapScan: true, shmem: true, hugetlbfs: true };
  requireTracking(able);
  const old = { code: 'PT_UNSUPPORTED_HOST', hint: /Linux 6.7/ };
  t.throws(() => requireTracking({ ...able, pagemapScan: false }), { ...old, message: /PAGEMAP_SCAN/ });
  t.throws(() => requireTracking({ ...able, features: 1n }), { ...old, message: /features 0xb000/ });
  t.end();
});
