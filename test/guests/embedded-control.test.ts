/** Bad input to the guest: refused with a reason, and the guest goes on. */
import { once } from 'node:events';
import { existsSync, writeFileSync } from 'node:fs';
import { createServer, connect } from 'node:net';
import { join } from 'node:path';
import t from 'tap';
import { GuestControl } from '../../src/guests/control.ts';
import { converse, saved, scratch, smallGuest, spawnGuest, startGuest, streamOf } from './embedded-support.ts';

void t.test('malformed and oversized requests end the connection, not the guest', async (t) => {
  const folder = scratch(t);
  const { args } = smallGuest(folder);
  const { control, path } = await startGuest(t, join(folder, 'c'), args);
  const bad: [string, string | Uint8Array][] = [
    ['no JSON', 'hello\n'],
    ['an array', '[]\n'],
    ['nested', '{"cmd":{"a":1}}\n'],
    ['a field twice', '{"cmd":"status","cmd":"quit"}\n'],
    ['an open string', '{"cmd":"stat\n'],
    ['trailing bytes', '{"cmd":"status"} x\n'],
    ['bad number', '{"cmd":"touch","frame":01}\n'],
    ['zeros', new Uint8Array(100).fill(0, 0, 99).fill(10, 99)],
    ['a line without end', 'x'.repeat(65 * 1024)],
    ['a long line', `{"cmd":"${'x'.repeat(65 * 1024)}"}\n`],
    ['a state too large', '{"cmd":"load","bytes":99999999999}\n'],
    ['a state of negative size', '{"cmd":"load","bytes":-1}\n'],
  ];
  for (const [what, bytes] of bad) {
    const answer = JSON.parse(await converse(t, path, bytes)) as { ok: boolean; error: string };
    t.equal(answer.ok, false, what);
    t.type(answer.error, 'string');
  }
  t.equal(await converse(t, path, '{"cmd":"sta', true), '', 'a request cut off is no request');
  t.match(await control.status(), { state: 'running' });
  t.match(await control.verify(), { verified: true });
});

void t.test('requests that are well formed and wrong keep the connection', async (t) => {
  const folder = scratch(t);
  const { args } = smallGuest(folder);
  const { path } = await startGuest(t, join(folder, 'c'), args);
  const requests = [
    {},
    { cmd: 'fly' },
    { cmd: 'save' },
    { cmd: 'touch' },
    { cmd: 'touch', frame: 1024 },
    { cmd: 'touch', frame: 1000, count: 25 },
    { cmd: 'touch', frame: 0, count: 0 },
    { cmd: 'touch', frame: 1.5 },
    { cmd: 'touch', frame: '1' },
    { cmd: 'poke', frame: 1023 },
    { cmd: 'remove', frame: 0, how: 'away' },
    { cmd: 'load', bytes: 0 },
  ];
  const text = [...requests, { cmd: 'status' }].map((request) => `${JSON.stringify(request)}\n`).join('');
  const lines = (await converse(t, path, text, true)).trim().split('\n');
  const answers = lines.map((line) => JSON.parse(line) as { ok: boolean });
  t.same(
    answers.map((answer) => answer.ok),
    [...requests.map(() => false), true],
  );
});

void t.test('a damaged or foreign state is refused, and the guest stays incoming', async (t) => {
  const folder = scratch(t);
  const { args } = smallGuest(folder);
  const { control } = await startGuest(t, join(folder, 'c'), args);
  await control.pause();
  const state = await saved(control);
  const other = await startGuest(t, join(folder, 'o'), ['--memory-size', '8M', '--memory-file', join(folder, 'o.ram')]);
  await other.control.pause();
  const foreign = await saved(other.control);

  const incoming = ['--memory-size', '4M', '--memory-file', join(folder, 'i.ram'), '--incoming'];
  const guest = await startGuest(t, join(folder, 'i'), incoming);
  const changed = (at: number): Buffer => {
    const bytes = Buffer.from(state);
    bytes[at]! ^= 1;
    return bytes;
  };
  const bad: [Uint8Array, RegExp][] = [
    [new Uint8Array(0), /too short/],
    [state.subarray(0, 100), /too short|length/],
    [state.subarray(0, state.length - 1), /length/],
    [Buffer.concat([state, Buffer.alloc(1)]), /length/],
    [changed(0), /not a state/],
    [changed(8), /version/],
    [changed(16), /length/],
    [changed(30), /damaged/],
    [changed(state.length - 20), /damaged/],
    [changed(state.length - 1), /damaged/],
    [foreign, /bytes of memory/],
  ];
  for (const [bytes, message] of bad) {
    await t.rejects(guest.control.load(streamOf(bytes)), { code: 'PT_VMM_REFUSED_STATE', message });
    t.match(await guest.control.status(), { state: 'incoming' });
  }

  // A state whose sender vanishes half-way.
  const socket = connect(guest.path);
  t.teardown(() => socket.destroy());
  socket.end(Buffer.concat([Buffer.from(`{"cmd":"load","bytes":${state.length}}\n`), state.subarray(0, 50)]));
  socket.resume();
  await once(socket, 'close');
  t.match(await guest.control.status(), { state: 'incoming' });

  const threads = [...incoming.slice(0, 3), join(folder, 't.ram'), '--incoming', '--threads', '2'];
  const two = await startGuest(t, join(folder, 't'), threads);
  await t.rejects(two.control.load(streamOf(state)), { code: 'PT_VMM_REFUSED_STATE', message: /threads/ });
});

