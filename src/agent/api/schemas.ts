/**
 * The shapes of the control API. They are those of ../service.ts and ../../migration/types.ts, said once more for the
 * machine: requests are checked by them, answers too, and the OpenAPI document is made from them. The assertions at
 * the end keep both in step at compile time.
 */
import { z } from 'zod';
import { ERROR_CODES, type ErrorCode, type ErrorJson } from '../../errors.ts';
import type { GuestDescription, GuestStats, VerifyResult } from '../../guests/driver.ts';
import { MOST_FRAMES } from '../../pages/manifest.ts';
import {
  MOST_DOUBTS,
  type Capabilities,
  type CompletionFigures,
  type IncomingStatus,
  type MigrationInfo,
  type PrepareRequest,
} from '../../migration/types.ts';
import { MIGRATION_PATTERN, NAME_PATTERN } from '../names.ts';
import type { Kept } from '../../pages/keep-task.ts';
import type {
  AgentInfo,
  CacheInfo,
  Check,
  GuestInfo,
  GuestRequest,
  MigrateRequest,
  SnapshotInfo,
  SnapshotRequest,
  WarmRequest,
} from '../service.ts';

const count = z.int().min(0);
const figure = z.number().min(0);

export const guestName = z
  .string()
  .regex(NAME_PATTERN, 'small letters, digits and dashes, 63 at most, beginning with a letter or digit')
  .meta({ description: "A guest's name, unique on its agent." });
export const domainName = z
  .string()
  .regex(NAME_PATTERN, 'small letters, digits and dashes, 63 at most, beginning with a letter or digit')
  .meta({ description: 'Guests of one domain may share pages.' });
export const migrationId = z
  .string()
  .regex(MIGRATION_PATTERN, '16 hexadecimal digits')
  .meta({ description: 'Names a migration on both sides.' });
export const epoch = z.int().min(0).meta({ description: 'Grows with every change of owner of the guest.' });
const driver = z.enum(['embedded', 'qemu']);
export const mode = z.enum(['post-copy', 'pre-copy', 'hybrid']);
const why = z.string().exactOptional().meta({ description: 'Why that mode, where nobody asked for it.' });
/** Plain HTTP only within one host; that is checked where the connection is made. */
export const agentUrl = z.url({ protocol: /^https?$/, error: 'an http:// or https:// URL of an agent' }).max(1024);

const errorCodes = Object.keys(ERROR_CODES) as [ErrorCode, ...ErrorCode[]];
export const errorJson = z
  .object({
    code: z.enum(errorCodes).meta({ description: 'Stable: codes are only ever added.' }),
    message: z.string(),
    hint: z.string().meta({ description: 'What to do about it.' }),
    cause: z.string().exactOptional(),
  })
  .meta({ id: 'Error' });

export const check = z
  .object({
    name: z.string(),
    status: z.enum(['ok', 'warning', 'missing']),
    found: z.string(),
    fix: z.string().exactOptional(),
    needed: z.string().exactOptional(),
    essential: z.boolean().exactOptional(),
  })
  .meta({ id: 'Check' });

export const agentInfo = z
  .object({
    name: z.string(),
    version: z.string(),
    url: z.string().meta({ description: 'Under which other agents reach this one.' }),
    pid: z.int(),
    uptimeSeconds: z.number(),
    faultWorkers: z.object({ total: count, busy: count }),
  })
  .meta({ id: 'AgentInfo' });

// guests

const fileShape = { id: z.string().min(1).max(128), size: count, offset: count };

export const guestDescription = z
  .object({
    driver,
    memory: z.object({
      size: count.meta({ description: 'Bytes.' }),
      pageSize: z.int().positive(),
      files: z.array(z.object(fileShape)).max(64),
    }),
    config: z.record(z.string(), z.unknown()).meta({ description: "The driver's own." }),
  })
  .meta({ id: 'GuestDescription' });

