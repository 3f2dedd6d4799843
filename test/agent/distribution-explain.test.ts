/** Where a guest's pages are, asked of another agent: by TLS identities and by control sockets, and who is not told. */
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { buildApi } from '../../src/agent/api/app.ts';
import { listenControl } from '../../src/agent/api/listen.ts';
import { DistributionControl, type DistributionControlParts } from '../../src/agent/distribution-control.ts';
import { explainGuest, type ExplainParts } from '../../src/agent/distribution-explain.ts';
import { MOST_EXPLAINED } from '../../src/agent/distribution-service.ts';
import { TAG_BYTES } from '../../src/pages/tags.ts';
import { PageServer } from '../../src/transport/page-server.ts';
import { PeerClient } from '../../src/transport/peer.ts';
import type { Credentials } from '../../src/trust/credentials.ts';
import { trustCluster } from '../trust/support.ts';
import { shortFolder } from './api-harness.ts';
import { distributionInfo, tagsExplained } from './fake-distribution.ts';
import { DOMAIN, FakeService } from './fake-service.ts';

const cluster = await trustCluster();
const [hostA, hostB, hostC] = await Promise.all(['host-a', 'host-b', 'host-c'].map((name) => cluster.host(name)));

interface Answering {
  url: string;
  socket: string;
  /** Domain, number of tags and likelihood of each question. */
  asked: [string, number, number | undefined][];
}

/**
 * host-b, which has the domain `shop` with host-a.
 * @param ages since its last plan at each question; the last one counts for all further ones @param away domains that had no part in it
 */
async function answering(t: Test, ages = [1000], away: string[] = []): Promise<Answering> {
  const asked: Answering['asked'] = [];
  const record = { id: DOMAIN, name: 'shop' };
  const parts: Pick<DistributionControlParts, 'distributor' | 'domains' | 'now'> = {
    distributor: {
      status: () => ({ ...distributionInfo, lastPlan: { ...distributionInfo.lastPlan!, away } }),
      ...{ pause: () => undefined, resume: () => undefined, setRates: () => undefined, setBudget: () => undefined },
      explain: (domain, tags, likelihood) => {
        const pages = tags.length / TAG_BYTES;
        asked.push([domain, pages, likelihood]);
        return { ...tagsExplained.explanation, pages, missing: pages };
      },
    },
    domains: {
      ...{ all: () => [], get: () => undefined, record: () => undefined },
      byId: (id) => (id === DOMAIN ? (record as never) : undefined),
      members: (name) => (name === 'shop' ? [{ host: 'host-a', url: 'https://127.0.0.1:1' }] : []),
    },
    now: () => distributionInfo.lastPlan!.at + (ages.length > 1 ? ages.shift()! : ages[0]!),
  };
  const service = new FakeService();
  service.distribution = new DistributionControl(parts as DistributionControlParts);
  const app = buildApi(service, { closeGraceMs: 0 });
  t.teardown(() => app.close());
  const socket = join(shortFolder(t), 's');
  await listenControl(app, socket);
  const server = await PageServer.start({ host: '127.0.0.1', port: 0, controlSocket: socket, credentials: hostB! });
  t.teardown(() => server.close());
  return { url: server.address().url, socket, asked };
}

/** The guest `web1` of this many pages, at a host with these credentials, as that host explains it. */
function asking(member: { host: string; url: string }, pages: number, credentials?: Credentials, id = DOMAIN) {
  let present = 0;
  const parts: ExplainParts = {
    tagsOf: (guest) =>
      guest === 'web1' ? { domain: 'shop', tags: new Uint8Array(pages * TAG_BYTES).fill(7), stable: true } : undefined,
    directories: {
      get: () => ({
        directory: {
          hints: () => Promise.resolve([{ kind: 'evacuate', host: 'host-a', leftMs: 1000 }]),
          hint: () => Promise.resolve(),
          withdraw: () => Promise.resolve(false),
          empty: () => Promise.resolve(),
        },
        ...{ domain: DOMAIN, self: 'host-a' },
      }),
    },
    domains: {
      members: () => [member],
      record: () => ({ id }) as never,
      get: () => ({ mark: 'm', openKey: () => ({ id: 0, close: () => undefined }) }) as never,
    },
    connect: (url, whom) =>
      new PeerClient(url, { ...whom, answerMs: 5_000, ...(credentials === undefined ? {} : { credentials }) }),
    moves: 0.5,
    held: (_place, tags) => {
      present++;
      return Promise.resolve(new Uint8Array(tags.length / TAG_BYTES).fill(1));
    },
  };
  return { parts, present: () => present };
}

