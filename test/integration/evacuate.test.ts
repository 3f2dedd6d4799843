/** A host is evacuated: its guests together, to hosts with room, once each page; and what comes in between. */
import { join } from 'node:path';
import t, { type Test } from 'tap';
import type { EvacuateRequest, EvacuationInfo } from '../../src/agent/service.ts';
import { runCli, startCli } from '../cli/harness.ts';
import { skipTracking as skip } from '../pages/guest-support.ts';
import type { TestAgent } from '../support/cluster.ts';
import { share } from '../support/domains.ts';
import { guestFaults, reportFaults, startGuest, until } from '../support/migrate.ts';
import { clusterOf } from '../support/sound.ts';
import { makeHost } from '../../src/trust/authority.ts';
import { HOST_FILES, writeHost } from '../../src/trust/pem-files.ts';
import { trustCluster } from '../trust/support.ts';

t.setTimeout(900_000);

const MIB = 2 ** 20;
/** Guests like that have the same pages, but for what they wrote since. */
const alike = { memory: '16M', seed: 7, writeRate: 50, readRate: 500, workingSet: 0.1, threads: 1 };
const brisk = { watch: { cpu: 1, intervalMs: 10 } };

async function hosts(t: Test, names: readonly string[], domains = ['shop']): Promise<TestAgent[]> {
  const cluster = clusterOf(t);
  const agents = await Promise.all(names.map((name) => cluster.agent(name, brisk)));
  for (const domain of domains) await share(domain, agents[0]!, ...agents.slice(1));
  return agents;
}

/** Resolves when all pages of the guest are known at the agent. */
function tagged(agent: TestAgent, guest: string): Promise<void> {
  const line = (text: string): boolean => text.includes('are tagged') && text.includes(`"${guest}"`);
  return until(`${agent.name} has tagged ${guest}`, () => agent.log().some(line));
}

async function startAlike(
  agent: TestAgent,
  guests: readonly string[],
  more: Record<string, unknown> = {},
): Promise<void> {
  for (const guest of guests) await startGuest(agent, guest, { ...alike, ...more }, 'shop');
  for (const guest of guests) await tagged(agent, guest);
}

function request(to: readonly TestAgent[], more: Partial<EvacuateRequest> = {}): EvacuateRequest {
  return { to: to.map(({ url }) => url), parallel: 2, mode: 'auto', verify: true, ...more };
}

async function ended(agent: TestAgent): Promise<EvacuationInfo> {
  let last: EvacuationInfo | undefined;
  for await (const info of agent.client.watchEvacuation()) last = info;
  return last!;
}

/** In short. */
function told({ guests }: EvacuationInfo): string {
  return guests.map(({ guest, state, error }) => `${guest} ${state} ${error?.message ?? ''}`).join('; ');
}

/** What the agent tells Prometheus of its evacuations. */
async function counted(agent: TestAgent): Promise<Record<string, number>> {
  const text = await (await fetch(`${agent.url}/metrics`)).text();
  const values = text.matchAll(/^pagetide_(?:evacuations?|evacuated)_(?:\w+\{\w+="(\w+)"\}|(\w+)) (\d+)$/gm);
  return Object.fromEntries([...values].map(([, kind, name, value]) => [kind ?? name!, Number(value)]));
}

async function guestsOf(agent: TestAgent): Promise<string[]> {
  return (await agent.client.listGuests()).map(({ name }) => name).sort();
}

/** Each guest that has moved is sound where it is said to be. */
async function allSound(t: Test, info: EvacuationInfo, to: readonly TestAgent[]): Promise<void> {
  for (const { guest, state, to: url, report } of info.guests) {
    if (state !== 'moved') continue;
    t.same(reportFaults(report), [], guest);
    t.equal(report?.verified, true, `${guest} found every page right`);
    t.same(
      await guestFaults(
        to.find((agent) => agent.url === url)!,
        guest,
      ),
      [],
    );
  }
}

function at(agent: TestAgent): string[] {
  return ['--agent', `unix:${agent.control}`];
}

