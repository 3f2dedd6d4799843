/** Manifests of guests that left: the last ones, whole, by domain. */
import { mkdirSync, readFileSync, utimesSync, writeFileSync, existsSync } from 'node:fs';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { History, type HistoryLimits } from '../../src/pages/history.ts';
import { Manifest } from '../../src/pages/manifest.ts';
import { scratch } from '../guests/embedded-support.ts';

function manifestOf(byte: number): Manifest {
  const manifest = new Manifest(600);
  for (let i = 0; i < manifest.tags.length; i++) manifest.tags[i] = (byte + i * 7) & 255;
  manifest.touch(0, 600);
  return manifest;
}

function open(t: Test, limits: Partial<HistoryLimits> = {}): { history: History; folder: string } {
  const folder = join(scratch(t), 'history');
  return { history: new History(folder, { guests: 3, bytes: 2 ** 20, ...limits }), folder };
}

/** Keeps them as if they had left one after the other, a second apart. */
function keep(history: History, ...guests: [domain: string, guest: string][]): void {
  guests.forEach(([domain, guest], index) => {
    history.keep(domain, guest, manifestOf(index + 1));
    const past = history.list().find((one) => one.domain === domain && one.guest === guest);
    if (past !== undefined) utimesSync(past.path, 1000 + index, 1000 + index);
  });
}

const never = (): void => void t.fail('nothing is refused');

void t.test('what was kept is there, the last to leave first; the next time replaces it', (t) => {
  const { history } = open(t);
  t.same(history.list(), [], 'nothing was kept yet');
  keep(history, ['shop', 'web1'], ['shop', 'web2'], ['bank', 'web1']);
  t.same(
    history.list().map(({ domain, guest }) => `${domain}/${guest}`),
    ['bank/web1', 'shop/web2', 'shop/web1'],
  );
  const [, second] = history.list();
  t.same(history.read(second!, never)!.digest(), manifestOf(2).digest());
  history.keep('shop', 'web2', manifestOf(50));
  t.equal(history.list().length, 3);
  t.same(history.read(history.list()[0]!, never)!.digest(), manifestOf(50).digest());
  history.removeDomain('shop');
  t.same(
    history.list().map(({ domain }) => domain),
    ['bank'],
  );
  t.end();
});

void t.test('no more than it may be, by number and by bytes', (t) => {
  const { history } = open(t, { guests: 2 });
  keep(history, ['shop', 'a'], ['shop', 'b'], ['shop', 'c']);
  t.same(
    history.list().map(({ guest }) => guest),
    ['c', 'b'],
  );
  const [one] = history.list();
  const tight = open(t, { bytes: one!.bytes + 10 }).history;
  keep(tight, ['shop', 'a'], ['shop', 'b']);
  t.same(
    tight.list().map(({ guest }) => guest),
    ['b'],
  );
  const { history: none, folder } = open(t, { guests: 0 });
  none.keep('shop', 'a', manifestOf(1));
  t.notOk(existsSync(folder), 'and nothing where nothing is to be kept');
  t.end();
});

void t.test('a damaged file is told and removed; what is no manifest is left alone', (t) => {
  const { history, folder } = open(t);
  keep(history, ['shop', 'a'], ['shop', 'b']);
  const [b] = history.list();
  const bytes = readFileSync(b!.path);
  bytes[bytes.length - 5]! ^= 1;
  writeFileSync(b!.path, bytes);
  mkdirSync(join(folder, 'shop', 'notes'));
  const told: string[] = [];
  t.equal(
    history.read(b!, (error) => told.push(error.code)),
    undefined,
  );
  t.same(told, ['PT_MANIFEST_INVALID']);
  t.same(
    history.list().map(({ guest }) => guest),
    ['a'],
  );
  t.ok(existsSync(join(folder, 'shop', 'notes')));
  t.end();
});
