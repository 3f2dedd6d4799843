/**
 * `npm run cluster -- [--hosts 3] [--rate 1gbit|none] [--cache 256M] [--guests 2] [--kind embedded] [--memory 64M]`
 *
 * A cluster on this machine until Ctrl-C, or while `--exec COMMAND` runs; see docs/cluster.md. `--clean` removes what killed ones
 * left behind.
 */
import { spawn } from 'node:child_process';
import { mkdirSync, writeFileSync } from 'node:fs';
import { constants } from 'node:os';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { parseSize } from '../src/agent/units.ts';
import { table } from '../src/cli/table.ts';
import { asPagetideError, PagetideError } from '../src/errors.ts';
import { cliPath } from './lib/netns-cluster/agent.ts';
import { startCluster, type NetnsCluster } from './lib/netns-cluster/cluster.ts';
import { clean } from './lib/netns-cluster/end.ts';
import { parseKinds, startGuests, type PlacedGuest } from './lib/netns-cluster/guests.ts';
import { cannotIsolate } from './lib/netns-cluster/ip.ts';
import { MARK } from './lib/netns-cluster/names.ts';
import { MOST_HOSTS, parseBitRate } from './lib/netns-cluster/network.ts';

const USAGE =
  'npm run cluster -- [--hosts 3] [--rate 1gbit|none] [--cache 256M] [--guests 2] [--kind embedded|unlike|qemu|LOAD|mixed]' +
  " [--memory 64M] [--loopback] [--exec 'COMMAND'] [--json], or --clean";

function bad(message: string): PagetideError {
  return new PagetideError('PT_BAD_ARGUMENT', message, { hint: USAGE });
}

function parse(args: string[]) {
  let values;
  try {
    ({ values } = parseArgs({
      args,
      options: {
        hosts: { type: 'string', default: '3' },
        rate: { type: 'string', default: '1gbit' },
        cache: { type: 'string', default: '256M' },
        guests: { type: 'string', default: '2' },
        kind: { type: 'string', default: 'embedded' },
        memory: { type: 'string', default: '64M' },
        loopback: { type: 'boolean', default: false },
        exec: { type: 'string' },
        json: { type: 'boolean', default: false },
        clean: { type: 'boolean', default: false },
      },
    }));
  } catch (cause) {
    throw bad(cause instanceof Error ? cause.message : String(cause));
  }
  const number = (name: string, text: string, least: number, most: number): number => {
    if (/^\d+$/.test(text) && Number(text) >= least && Number(text) <= most) return Number(text);
    throw bad(`--${name} ${text}: a whole number from ${least} to ${most}`);
  };
  const size = (name: string, text: string): number => {
    const bytes = parseSize(text);
    if (bytes === undefined) throw bad(`--${name} ${text}: a size, e.g. 64M`);
    return bytes;
  };
  return {
    hosts: number('hosts', values.hosts, 1, MOST_HOSTS),
    rate: values.rate === 'none' ? undefined : parseBitRate(values.rate),
    cache: values.cache === '0' ? 0 : size('cache', values.cache),
    guests: number('guests', values.guests, 0, 1000),
    kinds: parseKinds(values.kind),
    memory: size('memory', values.memory),
    loopback: values.loopback,
    exec: values.exec,
    json: values.json,
    clean: values.clean,
  };
}

/** What a script needs to know; also in `cluster.json` of the cluster's folder. */
function describe(cluster: NetnsCluster, guests: PlacedGuest[], bin: string) {
  const { name, folder, domain, network } = cluster;
  return {
    name,
    folder,
    bin,
    domain: domain ?? null,
    rate: network?.rate ?? null,
    hosts: cluster.hosts.map(({ name: host, namespace, address, url, control, pid, logFile }) => ({
      name: host,
      namespace: namespace ?? null,
      address,
      url,
      control,
      pid,
      log: logFile,
    })),
    guests: guests.map(({ name: guest, kind, host }) => ({ name: guest, kind, host: host.name })),
  };
}