/** What a peer describes is checked further: the agent sizes its page table and its memory by it. */
const soundDescription = guestDescription.superRefine(({ memory }, context) => {
  const { pageSize, size, files } = memory;
  const complain = (path: (string | number)[], message: string) => {
    context.addIssue({ code: 'custom', path: ['memory', ...path], message });
  };
  // a power of two, without 32-bit operators: page sizes may be 2 GiB and more
  if (pageSize < 4096 || !Number.isInteger(Math.log2(pageSize))) complain(['pageSize'], 'a power of two from 4096 on');
  if (size === 0 || size % pageSize !== 0) complain(['size'], 'a multiple of the page size, and not 0');
  let end = 0;
  let sum = 0;
  const byOffset = files.map((file, index) => ({ ...file, index })).sort((a, b) => a.offset - b.offset);
  for (const file of byOffset) {
    if (file.size === 0 || file.size % pageSize !== 0 || file.offset % pageSize !== 0) {
      complain(['files', file.index], 'size and offset must be multiples of the page size, and the size not 0');
    }
    if (file.offset < end) complain(['files', file.index], 'overlaps another file');
    end = Math.max(end, file.offset + file.size);
    sum += file.size;
  }
  if (sum !== size) complain(['files'], `hold ${sum} bytes together, the guest has ${size}`);
  if (!Number.isSafeInteger(end)) complain(['files'], 'end beyond what can be addressed');
});

const stalls = z.object({ count, p50Us: figure, p99Us: figure, maxUs: figure });

export const guestStats = z
  .object({
    longestGapMs: figure.nullable(),
    stalls: stalls.nullable(),
    operations: figure.nullable(),
  })
  .meta({ id: 'GuestStats' });

export const migrationProgress = z
  .object({
    phase: z.enum([
      'preparing',
      'copying',
      'switching',
      'in-doubt',
      'serving',
      'completing',
      'rolling-back',
      'done',
      'failed',
      'cancelled',
    ]),
    framesTotal: count,
    framesPresent: count.meta({ description: 'Frames whose content is at the destination.' }),
    faultsServed: count,
    wireBytes: count,
    elapsedMs: figure,
    note: z.string().exactOptional(),
    copying: z
      .object({
        round: z.int().min(1),
        frames: count.meta({ description: 'That this round copies.' }),
        dirtyPerSecond: count.meta({ description: 'Frames whose page becomes another.' }),
        expectedDowntimeMs: figure.nullable().meta({ description: 'If the guest moved now; null in the first round.' }),
      })
      .exactOptional()
      .meta({ description: 'In phase copying.' }),
  })
  .meta({ id: 'MigrationProgress' });

export const guestInfo = z
  .object({
    name: z.string(),
    driver,
    state: z.enum(['running', 'paused', 'incoming', 'in-doubt', 'alarm', 'gone']),
    pid: z.int(),
    launched: z.boolean().meta({ description: 'Started by the agent, which also ends it; otherwise attached.' }),
    memory: count.meta({ description: 'Bytes.' }),
    pageSize: z.int(),
    files: z.array(z.object({ ...fileShape, path: z.string() })),
    description: guestDescription,
    domain: domainName.exactOptional(),
    migration: z
      .object({ id: migrationId, direction: z.enum(['outgoing', 'incoming']), progress: migrationProgress })
      .exactOptional(),
    stats: guestStats.exactOptional(),
    error: errorJson.exactOptional(),
  })
  .meta({ id: 'GuestInfo' });

export const guestRequest = z
  .strictObject({
    name: guestName,
    driver,
    options: z.record(z.string(), z.unknown()).meta({ description: "The driver's own; see docs/api.md." }),
    domain: domainName.exactOptional(),
  })
  .meta({ id: 'GuestRequest' });

export const verifyResult = z
  .object({
    ok: z.boolean(),
    checked: count.meta({ description: 'Frames that the guest checked.' }),
    bad: z.array(count).meta({ description: 'Bad frames, the first few.' }),
    detail: z.string().exactOptional(),
  })
  .meta({ id: 'VerifyResult' });

