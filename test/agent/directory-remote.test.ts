/** The directory's contract by way of the control API, and what the routes refuse. */
import { createHash } from 'node:crypto';
import { rmSync } from 'node:fs';
import { createServer } from 'node:http';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { buildApi } from '../../src/agent/api/app.ts';
import { listenControl } from '../../src/agent/api/listen.ts';
import type { Directory, GuestChange, Held, ReportAnswer } from '../../src/directory/directory.ts';
import { EmbeddedDirectory } from '../../src/directory/embedded.ts';
import { fetchGuestTags, RemoteDirectory } from '../../src/transport/directory-client.ts';
import type { ConnectPeer } from '../../src/transport/member-peer.ts';
import { PeerClient } from '../../src/transport/peer.ts';
import { contract, LEASE_MS } from '../directory/contract.ts';
import { tagsOf } from '../directory/model.ts';
import { shortFolder, startApi } from './api-harness.ts';
import { DOMAIN, FakeService } from './fake-service.ts';

t.setTimeout(300_000);

const connect: ConnectPeer = (url, whom) => new PeerClient(url, { ...whom, answerMs: 5_000 });

function remote(socket: string, domain = DOMAIN): RemoteDirectory {
  return new RemoteDirectory({ url: `unix:${socket}`, host: null, domain, as: 'unix:/run/b.sock', connect });
}

// the routes know domains by their ids, which the contract does not
const names = new Map<string, string>();
function idOf(name: string): string {
  if (!/^[a-z]+$/.test(name)) return name;
  const id = createHash('sha256').update(name).digest('hex').slice(0, 32);
  names.set(id, name);
  return id;
}
const renamed = <T extends GuestChange | Held>(list: readonly T[]): T[] =>
  list.map((one) => ({ ...one, domain: idOf(one.domain) }));
const named = ({ state, wanted }: ReportAnswer): ReportAnswer => ({
  state,
  wanted: wanted.map(({ domain, tags }) => ({ domain: names.get(domain)!, tags })),
});

async function make(clock: () => number): Promise<Directory> {
  const service = new FakeService();
  const inner = (service.directory = new EmbeddedDirectory({ leaseMs: LEASE_MS, clock }));
  const app = buildApi(service, { closeGraceMs: 0 });
  const folder = shortFolder(t);
  const socket = join(folder, 's');
  await listenControl(app, socket);
  const far = remote(socket);
  return {
    report: async ({ changes, held = [], ...more }) =>
      named(await far.report({ ...more, changes: renamed(changes), held: renamed(held) })),
    heartbeat: async (host, epoch, sequence) => named(await far.heartbeat(host, epoch, sequence)),
    holders: (domain, tags) => far.holders(idOf(domain), tags),
    lacking: (domain, host, options) => far.lacking(idOf(domain), host, options),
    hosts: () => far.hosts(),
    hints: (domain) => far.hints(idOf(domain)),
    hint: (domain, hint) => far.hint(idOf(domain), hint),
    withdraw: (domain, subject) => far.withdraw(idOf(domain), subject),
    // what only the home does
    removeHost: (host) => inner.removeHost(host),
    removeDomain: (domain) => inner.removeDomain(idOf(domain)),
    empty: () => inner.empty(),
    close: async () => {
      await far.close();
      await app.close();
      rmSync(folder, { recursive: true, force: true });
    },
  };
}

contract('remote', make, 12);

async function started(t: Test): Promise<Awaited<ReturnType<typeof startApi>> & { far: RemoteDirectory }> {
  const api = await startApi(t, { closeGraceMs: 0 });
  const far = remote(api.socket);
  t.teardown(() => far.close());
  return { ...api, far };
}

void t.test('as many tags as may be in a report, a question and a page', async (t) => {
  const { far } = await started(t);
  const tags = tagsOf(...Array.from({ length: 65_536 }, (_, i) => i));
  const report = { epoch: 1, sequence: 1, begins: true };
  for (const host of ['h1', 'h2']) {
    const changes = [{ domain: DOMAIN, guest: 'a', added: tags, removed: tagsOf() }];
    t.equal((await far.report({ ...report, host, changes })).state, 'applied');
  }
  t.equal((await far.heartbeat('h1', 1)).wanted[0]!.tags.length, 4096 * 16);
  const held = [{ domain: DOMAIN, tags, guests: new Uint16Array(65_536).fill(1) }];
  await far.report({ host: 'h1', epoch: 1, sequence: 2, changes: [], held });
  const { guests } = await far.holders(DOMAIN, tags);
  t.ok(guests.every((count) => count === 2));
  t.ok((await far.lacking(DOMAIN, 'h3', { limit: 65_536 })).tags.length > 60_000 * 16);
});

