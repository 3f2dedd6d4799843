/**
 * A network of hosts on one machine, with nothing in the machine's own network namespace:
 *
 *     host 1: eth0 198.18.0.1 ── h1 ┐
 *     host 2: eth0 198.18.0.2 ── h2 ┼ br0    each pair a veth, each host a namespace, the bridge in one of its own
 *     host 3: eth0 198.18.0.3 ── h3 ┘
 *
 * A token bucket (tc-tbf) at both ends of each pair limits what a host sends and what it receives. Addresses are of the range
 * for benchmarks (RFC 2544). Frames are not larger than the wire's: segmentation is not left to the veth, so counters and
 * captures see each frame with its headers, and the buckets let nothing through in pieces of 64 KiB.
 *
 * Unix sockets don't care for network namespaces: control sockets are reachable from everywhere on the machine.
 */
import { spawn, type ChildProcess, type SpawnOptions } from 'node:child_process';
import { join } from 'node:path';
import { PagetideError } from '../../../src/errors.ts';
import { endCluster } from './end.ts';
import { cannotIsolate, must } from './ip.ts';
import { NAMESPACES, newName } from './names.ts';

export const MOST_HOSTS = 64;
/** What may wait at the bucket, as time, milliseconds. Less would lose frames of a sender that bursts. */
const LATENCY_MS = 50;
/** The interface of each host. */
export const DEVICE = 'eth0';

export interface NetworkOptions {
  hosts: number;
  /** Of each host's link, each way: bits a second, Ethernet headers included. None: no limit. */
  rate?: number;
  /** Depth of the buckets, bytes: what may go at once after a pause. Default: 1 ms of the rate, 16 KiB at least. */
  burst?: number;
  /** Of the cluster; a new one otherwise. */
  name?: string;
}

export interface NetworkHost {
  /** From 1. */
  readonly number: number;
  readonly namespace: string;
  readonly address: string;
}

export interface Network {
  readonly name: string;
  readonly hosts: readonly NetworkHost[];
  readonly rate: number | undefined;
  readonly burst: number | undefined;
  /** Removes everything, and ends what runs in it. May be called again. */
  close(): void;
}

/** @throws PagetideError `PT_UNSUPPORTED_HOST` without root or `ip`, `PT_IO`; nothing is left, then */
export function createNetwork(options: NetworkOptions): Network {
  const reason = cannotIsolate();
  if (reason !== undefined) throw new PagetideError('PT_UNSUPPORTED_HOST', reason, { hint: 'Use --loopback.' });
  const { hosts: count, rate, name = newName() } = options;
  if (!Number.isInteger(count) || count < 1 || count > MOST_HOSTS)
    throw new PagetideError('PT_BAD_ARGUMENT', `${count} hosts: 1 to ${MOST_HOSTS}`);
  const burst = rate === undefined ? undefined : (options.burst ?? Math.max(16_384, Math.ceil(rate / 8 / 1000)));
  const hosts = Array.from({ length: count }, (_, at): NetworkHost => {
    const number = at + 1;
    return { number, namespace: `${name}-${number}`, address: `198.18.0.${number}` };
  });
  try {
    const bridge = `${name}-switch`;
    must('ip', 'netns', 'add', bridge);
    must('ip', '-n', bridge, 'link', 'add', 'br0', 'type', 'bridge', 'mcast_snooping', '0');
    must('ip', '-n', bridge, 'link', 'set', 'br0', 'addrgenmode', 'none', 'up');
    for (const host of hosts) addHost(bridge, host, rate, burst);
  } catch (error) {
    endCluster(name);
    throw error;
  }
  return { name, hosts, rate, burst, close: () => endCluster(name) };
}

function addHost(bridge: string, host: NetworkHost, rate: number | undefined, burst: number | undefined): void {
  const { namespace, address, number } = host;
  const port = `h${number}`;
  must('ip', 'netns', 'add', namespace);
  must('ip', 'link', 'add', port, 'netns', bridge, 'type', 'veth', 'peer', 'name', DEVICE, 'netns', namespace);
  const ends = [
    [bridge, port],
    [namespace, DEVICE],
  ] as const;
  for (const [at, device] of ends) {
    // no addresses of IPv6: their announcements would be all that is on a quiet link
    must('ip', '-n', at, 'link', 'set', device, 'addrgenmode', 'none', 'gso_max_segs', '1');
    if (rate === undefined || burst === undefined) continue;
    const limit = ['rate', `${rate}bit`, 'burst', String(burst), 'latency', `${LATENCY_MS}ms`];
    must('tc', '-n', at, 'qdisc', 'replace', 'dev', device, 'root', 'tbf', ...limit);
  }
  must('ip', '-n', bridge, 'link', 'set', port, 'master', 'br0', 'up');
  must('ip', '-n', namespace, 'address', 'add', `${address}/24`, 'dev', DEVICE);
  must('ip', '-n', namespace, 'link', 'set', 'lo', 'up');
  must('ip', '-n', namespace, 'link', 'set', DEVICE, 'up');
}

/** The command that becomes `argv` in a host's namespace, with the same pid. Only the network is another. */
export function commandIn(namespace: string, argv: readonly string[]): [string, ...string[]] {
  return ['nsenter', `--net=${join(NAMESPACES, namespace)}`, '--', ...argv];
}

/** Starts a command in a host's namespace. It ends with the network at the latest. */
export function runIn(namespace: string, argv: readonly string[], options: SpawnOptions = {}): ChildProcess {
  const [program, ...args] = commandIn(namespace, argv);
  return spawn(program, args, options);
}

/** `1gbit`, `100mbit`, `512kbit`, or bits a second: as `tc` has it, in bits a second. @throws PagetideError `PT_BAD_ARGUMENT` */
export function parseBitRate(text: string): number {
  const [, value, unit = ''] = /^(\d+(?:\.\d+)?)(|bit|kbit|mbit|gbit)$/.exec(text.toLowerCase()) ?? [];
  const factor = { k: 1e3, m: 1e6, g: 1e9 }[unit.charAt(0)] ?? 1;
  const bits = Math.round(Number(value) * factor);
  if (value !== undefined && bits >= 1e5 && bits <= 1e11) return bits;
  throw new PagetideError('PT_BAD_ARGUMENT', `"${text.slice(0, 40)}" is no rate`, {
    hint: 'Bits a second from 100kbit to 100gbit, e.g. 1gbit or 100mbit.',
  });
}
