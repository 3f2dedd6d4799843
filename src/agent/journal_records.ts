/** What an agent's journal holds, checked when it is read back: nothing on disk is believed unseen. */
import { z } from 'zod';
import { PagetideError, type ErrorJson } from '../errors.ts';
import type { GuestRecord } from '../guests/driver.ts';
import type { OwnershipRecord } from '../migration/ownership/index.ts';

/** Grows when a record changes so that an older agent would misread it. */
export const JOURNAL_VERSION = 1;

/** A guest on this host: how its VMM is found again. The last one of a name counts. */
export interface GuestEntry {
  kind: 'guest';
  name: string;
  guest: GuestRecord;
}
/** A VMM is about to be launched for a guest of that name: until `guest` or `guest-gone` follows, one may be there. */
export interface GuestStartingEntry {
  kind: 'guest-starting';
  name: string;
}
/** The guest of that name is not on this host any more. */
export interface GuestGoneEntry {
  kind: 'guest-gone';
  name: string;
}
/** A step of a migration; see {@link OwnershipRecord}. */
export interface MigrationEntry {
  kind: 'migration';
  record: OwnershipRecord;
  /** What the agent itself needs to take the migration up again: the request, tokens, when it began. */
  details?: Record<string, unknown>;
}
export type JournalRecord = GuestEntry | GuestStartingEntry | GuestGoneEntry | MigrationEntry;

const whole = z.int().min(0);
const memory = { id: z.string(), size: whole, offset: whole };
const guest = z.strictObject({
  driver: z.enum(['embedded', 'qemu']),
  pid: z.int().min(1),
  startTime: whole,
  launched: z.boolean(),
  files: z.array(z.strictObject({ ...memory, path: z.string() })),
  pageSize: z.int().min(4096),
  description: z.strictObject({
    driver: z.enum(['embedded', 'qemu']),
    memory: z.strictObject({ size: whole, pageSize: z.int().min(4096), files: z.array(z.strictObject(memory)) }),
    config: z.record(z.string(), z.unknown()),
  }),
  local: z.record(z.string(), z.string()),
  domain: z.string().exactOptional(),
}) satisfies z.ZodType<GuestRecord>;

// a code that this version doesn't know is no reason to refuse a journal: it only tells people why
const error = z.object({ code: z.string(), message: z.string(), hint: z.string(), cause: z.string().optional() });
const step = {
  migration: z.string().min(1),
  epoch: whole,
  guest: z.string().nullable(),
  peer: z.string().nullable(),
  error: error.transform((json) => json as ErrorJson).optional(),
};
const record = z.discriminatedUnion('side', [
  z.strictObject({
    ...step,
    side: z.literal('source'),
    state: z.enum(['preparing', 'running', 'handing-over', 'fenced', 'gone', 'released', 'lost']),
  }),
  z.strictObject({
    ...step,
    side: z.literal('destination'),
    state: z.enum(['incoming', 'owner', 'complete', 'refused', 'lost']),
  }),
]);
const entry = z.discriminatedUnion('kind', [
  z.strictObject({ kind: z.literal('guest'), name: z.string().min(1), guest }),
  z.strictObject({ kind: z.literal('guest-starting'), name: z.string().min(1) }),
  z.strictObject({ kind: z.literal('guest-gone'), name: z.string().min(1) }),
  z.strictObject({ kind: z.literal('migration'), record, details: z.record(z.string(), z.unknown()).optional() }),
]);
const batch = z.object({ version: z.int().min(1), records: z.array(z.unknown()) });

/** One batch as JSON. Throws `PT_BAD_ARGUMENT` for what could not be read back. */
export function encodeBatch(records: readonly JournalRecord[]): string {
  for (const one of records) {
    const result = entry.safeParse(one);
    if (!result.success)
      throw new PagetideError('PT_BAD_ARGUMENT', `not a journal record: ${z.prettifyError(result.error)}`);
  }
  return JSON.stringify({ version: JOURNAL_VERSION, records });
}

/** The records of one batch. `where` names file and offset for the error. */
export function decodeBatch(json: string, where: string): JournalRecord[] {
  let value: unknown;
  try {
    value = JSON.parse(json);
  } catch (cause) {
    throw new PagetideError('PT_IO', `${where}: not JSON, although its checksum is right`, { cause });
  }
  const outer = batch.safeParse(value);
  if (!outer.success) throw new PagetideError('PT_IO', `${where}: ${z.prettifyError(outer.error)}`);
  if (outer.data.version > JOURNAL_VERSION) {
    const message = `${where}: written by a newer version of Pagetide (records ${outer.data.version}, known ${JOURNAL_VERSION})`;
    throw new PagetideError('PT_STATE_VERSION', message);
  }
  return outer.data.records.map((one) => {
    const result = entry.safeParse(one);
    if (!result.success) throw new PagetideError('PT_IO', `${where}: ${z.prettifyError(result.error)}`);
    return result.data as JournalRecord;
  });
}
