/**
 * What tracking a guest's writes is worth: whether whatever writes its memory is seen.
 *
 * Writes of its processor, and of the VMM's threads, go through the page tables that are tracked. A device's DMA doesn't: the kernel
 * pins the pages (and marks them as written) when the I/O begins, and the data may come after a scan has protected them again. That is
 * how a disk read that bypasses the page cache works (O_DIRECT), and io_uring with buffers that were registered.
 */

/** `exact`: every write is reported. `hints`: one that was under way during a scan may not be, unless the guest's I/O was drained. */
export type WriteTracking = 'exact' | 'hints';

/** A node of a VMM's block layer. */
export interface DiskNode {
  /** Of a node of its own name where it begins with no `#`. */
  name: string;
  /** Its format or protocol. */
  driver: string;
  /** Whether it bypasses the page cache; undefined where that is not known. */
  direct?: boolean;
}

/**
 * Formats, filters and protocols whose data comes to guest memory by a copy that a thread of the VMM, or a system call of it, makes,
 * as long as the page cache is used.
 */
const COPYING = new Set([
  ...['file', 'raw', 'qcow2', 'qcow', 'qed', 'vmdk', 'vdi', 'vpc', 'vhdx', 'luks', 'parallels'],
  ...['nbd', 'null-co', 'copy-on-read', 'throttle', 'blkdebug'],
]);

/**
 * Decides for a QEMU guest; what is not known to be safe gives hints.
 * @param nodes every node of its block layer
 * @param commandLine as it was started
 */
export function trackingOf(nodes: readonly DiskNode[], commandLine: readonly string[]): WriteTracking {
  // how a file is read shows in no answer of QEMU, only where it was asked for
  if (nodes.length > 0 && commandLine.some((word) => /io_uring/.test(word))) return 'hints';
  const words = commandLine.join('\n');
  const safe = nodes.every(
    ({ name, driver, direct }) =>
      direct === false && COPYING.has(driver) && (name.startsWith('#') || words.includes(name)), // else plugged in later
  );
  return safe ? 'exact' : 'hints';
}
