/** The directory in a cluster of three nodes: the contract. */
import t from 'tap';
import { RedisDirectory } from '../../src/directory/redis/redis.ts';
import { skipWithoutRedis, startCluster } from '../support/redis.ts';
import { contract, LEASE_MS } from './contract.ts';

if (skipWithoutRedis !== false) t.plan(0, skipWithoutRedis);
else {
  const servers = await startCluster(t);
  contract(
    'redis cluster',
    async (clock) => {
      for (const { client } of servers) await client.flushall();
      return new RedisDirectory({ urls: servers.map(({ url }) => url), leaseMs: LEASE_MS, sweepMs: 0, clock });
    },
    10,
  );
}
