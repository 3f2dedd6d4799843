/** Certificates as they are made, written, read back, and refused. */
import { X509Certificate } from 'node:crypto';
import { chmodSync, readFileSync, readdirSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import { HOST_DAYS, makeAuthority, makeHost, validFor } from '../../src/trust/authority.ts';
import { readCredentials } from '../../src/trust/credentials.ts';
import { isHostName } from '../../src/trust/identity.ts';
import { HOST_FILES, readCluster, writeCluster, writeHost } from '../../src/trust/pem-files.ts';
import { startCli } from '../cli/harness.ts';
import { EXPIRED, folder } from './support.ts';

const pathsOf = (at: string) => ({
  ca: join(at, HOST_FILES.ca),
  certificate: join(at, HOST_FILES.certificate),
  key: join(at, HOST_FILES.key),
});

void t.test('a host of a cluster: name, addresses, both uses, validity', async (t) => {
  const authority = await makeAuthority();
  const { certificate } = await makeHost(authority, 'host-b', ['10.0.0.2', 'fd00::2', 'b.example.org']);
  const ca = new X509Certificate(authority.certificate);
  const host = new X509Certificate(certificate);
  t.ok(ca.ca);
  t.notOk(host.ca, 'signs nobody');
  t.ok(host.checkIssued(ca) && host.verify(ca.publicKey));
  t.equal(host.subject, 'CN=host-b');
  for (const name of ['host-b', 'b.example.org']) t.equal(host.checkHost(name), name);
  for (const address of ['10.0.0.2', 'fd00::2']) t.ok(host.checkIP(address), address);
  t.notOk(host.checkHost('host-c') ?? host.checkIP('10.0.0.3'));
  t.same([...host.keyUsage].sort(), ['1.3.6.1.5.5.7.3.1', '1.3.6.1.5.5.7.3.2'], 'server and client');
  const days = (Date.parse(host.validTo) - Date.now()) / 86_400_000;
  t.ok(Math.abs(days - HOST_DAYS) < 1, `${days} days`);
  t.not(new X509Certificate((await makeAuthority()).certificate).subject, ca.subject, 'two clusters differ by name');
});

void t.test('no host outlives its cluster', async (t) => {
  const authority = await makeAuthority(validFor(10));
  const { notAfter, certificate } = await makeHost(authority, 'host-b', [], validFor(300));
  t.ok(notAfter.getTime() < Date.now() + 11 * 86_400_000);
  t.equal(Date.parse(new X509Certificate(certificate).validTo), Math.floor(notAfter.getTime() / 1000) * 1000);
});

void t.test('names', async (t) => {
  for (const name of ['a', 'host-b', 'b.example.org', '4host', 'x'.repeat(63)]) t.ok(isHostName(name), name);
  for (const name of ['', 'A', '-a', 'a-', 'a..b', 'a_b', '10.0.0.1', 'a.1', 'x'.repeat(65), 'a\n', 'ä', undefined])
    t.notOk(isHostName(name), String(name));
  const authority = await makeAuthority();
  await t.rejects(makeHost(authority, 'Host B'), { code: 'PT_BAD_ARGUMENT' });
  await t.rejects(makeHost(authority, 'b', ['not an address']), { code: 'PT_BAD_ARGUMENT' });
  await t.rejects(makeHost(authority, 'b', new Array<string>(65).fill('10.0.0.1')), { code: 'PT_BAD_ARGUMENT' });
});

void t.test('what cannot sign', async (t) => {
  const [authority, other] = [await makeAuthority(), await makeAuthority()];
  const bad = { code: 'PT_BAD_CERTIFICATE' };
  await t.rejects(makeHost({ ...authority, key: other.key }, 'b'), bad, "another cluster's key");
  await t.rejects(makeHost(await makeHost(authority, 'b'), 'c'), bad, 'a host');
  await t.rejects(makeHost({ ...authority, certificate: 'nonsense' }, 'b'), bad);
  await t.rejects(makeHost(await makeAuthority(EXPIRED), 'b'), bad, 'run out');
});

void t.test('files: 0600, whole, and never over others', async (t) => {
  const at = folder(t);
  const authority = await makeAuthority();
  await writeCluster(at, authority);
  t.same(readdirSync(at).sort(), ['ca-key.pem', 'ca.pem'], 'nothing half-written beside them');
  for (const name of readdirSync(at)) t.equal(statSync(join(at, name)).mode & 0o777, 0o600, name);
  t.same(await readCluster(at), authority);
  await t.rejects(writeCluster(at, await makeAuthority()), { code: 'PT_FILE_EXISTS' });
  t.same(await readCluster(at), authority, 'unchanged');
  // ca.pem is in the way: the host's own files must not be left there either
  await t.rejects(writeHost(at, authority.certificate, await makeHost(authority, 'b')), { code: 'PT_FILE_EXISTS' });
  t.same(readdirSync(at).sort(), ['ca-key.pem', 'ca.pem']);
  await t.rejects(readCluster(join(at, 'none')), { code: 'PT_BAD_CERTIFICATE' });
});

void t.test('an agent reads them, or says what is wrong', async (t) => {
  const at = folder(t);
  const authority = await makeAuthority();
  await writeHost(at, authority.certificate, await makeHost(authority, 'host-b', ['10.0.0.2']));
  const paths = pathsOf(at);
  const { own, ca } = readCredentials(paths);
  t.equal(own.name, 'host-b');
  t.equal(ca, authority.certificate);
  t.ok(own.covers('10.0.0.2') && own.covers('host-b'));
  t.notOk(own.covers('10.0.0.3') || own.covers('host-c'));

  const refused = (message: RegExp) => ({ code: 'PT_BAD_CERTIFICATE', message });
  const later = Date.now() + (HOST_DAYS + 1) * 86_400_000;
  t.throws(() => readCredentials(paths, later), refused(/expired/));
  t.throws(() => readCredentials(paths, 0), refused(/not valid before/));
  t.throws(() => readCredentials({ ...paths, ca: paths.certificate }), refused(/no cluster's certificate/));
  t.throws(() => readCredentials({ ...paths, key: paths.ca }), refused(/no private key/));
  t.throws(() => readCredentials({ ...paths, certificate: join(at, 'none') }), refused(/cannot be read/));
  const other = await makeAuthority();
  const otherCa = join(at, 'other.pem');
  writeFileSync(otherCa, other.certificate);
  t.throws(() => readCredentials({ ...paths, ca: otherCa }), refused(/not of the cluster/));
  chmodSync(paths.key, 0o640);
  t.throws(() => readCredentials(paths), { ...refused(/others may read/), hint: /chmod 600/ });
});

void t.test('the commands', async (t) => {
  const at = folder(t);
  const [dir, out] = [join(at, 'cluster'), join(at, 'b')];
  const run = (...args: string[]) => startCli(t, ['cluster', ...args, '--json']).finished;
  const init = await run('init', '--dir', dir);
  t.equal(init.code, 0, init.stderr);
  const key = readFileSync(join(dir, 'ca-key.pem'), 'utf8');
  t.notMatch(init.stdout, /PRIVATE/);
  t.match(await run('init', '--dir', dir), { code: 1, stderr: /PT_FILE_EXISTS/ });
  t.equal(readFileSync(join(dir, 'ca-key.pem'), 'utf8'), key);
  const add = await run('add-host', 'host-b', '--dir', dir, '--out', out, '--address', '10.0.0.2', '127.0.0.1');
  t.match(JSON.parse(add.stdout), {
    name: 'host-b',
    addresses: ['10.0.0.2', '127.0.0.1'],
    key: join(out, 'host-key.pem'),
  });
  t.ok(readCredentials(pathsOf(out)).own.covers('127.0.0.1'));
  t.match(await run('add-host', 'host-b', '--dir', dir, '--out', out), { code: 1, stderr: /PT_FILE_EXISTS/ });
  t.match(await run('add-host', 'B!', '--dir', dir, '--out', join(at, 'c')), { code: 2, stderr: /PT_BAD_ARGUMENT/ });
  t.match(await run('add-host', 'b', '--dir', at, '--out', join(at, 'c')), { code: 1, stderr: /PT_BAD_CERTIFICATE/ });
});
