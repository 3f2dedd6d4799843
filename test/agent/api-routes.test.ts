/** Each route calls its method with what was sent, and answers with what that gives. */
import t from 'tap';
import { errorFromJson, PagetideError } from '../../src/errors.ts';
import {
  cacheInfo,
  capabilities,
  snapshotInfo,
  DOMAIN,
  domainAnswer,
  domainCheckIn,
  domainInfo,
  domainOffer,
  domainRemoval,
  evacuateRequest,
  evacuationInfo,
  figures,
  guestInfo,
  ID,
  kept,
  migrateRequest,
  migrationInfo,
  prepareRequest,
} from './fake-service.ts';
import { AgentClient } from '../../src/agent/api/client.ts';
import { startApi, type Sending } from './api-harness.ts';

interface Case {
  path: string;
  sending?: Sending;
  status?: number;
  call: unknown[];
  answer: unknown;
}

const embedded = { name: 'web9', driver: 'embedded', options: { memory: 268435456 } };
const post = { method: 'POST' };

const CASES: Case[] = [
  { path: '/v1/doctor', call: ['doctor'], answer: [{ name: 'kernel', status: 'ok', found: 'Linux 6.18' }] },
  { path: '/v1/guests', call: ['listGuests'], answer: [guestInfo('web1'), guestInfo('web2')] },
  { path: '/v1/guests/web1', call: ['showGuest', 'web1'], answer: guestInfo('web1') },
  {
    path: '/v1/guests/attach',
    sending: { body: { name: 'vm', driver: 'qemu', options: { qmp: '/run/q' } } },
    status: 201,
    call: ['attachGuest', { name: 'vm', driver: 'qemu', options: { qmp: '/run/q' } }],
    answer: { ...guestInfo('vm'), launched: false },
  },
  {
    path: '/v1/guests/run',
    sending: { body: embedded },
    status: 201,
    call: ['runGuest', embedded],
    answer: guestInfo('web9'),
  },
  {
    path: '/v1/guests/web1/verify',
    sending: post,
    call: ['verifyGuest', 'web1'],
    answer: { result: { ok: true, checked: 65536, bad: [] } },
  },
  {
    path: '/v1/guests/web1',
    sending: { method: 'DELETE' },
    status: 204,
    call: ['removeGuest', 'web1'],
    answer: undefined,
  },
  { path: '/v1/domains', call: ['domains.list'], answer: [domainInfo('shop')] },
  { path: '/v1/domains/shop', call: ['domains.show', 'shop'], answer: domainInfo('shop') },
  {
    path: '/v1/domains',
    sending: { body: { name: 'shop' } },
    status: 201,
    call: ['domains.create', 'shop'],
    answer: { ...domainInfo('shop'), grants: [], guests: [] },
  },
  {
    path: '/v1/domains/shop/grant',
    sending: { body: { to: 'host-b' } },
    call: ['domains.grant', 'shop', 'host-b'],
    answer: domainInfo('shop'),
  },
  {
    path: '/v1/domains/shop/revoke',
    sending: { body: { host: 'host-b' } },
    call: ['domains.revoke', 'shop', 'host-b'],
    answer: domainInfo('shop'),
  },
  { path: '/v1/domains/shop', sending: { method: 'DELETE' }, call: ['domains.remove', 'shop'], answer: domainRemoval },
  { path: `/v1/domain-grants/${DOMAIN}`, call: ['domains.answer', DOMAIN], answer: domainAnswer },
  {
    path: `/v1/domain-grants/${DOMAIN}`,
    sending: { method: 'PUT', body: domainOffer() },
    call: ['domains.accept', DOMAIN, domainOffer(), null],
    answer: domainAnswer,
  },
  {
    path: `/v1/domain-grants/${DOMAIN}?epoch=12`,
    sending: { method: 'DELETE' },
    status: 204,
    call: ['domains.withdraw', DOMAIN, 12, null],
    answer: undefined,
  },
  {
    path: `/v1/domain-grants/${DOMAIN}/check-in`,
    sending: { body: { as: 'unix:/b.sock' } },
    call: ['domains.checkIn', DOMAIN, 'unix:/b.sock', null],
    answer: domainCheckIn,
  },
  {
    path: `/v1/domain-grants/${DOMAIN}/give-up`,
    sending: { body: { as: 'unix:/b.sock', epoch: 12 } },
    status: 204,
    call: ['domains.gaveUp', DOMAIN, 'unix:/b.sock', 12, null],
    answer: undefined,
  },
  { path: '/v1/cache', call: ['cacheInfo'], answer: cacheInfo },
  { path: '/v1/cache', sending: { method: 'DELETE' }, call: ['clearCache'], answer: { erased: 12 } },
  {
    path: '/v1/cache/warm',
    sending: { body: { domain: 'shop', guest: 'web1' } },
    call: ['warmCache', { domain: 'shop', guest: 'web1' }],
    answer: kept,
  },
  { path: '/v1/snapshots', call: ['listSnapshots'], answer: [snapshotInfo] },
  {
    path: '/v1/snapshots',
    sending: { body: { file: '/srv/snapshot/mem', domain: 'shop' } },
    call: ['shareSnapshot', { file: '/srv/snapshot/mem', domain: 'shop' }],
    answer: snapshotInfo,
  },
  {
    path: '/v1/snapshots?file=%2Fsrv%2Fa%20b',
    sending: { method: 'DELETE' },
    status: 204,
    call: ['unshareSnapshot', '/srv/a b'],
    answer: undefined,
  },
  {
    path: '/v1/migrations',
    sending: { body: { guest: 'web1', to: 'http://127.0.0.1:7412' } },
    status: 202,
    call: ['migrate', { guest: 'web1', to: 'http://127.0.0.1:7412', mode: 'auto', verify: true }],
    answer: migrationInfo('preparing'),
  },
  {
    path: '/v1/migrations',
    sending: { body: migrateRequest() },
    status: 202,
    call: ['migrate', migrateRequest()],
    answer: migrationInfo('preparing'),
  },
  { path: '/v1/migrations', call: ['listMigrations'], answer: [migrationInfo('preparing')] },
  { path: `/v1/migrations/${ID}`, call: ['showMigration', ID], answer: migrationInfo('preparing') },
  { path: '/v1/guests/web1/cancel', sending: post, call: ['cancel', 'web1'], answer: migrationInfo('preparing') },
  { path: '/v1/capabilities', call: ['capabilities'], answer: capabilities },
  {
    path: '/v1/incoming',
    sending: { body: prepareRequest() },
    call: ['prepareIncoming', prepareRequest()],
    answer: { migration: ID, epoch: 3, state: 'prepared' },
  },
  {
    path: `/v1/incoming/${ID}`,
    call: ['incomingStatus', ID],
    answer: { migration: ID, epoch: 3, state: 'unknown' },
  },
  ...(
    [
      ['take-over', 'takeOver', 'owner'],
      ['abort', 'abortIncoming', 'refused'],
    ] as const
  ).map(([verb, method, state]) => ({
    path: `/v1/incoming/${ID}/${verb}`,
    sending: { body: { epoch: 7 } },
    call: [method, ID, 7],
    answer: { migration: ID, epoch: 7, state },
  })),
  ...(['copy', 'serve'] as const).map((rest) => ({
    path: `/v1/incoming/${ID}/load`,
    sending: { body: { epoch: 7, ...(rest === 'serve' ? {} : { rest }) } },
    call: ['loadIncoming', ID, 7, rest],
    answer: { migration: ID, epoch: 7, state: 'loaded' },
  })),
  {
    path: '/v1/evacuation',
    sending: { body: { to: ['http://127.0.0.1:7412'] } },
    status: 202,
    call: ['evacuate', { to: ['http://127.0.0.1:7412'], parallel: 2, mode: 'auto', verify: true }],
    answer: evacuationInfo('running'),
  },
  {
    path: '/v1/evacuation/plan',
    sending: { body: evacuateRequest() },
    call: ['planEvacuation', evacuateRequest()],
    answer: evacuationInfo('planned'),
  },
  {
    path: `/v1/incoming/${ID}/copy`,
    sending: { body: { epoch: 7, round: 2 } },
    call: ['copyIncoming', ID, 7, 2],
    answer: { migration: ID, epoch: 7, state: 'prepared' },
  },
  {
    path: `/v1/incoming/${ID}/limit`,
    sending: { body: { epoch: 7, bandwidth: 65536 } },
    call: ['limitIncoming', ID, 7, 65536],
    answer: { migration: ID, epoch: 7, state: 'owner' },
  },
  {
    path: `/v1/outgoing/${ID}/complete`,
    sending: { body: { epoch: 7, figures: figures() } },
    status: 204,
    call: ['completeOutgoing', ID, 7, figures()],
    answer: undefined,
  },
  {
    path: `/v1/outgoing/${ID}/recheck`,
    sending: { body: { epoch: 7, frames: [3, 9] } },
    call: ['recheckOutgoing', ID, 7, [3, 9]],
    answer: { findings: ['right', 'right'] },
  },
];

