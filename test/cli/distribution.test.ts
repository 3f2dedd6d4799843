/** `pagetide distribution` and `pagetide plan`: what they send, print and refuse; the routes below them. */
import t from 'tap';
import { PEER_HEADER, VIA_HEADER } from '../../src/agent/api/app.ts';
import { PagetideError } from '../../src/errors.ts';
import { startApi } from '../agent/api-harness.ts';
import { distributionInfo, explainedGuest, tagsExplained } from '../agent/fake-distribution.ts';
import { DOMAIN } from '../agent/fake-service.ts';
import { runCli } from './harness.ts';

void t.test('distribution', async (t) => {
  const { service, socket } = await startApi(t);
  const cli = (line: string) => runCli(t, line.split(' '), { PAGETIDE_AGENT: `unix:${socket}` });
  const status = await cli('distribution status');
  t.match(
    status.stdout,
    /^state +bringing\nrate +20 MiB\/s on average, 80 MiB\/s at most\nheld +256 pages, 1 MiB of 1 GiB/,
  );
  t.match(status.stdout, /\nshop +256 +100 +488 KiB +879 KiB +1\.01 +host-c +7000 pages, 5 s ago\n$/);
  const [domain] = distributionInfo.domains;
  const { code, message, hint } = new PagetideError('PT_DIRECTORY_EVICTS', 'it loses records');
  domain!.directory.error = { code, message, hint };
  t.match((await cli('distribution status')).stdout, /\n\nshop: it loses records \(PT_DIRECTORY_EVICTS\)\n {2}\S/);
  delete domain!.directory.error;
  await cli('distribution set-rate 20M --peak 40M');
  t.same(service.calls.at(-1), ['setRates', { average: 20 * 2 ** 20, peak: 40 * 2 ** 20 }]);
  const explained = await cli('distribution explain web1');
  t.match(explained.stdout, /\nhost-b +25% +0 \(0%\) +0 +0 +0 +0\nhost-c +not known +not known +PT_PEER_UNREACHABLE/);
  t.match(explained.stdout, /\nhost-b +not worth its cost +1 +10 B +700 B\n$/);
  t.same(JSON.parse((await cli('distribution explain web1 --json')).stdout), explainedGuest);
  t.equal((await cli('distribution empty-directory shop')).code, 0);
  const count = service.calls.length;
  for (const wrong of ['set-rate 1K', 'set-rate 20M --peak 10M', 'set-rate fast', 'explain Web', 'set-budget x'])
    t.match(await cli(`distribution ${wrong}`), { code: 2, stdout: '' }, wrong);
  t.equal(service.calls.length, count, 'refused before the agent was asked');
  service.distribution = undefined;
  t.match(await cli('distribution status'), { code: 1, stderr: /PT_NOT_CONFIGURED/ });
});

void t.test('plans', async (t) => {
  const { service, socket } = await startApi(t);
  const cli = (line: string) => runCli(t, line.split(' '), { PAGETIDE_AGENT: `unix:${socket}` });
  const list = await cli('plan list');
  t.match(
    list.stdout,
    /^DOMAIN +PLAN +OF +TO +LEFT\nshop +evacuate +host-b +2 h\nshop +affinity +web1 +host-b, host-c +1 min\n$/,
  );
  await cli('plan evacuate host-b');
  t.same(service.calls.at(-1), ['plan.evacuate', 'host-b', 7_200_000, undefined]);
  await cli('plan affinity web1 host-b host-c --for 1d --domain shop');
  t.same(service.calls.at(-1), ['plan.affinity', 'web1', ['host-b', 'host-c'], 86_400_000, 'shop']);
  t.match(await cli('plan withdraw affinity web1'), { code: 0, stdout: 'withdrawn in shop\n' });
  t.same(service.calls.at(-1), ['plan.withdraw', { kind: 'affinity', guest: 'web1' }, undefined]);
  const count = service.calls.length;
  for (const wrong of [
    'evacuate host-b --for 0',
    'evacuate host-b --for 31d',
    'evacuate host-b --for 2',
    'affinity web1',
  ])
    t.match(await cli(`plan ${wrong}`), { code: 2, stdout: '' }, wrong);
  t.equal(service.calls.length, count);
});

void t.test('routes', async (t) => {
  const api = await startApi(t);
  const body = { domain: DOMAIN, tags: Buffer.alloc(16, 7).toString('base64') };
  const plain = { [VIA_HEADER]: 'port' };
  const secure = { ...plain, [PEER_HEADER]: 'host-b' };
  t.match(await api.send('/v1/distribution/explain', { body, headers: secure }), { status: 200, json: tagsExplained });
  t.equal((await api.send('/v1/distribution/explain', { body, headers: plain })).status, 403, 'who asks is not known');
  t.equal((await api.send('/v1/plans', { headers: secure })).status, 403, 'a host is no operator');
  const most = { domain: DOMAIN, tags: Buffer.alloc(65_536 * 16).toString('base64') };
  t.equal((await api.send('/v1/distribution/explain', { body: most })).status, 200);
  const more = { domain: DOMAIN, tags: Buffer.alloc(65_537 * 16).toString('base64') };
  t.equal((await api.send('/v1/distribution/explain', { body: more })).status, 400);
  for (const wrong of [{ host: 'b', forMs: 0 }, { host: 'b', forMs: 2_592_000_001 }, { host: '' }, {}])
    t.equal((await api.send('/v1/plans/evacuate', { body: wrong })).status, 400);
  t.equal((await api.send('/v1/distribution/rates', { body: { average: 1000 } })).status, 400);
});
