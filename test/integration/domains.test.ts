/** Domains between real agents: who gets the secret, who forgets it when, and that it is seen nowhere else. */
import { readdirSync, readFileSync, statSync, writeFileSync } from 'node:fs';
import { request } from 'node:http';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { makeHost } from '../../src/trust/authority.ts';
import { HOST_FILES, writeHost } from '../../src/trust/pem-files.ts';
import { PeerClient } from '../../src/transport/peer.ts';
import { runCli } from '../cli/harness.ts';
import { cluster as makeCluster, type Cluster, type TestAgent } from '../support/cluster.ts';
import { share } from '../support/domains.ts';
import { begin, follow, guestFaults, migrate, reaches, startGuest, stillLeft, until } from '../support/migrate.ts';
import { EXPIRED, trustCluster, type TestCluster } from '../trust/support.ts';

t.setTimeout(900_000);

/** Two guests like that have the same pages, but for what they wrote since. */
const alike = { memory: '8M', seed: 7, writeRate: 200, readRate: 2000, workingSet: 0.2 };
/** No round but that at an agent's start. */
const NEVER = { domains: { contactMs: 3_600_000 } };

interface Records {
  domains: { grants: { host: string; epoch: number }[] }[];
}

interface Trusted {
  made: Cluster;
  trust: TestCluster;
  agent: (name: string, config?: Record<string, unknown>) => Promise<TestAgent>;
}

/** Agents with certificates of one cluster, whose hosts are called host-NAME. */
async function trusted(t: Test): Promise<Trusted> {
  const made = makeCluster(t);
  t.teardown(() => {
    if (t.passing()) return;
    for (const agent of made.agents) t.comment([`log of ${agent.name}:`, ...agent.log().slice(-30)].join('\n'));
  });
  const trust = await trustCluster();
  const agent = async (name: string, config: Record<string, unknown> = {}): Promise<TestAgent> => {
    const at = join(made.root, `certificates-${name}`);
    await writeHost(at, trust.authority.certificate, await makeHost(trust.authority, `host-${name}`, ['127.0.0.1']));
    const tls = {
      ca: join(at, HOST_FILES.ca),
      certificate: join(at, HOST_FILES.certificate),
      key: join(at, HOST_FILES.key),
    };
    return made.agent(name, { tls, cache: { size: '16M' }, ...config });
  };
  return { made, trust, agent };
}

const keyFile = (agent: TestAgent, domain: string): string => join(agent.state, 'domains', `${domain}.key`);
const secretAt = (agent: TestAgent, domain: string): string => readFileSync(keyFile(agent, domain), 'utf8').trim();

/** The agent has nothing of the domain any more: neither its name, nor the secret, nor a page. */
async function forgotten(agent: TestAgent, domain: string): Promise<boolean> {
  const domains = await agent.client.listDomains();
  if (domains.some(({ name }) => name === domain)) return false;
  const { cache } = await agent.client.cacheInfo();
  return cache?.used === 0 && !readdirSync(join(agent.state, 'domains')).includes(`${domain}.key`);
}

/** Every file below a folder that can be read, but for those that are to hold the secret. */
function* filesBelow(folder: string): Generator<string> {
  for (const entry of readdirSync(folder, { withFileTypes: true })) {
    const path = join(folder, entry.name);
    if (entry.isDirectory()) yield* filesBelow(path);
    else if (entry.isFile() && !entry.name.endsWith('.key')) yield path;
  }
}

/** Where one of the secrets can be seen, in any of the usual ways to write it; empty: nowhere. */
function seen(secrets: readonly string[], where: Iterable<[string, Buffer]>): string[] {
  const needles = secrets.flatMap((hex) => {
    const bytes = Buffer.from(hex, 'hex');
    const list = [...bytes].join(',');
    return [
      bytes,
      ...[
        hex,
        hex.toUpperCase(),
        bytes.toString('base64').slice(0, 40),
        bytes.toString('base64url').slice(0, 40),
        list,
      ].map((text) => Buffer.from(text)),
    ];
  });
  return [...where].flatMap(([place, content]) => (needles.some((needle) => content.includes(needle)) ? [place] : []));
}

