// What the scripts that build guests for tests have in common: a cache folder of finished parts, Debian's cloud kernel,
// and the archive that a kernel unpacks as its first file system.
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
} from 'node:fs';
import { basename, dirname, join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';

/** The checkout. */
export const root = resolve(dirname(fileURLToPath(import.meta.url)), '../..');
/** The folder of finished parts; made by {@link main}. */
export const cache = resolve(process.env.PAGETIDE_TEST_GUEST || join(root, '.cache/test-guest'));

/** Something that this machine lacks, or that went wrong outside: told in a line, without a stack. */
export class Failure extends Error {}

/** Runs a command; returns its stdout. `options` are spawnSync's. Throws {@link Failure} with all that it said. */
export function run(command, args, cwd, options = {}) {
  const done = spawnSync(command, args, {
    cwd,
    encoding: 'utf8',
    maxBuffer: 64 << 20,
    ...options,
    env: { ...process.env, LC_ALL: 'C', ...options.env },
  });
  if (done.error?.code === 'ENOENT') throw new Failure(`${command} is not installed`);
  if (done.status !== 0)
    throw new Failure(
      `${command} ${args.join(' ')} failed:\n${done.stdout ?? ''}${done.stderr ?? ''}${done.error ?? ''}`,
    );
  return done.stdout;
}

/** Runs `make(folder)` in a scratch folder inside the cache, and renames what it returns to `target`, unless that is there. */
export function place(target, make) {
  if (existsSync(target)) return target;
  const scratch = mkdtempSync(join(cache, 'making-'));
  try {
    const made = make(scratch);
    try {
      renameSync(made, target);
    } catch (error) {
      // a folder can't be renamed over another: somebody else was faster, with the same content
      if (!existsSync(target)) throw error;
    }
  } finally {
    rmSync(scratch, { recursive: true, force: true });
  }
  return target;
}

/** First 16 hexadecimal digits of a digest over all parts and where they end. */
export function keyOf(...parts) {
  const hash = createHash('sha256');
  for (const part of parts) hash.update(`${Buffer.byteLength(part)}:`).update(part);
  return hash.digest('hex').slice(0, 16);
}

/** Downloads a package of apt's, by NAME or NAME=VERSION, and unpacks it; returns the folder, below `scratch`. */
export function unpack(name, scratch) {
  run('apt-get', ['-o', 'APT::Sandbox::User=root', 'download', name], scratch);
  const deb = readdirSync(scratch).find((entry) => entry.endsWith('.deb'));
  if (!deb) throw new Failure(`apt-get download ${name} brought no package`);
  run('dpkg', ['-x', deb, 'x'], scratch);
  return join(scratch, 'x');
}

/** Path of the kernel. */
export function kernel() {
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
    const boot = join(unpack(image, scratch), 'boot');
    const name = readdirSync(boot).find((entry) => entry.startsWith('vmlinuz-'));
    if (!name) throw new Failure(`${image} holds no kernel`);
    copyFileSync(join(boot, name), join(scratch, 'vmlinuz'));
    return join(scratch, 'vmlinuz');
  });
}

/**
 * Folder with modules of that kernel, which Debian's has no virtio without, each by its name: `virtio_blk.ko`.
 * @param names in the order of loading
 */
export function modules(names) {
  const release = /^vmlinuz-(.*-cloud-.*)$/.exec(basename(kernel()))?.[1];
  if (!release)
    throw new Failure('PAGETIDE_TEST_KERNEL: of a kernel of your own there are no modules, so no virtio devices');
  return place(join(cache, `modules-${release}-${keyOf(...names)}`), (scratch) => {
    const tree = unpack(`linux-image-${release}`, scratch);
    const made = join(scratch, 'modules');
    mkdirSync(made);
    const found = readdirSync(tree, { recursive: true });
    for (const name of names) {
      const path = found.find((file) => basename(file) === name);
      if (path === undefined) throw new Failure(`linux-image-${release} has no module ${name}`);
      copyFileSync(join(tree, path), join(made, name));
    }
    return made;
  });
}

/**
 * A static program of the C files `sources` (paths below the checkout; `headers` are what they include besides), in the
 * cache. Returns its path.
 */
export function staticProgram(name, sources, headers = []) {
  const flags = ['-static', '-O2', '-Wall', '-Wextra', '-pthread'];
  const paths = sources.map((source) => join(root, source));
  const text = [...sources, ...headers].map((file) => readFileSync(join(root, file), 'utf8'));
  return place(join(cache, `${name}-${keyOf(flags.join(' '), ...text)}`), (scratch) => {
    const program = join(scratch, name);
    run(process.env.CC || 'gcc', [...flags, '-o', program, ...paths], scratch);
    return program;
  });
}

const FOLDER = 0o040000;
const FILE = 0o100000;
const LINK = 0o120000;

/** One member of a cpio archive in the "newc" format that the kernel unpacks: header and name, and data, each padded to 4 bytes. */
function member(name, mode, data, owner = 0) {
  const fields = [0, mode, owner, owner, 1, 0, data.length, 0, 0, 0, 0, Buffer.byteLength(name) + 1, 0];
  const header = '070701' + fields.map((field) => field.toString(16).padStart(8, '0')).join('') + name + '\0';
  const padded = (buffer) => Buffer.concat([buffer, Buffer.alloc(-buffer.length & 3)]);
  return Buffer.concat([padded(Buffer.from(header)), padded(data)]);
}

/** A file system to be, by path without a leading slash. Folders above what is added come by themselves, mode 0755, root's. */
export class Archive {
  #members = new Map();

  folder(path, { mode = 0o755, owner = 0 } = {}) {
    this.#add(path, FOLDER | mode, Buffer.alloc(0), owner);
  }

  /** `data` is a Buffer or a string. */
  file(path, data, { mode = 0o644, owner = 0 } = {}) {
    this.#add(path, FILE | mode, Buffer.from(data), owner);
  }

  link(path, target) {
    this.#add(path, LINK | 0o777, Buffer.from(target), 0);
  }

  has(path) {
    return this.#members.has(path);
  }

  #add(path, mode, data, owner) {
    const above = dirname(path);
    if (above !== '.' && !this.#members.has(above)) this.folder(above);
    this.#members.set(path, member(path, mode, data, owner));
  }

  /** The whole, as the kernel takes it when it isn't compressed. */
  bytes() {
    return Buffer.concat([...this.#members.values(), member('TRAILER!!!', 0, Buffer.alloc(0))]);
  }
}

/** Runs a script's `work` and prints what it returns as one line of JSON; a {@link Failure} in one line, with status 1. */
export function main(script, work) {
  try {
    mkdirSync(cache, { recursive: true });
    console.log(JSON.stringify(work()));
  } catch (thrown) {
    if (!(thrown instanceof Failure)) throw thrown;
    console.error(`${script}: ${thrown.message}`);
    process.exit(1);
  }
}