void t.test('who asks is told, and what is no message is refused', async (t) => {
  const { far, service, send, socket } = await started(t);
  await far.hosts();
  t.same(service.calls.at(-1), ['directories.member', DOMAIN, 'unix:/run/b.sock', null]);
  const path = `/v1/domain-directories/${DOMAIN}`;
  const octets = { 'content-type': 'application/octet-stream' };
  for (const raw of ['', 'x', '\x01\x01', '\x01\x02aaaaaaaaaaaaaaaaaaaaaaaaaaaaa']) {
    const { status, json } = await send(`${path}/report?as=x`, { method: 'POST', raw, headers: octets });
    t.equal(status, 400, JSON.stringify(raw));
    t.match(json, { code: /PT_PROTOCOL|PT_BAD_ARGUMENT/ });
  }
  t.equal((await send(`${path}/report`, { body: {} })).status, 400, 'JSON is no report');
  t.equal((await send(`${path}/holders`, { method: 'POST', raw: 'x'.repeat(17), headers: octets })).status, 400);
  const large = { method: 'POST', raw: 'x'.repeat((2 << 20) + 1), headers: octets };
  t.equal((await send(`${path}/report`, large)).status, 413);
  t.equal((await send('/v1/guests/run', { method: 'POST', raw: 'x', headers: octets })).status, 415, 'only here');
  t.equal((await send('/v1/domain-directories/shop/hosts')).status, 400);
  const via = { 'x-pagetide-via': 'port' };
  t.equal((await send(`${path}/hosts`, { headers: via })).status, 403, 'not over a plain port');
  t.equal((await send(`${path}/hosts`, { headers: { ...via, 'x-pagetide-peer': 'host-b' } })).status, 200);
  t.same(service.calls.at(-1), ['directories.member', DOMAIN, undefined, 'host-b']);
  const emptied = { method: 'DELETE', headers: { ...via, 'x-pagetide-peer': 'host-b' } };
  t.equal((await send('/v1/directory/shop', emptied)).status, 403, 'a host is no operator');
  t.equal((await send('/v1/directory/shop', { method: 'DELETE' })).status, 204);
  t.same(service.calls.at(-1), ['directories.empty', 'shop']);
  await t.rejects(far.removeHost(), { code: 'PT_NO_PERMISSION' });
  await t.rejects(far.removeDomain(), { code: 'PT_NO_PERMISSION' });
  await t.rejects(far.empty(), { code: 'PT_NO_PERMISSION' });
  t.ok(socket);
});

void t.test("a guest's tags, page by page", async (t) => {
  const { service, socket } = await started(t);
  const member = { host: `unix:${socket}`, url: 'http://127.0.0.1:1' };
  const of = { domain: DOMAIN, guest: 'web1', as: 'unix:/run/b.sock' };
  t.same(await fetchGuestTags(connect, member, of), Buffer.alloc(16, 7));
  service.guestTagPage = { tags: tagsOf(1, 2), next: 5 };
  const circles = fetchGuestTags(connect, member, of);
  await t.rejects(circles, { code: 'PT_PEER_FAILED' });
  t.same(service.calls.at(-1), ['directories.guestTags', DOMAIN, 'web1', { cursor: 5, most: 65_536 }, of.as, null]);
});

void t.test('an agent that is away, and a call that is given up', async (t) => {
  const { app, far, socket } = await started(t);
  await far.hosts();
  await app.close();
  await t.rejects(far.hosts(), { code: 'PT_PEER_UNREACHABLE' });
  const again = buildApi(new FakeService(), { closeGraceMs: 0 });
  t.teardown(() => again.close());
  await listenControl(again, socket);
  t.same(await far.hosts(), [], 'found again');
  await far.close();
  await t.rejects(far.hosts(), { code: 'PT_CANCELLED' });
});

void t.test('what another agent says of hosts and hints is checked', async (t) => {
  let said: unknown;
  const server = createServer((request, response) => {
    request.resume();
    response.setHeader('content-type', 'application/json');
    response.end(JSON.stringify(said));
  });
  const socket = join(shortFolder(t), 's');
  await new Promise<void>((listening) => server.listen(socket, listening));
  const directory = remote(socket);
  t.teardown(async () => {
    await directory.close();
    server.close();
  });
  const host = { host: 'host-b', epoch: 1, leaseMs: 10, guests: 0 };
  const hint = { kind: 'affinity', guest: 'web1', hosts: ['host-b'], leaseMs: 1, leftMs: 10 };
  const wrong: [unknown, () => Promise<unknown>][] = [
    ...[{}, 'no list', [null], [{ ...host, host: 'a b' }], [{ ...host, epoch: 'x' }], [{ ...host, guests: -0.5 }]].map(
      (answer): [unknown, () => Promise<unknown>] => [answer, () => directory.hosts()],
    ),
    ...[{}, [{}], [{ ...hint, kind: 'other' }], [{ ...hint, hosts: 'abc' }], [{ ...hint, leftMs: '10' }]].map(
      (answer): [unknown, () => Promise<unknown>] => [answer, () => directory.hints(DOMAIN)],
    ),
    ...[{}, null, { withdrawn: 'yes' }].map((answer): [unknown, () => Promise<unknown>] => [
      answer,
      () => directory.withdraw(DOMAIN, { kind: 'affinity', guest: 'web1' }),
    ]),
  ];
  for (const [answer, ask] of wrong) {
    said = answer;
    await t.rejects(ask(), { code: 'PT_PEER_FAILED' }, JSON.stringify(answer));
  }
  said = [host];
  t.same(await directory.hosts(), [host]);
  said = { withdrawn: true };
  t.equal(await directory.withdraw(DOMAIN, { kind: 'evacuate', host: 'host-b' }), true);
});
