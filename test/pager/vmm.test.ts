/** The kind of a VMM's memory, from its map. */
import { rmSync } from 'node:fs';
import t from 'tap';
import { kindFromMaps, memoryKind, keepsUserfault, VmmWatch } from '../../src/pager/vmm.ts';
import { native } from '../../src/memory/native.ts';
import { until } from '../guests/embedded-support.ts';

const MAPS = `00400000-00401000 r-xp 00000000 08:01 131 /usr/bin/vmm
10000000-10100000 rw-p 00000000 00:00 0
10100000-10200000 r--p 00000000 00:00 0
20000000-20100000 rw-s 00000000 00:01 77 /memfd:ram (deleted)
20100000-20200000 rw-p 00000000 00:00 0 [heap]
40000000-40400000 rw-p 00000000 00:0f 99 /anon_hugepage (deleted)
7f0000000000-7f0000100000 rw-s 00000000 00:01 78 /dev/zero (deleted)
ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0 [vsyscall]
`;
const MIB = 0x100000;
const at = (...regions: [number, number][]) => {
  let offset = 0;
  return regions.map(([hostAddress, size]) => ({ hostAddress, size, offset: (offset += size) - size }));
};

void t.test('private and shared', (t) => {
  t.equal(kindFromMaps(MAPS, at([0x10000000, MIB])), 'private');
  t.equal(kindFromMaps(MAPS, at([0x10080000, MIB])), 'private', 'over two mappings');
  t.equal(kindFromMaps(MAPS, at([0x40000000, 2 * MIB], [0x10000000, 4096])), 'private', 'huge pages');
  t.equal(kindFromMaps(MAPS, at([0x20000000, MIB])), 'shared');
  t.equal(kindFromMaps(MAPS, at([0x7f0000000000, MIB], [0x20000000, MIB])), 'shared');
  t.end();
});

void t.test('mixed kinds, and no memory', (t) => {
  const refused = { code: 'PT_HANDOVER_INVALID' };
  t.throws(() => kindFromMaps(MAPS, at([0x20000000, MIB], [0x10000000, MIB])), { ...refused, message: /some.*shared/ });
  t.throws(() => kindFromMaps(MAPS, at([0x20000000, 2 * MIB])), { ...refused, message: /some.*shared/ });
  t.throws(() => kindFromMaps(MAPS, at([0x10100000, 2 * MIB])), { ...refused, message: /no memory at.* 0x10200000/ });
  t.throws(() => kindFromMaps(MAPS, at([0x30000000, MIB])), { ...refused, message: /0x30000000/ });
  t.throws(() => kindFromMaps('', at([0x30000000, MIB])), refused);
  t.end();
});

void t.test('of processes that cannot be seen', (t) => {
  t.equal(memoryKind(0, at([0x10000000, MIB])), undefined);
  t.throws(() => memoryKind(2 ** 22 + 1, at([0x10000000, MIB])), { code: 'PT_VMM_GONE' });
  t.notOk(keepsUserfault(0));
  t.notOk(keepsUserfault(2 ** 22 + 1));
  t.end();
});

void t.test('a VMM that talks is not gone; one whose process is unknown is gone with its connection', async (t) => {
  const path = `/tmp/pt-vmm-${process.pid}.sock`;
  const listener = native().listenUnix(path);
  t.teardown(() => {
    native().close(listener);
    rmSync(path, { force: true });
  });
  const theirs = native().connectUnix(path);
  const ours = native().accept(listener);
  t.teardown(() => native().close(ours));
  let gone = 0;
  const watch = new VmmWatch(0, ours, { onGone: () => gone++ });
  t.teardown(() => watch.close());
  native().send(theirs, Buffer.alloc(10_000), []);
  const scrap = Buffer.alloc(1);
  await until('it was read', () => native().receive(ours, scrap).bytes === -1);
  t.equal(gone, 0);
  native().close(theirs);
  await until('its end', () => gone === 1);
});
