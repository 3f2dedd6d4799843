/** Agents with certificates: a guest moves over mutual TLS, and who is not of the cluster gets nothing. */
import { mkdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import { Journal } from '../../src/agent/journal.ts';
import type { CompletionFigures } from '../../src/migration/types.ts';
import { makeHost } from '../../src/trust/authority.ts';
import { HOST_FILES, writeHost } from '../../src/trust/pem-files.ts';
import { connectPages } from '../../src/transport/page-client.ts';
import { PeerClient } from '../../src/transport/peer.ts';
import { cluster } from '../support/cluster.ts';
import { untilRecord } from '../support/journal-watch.ts';
import { begin, follow, guestFaults, migrate, reportFaults, startGuest, stillLeft } from '../support/migrate.ts';
import { EXPIRED, trustCluster, type TestCluster } from '../trust/support.ts';

t.setTimeout(900_000);

/** A word that every page is there. */
const FIGURES: CompletionFigures = {
  frames: { total: 8192, zero: 0, present: 0, cache: 0, resident: 0, duplicate: 0, peer: 0, source: 8192 },
  bytes: { wire: 0, manifest: 0, pages: 0, state: 0, raw: 0 },
  faults: { count: 0, p50Us: 0, p99Us: 0, maxUs: 0 },
  longestGapMs: null,
  verified: true,
  resumedAt: 1,
  verifyMs: 0,
};

/** The `tls` of an agent's configuration, with files to go with it. */
async function files(
  root: string,
  of: TestCluster,
  name: string,
): Promise<{ ca: string; certificate: string; key: string }> {
  const folder = join(root, `certificates-${name}`);
  await writeHost(folder, of.authority.certificate, await makeHost(of.authority, name, ['127.0.0.1']));
  return {
    ca: join(folder, HOST_FILES.ca),
    certificate: join(folder, HOST_FILES.certificate),
    key: join(folder, HOST_FILES.key),
  };
}

void t.test('forth and back over mutual TLS', async (t) => {
  const made = cluster(t);
  const trust = await trustCluster();
  const a = await made.agent('a', { tls: await files(made.root, trust, 'host-a') });
  const b = await made.agent('b', { tls: await files(made.root, trust, 'host-b') });
  t.match([a.url, b.url], [/^https:/, /^https:/]);
  await startGuest(a, 'g1', { memory: '48M', threads: 2 });
  for (const [from, to] of [
    [a, b],
    [b, a],
  ] as const) {
    const { last } = await migrate(from, to, 'g1');
    t.strictSame(last.error, undefined);
    t.equal(last.progress.phase, 'done');
    t.equal(last.report?.verified, true);
    t.ok((last.report?.faults.count ?? 0) > 0, 'pages were faulted in');
    t.strictSame(reportFaults(last.report), []);
    t.strictSame(await guestFaults(to, 'g1'), []);
  }
  t.strictSame(await stillLeft(made), []);
});

void t.test('another host of the cluster that has the token: no pages, and nobody believes it', async (t) => {
  const made = cluster(t);
  const trust = await trustCluster();
  // filled so slowly that the guest still needs its source when a thief comes
  const fill = { bandwidth: 4 * 2 ** 20 };
  const a = await made.agent('a', { tls: await files(made.root, trust, 'host-a') });
  const b = await made.agent('b', { tls: await files(made.root, trust, 'host-b'), fill });
  const thief = await trust.host('host-c');
  await startGuest(a, 'g1', { memory: '32M' });
  const id = await begin(a, b, 'g1');
  t.ok(await untilRecord(a, 0, 'source', 'gone', 60_000));

  const journal = readFileSync(join(a.state, 'journal'), 'utf8');
  const token = /"token":"([^"]+)"/.exec(journal)![1]!;
  const epoch = Number(/"epoch":(\d+)/.exec(journal)![1]);
  const steal = async (when: string): Promise<void> => {
    const target = { url: a.url, migration: id, token, pageSize: 4096, frames: 8192, handlers: {} };
    for (const channel of ['demand', 'fill', 'state'] as const)
      await t.rejects(connectPages({ ...target, channel, credentials: thief }), { code: 'PT_UNAUTHORIZED' }, when);
    const peer = new PeerClient(a.url, { credentials: thief });
    await t.rejects(peer.complete(id, epoch, FIGURES), { code: 'PT_UNAUTHORIZED', message: /^host-c/ }, when);
    await t.rejects(peer.recheck(id, epoch, [0]), { code: 'PT_UNAUTHORIZED', message: /^host-c/ }, when);
    await peer.close();
    const there = new PeerClient(b.url, { credentials: thief });
    for (const ask of ['load', 'takeOver', 'abort'] as const)
      await t.rejects(
        there[ask](id, epoch),
        { code: 'PT_UNAUTHORIZED', message: /^host-c is not the host that this/ },
        when,
      );
    await t.rejects(there.status(id), { code: 'PT_UNAUTHORIZED', message: /^host-c is not the host that this/ }, when);
    t.match(await there.status('0123456789abcdef'), { state: 'unknown' }, 'of what is not there all are told so');
    await there.close();
  };
  await steal('while the guest is filled');
  await a.kill();
  await a.restart();
  await steal('after a restart of the source');
  await b.kill();
  await b.restart();
  await steal('after a restart of the destination');
  const { last } = await follow(a.client, id);
  t.strictSame([last.error, last.report?.verified], [undefined, true]);
  t.strictSame(reportFaults(last.report), []);
  t.strictSame(await guestFaults(b, 'g1'), []);
  t.match(a.log().join('\n'), /"PT_UNAUTHORIZED".*host-c is not the host that this guest moves to/);
});

