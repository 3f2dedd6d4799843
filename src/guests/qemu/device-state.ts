/**
 * The device state: what QEMU's own migration carries once guest RAM is left out (`x-ignore-shared`). About 200 KB, plus
 * video memory. It goes through a Unix socket on each host, and between the hosts over the agents' connection:
 *
 *   source QEMU ── migrate unix:… ──► agent ──►  network  ──► agent ── migrate-incoming unix:… ──► destination QEMU
 *
 * QEMU itself stops the guest: so what `migrate` begins with (a thread, dirty logging, ROMs) is done while the guest runs, as in QEMU's own
 * post-copy.
 *
 *   migrate ─► setup, ROMs ─► STOP ─► I/O drained ─► pre-switchover ── migrate-continue ─► devices ─► completed
 *                                                    ▲ halted                                        ▲ saved
 *
 * An operator may stop the guest before QEMU does: then it is not moved, as it would run at the destination, and stays as it is. The run state that
 * goes with a STOP tells the two apart.
 *
 * STOP comes *before* the I/O is drained: DMA may be under way then. `pre-switchover` comes after (`pause-before-switchover`).
 * A migration that fails or is cancelled lets a guest that it had stopped run on, QEMU does that by itself. One that has completed never does,
 * and only then is the state whole: so no guest runs here of which the destination may have got the state.
 */
import { once } from 'node:events';
import { rm } from 'node:fs/promises';
import { connect, createServer, type Server, type Socket } from 'node:net';
import type { Readable, Writable } from 'node:stream';
import { finished, pipeline } from 'node:stream/promises';
import { setTimeout as delay } from 'node:timers/promises';
import { asPagetideError, PagetideError } from '../../errors.ts';
import type { QmpClient, QmpEvent } from './qmp.ts';

export interface StateOptions {
  /** For the whole transfer; guest memory that faults meanwhile counts. Milliseconds. */
  timeoutMs: number;
}

/**
 * - x-ignore-shared: RAM in shared memory files is not sent; moving it is our business.
 * - late-block-activate: a destination takes the disks with `cont`, not when the state is loaded: until ownership has
 *   passed they are the source's.
 * - events: MIGRATION events tell the end, so that nobody has to ask again and again within the downtime.
 */
const CAPABILITIES = ['x-ignore-shared', 'late-block-activate', 'events'];
/** Of a source: see above. */
const SOURCE_CAPABILITIES = [...CAPABILITIES, 'pause-before-switchover'];
/** Run states of a guest that its own migration has stopped; and one that has been let run again is none that is stopped. */
const STOPPED_BY_MIGRATION: readonly string[] = ['finish-migrate', 'postmigrate', 'running'];

/** Bytes a second. The default, 128 MiB/s, would make video memory cost downtime. */
const BANDWIDTH = 2 ** 40;

/** Between looks at the status, in case no event comes. Milliseconds. */
const POLL_MS = 20;
/** A migration that was cancelled has ended by then, or the next command tells that it has not. Milliseconds. */
const CANCEL_MS = 2_000;

/** Sets migration capabilities to exactly these, and returns what sets them back. */
async function configure(qmp: QmpClient, wanted: readonly string[]): Promise<() => Promise<void>> {
  type Capability = { capability: string; state: boolean };
  type Parameters = { 'max-bandwidth': number };
  const [before, parameters] = (await Promise.all([
    qmp.execute('query-migrate-capabilities'),
    qmp.execute('query-migrate-parameters'),
  ])) as [Capability[], Parameters];
  const differ = before.filter(({ capability, state }) => wanted.includes(capability) !== state);
  const set = async (capabilities: Capability[], bandwidth: number) => {
    if (capabilities.length > 0) await qmp.execute('migrate-set-capabilities', { capabilities });
    await qmp.execute('migrate-set-parameters', { 'max-bandwidth': bandwidth });
  };
  await set(
    differ.map(({ capability, state }) => ({ capability, state: !state })),
    BANDWIDTH,
  );
  return () => set(differ, parameters['max-bandwidth']);
}

