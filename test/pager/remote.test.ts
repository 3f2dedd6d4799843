/** A snapshot whose memory file lies with an agent of another host: its VMs get every page by name. */
import { randomBytes } from 'node:crypto';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { makeHost } from '../../src/trust/authority.ts';
import { HOST_FILES, writeHost } from '../../src/trust/pem-files.ts';
import { runCli } from '../cli/harness.ts';
import { scratch } from '../guests/embedded-support.ts';
import { bytesOf } from '../pages/support.ts';
import { cluster, type TestAgent } from '../support/cluster.ts';
import { startLiar } from '../support/liar.ts';
import { TcpProxy } from '../support/tcp-proxy.ts';
import { trustCluster } from '../trust/support.ts';
import {
  endVm,
  hashes,
  memoryFile,
  PAGE,
  startPager,
  startVm,
  stillWaits,
  touched,
  type PagerProcess,
} from './support.ts';

t.setTimeout(900_000);

const FRAMES = 512;

interface Snapshot {
  folder: string;
  path: string;
  key: string;
  manifest: string;
  content: Buffer;
}

/** A memory file that the agent shares, and its manifest. */
async function shared(t: Test, agent: TestAgent): Promise<Snapshot> {
  const folder = scratch(t);
  const { path, content } = memoryFile(folder, FRAMES * PAGE);
  // pages that repeat: one fetch is for all
  content.copy(content, 100 * PAGE, 0, 5 * PAGE);
  writeFileSync(path, content);
  await agent.client.createDomain('shop');
  const key = join(agent.state, 'domains', 'shop.key');
  const manifest = join(folder, 'manifest');
  const made = await runCli(t, ['manifest', path, '--out', manifest, '--domain-key', key]);
  t.equal(made.code, 0, made.stderr);
  await agent.client.shareSnapshot({ file: path, domain: 'shop' });
  return { folder, path, key, manifest, content };
}

function from({ manifest, key }: Snapshot, ...urls: string[]): string[] {
  return ['--manifest', manifest, '--from', urls.join(','), '--domain-key', key];
}

/** What the pager tells of a VM that is gone. */
function told(pager: PagerProcess): Record<string, number> {
  const line = pager
    .said()
    .split('\n')
    .find((text) => text.includes('the VM is gone'))!;
  return JSON.parse(line) as Record<string, number>;
}

void t.test('faults and fill, with and without a cache', async (t) => {
  const agent = await cluster(t).agent('a');
  const snapshot = await shared(t, agent);
  const want = hashes(snapshot.content);
  const cache = ['--cache', join(snapshot.folder, 'cache'), '--cache-size', String(bytesOf(2 * FRAMES))];
  for (const args of [[], ['--no-fill'], cache, [...cache, '--no-fill']]) {
    const pager = await startPager(t, snapshot.folder, undefined, [...from(snapshot, agent.url), ...args]);
    const vm = await startVm(t, snapshot.folder, pager.socket, FRAMES * PAGE);
    if (!args.includes('--no-fill')) await pager.says(/every page is there/);
    t.same(await touched(vm, 0, FRAMES), want, args.join(' '));
    await endVm(vm);
    await pager.says(/the VM is gone/);
    const figures = told(pager);
    t.equal(figures['mismatches'], 0);
    if (args.length < 3) t.ok(figures['fromPeers']! > 400, `${figures['fromPeers']} pages from the agent`);
    else if (args.includes('--no-fill')) t.ok(figures['cached']! > 400, `${figures['cached']} pages from the cache`);
    t.equal((await pager.end()).code, 0);
  }
});

void t.test('the agent goes away and comes back: who waits goes on', async (t) => {
  const agent = await cluster(t).agent('a');
  const snapshot = await shared(t, agent);
  const want = hashes(snapshot.content);
  const pager = await startPager(t, snapshot.folder, undefined, [...from(snapshot, agent.url), '--no-fill']);
  const vm = await startVm(t, snapshot.folder, pager.socket, FRAMES * PAGE);
  t.same(await touched(vm, 0, 64), want.slice(0, 64));
  await agent.kill();
  await pager.says(/no host that may have the pages can be reached/);
  const waiting = touched(vm, 64, 64);
  t.ok(await stillWaits(waiting, () => vm.control.status()));
  await agent.restart();
  t.same(await waiting, want.slice(64, 128), 'the snapshot is shared again by itself');
});

