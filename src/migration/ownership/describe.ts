/** The states of both sides in the operator's words. */
import type { Phase } from '../types.ts';
import { destinationEnded, type DestinationState } from './destination.ts';
import { sourceEnded, type SourceState } from './source.ts';
import type { Description } from './types.ts';

/** How a side stands. A side in doubt says so: phase `in-doubt`, owner `unsure`. */
export function describe(state: SourceState | DestinationState): Description {
  return state.side === 'source' ? describeSource(state) : describeDestination(state);
}

function describeSource(state: SourceState): Description {
  const make = (phase: Phase, owner: Description['owner'], note: string): Description => {
    return { phase, owner, ended: sourceEnded(state), note };
  };
  const telling = state.telling ? '; the destination is being told to abort' : '';
  const ending = state.cancelled ? 'cancelled' : 'failed';
  switch (state.at) {
    case 'opening':
    case 'preparing':
      return make('preparing', 'yes', 'the destination gets ready; the guest runs here');
    case 'copying':
      return make('copying', 'yes', 'memory is copied to the destination while the guest runs here');
    case 'pausing':
    case 'loading':
      return make('switching', 'yes', 'the guest is paused here while the destination loads its state');
    case 'committing':
      return make('switching', 'yes', 'the hand-over is being written to the journal');
    case 'undoing':
      return make(
        'in-doubt',
        'unsure',
        'the journal failed at the hand-over: the guest stays paused until it, or the destination, says that it is ours',
      );
    case 'handing-over':
      if (!state.doubt) return make('switching', 'unsure', 'the destination was told to take over');
      return make(
        'in-doubt',
        'unsure',
        'the destination was told to take over and has not answered: the guest stays paused, and it is asked again',
      );
    case 'fencing':
      return make('in-doubt', 'unsure', "the operator's fence is being written to the journal");
    case 'leaving':
      return make('serving', 'no', 'the destination owns the guest');
    case 'gone':
      if (state.peerLost)
        return make(
          'serving',
          'no',
          'the destination lost the guest; its memory at the time of the switch is kept here until it is discarded',
        );
      return make(
        'serving',
        'no',
        'the guest is at the destination; its memory is kept here until every page has arrived',
      );
    case 'releasing':
    case 'closing':
      return make('completing', 'no', 'the destination has every page; the VMM here is being removed');
    case 'released':
      return make('done', 'no', 'the guest is at the destination, whole');
    case 'resuming':
    case 'settling':
      return make('rolling-back', 'yes', `the guest goes on here${telling}`);
    case 'rolled-back':
      return make(ending, 'yes', `the guest goes on here${telling}`);
    case 'losing':
    case 'lost':
      return make('failed', 'yes', `the VMM exited here before the guest was handed over${telling}`);
  }
}

function describeDestination(state: DestinationState): Description {
  const make = (phase: Phase, owner: Description['owner'], note: string): Description => {
    return { phase, owner, ended: destinationEnded(state), note };
  };
  switch (state.at) {
    case 'idle':
      return make('preparing', 'no', 'nothing is known of this migration');
    case 'accepting':
    case 'starting':
      return make('preparing', 'no', 'the VMM is being started');
    case 'prepared':
      return make('preparing', 'no', "ready for the guest's state");
    case 'loading':
      return make('switching', 'no', "the guest's state is on its way");
    case 'arrived':
      return make('switching', 'no', "the guest's state is here, and being loaded");
    case 'awaited':
      return make('switching', 'no', 'the guest has been handed over, and its state is being loaded');
    case 'loaded':
      return make('switching', 'no', 'loaded; the guest may not run here until the source hands it over');
    case 'taking-over':
      return make('switching', 'no', 'the take-over is being written to the journal');
    case 'resuming':
      return make(
        'switching',
        'yes',
        state.error === null
          ? 'the guest is being resumed here'
          : 'the guest belongs here, but could not be resumed; it is tried again',
      );
    case 'reattaching':
      return make(
        'serving',
        'yes',
        state.error === null
          ? 'the agent restarted and takes the guest up again'
          : 'the guest waits: its userfaultfd could not be taken again; it is tried again',
      );
    case 'serving':
      return make('serving', 'yes', 'the guest runs here; its pages are arriving');
    case 'unregistering':
    case 'completing':
    case 'closing':
      return make('completing', 'yes', 'every page is here; the source is being told');
    case 'complete':
      return make('done', 'yes', 'the guest is here, whole');
    case 'retracting':
    case 'killing':
    case 'refusing':
      return make('rolling-back', 'no', 'the guest is being refused; it goes on at the source');
    case 'refused':
      return make('failed', 'no', 'refused for good; the guest goes on at the source');
    case 'orphan':
      return make(
        'in-doubt',
        'unsure',
        'a guest of this migration runs here, but the journal knows nothing of it: it was lost or replaced',
      );
    case 'losing':
    case 'lost':
      return make('failed', 'yes', 'the VMM exited here while it owned the guest: the guest is lost');
  }
}