/** `ended` resolves with the status that ends a migration, `halted` when the guest stands still for it. */
function watchMigration(qmp: QmpClient): { halted: Promise<true>; ended: Promise<string>; stop: () => void } {
  let halt: (value: true) => void;
  let end: (status: string) => void;
  const halted = new Promise<true>((resolve) => (halt = resolve));
  const ended = new Promise<string>((resolve) => (end = resolve));
  const stop = qmp.onEvent((event: QmpEvent) => {
    const status = event.data['status'];
    if (event.event !== 'MIGRATION' || typeof status !== 'string') return;
    if (status === 'pre-switchover') halt(true);
    if (/^(completed|failed|cancelled)$/.test(status)) end(status);
  });
  return { halted, ended, stop };
}

/** Rejects with `PT_GUEST_STATE` when the guest is stopped by somebody else than its migration. */
function intrusion(qmp: QmpClient): { intruded: Promise<never>; stop: () => void } {
  let tell: (error: PagetideError) => void;
  const intruded = new Promise<never>((_, reject) => (tell = reject));
  intruded.catch(() => undefined); // it is raced, and usually loses
  const stop = qmp.onEvent(({ event }) => {
    if (event !== 'STOP') return;
    // Sent at once, so answered before anything that follows is told.
    runState(qmp).then(
      (state) => {
        if (!STOPPED_BY_MIGRATION.includes(state)) tell(stoppedByOthers());
      },
      () => undefined, // the monitor is lost: that is told elsewhere
    );
  });
  return { intruded, stop };
}

/** Why a guest does not leave. */
export function stoppedByOthers(): PagetideError {
  return new PagetideError('PT_GUEST_STATE', 'the guest was stopped by somebody else', {
    hint: 'Let it run, and migrate it again.',
  });
}

/** See {@link saveDeviceState}. Its promises may reject unheard. */
export interface Saving {
  /** The guest stands still, its I/O included. */
  halted: Promise<void>;
  /** The state is written. */
  saved: Promise<void>;
  /** QEMU is as it was before, but for the guest. Never rejects. */
  over: Promise<void>;
  /** Gives it up: `saved` rejects, and a guest that was stopped by this runs on, unless it is saved already. */
  abandon: () => void;
}

/**
 * Stops a guest that runs, and writes its device state to `sink`, which is ended only when QEMU says that the state is complete; else
 * `sink` is destroyed. Guest RAM isn't changed, and `cont` lets the guest go on afterwards, whatever came of this.
 * The guest has to run when this is called.
 *
 * Both reject with PT_GUEST_STATE: it was stopped by somebody else; PT_VMM_FAILED, PT_VMM_TIMEOUT, PT_CANCELLED
 */
export function saveDeviceState(qmp: QmpClient, path: string, sink: Writable, options: StateOptions): Saving {
  const abandoned = new AbortController();
  const signal = AbortSignal.any([AbortSignal.timeout(options.timeoutMs), abandoned.signal]);
  const migration = watchMigration(qmp);
  const { intruded, stop } = intrusion(qmp);
  const halted = migration.halted.then(() => undefined);
  const work = save(qmp, path, sink, signal, migration, intruded);
  const saved = work.then(({ error }) => {
    if (error !== undefined) throw error;
  });
  const failed = saved.then(() => halted); // where it fails before it stands still
  for (const promise of [saved, failed]) promise.catch(() => undefined);
  return {
    halted: Promise.race([intruded, halted, failed]),
    saved,
    over: work.then(({ undo }) => undo).finally(stop),
    abandon: () => abandoned.abort(),
  };
}