void t.test('a host of the domain is told, by its certificate; many pages in pieces', async (t) => {
  const { url, asked } = await answering(t);
  const pages = MOST_EXPLAINED + 3;
  const { parts, present } = asking({ host: 'host-b', url }, pages, hostA);
  const { hosts, ...guest } = await explainGuest(parts, 'web1');
  t.match(guest, { guest: 'web1', domain: 'shop', pages });
  t.match(hosts, [{ host: 'host-b', present: pages, state: 'bringing', explanation: { pages, missing: pages } }]);
  const { lastPlan } = distributionInfo;
  t.equal(hosts[0]!.planAgeMs, 1000 + lastPlan!.tookMs, 'counted from when the plan began');
  const { likelihood } = hosts[0]!;
  t.ok(likelihood! > 0.5, `${likelihood}: its host is evacuated, as an operator says`);
  t.same(asked, [
    ['shop', MOST_EXPLAINED, likelihood],
    ['shop', 3, likelihood],
  ]);
  await explainGuest(parts, 'web1', () => true);
  t.equal(present(), 1, 'what it would send to others is not asked for those of interest');
  t.match(await explainGuest(parts, 'web1', () => false), { hosts: [] });
  await t.rejects(explainGuest(parts, 'web2'), { code: 'PT_GUEST_STATE' });
});

void t.test(
  'a plan that is made between two pieces is not that of the first; one without the directory is none',
  async (t) => {
    const member = async (...how: [number[], string[]?]) => ({ host: 'host-b', url: (await answering(t, ...how)).url });
    const { parts } = asking(await member([60_000, 5]), MOST_EXPLAINED + 3, hostA);
    const { hosts } = await explainGuest(parts, 'web1');
    t.equal(hosts[0]!.planAgeMs, 60_000 + distributionInfo.lastPlan!.tookMs);
    const without = asking(await member([1], ['shop']), 1, hostA);
    t.match((await explainGuest(without.parts, 'web1')).hosts, [{ planAgeMs: null, explanation: { pages: 1 } }]);
    const other = asking(await member([1], ['bank']), 1, hostA);
    t.not((await explainGuest(other.parts, 'web1')).hosts[0]!.planAgeMs, null);
  },
);

void t.test('who is no host of the domain is told nothing, and the wrong host nothing either', async (t) => {
  const { url, asked } = await answering(t);
  const refused = async (name: string, code: string, ...more: [Credentials?, string?]): Promise<void> => {
    const { parts } = asking({ host: name, url }, 1, ...more);
    const { hosts } = await explainGuest(parts, 'web1');
    t.match(hosts, [{ host: name, state: null, planAgeMs: null, explanation: null, error: { code } }]);
  };
  await refused('host-b', 'PT_NO_PERMISSION', hostC);
  await refused('host-b', 'PT_DOMAIN_UNKNOWN', hostA, 'cd'.repeat(16));
  await refused('host-x', 'PT_PEER_UNTRUSTED', hostA);
  t.same(asked, []);
});

void t.test('by the control socket of an agent on this host', async (t) => {
  const { url, socket, asked } = await answering(t);
  const { parts } = asking({ host: `unix:${socket}`, url }, 0);
  const { hosts } = await explainGuest(parts, 'web1');
  t.match(hosts, [{ state: 'bringing', explanation: { pages: 0 } }], 'one question also where there is no page');
  t.equal(asked.length, 1);
  const away = asking({ host: `unix:${socket}-not`, url }, 1);
  t.match((await explainGuest(away.parts, 'web1')).hosts, [{ explanation: null, error: { code: /^PT_/ } }]);
});
