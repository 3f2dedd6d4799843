/** What the services of an arriving guest tell beside pages: alarms, doubts about pages that came wrong, notes for operators. */
import { errorFromJson, PagetideError, type ErrorJson } from '../errors.ts';
import type { GuestService } from '../memory/guest-service.ts';
import type { Serving } from '../memory/serving.ts';
import { Doubts, type DoubtsOptions } from './doubts.ts';
import type { MigrationHost } from './host.ts';

export interface IncomingWatchOptions extends Pick<DoubtsOptions, 'ask' | 'isMissing' | 'onChange'> {
  host: Pick<MigrationHost, 'log'>;
  migration: string;
  guest: () => string | null;
  /** Stops the guest: a wrong page may be in its memory. */
  pause: () => void;
}

export class IncomingWatch {
  readonly #options: IncomingWatchOptions;
  readonly #doubts: Doubts;
  /** Of all that served the guest, one after the other. */
  readonly #served: Serving[] = [];
  #alarm: ErrorJson | undefined;
  #note: string | undefined;

  constructor(options: IncomingWatchOptions) {
    this.#options = options;
    const { host, migration, ask, isMissing, onChange } = options;
    this.#doubts = new Doubts({ ask, isMissing, onChange, log: host.log.child({ migration }) });
  }

  /** Listens to a service from its beginning. */
  follow(service: GuestService): void {
    const { host, guest, onChange } = this.#options;
    this.#served.push(service.serving);
    service.on('foreign', (frame) => {
      this.raise(
        new PagetideError('PT_FOREIGN_PAGE', `a page stands in frame ${frame} that Pagetide did not put there`),
      );
    });
    service.on('note', (text, code) => {
      if (code === 'PT_PAGE_MISMATCH') return; // see 'mismatch'
      this.#note = text;
      onChange();
    });
    service.on('leftOut', (url, { code, message }) => {
      host.log.warn({ guest: guest(), url, code }, `a peer is not asked for pages any more: ${message}`);
    });
    service.on('mismatch', (frame) => {
      host.log.warn({ guest: guest(), frame, code: 'PT_PAGE_MISMATCH' }, 'a page came that is not the one of its tag');
      this.#doubts.add(frame);
    });
  }

  /** A wrong page may be in the guest's memory: it must not run on. */
  raise(error: PagetideError): void {
    if (this.#alarm !== undefined) return;
    this.#alarm = error.toJSON();
    this.#options.host.log.fatal({ guest: this.#options.guest(), code: error.code }, error.message);
    this.#options.pause();
    this.#options.onChange();
  }

  get alarm(): ErrorJson | undefined {
    return this.#alarm;
  }

  /** The alarm, or that of a page that is damaged at the source. */
  get error(): ErrorJson | undefined {
    return this.#alarm ?? this.#doubts.error;
  }

  /** What an operator should know now. */
  get note(): string | undefined {
    return this.#doubts.note ?? this.#note;
  }

  /** @throws PagetideError the alarm, if there is one */
  throwAlarm(): void {
    if (this.#alarm !== undefined) throw errorFromJson(this.#alarm);
  }

  /** Frames for which there was an alarm so far: their page was altered at the source. */
  get damagedFrames(): number {
    return this.#doubts.alarms;
  }

  /** Pages that came, and were not those of their tags. */
  get mismatches(): { source: number; peer: number } {
    let [source, peer] = [0, 0];
    for (const { mismatches, peerMismatches } of this.#served) {
      source += mismatches;
      peer += peerMismatches;
    }
    return { source, peer };
  }

  /** Every page is in. */
  clear(): void {
    this.#doubts.clear();
  }

  /** Asks nothing any more. */
  close(): void {
    this.#doubts.close();
  }
}
