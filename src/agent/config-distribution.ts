/** The part of the configuration that says how pages are brought to a host before guests come; see config.ts. */
import { resolve } from 'node:path';
import { z } from 'zod';
import { DISTRIBUTION_DEFAULTS, type DistributionSettings } from '../distribution/info.ts';
import { LOWEST_PEAK } from '../distribution/wire-cost.ts';
import { PagetideError } from '../errors.ts';
import { bytesPerSecond, path } from './config-units.ts';
import { redisUrl } from './redis-url.ts';
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

const MOST_URLS = 64;
const redisUrls = z.union([z.string(), z.array(z.string())]).transform((given, context): string[] => {
  const urls = typeof given === 'string' ? [given] : given;
  // no message repeats them: there may be a password in them
  if (urls.length > 0 && urls.length <= MOST_URLS && urls.every((url) => redisUrl(url) !== undefined)) return urls;
  context.addIssue({ code: 'custom', message: `a redis:// or rediss:// URL, or a list of ${MOST_URLS} at most` });
  return z.NEVER;
});

export const directoryFields = z
  .strictObject({
    url: redisUrls
      .exactOptional()
      .describe(
        'Redis or Valkey that keeps the directories of this host’s domains: `redis://` or `rediss://` (TLS), or a list of nodes of a cluster. All hosts of a domain have the same. Default: the agent that made a domain keeps its directory.',
      ),
    cluster: z.boolean().exactOptional().describe('Whether the one URL is a node of a cluster; a list always is.'),
    username: z.string().min(1).max(256).exactOptional().describe('User of the Redis. Default: its default user.'),
    passwordFile: path
      .exactOptional()
      .describe('File with its password, read when the agent starts; only the agent’s user may be able to read it.'),
    ca: path.exactOptional().describe('Certificates to believe of it, PEM. Default: those of the system.'),
    certificate: path.exactOptional().describe('Certificate to show it, PEM, where it wants one. Default: none.'),
    key: path.exactOptional().describe('Its key; only the agent’s user may be able to read it.'),
    prefix: z
      .string()
      .regex(/^[\x21-\x7a]{1,30}$/, '30 printable characters at most, no spaces, no braces')
      .exactOptional()
      .describe('What keys in it begin with, the same on all hosts of a domain. Default: `pagetide`.'),
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

const OF_REDIS = ['cluster', 'username', 'passwordFile', 'ca', 'certificate', 'key', 'prefix'] as const;
const FILES = ['passwordFile', 'ca', 'certificate', 'key'] as const;

/** Paths become absolute. @throws PagetideError `PT_BAD_CONFIG` */
export function completeDirectory(given: DirectoryConfig): DirectoryConfig {
  const { leaseMs, reportMs, url: texts, cluster, username, passwordFile } = given;
  if (reportMs * REPORTS_A_LEASE > leaseMs)
    throw bad(`reportMs: ${reportMs} is more than a third of directory.leaseMs, ${leaseMs}`);
  const lone = OF_REDIS.find((name) => given[name] !== undefined);
  if (texts === undefined) {
    if (lone !== undefined) throw bad(`${lone}: is of use with directory.url only`);
    return given;
  }
  const urls = texts.flatMap((text) => redisUrl(text) ?? []);
  const isCluster = cluster ?? urls.length > 1;
  if (urls.length > 1 && !isCluster) throw bad('cluster: several URLs are nodes of a cluster');
  if (isCluster && urls.some(({ pathname }) => !/^\/?0?$/.test(pathname)))
    throw bad('url: a cluster has database 0 alone');
  const [first, ...others] = urls;
  const login = (url: URL | undefined): string => `${url?.username}:${url?.password}`;
  if (others.some((other) => other.protocol !== first?.protocol))
    throw bad('url: either all nodes of a cluster are rediss://, or none');
  if (others.some((other) => login(other) !== ':' && login(other) !== login(first)))
    throw bad('url: all nodes of a cluster take the same user and password');
  if (passwordFile !== undefined && urls.some(({ password }) => password !== ''))
    throw bad('passwordFile: there is a password in directory.url');
  if (username !== undefined && urls.some((url) => url.username !== ''))
    throw bad('username: there is one in directory.url');
  if ((given.certificate === undefined) !== (given.key === undefined))
    throw bad('certificate: a certificate and its key go together');
  const tls = (['ca', 'certificate', 'key'] as const).find((name) => given[name] !== undefined);
  if (first?.protocol !== 'rediss:' && tls !== undefined) throw bad(`${tls}: is of use with rediss:// only`);
  const files = FILES.flatMap((name) => (given[name] === undefined ? [] : [[name, resolve(given[name])]]));
  return { ...given, ...(Object.fromEntries(files) as Partial<DirectoryConfig>) };
}

function bad(what: string): PagetideError {
  return new PagetideError('PT_BAD_CONFIG', `directory.${what}`);
}
