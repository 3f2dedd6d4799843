// Programs out of Debian packages, with the libraries that they need, without installing anything.
import { spawnSync } from 'node:child_process';
import { existsSync, readdirSync, statSync } from 'node:fs';
import { basename, join } from 'node:path';
import { cache, Failure, place, run, unpack } from './guest-image.mjs';

/**
 * What Debian offers this machine, after apt's own lists: name → paragraphs, one a version. Only what Debian signed counts: apt may
 * know packages of the same names from elsewhere.
 */
function readCatalogue() {
  const targets = run('apt-get', ['indextargets', '--format', '$(FILENAME)', 'Created-By: Packages', 'Origin: Debian']);
  const files = targets.split('\n').filter((file) => file && existsSync(file));
  if (files.length === 0) throw new Failure("apt has no lists of Debian's packages; run `apt-get update` first");
  const text = run('/usr/lib/apt/apt-helper', ['cat-file', ...files], undefined, { maxBuffer: 1 << 30 });
  const architectures = [run('dpkg', ['--print-architecture']).trim(), 'all'];
  const catalogue = new Map();
  for (const [, name, paragraph] of text.matchAll(/^Package: (.*)\n((?:.+\n)*)/gm)) {
    if (!architectures.includes(/^Architecture: (.*)$/m.exec(paragraph)?.[1])) continue;
    const had = catalogue.get(name);
    if (had) had.push(paragraph);
    else catalogue.set(name, [paragraph]);
  }
  return catalogue;
}

let catalogue;
const found = new Map();

/** The newest version of a package, and the names of those that it depends on, alternatives too. */
function lookUp(name) {
  catalogue ??= readCatalogue();
  if (!found.has(name)) {
    let newest;
    for (const paragraph of catalogue.get(name) ?? []) {
      const version = /^Version: (.*)$/m.exec(paragraph)[1];
      if (newest && spawnSync('dpkg', ['--compare-versions', newest.version, 'ge', version]).status === 0) continue;
      const depends = /^Depends: (.*)$/m.exec(paragraph)?.[1] ?? '';
      newest = { version, depends: depends.split(/[,|]/).map((part) => part.trim().split(/[ :(]/)[0]) };
    }
    if (!newest) throw new Failure(`apt's lists of Debian's packages have no ${name}; run \`apt-get update\``);
    found.set(name, newest);
  }
  return found.get(name);
}

/** The package of a release of something, as `postgresql-15`, after the package that stands for the newest, `postgresql`. */
export function numbered(name) {
  const found = lookUp(name).depends.find((other) => other.startsWith(`${name}-`) && /-\d+$/.test(other));
  if (!found) throw new Failure(`Debian's package ${name} names no release of it`);
  return found;
}

/** What a dynamic program or library says of itself: the sonames it needs, and the loader it asks for. */
function needs(file) {
  const text = run('readelf', ['-W', '-d', '-l', file]);
  return {
    sonames: [...text.matchAll(/\(NEEDED\).*\[(.*)\]/g)].map((match) => match[1]),
    loader: /program interpreter: (.*)\]/.exec(text)?.[1],
  };
}

/** How well a package's name fits a soname: `libicuuc.so.72` is in `libicu72`. Only an order to look in. */
function likeness(packageName, soname) {
  const [a, b] = [packageName, soname].map((name) => name.replace(/^lib/, ''));
  let same = 0;
  while (same < a.length && a[same] === b[same]) same++;
  return same;
}

/** Packages of one image, each fetched and unpacked into the cache when it is first needed. */
export class Packages {
  #trees = new Map();

  /** Where a package is unpacked. */
  tree(name) {
    let tree = this.#trees.get(name);
    if (!tree) {
      const { version } = lookUp(name);
      const target = join(cache, `package-${name}-${version.replaceAll(':', '%3a')}`);
      tree = place(target, (scratch) => unpack(`${name}=${version}`, scratch));
      this.#trees.set(name, tree);
    }
    return tree;
  }

  /** All packages that were used so far, as NAME=VERSION. */
  used() {
    return [...this.#trees.keys()].sort().map((name) => `${name}=${lookUp(name).version}`);
  }

  /** A path inside a package, on this machine. */
  path(name, inside) {
    const path = join(this.tree(name), inside);
    if (!existsSync(path)) throw new Failure(`Debian's package ${name} holds no ${inside}`);
    return path;
  }

  /** Where a package's libraries lie. */
  #libraryFolders(name) {
    return ['lib', 'usr/lib', 'lib64', 'usr/lib64'].flatMap((folder) => {
      const path = join(this.tree(name), folder);
      if (!existsSync(path)) return [];
      const inner = readdirSync(path).filter((entry) => /-linux-gnu/.test(entry));
      return [path, ...inner.map((entry) => join(path, entry))];
    });
  }

  #library(name, soname) {
    return this.#libraryFolders(name)
      .map((folder) => join(folder, soname))
      .find((path) => existsSync(path) && statSync(path).isFile());
  }

  /**
   * The libraries that programs need: soname → path, and the loader's path in the guest → path.
   *
   * By Debian's rules a package depends itself on the package of each library that its programs are linked to, so each soname
   * is looked for there, and nowhere else. `programs` are [package, path].
   */
  libraries(programs) {
    const found = new Map();
    const loaders = new Map();
    const queue = [...programs];
    for (const [owner, file] of queue) {
      const { sonames, loader } = needs(file);
      for (const soname of sonames) {
        if (found.has(soname)) continue;
        const [name, path] = this.#provider(owner, soname);
        found.set(soname, path);
        queue.push([name, path]);
      }
      if (loader) loaders.set(loader, this.#provider(owner, basename(loader))[1]);
    }
    return { sonames: found, loaders };
  }

  #provider(owner, soname) {
    const direct = lookUp(owner).depends.filter((name) => /^(lib|zlib)/.test(name) && catalogue.has(name));
    // what is unpacked already is asked first
    const rank = (name) => likeness(name, soname) + (this.#trees.has(name) ? 1000 : 0);
    for (const name of [owner, ...new Set(direct)].sort((a, b) => rank(b) - rank(a))) {
      const path = this.#library(name, soname);
      if (path) return [name, path];
    }
    throw new Failure(`no package that ${owner} depends on holds ${soname}`);
  }
}

/** All files and links below a folder, as paths below it. */
export function filesBelow(folder) {
  return readdirSync(folder, { withFileTypes: true, recursive: true })
    .filter((entry) => entry.isFile() || entry.isSymbolicLink())
    .map((entry) => join(entry.parentPath ?? entry.path, entry.name).slice(folder.length + 1));
}
