/** The directory in Redis: connections, what is lost, what is left, and what a page costs. */
import { randomBytes } from 'node:crypto';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import type { Report } from '../../src/directory/directory.ts';
import { RedisDirectory, type RedisOptions } from '../../src/directory/redis/redis.ts';
import { mix, unmix } from '../../src/directory/redis/mix.ts';
import { makeAuthority, makeHost } from '../../src/trust/authority.ts';
import { killed, skipWithoutRedis, startCluster, startRedis, until, type Server } from '../support/redis.ts';
import { tagsOf } from './model.ts';

const NONE = new Uint8Array(0);
const skip = { skip: skipWithoutRedis };

function open(t: Test, options: Omit<RedisOptions, 'leaseMs'> & { leaseMs?: number }): RedisDirectory {
  const directory = new RedisDirectory({ leaseMs: 600_000, sweepMs: 0, ...options });
  t.teardown(() => directory.close());
  return directory;
}

function begin(host: string, added: Uint8Array, sequence = 1, guest = 'a'): Report {
  return { host, epoch: 1, sequence, begins: true, changes: [{ domain: 'shop', guest, added, removed: NONE }] };
}

/** Of all keys, as `MEMORY USAGE` counts them. */
async function usedBytes({ client }: Server): Promise<number> {
  let bytes = 0;
  for (const key of await client.keys('*')) bytes += (await client.memory('USAGE', key, 'SAMPLES', 0)) ?? 0;
  return bytes;
}

void t.test('mixed tags come back, and are spread', (t) => {
  const tags = tagsOf(...Array.from({ length: 1000 }, (_, i) => i));
  const mixed = mix(tags);
  t.same(unmix(mixed), tags);
  const shards = new Set(Array.from({ length: 1000 }, (_, i) => mixed[16 * i + 15]! % 128));
  t.ok(shards.size > 120);
  t.end();
});

interface Trust {
  /** For `startRedis`: TLS with certificates on both sides, and a password. */
  server: { scheme: 'rediss'; args: string[]; client: object };
  /** For a directory. */
  agent: { ca: string; certificate: string; key: string; passwordFile: string };
}

async function trust(t: Test): Promise<Trust> {
  const folder = mkdtempSync(join(tmpdir(), 'pagetide-redis-tls-'));
  t.teardown(() => {
    rmSync(folder, { recursive: true, force: true });
  });
  const path = (name: string, text: string): string => {
    writeFileSync(join(folder, name), text, { mode: 0o600 });
    return join(folder, name);
  };
  const authority = await makeAuthority();
  const [server, agent] = [await makeHost(authority, 'redis', ['127.0.0.1']), await makeHost(authority, 'h1')];
  const ca = path('ca.pem', authority.certificate);
  const certificates = [
    ...['--tls-cert-file', path('redis.pem', server.certificate)],
    ...['--tls-key-file', path('redis-key.pem', server.key)],
    ...['--tls-ca-cert-file', ca],
  ];
  return {
    server: {
      scheme: 'rediss',
      args: [...certificates, '--requirepass', 'secret one'],
      client: { password: 'secret one', tls: { ca: authority.certificate, cert: agent.certificate, key: agent.key } },
    },
    agent: {
      ca,
      certificate: path('agent.pem', agent.certificate),
      key: path('agent-key.pem', agent.key),
      passwordFile: path('password', 'secret one\n'),
    },
  };
}

