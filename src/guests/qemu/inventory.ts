/** Asks a running QEMU, and /proc, what it is made of. What follows from that is decided in allow-list.ts. */
import { readFile, readdir, readlink, stat, statfs } from 'node:fs/promises';
import { asPagetideError, PagetideError } from '../../errors.ts';
import type { DiskNode } from '../tracking.ts';
import { mountOptions, parseMaps, rangesOfFile, type MappedRange } from './memory-map.ts';
import { QmpError, type QmpClient } from './qmp.ts';

/** One `-object memory-backend-*`, or the RAM that QEMU makes when there is none. */
export interface RamObject {
  id: string;
  /** QOM type, e.g. `memory-backend-file`. */
  type: string;
  size: number;
  share: boolean;
  prealloc: boolean;
  discardData: boolean;
  pmem: boolean;
  /** Byte offset in its file; 0 where this QEMU knows none. */
  fileOffset: number;
  /** Absent for anything but files. */
  path?: string;
  file?: {
    /** A regular file that still has its name. */
    named: boolean;
    size: number;
    filesystem: 'tmpfs' | 'hugetlbfs' | 'other';
    /** tmpfs mount option `huge=`; `never` where not given. */
    huge: string;
    /** Where QEMU has it mapped. */
    mapped: MappedRange[];
  };
}

export interface Inventory {
  role: 'source' | 'destination';
  version: string;
  arch: string;
  /** Versioned, e.g. `pc-q35-7.2`. */
  machine: string;
  /** `query-status`. */
  status: string;
  cpus: number;
  ram: RamObject[];
  /** Ids of the RAM objects that the machine, or a NUMA node of it, uses. Bytes of base and of plugged memory. */
  baseMemory: number;
  pluggedMemory: number;
  /** Every device below /machine: its QOM path and type. */
  devices: { path: string; type: string }[];
  /** What balloons are allowed to do; `path` as in `devices`. True also where this QEMU does not say. */
  balloons: { path: string; reporting: boolean; hinting: boolean }[];
  /** Everything in /objects. */
  objects: { id: string; type: string }[];
  /** `info network`: name and type of every back end and card. */
  network: { name: string; type: string }[];
  /** `query-named-block-nodes`. */
  block: DiskNode[];
  /** What QEMU itself says stands against migrating. */
  blockers: string[];
  /** `query-migrate`'s status, empty when there was none. */
  migration: string;
  capabilities: string[];
  /** Command line as /proc has it; empty strings removed. */
  commandLine: string[];
  /** Device files the process has open, e.g. `/dev/vhost-net`. */
  deviceFiles: string[];
  /** Bytes that `mlock` holds. */
  lockedBytes: number;
}

const TMPFS_MAGIC = 0x01021994;
const HUGETLBFS_MAGIC = 0x958458f6;

interface BlockNode {
  'node-name': string;
  drv: string;
  cache?: { direct: boolean };
}

interface QomEntry {
  name: string;
  type: string;
}

/**
 * What decides how far writes can be tracked ({@link trackingOf}), and no more: it is asked after every scan, also of a guest that is about
 * to stop, and one question is answered sooner than ten.
 * @throws as {@link collectInventory}
 */
export async function collectDisks(qmp: QmpClient, pid: number): Promise<Pick<Inventory, 'block' | 'commandLine'>> {
  const [nodes, commandLine] = await Promise.all([
    qmp.execute('query-named-block-nodes') as Promise<BlockNode[]>,
    collectCommandLine(pid),
  ]);
  return { block: diskNodes(nodes), commandLine };
}

