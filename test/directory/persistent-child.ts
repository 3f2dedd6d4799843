/** Reports and saves until it is killed: what persistent.test.ts kills. Says how many tags are saved, a line each time. */
import { pino } from 'pino';
import { PersistentDirectory } from '../../src/directory/persistent.ts';
import { tagsOf } from './model.ts';

const log = pino({ level: 'silent' });
const directory = await PersistentDirectory.open({ folder: process.argv[2]!, domain: 'shop', leaseMs: 1e9, log });
const epoch = ((await directory.hosts())[0]?.epoch ?? 0) + 1;
for (let i = 1; ; i++) {
  const added = tagsOf(...Array.from({ length: 1000 }, (_, at) => i * 1000 + at));
  const changes = ['a', 'b'].map((guest) => ({ domain: 'shop', guest, added, removed: tagsOf() }));
  const { wanted } = await directory.report({ host: 'h1', epoch, sequence: 2 * i - 1, begins: i === 1, changes });
  const held = wanted.map(({ domain, tags }) => ({ domain, tags, guests: new Uint16Array(tags.length / 16).fill(2) }));
  await directory.report({ host: 'h1', epoch, sequence: 2 * i, changes: [], held });
  await directory.save();
  process.stdout.write(`${i * 1000}\n`);
}
