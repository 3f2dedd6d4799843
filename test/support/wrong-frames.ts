/** Compares a manifest with the memory that it is of. */
import { readFileSync } from 'node:fs';
import type { Vmm } from '../../src/guests/driver.ts';
import { native } from '../../src/memory/native.ts';
import type { GuestScan } from '../../src/migration/guest-scan.ts';
import { TAG_BYTES, TAG_PAGE } from '../../src/pages/tags.ts';
import { openKey } from '../pages/guest-support.ts';

/** Frames whose tag in the manifest is not that of what the paused guest's memory, of one file, holds. */
export function wrongFrames(vmm: Vmm, scan: GuestScan): number[] {
  const page = readFileSync(vmm.record.files[0]!.path);
  const frames = page.length / TAG_PAGE;
  const right = Buffer.alloc(frames * TAG_BYTES);
  const key = openKey(0);
  native().tagPages(key.id, page, frames, right);
  key.close();
  const told = Buffer.from(scan.manifest.tags);
  return Array.from({ length: frames }, (_, frame) => frame).filter((frame) => {
    const at = frame * TAG_BYTES;
    return right.compare(told, at, at + TAG_BYTES, at, at + TAG_BYTES) !== 0;
  });
}
