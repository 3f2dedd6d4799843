/** Hand-over messages: what is taken, what is refused, and that refusing leaves nothing open. */
import { existsSync, mkdtempSync, openSync, readdirSync, readlinkSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import fc from 'fast-check';
import t, { type Test } from 'tap';
import {
  ArrayScanner,
  HandoverListener,
  MAX_HANDOVER_BYTES,
  closeHandover,
  parseHandover,
} from '../../src/memory/handover.ts';
import { native } from '../../src/memory/native.ts';

interface Wire {
  base_host_virt_addr: number;
  size: number;
  offset: number;
  page_size?: number;
  page_size_kib?: number;
}

const PAGE = 4096;
const good: Wire[] = [
  { base_host_virt_addr: 0x7f0000000000, size: 8 * PAGE, offset: 0, page_size: PAGE, page_size_kib: PAGE },
  { base_host_virt_addr: 0x7f0000100000, size: 4 * PAGE, offset: 8 * PAGE, page_size: PAGE, page_size_kib: PAGE },
];
const asText = (regions: unknown): string => JSON.stringify(regions);
/** `good` with its first region changed. */
const but = (change: Record<string, unknown>): string => asText([{ ...good[0], ...change }, good[1]]);

void t.test('what VMMs send is read', (t) => {
  const expected = {
    pageSize: PAGE,
    regions: [
      { hostAddress: 0x7f0000000000, size: 8 * PAGE, offset: 0 },
      { hostAddress: 0x7f0000100000, size: 4 * PAGE, offset: 8 * PAGE },
    ],
  };
  t.same(parseHandover(asText(good)), expected);
  t.same(parseHandover(asText(good.toReversed())), expected, 'in any order');
  const old = good.map((region) => ({ ...region, page_size: undefined }));
  t.same(parseHandover(asText(old)), expected, 'only the old field, which holds bytes');
  const young = good.map((region) => ({ ...region, page_size_kib: undefined, colour: 'green', nested: [{}] }));
  t.same(parseHandover(` \n${asText(young)}\n`), expected, 'only the new one, and unknown fields');
  t.equal(parseHandover(asText([{ ...good[0], page_size: 4 * PAGE }])).pageSize, 4 * PAGE);
  t.end();
});

void t.test('what does not fit is refused', (t) => {
  const bad: [string, string][] = [
    ['nothing', ''],
    ['no JSON', '[{]'],
    ['no array', '{}'],
    ['no region', '[]'],
    ['a region that is none', '[7]'],
    ['no size', but({ size: undefined })],
    ['text', but({ size: '32768' })],
    ['size zero', but({ size: 0 })],
    ['negative size', but({ size: -PAGE })],
    ['half a page', but({ size: PAGE / 2 })],
    ['a fraction', but({ size: 4096.5 })],
    ['a huge size', but({ size: 2 ** 60 })],
    ['no page size', but({ page_size: undefined, page_size_kib: undefined })],
    ['page size zero', but({ page_size: 0 })],
    ['page size in KiB', but({ page_size: 4 })],
    ['page size that is no power of two', asText([{ ...good[0], page_size: 12288, size: 12288, offset: 0 }])],
    ['different page sizes', but({ page_size: 2 * PAGE })],
    ['address zero', but({ base_host_virt_addr: 0 })],
    ['unaligned address', but({ base_host_virt_addr: 0x7f0000000800 })],
    ['kernel address', but({ base_host_virt_addr: 2 ** 47 - PAGE })],
    ['address beyond exactness', but({ base_host_virt_addr: 2 ** 60 })],
    ['unaligned offset', but({ offset: 100 })],
    ['negative offset', but({ offset: -PAGE })],
    ['overlap in address', but({ base_host_virt_addr: 0x7f0000100000 - PAGE })],
    ['overlap in offset', but({ offset: PAGE })],
    ['the same region twice', asText([good[0], good[0]])],
  ];
  for (const [what, text] of bad) t.throws(() => parseHandover(text), { code: 'PT_HANDOVER_INVALID' }, what);
  const long = `[${' '.repeat(MAX_HANDOVER_BYTES)}]`;
  t.throws(() => parseHandover(long), { code: 'PT_HANDOVER_TOO_LARGE' });
  t.end();
});

/** Regions as a VMM could have them: rows without overlap, gaps between, in any order. */
const layouts = fc
  .record({
    pageSize: fc.constantFrom(4096, 2 ** 21),
    rows: fc.array(fc.record({ gap: fc.nat(1000), pages: fc.integer({ min: 1, max: 5000 }) }), {
      minLength: 1,
      maxLength: 20,
    }),
    base: fc.integer({ min: 1, max: 1000 }),
  })
  .map(({ pageSize, rows, base }) => {
    let address = base * pageSize;
    let offset = 0;
    const regions = rows.map(({ gap, pages }) => {
      const region = { hostAddress: address + gap * pageSize, size: pages * pageSize, offset };
      address = region.hostAddress + region.size;
      offset += region.size;
      return region;
    });
    return { pageSize, regions };
  });
const toWire = (layout: { pageSize: number; regions: { hostAddress: number; size: number; offset: number }[] }) =>
  layout.regions.map(({ hostAddress, size, offset }) => ({
    base_host_virt_addr: hostAddress,
    size,
    offset,
    page_size: layout.pageSize,
  }));

void t.test('properties', (t) => {
  fc.assert(
    fc.property(layouts, fc.boolean(), (layout, reversed) => {
      const wire = toWire(layout);
      t.strictSame(parseHandover(asText(reversed ? wire.toReversed() : wire)), {
        pageSize: layout.pageSize,
        regions: layout.regions,
      });
    }),
    { numRuns: 50 },
  );
  // Whatever is taken keeps every promise; whatever is refused is refused with the one code.
  fc.assert(
    fc.property(
      layouts,
      fc.nat(),
      fc.constantFrom('base_host_virt_addr', 'size', 'offset', 'page_size'),
      fc.oneof(
        fc.integer(),
        fc.double(),
        fc.string(),
        fc.constant(null),
        fc.nat(100).map((n) => n * PAGE),
      ),
      (layout, which, field, value) => {
        const wire: Record<string, unknown>[] = toWire(layout);
        wire[which % wire.length]![field] = value;
        try {
          const { regions, pageSize } = parseHandover(asText(wire));
          const byAddress = regions.toSorted((a, b) => a.hostAddress - b.hostAddress);
          return (
            Number.isInteger(Math.log2(pageSize)) &&
            regions.every((r) => r.size > 0 && [r.size, r.offset, r.hostAddress].every((n) => n % pageSize === 0)) &&
            regions.every((r) => r.hostAddress > 0 && r.hostAddress + r.size <= 2 ** 47) &&
            regions.every((r, i) => i === 0 || regions[i - 1]!.offset + regions[i - 1]!.size <= r.offset) &&
            byAddress.every(
              (r, i) => i === 0 || byAddress[i - 1]!.hostAddress + byAddress[i - 1]!.size <= r.hostAddress,
            )
          );
        } catch (error) {
          return (error as { code?: string }).code === 'PT_HANDOVER_INVALID';
        }
      },
    ),
    { numRuns: 500 },
  );
  // The scanner finds the end of any array in any pieces, and no earlier.
  fc.assert(
    fc.property(fc.array(fc.jsonValue()), fc.array(fc.nat(50)), (value, cuts) => {
      const bytes = Buffer.from(asText(value));
      const scanner = new ArrayScanner();
      let at = 0;
      for (const cut of cuts) {
        const next = Math.min(at + cut, bytes.length - 1);
        if (scanner.push(bytes.subarray(at, next))) return false;
        at = next;
      }
      return scanner.push(bytes.subarray(at));
    }),
  );
  t.end();
});

function socketPath(test: Test): string {
  const folder = mkdtempSync(join(tmpdir(), 'pt-handover-'));
  test.teardown(() => rmSync(folder, { recursive: true, force: true }));
  return join(folder, 's');
}

/** A VMM that sends what it is told. Its descriptors are closed when the test ends. */
function vmm(test: Test, path: string): { send: (data: string, fds?: number[]) => void; close: () => void } {
  const fd = native().connectUnix(path);
  let open = true;
  const close = () => {
    if (open) native().close(fd);
    open = false;
  };
  test.teardown(close);
  return { send: (data, fds = []) => native().send(fd, Buffer.from(data), fds), close };
}

function userfault(test: Test): number {
  const { fd } = native().createUserfault(0n);
  test.teardown(() => native().close(fd));
  return fd;
}

const openUserfaults = (): number =>
  readdirSync('/proc/self/fd').filter((fd) => {
    try {
      return readlinkSync(`/proc/self/fd/${fd}`).includes('userfaultfd');
    } catch {
      return false; // the folder's own descriptor
    }
  }).length;

function listen(test: Test, path: string, timeoutMs = 5000): HandoverListener {
  const listener = new HandoverListener(path, { timeoutMs });
  test.teardown(() => listener.close());
  return listener;
}

void t.test('a userfaultfd arrives, whole or in pieces, from several VMMs at once', async (t) => {
  const path = socketPath(t);
  const listener = listen(t, path);
  const uffd = userfault(t);
  const first = vmm(t, path);
  const second = vmm(t, path);
  const text = asText(good);
  first.send(text.slice(0, 20), [uffd]);
  second.send(text, [uffd]);
  const one = await listener.next(5000);
  first.send(text.slice(20, 21));
  first.send(text.slice(21));
  const two = await listener.next(5000);
  for (const taken of [one, two]) {
    t.same({ regions: taken.regions, pageSize: taken.pageSize }, parseHandover(text));
    t.equal(taken.pid, process.pid);
    t.match(readlinkSync(`/proc/self/fd/${taken.uffd}`), /userfaultfd/);
  }
  // The connection is the taker's now: its end tells that the VMM is gone.
  const gone = new Promise<void>((resolve) => {
    const watcher = native().watch(one.connection, () => {
      watcher.close();
      resolve();
    });
  });
  second.close();
  await gone;
  t.same(native().receive(one.connection, Buffer.alloc(8)), { bytes: 0, fds: [] });
  closeHandover(one);
  closeHandover(two);
});

void t.test('of several descriptors the first is taken and the rest are closed', async (t) => {
  const path = socketPath(t);
  const listener = listen(t, path);
  const uffd = userfault(t);
  const before = openUserfaults();
  vmm(t, path).send(asText(good), [uffd, uffd, uffd]);
  const taken = await listener.next(5000);
  t.equal(openUserfaults(), before + 1);
  closeHandover(taken);
  t.equal(openUserfaults(), before);
});

void t.test('a refused VMM costs nothing, and the next one is served', async (t) => {
  const path = socketPath(t);
  const listener = listen(t, path, 200);
  const uffd = userfault(t);
  const before = openUserfaults();
  const file = openSync('/dev/null', 'r');
  t.teardown(() => native().close(file));
  const invalid = 'PT_HANDOVER_INVALID';
  const bad: [string, string, number[], string][] = [
    ['no descriptor', asText(good), [], invalid],
    ['a descriptor that is no userfaultfd', asText(good), [file], invalid],
    ['no JSON array', '{"a":1}', [uffd], invalid],
    ['broken JSON', '[{"a":}]', [uffd], invalid],
    ['more behind it', `${asText(good)}[]`, [uffd], invalid],
    ['overlap', but({ offset: PAGE }), [uffd, uffd], invalid],
    ['never whole', '[{"base', [uffd], invalid],
    ['too large', `[${' '.repeat(MAX_HANDOVER_BYTES)}`, [uffd], 'PT_HANDOVER_TOO_LARGE'],
  ];
  for (const [what, text, fds, code] of bad) {
    vmm(t, path).send(text, fds);
    await t.rejects(listener.next(5000), { code }, what);
    t.equal(openUserfaults(), before, `${what}: nothing stays open`);
  }
  const vanishing = vmm(t, path);
  vanishing.send('[{"base', [uffd]);
  vanishing.close();
  await t.rejects(listener.next(5000), { code: invalid, message: /closed/ });
  t.equal(openUserfaults(), before);

  vmm(t, path).send(asText(good), [uffd]);
  closeHandover(await listener.next(5000));
});

void t.test('closing lets go of everything', async (t) => {
  const path = socketPath(t);
  const listener = listen(t, path);
  t.throws(() => new HandoverListener(path), { code: 'PT_SOCKET_IN_USE' }, 'which looked at the socket, unnoticed');
  const uffd = userfault(t);
  const before = openUserfaults();
  await t.rejects(listener.next(20), { code: 'PT_VMM_TIMEOUT' });
  vmm(t, path).send(asText(good), [uffd]);
  closeHandover(await listener.next(5000));
  // One that is half-way, and one that nobody has asked for.
  vmm(t, path).send('[{', [uffd]);
  vmm(t, path).send(asText(good), [uffd]);
  while (openUserfaults() < before + 2) await new Promise(setImmediate);
  const waiting = listener.next();
  closeHandover(await waiting);
  const cancelled = listener.next();
  listener.close();
  await t.rejects(cancelled, { code: 'PT_CANCELLED' });
  await t.rejects(listener.next(), { code: 'PT_CANCELLED' });
  listener.close();
  t.equal(openUserfaults(), before);
  t.notOk(existsSync(path));
});
