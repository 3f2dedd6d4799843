/** The QEMU driver: starts guests, attaches to those that run, prepares destinations. See docs/qemu.md. */
import { isDeepStrictEqual } from 'node:util';
import { mkdir, open, rm, statfs } from 'node:fs/promises';
import { isAbsolute } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { z } from 'zod';
import { PagetideError } from '../../errors.ts';
import { native } from '../../memory/native.ts';
import type { Driver, GuestDescription, GuestPlace, GuestRecord, MemoryFile } from '../driver.ts';
import { launchDetached } from '../launch.ts';
import { markOf } from '../marks.ts';
import { checkOptions } from '../options.ts';
import { endProcess, identify, isAlive, type ProcessIdentity } from '../process.ts';
import { assertSafe, memoryFiles } from './allow-list.ts';
import {
  buildCommand,
  checkSocketPath,
  fillIn,
  pathsIn,
  placeMemory,
  planCommand,
  type CommandPlan,
} from './arguments.ts';
import { collectInventory, type Inventory } from './inventory.ts';
import { QmpClient } from './qmp.ts';
import { assertNothingPresent, QemuVmm, removeLeftovers, type QemuLocal } from './vmm.ts';
import { logTail } from './vmm-log.ts';

const PAGE_SIZE = 4096;
/** From QEMU's start to its QMP greeting; it maps memory and opens disks before. Milliseconds. */
const START_MS = 30_000;
const START_POLL_MS = 10;
const COMMAND_MS = 10_000;

const runOptions = z.strictObject({
  /** QEMU and its options, see arguments.ts. */
  argv: z.array(z.string().max(16_384)).min(1).max(1024),
  /** Socket of the guest's self-check channel; usually `{folder}/…`. */
  checkSocket: z.string().min(1).optional(),
});

const attachOptions = z.strictObject({
  /** QMP socket that nobody else uses. */
  qmp: z.string().min(1),
  checkSocket: z.string().min(1).optional(),
  /** QEMU's process, where the socket was opened by another (libvirt); else the one that listens on it. */
  pid: z.coerce.number<number | string>().int().positive().optional(),
});

/** What the machine is, as far as both ends must agree before a byte is sent. */
const shapeSchema = z.strictObject({
  machine: z.string().max(64),
  cpus: z.number().int().positive(),
  /** Devices that the operator added, by name where they have one. */
  devices: z.array(z.string().max(256)).max(1024),
});

const configSchema = z.strictObject({
  shape: shapeSchema,
  version: z.string().max(64),
  /** Absent for guests that were attached: only whoever started them knows how. */
  argv: runOptions.shape.argv.optional(),
  checkSocket: runOptions.shape.checkSocket,
});
type Config = z.output<typeof configSchema>;

function shapeOf(inventory: Inventory): z.output<typeof shapeSchema> {
  const added = inventory.devices.flatMap(({ path, type }) => {
    const name = /^\/machine\/peripheral(?:-anon)?\/([^/]+)$/.exec(path)?.[1];
    return name === undefined ? [] : [`${name.startsWith('device[') ? '' : name}:${type}`];
  });
  return { machine: inventory.machine, cpus: inventory.cpus, devices: added.sort() };
}

function parseConfig(description: GuestDescription): Config {
  if (description.driver !== 'qemu')
    throw new PagetideError('PT_BAD_ARGUMENT', `not a QEMU guest but ${description.driver}`);
  return checkOptions(configSchema, description.config, "the guest's description");
}

/**
 * Whether the state of one guest fits the other; for destinations that an operator started and attached.
 * @throws PT_VMM_REFUSED_STATE with the first difference
 */
export function assertCompatible(source: GuestDescription, destination: GuestDescription): void {
  const [from, to] = [parseConfig(source), parseConfig(destination)];
  const refuse = (what: string, a: unknown, b: unknown): never => {
    throw new PagetideError(
      'PT_VMM_REFUSED_STATE',
      `${what} differ: ${JSON.stringify(a)} at the source, ${JSON.stringify(b)} at the destination`,
    );
  };
  if (!isDeepStrictEqual(source.memory, destination.memory))
    refuse('memory objects', source.memory, destination.memory);
  for (const key of ['machine', 'cpus', 'devices'] as const) {
    if (!isDeepStrictEqual(from.shape[key], to.shape[key])) refuse(key, from.shape[key], to.shape[key]);
  }
}

