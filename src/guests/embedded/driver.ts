/** The driver of the embedded guest: a native program that is its own proof that no page of it went wrong. */
import { randomBytes } from 'node:crypto';
import { mkdir, open, statfs } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { PagetideError, asPagetideError } from '../../errors.ts';
import { HandoverListener, closeHandover, type Handover } from '../../memory/handover.ts';
import { native, nativeProgram } from '../../memory/native.ts';
import { GuestControl, type ControlStatus } from '../control.ts';
import type { Driver, GuestDescription, GuestPlace, GuestRecord, MemoryFile, PrepareNeeds, Vmm } from '../driver.ts';
import { launchDetached } from '../launch.ts';
import { markOf, memoryPrefix } from '../marks.ts';
import { endProcess, identify, isAlive, watchProcess, type ProcessIdentity } from '../process.ts';
import { PAGE_SIZE, describe, parseAttachOptions, parseDescription, parseRunOptions } from './options.ts';
import { EmbeddedVmm, removeTraces } from './vmm.ts';

const TMPFS_MAGIC = 0x01021994;
/** `sun_path` less its final zero. */
const SOCKET_PATH_MAX = 107;
/** Until a guest answers: filling memory costs about 1 ms a MiB on a slow machine. */
const startTimeoutMs = (size: number): number => 20_000 + (size / 2 ** 20) * 10;
const ANSWER_POLL_MS = 5;

/** Where the parts of one guest lie. */
interface Paths {
  control: string;
  handover: string;
  log: string;
  memory: string;
}

/** Pid of whoever listens on a Unix socket, by the socket's own credentials. */
function pidBehind(path: string): number {
  const fd = native().connectUnix(path);
  try {
    return native().peerPid(fd);
  } finally {
    native().close(fd);
  }
}

/** Whether somebody listens on a Unix socket: what is there without a listener was left by a guest that died. */
function isAnswered(path: string): boolean {
  try {
    native().close(native().connectUnix(path));
    return true;
  } catch {
    return false;
  }
}

async function makePlace(place: GuestPlace, size: number): Promise<Paths> {
  // Two agents on one host may share the memory folder, and both know the guest while it moves between them.
  const memory = join(place.memoryFolder, `${memoryPrefix(place)}.${randomBytes(4).toString('hex')}.ram`);
  const paths = {
    control: join(place.folder, 'control.sock'),
    handover: join(place.folder, 'handover.sock'),
    log: join(place.folder, 'guest.log'),
    memory,
  };
  for (const path of [paths.control, paths.handover]) {
    if (Buffer.byteLength(path) <= SOCKET_PATH_MAX) continue;
    throw new PagetideError('PT_BAD_CONFIG', `socket path ${path} is longer than ${SOCKET_PATH_MAX} bytes`, {
      hint: 'Give the agent a shorter --state folder.',
    });
  }
  if (isAnswered(paths.control)) {
    throw new PagetideError('PT_SOCKET_IN_USE', `a guest listens on ${paths.control} already`);
  }
  try {
    await mkdir(place.folder, { recursive: true, mode: 0o700 });
    await mkdir(place.memoryFolder, { recursive: true, mode: 0o700 });
    const { type, bavail, bsize } = await statfs(place.memoryFolder);
    if (type !== TMPFS_MAGIC) {
      throw new PagetideError('PT_BAD_CONFIG', `${place.memoryFolder} is not on tmpfs`, {
        hint: 'Memory that faults through userfaultfd must lie on tmpfs, e.g. below /dev/shm.',
      });
    }
    if (bavail * bsize < size) {
      throw new PagetideError(
        'PT_NO_SPACE',
        `${place.memoryFolder} has ${bavail * bsize} bytes left, the guest needs ${size}`,
      );
    }
  } catch (error) {
    throw asPagetideError(error, 'PT_IO', 'preparing the folders of the guest');
  }
  return paths;
}

/** The last thing that a program said, for the message of an error. */
async function lastWords(log: string): Promise<string> {
  try {
    await using file = await open(log, 'r');
    const { size } = await file.stat();
    const tail = Buffer.alloc(Math.min(size, 4096));
    await file.read(tail, 0, tail.length, size - tail.length);
    return tail.toString('utf8').trimEnd().split('\n').at(-1) ?? '';
  } catch {
    return '';
  }
}

/** Waits until the guest answers, or is gone. */
async function untilAnswers(process: ProcessIdentity, paths: Paths, timeoutMs: number): Promise<ControlStatus> {
  const watch = watchProcess(process);
  const control = new GuestControl(paths.control);
  const deadline = performance.now() + timeoutMs;
  const gone = watch.exited.then(() => 'gone' as const);
  try {
    for (;;) {
      try {
        const status = await control.status();
        if (status.pid === process.pid) return status;
      } catch (error) {
        const early = error instanceof PagetideError && error.code === 'PT_VMM_GONE';
        if (!early) throw error;
      }
      if ((await Promise.race([gone, delay(ANSWER_POLL_MS)])) === 'gone') {
        const words = await lastWords(paths.log);
        throw new PagetideError('PT_VMM_FAILED', words === '' ? 'the guest ended at its start' : words);
      }
      if (performance.now() > deadline) {
        throw new PagetideError('PT_VMM_TIMEOUT', `the guest did not answer within ${timeoutMs} ms of its start`);
      }
    }
  } finally {
    watch.close();
    control.close();
  }
}

