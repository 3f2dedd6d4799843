/**
 * A real guest whose balloon takes pages out of its memory while that is scanned in rounds; each is read then, so that it is neither a hole
 * any more, nor written. The manifest is compared with the memory, frame by frame.
 */
import { join } from 'node:path';
import t from 'tap';
import { QmpClient } from '../../src/guests/qemu/qmp.ts';
import { GuestScan } from '../../src/migration/guest-scan.ts';
import { GuestTags } from '../../src/pages/guest-tags.ts';
import { TAG_PAGE } from '../../src/pages/tags.ts';
import { openKey, openPool, silent, skipTracking } from '../pages/guest-support.ts';
import { BALLOON_GUEST, readAll, setBalloon, SMALL, WHOLE } from '../support/balloon.ts';
import { until } from '../support/migrate.ts';
import { bootGuest, needsQemu } from '../support/qemu-guest.ts';
import { wrongFrames } from '../support/wrong-frames.ts';

const qemu = needsQemu(true);
const skip = qemu.skip === false ? skipTracking : qemu.skip;
const ROUNDS = 3;

void t.test('pages that a balloon takes are noticed, also where they are read then', { ...qemu, skip }, async (t) => {
  const operator = ['-qmp', 'unix:{folder}/operator.sock,server=on,wait=off'];
  const { vmm, place } = await bootGuest(t, { ...BALLOON_GUEST, more: [...BALLOON_GUEST.more!, ...operator] });
  const monitor = await QmpClient.connect(join(place.folder, 'operator.sock'));
  t.teardown(() => monitor.close());

  const tags = new GuestTags({ record: vmm.record, key: openKey(0), pool: openPool(t), log: silent });
  const scan = new GuestScan(tags, { tracking: () => vmm.tracking() });
  t.teardown(() => scan.close());
  await scan.build();
  t.ok(tags.tracked);
  scan.tellAll([0, scan.manifest.chunks]);
  const zeros: number[] = [];
  for (let round = 0; round < ROUNDS; round++) {
    await setBalloon(monitor, SMALL);
    await readAll(monitor);
    const found = await scan.rescan();
    t.equal(found.unlocated, WHOLE / TAG_PAGE, 'all of its memory is tagged, as it is not told where pages went');
    zeros.push(found.zero);
    scan.tellChanged();
    await setBalloon(monitor, WHOLE);
  }
  t.comment(`frames that had become zero: ${zeros.join()}`);
  await until('the balloon is at rest', async () => (await scan.rescan()).unlocated === 0);
  await setBalloon(monitor, SMALL);
  await readAll(monitor);
  await vmm.pause();
  await scan.finish();
  t.strictSame(wrongFrames(vmm, scan), [], 'and in the last pass');
  await vmm.resume();
  await setBalloon(monitor, WHOLE);
  t.equal((await vmm.verify())?.ok, true);
});
