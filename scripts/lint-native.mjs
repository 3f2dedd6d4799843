// Checks the format of the C++ and C sources against .clang-format; --fix rewrites them.
//
// Where clang-format isn't installed the check is skipped, with PAGETIDE_REQUIRE_LINT=1 it fails.
import { spawnSync } from 'node:child_process';
import { existsSync, readdirSync } from 'node:fs';
import { dirname, join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = resolve(dirname(fileURLToPath(import.meta.url)), '..');
const args = process.argv.slice(2);
if (args.some((arg) => arg !== '--fix')) {
  console.error('usage: node scripts/lint-native.mjs [--fix]');
  process.exit(2);
}

/** Sources below `folder`, without what a build made. */
function sources(folder) {
  if (!existsSync(join(root, folder))) return [];
  return readdirSync(join(root, folder), { withFileTypes: true }).flatMap((entry) => {
    const path = `${folder}/${entry.name}`;
    if (entry.isDirectory()) return entry.name === 'build' || entry.name === 'node_modules' ? [] : sources(path);
    return /\.(h|cc|c)$/.test(entry.name) ? [path] : [];
  });
}

const version = spawnSync('clang-format', ['--version'], { encoding: 'utf8' });
if (version.status !== 0) {
  const required = process.env.PAGETIDE_REQUIRE_LINT === '1';
  console.error(
    `lint-native: clang-format is not installed (apt-get install clang-format)${required ? '' : ': skipped'}`,
  );
  process.exit(required ? 1 : 0);
}

const folders = ['native', 'bench/reference', 'test/qemu-guest', 'test/load-guest'];
const files = folders.flatMap(sources);
const mode = args.includes('--fix') ? ['-i'] : ['--dry-run', '-Werror'];
const ran = spawnSync('clang-format', [...mode, '--style=file', ...files], { cwd: root, stdio: 'inherit' });
process.exitCode = ran.status ?? 1;
if (ran.status === 0) console.log(`lint-native: ${files.length} files`);
