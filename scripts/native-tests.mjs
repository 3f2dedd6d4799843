// Builds the native core with its own test program, without Node's headers, and runs it.
//
//   node scripts/native-tests.mjs [--sanitize] [--build-only] [PART]...
//
// PART: only tests whose name contains it. --sanitize: once under AddressSanitizer and UndefinedBehaviorSanitizer, and
// the tests with threads once more under ThreadSanitizer where that works. CXX names the compiler, g++ without.
import { spawnSync, spawn } from 'node:child_process';
import { existsSync, mkdirSync, readFileSync, readdirSync, renameSync, statSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import { dirname, join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';

const native = resolve(dirname(fileURLToPath(import.meta.url)), '../native');
const compiler = process.env.CXX || 'g++';
const FLAGS = [
  '-std=gnu++20',
  '-fno-exceptions',
  '-fno-rtti',
  '-Wall',
  '-Wextra',
  '-Wno-missing-field-initializers',
  '-D_GNU_SOURCE',
  '-D_FILE_OFFSET_BITS=64',
  '-pthread',
  `-I${native}`,
];
// What ThreadSanitizer is asked to look at: the tests that have threads.
const THREADED = ['stress', 'files', 'wait', 'install', 'remove', 'again', 'foreign', 'reader'];
// A sanitizer's report wants lines only; with those alone, AddressSanitizer's objects take a quarter less time.
const BUILDS = {
  plain: { flags: ['-O2', '-g'], env: {} },
  address: {
    flags: ['-O1', '-g1', '-fno-omit-frame-pointer', '-fsanitize=address,undefined', '-fno-sanitize-recover=all'],
    env: { ASAN_OPTIONS: 'detect_stack_use_after_return=1', UBSAN_OPTIONS: 'print_stacktrace=1' },
  },
  thread: {
    flags: ['-O1', '-g1', '-fsanitize=thread'],
    env: { TSAN_OPTIONS: 'halt_on_error=1' },
  },
};

if (process.platform !== 'linux') {
  console.error('native tests: userfaultfd exists on Linux only');
  process.exit(1);
}
const args = process.argv.slice(2);
const unknown = args.find((arg) => arg.startsWith('--') && arg !== '--sanitize' && arg !== '--build-only');
if (unknown !== undefined) {
  console.error(`native tests: unknown option ${unknown}; see the head of scripts/native-tests.mjs`);
  process.exit(2);
}
const parts = args.filter((arg) => !arg.startsWith('--'));

const sources = ['core', 'test'].flatMap((folder) =>
  readdirSync(join(native, folder))
    .filter((name) => name.endsWith('.cc'))
    .map((name) => join(folder, name)),
);

/** Whether `object` is older than anything it was made from, by the compiler's own dependency file. */
function isStale(object) {
  if (!existsSync(object) || !existsSync(`${object}.d`)) return true;
  const made = statSync(object).mtimeMs;
  const needs = readFileSync(`${object}.d`, 'utf8').replace(/\\\n/g, ' ').split(/\s+/).slice(1).filter(Boolean);
  return [...needs, fileURLToPath(import.meta.url)].some((file) => !existsSync(file) || statSync(file).mtimeMs > made);
}

function run(command, argv) {
  return new Promise((done) => {
    const child = spawn(command, argv, { stdio: 'inherit', cwd: native });
    child.on('error', (error) => {
      console.error(`native tests: cannot run ${command}: ${error.message}`);
      done(127);
    });
    child.on('exit', (code) => done(code ?? 1));
  });
}

/** Compiles what changed, as many at once as there are cores, and links. Returns the program's path. */
async function build(name) {
  const { flags } = BUILDS[name];
  const folder = join(native, 'test/build', name);
  mkdirSync(folder, { recursive: true });
  const objects = sources.map((source) => ({ source, object: join(folder, source.replace(/[/.]/g, '_') + '.o') }));
  const queue = objects.filter(({ object }) => isStale(object));
  const failed = [];
  await Promise.all(
    Array.from({ length: availableParallelism() }, async () => {
      for (let next = queue.shift(); next !== undefined; next = queue.shift()) {
        const { source, object } = next;
        const code = await run(compiler, [
          ...FLAGS,
          ...flags,
          '-MMD',
          '-MF',
          `${object}.d`,
          '-c',
          source,
          '-o',
          object,
        ]);
        if (code !== 0) failed.push(source);
      }
    }),
  );
  if (failed.length > 0) throw new Error(`compiling failed: ${failed.join(', ')}`);
  const program = join(folder, 'native-tests');
  // Renamed into place: the program may be running for somebody else just now.
  const fresh = `${program}.${process.pid}`;
  if ((await run(compiler, [...FLAGS, ...flags, ...objects.map(({ object }) => object), '-o', fresh])) !== 0)
    throw new Error('linking failed');
  renameSync(fresh, program);
  return program;
}

/** Runs the program; its last line has the counts. */
function test(name, program, argv) {
  console.log(`# native tests, build: ${name}`);
  const ran = spawnSync(program, argv, {
    env: { ...process.env, ...BUILDS[name].env },
    stdio: ['ignore', 'pipe', 'inherit'],
    encoding: 'utf8',
    maxBuffer: 64 << 20,
  });
  const output = ran.stdout ?? '';
  const counts = /^(\d+) passed, (\d+) failed\n?$/m.exec(output);
  process.stdout.write(counts === null ? output : output.slice(0, counts.index));
  if (counts === null) {
    console.error(
      `native tests: the program ended early (${ran.signal ?? ran.error?.message ?? `code ${ran.status}`})`,
    );
    return { passed: 0, failed: 1 };
  }
  const result = { passed: Number(counts[1]), failed: Number(counts[2]) };
  if (ran.status !== 0 && result.failed === 0) result.failed = 1;
  return result;
}

/** A kernel or sandbox may not let ThreadSanitizer place its memory. */
function threadSanitizerWorks(program) {
  return (
    spawnSync(program, ['--list'], { stdio: 'ignore', env: { ...process.env, ...BUILDS.thread.env } }).status === 0
  );
}

const total = { passed: 0, failed: 0 };
const add = ({ passed, failed }) => {
  total.passed += passed;
  total.failed += failed;
};
try {
  const names = args.includes('--sanitize') ? ['address', 'thread'] : ['plain'];
  for (const name of names) {
    const program = await build(name);
    if (args.includes('--build-only')) continue;
    if (name === 'thread' && !threadSanitizerWorks(program)) {
      console.log('# ThreadSanitizer does not work on this machine: skipped');
      continue;
    }
    add(test(name, program, parts.length > 0 ? parts : name === 'thread' ? THREADED : []));
  }
} catch (error) {
  console.error(`native tests: ${error.message}`);
  total.failed++;
}
console.log(`${total.passed} passed, ${total.failed} failed`);
process.exitCode = total.failed === 0 ? 0 : 1;
