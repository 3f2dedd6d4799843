/** How a migration's progress is shown: a bar on a terminal, plain lines elsewhere. */
import type { CopyingProgress, MigrationInfo, MigrationProgress } from '../migration/types.ts';
import { formatMillis } from '../agent/units.ts';
import { percent } from './show.ts';

/** Time between two plain lines of the same phase, and over which a rate is taken. Milliseconds. */
const LINE_MS = 1000;

export interface ProgressView {
  update(info: MigrationInfo): void;
  /** A message beside the progress. */
  say(line: string): void;
  /** The terminal is as before; what still comes is ignored. Idempotent. */
  end(): void;
}

/** A view on `stream`: a bar where that is a terminal and `bar` is wanted, else lines. */
export async function progressView(stream: NodeJS.WriteStream, options: { bar: boolean }): Promise<ProgressView> {
  if (!options.bar || !stream.isTTY) return new LineView((line) => void stream.write(`${line}\n`));
  const { SingleBar } = await import('cli-progress');
  return new BarView(stream, SingleBar);
}

/** MiB/s over the last second, from byte counts as they come. */
export class Rate {
  #samples: { ms: number; bytes: number }[] = [];

  /** Takes a count and gives the rate. */
  sample({ elapsedMs, wireBytes }: Pick<MigrationProgress, 'elapsedMs' | 'wireBytes'>): number {
    const last = this.#samples.at(-1);
    // a restarted agent may count from anew
    if (last !== undefined && (elapsedMs < last.ms || wireBytes < last.bytes)) this.#samples = [];
    this.#samples.push({ ms: elapsedMs, bytes: wireBytes });
    while (this.#samples.length > 2 && this.#samples[1]!.ms <= elapsedMs - LINE_MS) this.#samples.shift();
    const first = this.#samples[0]!;
    const ms = elapsedMs - first.ms;
    return ms <= 0 ? 0 : (wireBytes - first.bytes) / 1024 ** 2 / (ms / 1000);
  }
}

/** A line at every change of phase, round or note, and every second. */
export class LineView implements ProgressView {
  readonly #write: (line: string) => void;
  readonly #rate = new Rate();
  #last: MigrationInfo | undefined;
  #lastAt = 0;
  #ended = false;
  #mibPerSecond = 0;
  #timer: NodeJS.Timeout | undefined;

  constructor(write: (line: string) => void) {
    this.#write = write;
  }

  update(info: MigrationInfo): void {
    if (this.#ended) return;
    const before = this.#last?.progress;
    this.#last = info;
    this.#lastAt = performance.now();
    this.#mibPerSecond = this.#rate.sample(info.progress);
    const { phase, note, copying } = info.progress;
    if (before?.phase === phase && before.note === note && before.copying?.round === copying?.round) return;
    this.#line();
  }

  #line(): void {
    if (this.#last === undefined) return;
    const { progress } = this.#last;
    // time goes on while nothing is heard
    const elapsedMs = progress.elapsedMs + performance.now() - this.#lastAt;
    this.#write(formatProgress({ ...this.#last, progress: { ...progress, elapsedMs } }, this.#mibPerSecond));
    // a second after the last line, whatever caused that
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.#line(), LINE_MS);
  }

  say(line: string): void {
    if (!this.#ended) this.#write(line);
  }

  end(): void {
    clearTimeout(this.#timer);
    this.#ended = true;
  }
}

/** `web1: serving, 12345/65536 frames (18%), 321 faults, 210.3 MiB/s, 1.2 s`; while it is copied, the round in place of faults */
export function formatProgress({ guest, progress }: MigrationInfo, mibPerSecond: number): string {
  const { phase, framesPresent, framesTotal, faultsServed, elapsedMs, note, copying } = progress;
  const frames = `${framesPresent}/${framesTotal} frames (${percent(framesPresent, framesTotal)}%)`;
  const rate = `${mibPerSecond.toFixed(1)} MiB/s`;
  const events = copying === undefined ? `${faultsServed} faults` : formatCopying(copying);
  const text = `${guest}: ${phase}, ${frames}, ${events}, ${rate}, ${formatMillis(elapsedMs)}`;
  return note === undefined ? text : `${text}; ${note}`;
}

/** `round 2, 1234 frames/s dirty, about 210 ms downtime` */
export function formatCopying({ round, dirtyPerSecond, expectedDowntimeMs }: CopyingProgress): string {
  if (expectedDowntimeMs === null) return `round ${round}`;
  return `round ${round}, ${dirtyPerSecond} frames/s dirty, about ${formatMillis(expectedDowntimeMs)} downtime`;
}

type BarClass = typeof import('cli-progress').SingleBar;

class BarView implements ProgressView {
  readonly #bar: InstanceType<BarClass>;
  readonly #stream: NodeJS.WriteStream;
  readonly #rate = new Rate();
  #started = false;
  #ended = false;
  #last: MigrationInfo | undefined;
  #mibPerSecond = 0;
  #note: string | undefined;

  constructor(stream: NodeJS.WriteStream, Bar: BarClass) {
    this.#stream = stream;
    this.#bar = new Bar({
      stream,
      format: '{guest} {phase} [{bar}] {percentage}% {value}/{total} frames, {events}, {rate} MiB/s',
      hideCursor: true,
      clearOnComplete: true,
      // signals are ours, and so is the moment to stop
      gracefulExit: false,
      etaBuffer: 2,
    });
  }

  update(info: MigrationInfo): void {
    if (this.#ended) return;
    this.#mibPerSecond = this.#rate.sample(info.progress);
    this.#last = info;
    const { note } = info.progress;
    if (note !== undefined && note !== this.#note) this.say(note);
    else this.#draw(info);
    this.#note = note;
  }

  #draw({ guest, progress }: MigrationInfo): void {
    const { phase, framesPresent, framesTotal, faultsServed, copying } = progress;
    const events = copying === undefined ? `${faultsServed} faults` : formatCopying(copying);
    const payload = { guest, phase, events, rate: this.#mibPerSecond.toFixed(1) };
    // a bar of no frames would show as full
    const total = Math.max(1, framesTotal);
    if (this.#started) {
      this.#bar.setTotal(total);
      this.#bar.update(framesPresent, payload);
    } else {
      this.#bar.start(total, framesPresent, payload);
      this.#started = true;
    }
  }

  say(line: string): void {
    if (this.#ended) return;
    // the bar goes back to where it began when it ends: it must not have been scrolled away from there
    const last = this.#last;
    if (this.#started) this.#bar.stop();
    this.#started = false;
    this.#stream.write(`${line}\n`);
    if (last !== undefined) this.#draw(last);
  }

  end(): void {
    if (this.#started && !this.#ended) this.#bar.stop();
    this.#ended = true;
  }
}