void t.test('every route calls its method and gives its answer', async (t) => {
  const api = await startApi(t);
  for (const { path, sending, status, call, answer } of CASES) {
    const got = await api.send(path, sending);
    t.equal(got.status, status ?? 200, `${path}: ${got.text}`);
    t.same(api.service.calls.at(-1), call);
    t.same(got.json, answer);
  }
});

void t.test('info, metrics and a guest that cannot check itself', async (t) => {
  const api = await startApi(t);
  t.match((await api.send('/v1/info')).json, { name: 'fake', faultWorkers: { total: 4, busy: 0 } });
  const metrics = await api.send('/metrics');
  t.match(metrics.headers['content-type'], /^text\/plain/);
  t.equal(metrics.text, 'pagetide_guests{state="running"} 1\n');
  api.service.verifyResult = null;
  t.same((await api.send('/v1/guests/web1/verify', post)).json, { result: null });
});

void t.test('every route passes its failure on, with the status of its code', async (t) => {
  const api = await startApi(t);
  api.service.failure = new PagetideError('PT_GUEST_BUSY', 'web1 migrates', { cause: new Error('the first one') });
  for (const { path, sending } of CASES) {
    const got = await api.send(path, sending);
    t.equal(got.status, 409, path);
    t.match(got.json, { code: 'PT_GUEST_BUSY', message: 'web1 migrates', cause: 'the first one' });
    t.match(got.headers['content-type'], /^application\/json/);
  }
  t.equal(errorFromJson((await api.send('/v1/info')).json).code, 'PT_GUEST_BUSY');
  t.equal((await api.send('/metrics')).status, 409);

  api.service.failure = new TypeError('undefined is not a function');
  const defect = await api.send('/v1/guests');
  t.equal(defect.status, 500);
  t.match(defect.json, { code: 'PT_INTERNAL', message: 'undefined is not a function' });
});

