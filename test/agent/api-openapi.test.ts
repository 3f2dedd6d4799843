/** The OpenAPI document, against the routes that there are and the file in docs/. */
import { readFileSync } from 'node:fs';
import t from 'tap';
import { buildApi } from '../../src/agent/api/app.ts';
import { openapiText } from '../../src/agent/api/openapi.ts';
import { FakeService } from './fake-service.ts';

const METHODS = ['get', 'post', 'put', 'patch', 'delete', 'head', 'options'];

void t.test('its paths are the routes', async (t) => {
  const app = buildApi(new FakeService());
  t.teardown(() => app.close());
  await app.ready();
  // of the router's own tree, so that a route hidden from the document is found
  const routes = new Set<string>();
  const document = app.swagger() as { paths: Record<string, Record<string, unknown>> };
  const described = new Set<string>();
  for (const [path, operations] of Object.entries(document.paths)) {
    for (const method of Object.keys(operations)) {
      if (METHODS.includes(method)) described.add(`${method} ${path}`);
    }
  }
  const parents: string[] = [];
  for (const line of app.printRoutes({ commonPrefix: false }).split('\n')) {
    const match = /^((?:│ {3}| {4})*)(?:├── |└── )(\S+)(?: \((.+)\))?$/.exec(line);
    if (match === null) continue;
    const depth = match[1]!.length / 4;
    parents.length = depth;
    parents.push(match[2]!);
    const path = parents.join('').replaceAll(/:(\w+)/g, '{$1}');
    for (const method of match[3]?.split(', ') ?? []) routes.add(`${method.toLowerCase()} ${path}`);
  }
  t.ok(routes.size >= 20, `${routes.size} routes found`);
  t.same([...described].sort(), [...routes].sort());
});

void t.test('docs/openapi.json is current', async (t) => {
  // from test/ as from dist/test/
  const root = import.meta.url.includes('/dist/') ? '../../../' : '../../';
  const file = readFileSync(new URL(`${root}docs/openapi.json`, import.meta.url), 'utf8');
  t.equal(file, await openapiText(), '`npm run openapi` writes it');
});

void t.test('every operation says what it does and how it fails', async (t) => {
  const document = JSON.parse(await openapiText()) as {
    paths: Record<string, Record<string, { summary?: string; responses: Record<string, unknown> }>>;
    components: { schemas: Record<string, unknown> };
  };
  for (const [path, operations] of Object.entries(document.paths)) {
    for (const [method, operation] of Object.entries(operations)) {
      t.ok(operation.summary, `${method} ${path}`);
      t.ok(operation.responses['4XX'] ?? operation.responses['4xx'], `${method} ${path} has errors`);
    }
  }
  t.ok(document.components.schemas['MigrationInfo']);
});
