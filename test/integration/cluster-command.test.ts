/** `npm run cluster`: hosts in network namespaces with limited links, and nothing left of them. */
import { spawn, spawnSync, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, readdirSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import t, { type Test } from 'tap';
import { endCluster, processesOf } from '../../bench/lib/netns-cluster/end.ts';
import { cannotIsolate } from '../../bench/lib/netns-cluster/ip.ts';
import { clustersHere, folderOf, namespacesOf } from '../../bench/lib/netns-cluster/names.ts';
import { createNetwork, parseBitRate, runIn, type Network } from '../../bench/lib/netns-cluster/network.ts';
import { counterPeak, oneWay, peak, startCapture, startCounters } from '../../bench/lib/netns-cluster/recorder.ts';
import { AgentClient } from '../../src/agent/api/client.ts';
import { follow } from '../support/migrate.ts';

t.setTimeout(240_000);

const command = fileURLToPath(new URL('../../bench/cluster.js', import.meta.url));
const reason = cannotIsolate();
const skip = reason !== undefined && process.env['PAGETIDE_REQUIRE_NETNS'] !== '1' ? reason : false;

interface Described {
  name: string;
  folder: string;
  domain: string;
  hosts: { name: string; namespace: string | null; url: string; control: string; pid: number }[];
  guests: { name: string; host: string }[];
}

/** What there is of a cluster; empty: nothing. */
function traces(name: string): string[] {
  return [
    ...processesOf(name).map((pid) => `process ${pid}`),
    ...namespacesOf(name),
    ...(existsSync(folderOf(name)) ? [folderOf(name)] : []),
    ...readdirSync('/tmp').filter((entry) => entry.startsWith(name)),
  ];
}

/** Starts the command, and waits until it has told of its cluster, which is gone after the test. */
async function begin(
  t: Test,
  ...args: string[]
): Promise<{ child: ChildProcess; cluster: Described; exit: Promise<unknown[]> }> {
  const child = spawn(process.execPath, [command, '--json', ...args], { stdio: ['ignore', 'pipe', 'pipe'] });
  const exit = once(child, 'exit');
  t.teardown(async () => {
    child.kill('SIGKILL');
    await exit;
    for (const { name } of clustersHere().filter((one) => one.name.startsWith(`pt-${child.pid}-`))) endCluster(name);
  });
  let [out, said] = ['', ''];
  child.stderr.setEncoding('utf8').on('data', (text: string) => (said += text));
  const told = new Promise<void>((resolve) => {
    child.stdout.setEncoding('utf8').on('data', (text: string) => {
      out += text;
      if (out.includes('\n')) resolve();
    });
  });
  await Promise.race([told, exit]);
  if (!out.includes('\n')) throw new Error(`the command ended: ${said}`);
  return { child, cluster: JSON.parse(out) as Described, exit };
}

function network(t: Test, hosts: number, rate: number): Network {
  const made = createNetwork({ hosts, rate });
  t.teardown(() => made.close());
  return made;
}

/** Node code that takes one connection and says how many bytes came, and code that sends as many. */
const TAKER = `
  let bytes = 0;
  const server = require('node:net').createServer((socket) => {
    socket.on('data', (data) => (bytes += data.length)).on('end', () => { console.log(bytes); server.close(); socket.end(); });
  }).listen(5000, () => console.log('ready'));`;
const giver = (address: string, bytes: number): string =>
  `require('node:net').connect(5000, '${address}').end(Buffer.alloc(${bytes}))`;

void t.test('a link carries its rate and no more, both recorders see the same', { skip }, async (t) => {
  const rate = 80e6;
  const bytes = 6e6;
  const made = network(t, 2, rate);
  const [one, two] = made.hosts;
  const counting = await startCounters(made);
  const capturing = await startCapture(made, one!);
  const taker = runIn(two!.namespace, [process.execPath, '-e', TAKER], { stdio: ['ignore', 'pipe', 'inherit'] });
  let heard = '';
  taker.stdout!.setEncoding('utf8').on('data', (text: string) => (heard += text));
  await once(taker.stdout!, 'data');
  const taken = once(taker, 'close');
  const argv = [process.execPath, '-e', giver(two!.address, bytes)];
  const given = once(runIn(one!.namespace, argv, { stdio: 'inherit' }), 'exit');
  t.strictSame([(await given)[0], (await taken)[0]], [0, 0]);
  t.equal(heard.trim().split('\n').at(-1), String(bytes));
  const [counters, frames] = [await counting.stop(), await capturing.stop()];

  const { bytesOut, framesOut, atMs } = counters[0]!;
  const sent = oneWay(frames, true);
  const total = sent.bytes.reduce((sum, size) => sum + size, 0);
  t.equal(frames.missed, 0);
  t.ok(Math.max(...sent.bytes) <= 1514, 'frames are those of the wire');
  t.ok(total > bytes && total < bytes * 1.15, `${total} bytes sent for ${bytes}`);
  t.equal(bytesOut.at(-1)! - bytesOut[0]!, total, 'counters and capture agree on bytes');
  t.equal(framesOut.at(-1)! - framesOut[0]!, sent.bytes.length, 'and on frames');
  // a bucket lets its depth pass at once; stamps come a little after it
  const most = (rate / 8) * 0.1 + made.burst!;
  const exact = peak(sent.atMs, sent.bytes).bytes;
  t.ok(exact <= most * 1.15, `${exact} bytes in 100 ms, the bucket allows ${most}`);
  t.ok(exact >= most * 0.2, `${exact} bytes in 100 ms are too few for ${most}`);
  t.ok(counterPeak(atMs, bytesOut).bytes <= most * 1.3, 'by the counters, too');
  const port = [...frames.destinationPort.keys()].filter(
    (i) => frames.destinationPort[i] === 5000 && frames.out[i] === 1,
  );
  t.equal(frames.peer[port[0]!], 198 * 2 ** 24 + 18 * 2 ** 16 + 2);
  made.close();
  t.strictSame(traces(made.name), []);
});

void t.test('a guest moves between namespaces; Ctrl-C leaves nothing', { skip }, async (t) => {
  const { child, cluster, exit } = await begin(t, '--hosts', '2', '--guests', '1', '--memory', '16M', '--cache', '16M');
  const [one, two] = cluster.hosts;
  t.match([one!.url, two!.url], ['https://198.18.0.1:7411', 'https://198.18.0.2:7411']);
  const client = new AgentClient(`unix:${one!.control}`);
  const guest = cluster.guests[0]!.name;
  const { id } = await client.migrate({ guest, to: two!.url, mode: 'post-copy', verify: true });
  const { last } = await follow(client, id);
  t.equal(last.error, undefined);
  t.equal(last.report?.verified, true);
  t.match(await new AgentClient(`unix:${two!.control}`).listGuests(), [
    { name: guest, state: 'running', domain: 'cluster' },
  ]);
  t.ok(traces(cluster.name).length > 5, 'there are traces while it runs');
  child.kill('SIGINT');
  t.strictSame(await exit, [0, null]);
  t.strictSame(traces(cluster.name), []);
});

void t.test('--clean removes what a killed one left, and nothing else', { skip }, async (t) => {
  const living = network(t, 1, 1e9);
  const { child, cluster, exit } = await begin(t, '--hosts', '1', '--guests', '1', '--memory', '16M', '--cache', '0');
  child.kill('SIGKILL');
  await exit;
  t.ok(traces(cluster.name).length > 2, 'it left something');
  const cleaned = spawnSync(process.execPath, [command, '--clean'], { encoding: 'utf8' });
  t.equal(cleaned.status, 0);
  t.match(cleaned.stderr, cluster.name);
  t.strictSame(traces(cluster.name), []);
  t.equal(namespacesOf(living.name).length, 2, "a living one's stay");
});

void t.test('on loopback, with a command: its exit code, and nothing left', async (t) => {
  const script = 'test -f "$PAGETIDE_CLUSTER/cluster.json" && pagetide guest list --json && exit 7';
  const args = ['--loopback', '--hosts', '1', '--guests', '1', '--memory', '16M', '--cache', '0', '--exec', script];
  const child = spawn(process.execPath, [command, ...args], { stdio: ['ignore', 'pipe', 'pipe'] });
  let [out, said] = ['', ''];
  child.stdout.setEncoding('utf8').on('data', (text: string) => (out += text));
  child.stderr.setEncoding('utf8').on('data', (text: string) => (said += text));
  t.strictSame(await once(child, 'close'), [7, null], said);
  t.match(JSON.parse(out), [{ name: 'embedded-1', state: 'running' }]);
  t.match(said, /not limited/);
  t.strictSame(
    clustersHere().filter(({ name }) => name.startsWith(`pt-${child.pid}-`)),
    [],
  );
});

void t.test('half of a network is taken away, too', { skip }, (t) => {
  const before = clustersHere().length;
  // tc refuses such a bucket, when there are namespaces and links already
  t.throws(() => createNetwork({ hosts: 2, rate: 1e6, burst: -1 }), { code: 'PT_IO', message: /burst/ });
  t.equal(clustersHere().length, before);
  t.end();
});

void t.test('rates', (t) => {
  t.strictSame(['1gbit', '100mbit', '2.5gbit', '512kbit', '1000000'].map(parseBitRate), [1e9, 1e8, 2.5e9, 512e3, 1e6]);
  for (const wrong of ['', 'fast', '1', '1gb', '-1mbit'])
    t.throws(() => parseBitRate(wrong), { code: 'PT_BAD_ARGUMENT' });
  t.end();
});
