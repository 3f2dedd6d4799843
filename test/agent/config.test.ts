/** The configuration: what it completes, what it refuses, and that the docs name all of it. */
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import { z } from 'zod';
import { configSchema, guestSocketFolder, loadConfig, type ConfigHost } from '../../src/agent/config.ts';
import { urlOf } from '../../src/agent/listen-address.ts';
import {
  formatDuration,
  formatMicros,
  formatMillis,
  formatSize,
  parseDuration,
  parseSize,
} from '../../src/agent/units.ts';
import { shortFolder } from './api-harness.ts';

const TMPFS = 0x01021994;

/** A host whose /dev/shm is a tmpfs, and nothing else. */
const host: ConfigHost = {
  env: { HOME: '/home/ada' },
  uid: 1000,
  hostname: 'Blade_7.example.org',
  fileSystem: (path) => {
    if (path === '/dev/shm') return TMPFS;
    if (path === '/' || path === '/srv') return 0xef53;
    throw Object.assign(new Error('no such file'), { code: 'ENOENT' });
  },
};

void t.test('defaults', (t) => {
  const config = loadConfig(undefined, {}, host);
  t.match(config, {
    listen: { host: '127.0.0.1', port: 7411 },
    name: 'blade-7',
    state: '/home/ada/.local/state/pagetide',
    runtimeFolder: '/home/ada/.local/state/pagetide',
    control: '/home/ada/.local/state/pagetide/control.sock',
    memoryFolder: '/dev/shm/pagetide-1000-blade-7',
    faultWorkers: 4,
    batchWorkers: 1,
    spinMicros: 20,
    fill: { batchFrames: 64, window: 4 },
    log: { level: 'info', format: 'json' },
  });
  t.notOk('bandwidth' in config.fill, 'no limit unless asked');
  t.equal(loadConfig(undefined, {}, { ...host, uid: 0 }).state, '/var/lib/pagetide');
  t.equal(loadConfig(undefined, {}, { ...host, hostname: '---' }).name, 'agent');
  t.end();
});

void t.test('files, YAML and JSON, and flags over them', (t) => {
  const folder = shortFolder(t);
  const yaml = join(folder, 'a.yaml');
  writeFileSync(yaml, 'listen: "[::1]:0"\nname: from-file\nfill:\n  bandwidth: 100M\ntimeouts: { vmmMs: 5000 }\n');
  const config = loadConfig(yaml, { name: 'from-flag', state: folder }, host);
  t.match(config, { name: 'from-flag', state: folder, listen: { host: '::1', port: 0 } });
  t.equal(config.fill.bandwidth, 100 * 1024 * 1024);
  t.equal(config.fill.window, 4, 'what a section leaves out is completed');
  t.match(config.timeouts, { vmmMs: 5000, prepareMs: 60_000 });
  t.equal(urlOf(config.listen), 'http://[::1]:0');

  const json = join(folder, 'a.json');
  writeFileSync(json, '{"faultWorkers": 16, "listen": "localhost:9000"}');
  t.match(loadConfig(json, {}, host), { faultWorkers: 16, listen: { host: '127.0.0.1', port: 9000 } });
  writeFileSync(json, '');
  t.equal(loadConfig(json, {}, host).faultWorkers, 4, 'an empty file is all defaults');
  t.end();
});

void t.test('distribution: the peak follows the average, the budget the cache', (t) => {
  const folder = shortFolder(t);
  const file = join(folder, 'd.yaml');
  const of = (text: string) => {
    writeFileSync(file, text);
    return loadConfig(file, {}, host).distribution;
  };
  t.match(loadConfig(undefined, {}, host).distribution, {
    ...{ enabled: true, average: 12_500_000, peak: 50_000_000, budget: 0 },
    prices: { hold: 1 / 32, bring: 1 / 4, hysteresis: 1.25 },
  });
  t.equal(of('cache: { size: 1G }').budget, 2 ** 29);
  t.equal(of('{ cache: { size: 1G }, distribution: { budget: 12.5% } }').budget, 2 ** 27);
  t.equal(of('{ cache: { size: 1G }, distribution: { budget: 100M } }').budget, 100 * 2 ** 20);
  t.equal(of('distribution: { budget: 100M }').budget, 0, 'no cache: nothing is brought');
  t.match(of('distribution: { average: 1M }'), { average: 2 ** 20, peak: 2 ** 22 });
  t.match(of('distribution: { average: 1M, peak: 1M }'), { average: 2 ** 20, peak: 2 ** 20 });
  t.end();
});

