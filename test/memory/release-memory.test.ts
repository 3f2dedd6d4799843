import t from 'tap';
import { MemoryReleaser } from '../../src/memory/release-memory.ts';

/** Something large that nobody holds. */
function garbage(): WeakRef<Uint8Array> {
  return new WeakRef(new Uint8Array(1 << 20));
}

const second = (): Promise<void> => new Promise((resolve) => setTimeout(resolve, 50));

void t.test('once idle, what is not held is collected and given back', async (t) => {
  const ref = garbage();
  const memory = new MemoryReleaser(() => true, true);
  t.teardown(() => memory.close());
  memory.ended();
  memory.ended();
  while (ref.deref() !== undefined) await second();
  t.pass('collected without any need for memory');
});

void t.test('not while something is under way, nor after closing', async (t) => {
  let asked = 0;
  const memory = new MemoryReleaser(() => {
    asked++;
    return false;
  }, true);
  const closed = new MemoryReleaser(() => t.fail('closed'), true);
  closed.ended();
  closed.close();
  memory.ended();
  while (asked === 0) await second();
  t.equal(asked, 1);
  memory.close();
});