void t.test('over TLS, with a password', skip, async (t) => {
  const { server, agent } = await trust(t);
  const { ca, passwordFile, ...files } = agent;
  const { url, client } = await startRedis(t, server);
  await client.call(
    'acl',
    'setuser',
    'tide',
    'on',
    '>another',
    '~pt:*',
    '&*',
    '+eval',
    '+evalsha',
    '+info',
    '+@write',
    '+@read',
    '+time',
  );
  const first = open(t, { urls: [url], ca, ...files, passwordFile });
  t.equal((await first.report(begin('h1', tagsOf(1)))).state, 'applied');
  const withUser = url.replace('//', '//tide:another@');
  const second = open(t, { urls: [withUser], ca, ...files, prefix: 'pt:' });
  t.equal((await second.report(begin('h1', tagsOf(1)))).state, 'applied', 'a user with few rights will do');
  const bad: [string, Omit<RedisOptions, 'leaseMs'>][] = [
    ['no password', { urls: [url], ca, ...files }],
    ['a wrong one', { urls: [url.replace('//', '//:wrong@')], ca, ...files }],
    ['an authority that is not believed', { urls: [withUser], ...files }],
    ['no certificate', { urls: [withUser], ca }],
    ['no TLS', { urls: [withUser.replace('rediss', 'redis')] }],
  ];
  for (const [what, options] of bad) {
    const directory = open(t, { timeoutMs: 1000, ...options });
    await t.rejects(directory.hosts(), { code: 'PT_PEER_UNREACHABLE', message: /^(?!.*(secret|another|wrong))/ }, what);
  }
  for (const urls of [[], ['http://x'], ['redis://'], ['redis://a', 'rediss://b'], ['redis://a/x']])
    t.throws(() => new RedisDirectory({ urls, leaseMs: 1 }), { code: 'PT_BAD_ARGUMENT' }, urls.join());
  t.throws(() => new RedisDirectory({ urls: [url], leaseMs: 1, prefix: '{' }), { code: 'PT_BAD_ARGUMENT' });
  t.throws(() => new RedisDirectory({ urls: [url], leaseMs: 1, ca: '/none' }), { code: 'PT_BAD_ARGUMENT' });
});

void t.test('a cluster over TLS, with a password', skip, async (t) => {
  const { server, agent } = await trust(t);
  const servers = await startCluster(t, 0, { ...server, args: [...server.args, '--tls-cluster', 'yes'] });
  // the others are heard of from the first, as addresses without a scheme
  const urls = [servers[0]!.url];
  const pages = 500;
  const tags = tagsOf(...Array.from({ length: pages }, (_, i) => i + 1));
  const first = open(t, { urls, cluster: true, ...agent });
  for (const host of ['h1', 'h2']) t.equal((await first.report(begin(host, tags))).state, 'applied');
  for (const { client } of servers) t.ok((await client.dbsize()) > 0, 'each node has some of it');
  const second = open(t, { urls, cluster: true, ...agent });
  t.ok((await second.holders('shop', tags)).guests.every((guests) => guests >= 1));
  const page = await second.lacking('shop', 'nobody', { limit: 2 * pages });
  t.ok(page.tags.length > 0);
  const { ca, certificate, key } = agent;
  const stranger = open(t, { urls, cluster: true, timeoutMs: 1000, ca, certificate, key });
  await t.rejects(stranger.hosts(), { code: 'PT_PEER_UNREACHABLE' }, 'no password');
  const plain = open(t, { urls: urls.map((url) => url.replace('rediss', 'redis')), cluster: true, timeoutMs: 1000 });
  await t.rejects(plain.hosts(), { code: 'PT_PEER_UNREACHABLE' }, 'no TLS');
});

void t.test('away, every call ends in time; back and empty, all is told anew', skip, async (t) => {
  const server = await startRedis(t);
  const directory = open(t, { urls: [server.url], timeoutMs: 500 });
  t.equal((await directory.report(begin('h1', tagsOf(1)))).state, 'applied');
  server.process.kill('SIGSTOP');
  await t.rejects(directory.heartbeat('h1', 1), { code: 'PT_PEER_UNREACHABLE' }, 'it stands still');
  server.process.kill('SIGCONT');
  await until('it is heard again', async () =>
    directory.heartbeat('h1', 1).then(
      ({ state }) => state === 'applied',
      () => false,
    ),
  );
  await server.client.flushall();
  t.equal((await directory.heartbeat('h1', 1)).state, 'anew');
  await killed(server.process);
  await t.rejects(directory.holders('shop', tagsOf(1)), { code: 'PT_PEER_UNREACHABLE' }, 'it is dead');
  await directory.close();
  await t.rejects(directory.hosts(), { code: 'PT_PEER_UNREACHABLE' }, 'closed');
});

