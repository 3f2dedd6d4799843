/**
 * A real guest whose disk bypasses the page cache, on storage that is slow: reads are under way in each scan of its memory, and what they
 * bring later is reported by no other.
 */
import t, { type Test } from 'tap';
import type { QemuVmm } from '../../src/guests/qemu/vmm.ts';
import { GuestScan, type GuestScanOptions } from '../../src/migration/guest-scan.ts';
import { GuestTags } from '../../src/pages/guest-tags.ts';
import { openKey, openPool, silent, skipTracking } from '../pages/guest-support.ts';
import { cannotBeSlow, diskWords, makeDisk, makeSlow } from '../support/disk.ts';
import { until } from '../support/migrate.ts';
import { bootGuest, needsQemu } from '../support/qemu-guest.ts';
import { wrongFrames } from '../support/wrong-frames.ts';

const qemu = needsQemu(true);
const skip = qemu.skip === false ? skipTracking || cannotBeSlow() : qemu.skip;
const READS_PER_SECOND = 20;
/** So many that none is read into twice while it matters. */
const PAGES = 1024;

/** Scans the guest in rounds while its disk reads, and at last paused; resolves to the frames that the manifest has wrong then. */
async function missed(t: Test, vmm: QemuVmm, options: GuestScanOptions): Promise<number[]> {
  const tags = new GuestTags({ record: vmm.record, key: openKey(0), pool: openPool(t), log: silent });
  const scan = new GuestScan(tags, options);
  t.teardown(() => scan.close());
  const reads = async (): Promise<void> => {
    const had = (await vmm.stats())!.operations!;
    await until('it has read', async () => (await vmm.stats())!.operations! >= had + 8);
  };
  await scan.build();
  scan.tellAll([0, scan.manifest.chunks]);
  for (let round = 0; round < 3; round++) {
    await reads();
    const found = await scan.rescan();
    t.ok(found.changed > 0, `${found.changed} frames changed in ${found.sinceMs} ms`);
    scan.tellChanged();
  }
  await reads();
  await vmm.pause();
  await scan.finish();
  const wrong = wrongFrames(vmm, scan);
  await vmm.resume();
  return wrong;
}

void t.test('DMA that is under way in a scan', { ...qemu, skip }, async (t) => {
  const image = await makeDisk(t, 512);
  const slow = await makeSlow(t, image, READS_PER_SECOND);
  const settings = `pagetide.rate=0 pagetide.limit=4 pagetide.beat=20 pagetide.disk=${PAGES}`;
  const { vmm } = await bootGuest(t, { memory: '96', settings, virtio: true, more: diskWords(slow, 'none') });
  await until('it reads', async () => ((await vmm.stats())?.operations ?? 0) > 0);

  const exact = { tracking: () => Promise.resolve('exact' as const) };
  // by luck none may be under way, most of all where much else runs
  let wrong: number[] = [];
  for (let attempt = 0; attempt < 6 && wrong.length === 0; attempt++) wrong = await missed(t, vmm, exact);
  t.ok(wrong.length > 0, `held to be exact it misses ${wrong.length} pages: so this test can fail`);

  const asked: string[] = [];
  const drained = {
    tracking: async () => {
      const worth = await vmm.tracking();
      asked.push(worth);
      return worth;
    },
    drained: (work: () => void) => vmm.drained(work),
  };
  t.strictSame(await missed(t, vmm, drained), [], 'drained it misses none');
  t.strictSame([...new Set(asked)], ['hints'], 'as QEMU itself tells what the disk is');
  t.equal((await vmm.verify())?.ok, true);
});
