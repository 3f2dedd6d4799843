// Builds the guest that QEMU tests boot: Debian's cloud kernel, and an initramfs whose /init checks its own pages
// (test/qemu-guest/init.c). Prints one line of JSON: {"kernel": PATH, "initramfs": PATH}. Where it all lands, and which
// variables it heeds, is described in lib/guest-image.mjs.
//
//   node scripts/build-test-guest.mjs [--virtio]      with the kernel's modules for virtio devices
import { readFileSync, writeFileSync } from 'node:fs';
import { basename, join } from 'node:path';
import { gzipSync } from 'node:zlib';
import { Archive, cache, kernel, keyOf, main, modules, place, staticProgram } from './lib/guest-image.mjs';

const folder = 'test/qemu-guest';

/** Each needs those before it only. */
const VIRTIO = [
  'virtio',
  'virtio_ring',
  'virtio_pci_legacy_dev',
  'virtio_pci_modern_dev',
  'virtio_pci',
  'virtio_blk',
  'virtio_balloon',
].map((name) => `${name}.ko`);

function initramfs(names) {
  const sources = ['init.c', 'guest.c', 'disk.c', 'churn.c'].map((name) => `${folder}/${name}`);
  const program = staticProgram(
    'init',
    sources,
    ['guest.h', 'disk.h', 'churn.h'].map((name) => `${folder}/${name}`),
  );
  const from = names.length > 0 ? modules(names) : undefined;
  const key = basename(program).slice('init-'.length);
  const name = from === undefined ? key : keyOf(key, basename(from));
  return place(join(cache, `initramfs-${name}.gz`), (scratch) => {
    const archive = new Archive();
    for (const name of ['dev', 'proc', 'sys']) archive.folder(name);
    archive.file('init', readFileSync(program), { mode: 0o755 });
    names.forEach((name, at) => archive.file(`modules/${at}-${name}`, readFileSync(join(from, name))));
    const file = join(scratch, 'initramfs.gz');
    writeFileSync(file, gzipSync(archive.bytes()));
    return file;
  });
}

main('build-test-guest', () => ({
  kernel: kernel(),
  initramfs: initramfs(process.argv.includes('--virtio') ? VIRTIO : []),
}));
