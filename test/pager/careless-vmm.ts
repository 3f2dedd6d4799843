/**
 * A VMM with bad manners: hands its userfaultfd over and closes what a good one keeps open. Then it touches its memory
 * and prints the first byte.
 *
 *   node careless-vmm.js SOCKET RAMFILE BYTES          keeps no userfaultfd of its own; touches at once
 *   node careless-vmm.js SOCKET RAMFILE BYTES keep     keeps it, but closes the connection; touches when told on stdin
 */
import { readFileSync, truncateSync } from 'node:fs';
import { native } from '../../src/memory/native.ts';

const [socket, ram, size, keep] = process.argv.slice(2) as [string, string, string, string?];
const bytes = Number(size);
const arena = native().createArena(ram, 4096, bytes / 4096);
// Holes: what was allocated would never fault.
truncateSync(ram, 0);
truncateSync(ram, bytes);
const line = readFileSync('/proc/self/maps', 'latin1')
  .split('\n')
  .find((text) => text.endsWith(ram));
const hostAddress = parseInt(line!.split('-')[0]!, 16);

const { fd: uffd } = native().createUserfault(0n);
const session = native().createSession({
  uffd,
  regions: [{ hostAddress, size: bytes, offset: 0 }],
  pageSize: 4096,
  shared: true,
});
session.register();
const connection = native().connectUnix(socket);
const region = { base_host_virt_addr: hostAddress, size: bytes, offset: 0, page_size: 4096 };
native().send(connection, Buffer.from(JSON.stringify([region])), [uffd]);

function touch(): void {
  process.stdout.write('touching\n');
  process.stdout.write(`read ${native().arenaView(arena)[0]}\n`);
}

if (keep === undefined) {
  native().destroySession(session.id);
  session.close();
  touch();
  setInterval(() => undefined, 60_000);
} else {
  native().close(connection);
  process.stdin.once('data', touch);
}
