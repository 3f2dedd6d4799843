/** The shapes of an evacuation in the control API; see schemas.ts. */
import { z } from 'zod';
import type { EvacuateRequest, EvacuationInfo } from '../service.ts';
import {
  agentUrl,
  bytes,
  errorJson,
  frameClasses,
  migrateRequest,
  migrationId,
  migrationProgress,
  migrationReport,
  mode,
} from './schemas.ts';

/** Guests under way at once where nobody says how many. */
export const PARALLEL = 2;
export const MOST_PARALLEL = 64;
const MOST_TARGETS = 64;
/** A day. */
export const LONGEST_PREPARATION_MS = 24 * 3_600_000;

const count = z.int().min(0);

export const evacuateRequest = z
  .strictObject({
    to: z.array(agentUrl).min(1).max(MOST_TARGETS).meta({ description: 'Agents that may take the guests.' }),
    parallel: z
      .int()
      .min(1)
      .max(MOST_PARALLEL)
      .default(PARALLEL)
      .meta({ description: 'Guests under way at once, at most.' }),
    ...migrateRequest.pick({ mode: true, maxDowntimeMs: true, maxRounds: true, onNoConvergence: true, verify: true })
      .shape,
    bandwidth: z
      .int()
      .min(65_536)
      .exactOptional()
      .meta({ description: 'Bytes of pages that all targets together fetch a second, at most.' }),
    prepareMs: z.int().min(1000).max(LONGEST_PREPARATION_MS).exactOptional().meta({
      description:
        'Targets bring pages of the guests first, as long as this at most, milliseconds. Without: they do not.',
    }),
    keepPlan: z.boolean().exactOptional().meta({
      description: 'The plan to evacuate this host that is made for that stays in force afterwards.',
    }),
  })
  .meta({ id: 'EvacuateRequest' });

const preparation = z
  .object({
    elapsedMs: z.number().min(0),
    mostMs: count,
    pages: count.meta({ description: 'Of all guests at all targets of their domains.' }),
    there: count.meta({ description: 'Pages that are there.' }),
    queuedBytes: count.meta({ description: 'Bytes of pages that are still to be brought, before compression.' }),
    planning: count.meta({ description: 'Targets that have not planned with it yet.' }),
    silent: z.array(z.string()).meta({ description: 'Targets that did not answer.' }),
    ended: z.enum(['brought', 'time', 'stopped']).nullable().meta({ description: 'How it ended; null: it goes on.' }),
  })
  .meta({ id: 'Preparation' });

const evacuatedGuest = z
  .object({
    guest: z.string(),
    state: z.enum(['waiting', 'moving', 'moved', 'stays']),
    memory: count,
    to: z.string().exactOptional(),
    expectedBytes: count
      .exactOptional()
      .meta({ description: 'Bytes of pages that are expected to be fetched for it, before compression.' }),
    migration: migrationId.exactOptional(),
    mode: mode.exactOptional(),
    progress: migrationProgress.exactOptional(),
    report: migrationReport.exactOptional(),
    error: errorJson.exactOptional().meta({ description: 'Why it stays, or did not get to another target before.' }),
  })
  .meta({ id: 'EvacuatedGuest' });

export const evacuationInfo = z
  .object({
    state: z.enum(['planned', 'preparing', 'running', 'stopping', 'ended']),
    to: z.array(z.string()),
    parallel: count,
    bandwidth: count.exactOptional(),
    elapsedMs: z.number().min(0),
    guests: z.array(evacuatedGuest).meta({ description: 'In the order in which they go.' }),
    totals: z
      .object({
        moved: count,
        stay: count,
        frames: frameClasses,
        bytes: bytes.omit({ deltas: true }),
        longestDowntimeMs: z.number().min(0).nullable(),
      })
      .meta({ description: 'Of the guests that have moved.' }),
    preparation: preparation.exactOptional().meta({ description: 'Of one that was to be prepared.' }),
  })
  .meta({ id: 'EvacuationInfo' });

export const stopBody = z.strictObject({
  cancel: z
    .boolean()
    .default(false)
    .meta({ description: 'Cancel the guests under way, where that is possible still; otherwise they move on.' }),
});

// Compile-time only: each schema gives exactly the declared type.
type Same<A, B> = [A] extends [B] ? ([B] extends [A] ? true : false) : false;
type AllHold<T extends true[]> = T;
export type EvacuationSchemasAreInStep = AllHold<
  [Same<z.output<typeof evacuateRequest>, EvacuateRequest>, Same<z.output<typeof evacuationInfo>, EvacuationInfo>]
>;
