/**
 * The device state: what QEMU's own migration carries once guest RAM is left out (`x-ignore-shared`). About 200 KB, plus
 * video memory. It goes through a Unix socket on each host, and between the hosts over the agents' connection:
 *
 *   source QEMU ── migrate unix:… ──► agent ──►  network  ──► agent ── migrate-incoming unix:… ──► destination QEMU
 */
import { rm } from 'node:fs/promises';
import { connect, createServer, type Socket } from 'node:net';
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

/** Bytes a second. The default, 128 MiB/s, would make video memory cost downtime. */
const BANDWIDTH = 2 ** 40;

/** Between looks at the status, in case no event comes. Milliseconds. */
const POLL_MS = 5;

/** Sets migration capabilities to exactly ours, and returns what sets them back. */
async function configure(qmp: QmpClient): Promise<() => Promise<void>> {
  type Capability = { capability: string; state: boolean };
  type Parameters = { 'max-bandwidth': number };
  const [before, parameters] = (await Promise.all([
    qmp.execute('query-migrate-capabilities'),
    qmp.execute('query-migrate-parameters'),
  ])) as [Capability[], Parameters];
  const differ = before.filter(({ capability, state }) => CAPABILITIES.includes(capability) !== state);
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

/** Resolves with the status that ends a migration. */
function migrationEnd(qmp: QmpClient): { ended: Promise<string>; stop: () => void } {
  let stop = () => {};
  const ended = new Promise<string>((resolve) => {
    stop = qmp.onEvent((event: QmpEvent) => {
      const status = event.data['status'];
      if (event.event === 'MIGRATION' && typeof status === 'string' && /^(completed|failed|cancelled)$/.test(status))
        resolve(status);
    });
  });
  return { ended, stop };
}

/**
 * Writes the device state of a stopped guest to `sink`, and ends it only when QEMU says that the state is complete; else
 * `sink` is destroyed. Guest RAM isn't changed, and `cont` lets the guest go on afterwards, whatever came of this.
 *
 * @throws PT_GUEST_STATE the guest runs, or its state was saved and it has not run since; PT_VMM_FAILED, PT_VMM_TIMEOUT
 */
export async function saveDeviceState(
  qmp: QmpClient,
  path: string,
  sink: Writable,
  options: StateOptions,
): Promise<void> {
  sink.on('error', () => undefined); // told to our caller; with no listener it would end the process
  const status = await runState(qmp);
  if (status === 'running' || status === 'postmigrate') {
    const why =
      status === 'running'
        ? 'the guest runs; pause it first'
        : 'its state was saved already; resume and pause it first';
    const error = new PagetideError('PT_GUEST_STATE', why);
    sink.destroy(error);
    throw error;
  }
  await rm(path, { force: true });
  const server = createServer();
  const connected = new Promise<Socket>((resolve, reject) => {
    server.once('connection', resolve);
    server.on('error', reject);
  });
  connected.catch(() => undefined);
  await new Promise<void>((resolve, reject) => server.once('error', reject).listen(path, resolve));
  const signal = AbortSignal.timeout(options.timeoutMs);
  let undo: (() => Promise<void>) | undefined;
  let socket: Socket | undefined;
  const gone = lost(qmp, signal);
  const { ended, stop } = migrationEnd(qmp);
  try {
    undo = await configure(qmp);
    await qmp.execute('migrate', { uri: `unix:${path}` });
    const failed = ended.then((end) =>
      end === 'completed' ? undefined : Promise.reject(new PagetideError('PT_VMM_FAILED', end)),
    );
    failed.catch(() => undefined);
    const opened = await Promise.race([connected, failed, gone]);
    socket = opened ?? (await connected);
    socket.on('error', () => undefined); // as above: it may come when the pipeline listens no more
    // `sink` stays open: QEMU closes its end likewise when it fails half-way, and half a state must not look whole.
    await Promise.race([pipeline(socket, sink, { end: false, signal }), gone]);
    await Promise.race([failed, gone]);
    sink.end();
    await finished(sink, { signal });
  } catch (cause) {
    // Where the sink failed, that is the reason, and QEMU's complaint about its socket but a consequence.
    const error = sink.errored
      ? asPagetideError(sink.errored, 'PT_IO', 'the device state could not be passed on')
      : await explain(qmp, cause, signal);
    sink.destroy(error);
    await qmp.execute('migrate_cancel').catch(() => undefined);
    throw error;
  } finally {
    stop();
    socket?.destroy();
    server.close();
    await rm(path, { force: true });
    // Refused after a cancelled migration until that has wound down; then the settings stay ours, which harms nobody.
    await undo?.().catch(() => undefined);
  }
}

/** Rejects when the monitor is lost or time is up. */
function lost(qmp: QmpClient, signal: AbortSignal): Promise<never> {
  const promise = new Promise<never>((_, reject) => {
    const late = () => reject(new PagetideError('PT_VMM_TIMEOUT', 'passing on the device state took too long'));
    signal.addEventListener('abort', late, { once: true });
    const gone = new PagetideError('PT_VMM_GONE', 'QEMU exited, or closed its monitor, in the middle of its state');
    void qmp.closed.then(() => reject(gone));
  });
  promise.catch(() => undefined); // it is raced, and usually loses
  return promise;
}

async function explain(qmp: QmpClient, cause: unknown, signal: AbortSignal): Promise<PagetideError> {
  if (signal.aborted)
    return new PagetideError('PT_VMM_TIMEOUT', 'passing on the device state took too long', { cause });
  const info = (await qmp.execute('query-migrate').catch(() => ({}))) as { 'error-desc'?: string; status?: string };
  const detail = info['error-desc'] ?? (info.status === 'failed' ? 'QEMU gave no reason' : undefined);
  if (detail !== undefined)
    return new PagetideError('PT_VMM_FAILED', `QEMU could not save the device state: ${detail}`, { cause });
  return asPagetideError(cause, 'PT_IO', 'the device state could not be passed on');
}

async function runState(qmp: QmpClient): Promise<string> {
  return ((await qmp.execute('query-status')) as { status: string }).status;
}

/**
 * Feeds the device state to a QEMU that waits with `-incoming defer -S`, and resolves when the guest could run. Loading
 * touches guest memory: whoever serves its faults must be doing so.
 *
 * @param describe reads the end of QEMU's log; called when it refused the state, since it exits then
 * @throws PT_VMM_REFUSED_STATE, PT_VMM_TIMEOUT, or what `source` failed with. Of no use afterwards: destroy the VMM.
 */
export async function loadDeviceState(
  qmp: QmpClient,
  path: string,
  source: Readable,
  options: StateOptions & { describe: () => Promise<string> },
): Promise<void> {
  const signal = AbortSignal.timeout(options.timeoutMs);
  const gone = lost(qmp, signal);
  const { ended, stop } = migrationEnd(qmp);
  let socket: Socket | undefined;
  source.on('error', () => undefined); // looked at below, also when it fails before it is read
  try {
    const status = await runState(qmp);
    if (status !== 'inmigrate')
      throw new PagetideError('PT_GUEST_STATE', `the VMM does not wait for a state, it is ${status}`);
    await rm(path, { force: true });
    await configure(qmp);
    await qmp.execute('migrate-incoming', { uri: `unix:${path}` });
    const opened = connect(path);
    opened.on('error', () => undefined); // it may come after the pipeline has ended, when nobody else listens
    socket = opened;
    // QEMU hangs up without reading the rest when it refuses the state: that error is but a consequence, see below.
    let sourceError: unknown;
    const fed = pipeline(source, opened, { signal }).catch((error: unknown) => {
      sourceError ??= source.errored ?? (source.readableEnded || opened.errored ? undefined : error);
    });
    const failed = ended.then((end) => {
      if (end !== 'completed')
        throw new PagetideError('PT_VMM_REFUSED_STATE', `QEMU refused the device state (${end})`);
    });
    failed.catch(() => undefined);
    for (;;) {
      await Promise.race([failed, delay(POLL_MS), gone]);
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
    socket?.destroy();
    await rm(path, { force: true });
  }
}
