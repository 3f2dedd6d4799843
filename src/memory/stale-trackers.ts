/**
 * Write trackers that an agent left behind when it was killed: a userfaultfd stays open inside the guest's process, keeps the
 * guest's memory registered, and lets nobody else track its writes.
 *
 * The kernel tells which features a userfaultfd was made with (`API:` in its fdinfo). Nothing but a tracker is made with exactly
 * those of {@link trackingFeatures}; and a tracker never holds a thread of the guest up, so closing it can't do harm: what
 * faults are served through has other features, and is never touched here.
 */
import { readFileSync } from 'node:fs';
import { native } from './native.ts';
import { trackingFeatures } from './write-tracker.ts';

/** A bit of the kernel's own in the features that it shows: the descriptor has been set up. */
const INITIALIZED = 1n << 31n;

/** Features of userfaultfd `fd` of process `pid`, from the text of its fdinfo; undefined where it doesn't say. */
export function featuresOf(fdinfo: string): bigint | undefined {
  const match = /^API:\s*[0-9a-f]+:([0-9a-f]+):/m.exec(fdinfo);
  return match === null ? undefined : BigInt(`0x${match[1]!}`) & ~INITIALIZED;
}

/**
 * Closes them in `pid`, whose memory is registered for tracking no more. Only for a guest that nobody tracks now: of an agent
 * that has just started, or of a process that it has just been told of.
 * @returns how many there were
 * @throws PagetideError `PT_NO_PERMISSION`, `PT_VMM_GONE`, `PT_SYSCALL`
 */
export function closeStaleTrackers(pid: number): number {
  let closed = 0;
  for (const fd of native().findUserfaults(pid)) {
    let fdinfo: string;
    try {
      fdinfo = readFileSync(`/proc/${pid}/fdinfo/${fd}`, 'utf8');
    } catch {
      continue; // closed meanwhile
    }
    if (featuresOf(fdinfo) !== trackingFeatures()) continue;
    native().closeRemote(pid, fd);
    closed++;
  }
  return closed;
}
