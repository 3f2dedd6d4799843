/** What all pools of threads have in common. */
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { Piscina } from 'piscina';
import t from 'tap';
import { POOL_OPTIONS } from '../src/batch-workers.ts';
import { scratch } from './guests/embedded-support.ts';

void t.test('threads load their entry points by import, never by require', async (t) => {
  // ending a thread inside require() of an ES module aborts the process: see POOL_OPTIONS
  const folder = scratch(t);
  const other = join(folder, 'other.mjs');
  writeFileSync(other, 'export default 1;\n');
  const filename = join(folder, 'entry.mjs');
  writeFileSync(
    filename,
    `import { createRequire } from 'node:module';
     export default () => {
       try { createRequire(import.meta.url)(${JSON.stringify(other)}); return 'loaded'; } catch (error) { return error.code; }
     };\n`,
  );
  const pool = new Piscina<undefined, string>({ filename, minThreads: 1, maxThreads: 1, ...POOL_OPTIONS });
  t.teardown(() => pool.destroy());
  t.equal(await pool.run(undefined), 'ERR_REQUIRE_ESM');
});
