/** QEMU's own post-copy between two QEMUs of this host, with nothing of ours around: the reference for downtime. */
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
const POLL_MS = 20;
/** Bytes a second: no limit. */
const UNLIMITED = 2 ** 40;

interface Machine {
  process: ChildProcess;
  folder: string;
  qmp: QmpClient;
}

export interface NativeMove {
  /** From the source's STOP to the destination's RESUME, by QEMU's own timestamps. */
  downtimeMs: number;
  totalMs: number;
}

/** One guest that QEMU itself moves, again and again. */
export class NativeGuest {
  readonly #root: string;
  readonly #shape: GuestShape;
  readonly #machines = new Set<Machine>();
  #here: Machine | undefined;

  private constructor(shape: GuestShape) {
    this.#shape = shape;
    this.#root = mkdtempSync('/dev/shm/ptn-');
  }

  /** Resolves when it has booted. The caller closes it. */
  static async start(shape: GuestShape): Promise<NativeGuest> {
    const guest = new NativeGuest(shape);
    try {
      guest.#here = await guest.#launch('0', []);
      await guest.#ask((check) => check.nextBeat(BOOT_MS));
      return guest;
    } catch (error) {
      await guest.close();
      throw error;
    }
  }

  /** Pages that it rewrites a second from now on. */
  async setRate(rate: number): Promise<void> {
    await this.#ask((check) => check.setRate(rate, BOOT_MS));
  }

  /** Moves it to a new QEMU; the old one ends. */
  async move(): Promise<NativeMove> {
    const from = this.#here!;
    const to = await this.#launch(performance.now().toFixed(0), ['-incoming', 'defer']);
    const uri = `unix:${join(to.folder, 'migration.sock')}`;
    const capabilities = [{ capability: 'postcopy-ram', state: true }];
    for (const { qmp } of [from, to]) {
      await qmp.execute('migrate-set-capabilities', { capabilities });
      await qmp.execute('migrate-set-parameters', { 'max-bandwidth': UNLIMITED });
    }
    await to.qmp.execute('migrate-incoming', { uri });
    const events = Promise.all([
      from.qmp.waitForEvent('STOP', { timeoutMs: MOVE_MS }),
      to.qmp.waitForEvent('RESUME', { timeoutMs: MOVE_MS }),
    ]);
    events.catch(() => undefined); // whoever waits below fails first
    const began = performance.now();
    await from.qmp.execute('migrate', { uri });
    await statusOf(from, 'active');
    await from.qmp.execute('migrate-start-postcopy');
    await statusOf(from, 'completed');
    const totalMs = performance.now() - began;
    const [stopped, resumed] = await events;
    const downtimeMs = (resumed.unixMicros - stopped.unixMicros) / 1000;
    this.#here = to;
    await this.#end(from);
    return { downtimeMs, totalMs };
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

  async #ask<T>(question: (check: SelfCheck) => Promise<T>): Promise<T> {
    const check = new SelfCheck(join(this.#here!.folder, 'check.sock'));
    try {
      return await question(check);
    } finally {
      check.close();
    }
  }

  async #launch(name: string, more: string[]): Promise<Machine> {
    const folder = mkdtempSync(join(this.#root, `${name}-`));
    const socket = join(folder, 'qmp.sock');
    const { argv } = machineArgv(await testGuest(), this.#shape);
    const [command, ...args] = argv.map((word) => word.replaceAll('{folder}', folder));
    const child = spawn(command!, [...args, '-display', 'none', '-qmp', `unix:${socket},server=on,wait=off`, ...more], {
      stdio: ['ignore', 'ignore', 'inherit'],
    });
    await once(child, 'spawn');
    let machine: Machine | undefined;
    try {
      machine = { process: child, folder, qmp: await reach(socket, child) };
      return machine;
    } finally {
      if (machine === undefined) child.kill('SIGKILL');
      else this.#machines.add(machine);
    }
  }

  async #end(machine: Machine): Promise<void> {
    this.#machines.delete(machine);
    machine.qmp.close();
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

async function statusOf({ qmp }: Machine, wanted: 'active' | 'completed'): Promise<void> {
  for (const deadline = performance.now() + MOVE_MS; performance.now() < deadline;) {
    const { status } = (await qmp.execute('query-migrate')) as { status?: string };
    if (status === wanted || (wanted === 'active' && status === 'completed')) return;
    if (status === 'failed' || status === 'cancelled')
      throw new PagetideError('PT_VMM_FAILED', `QEMU's own migration has ${status}`);
    await delay(POLL_MS);
  }
  throw new PagetideError('PT_VMM_TIMEOUT', `QEMU's own migration was not ${wanted} within ${MOVE_MS} ms`);
}
