/** Embedded guests whose memory is tagged: their records, and what their memory holds. */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { pino } from 'pino';
import type { Test } from 'tap';
import { GuestControl } from '../../src/guests/control.ts';
import type { GuestRecord } from '../../src/guests/driver.ts';
import { launchDetached } from '../../src/guests/launch.ts';
import { endProcess } from '../../src/guests/process.ts';
import { native, nativeProgram } from '../../src/memory/native.ts';
import { trackingFeatures } from '../../src/memory/write-tracker.ts';
import { TagPool } from '../../src/pages/tag-pool.ts';
import { DomainKey, TAG_BYTES, TAG_PAGE } from '../../src/pages/tags.ts';
import { scratch, until } from '../guests/embedded-support.ts';
import { KEYS } from './support.ts';

const offered = native().probe();
const allowed = process.getuid?.() === 0 && ((offered.features ?? 0n) & trackingFeatures()) === trackingFeatures();
/** Why tests that track writes are skipped; false: they aren't. */
export const skipTracking =
  allowed && offered.pagemapScan ? false : 'needs root, and a kernel that tracks writes (6.7)';

export const silent = pino({ level: 'silent' });

export interface TaggedGuest {
  record: GuestRecord;
  control: GuestControl;
  /** Ends it with SIGKILL. */
  kill: () => Promise<void>;
  /** Tags of its memory as it is now. */
  tags: () => Buffer;
}

/** A guest of `mib` MiB in no process tree of the test, that writes `rate` pages a second. @param more of its options */
export async function startTagged(t: Test, mib: number, rate: number, ...more: string[]): Promise<TaggedGuest> {
  const folder = scratch(t);
  const control = join(folder, 'control');
  const path = join(folder, 'memory');
  const guest = await launchDetached({
    command: nativeProgram('pagetide-guest'),
    args: [
      ...['--memory-size', `${mib}M`, '--memory-file', path, '--control', control, '--fill-from', '/usr/lib'],
      ...['--write-rate', `${rate}`, '--read-rate', '0', '--working-set', '0.25', ...more],
    ],
    log: join(folder, 'log'),
  });
  t.teardown(() => endProcess(guest, 0));
  const client = new GuestControl(control);
  t.teardown(() => client.close());
  await until('the guest answers', () =>
    client.status().then(
      () => true,
      () => false,
    ),
  );
  const size = mib * 2 ** 20;
  const files = [{ id: 'ram', size, offset: 0 }];
  const record: GuestRecord = {
    driver: 'embedded',
    ...guest,
    launched: true,
    files: [{ ...files[0]!, path }],
    pageSize: TAG_PAGE,
    description: { driver: 'embedded', memory: { size, pageSize: TAG_PAGE, files }, config: {} },
    local: { control },
  };
  const tags = (): Buffer => {
    const key = openKey(0);
    try {
      const found = Buffer.alloc((size / TAG_PAGE) * TAG_BYTES);
      native().tagPages(key.id, readFileSync(path), size / TAG_PAGE, found);
      return found;
    } finally {
      key.close();
    }
  };
  return { record, control: client, kill: () => endProcess(guest, 0), tags };
}

/** Whoever it is given to closes it. */
export function openKey(domain: number): DomainKey {
  return new DomainKey(KEYS[domain]!);
}

export function openPool(t: Test): TagPool {
  const pool = new TagPool(2);
  t.teardown(() => pool.close());
  return pool;
}
