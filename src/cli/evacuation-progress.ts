/** How the progress of all guests at once is shown: a bar each on a terminal, plain lines elsewhere. */
import type { EvacuatedGuest, EvacuationInfo } from '../agent/service.ts';
import type { PreparationInfo } from '../agent/evacuation-preparation.ts';
import { formatDuration, formatSize } from '../agent/units.ts';
import type { MigrationInfo } from '../migration/types.ts';
import { percent } from './show.ts';
import { formatCopying, LineView, Rate } from './progress.ts';

export interface EvacuationView {
  update(info: EvacuationInfo): void;
  /** A message beside the progress. */
  say(line: string): void;
  /** The terminal is as before; what still comes is ignored. Idempotent. */
  end(): void;
}

/** A view on `stream`: bars where that is a terminal and they are wanted, else lines. */
export async function evacuationView(stream: NodeJS.WriteStream, options: { bars: boolean }): Promise<EvacuationView> {
  if (!options.bars || !stream.isTTY) return new EvacuationLines((line) => void stream.write(`${line}\n`));
  const { MultiBar } = await import('cli-progress');
  return new EvacuationBars(stream, MultiBar);
}

/** `evacuation: 1 moved, 2 under way, 3 wait, 0 stay` */
export function formatCounts({ guests }: Pick<EvacuationInfo, 'guests'>): string {
  const count = (wanted: EvacuatedGuest['state']): number => guests.filter(({ state }) => state === wanted).length;
  return `evacuation: ${count('moved')} moved, ${count('moving')} under way, ${count('waiting')} wait, ${count('stays')} stay`;
}

/** `preparing: 63% of pages there, 120 MiB to come; 45 s of 10 min` */
export function formatPreparation({
  pages,
  there,
  queuedBytes,
  planning,
  silent,
  elapsedMs,
  mostMs,
}: PreparationInfo): string {
  const notes = [
    ...(planning === 0 ? [] : [`${planning} targets still plan`]),
    ...(silent.length === 0 ? [] : [`no answer of ${silent.join(', ')}`]),
  ];
  return [
    `preparing: ${percent(there, pages)}% of pages there, ${formatSize(queuedBytes)} to come`,
    ...notes,
    `${formatDuration(elapsedMs)} of ${formatDuration(mostMs)}`,
  ].join('; ');
}

/** `nothing was left to be brought; 99% of pages there, after 45 s`. Undefined: it goes on. */
export function formatPrepared({
  ended,
  pages,
  there,
  queuedBytes,
  silent,
  elapsedMs,
}: PreparationInfo): string | undefined {
  if (ended === null) return undefined;
  const how = {
    brought: 'nothing was left to be brought',
    time: `its time was over, ${formatSize(queuedBytes)} still to come`,
    stopped: `it was stopped, ${formatSize(queuedBytes)} still to come`,
  }[ended];
  const notes = silent.length === 0 ? [] : [`no answer of ${silent.join(', ')}`];
  return [how, `${percent(there, pages)}% of pages there`, ...notes, `after ${formatDuration(elapsedMs)}`].join('; ');
}

/** How a preparation ended, once. */
class PreparedLine {
  #isTold = false;

  tell({ preparation }: EvacuationInfo, write: (line: string) => void): void {
    const line = preparation === undefined || this.#isTold ? undefined : formatPrepared(preparation);
    if (line === undefined) return;
    this.#isTold = true;
    write(`prepared: ${line}`);
  }
}

/** As lines of a migration each, and one at every change of their number. */
export class EvacuationLines implements EvacuationView {
  readonly #write: (line: string) => void;
  readonly #guests = new Map<string, LineView>();
  readonly #told = new Map<string, string>();
  #counts = '';
  readonly #prepared = new PreparedLine();
  #ended = false;

  constructor(write: (line: string) => void) {
    this.#write = write;
  }

