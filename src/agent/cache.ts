/** The agent's shared-page cache and what goes with it: opened at its start, closed at its end. */
import { dirname, join } from 'node:path';
import { mkdirSync } from 'node:fs';
import type { Logger } from 'pino';
import { asPagetideError } from '../errors.ts';
import type { Domains } from '../migration/domains.ts';
import { SharedPages } from '../migration/shared-pages.ts';
import { PageCache } from '../pages/cache.ts';
import { ChunkStore } from '../pages/chunk-store.ts';
import { History } from '../pages/history.ts';
import { KeepPool } from '../pages/keep-pool.ts';
import { ResidentIndex } from '../pages/resident.ts';
import type { AgentConfig } from './config.ts';

/** Tags of known chunks in memory: they name 16 GiB of guests. */
const CHUNK_BYTES = 64 * 2 ** 20;
/** All manifests of guests that left: of 64 GiB of guests at most. */
const HISTORY_BYTES = 256 * 2 ** 20;

type CacheConfig = Pick<AgentConfig, 'cache' | 'memoryFolder'>;

/** Where the cache's file lies. */
export function cachePath({ cache, memoryFolder }: CacheConfig): string {
  return cache.path ?? join(memoryFolder, 'shared-pages');
}

/**
 * Opens the cache, or makes it. A cache file of another shape, or one that was cut off, holds nothing but copies and is made
 * anew. Where there is no room for it, the agent does without. Undefined: none is configured, or there is no room.
 * @throws PagetideError `PT_CACHE_IN_USE` where another agent has it, `PT_CACHE_FILE` where the file is no cache, others of
 * {@link PageCache.open}: the agent must not start with something else than was asked for
 */
export function openCache(config: CacheConfig, log: Logger): PageCache | undefined {
  const { size: bytes } = config.cache;
  if (bytes === 0) return undefined;
  const path = cachePath(config);
  mkdirSync(dirname(path), { recursive: true, mode: 0o700 });
  const open = (replace: boolean): PageCache | undefined => {
    try {
      return PageCache.open({ path, bytes, replace });
    } catch (thrown) {
      const error = asPagetideError(thrown);
      if (error.code === 'PT_CACHE_FILE' && !replace) {
        const made = open(true); // refuses what is no cache at all
        log.warn({ path, code: error.code }, `the cache was made anew: ${error.message}`);
        return made;
      }
      if (error.code !== 'PT_NO_SPACE') throw error;
      log.error({ path, bytes, code: error.code }, `this agent runs without a cache: ${error.message}`);
      return undefined;
    }
  };
  const cache = open(false);
  if (cache !== undefined) {
    const { slots, used, dropped } = cache.stats();
    log.info({ path, slots, used, dropped }, 'the shared-page cache is open');
  }
  return cache;
}

export interface OpenSharedPages {
  shared: SharedPages;
  /** When nothing that runs uses it any more. */
  close(): Promise<void>;
}

/** Address space only, until guests are listed; an agent that gets none does without. */
function openResident(log: Logger): ResidentIndex | undefined {
  try {
    return ResidentIndex.open();
  } catch (error) {
    const { code, message } = asPagetideError(error);
    log.warn({ code }, `pages of guests that run here are not used for others: ${message}`);
    return undefined;
  }
}

/** @throws PagetideError as {@link openCache} */
export function openSharedPages(
  config: CacheConfig & Pick<AgentConfig, 'state' | 'peers'>,
  domains: Domains,
  log: Logger,
): OpenSharedPages {
  const cache = openCache(config, log);
  const resident = openResident(log);
  const historyPlace = {
    folder: join(config.state, 'history'),
    limits: { guests: config.cache.history, bytes: HISTORY_BYTES },
  };
  const keeper = new KeepPool();
  const shared = new SharedPages({
    domains,
    cache,
    resident,
    chunks: new ChunkStore(CHUNK_BYTES),
    history: new History(historyPlace.folder, historyPlace.limits),
    historyPlace,
    keeper,
    peers: config.peers,
    log,
  });
  void shared.recall().catch((error: unknown) => {
    log.warn({ error: asPagetideError(error).message }, 'the manifests of guests that left cannot be read');
  });
  return {
    shared,
    close: async () => {
      await keeper.close();
      resident?.close();
      cache?.close();
    },
  };
}
