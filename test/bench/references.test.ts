import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, readFileSync } from 'node:fs';
import { createInterface } from 'node:readline';
import { setImmediate } from 'node:timers/promises';
import t from 'tap';
import {
  buildReferences,
  makeSlots,
  startFillHandler,
  startHitHandler,
  startMissHandler,
  type Slots,
} from '../../bench/lib/references.ts';
import { withScope, type Scope } from '../../bench/lib/scope.ts';
import { startToucher } from '../../bench/lib/toucher.ts';

const FRAMES = 256;
const SEED = 9;

buildReferences();

/** Page content as bench/reference/common.h has it, written a second time. */
function word(seed: bigint, frame: bigint, index: bigint): bigint {
  const u64 = (x: bigint): bigint => BigInt.asUintN(64, x);
  const mix = (x: bigint): bigint => {
    let y = u64(x + 0x9e3779b97f4a7c15n);
    y = u64((y ^ (y >> 30n)) * 0xbf58476d1ce4e5b9n);
    y = u64((y ^ (y >> 27n)) * 0x94d049bb133111ebn);
    return y ^ (y >> 31n);
  };
  return mix(u64(mix(mix(seed) ^ frame) + index));
}

function scoped(work: (scope: Scope, slots: Slots) => Promise<void>): Promise<void> {
  return withScope(async (scope) => work(scope, await makeSlots(scope, FRAMES, SEED, FRAMES + 50)));
}

void t.test('slots: scattered, each once, with the content they should have', (t) =>
  scoped((_, slots) => {
    const bytes = readFileSync(slots.table);
    const table = new Uint32Array(bytes.buffer, bytes.byteOffset, FRAMES);
    const arena = readFileSync(slots.arena);
    const memory = readFileSync(slots.memory);
    t.equal(new Set(table).size, FRAMES);
    t.ok(table.every((slot) => slot < FRAMES + 50));
    t.ok(table.filter((slot, frame) => frame > 0 && slot === table[frame - 1]! + 1).length < FRAMES / 8);
    table.forEach((slot, frame) => {
      const page = memory.subarray(frame * 4096, (frame + 1) * 4096);
      if (!page.equals(arena.subarray(slot * 4096, (slot + 1) * 4096))) t.fail(`slot of frame ${frame} differs`);
    });
    for (const [frame, index] of [
      [0, 0],
      [1, 0],
      [200, 511],
    ] as const) {
      const expected = word(BigInt(SEED), BigInt(frame), BigInt(index));
      t.equal(memory.readBigUInt64LE(frame * 4096 + index * 8), expected);
    }
    return Promise.resolve();
  }),
);

for (const shared of [false, true]) {
  for (const spinUs of [0, 50]) {
    const memory = shared ? 'shared' : 'private';
    void t.test(`hit: every page right, ${memory} memory, spin ${spinUs} µs, one and several threads`, (t) =>
      scoped(async (scope, slots) => {
        const { program, socket } = await startHitHandler(scope, slots, { spinUs });
        const toucher = await startToucher(scope, { socket, frames: FRAMES, seed: SEED, shared });
        const samples = scope.path('samples');
        const first = await toucher.touch({ count: 100, samples });
        t.equal(readFileSync(samples).length, 400);
        t.match(first, { count: 100, threads: 1 });
        t.ok(first.minNs > 0 && first.minNs <= first.p50Ns && first.p50Ns <= first.p99Ns && first.p99Ns <= first.maxNs);
        await toucher.touch({ count: 50, order: 'sequential', gapUs: 100 });
        await toucher.touch({ count: FRAMES - 150, threads: 3, seed: 4 });
        t.equal(await toucher.verify(), FRAMES);
        await toucher.quit();
        t.match(await program.next('done'), { faults: FRAMES });
        await program.exited();
      }),
    );
  }
}

void t.test('miss: every page comes from the server, and is right', (t) =>
  scoped(async (scope, slots) => {
    for (const spin of [0, 50]) {
      const spins = { spinUs: spin, answerSpinUs: spin, serverSpinUs: spin };
      const { program, socket, server } = await startMissHandler(scope, slots, spins);
      const toucher = await startToucher(scope, { socket, frames: FRAMES, seed: SEED });
      await toucher.touch({ count: FRAMES });
      t.equal(await toucher.verify(), FRAMES);
      await toucher.quit();
      t.match(await program.next('done'), { faults: FRAMES });
      t.match(await server.next('done'), { served: FRAMES });
    }
  }),
);

