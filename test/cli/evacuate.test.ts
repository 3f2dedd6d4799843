/** `pagetide evacuate`: what is asked for, progress of all at once, report, signals, exit codes. */
import { PassThrough } from 'node:stream';
import t from 'tap';
import { EvacuationLines, evacuationView } from '../../src/cli/evacuation-progress.ts';
import { PagetideError } from '../../src/errors.ts';
import { startApi } from '../agent/api-harness.ts';
import { evacuateRequest, evacuationInfo } from '../agent/fake-service.ts';
import { runCli, startCli } from './harness.ts';

const TO = 'http://127.0.0.1:7412';

void t.test('what is asked for, plain lines, the report', async (t) => {
  const { service, socket } = await startApi(t);
  const limits =
    '--parallel 3 --mode pre-copy --max-downtime 200 --max-rounds 9 --bandwidth 1M --on-no-convergence pause';
  const cli = startCli(t, ['evacuate', `unix:${socket}`, '--to', TO, ...limits.split(' ')]);
  await cli.says(/web1: serving, 100\/65536 frames \(0%\), 3 faults/);
  await cli.says(/evacuation: 0 moved, 1 under way, 1 wait, 0 stay\n/);
  service.changeEvacuation(evacuationInfo('ended'));
  const { code, stdout, stderr } = await cli.finished;
  t.equal(code, 1, 'a guest stays');
  t.match(stdout, /^GUEST +STATE +TO +MODE +WIRE +DOWNTIME +TIME +NOTE\nweb1 +moved +http:\S+ +post-copy +95\.4 MiB/);
  t.match(stdout, /\nweb2 +stays +PT_GUEST_UNSAFE: web2 has a device/);
  t.match(stdout, /\nguests +1 moved, 1 stay\nframes +65536: zero 536, .*\nbytes +95\.4 MiB on the wire/);
  t.match(stdout, /longest downtime 3\.3 ms\n$/);
  t.match(stderr, /web2: stays: PT_GUEST_UNSAFE: web2 has a device that cannot be moved\n/);
  t.match(stderr, /evacuation: 1 moved, 0 under way, 0 wait, 1 stay\n/);
  t.match(stderr, /error PT_EVACUATION_INCOMPLETE: 1 of 2 guests stay; web2: PT_GUEST_UNSAFE/);
  t.same(service.calls[0], ['evacuate', evacuateRequest()]);
});

void t.test('--json: one object; all moved: exit code 0; bad frames: 1', async (t) => {
  const { service, socket } = await startApi(t);
  const all = evacuationInfo('ended');
  const moved = { ...all, guests: all.guests.slice(0, 1) };
  service.evacuation = moved;
  const args = ['evacuate', '--to', TO, '--to', 'http://127.0.0.1:7413', '--json', '--agent', `unix:${socket}`];
  const good = await runCli(t, args);
  t.equal(good.code, 0, good.stderr);
  t.same(JSON.parse(good.stdout), moved);
  t.match(service.calls[0], [
    'evacuate',
    { to: [TO, 'http://127.0.0.1:7413'], parallel: 2, mode: 'auto', verify: true },
  ]);
  const [guest] = moved.guests;
  service.evacuation = { ...moved, guests: [{ ...guest!, report: { ...guest!.report!, verified: false } }] };
  const bad = await runCli(t, args);
  t.equal(bad.code, 1);
  t.match(bad.stderr, /PT_VERIFY_FAILED/);
  service.failure = new PagetideError('PT_EVACUATING', 'already');
  t.match(await runCli(t, args), { code: 1, stdout: '', stderr: /PT_EVACUATING/ });
});

void t.test('--dry-run only plans', async (t) => {
  const { service, socket } = await startApi(t);
  const { code, stdout } = await runCli(t, ['evacuate', '--to', TO, '--dry-run', '--agent', `unix:${socket}`]);
  t.equal(code, 0);
  t.match(stdout, /^GUEST +TO +MEMORY +PAGES +NOTE\nweb1 +http:\S+ +256 MiB +250 MiB/);
  t.match(stdout, /\npages +250\.0\d* MiB to fetch|\npages +250 MiB to fetch/);
  t.same(
    service.calls.map(([method]) => method),
    ['planEvacuation'],
  );
});

