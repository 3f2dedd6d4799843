/** An agent's directories in a Redis that would evict records: it is told, by a server's own words. */
import { join } from 'node:path';
import { pino } from 'pino';
import t from 'tap';
import { Directories } from '../../src/agent/directories.ts';
import { RedisDirectories } from '../../src/agent/redis-directories.ts';
import { DomainStore } from '../../src/domains/store.ts';
import { PeerClient } from '../../src/transport/peer.ts';
import { killed, skipWithoutRedis, startCluster, startRedis, until } from '../support/redis.ts';
import { shortFolder } from './api-harness.ts';

const skip = { skip: skipWithoutRedis };
const config = { leaseMs: 60_000, reportMs: 1000 };

void t.test('a server that would evict records is told of, once, until it would not', skip, async (t) => {
  const { url, client } = await startRedis(t, { args: ['--maxmemory-policy', 'allkeys-lru'] });
  const folder = shortFolder(t);
  const lines: { level: number; code?: string; hint?: string }[] = [];
  const log = pino({}, { write: (line: string) => void lines.push(JSON.parse(line) as (typeof lines)[0]) });
  const store = await DomainStore.open(join(folder, 'domains'), log);
  await store.create('shop');
  const directories = new Directories({
    ...{ store, folder: join(folder, 'directory'), identity: 'host-a', control: join(folder, 's'), log },
    ...{ redis: new RedisDirectories({ ...config, url: [url] }), lookMs: 20 },
    connect: (at, whom) => new PeerClient(at, { ...whom, answerMs: 1_000 }),
    guests: () => [],
    stableTags: () => undefined,
  });
  await directories.start();
  t.teardown(() => directories.close());
  const error = () => directories.state('shop')?.error;
  const told = () => lines.filter(({ code }) => code === 'PT_DIRECTORY_EVICTS');
  await until('it is noticed', () => Promise.resolve(error() !== undefined));
  t.match(error(), { code: 'PT_DIRECTORY_EVICTS', message: /allkeys-lru/ });
  t.match(told(), [{ level: 50, hint: /noeviction/ }]);
  t.same(await directories.get('shop')!.directory.hosts(), [], 'it is used all the same');

  await client.config('SET', 'maxmemory-policy', 'volatile-ttl');
  await until('it is well', () => Promise.resolve(error() === undefined));
  await client.config('SET', 'maxmemory-policy', 'allkeys-random');
  await until('it is noticed again', () => Promise.resolve(error() !== undefined));
  t.equal(told().length, 2, 'once each time');
});

void t.test('which policies, by which rights', skip, async (t) => {
  const server = await startRedis(t);
  const { client } = server;
  await client.call('acl', 'setuser', 'tide', 'on', '>another', '~*', '+eval', '+evalsha', '+info');
  await client.call('acl', 'setuser', 'blind', 'on', '>another', '~*', '+eval', '+evalsha');
  const at = (user: string) => {
    const made = new RedisDirectories({ ...config, url: [server.url.replace('//', `//${user}:another@`)] });
    t.teardown(() => made.close());
    return made;
  };
  const tide = at('tide');
  for (const policy of ['noeviction', 'volatile-lru', 'volatile-random']) {
    await client.config('SET', 'maxmemory-policy', policy);
    t.equal(await tide.evicting(), undefined, policy);
  }
  for (const policy of ['allkeys-lru', 'allkeys-lfu', 'allkeys-random']) {
    await client.config('SET', 'maxmemory-policy', policy);
    t.match(await tide.evicting(), { code: 'PT_DIRECTORY_EVICTS', message: new RegExp(policy) });
  }
  await t.rejects(at('blind').evicting(), { code: 'PT_PEER_UNREACHABLE', message: /^(?!.*another)/ });
  await killed(server.process);
  await t.rejects(tide.evicting(), { code: 'PT_PEER_UNREACHABLE' });
});

void t.test('one node of a cluster is enough', skip, async (t) => {
  const servers = await startCluster(t);
  const redis = new RedisDirectories({ ...config, url: servers.map(({ url }) => url) });
  t.teardown(() => redis.close());
  const answers = (): Promise<boolean> =>
    redis.evicting().then(
      (found) => found === undefined,
      () => false,
    );
  await until('the cluster is known', answers);
  await servers[2]!.client.config('SET', 'maxmemory-policy', 'allkeys-lru');
  t.match(await redis.evicting(), { code: 'PT_DIRECTORY_EVICTS' });
});
