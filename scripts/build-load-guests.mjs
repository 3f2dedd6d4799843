// Builds guests that run real loads (docs/loads.md): Debian's cloud kernel, and for each load an initramfs with its server, out
// of Debian's packages, and the program that starts it, drives it and checks it (test/load-guest/).
//
//   node scripts/build-load-guests.mjs [LOAD…]      all of them unless named: redis nginx node postgres idle
//
// Prints one line of JSON: {"kernel": PATH, "initramfs": {LOAD: PATH}}. Where it all lands, and which variables it heeds, is
// described in lib/guest-image.mjs. Nothing is installed; needed are gcc, apt with Debian's package lists, and readelf.
import {
  chownSync,
  copyFileSync,
  cpSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  readdirSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { basename, join } from 'node:path';
import { compressSync } from 'lz4-napi';
import { filesBelow, numbered, Packages } from './lib/debian-packages.mjs';
import { Archive, cache, Failure, kernel, keyOf, main, place, root, run, staticProgram } from './lib/guest-image.mjs';

const folder = 'test/load-guest';
/** `nobody`, as whom the servers run inside the guest, and whose their files are there. initdb wants a user that this machine has, too. */
const SERVER = 65534;

const loads = {
  redis(image) {
    // one program, whatever it is called by
    image.program('redis-tools', 'usr/bin/redis-check-rdb', 'usr/bin/redis-server');
    image.ours('redis.conf');
  },
  nginx(image) {
    image.program('nginx', 'usr/sbin/nginx');
    image.ours('nginx.conf');
    image.archive.folder('srv');
    image.archive.folder('var/log/nginx');
  },
  node(image) {
    image.program('nodejs', 'usr/bin/node');
    image.ours('server.js');
    // what Debian's Node.js reads of its own library from files
    for (const name of ['node-acorn', 'node-cjs-module-lexer', 'node-undici'])
      image.tree(
        name,
        'usr/share/nodejs',
        (file) => /\.m?js$|package\.json$/.test(file) && !/\/(bin|types)\//.test(file),
      );
  },
  postgres(image) {
    const name = numbered('postgresql');
    const release = name.split('-').at(-1);
    const [libraries, share] = [`usr/lib/postgresql/${release}`, `usr/share/postgresql/${release}`];
    image.program(name, `${libraries}/bin/postgres`);
    image.archive.link('usr/bin/postgres', `/${libraries}/bin/postgres`);
    for (const module of ['plpgsql.so', 'dict_snowball.so']) image.program(name, `${libraries}/lib/${module}`);
    image.tree(name, `${share}/timezonesets`, () => true);
    image.data('var/postgres', databaseCluster(image.packages, name, libraries));
  },
  idle() {},
};

/**
 * The folder of a new database cluster, with our configuration; made on this machine by the package's own initdb.
 *
 * PostgreSQL refuses to run as root, and whoever it runs as may not be let into the cache: so it works on a copy of the package.
 */
function databaseCluster(packages, name, libraries) {
  const programs = ['postgres', 'initdb'].map((program) => [name, packages.path(name, `${libraries}/bin/${program}`)]);
  const { sonames } = packages.libraries(programs);
  const configuration = readFileSync(join(root, folder, 'postgresql.conf'), 'utf8');
  const key = keyOf(configuration, readFileSync(new URL(import.meta.url)), ...packages.used());
  return place(join(cache, `cluster-${key}`), (scratch) => {
    const copy = mkdtempSync(join(tmpdir(), 'pagetide-initdb-'));
    try {
      cpSync(packages.tree(name), join(copy, 'package'), { recursive: true });
      mkdirSync(join(copy, 'libraries'));
      // all but the C library: that has to fit this machine's loader, and any of the release fits the package
      for (const [soname, path] of sonames)
        if (!path.startsWith(`${packages.tree('libc6')}/`)) copyFileSync(path, join(copy, 'libraries', soname));
      const made = join(copy, 'cluster');
      mkdirSync(made);
      const user = process.getuid() === 0 ? { uid: SERVER, gid: SERVER } : {};
      if (user.uid !== undefined) for (const each of [copy, made]) chownSync(each, user.uid, user.gid);
      const options = { ...user, env: { LD_LIBRARY_PATH: join(copy, 'libraries'), HOME: copy, TZ: 'UTC' } };
      const words = ['-D', made, '-U', 'postgres', '-A', 'trust', '-E', 'UTF8', '--no-locale', '-k', '-N'];
      const bin = join(copy, 'package', libraries, 'bin');
      run(join(bin, 'initdb'), [...words, '--wal-segsize=1'], copy, options);
      writeFileSync(join(made, 'postgresql.auto.conf'), configuration);
      // one database will do, and makes the image smaller
      const input = `UPDATE pg_database SET datistemplate = false WHERE datname = 'template0';
DROP DATABASE template0;
DROP DATABASE postgres;
CHECKPOINT;
`;
      run(join(bin, 'postgres'), ['--single', '-D', made, 'template1'], copy, { ...options, input });
      // by copying: the cache may be on another file system
      cpSync(made, join(scratch, 'cluster'), { recursive: true });
    } finally {
      rmSync(copy, { recursive: true, force: true });
    }
    return join(scratch, 'cluster');
  });
}

/** One guest's file system, while it is gathered. */
class Image {
  archive = new Archive();
  packages = new Packages();
  #programs = [];
  #key = [];

  constructor(load, init) {
    for (const name of ['dev', 'proc', 'sys', 'run', 'var']) this.archive.folder(name);
    this.archive.folder('tmp', { mode: 0o1777 });
    this.archive.file('init', readFileSync(init), { mode: 0o755 });
    this.archive.file('etc/load', load);
    this.archive.file('etc/passwd', `root:x:0:0::/:/bin/sh\nnobody:x:${SERVER}:${SERVER}::/tmp:/bin/sh\n`);
    this.archive.file('etc/group', `root:x:0:\nnogroup:x:${SERVER}:\n`);
    this.#key.push(basename(init));
  }

  /** A program, or module, of a package. */
  program(name, inside, at = inside) {
    this.packages.tree('libc6'); // every program's: looked into first
    const path = this.packages.path(name, inside);
    this.archive.file(at, readFileSync(path), { mode: 0o755 });
    this.#programs.push([name, path]);
  }

  /** A file of this folder, below /etc. */
  ours(name) {
    const data = readFileSync(join(root, folder, name));
    this.archive.file(`etc/${name}`, data);
    this.#key.push(data);
  }

  /** What `wanted` chooses of a package's folder. */
  tree(name, inside, wanted) {
    const path = this.packages.path(name, inside);
    for (const file of filesBelow(path)) {
      const at = join(path, file);
      if (wanted(`/${file}`) && statSync(at, { throwIfNoEntry: false })?.isFile())
        this.archive.file(join(inside, file), readFileSync(at));
    }
  }

  /** The server's own folder, a copy of `path`. */
  data(at, path) {
    this.archive.folder(at, { mode: 0o700, owner: SERVER });
    for (const entry of readdirSync(path, { withFileTypes: true, recursive: true })) {
      const from = join(entry.parentPath ?? entry.path, entry.name);
      const to = join(at, from.slice(path.length + 1));
      if (entry.isDirectory()) this.archive.folder(to, { mode: 0o700, owner: SERVER });
      else this.archive.file(to, readFileSync(from), { mode: 0o600, owner: SERVER });
    }
    this.#key.push(basename(path));
  }

  /** Adds the libraries; what the image is made of, as a key. */
  finish() {
    if (this.#programs.length > 0) {
      const { sonames, loaders } = this.packages.libraries(this.#programs);
      for (const [soname, path] of sonames) this.archive.file(`usr/lib/${soname}`, readFileSync(path), { mode: 0o755 });
      for (const [loader, path] of loaders) this.archive.file(loader.slice(1), readFileSync(path), { mode: 0o755 });
    }
    const scripts = ['build-load-guests.mjs', 'lib/debian-packages.mjs', 'lib/guest-image.mjs'];
    const text = scripts.map((script) => readFileSync(join(root, 'scripts', script)));
    return keyOf(...text, ...this.#key, ...this.packages.used());
  }
}

/** LZ4 in the "legacy" frame, the one that kernels know: it unpacks several times faster than gzip, which an emulated CPU feels. */
function lz4(bytes) {
  const BLOCK = 8 << 20;
  const parts = [Buffer.from([0x02, 0x21, 0x4c, 0x18])];
  for (let at = 0; at < bytes.length; at += BLOCK) {
    // lz4-napi puts the length of the data in front
    const block = compressSync(bytes.subarray(at, at + BLOCK)).subarray(4);
    const length = Buffer.alloc(4);
    length.writeUInt32LE(block.length);
    parts.push(length, block);
  }
  return Buffer.concat(parts);
}

function initramfs(load, init) {
  const image = new Image(load, init);
  loads[load](image);
  const key = image.finish();
  return place(join(cache, `load-${load}-${key}.lz4`), (scratch) => {
    const file = join(scratch, 'initramfs');
    writeFileSync(file, lz4(image.archive.bytes()));
    return file;
  });
}

main('build-load-guests', () => {
  const names = process.argv.length > 2 ? process.argv.slice(2) : Object.keys(loads);
  const unknown = names.find((name) => !Object.hasOwn(loads, name));
  if (unknown !== undefined) throw new Failure(`no load ${unknown}; there are: ${Object.keys(loads).join(' ')}`);
  const sources = readdirSync(join(root, folder)).sort();
  const c = sources.filter((name) => name.endsWith('.c')).map((name) => `${folder}/${name}`);
  const init = staticProgram(
    'load-init',
    [...c, 'test/qemu-guest/guest.c'],
    [`${folder}/load.h`, 'test/qemu-guest/guest.h'],
  );
  return { kernel: kernel(), initramfs: Object.fromEntries(names.map((name) => [name, initramfs(name, init)])) };
});