void t.test('a journal of a version that did not keep who the destination is', async (t) => {
  const made = cluster(t);
  const trust = await trustCluster();
  const a = await made.agent('a', { tls: await files(made.root, trust, 'host-a') });
  const b = await made.agent('b', { tls: await files(made.root, trust, 'host-b'), fill: { bandwidth: 4 * 2 ** 20 } });
  await startGuest(a, 'g1', { memory: '32M' });
  const id = await begin(a, b, 'g1');
  t.ok(await untilRecord(a, 0, 'source', 'gone', 60_000));
  await a.kill();
  const journal = await Journal.open(a.state);
  const last = journal.records().findLast((entry) => entry.kind === 'migration');
  const { destination, ...details } = last!.details!;
  t.equal(destination, 'host-b');
  await journal.append({ ...last!, details });
  await journal.close();
  await a.restart();
  const end = (await follow(a.client, id)).last;
  t.strictSame([end.progress.phase, end.error, end.report?.verified], ['done', undefined, true]);
  t.strictSame(await guestFaults(b, 'g1'), []);
});

void t.test('an agent of another cluster, and one without certificates: refused before anything changes', async (t) => {
  const made = cluster(t);
  const [trust, other] = [await trustCluster(), await trustCluster()];
  const a = await made.agent('a', { tls: await files(made.root, trust, 'host-a') });
  const foreign = await made.agent('foreign', { tls: await files(made.root, other, 'host-b') });
  const plain = await made.agent('plain');
  await startGuest(a, 'g1', { memory: '16M' });
  await startGuest(plain, 'g2', { memory: '16M' });

  const cases = [
    [a, foreign.url, 'g1', /another cluster/],
    [a, plain.url.replace('http:', 'https:'), 'g1', /does not speak TLS/],
    [a, 'http://10.255.255.1:7411', 'g1', /not https/],
    [plain, a.url, 'g2', /no certificates/],
  ] as const;
  for (const [from, to, guest, why] of cases) {
    const outcome = await migrate(from, to, guest).then(
      ({ last }) => last.error,
      (error: unknown) => error,
    );
    t.match(outcome, { code: 'PT_PEER_UNTRUSTED', message: why }, to);
    t.equal((await from.client.showGuest(guest)).state, 'running', 'the guest goes on');
  }
  t.strictSame(await stillLeft(made), []);
});

void t.test('what an agent does not start with', async (t) => {
  const made = cluster(t);
  const trust = await trustCluster();
  mkdirSync(made.root, { recursive: true });
  const good = await files(made.root, trust, 'host-a');
  const expired = join(made.root, 'expired');
  await writeHost(
    expired,
    trust.authority.certificate,
    await makeHost(trust.authority, 'host-x', ['127.0.0.1'], EXPIRED),
  );
  const elsewhere = join(made.root, 'elsewhere');
  await writeHost(elsewhere, trust.authority.certificate, await makeHost(trust.authority, 'host-y', ['10.0.0.1']));
  const pair = (folder: string) => ({
    certificate: join(folder, HOST_FILES.certificate),
    key: join(folder, HOST_FILES.key),
  });
  const cases: [string, Record<string, unknown>, RegExp][] = [
    ['expired', { tls: { ca: good.ca, ...pair(expired) } }, /PT_BAD_CERTIFICATE.*expired/],
    ['other-address', { tls: { ca: good.ca, ...pair(elsewhere) } }, /PT_BAD_CERTIFICATE.*not for 127\.0\.0\.1/],
    ['other-key', { tls: { ...good, key: pair(elsewhere).key } }, /PT_BAD_CERTIFICATE.*does not belong/],
    ['missing', { tls: { ...good, key: '/nowhere' } }, /PT_BAD_CERTIFICATE.*cannot be read/],
  ];
  for (const [name, config, why] of cases) await t.rejects(made.agent(name, config), why, name);
});
