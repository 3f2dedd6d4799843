/** The directory in one Redis server: the contract. */
import t from 'tap';
import { RedisDirectory } from '../../src/directory/redis/redis.ts';
import { skipWithoutRedis, startRedis } from '../support/redis.ts';
import { contract, LEASE_MS } from './contract.ts';

if (skipWithoutRedis !== false) t.plan(0, skipWithoutRedis);
else {
  const { url, client } = await startRedis(t);
  contract(
    'redis',
    async (clock) => {
      await client.flushall();
      return new RedisDirectory({ urls: [url], leaseMs: LEASE_MS, sweepMs: 0, clock });
    },
    25,
  );
}
