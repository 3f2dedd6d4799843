/** Which mode a migration takes, and what is refused before anything has changed. */
import t from 'tap';
import { planMigration, type ModeRequest, type Source } from '../../src/migration/modes.ts';
import { PEER_PROTOCOL, type Capabilities } from '../../src/migration/types.ts';

const SOURCE: Source = { pageSize: 4096, tracking: { ok: true } };
const HUGE: Source = { ...SOURCE, pageSize: 2 << 20 };
const BLIND: Source = { ...SOURCE, tracking: { ok: false, why: 'old kernel' } };
const WHOLE: Source = { ...SOURCE, preCopyOnly: 'it has a balloon' };
const CAN: Capabilities = { protocol: PEER_PROTOCOL, userfaultfd: { ok: true } };
const CANNOT: Capabilities = { protocol: PEER_PROTOCOL, userfaultfd: { ok: false, why: 'no right' } };

void t.test('auto takes what both hosts can, and says why', (t) => {
  const auto = (source: Source, destination: Capabilities) => planMigration({ mode: 'auto' }, source, destination);
  t.match(auto(SOURCE, CAN), { mode: 'hybrid', why: /^hybrid: both hosts/, serves: true, bandwidth: 0 });
  t.match(auto(SOURCE, CANNOT), { mode: 'pre-copy', why: /no userfaultfd \(no right\)/, serves: false });
  t.match(auto(HUGE, CAN), { mode: 'post-copy', why: /huge pages/, serves: true, copying: undefined });
  t.match(auto(BLIND, CAN), { mode: 'post-copy', why: /\(old kernel\)/ });
  t.match(auto(BLIND, CANNOT), { mode: 'pre-copy' }, 'slow, but the only way');
  t.match(auto(WHOLE, CAN), { mode: 'pre-copy', why: 'pre-copy, as it has a balloon', serves: false });
  t.match(auto({ ...BLIND, ...WHOLE }, CAN), { mode: 'pre-copy', serves: false });
  t.throws(() => auto(HUGE, CANNOT), { code: 'PT_MODE_UNSUPPORTED' });
  t.end();
});

void t.test('settings, and what they are when nobody gives them', (t) => {
  const plan = (request: ModeRequest) => planMigration(request, SOURCE, CAN);
  t.same(plan({ mode: 'post-copy' }), { mode: 'post-copy', bandwidth: 0, serves: true });
  t.same(planMigration({ mode: 'post-copy', bandwidth: 1e6 }, SOURCE, undefined), {
    ...{ mode: 'post-copy', bandwidth: 1e6, serves: true },
  });
  t.same(plan({ mode: 'pre-copy' }), {
    ...{ mode: 'pre-copy', bandwidth: 0, serves: false },
    copying: { maxDowntimeMs: 300, isStrict: false, maxRounds: 30, onNoConvergence: 'abort', mustWait: false },
  });
  t.match(plan({ mode: 'hybrid' }), { serves: true, copying: { maxRounds: 5 } });
  t.same(plan({ mode: 'pre-copy', maxDowntimeMs: 90, maxRounds: 2, bandwidth: 1e6, onNoConvergence: 'post-copy' }), {
    ...{ mode: 'pre-copy', bandwidth: 1e6, serves: true },
    copying: { maxDowntimeMs: 90, isStrict: true, maxRounds: 2, onNoConvergence: 'post-copy', mustWait: false },
  });
  t.match(planMigration({ mode: 'pre-copy', onNoConvergence: 'pause' }, WHOLE, CAN), {
    ...{ why: undefined, serves: false, copying: { onNoConvergence: 'pause', mustWait: true } },
  });
  t.end();
});

void t.test('what cannot work is refused, with a hint', (t) => {
  const refused: [ModeRequest, Source, Capabilities, string, RegExp][] = [
    [{ mode: 'post-copy' }, SOURCE, CANNOT, 'PT_MODE_UNSUPPORTED', /pre-copy/],
    [{ mode: 'hybrid' }, SOURCE, CANNOT, 'PT_MODE_UNSUPPORTED', /pre-copy/],
    [{ mode: 'hybrid' }, HUGE, CAN, 'PT_MODE_UNSUPPORTED', /post-copy/],
    [{ mode: 'pre-copy' }, HUGE, CAN, 'PT_MODE_UNSUPPORTED', /post-copy/],
    [{ mode: 'pre-copy', onNoConvergence: 'post-copy' }, SOURCE, CANNOT, 'PT_MODE_UNSUPPORTED', /pause or abort/],
    [{ mode: 'auto', onNoConvergence: 'post-copy' }, SOURCE, CANNOT, 'PT_MODE_UNSUPPORTED', /pause or abort/],
    [{ mode: 'post-copy' }, WHOLE, CAN, 'PT_MODE_UNSUPPORTED', /^Choose --mode pre-copy\.$/],
    [{ mode: 'hybrid' }, WHOLE, CAN, 'PT_MODE_UNSUPPORTED', /^Choose --mode pre-copy\.$/],
    [{ mode: 'pre-copy', onNoConvergence: 'post-copy' }, WHOLE, CAN, 'PT_MODE_UNSUPPORTED', /pause or abort/],
    [{ mode: 'auto', onNoConvergence: 'post-copy' }, WHOLE, CAN, 'PT_MODE_UNSUPPORTED', /pause or abort/],
    [{ mode: 'auto', maxDowntimeMs: 0 }, SOURCE, CAN, 'PT_BAD_ARGUMENT', /milliseconds/],
    [{ mode: 'post-copy', maxDowntimeMs: 9 }, SOURCE, CAN, 'PT_BAD_ARGUMENT', /hybrid or pre-copy/],
    [{ mode: 'post-copy', maxRounds: 9 }, SOURCE, CAN, 'PT_BAD_ARGUMENT', /hybrid or pre-copy/],
    [{ mode: 'hybrid', onNoConvergence: 'pause' }, SOURCE, CAN, 'PT_BAD_ARGUMENT', /pre-copy/],
    [{ mode: 'auto' }, SOURCE, { ...CAN, protocol: PEER_PROTOCOL + 1 }, 'PT_PROTOCOL', /upgrade/],
  ];
  for (const [request, source, destination, code, hint] of refused)
    t.throws(() => planMigration(request, source, destination), { code, hint }, JSON.stringify(request));
  for (const mode of ['post-copy', 'hybrid'] as const)
    t.throws(
      () => planMigration({ mode }, WHOLE, undefined),
      { code: 'PT_MODE_UNSUPPORTED', message: /a balloon/ },
      mode,
    );
  t.end();
});
