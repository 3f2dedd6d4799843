/** Ownership: two state machines free of I/O, and what a journal's records come to. See docs/ownership.md. */
export * from './types.ts';
export {
  recoverSource,
  sourceEnded,
  startSource,
  stepSource,
  type SourceAt,
  type SourceStart,
  type SourceState,
  type SourceStep,
} from './source.ts';
export {
  answerState,
  destinationEnded,
  newDestination,
  recoverDestination,
  stepDestination,
  type DestinationAt,
  type DestinationState,
  type DestinationStep,
} from './destination.ts';
export {
  admission,
  compactOwnership,
  highestEpoch,
  isOver,
  KEPT_OVER,
  lastRecords,
  machineName,
  nextEpoch,
  recover,
  type AdmissionRequest,
} from './records.ts';
export { describe } from './describe.ts';