function rawCall(
  port: number,
  method: string,
  path: string,
  body?: unknown,
): Promise<{ status: number; text: string }> {
  return new Promise((resolve, reject) => {
    const headers = body === undefined ? {} : { 'content-type': 'application/json' };
    const sent = request({ host: '127.0.0.1', port, method, path, headers, agent: false }, (response) => {
      let text = '';
      response.setEncoding('utf8').on('data', (piece: string) => (text += piece));
      response.on('end', () => resolve({ status: response.statusCode ?? 0, text }));
    });
    sent.on('error', reject);
    sent.end(body === undefined ? undefined : JSON.stringify(body));
  });
}

void t.test('granted, used, revoked: only who has it shares, and the secret is seen nowhere', async (t) => {
  const { made, agent } = await trusted(t);
  const loud = { log: { level: 'trace' } };
  const [a, b, c] = await Promise.all([agent('a', loud), agent('b', loud), agent('c', loud)]);
  const answers: string[] = [];
  const cli = async (to: TestAgent, line: string): Promise<string> => {
    const { code, stdout, stderr } = await runCli(t, [...line.split(' '), '--agent', `unix:${to.control}`]);
    answers.push(stdout, stderr);
    t.equal(code, 0, `${line}: ${stderr}`);
    return stdout;
  };
  await cli(a, 'domain create shop');
  await cli(a, 'domain create other');
  t.match(await cli(a, `domain grant shop ${b.url}`), /it is at host-b/);
  await cli(a, `domain grant shop ${b.url}`); // again does no harm
  const secret = secretAt(a, 'shop');
  t.equal(secretAt(b, 'shop'), secret);
  t.equal(statSync(keyFile(b, 'shop')).mode & 0o777, 0o600);
  t.throws(() => secretAt(c, 'shop'), 'host-c was not granted it');
  t.throws(() => secretAt(b, 'other'), 'nor host-b the other');
  t.match(await b.client.listDomains(), [
    { name: 'shop', home: 'host-a', usable: true, grants: [], members: [{ host: 'host-a', url: a.url }] },
  ]);

  await startGuest(a, 'first', alike, 'shop');
  await startGuest(a, 'second', alike, 'shop');
  const refused = await migrate(a, c, 'first');
  t.match(refused.last, { progress: { phase: 'failed' }, error: { code: 'PT_DOMAIN_UNKNOWN' } });
  for (const guest of ['first', 'second']) {
    const { last } = await migrate(a, b, guest);
    t.match(last, { progress: { phase: 'done' }, report: { verified: true } }, JSON.stringify(last.error));
    if (guest === 'second')
      t.ok(last.report!.frames.cache > 1000, `${last.report!.frames.cache} frames from the cache`);
    t.same(await guestFaults(b, guest), []);
  }
  await cli(a, 'domain show shop');
  await cli(b, 'domain list');
  for (const one of [a, b, c]) {
    const { client } = one;
    const calls = [
      client.info(),
      client.listDomains(),
      client.listGuests(),
      client.listMigrations(),
      client.cacheInfo(),
    ];
    answers.push(...(await Promise.all(calls)).map((answer) => JSON.stringify(answer)));
    answers.push((await runCli(t, ['domain', 'list', '--json', '--agent', `unix:${one.control}`])).stdout);
  }

  t.match(await cli(a, 'domain revoke shop host-b'), 'host-b has forgotten shop');
  t.ok(await forgotten(b, 'shop'));
  t.same((await a.client.showDomain('shop')).grants, []);
  t.same(await guestFaults(b, 'second'), [], 'its guests go on, and share nothing');
  const back = await migrate(b, a, 'second');
  t.match(back.last, { progress: { phase: 'done' }, report: { frames: { cache: 0 }, verified: true } });

  const processes = [a, b, c].flatMap(({ name, pid }) =>
    ['cmdline', 'environ'].map((what): [string, Buffer] => [
      `${what} of ${name}`,
      readFileSync(`/proc/${pid}/${what}`),
    ]),
  );
  const logs = made.agents.map((one): [string, Buffer] => [`log of ${one.name}`, Buffer.from(one.log().join('\n'))]);
  const files = [...filesBelow(made.root)].map((path): [string, Buffer] => [path, readFileSync(path)]);
  t.ok(
    logs.every(([, text]) => text.includes('"level":"debug"')),
    'requests are in the logs',
  );
  t.ok(files.length > 10);
  const secrets = [secret, secretAt(a, 'other')];
  t.same(seen(secrets, [...processes, ...logs, ...files, ['answers', Buffer.from(answers.join('\n'))]]), []);
  t.same(seen([secret], [['a test of the test', Buffer.from(`x${secret}y`)]]).length, 1);
  t.same(await stillLeft(made), []);
});

