/** The shapes of distribution and of plans in the control API; see schemas.ts. */
import { z } from 'zod';
import {
  DISTRIBUTION_STATES,
  PAGE_DECISIONS,
  PAGE_REASONS,
  type DistributionInfo,
  type HostExplanation,
} from '../../distribution/info.ts';
import { AFFINITY_HOSTS_LIMIT, HINT_LIMIT_MS } from '../../directory/hint.ts';
import type { ExplainQuestion, TagsExplained } from '../../distribution/explain-message.ts';
import { TAG_BYTES } from '../../pages/tags.ts';
import { LEAST_RATE } from '../config-units.ts';
import {
  MOST_EXPLAINED,
  PLAN_MS,
  type ExplainedGuest,
  type GuestPlans,
  type RatesWanted,
  type WithdrawnPlans,
} from '../distribution-service.ts';
import { domainId } from './domain-schemas.ts';
import { domainName, errorJson, guestName } from './schemas.ts';

const count = z.int().min(0);
const figure = z.number().min(0);
const host = z.string().min(1).max(1024);

const rates = z.object({ average: figure, peak: figure }).meta({ description: 'Bytes a second.' });

export const distributionInfo = z
  .object({
    state: z.enum(DISTRIBUTION_STATES),
    offBecause: z.enum(['no cache', 'no budget']).nullable(),
    paused: z.boolean().meta({ description: 'By an operator; also while it stands back.' }),
    rates,
    budgetBytes: count.meta({ description: 'Bytes of the cache that brought pages may take.' }),
    heldBytes: count.meta({ description: 'Brought pages that are in the cache.' }),
    heldPages: count,
    queuedPages: count.meta({ description: 'What the last plan wants and is still to be brought.' }),
    domains: z.array(
      z.object({
        domain: z.string(),
        heldPages: count,
        queuedPages: count,
        spentBytes: figure.meta({ description: 'Bytes on the wire; fades by half in a day.' }),
        savedBytes: figure.meta({ description: 'Bytes that migrations did not send; fades likewise.' }),
        factor: figure.meta({ description: '1/4 to 4: how what was spent has paid.' }),
        directory: z.object({
          home: z.string().nullable().meta({ description: 'The host that keeps it; null: this one.' }),
          reachable: z.boolean().nullable().meta({ description: 'null: it was not asked yet.' }),
          lastReportMs: figure.nullable().meta({ description: "Since it took this host's last report." }),
          reportedTags: count.nullable(),
          error: errorJson
            .exactOptional()
            .meta({ description: 'Why what this host reports is not taken, or is worth nothing there.' }),
        }),
      }),
    ),
    lastPlan: z
      .object({
        at: figure.meta({ description: 'Unix milliseconds.' }),
        candidates: count,
        chosen: count,
        bring: count,
        leaving: count,
        tookMs: figure,
        away: z.array(z.string()).meta({ description: 'Domains whose directory did not answer.' }),
        complete: z.boolean(),
      })
      .nullable(),
    totals: z
      .object({
        broughtPages: count,
        broughtBytes: count,
        servedPages: count.meta({ description: 'Brought pages that served a guest that arrived.' }),
        savedBytes: figure,
        leftPages: count,
        evictedPages: count,
        absentPages: count,
        wrongPages: count,
        plans: count,
      })
      .meta({ description: 'Since the agent began.' }),
  })
  .meta({ id: 'DistributionInfo' });

const hostExplanation = z
  .object({
    pages: count,
    guests: count.meta({ description: 'Held by a guest that runs there.' }),
    cache: count.meta({ description: 'In the shared-page cache there; a page may be in both.' }),
    brought: count.meta({ description: 'Of those in the cache: brought by distribution.' }),
    queued: count.meta({ description: 'To be brought, and not there yet.' }),
    missing: count.meta({ description: 'In neither, and not to be brought.' }),
    hints: z
      .array(z.string())
      .nullable()
      .meta({ description: 'Hints that the last plan there knew; null: no plan yet.' }),
    decisions: z
      .array(
        z.object({
          decision: z.enum(PAGE_DECISIONS),
          reason: z.enum(PAGE_REASONS),
          pages: count,
          wireBytes: figure,
          expectedBytes: figure,
          costBytes: figure,
        }),
      )
      .meta({ description: 'Every page is in exactly one.' }),
  })
  .meta({ id: 'HostExplanation' });

const state = z.enum(DISTRIBUTION_STATES);
const planAgeMs = figure
  .nullable()
  .meta({ description: 'Since the last plan there began; null: there was none, or the directory did not answer it.' });