void t.test('what a node has lost of a host is noticed, by reports and by looking', skip, async (t) => {
  const server = await startRedis(t);
  const { client } = server;
  for (const what of ['m', 'f1']) {
    await client.flushall();
    const directory = open(t, { urls: [server.url] });
    const tags = randomBytes(2000 * 16);
    await directory.report(begin('h1', tags));
    const [key] = (await client.keys(`*shop*${what}`)).sort();
    await client.del(key!);
    const states: string[] = [];
    for (let i = 0; i < 8 + 1; i++) states.push((await directory.heartbeat('h1', 1, 1)).state);
    t.ok(states.includes('anew'), `a shard without ${what} is found within 8 heartbeats`);
    t.equal(states.at(-1), 'anew', 'and stays so until the host begins');
    t.equal((await directory.report(begin('h1', tags, 2))).state, 'applied');
    for (const each of await client.keys(`*shop*${what === 'm' ? 'm' : 'f?'}`)) await client.del(each);
    const next = { ...begin('h1', randomBytes(2000 * 16), 3), begins: false };
    t.equal((await directory.report(next)).state, 'anew', 'by the next report at once');
  }
});

void t.test('half a report, and the same again', skip, async (t) => {
  const server = await startRedis(t);
  const { client } = server;
  const directory = open(t, { urls: [server.url] });
  const tags = randomBytes(3000 * 16);
  const both = {
    ...begin('h1', tags),
    changes: ['a', 'b'].map((guest) => ({ domain: 'shop', guest, added: tags, removed: NONE })),
  };
  // a user who may not write to some shards: their parts fail, the others are done
  await client.call('acl', 'setuser', 'half', 'on', 'nopass', '+@all', '%RW~pagetide:{pagetide:hosts}*', '%RW~*:?}*');
  const half = open(t, { urls: [server.url.replace('//', '//half:any@')], timeoutMs: 5000 });
  await t.rejects(half.report(both), { name: 'PagetideError' });
  const done = (await client.keys('*shop*m')).length;
  t.ok(done >= 1 && done <= 10, `${done} shards have their part`);
  for (const again of [1, 2]) t.equal((await directory.report(both)).state, 'applied', `try ${again}`);
  let { wanted } = await directory.heartbeat('h1', 1, 1);
  for (let sequence = 2; wanted.length > 0; sequence++) {
    const held = wanted.map(({ domain, tags: asked }) => ({
      domain,
      tags: asked,
      guests: new Uint16Array(asked.length / 16).fill(2),
    }));
    ({ wanted } = await directory.report({ host: 'h1', epoch: 1, sequence, changes: [], held }));
  }
  t.same(new Set((await directory.holders('shop', tags)).guests), new Set([2]));
});