/** An object around it, as a body of nothing but `null` trips too many clients. */
export const verifyAnswer = z.object({
  result: verifyResult.nullable().meta({ description: 'null: this guest cannot check itself.' }),
});

// the shared-page cache and the resident index

const cacheStats = z
  .object({
    path: z.string(),
    slots: count.meta({ description: 'Pages that there is room for.' }),
    used: count,
    pinned: count.meta({ description: 'Pages that running migrations hold.' }),
    hits: count,
    misses: count,
    insertions: count,
    evictions: count,
    rejected: count.meta({ description: 'Pages to insert that were not those of their tags.' }),
    dropped: count.meta({ description: 'Pages of an earlier run that were damaged.' }),
    refused: count.meta({ description: 'Pages to insert that found no room.' }),
    indexBytes: count,
    lost: z.boolean().meta({ description: 'The file was cut off: nothing is found any more.' }),
  })
  .meta({ id: 'CacheStats', description: 'Not there: the agent has no cache.' });

const residentStats = z
  .object({
    files: count.meta({ description: 'Memory files of guests.' }),
    frames: count.meta({ description: 'Their frames.' }),
    listed: count.meta({ description: 'Frames that are listed under a tag.' }),
    different: count.meta({ description: 'Different tags among them.' }),
    hits: count,
    misses: count,
    stale: count.meta({ description: 'Frames that held another page by the time they were copied.' }),
    indexBytes: count,
  })
  .meta({
    id: 'ResidentStats',
    description: 'Pages of guests that run here. Not there: there was no room for the index.',
  });

export const cacheInfo = z
  .object({
    cache: cacheStats.exactOptional(),
    resident: residentStats.exactOptional(),
    chunks: count.meta({ description: 'Chunks of manifests that are known.' }),
  })
  .meta({ id: 'CacheInfo' });

export const warmRequest = z
  .strictObject({
    domain: domainName,
    guest: guestName.exactOptional(),
    file: z.string().min(1).max(4096).exactOptional().meta({ description: "Absolute path on the agent's host." }),
  })
  .meta({ id: 'WarmRequest', description: 'From a guest of the agent or from a file, one of them.' });

const filePath = z.string().min(1).max(4096).meta({ description: "Absolute path on the agent's host." });

export const snapshotRequest = z
  .strictObject({
    file: filePath,
    domain: domainName,
    manifest: filePath
      .exactOptional()
      .meta({ description: "Of the file, made with the domain's secret: it need not be tagged then." }),
  })
  .meta({ id: 'SnapshotRequest' });

export const snapshotInfo = z
  .object({
    file: z.string(),
    domain: z.string(),
    frames: count.meta({ description: 'Of 4096 bytes.' }),
    zero: count,
  })
  .meta({ id: 'SnapshotInfo' });

export const snapshotFile = z.object({ file: filePath });

export const kept = z
  .object({
    pages: count.meta({ description: 'Pages that are not all zero.' }),
    inserted: count,
    present: count.meta({ description: 'Were there already.' }),
    refused: count.meta({ description: 'Changed while they were read, or found no room.' }),
  })
  .meta({ id: 'Kept' });

export const cleared = z.object({ erased: count });

// migrations

export const frameClasses = z
  .object({
    total: count,
    zero: count,
    present: count,
    cache: count,
    resident: count,
    duplicate: count,
    peer: count,
    source: count,
  })
  .meta({ id: 'FrameClasses' });

export const bytes = z.object({
  wire: count,
  manifest: count,
  pages: count,
  state: count,
  raw: count,
  deltas: z
    .object({
      frames: count,
      bytes: count,
      digests: count.meta({ description: 'Bytes of digests that were sent for them.' }),
      whole: count.meta({ description: 'Bytes that whole pages would have taken in place of `bytes`; estimated.' }),
    })
    .exactOptional()
    .meta({ description: 'Of the pages, those that came as deltas; absent where none did.' }),
});

