/** Guests, migrations and reports as people read them. */
import type { GuestInfo } from '../agent/service.ts';
import { formatMicros, formatMillis, formatSize } from '../agent/units.ts';
import type { DeltaBytes } from '../memory/serving.ts';
import type { MigrationInfo, MigrationReport, RoundReport } from '../migration/types.ts';
import { pairs, table } from './table.ts';

/** One line a guest. */
export function showGuests(guests: readonly GuestInfo[]): string {
  if (guests.length === 0) return 'no guests';
  const rows = guests.map((guest) => [
    guest.name,
    guest.driver,
    guest.state,
    formatSize(guest.memory),
    String(guest.pid),
    guest.launched ? 'launched' : 'attached',
    guest.migration === undefined ? '' : `${guest.migration.direction}, ${guest.migration.progress.phase}`,
  ]);
  return table(['NAME', 'DRIVER', 'STATE', 'MEMORY', 'PID', 'ORIGIN', 'MIGRATION'], rows);
}

/** All of one guest. */
export function showGuest(guest: GuestInfo): string {
  const lines: [string, string][] = [
    ['name', guest.name],
    ['driver', guest.driver],
    ['state', guest.state],
    ['pid', `${guest.pid} (${guest.launched ? 'launched' : 'attached'})`],
    ['domain', guest.domain ?? 'none: it shares pages with nobody'],
    ['memory', `${formatSize(guest.memory)}, pages of ${formatSize(guest.pageSize)}`],
    ...guest.files.map((file): [string, string] => [`file ${file.id}`, `${file.path}, ${formatSize(file.size)}`]),
  ];
  const { migration, stats, error } = guest;
  if (migration !== undefined) {
    lines.push(['migration', `${migration.id}, ${migration.direction}, ${migration.progress.phase}`]);
  }
  const { operations = null, longestGapMs = null, stalls = null } = stats ?? {};
  if (operations !== null) lines.push(['operations', String(operations)]);
  if (longestGapMs !== null) lines.push(['longest gap', formatMillis(longestGapMs)]);
  if (stalls !== null) lines.push(['stalls', latencies(stalls)]);
  if (error !== undefined) lines.push(['error', `${error.code}: ${error.message} (${error.hint})`]);
  return pairs(lines);
}

/** One line a migration. */
export function showMigrations(migrations: readonly MigrationInfo[]): string {
  if (migrations.length === 0) return 'no migrations';
  const rows = migrations.map(({ id, guest, direction, peer, progress, error }) => [
    id,
    guest,
    direction,
    peer,
    progress.phase,
    `${percent(progress.framesPresent, progress.framesTotal)}%`,
    error?.code ?? progress.note ?? '',
  ]);
  return table(['ID', 'GUEST', 'DIRECTION', 'PEER', 'PHASE', 'FRAMES', 'NOTE'], rows);
}

/** What a migration ended in. */
export function showReport(report: MigrationReport): string {
  const { frames, bytes, ms, faults } = report;
  const classes = (['zero', 'present', 'cache', 'resident', 'duplicate', 'peer', 'source'] as const)
    .filter((name) => frames[name] > 0)
    .map((name) => `${name} ${frames[name]}`)
    .join(', ');
  const verified = {
    true: 'yes, every frame',
    false: 'NO: bad frames',
    null: 'this guest cannot check itself, or was not asked',
  };
  const text = pairs([
    ['guest', `${report.guest} (${report.driver}, ${report.mode})`],
    ...(report.why === undefined ? [] : [['mode', report.why] as const]),
    ...(report.note === undefined ? [] : [['note', report.note] as const]),
    ['verified', verified[`${report.verified}`]],
    ['frames', `${frames.total}${classes === '' ? '' : `: ${classes}`}`],
    [
      'bytes',
      `${formatSize(bytes.wire)} on the wire: manifest ${formatSize(bytes.manifest)}, ` +
        `pages ${formatSize(bytes.pages)} (raw ${formatSize(bytes.raw)}), state ${formatSize(bytes.state)}`,
    ],
    ...(bytes.deltas === undefined ? [] : [['deltas', showDeltas(bytes.deltas)] as const]),
    [
      'time',
      `total ${formatMillis(ms.total)}, prepare ${known(ms.prepare)}, downtime ${known(ms.downtime)}` +
        (ms.journal === null ? '' : ` (${formatMillis(ms.journal)} for the journals' disks)`),
    ],
    ['faults', latencies(faults)],
    ['longest gap', report.longestGapMs === null ? 'no heartbeat' : formatMillis(report.longestGapMs)],
  ]);
  return report.rounds === undefined ? text : `${text}\n\n${showRounds(report.rounds)}`;
}

/** One line a round: what was told, where pages came from, what was on the wire. */
function showRounds(rounds: readonly RoundReport[]): string {
  const classes = ['zero', 'cache', 'resident', 'duplicate', 'peer', 'source', 'lacking'] as const;
  const rows = rounds.map((round, index) => [
    String(index + 1),
    String(round.changed),
    ...classes.map((name) => String(round[name])),
    formatSize(round.wireBytes),
    formatMillis(round.ms),
  ]);
  return table(['ROUND', 'CHANGED', ...classes.map((name) => name.toUpperCase()), 'WIRE', 'TIME'], rows);
}

function showDeltas({ frames, bytes, digests, whole }: DeltaBytes): string {
  return `${frames} frames in ${formatSize(bytes)} and ${formatSize(digests)} of digests; whole, about ${formatSize(whole)}`;
}

function known(ms: number | null): string {
  return ms === null ? 'not known' : formatMillis(ms);
}

/** Whole percent, rounded down: 100 only when nothing is missing. */
export function percent(part: number, total: number): number {
  return total === 0 ? 0 : Math.floor((part / total) * 100);
}

function latencies(of: { count: number; p50Us: number; p99Us: number; maxUs: number }): string {
  if (of.count === 0) return '0';
  return `${of.count}: p50 ${formatMicros(of.p50Us)}, p99 ${formatMicros(of.p99Us)}, max ${formatMicros(of.maxUs)}`;
}