void t.test('a removed domain is gone at every host, and one of the same name is another', async (t) => {
  const { agent } = await trusted(t);
  const [a, b, c] = await Promise.all([agent('a'), agent('b'), agent('c')]);
  await a.client.createDomain('shop');
  for (const { url } of [b, c]) await a.client.grantDomain('shop', url);
  t.match((await a.client.showDomain('shop')).grants, [{ host: 'host-b' }, { host: 'host-c' }]);
  await startGuest(a, 'web', alike, 'shop');
  t.match((await migrate(a, b, 'web')).last.progress, { phase: 'done' });
  t.match((await migrate(b, c, 'web')).last.progress, { phase: 'done' });
  await until('pages are kept at each', async () => {
    const all = await Promise.all([a, b, c].map(({ client }) => client.cacheInfo()));
    return all.every(({ cache }) => cache!.used > 1000);
  });
  const old = secretAt(a, 'shop');
  await startGuest(a, 'local', alike, 'shop');
  await t.rejects(a.client.removeDomain('shop'), { code: 'PT_DOMAIN_IN_USE', message: /'local'/ });
  await a.client.removeGuest('local');
  t.same(await a.client.removeDomain('shop'), { removed: 'shop', told: ['host-b', 'host-c'], waiting: [] });
  for (const one of [a, b, c]) t.ok(await forgotten(one, 'shop'), one.name);
  await t.rejects(startGuest(a, 'late', alike, 'shop'), { code: 'PT_DOMAIN_UNKNOWN' });

  await a.client.createDomain('shop');
  t.not(secretAt(a, 'shop'), old);
  await a.restart();
  t.same(
    (await a.client.listDomains()).map(({ name }) => name),
    ['shop'],
  );
  t.same(await guestFaults(c, 'web'), []);
});

void t.test('a host that was away learns it when it is back', async (t) => {
  const { agent } = await trusted(t);
  const [a, b] = await Promise.all([agent('a', NEVER), agent('b', NEVER)]);
  for (const domain of ['shop', 'bank', 'kept']) {
    await a.client.createDomain(domain);
    await a.client.grantDomain(domain, b.url);
  }
  await startGuest(b, 'template', alike, 'shop');
  await b.client.warmCache({ domain: 'shop', guest: 'template' });
  await b.stop();
  const { grants } = await a.client.revokeDomain('shop', 'host-b');
  t.match(grants, [{ host: 'host-b', state: 'revoking', error: { code: 'PT_PEER_UNREACHABLE' } }]);
  t.same(await a.client.removeDomain('bank'), { removed: 'bank', told: [], waiting: ['host-b'] });
  await a.restart(); // and does not forget that b has yet to hear of it
  t.match((await a.client.showDomain('shop')).grants, [{ host: 'host-b', state: 'revoking' }]);

  await b.restart();
  const names = async (): Promise<string[]> => (await b.client.listDomains()).map(({ name }) => name);
  await until('host-b has asked', async () => (await names()).join() === 'kept');
  await until('and has no page of it', () => forgotten(b, 'shop'));
  t.same(await guestFaults(b, 'template'), []);
  await until('the log tells', () => b.log().some((line) => line.includes('withdrawn while this agent was away')));
});

