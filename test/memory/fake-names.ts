/** Pages by name without tags or a cache: the page of each frame of a FakeSession is its own, and none is zero. */
import { Outcome, OutcomeField } from '../../src/memory/native.ts';
import type { NamedPages } from '../../src/memory/named-pages.ts';
import { FAKE_PAGE, pageOf } from './fake-session.ts';

export function fakeNames(): NamedPages {
  return {
    keeps: false,
    verify: (frame, page, offset) => Buffer.compare(page.subarray(offset, offset + FAKE_PAGE), pageOf(frame)) === 0,
    isZero: () => false,
    install: (_session, frame, _count, outcome) => {
      outcome.fill(0);
      outcome[OutcomeField.Next] = frame;
      return Outcome.Absent;
    },
    next: (frame) => frame,
    ring: (frame) => frame,
    keep: () => undefined,
  };
}