/** Connects to a QEMU that is just starting. @throws PT_VMM_FAILED it exited; PT_VMM_TIMEOUT */
async function connectToStarted(identity: ProcessIdentity, qmp: string, log: string): Promise<QmpClient> {
  const deadline = Date.now() + START_MS;
  for (;;) {
    const alive = isAlive(identity); // before trying: a last try after its end sees what it left
    try {
      // the connection stays: what is left of the time to start must not be that of all its commands
      return await QmpClient.connect(qmp, { timeoutMs: Math.max(1, deadline - Date.now()), commandMs: COMMAND_MS });
    } catch (cause) {
      if (!alive) throw new PagetideError('PT_VMM_FAILED', `QEMU did not start: ${await logTail(log)}`, { cause });
      const notYet = cause instanceof PagetideError && cause.code === 'PT_VMM_GONE';
      if (!notYet || Date.now() >= deadline) throw cause;
    }
    await delay(START_POLL_MS);
  }
}

/** Makes the memory files, empty and nobody else's. @throws PT_NO_SPACE, PT_MEMORY_FILE */
async function createMemory(files: readonly MemoryFile[], folder: string): Promise<void> {
  const size = files.reduce((sum, file) => sum + file.size, 0);
  const { bavail, bsize } = await statfs(folder);
  if (bavail * bsize < size) {
    throw new PagetideError('PT_NO_SPACE', `guest memory takes ${size} bytes, ${folder} has ${bavail * bsize} free`);
  }
  const made: string[] = [];
  try {
    for (const { path, size: bytes } of files) {
      const file = await open(path, 'wx', 0o600);
      made.push(path);
      await file.truncate(bytes).finally(() => file.close());
    }
  } catch (cause) {
    await Promise.all(made.map((path) => rm(path, { force: true })));
    const message = cause instanceof Error ? cause.message : String(cause);
    throw new PagetideError('PT_MEMORY_FILE', `cannot make guest memory: ${message}`, {
      cause,
      hint: 'A file of that name is a guest that runs, or what one left; if no QEMU uses it, remove it.',
    });
  }
}

interface Started {
  record: GuestRecord;
  qmp: QmpClient;
  inventory: Inventory;
}

/** Starts QEMU by plan and looks at it; on any failure nothing is left. */
async function start(
  place: GuestPlace,
  plan: CommandPlan,
  config: Omit<Config, 'shape' | 'version'> & Partial<Config>,
  how: { machine?: string; incoming: boolean },
): Promise<Started> {
  const paths = pathsIn(place);
  const checkSocket = config.checkSocket === undefined ? undefined : fillIn(config.checkSocket, place);
  if (checkSocket !== undefined) checkSocketPath(checkSocket);
  const { command, args } = buildCommand(plan, place, how);
  const files = placeMemory(plan, place);
  await mkdir(place.folder, { recursive: true, mode: 0o700 });
  await mkdir(place.memoryFolder, { recursive: true, mode: 0o700 });
  await createMemory(files, place.memoryFolder);
  const local: QemuLocal = {
    qmp: paths.qmp,
    state: paths.state,
    log: paths.log,
    folder: place.folder,
    ...(checkSocket !== undefined && { checkSocket }),
  };
  let identity: ProcessIdentity | undefined;
  let qmp: QmpClient | undefined;
  try {
    await rm(paths.qmp, { force: true });
    identity = await launchDetached({
      command,
      args,
      log: paths.log,
      cwd: place.folder,
      name: place.name,
      env: markOf(place),
    });
    qmp = await connectToStarted(identity, paths.qmp, paths.log);
    const inventory = await collectInventory(qmp, identity.pid, how.incoming ? 'destination' : 'source');
    assertSafe(inventory);
    const description = describe(files, { ...config, shape: shapeOf(inventory), version: inventory.version });
    const record: GuestRecord = {
      driver: 'qemu',
      ...identity,
      launched: true,
      files,
      pageSize: PAGE_SIZE,
      description,
      local,
    };
    return { record, qmp, inventory };
  } catch (error) {
    qmp?.close();
    if (identity) await endProcess(identity, 0);
    await removeLeftovers({ launched: true, files, local });
    throw error;
  }
}

function describe(files: readonly MemoryFile[], config: Config): GuestDescription {
  return {
    driver: 'qemu',
    memory: {
      size: files.reduce((sum, { size }) => sum + size, 0),
      pageSize: PAGE_SIZE,
      files: files.map(({ id, size, offset }) => ({ id, size, offset })),
    },
    config,
  };
}