void t.test('a host that removes a domain of its own accord tells the one that made it', async (t) => {
  const { agent, trust } = await trusted(t);
  const often = { domains: { contactMs: 200 } };
  const [a, b, c] = await Promise.all([agent('a', NEVER), agent('b', NEVER), agent('c', often)]);
  const hosts = async (): Promise<string[]> => (await a.client.showDomain('shop')).grants.map(({ host }) => host);
  await a.client.createDomain('shop');
  for (const { url } of [b, c]) await a.client.grantDomain('shop', url);
  t.match((await c.client.showDomain('shop')).members, [{ host: 'host-a' }, { host: 'host-b' }]);
  t.same(await b.client.removeDomain('shop'), { removed: 'shop', told: ['host-a'], waiting: [] });
  t.same(await hosts(), ['host-c']);
  await until('the others know', async () => (await c.client.showDomain('shop')).members.length === 1);
  t.match((await c.client.showDomain('shop')).members, [{ host: 'host-a' }]);

  // its home is away, and it has a start of its own in between
  await a.client.grantDomain('shop', b.url);
  await a.stop();
  t.same(await b.client.removeDomain('shop'), { removed: 'shop', told: [], waiting: ['host-a'] });
  await b.restart();
  await a.restart();
  t.same(await hosts(), ['host-c', 'host-b'], 'nobody has told it yet');
  await b.restart();
  await until('it is told', async () => (await hosts()).join() === 'host-c');

  // what comes late takes nothing away that was granted since, and nobody speaks for another host
  await a.client.grantDomain('shop', b.url);
  const { id } = await a.client.showDomain('shop');
  const credentials = await trust.host('host-b');
  const peer = new PeerClient(a.url, { credentials });
  t.teardown(() => peer.close());
  await peer.giveUpDomain(id, 'host-b', 1);
  await peer.giveUpDomain(id, 'host-c', 1);
  t.same(await hosts(), ['host-c', 'host-b']);
  await peer.giveUpDomain('0'.repeat(32), 'host-b', 1);

  // a grant that did not arrive is no newer one: the host is asked, and could not get it late
  await a.stop();
  t.match(await c.client.removeDomain('shop'), { waiting: ['host-a'] });
  const path = join(a.state, 'domains/domains.json');
  const records = JSON.parse(readFileSync(path, 'utf8')) as Records;
  records.domains[0]!.grants.find(({ host }) => host === 'host-c')!.epoch += 1;
  writeFileSync(path, JSON.stringify(records));
  await a.restart();
  await until('it is told', async () => (await hosts()).join() === 'host-b');
  t.ok(await forgotten(c, 'shop'));
});

void t.test('a host that did not answer is told again', async (t) => {
  const { agent } = await trusted(t);
  const quick = { domains: { contactMs: 100 }, timeouts: { peerMs: 5_000, vmmMs: 5_000 } };
  const [a, b] = await Promise.all([agent('a', quick), agent('b', NEVER)]);
  await a.client.createDomain('shop');
  await a.client.grantDomain('shop', b.url);
  process.kill(b.pid, 'SIGSTOP');
  const { grants } = await a.client.revokeDomain('shop', 'host-b').finally(() => process.kill(b.pid, 'SIGCONT'));
  t.match(grants, [{ host: 'host-b', state: 'revoking', error: { code: 'PT_PEER_UNREACHABLE' } }]);
  await until('host-b has forgotten it', async () => (await b.client.listDomains()).length === 0);
  await until('and said so', async () => (await a.client.showDomain('shop')).grants.length === 0);
  // granted again at once: what was sent before, and comes late, takes nothing away
  await a.client.grantDomain('shop', b.url);
  t.equal(secretAt(b, 'shop'), secretAt(a, 'shop'));
});