void t.test('refused, with the field and before anything is made', (t) => {
  const folder = shortFolder(t);
  const file = join(folder, 'c.yaml');
  const cases: [string, RegExp][] = [
    ['colour: red', /colour: no such field/],
    ['fill: { windw: 3 }', /fill\.windw: no such field/],
    ['faultWorkers: 0', /faultWorkers/],
    ['faultWorkers: 65', /faultWorkers/],
    ['faultWorkers: many', /faultWorkers/],
    ['spinMicros: -1', /spinMicros/],
    ['name: Über', /name: small letters/],
    ['fill: { bandwidth: 10 }', /fill\.bandwidth/],
    ['fill: { bandwidth: fast }', /fill\.bandwidth/],
    ['timeouts: { peerMs: 0 }', /timeouts\.peerMs/],
    ['log: { level: loud }', /log\.level/],
    ['distribution: { average: 1000 }', /distribution\.average: bytes a second, 64K/],
    ['distribution: { average: 70000, peak: 199999 }', /distribution\.peak: 199999 is below the lowest/],
    ['distribution: { average: 10M, peak: 9M }', /distribution\.peak: 9437184 is below/],
    ['distribution: { budget: 101% }', /distribution\.budget: a size/],
    [
      '{ cache: { size: 1G }, distribution: { budget: 2G } }',
      /distribution\.budget: 2147483648 is more than cache\.size/,
    ],
    ['distribution: { prices: { hysteresis: 0.5 } }', /distribution\.prices\.hysteresis/],
    ['directory: { url: "http://x" }', /directory\.url: a redis/],
    ['directory: { leaseMs: 10000, reportMs: 5000 }', /directory\.reportMs: 5000 is more than a third/],
    ['advertise: "https://x"', /needs tls/],
    ['listen: 0.0.0.0:7411', /listen: 0\.0\.0\.0 is not a loopback address/],
    ['listen: "[::]:7411"', /loopback/],
    ['listen: 10.1.2.3:7411', /loopback/],
    ['listen: "[::ffff:10.0.0.1]:7411"', /loopback/],
    ['listen: example.org:7411', /no IP address/],
    ['listen: 127.0.0.1', /no address and port/],
    ['listen: 127.0.0.1:70000', /no address and port/],
    ['memoryFolder: /srv/guests', /memoryFolder: \/srv\/guests is not on a tmpfs/],
    [`state: /${'s'.repeat(100)}`, /107 at most/],
    [`state: /${'s'.repeat(75)}`, /sockets of guests/],
    ['a: [', /c\.yaml:1/],
    ['name: a\nname: b', /c\.yaml:2.*unique/],
    ['- a\n- b', /fields with values/],
    ['7', /fields with values/],
    ['x: &a [1]\ny: [*b]', /alias/i],
  ];
  for (const [text, message] of cases) {
    writeFileSync(file, text);
    t.throws(() => loadConfig(file, {}, host), { code: 'PT_BAD_CONFIG', message, hint: /./ }, text);
  }
  t.throws(() => loadConfig(join(folder, 'none'), {}, host), { code: 'PT_BAD_CONFIG', message: /cannot read/ });
  t.throws(() => loadConfig(undefined, { listen: '0.0.0.0:1' }, host), { code: 'PT_BAD_CONFIG', hint: /certificates/ });
  t.equal(loadConfig(undefined, { state: `/${'s'.repeat(68)}` }, host).name, 'blade-7', 'the longest that fits');
  t.end();
});

void t.test('the folder of a guest, as long as sockets fit into it', (t) => {
  const config = { runtimeFolder: `/${'r'.repeat(68)}` };
  t.equal(guestSocketFolder(config, 'a'.repeat(16)), `${config.runtimeFolder}/guests/${'a'.repeat(16)}`);
  t.throws(() => guestSocketFolder(config, 'a'.repeat(17)), { code: 'PT_BAD_ARGUMENT', message: /1 bytes too long/ });
  t.doesNotThrow(() => guestSocketFolder({ runtimeFolder: '/run/pagetide' }, 'a'.repeat(63)));
  t.end();
});

/** Dotted paths of all fields, sections included. */
function fields(schema: z.core.JSONSchema.BaseSchema, prefix = ''): [string, string | undefined][] {
  return Object.entries(schema.properties ?? {}).flatMap(([key, value]) => {
    if (typeof value === 'boolean') return [];
    return [[prefix + key, value.description] as [string, string | undefined], ...fields(value, `${prefix}${key}.`)];
  });
}

void t.test('docs/configuration.md says of every field what the schema says', (t) => {
  const root = import.meta.url.includes('/dist/') ? '../../../' : '../../';
  // prettier pads the cells
  const text = readFileSync(new URL(`${root}docs/configuration.md`, import.meta.url), 'utf8').replaceAll(/ +/g, ' ');
  const all = fields(z.toJSONSchema(configSchema, { io: 'input' }));
  t.ok(all.length > 18, `${all.length} fields`);
  for (const [name, description] of all) {
    t.ok(description, `${name} has a description`);
    const row = text.split('\n').find((line) => line.startsWith(`| \`${name}\` |`));
    t.ok(row?.includes(description!), `docs/configuration.md: ${name}: ${description}`);
  }
  const rows = text.match(/^\| `[\w.]+` \|/gm) ?? [];
  t.equal(rows.length, all.length, 'and of no other');
  t.end();
});

void t.test('units', (t) => {
  const sizes: [string, number | undefined][] = [
    ['4096', 4096],
    ['256M', 2 ** 28],
    ['1.5G', 1.5 * 2 ** 30],
    ['256MiB', 2 ** 28],
    ['64 KB', 65536],
    ['', undefined],
    ['M', undefined],
    ['-1', undefined],
    ['1e9', undefined],
    ['0.3', undefined],
    ['99999T', undefined],
    ['1Q', undefined],
  ];
  for (const [text, bytes] of sizes) t.equal(parseSize(text), bytes, text);
  t.same([formatSize(512), formatSize(2 ** 28), formatSize(1.4 * 2 ** 30)], ['512 B', '256 MiB', '1.4 GiB']);
  t.same([formatMillis(3.25), formatMillis(840), formatMillis(12_500)], ['3.3 ms', '840 ms', '12.5 s']);
  const durations: [string, number | undefined][] = [
    ['0', 0],
    ['500ms', 500],
    ['90s', 90_000],
    ['2h', 7_200_000],
    ['1.5d', 129_600_000],
    ['2', undefined],
    ['-1h', undefined],
    ['1w', undefined],
  ];
  for (const [text, ms] of durations) t.equal(parseDuration(text), ms, text);
  t.same([45_000, 7_200_000, 7_140_000, 176_400_000].map(formatDuration), ['45 s', '2 h', '1 h 59 min', '2 d 1 h']);
  t.same([formatMicros(4.1), formatMicros(1300)], ['4.1 µs', '1.3 ms']);
  t.end();
});