void t.test('four alike guests to two hosts: their pages cross once', { skip }, async (t) => {
  const [a, b, c] = (await hosts(t, ['a', 'b', 'c'])) as [TestAgent, TestAgent, TestAgent];
  const names = ['one', 'two', 'three', 'four'];
  await startAlike(a, names);
  const to = ['--to', b.url, '--to', c.url];
  const plan = await runCli(t, ['evacuate', ...to, '--dry-run', '--json', ...at(a)]);
  t.equal(plan.code, 0, plan.stderr);
  const planned = JSON.parse(plan.stdout) as EvacuationInfo;
  t.match(planned, { state: 'planned', totals: { moved: 0, stay: 0 } });
  const [first, ...others] = planned.guests;
  t.equal(new Set(planned.guests.map((guest) => guest.to)).size, 1, 'all to one host');
  for (const { expectedBytes } of others) t.ok(expectedBytes! < first!.expectedBytes! / 3, `${expectedBytes} bytes`);
  t.same(await guestsOf(a), [...names].sort(), 'nothing was done');

  const run = await runCli(t, ['evacuate', `unix:${a.control}`, ...to, '--parallel', '4', '--json']);
  t.equal(run.code, 0, run.stderr);
  const info = JSON.parse(run.stdout) as EvacuationInfo;
  t.match(info, { state: 'ended', totals: { moved: 4, stay: 0 } });
  await allSound(t, info, [b, c]);
  t.same(await guestsOf(a), []);
  t.same([...(await guestsOf(b)), ...(await guestsOf(c))].sort(), [...names].sort());
  const wire = info.guests.map(({ report }) => report!.bytes.wire);
  t.comment(`wire ${wire.join(', ')}; ${JSON.stringify(info.totals)}`);
  t.ok(info.totals.bytes.wire <= (4 * wire[0]!) / 2, `${info.totals.bytes.wire} bytes, the first alone ${wire[0]!}`);
  t.match(run.stderr, /evacuation: 4 moved, 0 under way, 0 wait, 0 stay\n/);

  const again = await runCli(t, ['evacuate', ...to, ...at(a)]);
  t.same([again.code, again.stdout], [0, 'no guests\n'], 'nothing is left to do');
});

void t.test('Ctrl-C lets those under way arrive; repeating goes on with the others', { skip }, async (t) => {
  const [a, b] = (await hosts(t, ['a', 'b'])) as [TestAgent, TestAgent];
  await startAlike(a, ['one', 'two', 'three']);
  const slow = ['--to', b.url, '--mode', 'post-copy', '--bandwidth', '512K', ...at(a)];
  const cli = startCli(t, ['evacuate', ...slow]);
  await cli.says(/: serving, /);
  cli.kill('SIGINT');
  await cli.says(/2 stay/);
  const second = await runCli(t, ['evacuate', ...slow]);
  t.equal(second.code, 1);
  t.match(second.stderr, /error PT_EVACUATING/);
  t.same(await counted(a), { under_way: 1, waiting: 0, moving: 1, moved: 0, left: 2, failed: 0 });
  const { code, stdout, stderr } = await cli.finished;
  t.equal(code, 1);
  t.match(stderr, /no further guest begins/);
  t.match(stderr, /error PT_EVACUATION_INCOMPLETE: 2 of 3 guests stay/);
  t.match(stdout, /guests +1 moved, 2 stay\n/);
  t.equal((await guestsOf(a)).length, 2);
  t.equal((await guestsOf(b)).length, 1);

  const rest = await runCli(t, ['evacuate', '--to', b.url, '--json', ...at(a)]);
  t.equal(rest.code, 0, rest.stderr);
  const info = JSON.parse(rest.stdout) as EvacuationInfo;
  t.match(info, { totals: { moved: 2, stay: 0 } });
  await allSound(t, info, [b]);
  t.same(await guestsOf(a), []);
  t.same(await counted(a), { under_way: 0, waiting: 0, moving: 0, moved: 3, left: 2, failed: 0 }, 'of both together');
});

