/** Disks for QEMU guests: an image whose blocks are known (test/qemu-guest/disk.c), and a host file system that is slow. */
import { spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { closeSync, openSync } from 'node:fs';
import { mkdtemp, rm, stat, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Test } from 'tap';
import { until } from './migrate.ts';

const BLOCK = 4096;

/** A raw image of so many blocks of 4096 bytes, on a file system that takes O_DIRECT; removed after the test. Resolves to its path. */
export async function makeDisk(t: Test, blocks: number): Promise<string> {
  const folder = await mkdtemp(join(tmpdir(), 'ptd-'));
  t.teardown(() => rm(folder, { recursive: true, force: true }));
  const words = new BigUint64Array((blocks * BLOCK) / 8);
  for (let at = 0; at < words.length; at++) {
    const block = Math.floor((at * 8) / BLOCK);
    words[at] = BigInt(block * BLOCK + (at % (BLOCK / 8)));
  }
  const path = join(folder, 'disk.raw');
  await writeFile(path, Buffer.from(words.buffer));
  return path;
}

export type CacheMode = 'none' | 'writeback';

/** QEMU's words for a virtio disk. */
export function diskWords(path: string, cache: CacheMode): string[] {
  return [
    ...['-drive', `file=${path},if=none,id=disk,format=raw,cache=${cache}`],
    ...['-device', 'virtio-blk-pci,drive=disk'],
  ];
}

/** Why no host file system can be made slow here; false where it can. */
export function cannotBeSlow(): string | false {
  const { stdout, status } = spawnSync('qemu-storage-daemon', ['--help'], { encoding: 'utf8' });
  if (status !== 0 || !stdout.includes('type=]fuse')) return 'qemu-storage-daemon with FUSE is not installed';
  try {
    closeSync(openSync('/dev/fuse', 'r+'));
  } catch (error) {
    return `no FUSE here: ${String(error)}`;
  }
  return false;
}

/**
 * The same image as a file whose reads take their time: each waits below the guest's VMM, its pages pinned. By FUSE, which puts what was
 * read into those pages without the page tables, as a disk does. Resolves to the file's path.
 */
export async function makeSlow(t: Test, image: string, readsPerSecond: number): Promise<string> {
  const path = `${image}.slow`;
  await writeFile(path, '');
  const child = spawn(
    'qemu-storage-daemon',
    [
      ...['--object', `throttle-group,id=slow,x-iops-read=${readsPerSecond}`],
      ...['--blockdev', `driver=file,node-name=file,filename=${image}`],
      ...['--blockdev', 'driver=throttle,node-name=disk,throttle-group=slow,file=file'],
      ...['--export', `type=fuse,id=export,node-name=disk,mountpoint=${path},allow-other=off`],
    ],
    { stdio: ['ignore', 'ignore', 'pipe'] },
  );
  let said = '';
  child.stderr.setEncoding('utf8').on('data', (text: string) => (said += text));
  const exited = once(child, 'exit');
  t.teardown(async () => {
    child.kill('SIGTERM');
    await exited;
    spawnSync('umount', ['-l', path]);
  });
  await until('the slow file is there', async () => {
    if (child.exitCode !== null) throw new Error(`qemu-storage-daemon ended: ${said}`);
    return (await stat(path)).size > 0;
  });
  return path;
}