/** Whether the plan that the words make has the memory that the description claims. */
function planDescribed(description: GuestDescription): { plan: CommandPlan; config: Config & { argv: string[] } } {
  const config = parseConfig(description);
  const { argv } = config;
  if (argv === undefined) {
    throw new PagetideError('PT_BAD_ARGUMENT', 'this guest was attached, so only you know how to start it', {
      hint: 'Start QEMU at the destination with the same options and `-incoming defer -S`, and attach it there under the same name.',
    });
  }
  if (!/^pc-(q35|i440fx)-\d+\.\d+$/.test(config.shape.machine)) {
    throw new PagetideError(
      'PT_GUEST_UNSAFE',
      `machine type ${config.shape.machine} has not been proved; use q35 or pc`,
    );
  }
  const plan = planCommand(argv);
  let offset = 0;
  const files = plan.memory.map(({ id, size }) => {
    const file = { id, size, offset };
    offset += size;
    return file;
  });
  if (!isDeepStrictEqual(description.memory, { size: offset, pageSize: PAGE_SIZE, files })) {
    throw new PagetideError('PT_BAD_ARGUMENT', "the guest's description names other memory than its command line");
  }
  return { plan, config: { ...config, argv } };
}

async function prepare(place: GuestPlace, description: GuestDescription): Promise<QemuVmm> {
  const { plan, config } = planDescribed(description);
  const { record, qmp, inventory } = await start(place, plan, config, {
    machine: config.shape.machine,
    incoming: true,
  });
  const vmm = new QemuVmm(record, qmp);
  try {
    if (inventory.status !== 'inmigrate')
      throw new PagetideError('PT_VMM_FAILED', `QEMU does not wait for a state, it is ${inventory.status}`);
    assertCompatible(description, record.description);
    await assertNothingPresent(record.files);
    return vmm;
  } catch (error) {
    await vmm.destroy();
    throw error;
  }
}

async function run(place: GuestPlace, given: Record<string, unknown>): Promise<QemuVmm> {
  const options = checkOptions(runOptions, given, 'QEMU guest');
  const plan = planCommand(options.argv);
  const config = { argv: options.argv, ...(options.checkSocket !== undefined && { checkSocket: options.checkSocket }) };
  const { record, qmp } = await start(place, plan, config, { incoming: false });
  return new QemuVmm(record, qmp);
}

/** The process that listens on a Unix socket. Its own connection, closed before the real one: a monitor serves one. */
function listenerOf(path: string): number {
  const addon = native();
  let fd: number;
  try {
    fd = addon.connectUnix(path);
  } catch (cause) {
    throw new PagetideError('PT_VMM_GONE', `nobody listens on QMP socket ${path}`, {
      cause,
      hint: 'Start QEMU with -qmp unix:PATH,server=on,wait=off.',
    });
  }
  try {
    return addon.peerPid(fd);
  } finally {
    addon.close(fd);
  }
}

async function attach(place: GuestPlace, given: Record<string, unknown>): Promise<QemuVmm> {
  const options = checkOptions(attachOptions, given, 'QEMU guest');
  for (const path of [options.qmp, options.checkSocket ?? options.qmp]) {
    if (!isAbsolute(path)) throw new PagetideError('PT_BAD_ARGUMENT', `${path} is not an absolute path`);
    checkSocketPath(path);
  }
  const paths = pathsIn(place);
  const identity = identify(options.pid ?? listenerOf(options.qmp));
  const qmp = await QmpClient.connect(options.qmp);
  try {
    const { status } = (await qmp.execute('query-status')) as { status: string };
    const inventory = await collectInventory(qmp, identity.pid, status === 'inmigrate' ? 'destination' : 'source');
    assertSafe(inventory);
    const files = memoryFiles(inventory);
    if (inventory.role === 'destination') await assertNothingPresent(files);
    await mkdir(place.folder, { recursive: true, mode: 0o700 });
    const description = describe(files, { shape: shapeOf(inventory), version: inventory.version });
    const { checkSocket } = options;
    const local: QemuLocal = {
      qmp: options.qmp,
      state: paths.state,
      folder: place.folder,
      ...(checkSocket !== undefined && { checkSocket }),
    };
    const record: GuestRecord = {
      driver: 'qemu',
      ...identity,
      launched: false,
      files,
      pageSize: PAGE_SIZE,
      description,
      local,
    };
    return new QemuVmm(record, qmp);
  } catch (error) {
    qmp.close();
    throw error;
  }
}

function find(_place: GuestPlace, record: GuestRecord): Promise<QemuVmm | undefined> {
  // No connection yet: a guest that waits for pages may keep QEMU from answering until they are served again.
  return Promise.resolve(isAlive(record) ? new QemuVmm(record) : undefined);
}

export const qemuDriver = {
  name: 'qemu',
  validate: (description: GuestDescription) => void planDescribed(description),
  run,
  attach,
  prepare,
  find,
} satisfies Driver;