export const migrationReport = z
  .object({
    guest: z.string(),
    mode,
    driver,
    verified: z.boolean().nullable(),
    frames: frameClasses,
    bytes,
    ms: z.object({
      prepare: figure.nullable(),
      downtime: figure.nullable(),
      total: figure,
      journal: figure
        .nullable()
        .meta({ description: "Of the downtime: waiting for the disks of both hosts' journals." }),
    }),
    faults: stalls,
    longestGapMs: figure.nullable(),
    why,
    note: z.string().exactOptional().meta({ description: 'What did not go as asked for.' }),
    rounds: z
      .array(
        frameClasses.omit({ total: true, present: true }).extend({
          changed: count.meta({ description: 'Frames whose tags were told.' }),
          lacking: count.meta({ description: 'Frames that changed again before they were read.' }),
          wireBytes: count,
          ms: figure,
        }),
      )
      .exactOptional()
      .meta({ description: 'In which memory was copied before the switch.' }),
  })
  .meta({ id: 'MigrationReport' });

export const migrationInfo = z
  .object({
    id: migrationId,
    guest: z.string(),
    mode,
    why,
    peer: z.string(),
    direction: z.enum(['outgoing', 'incoming']),
    progress: migrationProgress,
    report: migrationReport.exactOptional(),
    error: errorJson.exactOptional(),
  })
  .meta({ id: 'MigrationInfo' });

export const migrateRequest = z
  .strictObject({
    guest: guestName,
    to: agentUrl,
    mode: z
      .enum(['auto', ...mode.options])
      .default('auto')
      .meta({ description: 'auto: the best that both hosts can do; docs/migration.md.' }),
    maxDowntimeMs: z
      .int()
      .min(0)
      .max(3_600_000)
      .exactOptional()
      .meta({ description: 'How long the guest may stand still; 300 by default.' }),
    maxRounds: z.int().min(1).max(1000).exactOptional().meta({ description: 'Of copying, at most.' }),
    bandwidth: z
      .int()
      .min(65_536)
      .exactOptional()
      .meta({ description: 'Bytes of pages that the destination fetches a second, at most.' }),
    onNoConvergence: z
      .enum(['post-copy', 'pause', 'abort'])
      .exactOptional()
      .meta({ description: 'What becomes of a pre-copy that does not fit; abort by default.' }),
    verify: z.boolean().default(true).meta({ description: 'Let the guest check itself after completion.' }),
  })
  .meta({ id: 'MigrateRequest' });

// between agents

const domainClaim = z
  .object({
    name: domainName,
    proof: z
      .string()
      .regex(/^[0-9a-f]{32}$/)
      .meta({ description: 'That the source has the secret of the domain.' }),
  })
  .meta({ description: 'The guests that this one may share pages with.' });

export const capabilities = z
  .object({
    protocol: z.int(),
    userfaultfd: z
      .object({ ok: z.boolean(), why: z.string().exactOptional() })
      .meta({ description: 'Whether a guest may run here before all of its pages are here.' }),
    room: z
      .object({ bytes: count, guests: count })
      .exactOptional()
      .meta({ description: 'Bytes that guests may still take, and how many may be arriving at once.' }),
  })
  .meta({ id: 'Capabilities' });

export const prepareRequest = z
  .object({
    protocol: z.int(),
    migration: migrationId,
    epoch,
    guest: guestName,
    mode,
    description: soundDescription,
    domain: domainClaim.exactOptional(),
    manifest: z
      .object({
        version: z.int().nonnegative(),
        frames: z.int().min(1).max(MOST_FRAMES),
        chunks: z.base64().max(64 << 20),
      })
      .meta({ description: 'Tags of the chunks of the guest’s manifest: docs/protocol.md.' }),
    source: z.object({ url: agentUrl, token: z.string().min(16).max(512) }),
    verify: z.boolean(),
    copies: z.boolean().meta({ description: 'Rounds come, while the guest still runs at the source.' }),
    serves: z.boolean().meta({ description: 'The guest may run before every page is there.' }),
    bandwidth: count.meta({ description: "Bytes of pages a second, at most; 0: the destination's own limit alone." }),
  })
  .meta({ id: 'PrepareRequest' });