  update(info: EvacuationInfo): void {
    if (this.#ended) return;
    for (const guest of info.guests) this.#guest(guest);
    if (info.state === 'preparing' && info.preparation !== undefined) {
      this.#prepares(info.preparation);
      return;
    }
    this.#prepared.tell(info, this.#write);
    const counts = formatCounts(info);
    if (counts !== this.#counts) this.#write(counts);
    this.#counts = counts;
  }

  /** At every change, but its clock's. */
  #prepares(preparation: PreparationInfo): void {
    const line = formatPreparation(preparation);
    const figures = line.slice(0, line.lastIndexOf(';'));
    if (figures !== this.#counts) this.#write(line);
    this.#counts = figures;
  }

  #guest(guest: EvacuatedGuest): void {
    const migration = migrationOf(guest);
    if (migration !== undefined && (guest.state === 'moving' || this.#guests.has(migration.id))) {
      let view = this.#guests.get(migration.id);
      if (view === undefined) this.#guests.set(migration.id, (view = new LineView(this.#write)));
      view.update(migration);
      // its last line is written: no further one by the clock
      if (guest.state !== 'moving') view.end();
    }
    const told = `${guest.state} ${guest.error?.code ?? ''}`;
    if (guest.error !== undefined && told !== this.#told.get(guest.guest)) this.#write(trouble(guest));
    this.#told.set(guest.guest, told);
  }

  say(line: string): void {
    if (!this.#ended) this.#write(line);
  }

  end(): void {
    this.#ended = true;
    for (const view of this.#guests.values()) view.end();
  }
}

type MultiBarClass = typeof import('cli-progress').MultiBar;
type Bar = ReturnType<InstanceType<MultiBarClass>['create']>;

/** A bar for each guest under way, below them the counts. */
class EvacuationBars implements EvacuationView {
  readonly #bars: InstanceType<MultiBarClass>;
  readonly #guests = new Map<string, { bar: Bar; rate: Rate }>();
  readonly #all: Bar;
  readonly #told = new Map<string, string>();
  readonly #prepared = new PreparedLine();
  #ended = false;

  constructor(stream: NodeJS.WriteStream, Bars: MultiBarClass) {
    this.#bars = new Bars({
      stream,
      format: '{guest} {phase} [{bar}] {percentage}% {events}, {rate} MiB/s',
      hideCursor: true,
      clearOnComplete: true,
      // signals are ours, and so is the moment to stop
      gracefulExit: false,
      etaBuffer: 2,
      // a line above them moves them all
      forceRedraw: true,
    });
    this.#all = this.#bars.create(1, 0, { counts: '' }, { format: '[{bar}] {counts}' });
  }

  update(info: EvacuationInfo): void {
    if (this.#ended) return;
    for (const guest of info.guests) this.#guest(guest);
    if (info.state === 'preparing' && info.preparation !== undefined) {
      const { pages, there } = info.preparation;
      this.#all.setTotal(Math.max(1, pages));
      this.#all.update(there, { counts: formatPreparation(info.preparation) });
      return;
    }
    this.#prepared.tell(info, (line) => this.say(line));
    this.#all.setTotal(Math.max(1, info.guests.length));
    this.#all.update(info.totals.moved + info.totals.stay, { counts: formatCounts(info) });
  }

  #guest(guest: EvacuatedGuest): void {
    const shown = this.#guests.get(guest.guest);
    if (guest.state === 'moving' && guest.progress !== undefined) {
      const { phase, framesPresent, framesTotal, faultsServed, copying } = guest.progress;
      // a bar of no frames would show as full
      const one = shown ?? { bar: this.#bars.create(Math.max(1, framesTotal), 0, {}), rate: new Rate() };
      this.#guests.set(guest.guest, one);
      const events = copying === undefined ? `${faultsServed} faults` : formatCopying(copying);
      one.bar.setTotal(Math.max(1, framesTotal));
      one.bar.update(framesPresent, {
        ...{ guest: guest.guest, phase, events },
        rate: one.rate.sample(guest.progress).toFixed(1),
      });
    } else if (shown !== undefined) {
      this.#bars.remove(shown.bar);
      this.#guests.delete(guest.guest);
    }
    const told = `${guest.state} ${guest.error?.code ?? ''}`;
    if (guest.error !== undefined && told !== this.#told.get(guest.guest)) this.say(trouble(guest));
    this.#told.set(guest.guest, told);
  }

  say(line: string): void {
    if (this.#ended) return;
    this.#bars.log(`${line}\n`);
    // else it would come with the next change, or never
    this.#bars.update();
  }

  end(): void {
    if (!this.#ended) this.#bars.stop();
    this.#ended = true;
  }
}

/** `web2: stays: PT_NO_TARGET: …` */
function trouble({ guest, state, error }: EvacuatedGuest): string {
  return `${guest}: ${state}: ${error!.code}: ${error!.message}`;
}

function migrationOf({ guest, to, migration, mode, progress }: EvacuatedGuest): MigrationInfo | undefined {
  if (migration === undefined || mode === undefined || progress === undefined) return undefined;
  return { id: migration, guest, mode, peer: to ?? '', direction: 'outgoing', progress };
}