void t.test('the sweep takes out what the dead have told, and what was removed', skip, async (t) => {
  const server = await startRedis(t);
  const { client } = server;
  const clock = { now: 0 };
  const directory = open(t, { urls: [server.url], leaseMs: 1000, clock: () => clock.now });
  const tags = randomBytes(20_000 * 16);
  await directory.report(begin('h1', tags));
  await directory.report(begin('h2', tags.subarray(0, 10_000 * 16)));
  await directory.report({ ...begin('h3', tags.subarray(0, 1000 * 16)) });
  clock.now = 999;
  await directory.heartbeat('h3', 1);
  clock.now = 1000;
  t.same(
    (await directory.hosts()).map(({ host }) => host),
    ['h3'],
  );
  const before = (await client.keys('*')).length;
  for (let i = 0; i < 8 * 2; i++) await directory.sweep();
  t.ok((await client.keys('*')).length < before / 2);
  t.equal((await client.keys('*r?.*')).length, 0, 'no records: one host is left');
  t.equal((await client.keys('*f1')).length + (await client.keys('*f2')).length, 0);
  const { wanted } = await directory.report(begin('h4', tags.subarray(0, 1000 * 16)));
  t.same(wanted, []);
  const all: Buffer[] = [];
  let heard = await directory.heartbeat('h3', 1);
  for (let sequence = 2; heard.wanted.length > 0; sequence++) {
    const held = heard.wanted.map(({ domain, tags: asked }) => {
      all.push(Buffer.from(asked));
      return { domain, tags: asked, guests: new Uint16Array(asked.length / 16).fill(1) };
    });
    heard = await directory.report({ host: 'h3', epoch: 1, sequence, changes: [], held });
  }
  t.equal(Buffer.concat(all).length, 1000 * 16, 'who lives was kept: it is asked');
  t.same(new Set((await directory.holders('shop', tags.subarray(0, 1000 * 16))).guests), new Set([2]));
  await directory.removeDomain('shop');
  await directory.sweep();
  t.same(await client.keys('*shop*'), [], 'a removed domain leaves nothing');
});

void t.test('a page seen once costs bits, one that two hosts hold a record', skip, async (t) => {
  for (const pages of [10_000, 100_000]) {
    const server = await startRedis(t);
    const directory = open(t, { urls: [server.url], timeoutMs: 60_000 });
    await directory.hosts();
    const empty = await usedBytes(server);
    const tags = randomBytes(pages * 16);
    const tell = async (host: string): Promise<number> => {
      const began = performance.now();
      for (let at = 0, sequence = 1; at < tags.length; at += 65_536 * 16, sequence++)
        await directory.report({ ...begin(host, tags.subarray(at, at + 65_536 * 16), sequence), begins: at === 0 });
      return Math.round((pages / (performance.now() - began)) * 1000);
    };
    const onceRate = await tell('h1');
    const once = (await usedBytes(server)) - empty;
    const records = await recordsIn(server);
    t.ok(records < pages / 300, `${records} of ${pages} were taken for pages seen before`);
    t.ok(once / pages < 16, `${(once / pages).toFixed(1)} bytes a page seen once`);
    const twiceRate = await tell('h2');
    const asked = (await usedBytes(server)) - empty;
    let heard = await directory.heartbeat('h1', 1);
    const began = performance.now();
    for (let sequence = Math.ceil(pages / 65_536) + 1; heard.wanted.length > 0; sequence++) {
      const held = heard.wanted.map(({ domain, tags: some }) => ({
        domain,
        tags: some,
        guests: new Uint16Array(some.length / 16).fill(1),
      }));
      heard = await directory.report({ host: 'h1', epoch: 1, sequence, changes: [], held });
    }
    const answerRate = Math.round((pages / (performance.now() - began)) * 1000);
    const twice = (await usedBytes(server)) - empty - once;
    t.ok(twice / pages < 64, `${(twice / pages).toFixed(1)} bytes a record`);
    const { guests } = await directory.holders('shop', tags.subarray(0, 1024 * 16));
    t.ok(guests.filter((n) => n === 2).length >= 1015);
    t.comment(
      `${pages} pages: seen once ${(once / pages).toFixed(2)} bytes, ${onceRate} pages/s; record ${(twice / pages).toFixed(1)} bytes, ` +
        `${twiceRate} pages/s, ${answerRate} answers/s; with questions ${((asked - once) / pages).toFixed(1)}; ${records} taken for seen`,
    );
    await directory.close();
  }
});

/** What is counted in all shards. */
async function recordsIn({ client }: Server): Promise<number> {
  let records = 0;
  for (const key of await client.keys('*shop*m')) records += Number((await client.hget(key, '#'))!.split(' ')[2]);
  return records;
}