async function save(
  qmp: QmpClient,
  path: string,
  sink: Writable,
  signal: AbortSignal,
  { halted, ended, stop }: ReturnType<typeof watchMigration>,
  intruded: Promise<never>,
): Promise<{ error?: PagetideError; undo: Promise<void> }> {
  const server = createServer();
  let reset: (() => Promise<void>) | undefined;
  let socket: Socket | undefined;
  const gone = Promise.race([lost(qmp, signal), intruded]);
  gone.catch(() => undefined);
  try {
    const { connected } = await listen(server, path);
    reset = await configure(qmp, SOURCE_CAPABILITIES);
    await qmp.execute('migrate', { uri: `unix:${path}` });
    const failed = ended.then((end) =>
      end === 'completed' ? undefined : Promise.reject(new PagetideError('PT_VMM_FAILED', end)),
    );
    failed.catch(() => undefined);
    const opened = await Promise.race([connected, failed, gone]);
    socket = opened ?? (await connected);
    socket.on('error', () => undefined); // as above: it may come when the pipeline listens no more
    const continued = halted.then(() => qmp.execute('migrate-continue', { state: 'pre-switchover' }));
    continued.catch(() => undefined); // where it is refused, the migration fails
    // `sink` stays open: QEMU closes its end likewise when it fails half-way, and half a state must not look whole.
    await Promise.race([pipeline(socket, sink, { end: false, signal }), gone]);
    await Promise.race([failed, gone]);
    sink.end();
    await finished(sink, { signal });
    return { undo: windUp() };
  } catch (cause) {
    // Where the sink failed, that is the reason, and QEMU's complaint about its socket but a consequence.
    const error =
      sink.errored && !signal.aborted
        ? asPagetideError(sink.errored, 'PT_IO', 'the device state could not be passed on')
        : await explain(qmp, cause, signal);
    sink.destroy(error);
    return { error, undo: windUp(qmp.execute('migrate_cancel').then(() => Promise.race([ended, delay(CANCEL_MS)]))) };
  }

  /** Nobody waits for this while the guest stands still. */
  async function windUp(first?: Promise<unknown>): Promise<void> {
    await first?.catch(() => undefined);
    stop();
    socket?.destroy();
    server.close();
    await rm(path, { force: true }).catch(() => undefined);
    // Refused after a cancelled migration until that has wound down; then the settings stay ours, which harms nobody.
    await reset?.().catch(() => undefined);
  }
}

/** Resolves when it listens; `connected` does with the connection. */
async function listen(server: Server, path: string): Promise<{ connected: Promise<Socket> }> {
  await rm(path, { force: true });
  const connected = new Promise<Socket>((resolve, reject) => {
    server.once('connection', resolve);
    server.on('error', reject);
  });
  connected.catch(() => undefined);
  await new Promise<void>((resolve, reject) => server.once('error', reject).listen(path, resolve));
  return { connected };
}

/** Rejects when the monitor is lost or time is up. */
function lost(qmp: QmpClient, signal: AbortSignal): Promise<never> {
  const promise = new Promise<never>((_, reject) => {
    signal.addEventListener('abort', () => reject(endedBy(signal)), { once: true });
    const gone = new PagetideError('PT_VMM_GONE', 'QEMU exited, or closed its monitor, in the middle of its state');
    void qmp.closed.then(() => reject(gone));
  });
  promise.catch(() => undefined); // it is raced, and usually loses
  return promise;
}

/** Why `signal` has ended it: its time is up, or it was abandoned. */
function endedBy(signal: AbortSignal, options?: { cause: unknown }): PagetideError {
  const { name } = signal.reason as Error;
  return name === 'TimeoutError'
    ? new PagetideError('PT_VMM_TIMEOUT', 'passing on the device state took too long', options)
    : new PagetideError('PT_CANCELLED', 'the device state is not wanted any more', options);
}

async function explain(qmp: QmpClient, cause: unknown, signal: AbortSignal): Promise<PagetideError> {
  if (signal.aborted) return endedBy(signal, { cause });
  const info = (await qmp.execute('query-migrate').catch(() => ({}))) as { 'error-desc'?: string; status?: string };
  const detail = info['error-desc'] ?? (info.status === 'failed' ? 'QEMU gave no reason' : undefined);
  if (detail !== undefined)
    return new PagetideError('PT_VMM_FAILED', `QEMU could not save the device state: ${detail}`, { cause });
  return asPagetideError(cause, 'PT_IO', 'the device state could not be passed on');
}