/** Starts the program and waits until it answers. On failure nothing is left. */
async function start(
  place: GuestPlace,
  description: GuestDescription,
  paths: Paths,
  args: string[],
  handover?: HandoverListener,
): Promise<EmbeddedVmm> {
  const { size } = description.memory;
  const timeoutMs = startTimeoutMs(size);
  const files: MemoryFile[] = [{ id: 'ram', path: paths.memory, size, offset: 0 }];
  const config = parseDescription(description);
  const common = ['--memory-size', String(size), '--memory-file', paths.memory, '--control', paths.control];
  const shape = ['--threads', String(config.threads), '--regions', String(config.regions)];
  const process = await launchDetached({
    command: nativeProgram('pagetide-guest'),
    args: [...common, ...shape, ...args],
    log: paths.log,
    cwd: '/',
    name: place.name,
    env: markOf(place),
  });
  let received: Handover | undefined;
  try {
    const answered = untilAnswers(process, paths, timeoutMs);
    if (handover !== undefined) {
      // The message comes before the guest answers; whichever fails first tells more.
      const message = handover.next(timeoutMs).then((taken) => (received = taken));
      [received] = await Promise.all([message, answered]);
      if (received.pid !== process.pid) {
        throw new PagetideError(
          'PT_HANDOVER_INVALID',
          `process ${received.pid} handed memory over, not ${process.pid}`,
        );
      }
    }
    await answered;
    const local = { control: paths.control };
    const record: GuestRecord = {
      ...{ driver: 'embedded', pid: process.pid, startTime: process.startTime, launched: true },
      ...{ files, pageSize: PAGE_SIZE, description, local },
    };
    return new EmbeddedVmm(record, received);
  } catch (error) {
    await endProcess(process, 0);
    // Only now can no message come any more.
    handover?.close();
    await Promise.resolve();
    if (received !== undefined) closeHandover(received);
    await removeTraces({ files, local: { control: paths.control } });
    throw error;
  }
}

/** {@link Driver} of the embedded guest. Options: src/guests/embedded/options.ts. */
export class EmbeddedDriver implements Driver {
  readonly name = 'embedded';

  validate(description: GuestDescription): void {
    parseDescription(description);
  }

  async run(place: GuestPlace, options: Record<string, unknown>): Promise<EmbeddedVmm> {
    const parsed = parseRunOptions(options);
    const paths = await makePlace(place, parsed.memory);
    const rates = ['--write-rate', String(parsed.writeRate), '--read-rate', String(parsed.readRate)];
    const parts = ['--working-set', String(parsed.workingSet), '--zero-fraction', String(parsed.zeroFraction)];
    const content = ['--fill-from', parsed.fillFrom, '--seed', String(parsed.seed)];
    return start(place, describe(parsed.memory, parsed), paths, [...rates, ...parts, ...content]);
  }

  async attach(_place: GuestPlace, options: Record<string, unknown>): Promise<EmbeddedVmm> {
    const { control: path } = parseAttachOptions(options);
    const control = new GuestControl(path);
    try {
      const status = await control.status();
      if (pidBehind(path) !== status.pid) {
        throw new PagetideError('PT_VMM_PROTOCOL', `${path} is not the control socket of process ${status.pid}`);
      }
      if (status.memoryFile === null) {
        throw new PagetideError('PT_GUEST_UNSAFE', 'the guest has private memory, which an agent cannot read', {
          hint: 'Start it with --memory-file; `pagetide pager` serves guests with private memory.',
        });
      }
      const description = describe(status.memorySize, { threads: status.threads, regions: status.regions.length });
      this.validate(description);
      const files = [{ id: 'ram', path: status.memoryFile, size: status.memorySize, offset: 0 }];
      return new EmbeddedVmm({
        ...{ driver: 'embedded', ...identify(status.pid), launched: false },
        ...{ files, pageSize: PAGE_SIZE, description, local: { control: path } },
      });
    } finally {
      control.close();
    }
  }

  async prepare(
    place: GuestPlace,
    description: GuestDescription,
    { userfaultfd }: PrepareNeeds = { userfaultfd: true },
  ): Promise<EmbeddedVmm> {
    this.validate(description);
    const paths = await makePlace(place, description.memory.size);
    if (!userfaultfd) return start(place, description, paths, ['--incoming', '--no-userfaultfd']);
    const listener = new HandoverListener(paths.handover);
    try {
      return await start(place, description, paths, ['--incoming', '--handover', paths.handover], listener);
    } finally {
      // One guest, one hand-over: the socket isn't needed again.
      listener.close();
    }
  }

  find(_place: GuestPlace, record: GuestRecord): Promise<Vmm | undefined> {
    // Not asked for an answer: whoever has to serve the guest's memory must find it while it stands still for that.
    return Promise.resolve(isAlive(record) ? new EmbeddedVmm(record) : undefined);
  }
}

/** The one embedded driver. It has no state of its own. */
export const embeddedDriver = new EmbeddedDriver();
