/** The event stream: from the first state to the last, and no longer than somebody listens. */
import { once } from 'node:events';
import { request, type IncomingMessage } from 'node:http';
import { createInterface } from 'node:readline';
import t from 'tap';
import { AgentClient } from '../../src/agent/api/client.ts';
import { ID, migrationInfo, report } from './fake-service.ts';
import { startApi } from './api-harness.ts';

void t.test('every change as a line, until the migration ends', async (t) => {
  const api = await startApi(t);
  api.service.migration = migrationInfo('preparing');
  const sent = request({ socketPath: api.socket, path: `/v1/migrations/${ID}/events`, agent: false }).end();
  const [response] = (await once(sent, 'response')) as [IncomingMessage];
  t.equal(response.statusCode, 200);
  t.match(response.headers['content-type'], /^application\/x-ndjson/);
  const phases: string[] = [];
  let last: unknown;
  for await (const line of createInterface({ input: response })) {
    const info = JSON.parse(line) as ReturnType<typeof migrationInfo>;
    last = info;
    phases.push(info.progress.phase);
    const next = ({ preparing: 'switching', switching: 'serving', serving: 'done' } as const)[
      info.progress.phase as 'serving'
    ];
    // only once the line has come: the stream must not hold lines back
    if (info.progress.phase !== 'done') api.service.change(migrationInfo(next));
  }
  t.same(phases, ['preparing', 'switching', 'serving', 'done']);
  t.same(last, { ...migrationInfo('done'), report });
  t.equal(api.service.watchers, 0);
});

void t.test('a client that hangs up stops the watching', async (t) => {
  const api = await startApi(t);
  api.service.migration = migrationInfo('serving');
  const client = new AgentClient(`unix:${api.socket}`);
  const gone = api.service.next('unwatch');
  for await (const info of client.watchMigration(ID)) {
    t.equal(info.progress.phase, 'serving');
    t.equal(api.service.watchers, 1);
    break;
  }
  await gone;
  t.equal(api.service.watchers, 0);

  const abort = new AbortController();
  const goneToo = api.service.next('unwatch');
  await t.rejects(
    (async () => {
      for await (const info of client.watchMigration(ID, abort.signal)) abort.abort(info);
    })(),
  );
  await goneToo;
  t.equal(api.service.watchers, 0);
});

void t.test('closing the API ends streams, and breaks calls that take too long', async (t) => {
  const api = await startApi(t, { closeGraceMs: 50 });
  api.service.migration = migrationInfo('serving');
  const client = new AgentClient(`unix:${api.socket}`);
  // never answers
  api.service.verifyGuest = () => new Promise(() => undefined);
  const verify = t.rejects(client.verifyGuest('web1'), { code: 'PT_PEER_UNREACHABLE' });
  const watch = t.rejects(
    (async () => {
      for await (const info of client.watchMigration(ID)) if (info.id === ID) void api.app.close();
    })(),
    { code: 'PT_PEER_UNREACHABLE' },
  );
  await Promise.all([verify, watch]);
  await api.app.close();
  t.equal(api.service.watchers, 0);
});

void t.test('an unknown migration, and one whose watching fails', async (t) => {
  const api = await startApi(t);
  const client = new AgentClient(`unix:${api.socket}`);
  const watch = async () => {
    for await (const info of client.watchMigration(ID)) t.fail(`nothing to see: ${info.id}`);
  };
  await t.rejects(watch(), { code: 'PT_MIGRATION_UNKNOWN' });
  api.service.migration = migrationInfo('serving');
  api.service.watchMigration = () => {
    throw new Error('broken');
  };
  await t.rejects(watch(), { name: 'PagetideError' });
  t.equal((await api.send('/v1/info')).status, 200, 'the agent lives on');
});