const copiedRound = z
  .object({
    round: z.int().min(1),
    lacking: count.meta({ description: 'Frames that changed before they were read.' }),
    frames: frameClasses.omit({ total: true, present: true }),
    wireBytes: count,
    ms: figure,
  })
  .meta({ id: 'CopiedRound' });

export const completionFigures = z
  .object({
    frames: frameClasses,
    bytes,
    faults: stalls,
    longestGapMs: figure.nullable(),
    firstBeatAt: figure.exactOptional(),
    verified: z.boolean().nullable(),
    resumedAt: figure.meta({ description: 'Microseconds since the epoch.' }),
    verifyMs: figure.meta({ description: "The guest's own check, which is not part of the migration's time." }),
    journalMs: figure
      .exactOptional()
      .meta({ description: "The guest stood still so long for the destination's journal." }),
  })
  .meta({ id: 'CompletionFigures' });

export const incomingStatus = z
  .object({
    migration: migrationId,
    epoch,
    state: z.enum(['preparing', 'prepared', 'arrived', 'loaded', 'owner', 'complete', 'refused', 'unknown']),
    resumedAt: z.number().exactOptional(),
    progress: migrationProgress.exactOptional(),
    error: errorJson.exactOptional(),
    wants: z.array(z.int().nonnegative()).exactOptional(),
    copied: copiedRound.exactOptional(),
    figures: completionFigures.exactOptional(),
  })
  .meta({ id: 'IncomingStatus' });

export const epochBody = z.strictObject({ epoch });

export const copyBody = z.strictObject({
  epoch,
  round: z
    .int()
    .min(1)
    .max(1 << 20),
});

export const limitBody = z.strictObject({
  epoch,
  bandwidth: count.meta({ description: "Bytes of pages a second; 0: the destination's own limit alone." }),
});

export const loadBody = z.strictObject({
  epoch,
  rest: z
    .enum(['copy', 'serve'])
    .default('serve')
    .meta({ description: 'Fetch what is left before, or after, the guest runs.' }),
});

export const completeBody = z.strictObject({ epoch, figures: completionFigures });

export const recheckBody = z.strictObject({
  epoch,
  frames: z.array(z.int().nonnegative()).max(MOST_DOUBTS).meta({ description: 'All that are in doubt now.' }),
});

export const recheckAnswer = z.object({
  findings: z.array(z.enum(['right', 'changed', 'unknown'])).meta({ description: 'Of each frame, in order.' }),
});

// Compile-time only: each schema gives exactly the declared type, neither less nor more.
type Same<A, B> = [A] extends [B] ? ([B] extends [A] ? true : false) : false;
type Gives<S extends z.ZodType, T> = Same<z.output<S>, T>;
type AllHold<T extends true[]> = T;
export type SchemasAreInStep = AllHold<
  [
    Gives<typeof errorJson, ErrorJson>,
    Gives<typeof check, Check>,
    Gives<typeof agentInfo, AgentInfo>,
    Gives<typeof guestDescription, GuestDescription>,
    Gives<typeof guestStats, GuestStats>,
    Gives<typeof guestInfo, GuestInfo>,
    Gives<typeof guestRequest, GuestRequest>,
    Gives<typeof verifyResult, VerifyResult>,
    Gives<typeof cacheInfo, CacheInfo>,
    Gives<typeof warmRequest, WarmRequest>,
    Gives<typeof snapshotRequest, SnapshotRequest>,
    Gives<typeof snapshotInfo, SnapshotInfo>,
    Gives<typeof kept, Kept>,
    Gives<typeof migrationInfo, MigrationInfo>,
    Gives<typeof migrateRequest, MigrateRequest>,
    Gives<typeof capabilities, Capabilities>,
    Gives<typeof prepareRequest, PrepareRequest>,
    Gives<typeof incomingStatus, IncomingStatus>,
    Gives<typeof completionFigures, CompletionFigures>,
  ]
>;