void t.test('Ctrl-C: no further guest; again: those under way are cancelled; again: no longer watched', async (t) => {
  const { service, socket } = await startApi(t);
  const cli = startCli(t, ['evacuate', '--to', TO, '--agent', `unix:${socket}`]);
  await cli.says(/1 under way/);
  cli.kill('SIGINT');
  await cli.says(/no further guest begins; those under way arrive/);
  cli.kill('SIGINT');
  await cli.says(/asking for the guests under way to be cancelled/);
  cli.kill('SIGINT');
  const { code, stderr } = await cli.finished;
  t.equal(code, 1);
  t.match(stderr, /error PT_CANCELLED: stopped watching the evacuation; it goes on \(`pagetide evacuate --follow`/);
  t.same(
    service.calls.filter(([method]) => method === 'stopEvacuation').map(([, cancel]) => cancel),
    [false, true],
  );
});

void t.test('--prepare: what is asked for, what is brought, then who moves', async (t) => {
  const { service, socket } = await startApi(t);
  const preparation = { elapsedMs: 45_000, mostMs: 600_000, pages: 200, there: 126, queuedBytes: 8 << 20, planning: 0 };
  const preparing = evacuationInfo('planned', {
    state: 'preparing',
    preparation: { ...preparation, planning: 1, silent: [TO], ended: null },
  });
  service.evacuation = preparing;
  const at = ['--agent', `unix:${socket}`];
  const cli = startCli(t, ['evacuate', '--to', TO, '--prepare=10m', '--keep-plan', ...at]);
  await cli.says(/preparing: 63% of pages there, 8 MiB to come; 1 targets still plan; no answer of http:\S+; 45 s of/);
  t.match(service.calls[0], ['evacuate', { prepareMs: 600_000, keepPlan: true }]);
  t.notMatch(cli.said(), /evacuation: /, 'nobody moves yet');
  service.changeEvacuation({ ...preparing, preparation: { ...preparation, silent: [], ended: null } });
  await cli.says(/8 MiB to come; 45 s of 10 min/);
  service.changeEvacuation(
    evacuationInfo('ended', {
      preparation: { ...preparation, there: 200, queuedBytes: 0, silent: [], ended: 'brought' },
    }),
  );
  const { code, stdout, stderr } = await cli.finished;
  t.equal(code, 1, 'a guest stays');
  t.match(stdout, /prepared +nothing was left to be brought; 100% of pages there; after 45 s\nguests +1 moved, 1 stay/);
  t.equal(stderr.match(/^prepared: nothing was left/gm)?.length, 1, 'once');

  service.evacuation = evacuationInfo('ended', { preparation: { ...preparation, silent: [TO], ended: 'time' } });
  t.match(await runCli(t, ['evacuate', '--to', TO, '--prepare=10m', ...at]), {
    stdout: /prepared +its time was over, 8 MiB still to come; 63% of pages there; no answer of http:\S+; after 45 s\n/,
    stderr: /^prepared: its time was over/m,
  });

  service.evacuation = evacuationInfo('ended');
  await runCli(t, ['evacuate', '--to', TO, '--prepare', ...at]);
  const last = service.calls.findLast(([method]) => method === 'evacuate')![1] as object;
  t.match(last, { prepareMs: 1_800_000 });
  t.notOk('keepPlan' in last);
  const count = service.calls.length;
  for (const wrong of ['--keep-plan', '--prepare=0', '--prepare=soon', '--prepare=1m --follow'])
    t.match(await runCli(t, ['evacuate', '--to', TO, ...wrong.split(' '), ...at]), { code: 2, stdout: '' }, wrong);
  t.equal(service.calls.length, count, 'refused before the agent was asked');
});

void t.test('--follow watches what is there, from its end too', async (t) => {
  const { service, socket } = await startApi(t);
  const args = ['evacuate', '--follow', '--agent', `unix:${socket}`];
  t.match(await runCli(t, args), { code: 1, stderr: /PT_EVACUATION_UNKNOWN/ });
  service.evacuation = evacuationInfo('ended');
  t.match(await runCli(t, args), { code: 1, stdout: /1 moved, 1 stay/, stderr: /PT_EVACUATION_INCOMPLETE/ });
  t.notOk(service.calls.some(([method]) => method === 'evacuate'));
});

void t.test('a view that has ended says no more', (t) => {
  const lines: string[] = [];
  const view = new EvacuationLines((line) => lines.push(line));
  view.update(evacuationInfo('running'));
  view.update(evacuationInfo('running'));
  t.equal(lines.filter((line) => line.startsWith('evacuation:')).length, 1, 'told once');
  view.update(evacuationInfo('ended'));
  view.end();
  const before = lines.length;
  view.update(evacuationInfo('running'));
  view.say('more');
  view.end();
  t.equal(lines.length, before);
  t.end();
});

void t.test('a terminal: a bar each, messages above them', async (t) => {
  const stream = Object.assign(new PassThrough(), { isTTY: true, columns: 120 });
  let text = '';
  stream.setEncoding('utf8').on('data', (more: string) => (text += more));
  const shows = async (pattern: RegExp): Promise<void> => {
    while (!pattern.test(text)) await new Promise((resolve) => stream.once('data', resolve));
  };
  const view = await evacuationView(stream as unknown as NodeJS.WriteStream, { bars: true });
  view.update(evacuationInfo('running'));
  await shows(/web1 serving \[-+\] 0% 3 faults/);
  await shows(/evacuation: 0 moved, 1 under way, 1 wait, 0 stay/);
  view.say('a message');
  await shows(/a message\n/);
  view.update(evacuationInfo('ended'));
  view.end();
  await shows(/web2: stays: PT_GUEST_UNSAFE: web2 has a device that cannot be moved\n/);
  const before = text.length;
  view.update(evacuationInfo('running'));
  view.say('more');
  view.end();
  await new Promise((resolve) => setImmediate(resolve));
  t.notMatch(text.slice(before), /more|web1/, 'it has ended');
});
