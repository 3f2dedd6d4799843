/** Debian's redis-server, as many as a test needs, in folders of its own. They are gone with the test. */
import { spawn, spawnSync, type ChildProcess } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Redis } from 'ioredis';

interface Test {
  teardown(fn: () => unknown): unknown;
}

export const isRedisThere = spawnSync('redis-server', ['--version']).status === 0;
if (!isRedisThere && process.env.PAGETIDE_REQUIRE_REDIS === '1')
  throw new Error('redis-server is required, and not installed');
/** For tap's `skip`. */
export const skipWithoutRedis = isRedisThere ? false : 'no redis-server (Debian: redis-server)';

export interface Server {
  url: string;
  port: number;
  process: ChildProcess;
  /** A plain client, closed with the test. */
  client: Redis;
}

/** A port that was free a moment ago. */
async function freePort(): Promise<number> {
  const server = createServer();
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const { port } = server.address() as { port: number };
  await new Promise((resolve) => server.close(resolve));
  return port;
}

export interface ServerOptions {
  args?: readonly string[];
  cluster?: boolean;
  /** Where one ran before; otherwise any free one. */
  port?: number;
  /** Of the plain client. */
  client?: object;
  scheme?: 'redis' | 'rediss';
  /** Before the host in the URL. */
  login?: string;
}

export async function startRedis(t: Test, options: ServerOptions = {}): Promise<Server> {
  const { args = [], cluster = false, client: clientOptions = {}, scheme = 'redis', login = '' } = options;
  const folder = mkdtempSync(join(tmpdir(), 'pagetide-redis-'));
  for (let attempt = 0; ; attempt++) {
    const port = options.port ?? (await freePort());
    const bus = cluster ? ['--cluster-enabled', 'yes', '--cluster-port', String(await freePort())] : [];
    const own = scheme === 'rediss' ? ['--port', '0', '--tls-port', String(port)] : ['--port', String(port)];
    const child = spawn(
      'redis-server',
      [
        ...own,
        '--bind',
        '127.0.0.1',
        '--save',
        '',
        '--appendonly',
        'no',
        '--daemonize',
        'no',
        '--dir',
        folder,
        ...bus,
        ...args,
      ],
      { stdio: ['ignore', 'pipe', 'inherit'] },
    );
    let log = '';
    const isUp = await new Promise<boolean>((resolve) => {
      child.stdout.on('data', (chunk: Buffer) => {
        log += chunk.toString();
        if (log.includes('Ready to accept connections')) resolve(true);
        log = log.slice(-4096);
      });
      child.once('error', () => {
        resolve(false);
      });
      child.once('exit', () => {
        resolve(false);
      });
    });
    if (!isUp) {
      if (attempt < 5) continue;
      rmSync(folder, { recursive: true, force: true });
      throw new Error(`redis-server does not start: ${log}`);
    }
    const client = new Redis({ host: '127.0.0.1', port, protocol: 2, ...clientOptions });
    client.on('error', () => undefined); // of one that the test kills
    t.teardown(async () => {
      client.disconnect();
      await killed(child);
      rmSync(folder, { recursive: true, force: true });
    });
    return { url: `${scheme}://${login}127.0.0.1:${port}`, port, process: child, client };
  }
}

/** Kills it and waits until it is gone. */
export async function killed(child: ChildProcess): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return;
  const gone = new Promise((resolve) => child.once('exit', resolve));
  child.kill('SIGKILL');
  await gone;
}

/** Waits for what has no event. */
export async function until(what: string, check: () => Promise<boolean>): Promise<void> {
  for (const end = Date.now() + 60_000; !(await check());) {
    if (Date.now() > end) throw new Error(`${what}: not within a minute`);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}

/** Three primaries, and so many replicas of each. The primaries come first, their replicas in their order. */
export async function startCluster(
  t: Test,
  replicas = 0,
  options: Omit<ServerOptions, 'cluster' | 'port'> = {},
): Promise<Server[]> {
  const args = [
    ...(options.args ?? []),
    '--cluster-node-timeout',
    '1000',
    '--cluster-replica-validity-factor',
    '0',
    '--cluster-require-full-coverage',
    'no',
    '--repl-diskless-sync-delay',
    '0',
  ];
  const servers: Server[] = [];
  for (let i = 0; i < 3 * (1 + replicas); i++) servers.push(await startRedis(t, { ...options, cluster: true, args }));
  const primaries = servers.slice(0, 3);
  for (const [i, { client }] of primaries.entries())
    await client.call('cluster', 'addslotsrange', Math.ceil((16384 * i) / 3), Math.ceil((16384 * (i + 1)) / 3) - 1);
  for (const [i, { client }] of servers.entries()) await client.call('cluster', 'set-config-epoch', i + 1);
  for (const { client } of servers.slice(1)) {
    const bus = String(await servers[0]!.client.call('cluster', 'nodes')).match(/@(\d+)/)![1]!;
    await client.call('cluster', 'meet', '127.0.0.1', servers[0]!.port, bus);
  }
  const everywhere = (text: string) => async (): Promise<boolean> => {
    for (const { client } of servers) if (!String(await client.call('cluster', 'info')).includes(text)) return false;
    return true;
  };
  await until('all know each other', everywhere(`cluster_known_nodes:${servers.length}`));
  for (const [i, { client }] of servers.slice(3).entries()) {
    const id = String(await primaries[i % 3]!.client.call('cluster', 'myid'));
    await until('the primary is known', async () =>
      client.call('cluster', 'replicate', id).then(
        () => true,
        () => false,
      ),
    );
  }
  await until('the cluster is up', everywhere('cluster_state:ok'));
  await until('all slots have an owner everywhere', everywhere('cluster_slots_assigned:16384'));
  if (replicas > 0)
    await until('replicas are in step', async () => {
      for (const { client } of servers.slice(3))
        if (!(await client.info('replication')).includes('master_link_status:up')) return false;
      return true;
    });
  return servers;
}