void t.test('while a guest of it arrives, a domain is not forgotten', async (t) => {
  const { agent } = await trusted(t);
  const slow = { fill: { bandwidth: 2 ** 20 }, domains: { contactMs: 200 } };
  const [a, b] = await Promise.all([agent('a', { domains: { contactMs: 200 } }), agent('b', slow)]);
  await a.client.createDomain('shop');
  await a.client.grantDomain('shop', b.url);
  await startGuest(a, 'web', alike, 'shop');
  const id = await begin(a, b, 'web');
  await reaches(a.client, id, 'serving');
  const { grants } = await a.client.revokeDomain('shop', 'host-b');
  t.match(grants, [{ host: 'host-b', state: 'revoking', error: { code: 'PT_DOMAIN_IN_USE' } }]);
  // what would be lost with its secret: the guest's missing pages could never be checked
  await b.restart();
  const { last } = await follow(a.client, id);
  t.match(last, { progress: { phase: 'done' }, report: { verified: true } }, JSON.stringify(last.error));
  t.same(await guestFaults(b, 'web'), []);
  await until('it is forgotten then', () => forgotten(b, 'shop'));
  await until('and a knows', async () => (await a.client.showDomain('shop')).grants.length === 0);
});

void t.test('while a guest of it leaves, a domain is neither forgotten nor removed', async (t) => {
  const { agent } = await trusted(t);
  const [a, b] = await Promise.all([
    agent('a', { fill: { bandwidth: 2 ** 20 }, domains: { contactMs: 200 } }),
    agent('b', { domains: { contactMs: 200 } }),
  ]);
  await a.client.createDomain('shop');
  await a.client.grantDomain('shop', b.url);
  await startGuest(b, 'web', alike, 'shop');
  const id = await begin(b, a, 'web');
  await reaches(b.client, id, 'serving');
  const inUse = { code: 'PT_DOMAIN_IN_USE', message: /'web'/ };
  await t.rejects(b.client.removeDomain('shop'), inUse, 'at the source');
  await t.rejects(a.client.removeDomain('shop'), inUse, 'at the destination');
  t.match((await a.client.revokeDomain('shop', 'host-b')).grants, [{ state: 'revoking', error: inUse }]);
  const { last } = await follow(b.client, id);
  t.match(last, { progress: { phase: 'done' }, report: { verified: true } }, JSON.stringify(last.error));
  await until('it is forgotten then', () => forgotten(b, 'shop'));
  // and while it runs: a home whose guest is away may not remove it under the guest
  await t.rejects(a.client.removeDomain('shop'), inUse, 'while the guest runs');
  t.same(await guestFaults(a, 'web'), []);
});

