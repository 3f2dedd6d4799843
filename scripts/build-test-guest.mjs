// Builds the guest that QEMU tests boot: Debian's cloud kernel, and an initramfs whose /init checks its own pages
// (test/qemu-guest/init.c). Prints one line of JSON: {"kernel": PATH, "initramfs": PATH}. Where it all lands, and which
// variables it heeds, is described in lib/guest-image.mjs.
import { readFileSync, writeFileSync } from 'node:fs';
import { basename, join } from 'node:path';
import { gzipSync } from 'node:zlib';
import { Archive, cache, kernel, main, place, staticProgram } from './lib/guest-image.mjs';

const folder = 'test/qemu-guest';

function initramfs() {
  const program = staticProgram('init', [`${folder}/init.c`, `${folder}/guest.c`], [`${folder}/guest.h`]);
  return place(join(cache, `initramfs-${basename(program).slice('init-'.length)}.gz`), (scratch) => {
    const archive = new Archive();
    for (const name of ['dev', 'proc', 'sys']) archive.folder(name);
    archive.file('init', readFileSync(program), { mode: 0o755 });
    const file = join(scratch, 'initramfs.gz');
    writeFileSync(file, gzipSync(archive.bytes()));
    return file;
  });
}

main('build-test-guest', () => ({ kernel: kernel(), initramfs: initramfs() }));
