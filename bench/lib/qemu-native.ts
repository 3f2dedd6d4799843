/**
 * QEMU's own migration between two QEMUs, with nothing of ours around: the reference. On this host by a Unix socket, or between the
 * network namespaces of two hosts over TCP.
 */
import { spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { PagetideError } from '../../src/errors.ts';
import { QmpClient } from '../../src/guests/qemu/qmp.ts';
import { SelfCheck } from '../../src/guests/qemu/self-check.ts';
import { machineArgv, testGuest, type GuestShape } from '../../test/support/qemu-guest.ts';

/** Under TCG, on a busy machine. */
const BOOT_MS = 240_000;
const MOVE_MS = 240_000;
const HEARD_MS = 10_000;
const POLL_MS = 5;
/** Bytes a second: no limit. */
const UNLIMITED = 2 ** 40;
/** Connections of a multifd migration. QEMU's default is 2. */
const CHANNELS = 4;
/** Where a destination listens, in a network namespace of its own. */
const PORT = 7400;

/** Ways in which QEMU 7.2 moves memory. */
export const NATIVE_METHODS = ['pre-copy', 'multifd', 'post-copy'] as const;
export type NativeMethod = (typeof NATIVE_METHODS)[number];

/** Where a QEMU runs. */
export interface NativePlace {
  /** A command in front of QEMU's, which it must become (exec): `ip netns exec NAME`. */
  prefix: readonly string[];
  /** Its address for other places; undefined: all is on one host, and a Unix socket will do. */
  address: string | undefined;
  /** Where it may have files; otherwise on `/dev/shm`. The first place's counts. */
  folder?: string;
}

const HERE: NativePlace = { prefix: [], address: undefined };

interface Machine {
  process: ChildProcess;
  folder: string;
  qmp: QmpClient;
  check: SelfCheck;
  place: NativePlace;
}

export interface NativeMove {
  method: NativeMethod;
  /** From the source's STOP to the destination's RESUME, by QEMU's own timestamps. */
  downtimeMs: number;
  /** From the command to its end at the source, milliseconds. */
  totalMs: number;
  /** What QEMU's source says of it, milliseconds and bytes. No downtime after a post-copy: the source doesn't know. */
  reported: { totalMs: number; downtimeMs: number | null; setupMs: number; bytes: number };
  /** Longest silence of the guest's heartbeat; null where none was heard. */
  longestGapMs: number | null;
}

/** One guest that QEMU itself moves, again and again. */
export class NativeGuest {
  readonly #root: string;
  readonly #argv: readonly string[];
  readonly #machines = new Set<Machine>();
  #here: Machine | undefined;

  private constructor(argv: readonly string[], { folder = '/dev/shm' }: NativePlace) {
    this.#argv = argv;
    this.#root = mkdtempSync(join(folder, 'ptn-'));
  }

  /** The test guest. Resolves when it has booted. The caller closes it. */
  static async start(shape: GuestShape, place?: NativePlace): Promise<NativeGuest> {
    return NativeGuest.run(machineArgv(await testGuest(), shape).argv, place);
  }

  /** Any guest with heartbeats, by QEMU's command line with `{folder}` in it ({@link machineArgv}). As {@link start}. */
  static async run(argv: readonly string[], place = HERE): Promise<NativeGuest> {
    const guest = new NativeGuest(argv, place);
    try {
      guest.#here = await guest.#launch('0', place, []);
      await guest.#here.check.nextBeat(BOOT_MS);
      return guest;
    } catch (error) {
      await guest.close();
      throw error;
    }
  }

  /** QEMU's process. */
  get pid(): number {
    return this.#here!.process.pid!;
  }

  /** Pages that it rewrites a second from now on. */
  async setRate(rate: number): Promise<void> {
    await this.#here!.check.setRate(rate, BOOT_MS);
  }

  /** Work units done so far, as its last heartbeat told. */
  get operations(): number {
    return this.#here!.check.operations ?? 0;
  }

  /** Whether it finds all of its memory right: QEMU's own pre-copy loses writes under TCG. A guest that doesn't answer is not. */
  async sound(timeoutMs = BOOT_MS): Promise<boolean> {
    const { check } = this.#here!;
    return check.verify(timeoutMs).then(
      ({ ok }) => ok,
      () => false,
    );
  }

  /** Moves it to a new QEMU; the old one ends. */
  async move(method: NativeMethod = 'post-copy', place = HERE): Promise<NativeMove> {
    const from = this.#here!;
    const to = await this.#launch(performance.now().toFixed(0), place, ['-incoming', 'defer']);
    const socket = join(to.folder, 'migration.sock');
    const uri = place.address === undefined ? `unix:${socket}` : `tcp:${place.address}:${PORT}`;
    for (const { qmp } of [from, to]) await configure(qmp, method);
    await to.qmp.execute('migrate-incoming', { uri });
    const events = Promise.all([
      from.qmp.waitForEvent('STOP', { timeoutMs: MOVE_MS }),
      to.qmp.waitForEvent('RESUME', { timeoutMs: MOVE_MS }),
    ]);
    events.catch(() => undefined); // whoever waits below fails first
    from.check.reset();
    const began = performance.now();
    await from.qmp.execute('migrate', { uri });
    if (method === 'post-copy') {
      await statusOf(from, 'active');
      await from.qmp.execute('migrate-start-postcopy');
    }
    const { told, at } = await statusOf(from, 'completed');
    const [stopped, resumed] = await events;
    this.#here = to;
    // a guest that was damaged on the way may be silent for ever
    await to.check.nextBeat(HEARD_MS).catch(() => undefined);
    const move = {
      method,
      downtimeMs: (resumed.unixMicros - stopped.unixMicros) / 1000,
      totalMs: at - began,
      reported: reportOf(told, method),
      longestGapMs: gapBetween(from.check, to.check),
    };
    await this.#end(from);
    return move;
  }

  async close(): Promise<void> {
    await Promise.all([...this.#machines].map((machine) => this.#end(machine)));
    rmSync(this.#root, { recursive: true, force: true });
  }

  /** Stands still until {@link resume}. */
  async pause(): Promise<void> {
    await this.#here!.qmp.execute('stop');
  }

  async resume(): Promise<void> {
    await this.#here!.qmp.execute('cont');
  }

  async #launch(name: string, place: NativePlace, more: string[]): Promise<Machine> {
    const folder = mkdtempSync(join(this.#root, `${name}-`));
    const socket = join(folder, 'qmp.sock');
    const [command, ...args] = [...place.prefix, ...this.#argv.map((word) => word.replaceAll('{folder}', folder))];
    const child = spawn(command!, [...args, '-display', 'none', '-qmp', `unix:${socket},server=on,wait=off`, ...more], {
      stdio: ['ignore', 'ignore', 'inherit'],
    });
    await once(child, 'spawn');
    let machine: Machine | undefined;
    try {
      const qmp = await reach(socket, child);
      machine = { process: child, folder, qmp, check: new SelfCheck(join(folder, 'check.sock')), place };
      return machine;
    } finally {
      if (machine === undefined) child.kill('SIGKILL');
      else this.#machines.add(machine);
    }
  }

  async #end(machine: Machine): Promise<void> {
    this.#machines.delete(machine);
    machine.qmp.close();
    machine.check.close();
    const { process: child } = machine;
    if (child.exitCode !== null || child.signalCode !== null) return;
    const exited = once(child, 'exit');
    child.kill('SIGKILL');
    await exited;
  }
}

/** The socket is there a moment after the process. */
async function reach(socket: string, child: ChildProcess): Promise<QmpClient> {
  for (const deadline = performance.now() + BOOT_MS; ;) {
    try {
      return await QmpClient.connect(socket);
    } catch (error) {
      if (child.exitCode !== null || performance.now() > deadline) throw error;
      await delay(POLL_MS);
    }
  }
}

interface MigrationTold {
  status?: string;
  'total-time'?: number;
  'setup-time'?: number;
  downtime?: number;
  'error-desc'?: string;
  ram?: { transferred: number };
}

async function configure(qmp: QmpClient, method: NativeMethod): Promise<void> {
  // a QEMU to which a guest was moved has those of that way
  const capabilities = [
    { capability: 'multifd', state: method === 'multifd' },
    { capability: 'postcopy-ram', state: method === 'post-copy' },
  ];
  await qmp.execute('migrate-set-capabilities', { capabilities });
  const channels = method === 'multifd' ? { 'multifd-channels': CHANNELS } : {};
  await qmp.execute('migrate-set-parameters', { 'max-bandwidth': UNLIMITED, ...channels });
}

/** Resolves with what QEMU says then, and when that was (`performance.now()`). */
async function statusOf(
  { qmp }: Machine,
  wanted: 'active' | 'completed',
): Promise<{ told: MigrationTold; at: number }> {
  for (const deadline = performance.now() + MOVE_MS; performance.now() < deadline;) {
    const told = (await qmp.execute('query-migrate')) as MigrationTold;
    const { status } = told;
    if (status === wanted || (wanted === 'active' && status === 'completed')) return { told, at: performance.now() };
    if (status === 'failed' || status === 'cancelled')
      throw new PagetideError('PT_VMM_FAILED', `QEMU's own migration has ${status}: ${told['error-desc'] ?? ''}`);
    await delay(POLL_MS);
  }
  throw new PagetideError('PT_VMM_TIMEOUT', `QEMU's own migration was not ${wanted} within ${MOVE_MS} ms`);
}

function reportOf(told: MigrationTold, method: NativeMethod): NativeMove['reported'] {
  return {
    totalMs: told['total-time'] ?? NaN,
    downtimeMs: method === 'post-copy' ? null : (told.downtime ?? null),
    setupMs: told['setup-time'] ?? NaN,
    bytes: told.ram?.transferred ?? NaN,
  };
}

/** As a migration's report has it: between the last heartbeat here and the first there, or a longer one on either side. */
function gapBetween(here: SelfCheck, there: SelfCheck): number | null {
  if (here.heartbeats === undefined || there.heartbeats === undefined) return null;
  const between = (there.heartbeats.firstUnixMicros - here.heartbeats.lastUnixMicros) / 1000;
  return Math.max(between, here.longestGapMs ?? 0, there.longestGapMs ?? 0);
}
