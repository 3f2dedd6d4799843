/** What scanning a guest costs: the digest of its pages, and the look at which of them were written. */
import { hash, randomBytes } from 'node:crypto';
import { setTimeout as delay } from 'node:timers/promises';
import { PagetideError } from '../src/errors.ts';
import { GuestControl, type ControlStatus } from '../src/guests/control.ts';
import { launchDetached } from '../src/guests/launch.ts';
import { endProcess, isAlive, type ProcessIdentity } from '../src/guests/process.ts';
import { native, nativeProgram } from '../src/memory/native.ts';
import { WriteTracker } from '../src/memory/write-tracker.ts';
import { DOMAIN_KEY_BYTES, DomainKey, TAG_BYTES, TAG_PAGE } from '../src/pages/tags.ts';
import { alternate } from './lib/alternate.ts';
import { withScope, type Scope } from './lib/scope.ts';
import { checkSettings, setting } from './lib/settings.ts';
import { judge, median } from './lib/statistics.ts';
import type { BenchModule, BenchOptions } from './lib/types.ts';

export const description = "Digest of pages against OpenSSL's, per core; refresh of a clean guest of 1 GiB.";

const PAGES = 256;
/** What is digested of one page. */
const MESSAGE = DOMAIN_KEY_BYTES + TAG_PAGE;
const MIB = 2 ** 20;
const CLEAN_SCANS = 20;
const CLEAN_MS = 10;

function seconds(work: () => void): number {
  const start = process.hrtime.bigint();
  work();
  return Number(process.hrtime.bigint() - start) / 1e9;
}

async function digest(options: BenchOptions, batches: number) {
  const secret = randomBytes(DOMAIN_KEY_BYTES);
  const key = new DomainKey(secret);
  const pages = randomBytes(PAGES * TAG_PAGE);
  const tags = new Uint8Array(PAGES * TAG_BYTES);
  const block = randomBytes(MIB);
  const bytes = batches * PAGES * MESSAGE;
  try {
    return await alternate({
      rounds: options.rounds,
      a: () => {
        const took = seconds(() => {
          for (let i = 0; i < batches; i++) native().tagPages(key.id, pages, PAGES, tags);
        });
        return Promise.resolve(bytes / MIB / took);
      },
      // Blocks of 1 MiB: OpenSSL at its best. Messages of a page's length would be charged for the calls from JavaScript.
      b: () => {
        const blocks = Math.max(1, Math.round(bytes / MIB));
        const took = seconds(() => {
          for (let i = 0; i < blocks; i++) hash('sha256', block, 'buffer');
        });
        return Promise.resolve(blocks / took);
      },
    });
  } finally {
    key.close();
  }
}

async function answer(control: GuestControl, guest: ProcessIdentity): Promise<ControlStatus> {
  for (;;) {
    try {
      return await control.status();
    } catch (cause) {
      if (!isAlive(guest)) throw new PagetideError('PT_VMM_GONE', 'the guest did not start', { cause });
      await delay(20);
    }
  }
}

/** A guest that writes nothing, and a tracker of it. */
async function startGuest(scope: Scope, mib: number): Promise<{ tracker: WriteTracker; frames: number }> {
  const path = scope.path('control');
  const memory = ['--memory-size', `${mib}M`, '--memory-file', scope.path('memory'), '--fill-from', '/usr/lib'];
  const idle = ['--write-rate', '0', '--read-rate', '0', '--zero-fraction', '0', '--control', path];
  const guest = await launchDetached({
    command: nativeProgram('pagetide-guest'),
    args: [...memory, ...idle],
    log: scope.path('log'),
  });
  scope.defer(() => endProcess(guest, 0));
  const control = new GuestControl(path);
  scope.defer(() => control.close());
  const { regions, pageSize, frames } = await answer(control, guest);
  const { tracker } = WriteTracker.attach({ pid: guest.pid, regions, pageSize });
  scope.defer(() => tracker.close());
  return { tracker, frames };
}

async function refresh(options: BenchOptions, mib: number): Promise<{ first: number; clean: number[]; dirty: number }> {
  return withScope(async (scope) => {
    const { tracker, frames } = await startGuest(scope, mib);
    const first = 1000 * seconds(() => tracker.scan(() => undefined));
    let dirty = 0;
    const clean: number[] = [];
    tracker.scan(() => undefined); // warms up
    for (let round = 0; round < options.rounds; round++) {
      const times = Array.from({ length: CLEAN_SCANS }, () => {
        return 1000 * seconds(() => (dirty += tracker.scan(() => undefined)));
      });
      clean.push(median(times));
    }
    if (dirty > frames / 100)
      throw new PagetideError('PT_INTERNAL', `the guest was not clean: ${dirty} frames were reported`);
    return { first, clean, dirty };
  });
}

export async function run(options: BenchOptions): ReturnType<BenchModule['run']> {
  checkSettings(options, ['batches', 'mib']);
  const batches = setting(options, 'batches', 1000);
  const mib = setting(options, 'mib', 1024, 16);
  options.progress('digest');
  const digests = await digest(options, batches);
  options.progress('scan of a clean guest');
  const scans = await refresh(options, mib);
  const digestPairs = digests.map(({ a, b }) => ({ value: a, baseline: b }));
  const scanPairs = scans.clean.map((value) => ({ value, baseline: CLEAN_MS }));
  return {
    targets: [
      judge('digest, one core', 'MiB/s', digestPairs, { target: 0.85, direction: 'at-least' }),
      judge(`refresh of a clean guest, ${mib} MiB`, 'ms', scanPairs, { target: 1, direction: 'at-most' }),
    ],
    raw: { digests, scans },
    notes: [
      `digests by ${native().digestEngine}, ${PAGES} pages a call, ${MESSAGE} bytes a page; reference: OpenSSL through crypto.hash, 1 MiB a call`,
      `the reference of the refresh is the time that it may take; each round is the median of ${CLEAN_SCANS} scans`,
      `first scan, which reports everything: ${scans.first.toFixed(1)} ms; frames reported by all clean scans: ${scans.dirty}`,
    ],
  };
}
