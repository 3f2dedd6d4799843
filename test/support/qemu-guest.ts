/**
 * Boots the QEMU test guest (test/qemu-guest/init.c) for a test, and takes everything away again when the test ends,
 * however it ends.
 */
import { execFile, spawnSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import type { Test } from 'tap';
import type { GuestPlace, Vmm } from '../../src/guests/driver.ts';
import { qemuDriver } from '../../src/guests/qemu/driver.ts';
import type { QemuVmm } from '../../src/guests/qemu/vmm.ts';

/** TCG on a busy machine: some seconds are usual. */
export const BOOT_MS = 60_000;

/**
 * Options for a test that needs QEMU and the test guest: skipped, with a reason, where there is none; unless
 * PAGETIDE_REQUIRE_QEMU=1 forbids that, when the test fails instead. @param virtio with the kernel's modules for virtio devices
 */
export function needsQemu(virtio = false): { skip: string | false; timeout: number } {
  const timeout = 180_000;
  if (process.env['PAGETIDE_REQUIRE_QEMU'] === '1') return { skip: false, timeout };
  if (spawnSync('qemu-system-x86_64', ['--version']).status !== 0)
    return { skip: 'qemu-system-x86_64 is not installed', timeout };
  const build = spawnSync(process.execPath, buildScript(virtio), { encoding: 'utf8' });
  return { skip: build.status === 0 ? false : build.stderr.trim().split('\n')[0]!, timeout };
}

/** The folder of the sources: what runs is below its dist/. */
export function checkout(): string {
  let folder = dirname(fileURLToPath(import.meta.url));
  while (!existsSync(join(folder, 'package.json'))) folder = dirname(folder);
  return folder;
}

function buildScript(virtio: boolean): string[] {
  return [join(checkout(), 'scripts/build-test-guest.mjs'), ...(virtio ? ['--virtio'] : [])];
}

interface Images {
  kernel: string;
  initramfs: string;
}

const built = new Map<boolean, Promise<Images>>();

/** Paths of the test guest's kernel and initramfs; made first where they aren't there yet. */
export function testGuest(virtio = false): Promise<Images> {
  let images = built.get(virtio);
  if (images === undefined) {
    const build = promisify(execFile)(process.execPath, buildScript(virtio));
    images = build.then(({ stdout }) => JSON.parse(stdout) as Images);
    built.set(virtio, images);
  }
  return images;
}

export interface GuestShape {
  /** As `-m` takes it. */
  memory?: string;
  cpus?: number;
  /** Words for the guest's kernel command line, e.g. `pagetide.rate=1000`. */
  settings?: string;
  /** More QEMU options. */
  more?: string[];
  machine?: string;
  /** Its kernel knows virtio devices. */
  virtio?: boolean;
}

/** Options for the driver's `run`. */
export async function guestOptions(shape: GuestShape = {}): Promise<{ argv: string[]; checkSocket: string }> {
  return machineArgv(await testGuest(shape.virtio), shape);
}

/** The same for any guest that checks itself. No default devices but what the tests add: they make the start slower. */
export function machineArgv(
  { kernel, initramfs }: { kernel: string; initramfs: string },
  shape: GuestShape,
): { argv: string[]; checkSocket: string } {
  const argv = ['qemu-system-x86_64', '-accel', 'tcg', '-machine', shape.machine ?? 'q35', '-nodefaults', '-no-reboot'];
  argv.push('-m', shape.memory ?? '128', '-smp', String(shape.cpus ?? 1), '-kernel', kernel, '-initrd', initramfs);
  argv.push('-append', `console=ttyS0 quiet panic=-1 ${shape.settings ?? ''}`);
  argv.push('-serial', 'file:{folder}/console.log');
  argv.push('-chardev', 'socket,id=check,path={folder}/check.sock,server=on,wait=off', '-serial', 'chardev:check');
  argv.push(...(shape.more ?? []));
  return { argv, checkSocket: '{folder}/check.sock' };
}

/** A folder of its own for sockets (short: their paths are bounded) and one on tmpfs for memory; removed after the test. */
export async function makePlace(t: Test, name = 'guest'): Promise<GuestPlace> {
  const folder = await mkdtemp(join(tmpdir(), 'ptq-'));
  const memoryFolder = await mkdtemp('/dev/shm/ptq-');
  t.teardown(async () => {
    await rm(folder, { recursive: true, force: true });
    await rm(memoryFolder, { recursive: true, force: true });
  });
  return { name, folder, memoryFolder };
}

/** Has the VMM ended after the test. Call it after {@link makePlace}: teardowns run last first. */
export function endAfter<V extends Vmm>(t: Test, vmm: V): V {
  t.teardown(() => vmm.destroy({ force: true }));
  return vmm;
}

/** Starts a guest, and waits until its init beats. */
export async function bootGuest(
  t: Test,
  shape: GuestShape = {},
  place?: GuestPlace,
): Promise<{ vmm: QemuVmm; place: GuestPlace }> {
  const at = place ?? (await makePlace(t));
  const vmm = endAfter(t, await qemuDriver.run(at, await guestOptions(shape)));
  const died = vmm.exited.then(() => Promise.reject(new Error(`QEMU exited while booting; see ${at.folder}`)));
  died.catch(() => undefined);
  await Promise.race([vmm.selfCheck!.nextBeat(BOOT_MS), died]);
  return { vmm, place: at };
}