/** @throws PT_VMM_* as {@link QmpClient.execute}; PT_VMM_GONE where the process vanished */
export async function collectInventory(qmp: QmpClient, pid: number, role: Inventory['role']): Promise<Inventory> {
  const ask = <T>(command: string, args?: Record<string, unknown>) => qmp.execute(command, args) as Promise<T>;
  const [target, status, machine, cpus, memory, memdevs, migrate, capabilities, blockNodes, network] =
    await Promise.all([
      ask<{ arch: string }>('query-target'),
      ask<{ status: string }>('query-status'),
      ask<string>('qom-get', { path: '/machine', property: 'type' }),
      ask<unknown[]>('query-cpus-fast'),
      ask<{ 'base-memory': number; 'plugged-memory'?: number }>('query-memory-size-summary'),
      ask<{ id?: string; size: number; share?: boolean; prealloc: boolean }[]>('query-memdev'),
      ask<{ status?: string; 'blocked-reasons'?: string[] }>('query-migrate'),
      ask<{ capability: string }[]>('query-migrate-capabilities'),
      ask<BlockNode[]>('query-named-block-nodes'),
      ask<string>('human-monitor-command', { 'command-line': 'info network' }),
    ]);
  const objects = children(await ask<QomEntry[]>('qom-list', { path: '/objects' }));
  const types = new Map(objects.map(({ name, type }) => [name, type]));
  const proc = await collectProcess(pid);
  const ram: RamObject[] = [];
  for (const memdev of memdevs) {
    const id = memdev.id ?? '';
    ram.push(await ramObject(qmp, { ...memdev, id, share: memdev.share ?? false }, types.get(id) ?? 'unknown', proc));
  }
  const devices = await collectDevices(qmp);
  return {
    role,
    version: qmp.version,
    arch: target.arch,
    machine: machine.replace(/-machine$/, ''),
    status: status.status,
    cpus: cpus.length,
    ram,
    baseMemory: memory['base-memory'],
    pluggedMemory: memory['plugged-memory'] ?? 0,
    devices,
    balloons: await collectBalloons(qmp, devices),
    objects: objects.map(({ name, type }) => ({ id: name, type })),
    network: parseNetwork(network),
    block: diskNodes(blockNodes),
    blockers: migrate['blocked-reasons'] ?? [],
    migration: migrate.status ?? '',
    capabilities: capabilities.map(({ capability }) => capability),
    commandLine: proc.commandLine,
    deviceFiles: proc.deviceFiles,
    lockedBytes: proc.lockedBytes,
  };
}

function diskNodes(nodes: readonly BlockNode[]): DiskNode[] {
  return nodes.map(({ 'node-name': name, drv: driver, cache }) => ({
    name,
    driver,
    ...(cache && { direct: cache.direct }),
  }));
}

function children(entries: QomEntry[]): QomEntry[] {
  return entries.flatMap(({ name, type }) => {
    const child = /^child<(.*)>$/.exec(type)?.[1];
    return child === undefined ? [] : [{ name, type: child }];
  });
}

/** All devices in the machine's composition tree; a device may hold others (a virtio-net-pci its virtio-net-device). */
async function collectDevices(qmp: QmpClient): Promise<Inventory['devices']> {
  const known = (await qmp.execute('qom-list-types', { implements: 'device', abstract: false })) as { name: string }[];
  const isDevice = new Set(known.map(({ name }) => name));
  const found: Inventory['devices'] = [];
  const walk = async (path: string): Promise<void> => {
    let entries: QomEntry[];
    try {
      entries = children((await qmp.execute('qom-list', { path })) as QomEntry[]);
    } catch (error) {
      // Unplugged since its parent was listed; that is the one thing it can be.
      if (error instanceof QmpError && error.qmpClass === 'DeviceNotFound') return;
      throw error;
    }
    await Promise.all(
      entries.map(async ({ name, type }) => {
        if (type === 'memory-region' || type === 'qemu:memory-region' || type === 'irq') return; // many, without children
        const child = `${path}/${name}`;
        if (isDevice.has(type)) found.push({ path: child, type });
        await walk(child);
      }),
    );
  };
  await walk('/machine');
  return found;
}

/** What QEMU says of each balloon. */
async function collectBalloons(qmp: QmpClient, devices: Inventory['devices']): Promise<Inventory['balloons']> {
  const found: Inventory['balloons'] = [];
  for (const { path, type } of devices) {
    if (type !== 'virtio-balloon-device') continue;
    const [reporting, hinting] = await Promise.all(
      ['free-page-reporting', 'free-page-hint'].map((name) => property(qmp, path, name)),
    );
    found.push({ path, reporting: reporting !== false, hinting: hinting !== false });
  }
  return found;
}

/** Undefined where the object has no such property, by its type or this version of QEMU. */
async function property(qmp: QmpClient, path: string, name: string): Promise<unknown> {
  try {
    return await qmp.execute('qom-get', { path, property: name });
  } catch (error) {
    if (error instanceof QmpError) return undefined;
    throw error;
  }
}