void t.test('who only watches may go; a second Ctrl-C cancels; the agent may restart', { skip }, async (t) => {
  const [a, b] = (await hosts(t, ['a', 'b'])) as [TestAgent, TestAgent];
  await startAlike(a, ['one', 'two'], { writeRate: 0 });
  await a.client.evacuate(request([b], { mode: 'pre-copy', bandwidth: MIB, maxDowntimeMs: 5_000 }));
  const cli = startCli(t, ['evacuate', '--follow', ...at(a)]);
  await cli.says(/: copying, /);
  cli.kill('SIGTERM');
  t.match(await cli.finished, { code: 1, stderr: /stopped watching the evacuation; it goes on/ });
  t.match(await a.client.showEvacuation(), { state: 'running' });
  const other = startCli(t, ['evacuate', '--follow', ...at(a)]);
  await other.says(/: copying, /);
  other.kill('SIGINT');
  await other.says(/no further guest begins/);
  other.kill('SIGINT');
  t.match(await other.finished, { code: 1, stderr: /2 of 2 guests stay/ });
  t.same(await guestsOf(a), ['one', 'two']);
  for (const guest of ['one', 'two']) t.same(await guestFaults(a, guest), []);

  // a guest that has left when the agent is killed arrives, and whoever repeats the command follows it
  await a.client.evacuate(request([b], { mode: 'post-copy', bandwidth: 2 * MIB, parallel: 1 }));
  await until('one is served', async () =>
    (await a.client.showEvacuation()).guests.some(({ progress }) => progress?.phase === 'serving'),
  );
  await a.restart();
  await t.rejects(a.client.showEvacuation(), { code: 'PT_EVACUATION_UNKNOWN' });
  await a.client.evacuate(request([b]));
  const info = await ended(a);
  t.match(info, { totals: { moved: 2, stay: 0 } }, told(info));
  t.same(await guestsOf(a), []);
  t.same(await guestsOf(b), ['one', 'two']);
});

void t.test('a target that goes down: its guests go elsewhere', { skip }, async (t) => {
  const [a, b, c] = (await hosts(t, ['a', 'b', 'c'])) as [TestAgent, TestAgent, TestAgent];
  await startAlike(a, ['one', 'two']);
  // so that it is the cheaper one
  await startAlike(c, ['theirs']);
  const wanted = request([b, c], { parallel: 1 });
  const planned = await a.client.planEvacuation(wanted);
  t.match(planned.guests, [{ to: c.url }, { to: c.url }]);
  await a.client.evacuate(wanted);
  await c.kill();
  const info = await ended(a);
  t.match(info, { totals: { moved: 2, stay: 0 } }, told(info));
  t.same(await guestsOf(b), ['one', 'two']);
  await allSound(t, info, [b]);

  const refused = await runCli(t, ['evacuate', '--to', a.url, '--to', c.url, ...at(b)]);
  t.equal(refused.code, 1);
  t.match(refused.stderr, /error PT_PEER_UNREACHABLE/, 'one that is down from the start is said before anything moves');
  t.same(await guestsOf(b), ['one', 'two']);
});

void t.test('a guest that nobody takes stays, the others go', { skip }, async (t) => {
  const [a, b] = (await hosts(t, ['a', 'b'])) as [TestAgent, TestAgent];
  await a.client.createDomain('own');
  await startGuest(a, 'alien', alike, 'own');
  await startGuest(a, 'loner', alike);
  await startAlike(a, ['one']);
  const run = await runCli(t, ['evacuate', '--to', b.url, ...at(a)]);
  t.equal(run.code, 1);
  t.match(run.stderr, /error PT_EVACUATION_INCOMPLETE: 1 of 3 guests stay; alien: PT_DOMAIN_UNKNOWN/);
  t.match(run.stdout, /guests +2 moved, 1 stay\n/);
  t.same(await guestsOf(a), ['alien']);
  t.same(await guestFaults(a, 'alien'), []);
  t.same(await guestsOf(b), ['loner', 'one']);
  const alone = await runCli(t, ['evacuate', '--to', b.url, ...at(a)]);
  t.equal(alone.code, 1, 'as often as it is tried');
  t.match(await counted(a), { moved: 2, left: 0, failed: 2 });
});

