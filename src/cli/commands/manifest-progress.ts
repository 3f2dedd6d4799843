/** A bar while big memories are tagged, on a terminal; nothing elsewhere. */
import { basename } from 'node:path';
import type { Context } from '../context.ts';
import { bytesOf, type Subject } from './manifest-subject.ts';

/** Less is tagged before a bar could be read, bytes. */
const BIG = 256 * 2 ** 20;

export interface ScanProgress {
  /** The next one is read; the function takes the frames that are done. */
  begin(subject: Subject): (frames: number) => void;
  /** The terminal is as before. Idempotent. */
  end(): void;
}

/** A bar on `stream` where that is a terminal and there is enough to read. */
export async function scanProgress(
  stream: NodeJS.WriteStream,
  { json }: Pick<Context, 'json'>,
  subjects: readonly (Subject | undefined)[],
): Promise<ScanProgress> {
  const total = subjects.reduce((sum, subject) => sum + (subject === undefined ? 0 : bytesOf(subject)), 0);
  if (json || !stream.isTTY || total < BIG) return { begin: () => () => undefined, end: () => undefined };
  const { SingleBar } = await import('cli-progress');
  const bar = new SingleBar({
    stream,
    format: '{name} [{bar}] {percentage}% {value}/{total} MiB',
    hideCursor: true,
    clearOnComplete: true,
    // signals are ours, and so is the moment to stop
    gracefulExit: false,
  });
  let before = 0;
  let isOn = true;
  const mib = (bytes: number): number => Math.round(bytes / 2 ** 20);
  bar.start(mib(total), 0, { name: '' });
  return {
    begin: (subject) => {
      const base = before;
      before += bytesOf(subject);
      const name = basename(subject.name);
      bar.update(mib(base), { name });
      return (frames) => bar.update(mib(base + frames * 4096), { name });
    },
    end: () => {
      if (isOn) bar.stop();
      isOn = false;
    },
  };
}
