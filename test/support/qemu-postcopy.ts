/** Post-copy of a QEMU guest by hand, between two folders of this host: the driver and the shim, with no agent around. */
import { once } from 'node:events';
import { openSync, closeSync } from 'node:fs';
import { PassThrough } from 'node:stream';
import { Worker } from 'node:worker_threads';
import type { Test } from 'tap';
import { qemuDriver } from '../../src/guests/qemu/driver.ts';
import type { QemuVmm } from '../../src/guests/qemu/vmm.ts';
import { FrameState, native, Outcome, OUTCOME_FIELDS, type FaultSession } from '../../src/memory/native.ts';
import type { PagerData } from './qemu-pager.ts';
import { endAfter, makePlace } from './qemu-guest.ts';

const RUN = 64;

export interface Moved {
  vmm: QemuVmm;
  downtimeMs: number;
  faults: number;
  installed: number;
}

/** Frames of each file, in guest memory space. */
function filesOf(vmm: QemuVmm): PagerData['files'] {
  const { files, pageSize } = vmm.record;
  return files.map(({ path, size, offset }) => ({ path, first: offset / pageSize, frames: size / pageSize }));
}

/** Frames that the stopped source doesn't hold are zero. */
function markHoles(session: FaultSession, files: PagerData['files']): void {
  for (const { path, first, frames } of files) {
    const fd = openSync(path, 'r');
    let at = 0;
    for (const { offset, length } of native().dataExtents(fd, 0, frames * session.pageSize)) {
      const begin = offset / session.pageSize;
      if (begin > at) session.markZero(first + at, begin - at);
      at = (offset + length) / session.pageSize;
    }
    if (frames > at) session.markZero(first + at, frames - at);
    closeSync(fd);
  }
}

async function fill(session: FaultSession, files: PagerData['files']): Promise<void> {
  const outcome = new Int32Array(OUTCOME_FIELDS);
  for (const { path, first, frames } of files) {
    const fd = openSync(path, 'r');
    for (let at = session.nextMissing(first); at >= 0 && at < first + frames; at = session.nextMissing(at)) {
      const count = session.claim(at, Math.min(RUN, first + frames - at), FrameState.InFlight);
      let came: Outcome;
      do {
        came = session.installFromFile(at, count, fd, (at - first) * session.pageSize, outcome);
      } while (came === Outcome.Again);
      if (came !== Outcome.Done) throw new Error(`fill at frame ${at}: outcome ${came}`);
      await new Promise((resolve) => setImmediate(resolve));
    }
    closeSync(fd);
  }
}

/** More than any device state here. */
const STATE_BYTES = 64 << 20;

/** Moves the guest; it runs at the destination when this resolves, every page there. The source stays paused. */
export async function moveByPostCopy(t: Test, source: QemuVmm): Promise<Moved> {
  const vmm = endAfter(t, await qemuDriver.prepare(await makePlace(t, 'there'), source.record.description));
  const files = filesOf(source);
  const acquired = await vmm.acquire();
  const session = native().createSession({
    uffd: acquired.uffd,
    regions: acquired.regions,
    pageSize: acquired.pageSize,
    shared: true,
  });
  t.teardown(() => native().destroySession(session.id));
  session.register();

  const worker = new Worker(new URL('./qemu-pager.js', import.meta.url), {
    workerData: { session: session.id, files } satisfies PagerData,
  });
  const failed = once(worker, 'error').then(([error]) => Promise.reject(error as Error));
  failed.catch(() => undefined);
  const exited = once(worker, 'exit');
  await Promise.race([once(worker, 'message'), failed]);
  try {
    // QEMU sends its video memory before it stops the guest: somebody has to take it, and nobody reads yet
    const stream = new PassThrough({ highWaterMark: STATE_BYTES });
    const departure = source.depart(stream);
    const stopped = await departure.stopped;
    markHoles(session, files); // before anything can fault: the state is not loaded yet
    await Promise.race([Promise.all([departure.saved, vmm.loadState(stream)]), failed]);
    const resumed = await vmm.resume();
    await Promise.race([fill(session, files), failed]);
    const counts = session.counts();
    session.unregister();
    native().closeRemote(vmm.record.pid, acquired.remoteFd);
    return {
      vmm,
      downtimeMs: (resumed.unixMicros - stopped.unixMicros) / 1000,
      faults: counts.faults,
      installed: counts.installed,
    };
  } finally {
    session.stop();
    await exited;
  }
}