void t.test('bad options and failed starts leave nothing behind', async (t) => {
  const folder = scratch(t);
  const path = join(folder, 'c');
  const ram = join(folder, 'ram');
  const good = ['--memory-size', '4M', '--memory-file', ram];
  writeFileSync(join(folder, 'there'), '');
  const running = await startGuest(t, join(folder, 'running'), [...good.slice(0, 3), join(folder, 'running.ram')]);
  const bad: [string[], RegExp][] = [
    [[], /--memory-size is missing/],
    [['--memory-size', '4M'], /either --memory-file or --private/],
    [['--memory-size', '4M', '--private', '--memory-file', ram], /either/],
    [['--memory-size', '4X', '--private'], /bad value/],
    [['--memory-size', '-4M', '--private'], /bad value/],
    [['--memory-size', '1000001', '--private'], /1M|multiple/],
    [['--memory-size', '4K', '--private'], /1M/],
    [[...good, '--page-size', '2M'], /--private/],
    [[...good, '--page-size', '8192'], /bad value/],
    [[...good, '--working-set', '1.5'], /bad value/],
    [[...good, '--threads', '0'], /bad value/],
    [[...good, '--what', '1'], /unknown option/],
    [[...good, '--seed'], /value/],
    [[...good, '--handover', join(folder, 'h')], /--incoming/],
    [[...good, '--fill-from', join(folder, 'nothing')], /no readable files/],
    [[...good, '--incoming', '--handover', join(folder, 'h')], /hand-over/],
    [['--memory-size', '4M', '--memory-file', join(folder, 'there')], /there/],
    [[...good, '--control', running.path], /control socket/],
    [[...good, '--control', `/tmp/${'x'.repeat(120)}`], /too long/],
  ];
  for (const [args, message] of bad) {
    const { child, stderr } = spawnGuest(t, path, args);
    const [code] = (await once(child, 'close')) as [number];
    t.ok(code === 1 || code === 2, args.join(' '));
    t.match(stderr(), message);
    t.equal(stderr().split('\n').length, 1, 'one line');
    t.notOk(existsSync(ram) || existsSync(path), 'nothing is left');
  }
  t.match(await running.control.status(), { state: 'running' }, 'whose socket was wanted, goes on');
});

void t.test('a socket left behind by a guest that died is taken over', async (t) => {
  const folder = scratch(t);
  const path = join(folder, 'c');
  const first = await startGuest(t, path, smallGuest(folder).args);
  first.child.kill('SIGKILL');
  await once(first.child, 'exit');
  t.ok(existsSync(path));
  const again = ['--memory-size', '4M', '--memory-file', join(folder, 'again')];
  const second = await startGuest(t, path, again);
  t.match(await second.control.status(), { state: 'running', pid: second.child.pid });
});

void t.test('the client: what a guest may do wrong', async (t) => {
  const folder = scratch(t);
  const answers: Record<string, () => string> = {
    text: () => 'what?\n',
    shape: () => '{"ok":true,"state":"dancing"}\n',
    endless: () => 'x'.repeat(1.5 * 2 ** 20),
    cut: () => '{"ok":tr',
    short: () => '{"ok":true,"bytes":100}\nhalf',
    huge: () => '{"ok":true,"bytes":99999999999}\n',
  };
  for (const [name, answer] of Object.entries(answers)) {
    const path = join(folder, name);
    const server = createServer((socket) => {
      socket.on('error', () => undefined);
      socket.once('data', () => socket.end(answer()));
    });
    t.teardown(() => server.close());
    server.listen(path);
    await once(server, 'listening');
    const control = new GuestControl(path, 5000);
    const code = name === 'cut' || name === 'short' ? 'PT_VMM_GONE' : 'PT_VMM_PROTOCOL';
    const request: () => Promise<unknown> = () =>
      name === 'short' || name === 'huge' ? saved(control) : control.status();
    await t.rejects(request, { code }, name);
  }
  const silent = createServer(() => undefined);
  t.teardown(() => silent.close());
  silent.listen(join(folder, 'silent'));
  await once(silent, 'listening');
  await t.rejects(new GuestControl(join(folder, 'silent'), 50).status(), { code: 'PT_VMM_TIMEOUT' });
  const nobody = new GuestControl(join(folder, 'nobody'));
  await t.rejects(nobody.status(), { code: 'PT_VMM_GONE' });
  nobody.close();
  await t.rejects(nobody.status(), { code: 'PT_VMM_GONE' });
});
