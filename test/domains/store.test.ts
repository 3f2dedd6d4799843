/** The store of domains: its files and their modes, what a crash at any moment leaves, and messages in any order. */
import { spawn } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { chmodSync, existsSync, mkdirSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import fc from 'fast-check';
import { pino } from 'pino';
import t, { type Test } from 'tap';
import type { Member } from '../../src/domains/records.ts';
import { DomainStore, type GivenDomain } from '../../src/domains/store.ts';
import { native } from '../../src/memory/native.ts';
import { keyNumber } from '../../src/pages/key-file.ts';
import { TAG_BYTES, TAG_PAGE, tagToHex, type DomainKey } from '../../src/pages/tags.ts';
import { folder } from '../trust/support.ts';

t.setTimeout(120_000);

const silent = pino({ level: 'silent' });
const free = (): void => undefined;
const ID = '0f'.repeat(16);

/** What a key makes of a page: two keys that agree on it are the same. */
function probe(key: DomainKey): string {
  const tag = new Uint8Array(TAG_BYTES);
  native().tagPages(key.id, Buffer.alloc(TAG_PAGE, 'probe'), 1, tag);
  key.close();
  return tagToHex(tag);
}

function open(at: string, log = silent): Promise<DomainStore> {
  return DomainStore.open(at, log);
}

function place(t: Test): string {
  return join(folder(t), 'domains');
}

function given(more: Partial<GivenDomain> = {}, epoch = 5, host: string | null = 'host-a'): GivenDomain {
  const home = { host, url: 'https://host-a:7411', as: 'host-b', epoch };
  return { id: ID, name: 'shop', secret: '5e'.repeat(32), home, members: [], ...more };
}

const mode = (path: string): number => statSync(path).mode & 0o777;
const keys = (at: string): string[] => readdirSync(at).filter((name) => name.endsWith('.key'));

void t.test('a domain is the same in every run, and its secret in one file of its own', async (t) => {
  const at = place(t);
  const before = process.umask(0);
  t.teardown(() => process.umask(before));
  const store = await open(at);
  await store.create('shop');
  await store.create('bank');
  t.same(readdirSync(at).sort(), ['bank.key', 'domains.json', 'shop.key']);
  t.equal(mode(at), 0o700);
  for (const name of readdirSync(at)) t.equal(mode(join(at, name)), 0o600, name);
  const [shop, bank] = [store.get('shop')!, store.get('bank')!];
  t.not(shop.id, bank.id);
  t.not(shop.mark, bank.mark);
  const tags = [probe(shop.openKey()), probe(bank.openKey())];
  t.not(tags[0], tags[1], 'a secret each');

  const secret = readFileSync(join(at, 'shop.key'), 'utf8').trim();
  t.equal(secret, store.secretOf('shop'));
  t.match(secret, /^[0-9a-f]{64}$/);
  const records = readFileSync(join(at, 'domains.json'), 'utf8');
  for (const encoding of ['hex', 'base64', 'base64url'] as const)
    t.notMatch(records, Buffer.from(secret, 'hex').toString(encoding), `no secret in the records, as ${encoding}`);

  const again = await open(at);
  t.match(again.get('shop'), { name: 'shop', id: shop.id, mark: shop.mark });
  t.same([probe(again.get('shop')!.openKey()), probe(again.get('bank')!.openKey())], tags);
  t.equal(again.get('other'), undefined);
  await t.rejects(again.create('shop'), { code: 'PT_DOMAIN_EXISTS' });
  t.equal(again.secretOf('shop'), secret, 'and the one that is there is left alone');
});

void t.test('a removed domain leaves nothing but its name', async (t) => {
  const at = place(t);
  const store = await open(at);
  await store.create('shop');
  await store.create('bank');
  const shop = store.get('shop')!;
  const told: unknown[] = [];
  store.onRemoved((domain) => told.push({ ...domain, usable: store.get('shop') !== undefined, key: keys(at) }));
  const used = (): never => {
    throw new Error('in use');
  };
  await t.rejects(store.forget('shop', used), /in use/);
  t.ok(store.get('shop'), 'what is in use stays');
  t.same(told, []);

  const secret = store.secretOf('shop')!;
  await store.forget('shop', free);
  t.same(told, [{ name: 'shop', id: shop.id, usable: false, key: ['bank.key', 'shop.key'] }]);
  t.equal(store.get('shop'), undefined);
  t.equal(store.secretOf('shop'), undefined);
  t.throws(() => shop.openKey(), { code: 'PT_DOMAIN_UNKNOWN' }, 'a handle that was kept is of no use');
  t.same(keys(at), ['bank.key']);
  for (const name of readdirSync(at)) t.notMatch(readFileSync(join(at, name), 'utf8'), secret, name);
  await t.rejects(store.forget('shop', free), { code: 'PT_DOMAIN_UNKNOWN' });

  await store.create('shop');
  t.not(store.secretOf('shop'), secret, 'one of the same name is another');
  t.not(store.get('shop')!.id, shop.id);
  t.same(told.length, 1);
  await (await open(at)).eraseRest();
});

void t.test('a crash after any step: what was acknowledged counts, and nothing is left over', async (t) => {
  const at = place(t);
  const store = await open(at);
  await store.create('shop');
  await store.create('gone');
  const number = store.get('gone')!.id;
  await store.beginGrant(store.record('shop')!.id, 'host-b', 'https://host-b:7411');

  await t.test('a key without a record, and files that were not finished', async (t) => {
    writeFileSync(join(at, 'stray.key'), 'ab'.repeat(32), { mode: 0o600 });
    writeFileSync(join(at, 'other.key.new'), 'ab');
    writeFileSync(join(at, 'domains.json.new'), '{"version":1,"doma');
    const again = await open(at);
    t.same(readdirSync(at).sort(), ['domains.json', 'gone.key', 'shop.key']);
    t.same(
      again.all().map(({ name }) => name),
      ['shop', 'gone'],
    );
    t.equal(
      again.record('shop')!.grants[0]!.state,
      'revoking',
      'nobody was told that host-b has it: it is to forget it',
    );
  });

  await t.test('a record of a removal, whose pages were not erased', async (t) => {
    const dying = await open(at);
    dying.onRemoved(() => {
      throw new Error('dies here');
    });
    await t.rejects(dying.forget('gone', free), /dies here/);
    t.same(keys(at).sort(), ['gone.key', 'shop.key'], 'the crash left its key');
    const again = await open(at);
    t.same(keys(at), ['shop.key']);
    const told: unknown[] = [];
    again.onRemoved((domain) => told.push(domain));
    await again.eraseRest();
    t.same(told, [{ name: 'gone', id: number }]);
    const last = await open(at);
    last.onRemoved(() => t.fail('told once too often'));
    await last.eraseRest();
  });
});

void t.test('kill -9 at any moment', async (t) => {
  const at = place(t);
  const child = fileURLToPath(new URL('crash-child.js', import.meta.url));
  const known = new Map<string, string>();
  for (let round = 0; round < 12; round++) {
    const running = spawn(process.execPath, [child, at], { stdio: ['ignore', 'pipe', 'inherit'] });
    let out = '';
    running.stdout.setEncoding('utf8').on('data', (text: string) => (out += text));
    while (!out.includes('begun')) await once(running.stdout, 'data');
    // a while that differs, in changes rather than in time
    const changes = 3 + round;
    while (out.split('\n').length - 1 < changes) await once(running.stdout, 'data');
    running.kill('SIGKILL');
    await once(running, 'close');
    const said = out
      .split('\n')
      .slice(0, -1)
      .filter((line) => /^[+-]/.test(line));
    for (const line of said) {
      const [what, name, secret] = line.split(' ');
      if (what === '+') known.set(name!, secret!);
      else known.delete(name!);
    }
    const store = await open(at);
    const recorded = store.all().map(({ name }) => name);
    // the change after the last one that was told of may have happened, or not
    const next = /^\+ domain-(\d)/.exec(said.at(-1) ?? '')?.[1];
    const doubtful = next === undefined ? undefined : `domain-${(Number(next) + 1) % 4}`;
    const told = [...known].filter(([name]) => name !== doubtful && said.at(-1) !== `- ${name}`);
    for (const [name, secret] of told) t.equal(store.secretOf(name), secret, `${name} in round ${round}`);
    for (const name of recorded) t.ok(store.get(name), `${name} can be used`);
    t.same(keys(at).sort(), recorded.map((name) => `${name}.key`).sort(), 'a key for each, and no other');
    known.clear();
    for (const name of recorded) known.set(name, store.secretOf(name)!);
  }
});

void t.test('a change that cannot be written down has not happened', async (t) => {
  const at = place(t);
  const store = await open(at);
  await store.create('shop');
  // neither removed nor written over by what writes a file
  mkdirSync(join(at, 'domains.json.new'));
  await t.rejects(store.create('bank'), { code: 'PT_IO' });
  t.equal(store.get('bank'), undefined);
  t.same(keys(at), ['shop.key'], 'its key is gone again');
  await t.rejects(store.forget('shop', free), { code: 'PT_IO' });
  t.ok(store.get('shop'), 'what could not be removed can be used');
  await t.rejects(store.accept(given({ name: 'other' })), { code: 'PT_IO' });
  rmSync(join(at, 'domains.json.new'), { recursive: true });
  await store.create('bank');
  t.same(
    (await open(at)).all().map(({ name }) => name),
    ['shop', 'bank'],
  );
});

void t.test('files that are not as they should be', async (t) => {
  const at = place(t);
  const store = await open(at);
  for (const name of ['open', 'lost', 'mixed', 'torn', 'good']) await store.create(name);
  const secrets = new Map(['open', 'good'].map((name) => [name, store.secretOf(name)]));
  chmodSync(join(at, 'open.key'), 0o644);
  rmSync(join(at, 'lost.key'));
  writeFileSync(join(at, 'mixed.key'), readFileSync(join(at, 'good.key')));
  writeFileSync(join(at, 'torn.key'), 'abc');
  const lines: string[] = [];
  const log = pino({ level: 'debug' }, { write: (line: string) => lines.push(line) });
  const again = await open(at, log);
  t.equal(mode(join(at, 'open.key')), 0o600, 'kept to its owner again');
  for (const [name, secret] of secrets) t.equal(again.secretOf(name), secret, name);
  for (const name of ['lost', 'mixed', 'torn']) {
    t.equal(again.get(name), undefined, `${name} can't be used`);
    t.ok(again.record(name), 'and is not forgotten');
    t.ok(
      lines.some((line) => line.includes(`"domain":"${name}"`)),
      'which the log says',
    );
  }
  t.ok(lines.some((line) => line.includes('"domain":"open"')));
  for (const secret of secrets.values()) t.notMatch(lines.join(''), secret!);

  const path = join(at, 'domains.json');
  const text = readFileSync(path, 'utf8');
  writeFileSync(path, text.slice(0, -20));
  await t.rejects(open(at), { code: 'PT_IO', message: /damaged/ });
  writeFileSync(path, text.replace('"version": 2', '"version": 3'));
  await t.rejects(open(at), { code: 'PT_STATE_VERSION' });
  writeFileSync(path, text.replace('"grants"', '"grunts"'));
  await t.rejects(open(at), { code: 'PT_IO' });
  t.ok(existsSync(join(at, 'good.key')), 'and nothing was removed');
  writeFileSync(path, text.replace('"version": 2', '"version": 1'));
  t.ok((await open(at)).get('good'), 'of an earlier version');
});

void t.test('a domain that was given: by its home alone, and never another under its name', async (t) => {
  const at = place(t);
  const store = await open(at);
  const members: Member[] = [{ host: 'host-c', url: 'https://host-c:7411' }];
  await store.accept(given());
  await store.accept(given({ members }, 6));
  t.same(store.members('shop'), members, 'again: what is new counts');
  t.match(await store.accept(given({}, 3)), { home: { epoch: 6 } }, 'what is old does not');
  t.equal(store.secretOf('shop'), '5e'.repeat(32));

  await t.rejects(store.accept(given({ id: 'aa'.repeat(16) })), { code: 'PT_DOMAIN_EXISTS' });
  await t.rejects(store.accept(given({ secret: 'ff'.repeat(32) }, 9)), { code: 'PT_DOMAIN_SECRET' });
  await t.rejects(store.accept(given({ name: 'shop2' }, 9)), { code: 'PT_DOMAIN_SECRET' });
  await t.rejects(store.accept(given({}, 9, 'host-x')), { code: 'PT_NO_PERMISSION' });
  await t.rejects(store.withdraw(ID, 9, 'host-x', free), { code: 'PT_NO_PERMISSION' });
  t.equal(store.secretOf('shop'), '5e'.repeat(32));

  const { id } = await store.create('mine');
  await t.rejects(store.accept(given({ id, name: 'mine' }, 9)), { code: 'PT_DOMAIN_EXISTS' });
  await t.rejects(store.withdraw(id, 9, 'host-a', free), { code: 'PT_DOMAIN_EXISTS' });
  await t.rejects(store.withdraw(id, 9, null, free), { code: 'PT_DOMAIN_EXISTS' });
  t.ok(store.get('mine'));

  rmSync(join(at, 'shop.key'));
  const again = await open(at);
  t.equal(again.get('shop'), undefined);
  await again.accept(given({}, 10));
  t.equal((await open(at)).secretOf('shop'), '5e'.repeat(32), 'given again, it can be used again');
  await again.withdraw(ID, 11, 'host-a', free);
  t.same(keys(at), ['mine.key']);
});

void t.test('two secrets with the same number in the cache do not share it', async (t) => {
  const seen = new Map<number, Buffer>();
  let pair: [Buffer, Buffer] | undefined;
  while (pair === undefined) {
    const secret = randomBytes(32);
    const number = keyNumber(secret);
    const twin = seen.get(number);
    if (twin !== undefined) pair = [twin, secret];
    seen.set(number, secret);
  }
  const store = await open(place(t));
  const [first, second] = pair.map((secret, i) =>
    given({ name: `d${i}`, id: `0${i}`.repeat(16), secret: secret.toString('hex') }),
  );
  await store.accept(first!);
  await store.accept(second!);
  t.not(store.get('d0')!.id, store.get('d1')!.id);
  const number = store.get('d0')!.id;
  await store.forget('d0', free);
  await store.accept({ ...first!, home: { ...first!.home, epoch: 8 } });
  t.equal(store.get('d0')!.id, number, 'the same domain comes back to its own');
});

void t.test('messages in any order, and twice: the last one that was sent decides', async (t) => {
  await fc.assert(
    fc.asyncProperty(
      fc.array(fc.constantFrom('give', 'withdraw'), { minLength: 1, maxLength: 6 }),
      fc.array(fc.nat(), { minLength: 12, maxLength: 12 }),
      async (sent, order) => {
        const store = await open(place(t));
        const messages = sent.map((what, i) => ({ what, epoch: i + 1 }));
        const arriving = [...messages, ...messages]
          .map((message, i) => ({ message, at: order[i]! }))
          .sort((a, b) => a.at - b.at);
        for (const { message } of arriving) {
          if (message.what === 'give')
            await store.accept(given({}, message.epoch)).catch((error: unknown) => {
              if ((error as { code?: string }).code !== 'PT_DOMAIN_UNKNOWN') throw error;
            });
          else await store.withdraw(ID, message.epoch, 'host-a', free);
        }
        return (store.get('shop') !== undefined) === (sent.at(-1) === 'give');
      },
    ),
    { numRuns: 60 },
  );
});

void t.test('grants: what counts is the last message to a host', async (t) => {
  const store = await open(place(t));
  const { id } = await store.create('shop');
  const first = await store.beginGrant(id, 'host-b', 'https://b:1');
  const epoch = await store.beginRevoke(id, 'host-b');
  t.ok(epoch! > first.epoch);
  await store.settleGrant(id, 'host-b', first.epoch, { state: 'granted' });
  t.match(store.record('shop')!.grants, [{ state: 'revoking', epoch }], 'an answer to an earlier one comes too late');
  const second = await store.beginGrant(id, 'host-b', 'https://b:2');
  t.match(second.before, { state: 'revoking' });
  await store.settleGrant(id, 'host-b', epoch!, 'gone');
  t.match(store.record('shop')!.grants, [{ state: 'granting', url: 'https://b:2' }]);
  await store.settleGrant(id, 'host-b', second.epoch, { state: 'granted', pages: 'https://10.0.0.2:7411' });
  t.same(store.members('shop'), [{ host: 'host-b', url: 'https://10.0.0.2:7411' }]);
  const removed = await store.forget('shop', free);
  t.match(removed.tell, [{ host: 'host-b', url: 'https://b:2' }]);
  t.ok(removed.tell[0]!.epoch > second.epoch);
  await store.toldRemoval(id, 'host-b');
  t.same(store.removed().at(-1)!.tell, []);
});
