/** Each test breaks one rule of the machines on purpose, and the explorer has to notice: so it is known to be able to. */
import t from 'tap';
import type { DestinationStep, SourceStep } from '../../src/migration/ownership/index.ts';
import { explore } from '../support/explorer.ts';
import { NO_FAULTS, RULES, type Budget, type Rules } from '../support/world.ts';

interface Mutant {
  name: string;
  rules: Partial<Rules>;
  budget: Partial<Budget>;
  /** How the story ends. */
  end: RegExp;
}

const { stepSource, stepDestination, recoverSource, recoverDestination, admission } = RULES;

const MUTANTS: Mutant[] = [
  {
    name: 'a failed journal write of `owner` is taken for none, and the VMM is ended at once',
    rules: {
      stepDestination(state, event): DestinationStep {
        if (state.at !== 'taking-over' || event.type !== 'journal-failed') return stepDestination(state, event);
        return { state: { ...state, at: 'killing' }, actions: [{ do: 'kill-vmm', unlessRunning: false }] };
      },
    },
    budget: { journalFailures: 1, crashes: 1 },
    end: /no good end can be reached/,
  },
  {
    name: 'the destination resumes before `owner` is durable',
    rules: {
      stepDestination(state, event): DestinationStep {
        const step = stepDestination(state, event);
        if (step.state.at !== 'taking-over' || state.at !== 'loaded') return step;
        return { state: { ...step.state, at: 'resuming' }, actions: [...step.actions, { do: 'resume' }] };
      },
    },
    budget: {},
    end: /runs at the destination, whose journal says incoming/,
  },
  {
    name: 'a take-over does not wait for the VMM to load the state',
    rules: {
      stepDestination(state, event): DestinationStep {
        const step = stepDestination(state, event);
        if (step.state.at !== 'awaited' || state.at !== 'arrived') return step;
        const { migration, epoch, guest, peer } = step.state;
        const record = { side: 'destination' as const, state: 'owner' as const, migration, epoch, guest, peer };
        return { state: { ...step.state, at: 'taking-over' }, actions: [{ do: 'journal', record }] };
      },
    },
    budget: { vmmFailures: 1 },
    end: /from an old state/,
  },
  {
    name: 'a guest whose memory was copied is not paused before its state is loaded',
    rules: {
      copies: true,
      stepSource(state, event): SourceStep {
        if (state.at !== 'copying' || event.type !== 'copied') return stepSource(state, event);
        const key = { migration: state.migration, epoch: state.epoch };
        return { state: { ...state, at: 'loading' }, actions: [{ do: 'send', request: 'load', key }] };
      },
    },
    budget: {},
    end: /from an old state|runs on both|handed over, yet it runs at the source/,
  },
  {
    name: 'a destination that refuses while memory is copied is not heard',
    rules: {
      copies: true,
      stepSource: (state, event) =>
        state.at === 'copying' && event.type === 'answer' ? { state, actions: [] } : stepSource(state, event),
    },
    budget: { timeouts: 1 },
    end: /no good end can be reached/,
  },
  {
    name: 'copying that fails is not begun again',
    rules: {
      copies: true,
      stepSource: (state, event) =>
        state.at === 'copying' && event.type === 'retry' ? { state, actions: [] } : stepSource(state, event),
    },
    budget: { losses: 1 },
    end: /no good end can be reached/,
  },
  {
    name: 'the source tells to take over before `handing-over` is durable',
    rules: {
      stepSource(state, event): SourceStep {
        const step = stepSource(state, event);
        if (step.state.at !== 'committing' || state.at !== 'loading') return step;
        const key = { migration: state.migration, epoch: state.epoch };
        return { ...step, actions: [{ do: 'send', request: 'take-over', key }, ...step.actions] };
      },
    },
    budget: { crashes: 1 },
    end: /handed over, yet it runs at the source|runs on both|from an old state/,
  },
  {
    name: 'the source resumes when a take-over stays unanswered',
    rules: {
      stepSource(state, event): SourceStep {
        if (state.at === 'handing-over' && event.type === 'retry') {
          return { state: { ...state, at: 'resuming' }, actions: [{ do: 'resume' }] };
        }
        return stepSource(state, event);
      },
    },
    budget: { losses: 1 },
    end: /handed over, yet it runs at the source|runs on both/,
  },
  {
    name: 'a cancel is accepted after the hand-over',
    rules: {
      stepSource(state, event): SourceStep {
        if (state.at === 'handing-over' && event.type === 'cancel') {
          return { state: { ...state, at: 'resuming' }, actions: [{ do: 'resume' }] };
        }
        return stepSource(state, event);
      },
    },
    budget: { cancels: 1 },
    end: /handed over, yet it runs at the source|runs on both/,
  },
  {
    name: 'after a restart, the source takes `handing-over` for `preparing`',
    rules: {
      recoverSource: (record) =>
        recoverSource(record.state === 'handing-over' ? { ...record, state: 'preparing' } : record),
    },
    budget: { crashes: 1 },
    end: /handed over, yet it runs at the source|runs on both/,
  },
  {
    name: 'a failed journal write of `handing-over` is taken for none, the guest is resumed at once',
    rules: {
      stepSource(state, event): SourceStep {
        if (state.at === 'committing' && event.type === 'journal-failed') {
          return { state: { ...state, at: 'resuming' }, actions: [{ do: 'resume' }] };
        }
        return stepSource(state, event);
      },
    },
    budget: { journalFailures: 1, crashes: 1 },
    end: /handed over, yet it runs at the source|runs on both|from an old state/,
  },
  {
    name: 'the destination answers `refused` and forgets to journal it',
    rules: {
      stepDestination(state, event): DestinationStep {
        const step = stepDestination(state, event);
        if (step.state.at !== 'refusing' || state.at !== 'killing') return step;
        const key = { migration: state.migration, epoch: state.epoch };
        return { state: { ...step.state, at: 'refused' }, actions: [{ do: 'answer', key, state: 'refused' }] };
      },
    },
    budget: { timeouts: 1 },
    end: /handed over, yet it runs at the source; the destination's journal says incoming/,
  },
  {
    name: 'the destination answers `refused` while its VMM lives',
    rules: {
      stepDestination(state, event): DestinationStep {
        const step = stepDestination(state, event);
        if (step.state.at !== 'killing') return step;
        const { migration, epoch, guest, peer } = step.state;
        const record = { side: 'destination' as const, state: 'refused' as const, migration, epoch, guest, peer };
        return { state: { ...step.state, at: 'refusing' }, actions: [{ do: 'journal', record }] };
      },
    },
    budget: { timeouts: 1 },
    end: /while the VMM at the destination lives/,
  },
  {
    name: 'an unknown migration is answered `refused` without a durable refusal',
    rules: {
      stepDestination(state, event): DestinationStep {
        if (state.at === 'idle' && (event.type === 'take-over' || event.type === 'abort')) {
          const key = { migration: state.migration, epoch: state.epoch };
          return { state: { ...state, at: 'refused' }, actions: [{ do: 'answer', key, state: 'refused' }] };
        }
        return stepDestination(state, event);
      },
    },
    budget: { journalLosses: 1 },
    end: /handed over, yet it runs at the source; the destination's journal says nothing/,
  },
  {
    name: 'an unknown migration is refused without a look for a guest that runs',
    rules: {
      stepDestination(state, event): DestinationStep {
        const step = stepDestination(state, event);
        const actions = step.actions.map((action) =>
          action.do === 'kill-vmm' ? { ...action, unlessRunning: false } : action,
        );
        return { ...step, actions };
      },
    },
    budget: { journalLosses: 1 },
    end: /a running guest was killed/,
  },
  {
    name: 'after a restart, the destination goes on with a VMM whose loading was interrupted',
    rules: {
      recoverDestination(record): DestinationStep {
        if (record.state !== 'incoming') return recoverDestination(record);
        return { state: { ...recoverDestination(record).state, at: 'loaded', error: null }, actions: [] };
      },
    },
    budget: { crashes: 1 },
    end: /from an old state/,
  },
  {
    name: 'the source releases its VMM as soon as the destination owns the guest',
    rules: {
      stepSource(state, event): SourceStep {
        if (state.at === 'leaving' && event.type === 'journaled') {
          return { state: { ...state, at: 'releasing' }, actions: [{ do: 'release-vmm' }] };
        }
        return stepSource(state, event);
      },
    },
    budget: {},
    end: /destroyed before the destination had every page/,
  },
  {
    name: 'the source never asks again how a take-over went',
    rules: {
      stepSource: (state, event) =>
        state.at === 'handing-over' && event.type === 'retry' ? { state, actions: [] } : stepSource(state, event),
    },
    budget: { crashes: 1, losses: 1 },
    end: /no good end can be reached/,
  },
  {
    name: 'the destination lets a guest in whose old VMM is still here',
    rules: { admission: (request) => admission({ ...request, busy: false, present: false }) },
    budget: { more: 1, cancels: 1 },
    end: /beside another|from an old state|released|old state/,
  },
];

for (const { name, rules, budget, end } of MUTANTS) {
  void t.test(name, (t) => {
    const copies = rules.copies ?? false;
    const sound = explore({ ...NO_FAULTS, ...budget }, { ...RULES, copies });
    t.equal(sound.counterexample, undefined, 'the true machines pass the same walk');
    const outcome = explore({ ...NO_FAULTS, ...budget }, { ...RULES, ...rules });
    const story = outcome.counterexample ?? '';
    t.match(story.split('\n').at(-1), end, 'the explorer finds it');
    t.comment(`\n${story}`);
    t.end();
  });
}
