/** The memory balloon of a QEMU guest, as its operator sees it. */
import type { QmpClient } from '../../src/guests/qemu/qmp.ts';
import { until } from './migrate.ts';
import type { GuestShape } from './qemu-guest.ts';

const MIB = 2 ** 20;
/** Bytes of a guest of {@link BALLOON_GUEST} whose balloon is empty. */
export const WHOLE = 176 * MIB;
/** With so much left its balloon is as large as the guest can bear. */
export const SMALL = 128 * MIB;

/**
 * Memory comes and goes in it besides, so that frames go into the balloon and come out of it into pages that are checked. Its kernel does not
 * write zeros into the pages that it takes for the balloon, as Debian's would: those would be writes, which tracking sees.
 */
export const BALLOON_GUEST: GuestShape = {
  memory: String(WHOLE / MIB),
  settings: 'init_on_alloc=0 pagetide.rate=100 pagetide.set=5 pagetide.limit=20 pagetide.churn=6',
  more: ['-device', 'virtio-balloon-pci,id=balloon'],
  virtio: true,
};

/** Bytes that the guest has, as its balloon says. */
export async function actual(monitor: QmpClient): Promise<number> {
  return ((await monitor.execute('query-balloon')) as { actual: number }).actual;
}

/** Reads all of the guest's memory through QEMU's mapping: a hole that is read so becomes a page of zeros. */
export async function readAll(monitor: QmpClient): Promise<void> {
  await monitor.execute('pmemsave', { val: 0, size: WHOLE, filename: '/dev/null' });
}

/** Leaves the guest so many bytes. Resolves once it has given, or got, the others. */
export async function setBalloon(monitor: QmpClient, bytes: number): Promise<void> {
  await monitor.execute('balloon', { value: bytes });
  await until(`the guest has ${bytes / MIB} MiB`, async () => (await actual(monitor)) === bytes);
}
