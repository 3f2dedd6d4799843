/** A guest on offer, as the page server's thread holds it. */
import { join } from 'node:path';
import { writeFileSync } from 'node:fs';
import t from 'tap';
import { LiveOffer } from '../../src/transport/live-offer.ts';
import { COUNTERS } from '../../src/transport/server-messages.ts';
import { WireLimit } from '../../src/transport/wire.ts';
import { folder, PAGE, TOKEN } from './support.ts';

void t.test(
  'a piece of the state that is refused ends it: what is under way behind it makes no whole of the rest',
  (t) => {
    const path = join(folder(t), 'ram');
    writeFileSync(path, Buffer.alloc(PAGE));
    const offer = new LiveOffer(
      {
        ...{ migration: 'm1', token: TOKEN, pageSize: PAGE, frames: 1, destination: undefined },
        files: [{ path, size: PAGE, offset: 0 }],
      },
      new SharedArrayBuffer(COUNTERS * 8),
    );
    t.teardown(() => offer.files.release());
    offer.pushState(Buffer.from('first'));
    const { length } = offer.log;
    // looked at before any of it is touched
    t.throws(() => offer.pushState(Buffer.alloc(WireLimit.stateBytes)), { code: 'PT_NO_SPACE' });
    t.throws(() => offer.pushState(Buffer.from('last')), { code: 'PT_BAD_ARGUMENT' });
    t.throws(() => offer.endState(), { code: 'PT_BAD_ARGUMENT' });
    t.equal(offer.log.length, length, 'nothing of it is told');
    t.end();
  },
);
