/** Many migrations in a row: nothing goes wrong, nothing is left, nothing grows. PAGETIDE_SOAK says how many. */
import t from 'tap';
import { soak } from '../../bench/lib/soak.ts';
import { cluster } from '../support/cluster.ts';

t.setTimeout(600_000);

const migrations = Number(process.env['PAGETIDE_SOAK'] ?? 16);

void t.test(`${migrations} migrations in a row`, { timeout: 230_000 + migrations * 5_000 }, async (t) => {
  const { problems, growth, reports } = await soak(cluster(t), {
    guest: 'embedded',
    migrations,
    memory: '64M',
    writeRate: 20_000,
    threads: 2,
    progress: (text) => t.comment(text),
  });
  t.equal(reports.length, migrations);
  t.comment(`memory grew to ${(growth * 100).toFixed(1)}%`);
  t.strictSame(problems, []);
});
