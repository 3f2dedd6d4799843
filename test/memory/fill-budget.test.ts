/** What a fill may ask for, and a limit that changes while it asks. */
import t from 'tap';
import { FillBudget } from '../../src/memory/fill-budget.ts';

/** A thousand frames of 4096 bytes. */
const RUN = [0, 1000];

void t.test('what was asked for beyond the limit is waited for', (t) => {
  const budget = new FillBudget(65_536);
  t.ok(budget.isOpen(), 'nothing was asked for yet');
  budget.spend(RUN, 4096);
  t.notOk(budget.isOpen(), 'a minute of it');
  t.end();
});

void t.test('another limit while it is used', (t) => {
  const budget = new FillBudget(0);
  for (let times = 0; times < 3; times++) {
    budget.spend(RUN, 4096);
    t.ok(budget.isOpen(), 'without a limit');
  }
  budget.limit(65_536);
  t.ok(budget.isOpen(), 'what was asked for before the limit is no debt');
  budget.spend(RUN, 4096);
  t.notOk(budget.isOpen());
  budget.limit(2 ** 17);
  t.notOk(budget.isOpen(), 'the debt stays, at the new limit');
  budget.limit(0);
  t.ok(budget.isOpen(), 'until there is none');
  t.end();
});