/** Lines such as ` \ net0: index=0,type=user,net=10.0.2.0` of HMP's `info network`; QMP has no equal. */
export function parseNetwork(text: string): Inventory['network'] {
  return [
    ...text.matchAll(/^[\s\\]*([^\s:][^:\n]*): index=\d+,type=([\w-]+)/gm),
    ...text.matchAll(/^[\s\\]*hub\d+port\d+: ([^:\n]+): index=\d+,type=([\w-]+)/gm),
  ].map((match) => ({ name: match[1]!, type: match[2]! }));
}

interface ProcessFacts {
  pid: number;
  commandLine: string[];
  deviceFiles: string[];
  lockedBytes: number;
  maps: MappedRange[];
  mountinfo: string;
}

async function collectProcess(pid: number): Promise<ProcessFacts> {
  const read = (name: string) => readFile(`/proc/${pid}/${name}`, 'utf8');
  return ofProcess(pid, async () => {
    const [commandLine, status, maps, mountinfo, fds] = await Promise.all([
      collectCommandLine(pid),
      read('status'),
      read('maps'),
      read('mountinfo'),
      readdir(`/proc/${pid}/fd`),
    ]);
    const links = await Promise.all(fds.map((fd) => readlink(`/proc/${pid}/fd/${fd}`).catch(() => '')));
    return {
      pid,
      commandLine,
      deviceFiles: links.filter((link) => link.startsWith('/dev/') && !link.startsWith('/dev/shm/')),
      lockedBytes: Number(/^VmLck:\s+(\d+) kB/m.exec(status)?.[1] ?? 0) * 1024,
      maps: parseMaps(maps),
      mountinfo,
    };
  });
}

function collectCommandLine(pid: number): Promise<string[]> {
  return ofProcess(pid, async () =>
    (await readFile(`/proc/${pid}/cmdline`, 'utf8')).split('\0').filter((word) => word !== ''),
  );
}

/** What `look` finds below /proc. @throws PT_VMM_GONE, PT_NO_PERMISSION, PT_IO */
async function ofProcess<T>(pid: number, look: () => Promise<T>): Promise<T> {
  try {
    return await look();
  } catch (cause) {
    if (cause instanceof PagetideError) throw cause;
    const code = (cause as NodeJS.ErrnoException).code;
    if (code === 'ENOENT' || code === 'ESRCH') {
      throw new PagetideError('PT_VMM_GONE', `QEMU (process ${pid}) exited`, { cause });
    }
    throw asPagetideError(cause, code === 'EACCES' ? 'PT_NO_PERMISSION' : 'PT_IO', `cannot look at process ${pid}`);
  }
}

async function ramObject(
  qmp: QmpClient,
  memdev: { id: string; size: number; share: boolean; prealloc: boolean },
  type: string,
  proc: ProcessFacts,
): Promise<RamObject> {
  const [path, discard, pmem, offset] = await Promise.all(
    ['mem-path', 'discard-data', 'pmem', 'offset'].map((name) => property(qmp, `/objects/${memdev.id}`, name)),
  );
  const object: RamObject = {
    id: memdev.id,
    type,
    size: memdev.size,
    share: memdev.share,
    prealloc: memdev.prealloc,
    discardData: discard === true,
    pmem: pmem === true,
    fileOffset: typeof offset === 'number' ? offset : 0,
  };
  if (type !== 'memory-backend-file' || typeof path !== 'string') return object;
  object.path = path;
  try {
    const [about, fs] = await Promise.all([stat(path, { bigint: true }), statfs(path)]);
    const mapped = rangesOfFile(proc.maps, about.dev, about.ino);
    object.file = {
      named: about.isFile() && mapped.length > 0,
      size: Number(about.size),
      filesystem: fs.type === TMPFS_MAGIC ? 'tmpfs' : fs.type === HUGETLBFS_MAGIC ? 'hugetlbfs' : 'other',
      huge: mountOptions(proc.mountinfo, about.dev)['huge'] ?? 'never',
      mapped,
    };
  } catch {
    // No file of that name (any more): `file` stays absent, and the allow-list says so.
  }
  return object;
}