/** QEMU's word for what the guest does. */
export async function runState(qmp: QmpClient): Promise<string> {
  return ((await qmp.execute('query-status')) as { status: string }).status;
}

/**
 * Connects to a QEMU that waits with `-incoming defer -S`: it has begun to listen to what comes, which takes it some milliseconds. Touches
 * no guest memory. Of use for one state; whoever does not use it destroys it.
 * @throws PT_GUEST_STATE where it does not wait; PT_VMM_GONE where it does not take the connection
 */
export async function expectDeviceState(qmp: QmpClient, path: string): Promise<Socket> {
  const status = await runState(qmp);
  if (status !== 'inmigrate')
    throw new PagetideError('PT_GUEST_STATE', `the VMM does not wait for a state, it is ${status}`);
  await rm(path, { force: true });
  await configure(qmp, CAPABILITIES);
  await qmp.execute('migrate-incoming', { uri: `unix:${path}` });
  const socket = connect(path);
  try {
    await once(socket, 'connect');
  } catch (cause) {
    throw new PagetideError('PT_VMM_GONE', 'QEMU did not take a connection for its device state', { cause });
  } finally {
    await rm(path, { force: true });
  }
  socket.on('error', () => undefined); // it may come when nobody listens any more; QEMU's own end tells
  return socket;
}

/**
 * Feeds the device state to a QEMU that listens for it ({@link expectDeviceState}), and resolves when the guest could run. Loading
 * touches guest memory: whoever serves its faults must be doing so.
 *
 * @param describe reads the end of QEMU's log; called when it refused the state, since it exits then
 * @throws PT_VMM_REFUSED_STATE, PT_VMM_TIMEOUT, or what `source` failed with. Of no use afterwards: destroy the VMM.
 */
export async function loadDeviceState(
  qmp: QmpClient,
  socket: Socket,
  source: Readable,
  options: StateOptions & { describe: () => Promise<string> },
): Promise<void> {
  const signal = AbortSignal.timeout(options.timeoutMs);
  const gone = lost(qmp, signal);
  const { ended, stop } = watchMigration(qmp);
  try {
    // QEMU hangs up without reading the rest when it refuses the state: that error is but a consequence, see below.
    let sourceError: unknown;
    const fed = pipeline(source, socket, { signal }).catch((error: unknown) => {
      sourceError ??= source.errored ?? (source.readableEnded || socket.errored ? undefined : error);
    });
    // QEMU tells its end when its run state is settled: then it need not be asked
    const loaded = ended.then((end) => {
      if (end !== 'completed')
        throw new PagetideError('PT_VMM_REFUSED_STATE', `QEMU refused the device state (${end})`);
      return true;
    });
    loaded.catch(() => undefined);
    while (!(await Promise.race([loaded, delay(POLL_MS, false), gone]))) {
      if (sourceError !== undefined) throw asPagetideError(sourceError, 'PT_IO', 'the device state ended early');
      // A main thread that waits for a page doesn't answer: allow for as long as the whole may take.
      const now = (await qmp.execute('query-status', {}, { timeoutMs: options.timeoutMs })) as { status: string };
      if (now.status !== 'inmigrate') break;
    }
    await fed;
  } catch (cause) {
    source.destroy();
    const error = asPagetideError(cause, 'PT_IO', 'the device state could not be loaded');
    // QEMU 7 exits when it cannot load a state, after a line about why.
    if (error.code !== 'PT_VMM_GONE' && error.code !== 'PT_VMM_REFUSED_STATE') throw error;
    if (source.errored) throw asPagetideError(source.errored, 'PT_IO', 'the device state ended early');
    throw new PagetideError('PT_VMM_REFUSED_STATE', `QEMU refused the device state: ${await options.describe()}`, {
      cause,
    });
  } finally {
    stop();
    socket.destroy();
  }
}