void t.test('who is not granted it, not of the cluster, expired, or nobody gets nothing', async (t) => {
  const { made, trust, agent } = await trusted(t);
  const [a, b] = await Promise.all([agent('a'), agent('b')]);
  await a.client.createDomain('shop');
  await a.client.grantDomain('shop', b.url);
  const { id } = await a.client.showDomain('shop');
  const secret = secretAt(a, 'shop');
  const other = await trustCluster();
  const mallory = await trust.host('host-m');
  const offer = { name: 'shop', secret: 'ee'.repeat(32), home: 'https://127.0.0.1:1', as: 'host-b', members: [] };

  const strangers = {
    'of another cluster': await other.host('host-b'),
    expired: await trust.host('host-b', ['127.0.0.1'], EXPIRED),
  };
  for (const [who, credentials] of Object.entries(strangers)) {
    // he doesn't trust this cluster either: let him, so that it is the agent that refuses
    const peer = new PeerClient(b.url, { credentials: { ...credentials, ca: trust.authority.certificate } });
    const calls: Promise<unknown>[] = [
      peer.hasDomain(id),
      peer.checkDomain(id, 'host-b'),
      peer.withdrawDomain(id, 2 ** 50),
      peer.giveDomain(id, { ...offer, epoch: 2 ** 50 }),
    ];
    await Promise.all(calls.map((call) => t.rejects(call as Promise<void>, { code: 'PT_PEER_UNTRUSTED' }, who)));
    await peer.close();
  }
  t.throws(() => new PeerClient(a.url, { credentials: undefined }), { code: 'PT_PEER_UNTRUSTED' });

  // a host of the cluster that was granted nothing
  for (const to of [a, b]) {
    const peer = new PeerClient(to.url, { credentials: mallory });
    const answers = JSON.stringify([await peer.hasDomain(id), await peer.checkDomain(id, 'host-b')]);
    t.notMatch(answers, secret);
    t.match(
      await peer.checkDomain(id, 'host-b'),
      { state: to === a ? 'revoked' : 'unknown', members: [] },
      'whatever he calls himself',
    );
    await t.rejects(peer.withdrawDomain(id, 2 ** 50), { code: to === a ? 'PT_DOMAIN_EXISTS' : 'PT_NO_PERMISSION' });
    await t.rejects(peer.giveDomain(id, { ...offer, epoch: 2 ** 50 }), {
      code: to === a ? 'PT_DOMAIN_EXISTS' : 'PT_NO_PERMISSION',
    });
    await t.rejects(peer.giveDomain('ab'.repeat(16), { ...offer, epoch: 1 }), { code: 'PT_DOMAIN_EXISTS' });
    await t.rejects(peer.giveDomain('ab'.repeat(16), { ...offer, name: 'x', home: 'unix:/run/other.sock', epoch: 1 }), {
      code: 'PT_BAD_ARGUMENT',
    });
    await peer.close();
    t.equal(secretAt(to, 'shop'), secret, `${to.name} has what it had`);
  }
  const wrong = new PeerClient(b.url, { credentials: mallory, expect: 'host-a' });
  await t.rejects(wrong.giveDomain('ab'.repeat(16), { ...offer, name: 'x', epoch: 1 }), {
    code: 'PT_PEER_UNTRUSTED',
    message: /host-b, not host-a/,
  });
  await wrong.close();

  // grants to whom they can't go
  const foreign = await made.agent('foreign', { cache: { size: '16M' } });
  await foreign.client.createDomain('bank');
  const cases: [TestAgent, string, string, string][] = [
    [a, 'shop', foreign.url, 'PT_PEER_UNTRUSTED'],
    [a, 'shop', foreign.url.replace('http:', 'https:'), 'PT_PEER_UNTRUSTED'],
    [foreign, 'bank', a.url, 'PT_PEER_UNTRUSTED'],
    [a, 'shop', a.url, 'PT_BAD_ARGUMENT'],
    [a, 'shop', 'https://127.0.0.1:1', 'PT_PEER_UNREACHABLE'],
    [a, 'shop', 'not a host', 'PT_BAD_ARGUMENT'],
    [a, 'nowhere', b.url, 'PT_DOMAIN_UNKNOWN'],
    [b, 'shop', a.url, 'PT_DOMAIN_ELSEWHERE'],
  ];
  for (const [from, domain, to, code] of cases)
    await t.rejects(from.client.grantDomain(domain, to), { code }, `${domain} to ${to}`);
  await b.client.createDomain('bank');
  await a.client.createDomain('bank');
  await t.rejects(a.client.grantDomain('bank', b.url), { code: 'PT_DOMAIN_EXISTS' });
  t.same((await a.client.showDomain('bank')).grants, [], 'what was refused is no grant');
  await t.rejects(b.client.revokeDomain('shop', 'host-b'), { code: 'PT_DOMAIN_ELSEWHERE' });
  await t.rejects(a.client.revokeDomain('shop', 'host-x'), { code: 'PT_BAD_ARGUMENT' });
  t.match((await a.client.showDomain('shop')).grants, [{ host: 'host-b', state: 'granted' }]);
});

