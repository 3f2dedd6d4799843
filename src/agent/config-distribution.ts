/** The part of the configuration that says how pages are brought to a host before guests come; see config.ts. */
import { z } from 'zod';
import { DISTRIBUTION_DEFAULTS, type DistributionSettings } from '../distribution/info.ts';
import { LOWEST_PEAK } from '../distribution/wire-cost.ts';
import { PagetideError } from '../errors.ts';
import { bytesPerSecond } from './config-units.ts';
import { parseSize } from './units.ts';

const DAY_MS = 24 * 3_600_000;
/** The peak where nobody says one: so many times the average. */
export const PEAK_FACTOR = 4;
/** A lease outlives two reports that got lost. */
const REPORTS_A_LEASE = 3;

/** Bytes, or a share of the cache, 0 to 1. */
type Budget = { bytes: number } | { share: number };

const budget = z.union([z.int().min(0), z.string()]).transform((value, context): Budget => {
  const percent = typeof value === 'string' ? /^(\d{1,3}(?:\.\d{1,3})?)\s?%$/.exec(value.trim()) : null;
  if (percent !== null && Number(percent[1]) <= 100) return { share: Number(percent[1]) / 100 };
  const bytes = typeof value === 'number' ? value : parseSize(value);
  if (bytes !== undefined) return { bytes };
  context.addIssue({ code: 'custom', message: 'a size, e.g. 4G, or a share of the cache, e.g. 50%' });
  return z.NEVER;
});

const price = z.number().min(0).max(1000);

export const distributionFields = z
  .strictObject({
    enabled: z
      .boolean()
      .default(true)
      .describe(
        'Whether this host brings pages before a guest needs them. It takes a cache (`cache.size`). Without, or with `false`, other hosts are still told what guests here have.',
      ),
    average: bytesPerSecond
      .default(12_500_000)
      .describe(
        'Bytes a second that bringing takes, and as many again that it sends to others, at most, in the long run. The default is 1% of a link of 10 Gbit/s.',
      ),
    peak: bytesPerSecond
      .exactOptional()
      .describe('The most that goes in any tenth of a second, as a rate. Default: four times `average`.'),
    budget: budget
      .default({ share: 0.5 })
      .describe('Bytes of the cache that brought pages may take, or with K, M, G, or a share of it. Default: `50%`.'),
    horizonMs: z
      .int()
      .min(60_000)
      .max(30 * DAY_MS)
      .default(DISTRIBUTION_DEFAULTS.horizonMs)
      .describe('How far ahead arrivals of guests are reckoned with, milliseconds.'),
    intervalMs: z
      .int()
      .min(1000)
      .max(DAY_MS)
      .default(DISTRIBUTION_DEFAULTS.intervalMs)
      .describe('From the end of one plan of what is to be brought to the next, milliseconds.'),
    moves: z
      .number()
      .min(0)
      .max(1)
      .default(DISTRIBUTION_DEFAULTS.moves)
      .describe('How likely a guest of which nobody has said anything moves within the horizon, 0 to 1.'),
    prices: z
      .strictObject({
        hold: price
          .default(DISTRIBUTION_DEFAULTS.prices.hold)
          .describe('Of a byte of cache until the horizon, in bytes on the wire of a migration.'),
        bring: price
          .default(DISTRIBUTION_DEFAULTS.prices.bring)
          .describe('Of a byte that is brought while nobody waits for it, in bytes on the wire of a migration.'),
        hysteresis: z
          .number()
          .min(1)
          .max(100)
          .default(DISTRIBUTION_DEFAULTS.prices.hysteresis)
          .describe('How many times as important another page must be to take the place of one that was brought.'),
      })
      .prefault({})
      .describe('What bringing and keeping pages is taken to cost, see distribution-importance.md.'),
  })
  .prefault({})
  .describe('Bringing pages to where guests are expected, see distribution.md.');

export const directoryFields = z
  .strictObject({
    url: z
      .url({ protocol: /^rediss?$/, error: 'a redis:// or rediss:// URL' })
      .exactOptional()
      .describe(
        'A Redis or Valkey that keeps the directories of domains that are made here. Default: the agent does, in its memory.',
      ),
    leaseMs: z
      .int()
      .min(1000)
      .max(3_600_000)
      .default(60_000)
      .describe('Milliseconds after which a host that reports nothing more is taken to hold nothing.'),
    reportMs: z
      .int()
      .min(100)
      .max(3_600_000)
      .default(10_000)
      .describe('Milliseconds between two reports of what guests here have; a third of `directory.leaseMs` at most.'),
  })
  .prefault({})
  .describe('The directory of a domain: which hosts have which pages, see distribution.md.');

type DistributionFile = z.output<typeof distributionFields>;

/** Complete: what the agent takes. */
export interface DistributionConfig extends Omit<DistributionFile, 'peak' | 'budget'> {
  /** Bytes a second, not below the average. */
  peak: number;
  /** Bytes of the cache that brought pages may take; 0 where there is no cache. */
  budget: number;
}

/** As src/distribution/ takes it: a budget of 0 where nothing is to be brought. */
export function distributionSettings({
  enabled,
  average,
  peak,
  budget,
  ...rest
}: DistributionConfig): DistributionSettings {
  const { horizonMs, intervalMs, moves, prices } = rest;
  return { rates: { average, peak }, budgetBytes: enabled ? budget : 0, horizonMs, intervalMs, moves, prices };
}

export type DirectoryConfig = z.output<typeof directoryFields>;

/** @param cacheBytes size of the cache; 0: none. @throws PagetideError `PT_BAD_CONFIG` */
export function completeDistribution(given: DistributionFile, cacheBytes: number): DistributionConfig {
  const { peak = given.average * PEAK_FACTOR, budget: wanted, ...rest } = given;
  if (peak < given.average)
    throw new PagetideError(
      'PT_BAD_CONFIG',
      `distribution.peak: ${peak} is below distribution.average, ${given.average}`,
    );
  if (peak < LOWEST_PEAK)
    throw new PagetideError('PT_BAD_CONFIG', `distribution.peak: ${peak} is below the lowest, ${LOWEST_PEAK}`);
  const bytes = 'share' in wanted ? Math.floor(cacheBytes * wanted.share) : wanted.bytes;
  if (cacheBytes > 0 && bytes > cacheBytes)
    throw new PagetideError('PT_BAD_CONFIG', `distribution.budget: ${bytes} is more than cache.size, ${cacheBytes}`);
  return { ...rest, peak, budget: Math.min(bytes, cacheBytes) };
}

/** @throws PagetideError `PT_BAD_CONFIG` */
export function checkDirectory({ leaseMs, reportMs }: DirectoryConfig): void {
  if (reportMs * REPORTS_A_LEASE <= leaseMs) return;
  throw new PagetideError(
    'PT_BAD_CONFIG',
    `directory.reportMs: ${reportMs} is more than a third of directory.leaseMs, ${leaseMs}`,
  );
}
