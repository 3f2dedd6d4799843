/** What migrations add to the agent's metrics: each end once, each alarm once, however often their machines are looked at. */
import type { ErrorCode } from '../errors.ts';
import { IncomingMigration } from '../migration/incoming.ts';
import type { OutgoingMigration } from '../migration/outgoing.ts';
import type { Metrics } from './metrics.ts';

type Machine = OutgoingMigration | IncomingMigration;

type Counted = Pick<Metrics, 'alarms' | 'bytes' | 'downtime' | 'faults' | 'migrations'>;

/** Alarms of a machine that were counted. */
interface Alarms {
  damagedFrames: number;
  raised: boolean;
}

export class MigrationCounts {
  readonly #metrics: Counted;
  /** Migrations whose end has been counted. */
  readonly #ended = new Set<string>();
  /** Pages that were not those of their tags, of migrations that ended. */
  readonly #mismatched = { source: 0, peer: 0 };
  readonly #alarms = new WeakMap<Machine, Alarms>();

  constructor(metrics: Counted) {
    this.#metrics = metrics;
  }

  /** Looks at all migrations after a change of any. */
  look(machines: readonly Machine[]): void {
    for (const machine of machines) {
      if (machine.ended) this.#countEnd(machine);
      this.#countAlarms(machine);
    }
  }

  /** Pages that came for guests and were not those of their tags: of the migrations that ended, and of those under way among these. */
  mismatches(machines: readonly Machine[]): { source: number; peer: number } {
    const sum = { ...this.#mismatched };
    for (const machine of machines) {
      if (machine.ended || !(machine instanceof IncomingMigration)) continue;
      sum.source += machine.mismatches.source;
      sum.peer += machine.mismatches.peer;
    }
    return sum;
  }

  #countEnd(machine: Machine): void {
    const info = machine.info();
    if (this.#ended.has(info.id + info.direction)) return;
    this.#ended.add(info.id + info.direction);
    if (machine instanceof IncomingMigration) {
      this.#mismatched.source += machine.mismatches.source;
      this.#mismatched.peer += machine.mismatches.peer;
    }
    const metrics = this.#metrics;
    metrics.migrations.inc({ direction: info.direction, outcome: info.progress.phase });
    if (info.report === undefined) return;
    const { downtime } = info.report.ms;
    if (downtime !== null) metrics.downtime.observe(downtime / 1000);
    const { deltas, ...bytes } = info.report.bytes;
    const kinds = { ...bytes, deltas: deltas?.bytes ?? 0, digests: deltas?.digests ?? 0 };
    for (const [kind, count] of Object.entries(kinds)) metrics.bytes.inc({ direction: 'outgoing', kind }, count);
    metrics.faults.inc({ from: 'source' }, info.report.faults.count);
  }

  #countAlarms(machine: Machine): void {
    const before = this.#alarms.get(machine) ?? { damagedFrames: 0, raised: false };
    const { damagedFrames } = machine;
    const more = damagedFrames - before.damagedFrames;
    if (more > 0) this.#metrics.alarms.inc({ kind: 'page-damaged' }, more);
    // stays raised; a machine that an agent takes up after a restart raises it once more
    const alarm = machine instanceof IncomingMigration ? machine.alarmed : undefined;
    if (alarm !== undefined && !before.raised) this.#metrics.alarms.inc({ kind: kindOf(alarm.code) });
    this.#alarms.set(machine, { damagedFrames, raised: alarm !== undefined });
  }
}

/** `PT_FOREIGN_PAGE`: `foreign-page`. */
function kindOf(code: ErrorCode): string {
  return code.replace(/^PT_/, '').replaceAll('_', '-').toLowerCase();
}