void t.test('an answer that breaks its own description says where', async (t) => {
  const api = await startApi(t);
  const progress = { ...migrationInfo('serving').progress, framesPresent: NaN };
  api.service.migration = migrationInfo('serving', { progress });
  const got = await api.send('/v1/migrations');
  t.equal(got.status, 500);
  t.match(got.json, { code: 'PT_INTERNAL', message: /GET \/v1\/migrations.*0\.progress\.framesPresent/ });
});

void t.test('an evacuation: there is one, or none', async (t) => {
  const api = await startApi(t);
  const client = new AgentClient(`unix:${api.socket}`);
  for (const ask of [() => client.showEvacuation(), () => client.stopEvacuation(true)])
    await t.rejects(ask(), { code: 'PT_EVACUATION_UNKNOWN' });
  await t.rejects(
    async () => {
      for await (const info of client.watchEvacuation()) t.fail(info.state);
    },
    { code: 'PT_EVACUATION_UNKNOWN' },
  );
  api.service.evacuation = evacuationInfo('running');
  t.same(await client.showEvacuation(), evacuationInfo('running'));
  t.same(await client.stopEvacuation(false), evacuationInfo('running'));
  t.same(api.service.calls.at(-1), ['stopEvacuation', false]);
  const states: string[] = [];
  for await (const { state } of client.watchEvacuation()) {
    states.push(state);
    api.service.changeEvacuation(evacuationInfo(state === 'running' ? 'stopping' : 'ended'));
  }
  t.same(states, ['running', 'stopping', 'ended']);
  const bad = [{ to: [] }, { to: ['here'] }, { to: ['http://x'], parallel: 0 }, { to: ['http://x'], bandwidth: 5 }, {}];
  for (const body of bad) t.equal((await api.send('/v1/evacuation', { body })).status, 400, JSON.stringify(body));
});
