/** An evacuation over migrations that do what the test says. */
import { once, EventEmitter } from 'node:events';
import { pino } from 'pino';
import { Evacuation } from '../../src/agent/evacuation.ts';
import type { Survey, SurveyedTarget } from '../../src/agent/evacuation-survey.ts';
import type { EvacuatedGuest, EvacuateRequest, MigrateRequest } from '../../src/agent/service.ts';
import type { PagetideError } from '../../src/errors.ts';
import type { EvacuationGuest } from '../../src/migration/evacuation-plan.ts';
import type { MigrationInfo, Phase } from '../../src/migration/types.ts';
import { migrationInfo, report } from './fake-service.ts';

export const B = 'http://127.0.0.1:7412';
export const C = 'http://127.0.0.1:7413';
export const MIB = 2 ** 20;

export function guest(name: string, pages: number[], domain: string | undefined = 'shop'): EvacuationGuest {
  return { name, memory: MIB, domain, pages: Uint32Array.from(pages), pageBytes: 4096, unknownBytes: 0 };
}

export function target(url: string, more: Partial<SurveyedTarget> = {}): SurveyedTarget {
  return { url, room: 100 * MIB, places: 4, has: new Map(), refuses: new Map(), ...more };
}

export class World {
  readonly evacuation: Evacuation;
  readonly requests: MigrateRequest[] = [];
  readonly limits: [string, number][] = [];
  readonly cancelled: string[] = [];
  /** What the target says of pages of the sample. */
  listed = true;
  asked = 0;
  /** Thrown where a guest is to begin. */
  refusal: PagetideError | undefined;
  readonly #infos = new Map<string, MigrationInfo>();
  readonly #events = new EventEmitter().setMaxListeners(100);

  constructor(survey: Partial<Survey>, more: Partial<EvacuateRequest> = {}) {
    const whole: Survey = {
      ...{ guests: [], leaving: [], stuck: [], targets: [target(B)] },
      ask: (_url, _domain, pages) => {
        this.asked++;
        this.#events.emit('asked');
        return Promise.resolve(new Uint8Array(pages.length).fill(this.listed ? 1 : 0));
      },
      ...survey,
    };
    const request: EvacuateRequest = {
      ...{ to: whole.targets.map(({ url }) => url), parallel: 2, mode: 'auto', verify: true },
      ...more,
    };
    this.evacuation = new Evacuation(
      {
        log: pino({ level: 'silent' }),
        migrate: (wanted) => {
          this.requests.push(wanted);
          if (this.refusal !== undefined) return Promise.reject(this.refusal);
          const info = migrationInfo('preparing', { id: idOf(wanted.guest), guest: wanted.guest, peer: wanted.to });
          this.#infos.set(info.id, info);
          return Promise.resolve(info);
        },
        watch: (id, signal) => this.#watch(id, signal),
        cancel: (name) => {
          this.cancelled.push(name);
          return Promise.resolve(this.#infos.get(idOf(name))!);
        },
        limit: (id, bandwidth) => void this.limits.push([this.#infos.get(id)!.guest, bandwidth]),
      },
      request,
      whole,
    );
    this.evacuation.onChange(() => this.#events.emit('change'));
  }

  /** An outgoing migration of an earlier command. */
  underWay(name: string, peer = B): void {
    this.#infos.set(idOf(name), migrationInfo('serving', { id: idOf(name), guest: name, peer }));
  }

  to(name: string, phase: Phase, error?: PagetideError, ended = report): void {
    const id = idOf(name);
    const { peer } = this.#infos.get(id)!;
    this.#infos.set(
      id,
      migrationInfo(phase, {
        ...{ id, guest: name, peer },
        ...(phase === 'done' ? { report: ended } : {}),
        ...(error === undefined ? {} : { error: error.toJSON() }),
      }),
    );
    this.#events.emit('moved');
  }

  async until(holds: () => boolean): Promise<void> {
    while (!holds()) await Promise.race([once(this.#events, 'change'), once(this.#events, 'asked')]);
  }

  states(): Record<string, EvacuatedGuest['state']> {
    return Object.fromEntries(this.evacuation.info().guests.map(({ guest: name, state }) => [name, state]));
  }

  error(name: string): string | undefined {
    return this.evacuation.info().guests.find((one) => one.guest === name)?.error?.code;
  }

  begun(): string[] {
    return this.requests.map(({ guest: name }) => name);
  }

  async *#watch(id: string, signal: AbortSignal): AsyncGenerator<MigrationInfo> {
    for (;;) {
      const info = this.#infos.get(id)!;
      yield info;
      if (['done', 'failed', 'cancelled'].includes(info.progress.phase) || signal.aborted) return;
      if (this.#infos.get(id) === info) await once(this.#events, 'moved', { signal }).catch(() => undefined);
    }
  }
}

/** Of a guest's migration: 16 hex digits a name. */
export function idOf(name: string): string {
  return Buffer.from(name.padEnd(8)).toString('hex').slice(0, 16);
}
