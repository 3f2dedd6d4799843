/**
 * A bad network between the agents, made by a proxy before the source's port: connections that drop at every phase, that
 * are slow, that lie. Before ownership passes the guest goes on at the source; afterwards it gets every page.
 */
import t, { type Test } from 'tap';
import { cluster, type Cluster, type TestAgent } from '../support/cluster.ts';
import { begin, follow, guestFaults, reaches, reportFaults, startGuest, stillLeft, until } from '../support/migrate.ts';
import { TcpProxy } from '../support/tcp-proxy.ts';

t.setTimeout(600_000);

interface Setting {
  made: Cluster;
  proxy: TcpProxy;
  a: TestAgent;
  b: TestAgent;
}

/** A guest at `a`, whose port others reach through the proxy only; `b` fills slowly, so that serving takes a while. */
async function setting(t: Test, bandwidth = '6M'): Promise<Setting> {
  const made = cluster(t);
  const proxy = await TcpProxy.start(t);
  const a = await made.agent('a', { advertise: proxy.url });
  const b = await made.agent('b', { fill: { bandwidth } });
  proxy.target = a.ownUrl;
  await startGuest(a, 'g1', { memory: '24M', writeRate: 3000, readRate: 3000 });
  return { made, proxy, a, b };
}

async function arrives(t: Test, { made, a, b }: Setting, id: string): Promise<void> {
  const { last } = await follow(a.client, id);
  t.equal(last.progress.phase, 'done');
  t.equal(last.report?.verified, true);
  t.strictSame(reportFaults(last.report), []);
  t.strictSame(await guestFaults(b, 'g1'), []);
  t.strictSame(await stillLeft(made), []);
}

void t.test('connections that are cut again and again while the guest is served', { timeout: 600_000 }, async (t) => {
  const all = await setting(t);
  const { proxy, a, b } = all;
  const id = await begin(a, b, 'g1');
  await reaches(a.client, id, 'serving');
  for (const kinds of [['demand'], ['fill'], ['demand', 'fill'], []] as const) {
    const before = proxy.counts.fill + proxy.counts.demand;
    if (proxy.cut(...kinds) === 0) break;
    await until('it is connected again', () => proxy.counts.fill + proxy.counts.demand > before);
  }
  t.ok(proxy.counts.fill + proxy.counts.demand > 3, 'connections were made again');
  await arrives(t, all, id);
});

void t.test('a source that can not be reached for a while', { timeout: 600_000 }, async (t) => {
  const all = await setting(t);
  const { proxy, a, b } = all;
  const id = await begin(a, b, 'g1');
  await reaches(a.client, id, 'serving');
  proxy.down = true;
  proxy.cut();
  await until('the destination notices', async () => {
    const [info] = await b.client.listMigrations();
    return /connection to the source|cannot reach/.test(info?.progress.note ?? '');
  });
  t.equal((await b.client.showGuest('g1')).state, 'running');
  proxy.down = false;
  await arrives(t, all, id);
});

void t.test('a connection that is cut in the middle of a frame', { timeout: 600_000 }, async (t) => {
  const all = await setting(t, '64M');
  const { proxy, a, b } = all;
  let cuts = 0;
  proxy.alter = (bytes, { kind, nth }, seen) => {
    // each of the first connections ends inside some page or batch
    if ((kind !== 'fill' && kind !== 'demand') || nth > 2 || seen + bytes.length < 10_000) return bytes;
    cuts++;
    return 'cut';
  };
  await arrives(t, all, await begin(a, b, 'g1'));
  t.ok(cuts > 0, `cut ${cuts} connections`);
});

for (const kind of ['fill', 'demand', 'state'] as const) {
  void t.test(`a frame header with a wrong byte, on the ${kind} connection`, { timeout: 600_000 }, async (t) => {
    const all = await setting(t);
    const { proxy, a, b } = all;
    let spoilt = 0;
    let head = true;
    proxy.alter = (bytes, passing) => {
      if (passing.kind !== kind || spoilt > 0) return bytes;
      // the answer to the upgrade, then frames
      const end = head ? bytes.indexOf('\r\n\r\n') + 4 : 0;
      if (head && end < 4) return bytes;
      head = false;
      if (bytes.length <= end) return bytes;
      spoilt++;
      const wrong = Buffer.from(bytes);
      wrong[end] = wrong[end]! ^ 0xff;
      return wrong;
    };
    const id = await begin(a, b, 'g1');
    if (kind !== 'state') {
      await arrives(t, all, id);
      t.ok(proxy.counts[kind] > 1, 'the connection was made again');
    } else {
      // before ownership passes it may end either way, but never in between
      const { last } = await follow(a.client, id);
      if (last.progress.phase === 'done') t.equal(last.report?.verified, true);
      else t.match(last.error, { code: /^PT_/ });
      t.strictSame(await guestFaults(last.progress.phase === 'done' ? b : a, 'g1'), []);
      t.strictSame(await stillLeft(all.made), []);
    }
    t.equal(spoilt, 1);
  });
}

void t.test('cut at the moment of the switch', { timeout: 600_000 }, async (t) => {
  for (const kind of ['state', 'demand', 'fill'] as const) {
    const all = await setting(t, '64M');
    const { proxy, a, b } = all;
    let cut = false;
    proxy.alter = (bytes, passing) => {
      // the first tags or device state that come by: all connections end here
      if (cut || passing.kind !== 'state' || bytes.includes('HTTP/1.1 101')) return bytes;
      cut = true;
      setImmediate(() => proxy.cut());
      return kind === 'state' ? 'cut' : bytes;
    };
    const { last } = await follow(a.client, await begin(a, b, 'g1'));
    t.ok(cut);
    const there = last.progress.phase === 'done';
    if (there) t.equal(last.report?.verified, true);
    else t.match(last.error, { code: /^PT_/ });
    t.strictSame(await guestFaults(there ? b : a, 'g1'), []);
    t.strictSame(await stillLeft(all.made), []);
    await all.made.close();
  }
});

void t.test('cut for good while the destination gets ready', { timeout: 600_000 }, async (t) => {
  const all = await setting(t);
  const { proxy, a, b, made } = all;
  proxy.held.add('state');
  const id = await begin(a, b, 'g1');
  await until('the destination waits for the state', () => proxy.counts.state > 0);
  t.equal((await a.client.showGuest('g1')).state, 'running', 'the guest runs on meanwhile');
  await a.client.cancel('g1');
  const { last } = await follow(a.client, id);
  t.equal(last.progress.phase, 'cancelled');
  t.strictSame(await guestFaults(a, 'g1'), []);
  t.strictSame(await stillLeft(made), []);
});

void t.test('a slow link: what the guest wants comes before the fill', { timeout: 600_000 }, async (t) => {
  const all = await setting(t, '1G');
  const { proxy, a, b } = all;
  proxy.rate = 3 << 20;
  const id = await begin(a, b, 'g1');
  const { last } = await follow(a.client, id);
  t.equal(last.report?.verified, true);
  const { ms, faults } = last.report!;
  t.comment(`${ms.total} ms in all, stalls ${faults.p50Us} µs and ${faults.maxUs} µs`);
  // behind the fill a fault would wait for a good part of the whole; the order of magnitude is what counts
  t.ok(faults.p50Us / 1000 < ms.total / 10, 'a fault takes far less than the whole');
  t.strictSame(await guestFaults(b, 'g1'), []);
  t.strictSame(await stillLeft(all.made), []);
});