void t.test('without certificates: by control sockets, and never over a port', async (t) => {
  const made = makeCluster(t);
  const cache = { size: '16M' };
  const [a, b] = await Promise.all([made.agent('a', { cache }), made.agent('b', { cache })]);
  await a.client.createDomain('shop');
  await t.rejects(a.client.grantDomain('shop', b.url), { code: 'PT_PEER_UNTRUSTED', message: /plain HTTP/ });
  writeFileSync(join(made.root, 'file'), '');
  await t.rejects(a.client.grantDomain('shop', `unix:${join(made.root, 'file')}`), { code: 'PT_PEER_UNTRUSTED' });
  await t.rejects(a.client.grantDomain('shop', `unix:${join(made.root, 'nobody')}`), { code: 'PT_PEER_UNREACHABLE' });
  await t.rejects(a.client.grantDomain('shop', 'unix:control.sock'), { code: 'PT_BAD_ARGUMENT' });
  await t.rejects(a.client.grantDomain('shop', `unix:${a.control}`), { code: 'PT_BAD_ARGUMENT' });

  await a.client.grantDomain('shop', `unix:${b.control}`);
  t.equal(secretAt(b, 'shop'), secretAt(a, 'shop'));
  const port = Number(new URL(b.url).port);
  const { id } = await b.client.showDomain('shop');
  const grants = `/v1/domain-grants/${id}`;
  const tries: [string, string, unknown?][] = [
    ['GET', grants],
    ['DELETE', `${grants}?epoch=${2 ** 50}`],
    ['POST', `${grants}/check-in`, { as: `unix:${b.control}` }],
    ['POST', '/v1/domains/shop/grant', { to: `unix:${a.control}` }],
    ['DELETE', '/v1/domains/shop'],
  ];
  for (const [method, path, body] of tries) {
    const { status, text } = await rawCall(port, method, path, body);
    t.equal(status, 403, `${method} ${path}: ${text}`);
  }
  t.equal(secretAt(b, 'shop'), secretAt(a, 'shop'));

  await startGuest(a, 'first', alike, 'shop');
  await startGuest(a, 'second', alike, 'shop');
  t.match((await migrate(a, b, 'first')).last.progress, { phase: 'done' });
  t.ok((await migrate(a, b, 'second')).last.report!.frames.cache > 1000);
  await b.stop();
  t.match((await a.client.revokeDomain('shop', `unix:${b.control}`)).grants, [{ state: 'revoking' }]);
  await b.restart();
  await until('it has asked', () => forgotten(b, 'shop'));
});

void t.test('agents that know of each other: members of a domain', async (t) => {
  const { agent } = await trusted(t);
  const often = { domains: { contactMs: 100 } };
  const [a, b, c] = await Promise.all([agent('a', often), agent('b', often), agent('c', often)]);
  await a.client.createDomain('shop');
  for (const { url } of [b, c]) await a.client.grantDomain('shop', url);
  const members = async (of: TestAgent): Promise<string[]> =>
    (await of.client.showDomain('shop')).members.map(({ host, url }) => `${host} ${url}`).sort();
  t.same(await members(c), [`host-a ${a.url}`, `host-b ${b.url}`]);
  await until('b hears of c', async () => (await members(b)).join() === `host-a ${a.url},host-c ${c.url}`);
  await a.client.revokeDomain('shop', 'host-c');
  await until('and that it is no more', async () => (await members(b)).join() === `host-a ${a.url}`);
});

void t.test('share: what other tests stand on', async (t) => {
  const made = makeCluster(t);
  const [a, b] = await Promise.all([made.agent('a'), made.agent('b')]);
  await share('shop', a, b);
  t.match(await b.client.listDomains(), [{ name: 'shop', home: `unix:${a.control}` }]);
});