void t.test('fill: every page is there without a touch, and is right', (t) =>
  scoped(async (scope, slots) => {
    for (const shared of [false, true]) {
      const handler = await startFillHandler(scope, slots);
      const toucher = await startToucher(scope, { socket: handler.socket, frames: FRAMES, seed: SEED, shared });
      const [seen, figures] = await Promise.all([toucher.waitPresent(), handler.fill()]);
      t.match(figures, { frames: FRAMES });
      t.ok(figures.mibPerS > 0 && seen.endNs > figures.startNs);
      t.equal(await toucher.verify(true), FRAMES);
      await t.rejects(toucher.touch({ count: 10 }), { code: 'PT_IO', message: /only 0 of 10 touches were faults/ });
      await toucher.quit();
      await handler.program.next('done');
    }
  }),
);

void t.test('a wrong page is noticed, at its touch and when all is compared', (t) =>
  scoped(async (scope, slots) => {
    const { socket } = await startHitHandler(scope, slots);
    const toucher = await startToucher(scope, { socket, frames: FRAMES, seed: SEED + 1 });
    await t.rejects(toucher.touch({ count: 5 }), { code: 'PT_FOREIGN_PAGE', message: /5 of 5/ });
    await t.rejects(toucher.verify(), { code: 'PT_FOREIGN_PAGE' });
  }),
);

void t.test('bad input is refused with the reason', (t) =>
  scoped(async (scope, slots) => {
    const { socket } = await startHitHandler(scope, slots);
    const toucher = await startToucher(scope, { socket, frames: FRAMES, seed: SEED });
    await t.rejects(toucher.touch({ count: FRAMES + 1 }), {
      code: 'PT_IO',
      message: /only 256 frames were never touched/,
    });
    const large = await startHitHandler(scope, slots);
    const { program } = await startToucher(scope, { socket: large.socket, frames: FRAMES + 1, seed: SEED });
    await t.rejects(large.program.next('done'), { message: /larger than its slot table/ });
    await program.kill();
  }),
);

void t.test('a scope leaves no process and no file, also when its work fails', async (t) => {
  let folder = '';
  const pids: number[] = [];
  const work = withScope(async (scope) => {
    folder = scope.folder;
    const slots = await makeSlots(scope, FRAMES, SEED);
    const { program, socket } = await startHitHandler(scope, slots, { spinUs: 1000 });
    const toucher = await startToucher(scope, { socket, frames: FRAMES, seed: SEED });
    pids.push(program.pid, toucher.pid);
    t.ok(existsSync(folder));
    for (const pid of pids) process.kill(pid, 0);
    throw new Error('on purpose');
  });
  await t.rejects(work, { message: 'on purpose' });
  t.notOk(existsSync(folder));
  for (const pid of pids) t.throws(() => process.kill(pid, 0), { code: 'ESRCH' });
});

void t.test('Ctrl-C ends every process and removes every folder of nested scopes', async (t) => {
  const module = new URL('../../bench/lib/', import.meta.url).href;
  const script = `
    const { withScope } = await import('${module}scope.js');
    const { makeSlots, startHitHandler } = await import('${module}references.js');
    await withScope(async (outer) => {
      const slots = await makeSlots(outer, 64);
      await withScope(async (inner) => {
        const { program } = await startHitHandler(inner, slots);
        console.log(JSON.stringify({ pid: program.pid, folders: [outer.folder, inner.folder] }));
        await program.exited();
      });
    });`;
  const child = spawn(process.execPath, ['--input-type=module', '-e', script], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  t.teardown(() => child.kill('SIGKILL'));
  const [line] = (await once(createInterface({ input: child.stdout }), 'line')) as [string];
  const { pid, folders } = JSON.parse(line) as { pid: number; folders: string[] };
  for (const folder of folders) t.ok(existsSync(folder));
  const ended = once(child, 'exit');
  child.kill('SIGINT');
  t.same(await ended, [130, null]);
  for (const folder of folders) t.notOk(existsSync(folder));
  // killed before its parent ended; its new parent may take a moment to reap it
  const dead = (): boolean => {
    try {
      return /^State:\s+[ZX]/m.test(readFileSync(`/proc/${pid}/status`, 'utf8'));
    } catch {
      return true;
    }
  };
  while (!dead()) await setImmediate();
});