export const explainedGuest = z
  .object({
    guest: z.string(),
    domain: z.string(),
    stable: z
      .boolean()
      .meta({ description: 'false: no page is known to be stable yet, these are all that are known.' }),
    pages: count.meta({ description: 'Different pages, without the zero page.' }),
    hosts: z.array(
      z.object({
        host: z.string(),
        url: z.string(),
        likelihood: figure.nullable().meta({ description: 'That the guest comes there; null: the directory is away.' }),
        explanation: hostExplanation.nullable().meta({ description: 'null: the host did not answer.' }),
        present: count.nullable().meta({ description: 'Pages that it would send to others now.' }),
        state: state.nullable(),
        planAgeMs,
        error: errorJson.exactOptional().meta({ description: 'Why it did not.' }),
      }),
    ),
  })
  .meta({ id: 'ExplainedGuest' });

const rate = z.int().min(LEAST_RATE).max(1e12);
export const ratesWanted = z
  .strictObject({
    average: rate,
    peak: rate.exactOptional().meta({ description: 'Four times the average by default.' }),
  })
  .meta({ id: 'RatesWanted', description: 'Bytes a second.' });
export const budgetBody = z.strictObject({ bytes: count });

const forMs = z
  .int()
  .min(1)
  .max(HINT_LIMIT_MS)
  .default(PLAN_MS)
  .meta({ description: 'How long it is in force, milliseconds; 30 days at most.' });
const oneDomain = domainName.exactOptional().meta({ description: 'Without: all that it can be about.' });

export const evacuatePlanBody = z.strictObject({
  host: host.meta({ description: "As members call it, its agent's URL, or `self`." }),
  forMs,
  domain: oneDomain,
});
export const affinityPlanBody = z.strictObject({
  guest: guestName,
  hosts: z.array(host).min(1).max(AFFINITY_HOSTS_LIMIT),
  forMs,
  domain: domainName.exactOptional().meta({ description: "The guest's; needed where the guest is not here." }),
});
export const withdrawPlanBody = z.strictObject({
  about: z.discriminatedUnion('kind', [
    z.strictObject({ kind: z.literal('evacuate'), host }),
    z.strictObject({ kind: z.literal('affinity'), guest: guestName }),
  ]),
  domain: oneDomain,
});

const failed = z
  .array(z.object({ domain: z.string(), error: errorJson }))
  .meta({ description: 'Domains whose directory was not reached.' });
const inForce = { domain: z.string(), leftMs: figure };
export const guestPlans = z
  .object({
    plans: z.array(
      z.discriminatedUnion('kind', [
        z.object({ kind: z.literal('evacuate'), host: z.string(), ...inForce }),
        z.object({ kind: z.literal('affinity'), guest: z.string(), hosts: z.array(z.string()), ...inForce }),
      ]),
    ),
    failed,
  })
  .meta({ id: 'GuestPlans' });
export const withdrawnPlans = z
  .object({ withdrawn: z.array(z.string()).meta({ description: 'Domains that had it.' }), failed })
  .meta({ id: 'WithdrawnPlans' });

// between agents

/** Characters of so many tags in base64. */
const MOST_TEXT = Math.ceil((MOST_EXPLAINED * TAG_BYTES) / 3) * 4;
/** Bytes of a question: more than other requests may have. */
export const EXPLAIN_LIMIT = MOST_TEXT + 4096;

export const explainQuestion = z
  .strictObject({
    domain: domainId,
    tags: z.base64().max(MOST_TEXT).meta({ description: '16 bytes each.' }),
    likelihood: z.number().min(0).max(1).exactOptional(),
  })
  .meta({ id: 'ExplainQuestion' });
export const tagsExplained = z.object({ state, planAgeMs, explanation: hostExplanation }).meta({ id: 'TagsExplained' });

// compile-time only, as in schemas.ts
type Same<A, B> = [A] extends [B] ? ([B] extends [A] ? true : false) : false;
type Gives<S extends z.ZodType, T> = Same<z.output<S>, T>;
type AllHold<T extends true[]> = T;
export type DistributionSchemasAreInStep = AllHold<
  [
    Gives<typeof distributionInfo, DistributionInfo>,
    Gives<typeof hostExplanation, HostExplanation>,
    Gives<typeof explainedGuest, ExplainedGuest>,
    Gives<typeof ratesWanted, RatesWanted>,
    Gives<typeof guestPlans, GuestPlans>,
    Gives<typeof withdrawnPlans, WithdrawnPlans>,
    Gives<typeof explainQuestion, ExplainQuestion>,
    Gives<typeof tagsExplained, TagsExplained>,
  ]
>;
