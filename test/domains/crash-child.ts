/** Makes and removes domains until it is killed: what store.test.ts kills. Says a line for each change that counts. */
import { pino } from 'pino';
import { DomainStore } from '../../src/domains/store.ts';

const store = await DomainStore.open(process.argv[2]!, pino({ level: 'silent' }));
await store.eraseRest();
const say = (line: string): unknown => process.stdout.write(`${line}\n`);
say('begun');
for (let i = 0; ; i++) {
  const name = `domain-${i % 4}`;
  if (store.record(name) !== undefined) {
    await store.forget(name, () => undefined);
    say(`- ${name}`);
  }
  await store.create(name);
  say(`+ ${name} ${store.secretOf(name)!}`);
}
