// Builds the guest that QEMU tests boot: Debian's cloud kernel, and an initramfs whose /init checks its own pages
// (test/qemu-guest/init.c). Prints one line of JSON: {"kernel": PATH, "initramfs": PATH}.
//
// Everything lands in a cache folder (.cache/test-guest, or PAGETIDE_TEST_GUEST), each part under a name that follows
// from what it was made of, by renaming a finished file: so runs at the same time don't meet half a part, and a second
// run needs neither network nor compiler. PAGETIDE_TEST_KERNEL names a kernel to use instead of Debian's (it needs an
// 8250 serial console and initramfs support built in).
import { spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import {
  copyFileSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  readdirSync,
  renameSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { dirname, join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { gzipSync } from 'node:zlib';

const root = resolve(dirname(fileURLToPath(import.meta.url)), '..');
const cache = resolve(process.env.PAGETIDE_TEST_GUEST || join(root, '.cache/test-guest'));

class Failure extends Error {}

function run(command, args, cwd) {
  const done = spawnSync(command, args, {
    cwd,
    encoding: 'utf8',
    maxBuffer: 64 << 20,
    env: { ...process.env, LC_ALL: 'C' },
  });
  if (done.error?.code === 'ENOENT') throw new Failure(`${command} is not installed`);
  if (done.status !== 0)
    throw new Failure(
      `${command} ${args.join(' ')} failed:\n${done.stdout ?? ''}${done.stderr ?? ''}${done.error ?? ''}`,
    );
  return done.stdout;
}

/** Runs `make(folder)` in a scratch folder inside the cache, so that what it returns can be renamed into place. */
function place(target, make) {
  if (existsSync(target)) return target;
  const scratch = mkdtempSync(join(cache, 'making-'));
  try {
    renameSync(make(scratch), target);
  } finally {
    rmSync(scratch, { recursive: true, force: true });
  }
  return target;
}

function kernel() {
  const given = process.env.PAGETIDE_TEST_KERNEL;
  if (given) {
    if (!existsSync(given)) throw new Failure(`PAGETIDE_TEST_KERNEL: ${given} does not exist`);
    return resolve(given);
  }
  // Any kernel that was fetched once will do: tests don't depend on its version.
  const had = readdirSync(cache)
    .filter((name) => /^vmlinuz-.*-cloud-/.test(name))
    .sort()
    .at(-1);
  if (had) return join(cache, had);
  const arch = run('dpkg', ['--print-architecture']).trim();
  const meta = `linux-image-cloud-${arch}`;
  const depends = run('apt-cache', ['depends', meta]);
  const image = /Depends: (linux-image-[\w.+~-]+)/.exec(depends)?.[1];
  if (!image) throw new Failure(`apt knows no ${meta}; run \`apt-get update\` first, or set PAGETIDE_TEST_KERNEL`);
  const file = `vmlinuz-${image.slice('linux-image-'.length)}`;
  return place(join(cache, file), (scratch) => {
    run('apt-get', ['-o', 'APT::Sandbox::User=root', 'download', image], scratch);
    const deb = readdirSync(scratch).find((name) => name.endsWith('.deb'));
    if (!deb) throw new Failure(`apt-get download ${image} brought no package`);
    run('dpkg', ['-x', deb, 'x'], scratch);
    const boot = join(scratch, 'x/boot');
    const name = readdirSync(boot).find((entry) => entry.startsWith('vmlinuz-'));
    if (!name) throw new Failure(`${deb} holds no kernel`);
    copyFileSync(join(boot, name), join(scratch, 'vmlinuz'));
    return join(scratch, 'vmlinuz');
  });
}

/** One member of a cpio archive in the "newc" format that the kernel unpacks: header and name, and data, each padded to 4 bytes. */
function member(name, mode, data) {
  const fields = [0, mode, 0, 0, 1, 0, data.length, 0, 0, 0, 0, name.length + 1, 0];
  const header = '070701' + fields.map((field) => field.toString(16).padStart(8, '0')).join('') + name + '\0';
  const padded = (buffer) => Buffer.concat([buffer, Buffer.alloc(-buffer.length & 3)]);
  return Buffer.concat([padded(Buffer.from(header)), padded(data)]);
}

function initramfs() {
  const source = join(root, 'test/qemu-guest/init.c');
  const flags = ['-static', '-O2', '-Wall', '-Wextra', '-pthread'];
  const key = createHash('sha256').update(readFileSync(source)).update(flags.join(' ')).digest('hex').slice(0, 16);
  return place(join(cache, `initramfs-${key}.gz`), (scratch) => {
    const program = join(scratch, 'init');
    run(process.env.CC || 'gcc', [...flags, '-o', program, source], scratch);
    const none = Buffer.alloc(0);
    const archive = [
      ...['dev', 'proc', 'sys'].map((folder) => member(folder, 0o040755, none)),
      member('init', 0o100755, readFileSync(program)),
      member('TRAILER!!!', 0, none),
    ];
    const file = join(scratch, 'initramfs.gz');
    writeFileSync(file, gzipSync(Buffer.concat(archive)));
    return file;
  });
}

try {
  mkdirSync(cache, { recursive: true });
  console.log(JSON.stringify({ kernel: kernel(), initramfs: initramfs() }));
} catch (thrown) {
  if (!(thrown instanceof Failure)) throw thrown;
  console.error(`build-test-guest: ${thrown.message}`);
  process.exit(1);
}
