/** The hit path allocates nothing: measured on the heap of a process that does nothing else. */
import { execFile } from 'node:child_process';
import { statfsSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import t, { type Test } from 'tap';
import { scratch } from '../guests/embedded-support.ts';
import type { HitFigures } from './hit-loop.ts';

const run = promisify(execFile);
/** Room for everything that the measured part could leave: nothing is collected before it is counted. */
const SPACE = ['--expose-gc', '--min-semi-space-size=64', '--max-semi-space-size=64'];
/** The loop is optimized when it is due, not when a busy machine comes to it. */
const SWIFT = ['--no-concurrent-recompilation'];

async function measure(
  t: Test,
  kind: 'fake' | 'single' | 'leaky' | 'real' | 'cached',
  hits: number,
): Promise<HitFigures> {
  const script = fileURLToPath(new URL('./hit-loop.js', import.meta.url));
  const { stdout } = await run(process.execPath, [...SPACE, ...SWIFT, script, kind, String(hits), scratch(t)], {
    timeout: 120_000,
  });
  const figures = JSON.parse(stdout) as HitFigures & { end: string; events: string[] };
  t.match(figures, { end: 'stopped', events: [] });
  t.comment(`${kind}: ${figures.bytes} bytes of ${figures.hits} hits`);
  return figures;
}

for (const kind of ['fake', 'single'] as const) {
  void t.test(`by the service itself, ${kind === 'fake' ? '64 faults' : 'one fault'} a read`, async (t) => {
    const { hits, bytes, windows } = await measure(t, kind, 160_000);
    t.ok(windows > 0, 'or nothing could be said');
    t.ok(bytes / hits < 4, `${bytes / hits} bytes a hit; the least that can be allocated is 12`);
  });
}

void t.test('the measurement would notice one small object a hit', async (t) => {
  const { hits, bytes, windows } = await measure(t, 'leaky', 160_000);
  t.ok(windows > 0);
  t.ok(bytes / hits >= 16, `${bytes / hits} bytes a hit`);
});

for (const [kind, what] of [
  ['real', 'a memory file'],
  ['cached', 'the shared-page cache'],
] as const) {
  void t.test(`with a real userfaultfd and ${what}`, async (t) => {
    const { bavail, bsize } = statfsSync('/dev/shm');
    if (bavail * bsize < 2 ** 30) {
      t.comment('skipped: less than 1 GiB free on /dev/shm');
      return;
    }
    const { hits, bytes, windows } = await measure(t, kind, 12_000);
    t.ok(windows > 0);
    t.ok(bytes / hits < 8, `${bytes / hits} bytes a hit`);
  });
}
