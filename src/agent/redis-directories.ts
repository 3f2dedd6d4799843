/**
 * Directories of domains in a Redis, as this agent uses it: one client for all of them, a prefix for each.
 *
 *   every host of a domain        opens `<prefix>:<domain id>:` there, under the name that the domain's home calls it by
 *   the home, besides             takes out hosts that have the domain no more, and what is left of domains that it removed; both again and
 *                                 again, as a host that has not heard yet still writes there
 *   a member, besides             asks the home whether it is configured alike
 *
 * Redis can't tell agents of a domain apart, nor those that have it from those that had it (docs/security.md).
 */
import { statSync } from 'node:fs';
import { RedisClient, type RedisAddress } from '../directory/redis/connection.ts';
import { RedisDirectory } from '../directory/redis/redis.ts';
import { asPagetideError, PagetideError } from '../errors.ts';
import type { DirectoryConfig } from './config-distribution.ts';
import { shownUrl } from './redis-url.ts';

const PREFIX = 'pagetide';
/** Between sweeps: the home does them; others only where it has not for so long, milliseconds. */
const HOME_SWEEP_MS = 1000;
const MEMBER_SWEEP_MS = 30_000;

export class RedisDirectories {
  /** Where they are, for people: without user and password. */
  readonly shown: string;
  readonly #client: RedisClient;
  readonly #prefix: string;
  readonly #leaseMs: number;

  /** Connects in the background. @throws PagetideError `PT_BAD_CONFIG`: files that can't be used, or that others may read */
  constructor(config: DirectoryConfig & { url: readonly string[] }) {
    const { url, leaseMs, prefix = PREFIX } = config;
    this.#prefix = prefix;
    this.#leaseMs = leaseMs;
    this.shown = url.map(shownUrl).join(' ');
    for (const name of ['passwordFile', 'key'] as const) checkSecret(name, config[name]);
    try {
      this.#client = new RedisClient(addressOf(config));
    } catch (thrown) {
      throw new PagetideError('PT_BAD_CONFIG', `directory: ${asPagetideError(thrown).message}`, { cause: thrown });
    }
  }

  /** @param isHome whether the domain was made here @param mostWanted see {@link RedisDirectory} */
  open(domain: string, isHome: boolean, mostWanted?: () => number): RedisDirectory {
    return new RedisDirectory({
      client: this.#client,
      prefix: `${this.#prefix}:${domain}:`,
      leaseMs: this.#leaseMs,
      sweepMs: isHome ? HOME_SWEEP_MS : MEMBER_SWEEP_MS,
      ...(mostWanted === undefined ? {} : { mostWanted }),
    });
  }

  /**
   * `PT_DIRECTORY_EVICTS` where a node would evict keys that don't expire, once its memory is full: records would be lost, and nobody would
   * notice. Undefined: none does, or none tells. @throws PagetideError `PT_PEER_UNREACHABLE`
   */
  async evicting(): Promise<PagetideError | undefined> {
    const policy = (await this.#client.evictionPolicies()).find((one) => one.startsWith('allkeys-'));
    if (policy === undefined) return undefined;
    return new PagetideError(
      'PT_DIRECTORY_EVICTS',
      `Redis, ${this.shown}, loses records when its memory is full: ${policy}`,
    );
  }

  /** Deletes what a domain has left. @returns whether all is gone; false: try again. @throws PagetideError `PT_PEER_UNREACHABLE` */
  async erase(domain: string): Promise<boolean> {
    const directory = this.open(domain, true);
    try {
      return await directory.erase(domain);
    } finally {
      await directory.close();
    }
  }

  /** Gives up what is under way. Idempotent. */
  close(): void {
    this.#client.close();
  }
}

function addressOf(config: DirectoryConfig & { url: readonly string[] }): RedisAddress {
  const { url: urls, cluster, username, passwordFile, ca, certificate, key } = config;
  return {
    urls,
    ...(cluster === undefined ? {} : { cluster }),
    ...(username === undefined ? {} : { username }),
    ...(passwordFile === undefined ? {} : { passwordFile }),
    ...(ca === undefined ? {} : { ca }),
    ...(certificate === undefined ? {} : { certificate }),
    ...(key === undefined ? {} : { key }),
  };
}

function checkSecret(name: string, path: string | undefined): void {
  if (path === undefined) return;
  let mode: number;
  try {
    ({ mode } = statSync(path));
  } catch (cause) {
    throw new PagetideError('PT_BAD_CONFIG', `directory.${name}: ${path} can't be read`, { cause });
  }
  if ((mode & 0o077) !== 0)
    throw new PagetideError('PT_BAD_CONFIG', `directory.${name}: others may read ${path}`, {
      hint: `Keep it to its owner: chmod 600 ${path}.`,
    });
}
