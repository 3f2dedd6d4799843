/**
 * Guests with a memory balloon (virtio-balloon): what of it is safe, and why such a guest moves by pre-copy alone.
 *
 * A page that the guest puts into the balloon is punched out of the memory file (`ram_block_discard_range`: fallocate, then
 * MADV_DONTNEED), by the thread whose vCPU has said so, and before the guest is told that it is done. That happens whenever the
 * operator moves the balloon, and without: the guest's kernel exchanges pages of an inflated balloon for others when it compacts memory.
 *
 * At the source, while the guest is watched or copied in rounds, a punch is no write that tracking reports. The kernel tells that the file
 * was changed, so all of its frames are tagged anew (../../pages/guest-tags.ts). In the last pass the guest stands still: QEMU has stopped
 * its vCPUs, hence ended what they had begun, and no punch is under way. So the final manifest is that of the memory, holes and all. A
 * page that was punched between its tag and its reading does not have its tag, like one that was written, and waits for the next round.
 * Wherever else its old tag still stands (resident index, cache), a page is compared with its tag before it is used.
 *
 * At the destination of a pre-copy the balloon does nothing before every page is there: the guest does not run, and without it
 * QEMU punches nothing. What was in the balloon are holes at the source, so zero by their tags, so holes here: given back still.
 *
 * In post-copy and hybrid the guest runs while pages are missing, and the balloon punches missing frames, too. QEMU's own post-copy
 * ignores the balloon meanwhile; ours can't make it, as to QEMU the migration has ended. Such a frame would get its old page from the
 * source afterwards. That is not wrong by virtio's words: the device may change what a page holds until it has acknowledged the page, and
 * the guest would see no other content of it than the old one, until it writes. But the memory that was given up would be taken again,
 * for good and behind the operator's back, on a host where it may have been promised to others. Nor can it be told apart: on shared
 * memory a punch sends no event, and MADV_DONTNEED one that looks the same where nothing was punched
 * (../../../native/core/session_events.cc). So the guest does not run before all of its pages are there. (An operator who plugs a
 * balloon into a guest that is served just then gets just that: no wrong page, but memory that comes back.)
 *
 * Refused: free page reporting, with which a guest gives back all memory that it does not use, all the time and unasked. It would be
 * right for the same reasons, but no look at such a guest finds its file unchanged: each tags all of it, the last one too. And free page
 * hints, which are made for QEMU's own migration and want a thread of their own that this was not thought through with.
 *
 * Sources: virtio 1.2, 5.5 (Traditional Memory Balloon Device); hw/virtio/virtio-balloon.c and softmmu/physmem.c of QEMU.
 */
import type { GuestDescription } from '../driver.ts';
import type { Inventory } from './inventory.ts';

/** The device itself, in every kind of slot; the last is what the others have inside. */
export const BALLOON_TYPE = /^virtio-balloon-(pci|pci-transitional|pci-non-transitional|device)$/;

const PRE_COPY_ONLY =
  'the guest has a memory balloon, which must not give back pages that are still to come: all of them have to be there before it runs';

/** What of a balloon's features stands against moving the guest. */
export function balloonObjections({ balloons }: Pick<Inventory, 'balloons'>): string[] {
  return balloons.flatMap(({ path, reporting, hinting }) => {
    const found: string[] = [];
    if (reporting)
      found.push(`balloon ${path} has free-page-reporting=on, so the guest gives memory back all the time`);
    if (hinting) found.push(`balloon ${path} has free-page-hint=on, which has not been proved safe`);
    return found;
  });
}

/** Whether a guest was started with one, or attached when it had one: so has the VMM that its destination starts. */
export function wasMadeWithBalloon({ config }: GuestDescription): boolean {
  const { shape } = config as { shape?: { devices?: string[] } };
  // name:type
  return shape?.devices?.some((device) => BALLOON_TYPE.test(device.slice(device.lastIndexOf(':') + 1))) ?? false;
}

/** Why a guest may only go by pre-copy; undefined: it may go by any mode. @param inventory as it is now */
export function whyPreCopyOnly(inventory: Pick<Inventory, 'devices'>, made: GuestDescription): string | undefined {
  const has = inventory.devices.some(({ type }) => BALLOON_TYPE.test(type));
  return has || wasMadeWithBalloon(made) ? PRE_COPY_ONLY : undefined;
}