void t.test('one bandwidth for all together, divided anew as they come and go', { skip }, async (t) => {
  const [a, b] = (await hosts(t, ['a', 'b'])) as [TestAgent, TestAgent];
  const quiet = { writeRate: 0, readRate: 10, threads: 1 };
  await startGuest(a, 'small-1', { ...quiet, memory: '4M', seed: 1 });
  await startGuest(a, 'small-2', { ...quiet, memory: '4M', seed: 2 });
  await startGuest(a, 'large', { ...quiet, memory: '48M', seed: 3 });
  const whole = 6 * MIB;
  // copied whole, as pages that faults wait for are not held up by it
  await a.client.evacuate(request([b], { parallel: 3, mode: 'pre-copy', bandwidth: whole }));
  const info = await ended(a);
  t.match(info, { totals: { moved: 3, stay: 0 } }, told(info));
  const { raw } = info.totals.bytes;
  const seconds = info.elapsedMs / 1000;
  t.ok(raw / seconds <= whole * 1.1, `${raw} bytes in ${seconds} s`);
  const large = info.guests.find(({ guest }) => guest === 'large')!.report!;
  // a third of it all the time would have taken that long
  const undivided = large.bytes.raw / (whole / 3);
  t.ok(seconds < undivided * 0.8, `${seconds} s, ${undivided} with a third of it`);
});

void t.test('hosts with certificates: the target says what it has to who is of the domain', { skip }, async (t) => {
  const cluster = clusterOf(t);
  const { authority } = await trustCluster();
  const agents: TestAgent[] = [];
  for (const name of ['a', 'b']) {
    const folder = join(cluster.root, `certificates-${name}`);
    await writeHost(folder, authority.certificate, await makeHost(authority, `host-${name}`, ['127.0.0.1']));
    const [ca, certificate, key] = [HOST_FILES.ca, HOST_FILES.certificate, HOST_FILES.key].map((file) =>
      join(folder, file),
    );
    agents.push(await cluster.agent(name, { ...brisk, tls: { ca, certificate, key } }));
  }
  const [a, b] = agents as [TestAgent, TestAgent];
  await a.client.createDomain('shop');
  await a.client.grantDomain('shop', b.url);
  await startAlike(a, ['one', 'two']);
  await startAlike(b, ['theirs']);
  const planned = await a.client.planEvacuation(request([b]));
  for (const { guest, memory, expectedBytes } of planned.guests)
    t.ok(expectedBytes! < memory / 4, `${guest}: ${expectedBytes} bytes are not there yet`);
  await a.client.evacuate(request([b]));
  const info = await ended(a);
  t.match(info, { totals: { moved: 2, stay: 0 } }, told(info));
  t.ok(info.totals.frames.resident > info.totals.frames.source, `frames: ${JSON.stringify(info.totals.frames)}`);
  await allSound(t, info, [b]);
  const outside = await runCli(t, ['evacuate', a.url, '--to', b.url]);
  t.match(outside, { code: 2, stderr: /speaks only with agents of its cluster/ }, 'only by its control socket');
});

void t.test('what can’t be is refused before anything moves', async (t) => {
  const [a, b] = (await hosts(t, ['a', 'b'], [])) as [TestAgent, TestAgent];
  await startGuest(a, 'one', { memory: '4M' });
  const cases: [string[], RegExp][] = [
    [['--to', a.url], /PT_BAD_ARGUMENT.*is the host that is to be evacuated/],
    [['--to', b.url, '--to', b.url], /PT_BAD_ARGUMENT.*given twice/],
    [['--to', b.url, '--to', 'http://127.0.0.1:1'], /PT_PEER_UNREACHABLE/],
    [['--to', b.url, '--mode', 'post-copy', '--max-downtime', '5'], /PT_BAD_ARGUMENT.*copy in rounds/],
  ];
  for (const [args, message] of cases) {
    const { code, stderr } = await runCli(t, ['evacuate', ...args, ...at(a)]);
    t.not(code, 0, args.join(' '));
    t.match(stderr, message);
  }
  const nobody = await runCli(t, ['evacuate', 'http://127.0.0.1:1', '--to', b.url]);
  t.equal(nobody.code, 1);
  t.match(nobody.stderr, /PT_PEER_UNREACHABLE/, 'no such host');
  t.same([await guestsOf(a), await guestsOf(b)], [['one'], []]);
});
