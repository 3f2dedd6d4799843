/**
 * `npm run demo [-- --guest qemu] [--memory 256M] [--json]`: two agents on this machine, and guests under load, migrated by
 * post-copy while they run, each verified by itself: one to a host that knows nothing of it, a sibling of it to the same host,
 * and the first one back. The three reports beside each other; with --json each is a line, that of the way back the last. No
 * root where the kernel lets anyone create a userfaultfd for its own process, no hypervisor for the embedded guest. Nothing is
 * left behind.
 */
import { spawn, spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { AgentClient } from '../src/agent/api/client.ts';
import { asPagetideError, PagetideError } from '../src/errors.ts';
import { parseSize } from '../src/guests/options.ts';
import type { MigrationReport } from '../src/migration/types.ts';
import { projectRoot } from './lib/references.ts';

const CLI = fileURLToPath(new URL('../src/cli/main.js', import.meta.url));
const READY_MS = 30_000;

const DOMAIN = 'demo';

type Undo = (() => unknown)[];

interface DemoAgent {
  url: string;
  control: string;
  client: AgentClient;
}

/** Starts an agent of its own folders; resolves when it is ready. */
async function startAgent(undo: Undo, root: string, shm: string, name: string, cacheBytes: number): Promise<DemoAgent> {
  const state = join(root, name);
  const config = join(root, `${name}.json`);
  const cache = { size: String(cacheBytes) };
  writeFileSync(config, JSON.stringify({ memoryFolder: join(shm, name), cache, log: { level: 'warn' } }));
  const args = ['agent', '--listen', '127.0.0.1:0', '--state', state, '--name', name, '--config', config, '--json'];
  const child = spawn(process.execPath, [CLI, ...args], { stdio: ['ignore', 'pipe', 'inherit'] });
  const ended = new Promise<void>((resolve) => child.once('exit', () => resolve()));
  undo.push(async () => {
    child.kill('SIGTERM');
    await ended;
  });
  const ready = await new Promise<{ url: string; control: string }>((resolve, reject) => {
    let out = '';
    const late = setTimeout(
      () => reject(new PagetideError('PT_INTERNAL', `agent ${name} is not ready after ${READY_MS} ms`)),
      READY_MS,
    );
    child.stdout.setEncoding('utf8').on('data', (text: string) => {
      out += text;
      if (!out.includes('\n')) return;
      clearTimeout(late);
      resolve(JSON.parse(out) as { url: string; control: string });
    });
    child.once('exit', () => {
      clearTimeout(late);
      reject(new PagetideError('PT_INTERNAL', `agent ${name} ended before it was ready`));
    });
  });
  return { ...ready, client: new AgentClient(`unix:${ready.control}`) };
}

/** Options of the QEMU test guest, built on first use. */
function qemuOptions(memoryMib: number): Record<string, unknown> {
  if (spawnSync('qemu-system-x86_64', ['--version']).status !== 0) {
    throw new PagetideError('PT_UNSUPPORTED_HOST', 'qemu-system-x86_64 is not installed', {
      hint: 'apt-get install qemu-system-x86, or run the demo without --guest qemu.',
    });
  }
  const built = spawnSync(process.execPath, [join(projectRoot(), 'scripts/build-test-guest.mjs')], {
    encoding: 'utf8',
  });
  if (built.status !== 0) {
    throw new PagetideError('PT_UNSUPPORTED_HOST', `cannot build the test guest: ${built.stderr.trim()}`, {
      hint: 'It needs gcc, cpio and a Debian kernel package: apt-get update && apt-get install cpio libc6-dev.',
    });
  }
  const { kernel, initramfs } = JSON.parse(built.stdout) as { kernel: string; initramfs: string };
  const machine = [
    '-accel',
    'tcg',
    '-machine',
    'q35',
    '-nodefaults',
    '-no-reboot',
    '-m',
    String(memoryMib),
    '-smp',
    '1',
  ];
  const boot = ['-kernel', kernel, '-initrd', initramfs, '-append', 'console=ttyS0 quiet panic=-1'];
  const serial = ['-serial', 'file:{folder}/console.log'];
  const check = ['-chardev', 'socket,id=check,path={folder}/check.sock,server=on,wait=off', '-serial', 'chardev:check'];
  return { argv: ['qemu-system-x86_64', ...machine, ...boot, ...serial, ...check], checkSocket: '{folder}/check.sock' };
}

async function main(undo: Undo): Promise<void> {
  const { values } = parseArgs({
    options: {
      guest: { type: 'string', default: 'embedded' },
      memory: { type: 'string', default: '256M' },
      json: { type: 'boolean', default: false },
    },
  });
  const memory = parseSize(values.memory);
  if (memory === undefined)
    throw new PagetideError('PT_BAD_ARGUMENT', `--memory ${values.memory}: a size, please, e.g. 256M`);
  const driver = values.guest;
  if (driver !== 'embedded' && driver !== 'qemu')
    throw new PagetideError('PT_BAD_ARGUMENT', `--guest: embedded or qemu, not ${driver}`);
  // the result is the last line of stdout; what goes on is told on stderr where that matters
  const say = (text: string): void => void (values.json ? process.stderr : process.stdout).write(`${text}\n`);

  const root = mkdtempSync(join(tmpdir(), 'pagetide-demo-'));
  const shm = mkdtempSync('/dev/shm/pagetide-demo-');
  undo.push(() => {
    rmSync(root, { recursive: true, force: true });
    rmSync(shm, { recursive: true, force: true });
  });

  say('Starting two agents, a and b, on this machine, with a domain whose guests may share pages.');
  const [a, b] = await Promise.all(['a', 'b'].map((name) => startAgent(undo, root, shm, name, memory)));
  await a!.client.createDomain(DOMAIN);
  await a!.client.grantDomain(DOMAIN, `unix:${b!.control}`);
  const options = driver === 'qemu' ? qemuOptions(memory / 2 ** 20) : { memory };
  const start = async (name: string): Promise<void> => {
    say(`Starting guest ${name}, ${values.memory} under load, at agent a (${driver}).`);
    await a!.client.runGuest({ name, driver, options, domain: DOMAIN });
    undo.push(async () => {
      for (const { client } of [a!, b!]) await client.removeGuest(name).catch(() => undefined);
    });
    if (driver === 'embedded') return;
    say('Waiting until it has booted and checks its own pages.');
    await until(async () => ((await a!.client.showGuest(name)).stats?.operations ?? 0) > 0, 120_000);
  };
  const move = async (name: string, from: DemoAgent, to: DemoAgent): Promise<MigrationReport> => {
    const { id } = await from.client.migrate({ guest: name, to: to.url, mode: 'post-copy', verify: true });
    return finished(from.client, id, say);
  };

  await start('web1');
  say('Migrating web1 to agent b by post-copy, while it runs.');
  const cold = await move('web1', a!, b!);
  await start('web2');
  say('Migrating web2, which is like web1, to agent b.');
  const sibling = await move('web2', a!, b!);
  say('Migrating web1 back to agent a, which it has left before.');
  const back = await move('web1', b!, a!);

  const reports = { 'first, cold': cold, 'its sibling': sibling, 'coming back': back };
  say('');
  say(table(reports));
  const all = Object.values(reports);
  if (values.json) for (const report of all) process.stdout.write(`${JSON.stringify(report)}\n`);
  if (all.some(({ verified }) => verified !== true))
    throw new PagetideError('PT_VERIFY_FAILED', 'a guest is not verified');
}

/** The reports beside each other. */
function table(reports: Record<string, MigrationReport>): string {
  const mib = (bytes: number): string => `${(bytes / 2 ** 20).toFixed(1)} MiB`;
  const rows: [string, (report: MigrationReport) => string][] = [
    ['verified', ({ verified }) => (verified === true ? 'yes, by itself' : String(verified))],
    ['frames', ({ frames }) => String(frames.total)],
    ['  zero', ({ frames }) => String(frames.zero)],
    ['  from the cache', ({ frames }) => String(frames.cache)],
    ["  in guests' memory", ({ frames }) => String(frames.resident)],
    ['  repeated', ({ frames }) => String(frames.duplicate)],
    ['  from peers', ({ frames }) => String(frames.peer)],
    ['  from the source', ({ frames }) => String(frames.source)],
    ['network', ({ bytes }) => mib(bytes.wire)],
    ['downtime', ({ ms }) => `${ms.downtime?.toFixed(1)} ms`],
    ['in all', ({ ms }) => `${ms.total.toFixed(0)} ms`],
    ['faults', ({ faults }) => String(faults.count)],
    ['  median stall', ({ faults }) => `${faults.p50Us.toFixed(0)} µs`],
    ['  p99', ({ faults }) => `${faults.p99Us.toFixed(0)} µs`],
  ];
  const columns = Object.values(reports);
  const lines = [['', ...Object.keys(reports)], ...rows.map(([name, show]) => [name, ...columns.map(show)])];
  return lines.map(([name, ...cells]) => name!.padEnd(20) + cells.map((cell) => cell.padStart(16)).join('')).join('\n');
}

async function finished(client: AgentClient, id: string, say: (text: string) => void): Promise<MigrationReport> {
  let phase = '';
  for (;;) {
    const info = await client.showMigration(id);
    const { progress } = info;
    if (progress.phase !== phase) {
      phase = progress.phase;
      say(
        `  ${phase}: ${progress.framesPresent} of ${progress.framesTotal} frames, ${progress.faultsServed} faults served`,
      );
    }
    if (info.report !== undefined) return info.report;
    if (phase === 'failed' || phase === 'cancelled') {
      throw new PagetideError(info.error?.code ?? 'PT_INTERNAL', info.error?.message ?? `the migration ${phase}`);
    }
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}

async function until(holds: () => Promise<boolean>, timeoutMs: number): Promise<void> {
  const deadline = performance.now() + timeoutMs;
  while (!(await holds())) {
    if (performance.now() > deadline)
      throw new PagetideError('PT_VMM_TIMEOUT', `the guest is not up after ${timeoutMs} ms`);
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
}

const undo: Undo = [];
let clearing: Promise<void> | undefined;
const clear = (): Promise<void> =>
  (clearing ??= (async () => {
    for (const step of undo.splice(0).reverse()) await step();
  })());
for (const signal of ['SIGINT', 'SIGTERM'] as const) {
  process.once(signal, () => void clear().finally(() => process.exit(signal === 'SIGINT' ? 130 : 143)));
}
main(undo)
  .catch((thrown: unknown) => {
    const error = asPagetideError(thrown);
    process.stderr.write(`demo: ${error.message} [${error.code}]\n  ${error.hint}\n`);
    process.exitCode = 1;
  })
  .finally(clear);
