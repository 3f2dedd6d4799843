/** Agents with certificates: a guest moves over mutual TLS, and who is not of the cluster gets nothing. */
import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import { makeHost } from '../../src/trust/authority.ts';
import { HOST_FILES, writeHost } from '../../src/trust/pem-files.ts';
import { cluster } from '../support/cluster.ts';
import { guestFaults, migrate, reportFaults, startGuest, stillLeft } from '../support/migrate.ts';
import { EXPIRED, trustCluster, type TestCluster } from '../trust/support.ts';

t.setTimeout(300_000);

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
