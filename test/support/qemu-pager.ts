/** A worker thread that serves page faults from the source's memory files: what the fault worker does, at its plainest. */
import { parentPort, workerData } from 'node:worker_threads';
import { openSync } from 'node:fs';
import {
  FrameState,
  native,
  Outcome,
  OUTCOME_FIELDS,
  OutcomeField,
  WAIT_FIELDS,
  WaitField,
  WaitFlag,
} from '../../src/memory/native.ts';

export interface PagerData {
  session: number;
  /** Where each frame's content is: `path`, from frame `first` on. */
  files: { path: string; first: number; frames: number }[];
}

const { session: id, files } = workerData as PagerData;
const session = native().openSession(id);
const opened = files.map((file) => ({ ...file, fd: openSync(file.path, 'r') }));
const frames = new Uint32Array(256);
const status = new Float64Array(WAIT_FIELDS);
const outcome = new Int32Array(OUTCOME_FIELDS);

function serve(frame: number): void {
  const file = opened.find(({ first, frames: count }) => frame >= first && frame < first + count)!;
  for (;;) {
    session.claim(frame, 1, FrameState.Wanted);
    const state = session.table[frame];
    const wanted = state === FrameState.Missing || state === FrameState.Wanted || state === FrameState.InFlight;
    const came = wanted
      ? session.installFromFile(frame, 1, file.fd, (frame - file.first) * session.pageSize, outcome)
      : session.installZero(frame, 1, outcome);
    if (came === Outcome.Done) return;
    if (came !== Outcome.Again)
      throw new Error(`frame ${frame}: outcome ${came}, errno ${outcome[OutcomeField.Errno]!}`);
  }
}

parentPort!.postMessage('serving');
for (;;) {
  const count = session.wait(frames, status, 1000, 0);
  for (let at = 0; at < count; at++) serve(frames[at]!);
  if (status[WaitField.Flags]! & WaitFlag.Stop) break;
}
session.close();
