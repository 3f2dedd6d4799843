// Builds the native shim, the embedded guest and the launcher with node-gyp.
//
// node-gyp downloads Node's headers unless it is told where they are; that breaks on closed networks. Where the
// running Node was installed with its headers (`<prefix>/include/node`), they are used, and nothing is fetched.
import { spawnSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import { createRequire } from 'node:module';
import { availableParallelism } from 'node:os';
import { dirname, join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';

if (process.platform !== 'linux') {
  console.error('pagetide: userfaultfd exists on Linux only; run Pagetide on a Linux host (kernel 5.7 or newer).');
  process.exit(1);
}

const root = resolve(dirname(fileURLToPath(import.meta.url)), '..');
const nodeGyp = createRequire(import.meta.url).resolve('node-gyp/bin/node-gyp.js');
const prefix = resolve(dirname(process.execPath), '..');
const headers = [prefix, '/usr', '/usr/local'].find((dir) => existsSync(join(dir, 'include/node/node_api.h')));

// Sources are found when the Makefile is made, so it is made each time: a file that is new would be left out otherwise.
const actions = process.argv.includes('--clean') ? ['rebuild'] : ['configure', 'build'];
let built;
for (const action of actions) {
  const args = [nodeGyp, action, '-C', 'native', ...(headers ? [`--nodedir=${headers}`] : [])];
  if (action !== 'configure') args.push(`--jobs=${availableParallelism()}`);
  built = spawnSync(process.execPath, args, { cwd: root, stdio: ['ignore', 'pipe', 'pipe'], encoding: 'utf8' });
  if (built.status !== 0) break;
}
if (built.status !== 0) {
  process.stderr.write(built.stdout + built.stderr);
  console.error(
    'pagetide: building the native part failed. It needs a C++20 compiler (g++ 10+ or clang 12+), make and Python 3.',
  );
  process.exit(1);
}
if (process.env.PAGETIDE_VERBOSE_BUILD) process.stdout.write(built.stdout + built.stderr);