function show({ hosts, guests, bin, folder }: ReturnType<typeof describe>): string {
  const of = (host: string): string => guests.flatMap((one) => (one.host === host ? [one.name] : [])).join(' ') || '-';
  const rows = hosts.map(({ name, namespace, url, control }) => [name, namespace ?? '-', url, control, of(name)]);
  const from = guests[0];
  const at = (name: string | undefined): string =>
    `unix:${(hosts.find((one) => one.name === name) ?? hosts[0]!).control}`;
  const target = hosts.find(({ name }) => name !== (from?.host ?? hosts[0]!.name));
  const commands = [
    `export PATH=${bin}:$PATH`,
    `pagetide --agent ${at(undefined)} guest list`,
    ...(from === undefined || target === undefined
      ? []
      : [
          `pagetide --agent ${at(from.host)} migrate ${from.name} --to ${target.url}`,
          `pagetide --agent ${at(from.host)} evacuate --to ${target.url}`,
        ]),
    ...(hosts[0]!.namespace === null ? [] : [`ip netns exec ${hosts[0]!.namespace} ip -s link show eth0`]),
  ];
  const head = ['HOST', 'NAMESPACE', 'URL', 'CONTROL SOCKET', 'GUESTS'];
  return `${table(head, rows)}\n\nLogs, state and memory: ${folder}\n\n${commands.map((line) => `  ${line}`).join('\n')}\n`;
}

/** Runs the operator's command; resolves to its exit code, as a shell would tell it. */
function execute(command: string, cluster: NetnsCluster, bin: string): Promise<number> {
  const env = {
    ...process.env,
    PATH: `${bin}:${process.env['PATH'] ?? ''}`,
    PAGETIDE_CLUSTER: cluster.folder,
    PAGETIDE_AGENT: `unix:${cluster.hosts[0]!.control}`,
    // what it leaves running ends with the cluster
    [MARK]: cluster.folder,
  };
  const child = spawn('/bin/sh', ['-c', command], { stdio: 'inherit', env });
  return new Promise((resolve, reject) => {
    child.once('error', reject);
    child.once('exit', (code, signal) => resolve(code ?? 128 + constants.signals[signal!]));
  });
}

async function main(): Promise<number> {
  const options = parse(process.argv.slice(2));
  const say = (text: string): void => void process.stderr.write(`${text}\n`);
  if (options.clean) {
    const gone = clean();
    say(gone.length === 0 ? 'Nothing was left behind.' : `Removed ${gone.join(', ')}.`);
    return 0;
  }
  const reason = options.loopback ? undefined : cannotIsolate();
  const loopback = options.loopback || reason !== undefined;
  if (reason !== undefined) say(`${reason}: the agents are on loopback.`);
  if (loopback) say('Links are not limited on loopback; only what fills each arriving guest is held to --rate.');

  let close = (): void => undefined;
  let waiting = false;
  let done: (code: number) => void = () => undefined;
  const ended = new Promise<number>((resolve) => (done = resolve));
  for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) {
    // stays: a second Ctrl-C must not cut the first one's work short
    process.on(signal, () => {
      try {
        close();
      } catch (error) {
        failed(error);
      }
      if (waiting) done(0);
      else process.exit(128 + constants.signals[signal]);
    });
  }
  const { hosts, rate, cache } = options;
  const cluster = await startCluster(
    { hosts, cache, loopback, ...(rate === undefined ? {} : { rate }) },
    (closing) => (close = () => closing.close()),
  );
  try {
    const bin = join(cluster.folder, 'bin');
    mkdirSync(bin);
    writeFileSync(join(bin, 'pagetide'), `#!/bin/sh\nexec '${process.execPath}' '${cliPath()}' "$@"\n`, {
      mode: 0o755,
    });
    const guests = await startGuests(cluster, { count: options.guests, kinds: options.kinds, memory: options.memory });
    const description = describe(cluster, guests, bin);
    writeFileSync(join(cluster.folder, 'cluster.json'), `${JSON.stringify(description, null, 2)}\n`);
    if (options.exec !== undefined) return await execute(options.exec, cluster, bin);
    process.stdout.write(options.json ? `${JSON.stringify(description)}\n` : show(description));
    say('Ctrl-C ends it.');
    waiting = true;
    const awake = setInterval(() => undefined, 2 ** 30);
    return await ended.finally(() => clearInterval(awake));
  } finally {
    cluster.close();
  }
}

function failed(thrown: unknown): never {
  const error = asPagetideError(thrown);
  process.stderr.write(`cluster: ${error.message} [${error.code}]\n  ${error.hint}\n`);
  process.exit(1);
}

main().then((code) => process.exit(code), failed);
