/** Who may ask what about domains, and that no answer repeats a secret. */
import t from 'tap';
import { PEER_HEADER, VIA_HEADER } from '../../src/agent/api/app.ts';
import { startApi, type Sending } from './api-harness.ts';
import { DOMAIN, domainOffer } from './fake-service.ts';

const grants = `/v1/domain-grants/${DOMAIN}`;
const AGENTS: [string, Sending][] = [
  [grants, {}],
  [grants, { method: 'PUT', body: domainOffer() }],
  [`${grants}?epoch=3`, { method: 'DELETE' }],
  [`${grants}/check-in`, { body: { as: 'host-b' } }],
  [`${grants}/give-up`, { body: { as: 'host-b', epoch: 3 } }],
];
const OPERATORS: [string, Sending][] = [
  ['/v1/domains', { body: { name: 'shop' } }],
  ['/v1/domains/shop/grant', { body: { to: 'host-b' } }],
  ['/v1/domains/shop/revoke', { body: { host: 'host-b' } }],
  ['/v1/domains/shop', { method: 'DELETE' }],
];
const plain = { [VIA_HEADER]: 'port' };
const secure = { ...plain, [PEER_HEADER]: 'host-b' };

void t.test('over the plain port nobody changes a domain, nor gives one', async (t) => {
  const api = await startApi(t);
  for (const [path, sending] of [...AGENTS, ...OPERATORS]) {
    const got = await api.send(path, { ...sending, headers: plain });
    t.equal(got.status, 403, path);
    t.match(got.json, { code: 'PT_NO_PERMISSION' });
  }
  t.same(api.service.calls, [], 'the agent was not even asked');
  t.equal((await api.send('/v1/domains', { headers: plain })).status, 200, 'who made which is no secret');
});

void t.test('another host may do what is between agents, under its own name', async (t) => {
  const api = await startApi(t);
  for (const [path, sending] of OPERATORS)
    t.equal((await api.send(path, { ...sending, headers: secure })).status, 403, path);
  t.equal((await api.send('/v1/domains', { headers: secure })).status, 403);
  t.same(api.service.calls, []);
  for (const [path, sending] of AGENTS) {
    const { status } = await api.send(path, { ...sending, headers: secure });
    t.ok(status === 200 || status === 204, path);
  }
  t.same(
    api.service.calls.slice(1).map((call) => call.at(-1)),
    Array.from({ length: 4 }, () => 'host-b'),
  );
  // one that comes over the control socket is not what it says, but the operator
  await api.send(`${grants}?epoch=3`, { method: 'DELETE', headers: { [PEER_HEADER]: 'host-b' } });
  t.same(api.service.calls.at(-1), ['domains.withdraw', DOMAIN, 3, null]);
});

void t.test('what is refused says nothing of the secret that was sent', async (t) => {
  const api = await startApi(t);
  const offer = domainOffer();
  const wrong: unknown[] = [
    { ...offer, secret: `${offer.secret}ff` },
    { ...offer, secret: offer.secret.toUpperCase() },
    { ...offer, secret: [offer.secret] },
    { ...offer, name: offer.secret },
    { ...offer, epoch: -1 },
  ];
  for (const body of wrong) {
    const got = await api.send(grants, { method: 'PUT', body });
    t.equal(got.status, 400);
    t.match(got.json, { code: 'PT_BAD_ARGUMENT' });
    t.notMatch(got.text.toLowerCase(), offer.secret.slice(0, 16));
  }
  for (const path of ['/v1/domain-grants/xyz', `/v1/domain-grants/${DOMAIN}?epoch=x`])
    t.equal((await api.send(path, { method: 'DELETE' })).status, 400, path);
  t.same(api.service.calls, []);
});
