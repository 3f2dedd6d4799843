/** Bad requests are refused before the service hears of them, in the one shape of errors. */
import t from 'tap';
import { BODY_LIMIT } from '../../src/agent/api/app.ts';
import { ID, prepareRequest } from './fake-service.ts';
import { startApi, type Sending } from './api-harness.ts';

const epochTo = (verb: string, body: unknown): [string, Sending, RegExp] => [
  `/v1/incoming/${ID}/${verb}`,
  { body },
  /epoch/,
];

/** A request of the source with something in it changed. */
function prepare(change: (request: ReturnType<typeof prepareRequest>) => void): Sending {
  const request = prepareRequest();
  change(request);
  return { body: request };
}

const REFUSED: [path: string, sending: Sending, message: RegExp][] = [
  ['/v1/guests/Web1', {}, /params\.name/],
  ['/v1/guests/..%2f..%2fetc', {}, /params\.name/],
  [`/v1/guests/${'a'.repeat(64)}`, {}, /params\.name/],
  ['/v1/guests/-a', { method: 'DELETE' }, /params\.name/],
  ['/v1/guests/run', { body: { name: '../x', driver: 'embedded', options: {} } }, /body\.name/],
  ['/v1/guests/run', { body: { name: 'a', driver: 'xen', options: {} } }, /body\.driver/],
  ['/v1/guests/run', { body: { name: 'a', driver: 'qemu' } }, /body\.options/],
  ['/v1/guests/run', { body: { name: 'a', driver: 'qemu', options: {}, force: true } }, /force/],
  ['/v1/guests/run', { body: [] }, /body/],
  ['/v1/guests/run', { method: 'POST' }, /body/],
  ['/v1/guests/attach', { raw: '{"name":' }, /JSON/],
  ['/v1/migrations', { body: { guest: 'web1' } }, /body\.to/],
  ['/v1/migrations', { body: { guest: 'web1', to: 'ftp://x' } }, /body\.to/],
  ['/v1/migrations', { body: { guest: 'web1', to: 'http://x', mode: 'magic' } }, /body\.mode/],
  ['/v1/migrations/xyz', {}, /params\.id/],
  ['/v1/migrations/xyz/events', {}, /params\.id/],
  epochTo('load', {}),
  epochTo('take-over', { epoch: -1 }),
  epochTo('abort', { epoch: 1.5 }),
  [`/v1/outgoing/${ID}/complete`, { body: { epoch: 1, figures: { frames: {} } } }, /body\.figures/],
  ['/v1/incoming', prepare((r) => (r.migration = 'zz')), /body\.migration/],
  ['/v1/incoming', prepare((r) => (r.source.token = 'short')), /body\.source\.token/],
  ['/v1/incoming', prepare((r) => (r.description.memory.pageSize = 5000)), /memory\.pageSize: a power of two/],
  ['/v1/incoming', prepare((r) => (r.description.memory.size += 1)), /memory\.size/],
  ['/v1/incoming', prepare((r) => (r.description.memory.files = [])), /memory\.files: hold 0 bytes/],
  [
    '/v1/incoming',
    prepare((r) => {
      const half = r.description.memory.size / 2;
      const file = { id: 'a', size: half, offset: 0 };
      r.description.memory.files = [file, { ...file, id: 'b', offset: half - 4096 }];
    }),
    /memory\.files\.1: overlaps/,
  ],
];

void t.test('refused with PT_BAD_ARGUMENT and the path', async (t) => {
  const api = await startApi(t);
  for (const [path, sending, message] of REFUSED) {
    const got = await api.send(path, sending);
    t.equal(got.status, 400, `${path} ${JSON.stringify(sending).slice(0, 60)}: ${got.text}`);
    t.match(got.json, { code: 'PT_BAD_ARGUMENT', message, hint: /./ });
  }
  t.same(api.service.calls, [], 'the service heard nothing');
});

void t.test('refused with the status of HTTP', async (t) => {
  const api = await startApi(t);
  const cases: [number, string, Sending][] = [
    [404, '/v2/guests', {}],
    [404, '/v1/guests', { method: 'PUT', body: {} }],
    [413, '/v1/guests/run', { raw: JSON.stringify({ name: 'a', fill: 'x'.repeat(BODY_LIMIT) }) }],
    [415, '/v1/guests/run', { raw: '<a/>', headers: { 'content-type': 'text/xml' } }],
    [400, '/v1/guests/%ff', {}],
  ];
  for (const [status, path, sending] of cases) {
    const got = await api.send(path, sending);
    t.equal(got.status, status, `${path}: ${got.text}`);
    t.match(got.json, { code: 'PT_BAD_ARGUMENT', message: /./, hint: /./ });
  }
  t.same(api.service.calls, []);
});

void t.test('a description just below the limit passes', async (t) => {
  const api = await startApi(t);
  const request = prepareRequest();
  request.description.config = { argv: 'x'.repeat(BODY_LIMIT - JSON.stringify(request).length - 100) };
  t.equal((await api.send('/v1/incoming', { body: request })).status, 200);
});

void t.test('web pages are refused, other clients of the port are not', async (t) => {
  const api = await startApi(t);
  for (const headers of [{ origin: 'http://evil.example' }, { 'sec-fetch-site': 'same-origin' }]) {
    const got = await api.send('/v1/guests/web1/cancel', {
      method: 'POST',
      headers: { ...headers, 'x-pagetide-via': 'port' },
    });
    t.equal(got.status, 403);
    t.match(got.json, { code: 'PT_NO_PERMISSION' });
  }
  t.same(api.service.calls, []);
  t.equal((await api.send('/v1/info', { headers: { 'x-pagetide-via': 'port' } })).status, 200);
  t.equal((await api.send('/v1/info', { headers: { 'sec-fetch-site': 'none' } })).status, 200);
});
