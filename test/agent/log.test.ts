/** The log keeps secrets, and metrics count. */
import t from 'tap';
import { createLogger } from '../../src/agent/log.ts';
import { createMetrics } from '../../src/agent/metrics.ts';

/** A destination that remembers. */
function memory() {
  const lines: string[] = [];
  return { lines, write: (line: string) => void lines.push(line) };
}

void t.test('secrets are never written, at any depth, in either format', (t) => {
  for (const format of ['json', 'text'] as const) {
    const out = memory();
    const log = createLogger({ level: 'info', format, name: 'a' }, out);
    log.info(
      { token: 'S3CRET', req: { headers: { authorization: 'S3CRET' } }, body: { source: { token: 'S3CRET' } } },
      'x',
    );
    log.child({ source: { url: 'u', token: 'S3CRET' } }).warn('y');
    log.debug('unseen');
    t.equal(out.lines.length, 2);
    t.notMatch(out.lines.join(''), /S3CRET/, format);
    t.match(out.lines.join(''), /\[secret\]/);
  }
  t.end();
});

void t.test('JSON for machines, text for people', (t) => {
  const json = memory();
  createLogger({ level: 'info', format: 'json', name: 'blade' }, json).info({ guest: 'web1' }, 'hello');
  t.match(JSON.parse(json.lines[0]!), { level: 'info', agent: 'blade', guest: 'web1', msg: 'hello', time: /T.*Z$/ });
  const text = memory();
  createLogger({ level: 'info', format: 'text', name: 'blade' }, text).error(
    { guest: 'web1', err: new Error('no') },
    'bad',
  );
  t.match(text.lines[0], /^\d\d:\d\d:\d\d\.\d{3} ERROR bad guest=web1\n {2}Error: no\n/);
  t.end();
});

void t.test('metrics', async (t) => {
  const metrics = createMetrics();
  const other = createMetrics({ process: true });
  metrics.migrations.inc({ direction: 'outgoing', outcome: 'done' });
  metrics.faults.inc({ from: 'source' }, 12);
  metrics.faultLatency.observe(42e-6);
  metrics.bytes.inc({ direction: 'incoming', kind: 'wire' }, 4096);
  metrics.alarms.inc({ kind: 'foreign-page' });
  metrics.setEvacuations({
    ...{ underWay: true, guests: { waiting: 3, moving: 2 } },
    outcomes: { moved: 5, left: 1, failed: 1 },
  });
  metrics.setEvacuations({
    ...{ underWay: false, guests: { waiting: 0, moving: 0 } },
    outcomes: { moved: 9, left: 1, failed: 2 },
  });
  metrics.setGuests(['running', 'running', 'alarm']);
  metrics.setGuests(['running']);
  const text = await metrics.text();
  t.match(text, 'pagetide_migrations_total{direction="outgoing",outcome="done"} 1');
  t.match(text, 'pagetide_faults_total{from="source"} 12');
  t.match(text, 'pagetide_fault_seconds_bucket{le="0.00005"} 1');
  t.match(text, 'pagetide_bytes_total{direction="incoming",kind="wire"} 4096');
  t.match(text, 'pagetide_alarms_total{kind="foreign-page"} 1');
  t.match(text, 'pagetide_evacuations_under_way 0');
  t.match(text, 'pagetide_evacuation_guests{state="moving"} 0');
  t.match(text, 'pagetide_evacuated_guests_total{outcome="moved"} 9');
  t.match(text, 'pagetide_evacuated_guests_total{outcome="failed"} 2');
  t.match(text, 'pagetide_guests{state="running"} 1');
  t.match(text, 'pagetide_guests{state="alarm"} 0', 'a state that nobody is in any more');
  const others = await other.text();
  t.match(others, 'process_cpu_seconds_total');
  t.notMatch(others, 'direction="outgoing"', 'each agent counts for itself');
});