void t.test('a page that the file does not have any more stays missing, and is never another', async (t) => {
  const agent = await cluster(t).agent('a');
  const snapshot = await shared(t, agent);
  const want = hashes(snapshot.content);
  const broken = Buffer.from(snapshot.content);
  randomBytes(PAGE).copy(broken, 10 * PAGE);
  writeFileSync(snapshot.path, broken);
  const pager = await startPager(t, snapshot.folder, undefined, from(snapshot, agent.url));
  const vm = await startVm(t, snapshot.folder, pager.socket, FRAMES * PAGE);
  const waiting = touched(vm, 10, 1);
  await pager.says(/PT_PAGE_UNHELD/);
  t.same(await touched(vm, 11, 60), want.slice(11, 71));
  t.ok(await stillWaits(waiting, () => touched(vm, 80, 1)));
  writeFileSync(snapshot.path, snapshot.content);
  // the index dropped the page when it was found wrong
  await agent.client.shareSnapshot({ file: snapshot.path, domain: 'shop' });
  t.same(await waiting, [want[10]]);
});

void t.test('a host that sends wrong pages is left out; another gives the right ones', async (t) => {
  const liar = await startLiar(t);
  const made = cluster(t);
  const agent = await made.agent('a');
  const snapshot = await shared(t, agent);
  liar.proxy.target = agent.ownUrl;
  // until the liar is found out, nobody else answers: otherwise it may not be asked at all
  const honest = await TcpProxy.start(t);
  honest.target = agent.ownUrl;
  honest.held.add('tags');
  const urls = [liar.proxy.url, honest.url];
  const pager = await startPager(t, snapshot.folder, undefined, from(snapshot, ...urls));
  const vm = await startVm(t, snapshot.folder, pager.socket, FRAMES * PAGE);
  await pager.says(/is not asked for pages any more/);
  honest.held.clear();
  await pager.says(/every page is there/);
  t.same(await touched(vm, 0, FRAMES), hashes(snapshot.content));
  t.ok(liar.wrong >= 3);
});

void t.test('what is refused before anybody can connect', async (t) => {
  const made = cluster(t);
  const agent = await made.agent('a');
  const snapshot = await shared(t, agent);
  const run = (...args: string[]) =>
    runCli(t, ['pager', '--listen', join(snapshot.folder, 's'), ...args]).then(({ code, stderr }) => {
      t.not(code, 0);
      return stderr;
    });
  const other = join(snapshot.folder, 'other.key');
  writeFileSync(other, `${randomBytes(32).toString('hex')}\n`, { mode: 0o600 });
  t.match(await run(...from({ ...snapshot, key: other }, agent.url)), /PT_MANIFEST_INVALID/);
  const foreign = join(snapshot.folder, 'foreign');
  await runCli(t, ['manifest', snapshot.path, '--out', foreign, '--domain-key', other]);
  t.match(await run(...from({ ...snapshot, manifest: foreign, key: other }, agent.url)), /PT_DOMAIN_UNKNOWN/);
  await agent.stop();
  t.match(await run(...from(snapshot, agent.url)), /PT_PEER_UNREACHABLE/);
  t.match(await run(...from(snapshot, 'https://127.0.0.1:1')), /PT_PEER_UNTRUSTED/);
});

void t.test('over mutual TLS, as a host of the domain', async (t) => {
  const made = cluster(t);
  const trust = await trustCluster();
  const folders: string[] = [];
  for (const name of ['host-a', 'host-b', 'host-c']) {
    const folder = join(made.root, name);
    await writeHost(folder, trust.authority.certificate, await makeHost(trust.authority, name, ['127.0.0.1']));
    folders.push(folder);
  }
  const tls = (folder: string) => ({
    ca: join(folder, HOST_FILES.ca),
    certificate: join(folder, HOST_FILES.certificate),
    key: join(folder, HOST_FILES.key),
  });
  const agent = await made.agent('a', { tls: tls(folders[0]!) });
  const host = await made.agent('b', { tls: tls(folders[1]!) });
  const snapshot = await shared(t, agent);
  await agent.client.grantDomain('shop', host.url);
  const key = join(host.state, 'domains', 'shop.key');
  const args = from({ ...snapshot, key }, agent.url);
  const stranger = await runCli(t, [
    ...['pager', '--listen', join(snapshot.folder, 's')],
    ...[...args, '--certificates', folders[2]!],
  ]);
  t.match(stranger.stderr, /PT_DOMAIN_UNKNOWN/, 'the secret alone is not enough');
  const pager = await startPager(t, snapshot.folder, undefined, [...args, '--certificates', folders[1]!]);
  const vm = await startVm(t, snapshot.folder, pager.socket, FRAMES * PAGE);
  t.same(await touched(vm, 0, FRAMES), hashes(snapshot.content));
});
