/** An evacuation as people read it: planned, or ended. */
import type { EvacuatedGuest, EvacuationInfo } from '../agent/service.ts';
import { formatMillis, formatSize } from '../agent/units.ts';
import { formatPrepared } from './evacuation-progress.ts';
import { pairs, table } from './table.ts';

/** A line a guest, then the sums. */
export function showEvacuation(info: EvacuationInfo): string {
  if (info.guests.length === 0) return 'no guests';
  return info.state === 'planned' ? showPlan(info) : showEnd(info);
}

function showPlan({ guests }: EvacuationInfo): string {
  const rows = guests.map((guest) => [
    guest.guest,
    guest.to ?? '',
    formatSize(guest.memory),
    guest.expectedBytes === undefined ? '' : formatSize(guest.expectedBytes),
    note(guest),
  ]);
  const bytes = guests.reduce((sum, { expectedBytes = 0 }) => sum + expectedBytes, 0);
  const sum = pairs([
    ['guests', `${guests.length}, of which ${guests.filter(({ state }) => state === 'stays').length} stay`],
    ['pages', `${formatSize(bytes)} to fetch, before compression`],
  ]);
  return `${table(['GUEST', 'TO', 'MEMORY', 'PAGES', 'NOTE'], rows)}\n\n${sum}`;
}

function showEnd({ guests, totals, elapsedMs, preparation }: EvacuationInfo): string {
  const rows = guests.map((guest) => {
    const { report } = guest;
    return [
      guest.guest,
      guest.state,
      guest.to ?? '',
      guest.mode ?? '',
      report === undefined ? '' : formatSize(report.bytes.wire),
      report === undefined ? '' : millis(report.ms.downtime),
      report === undefined ? '' : formatMillis(report.ms.total),
      note(guest),
    ];
  });
  const { moved, stay, frames, bytes, longestDowntimeMs } = totals;
  const classes = (['zero', 'present', 'cache', 'resident', 'duplicate', 'peer', 'source'] as const)
    .filter((name) => frames[name] > 0)
    .map((name) => `${name} ${frames[name]}`)
    .join(', ');
  const prepared = preparation === undefined ? undefined : formatPrepared(preparation);
  const sums = pairs([
    ...(prepared === undefined ? [] : [['prepared', prepared] as [string, string]]),
    ['guests', `${moved} moved, ${stay} stay`],
    ['frames', `${frames.total}${classes === '' ? '' : `: ${classes}`}`],
    [
      'bytes',
      `${formatSize(bytes.wire)} on the wire: manifest ${formatSize(bytes.manifest)}, ` +
        `pages ${formatSize(bytes.pages)} (raw ${formatSize(bytes.raw)}), state ${formatSize(bytes.state)}`,
    ],
    ['time', `total ${formatMillis(elapsedMs)}, longest downtime ${millis(longestDowntimeMs)}`],
  ]);
  const columns = ['GUEST', 'STATE', 'TO', 'MODE', 'WIRE', 'DOWNTIME', 'TIME', 'NOTE'];
  return `${table(columns, rows)}\n\n${sums}`;
}

function note({ state, migration, error }: EvacuatedGuest): string {
  if (error !== undefined) return `${error.code}: ${error.message}`;
  return state === 'waiting' && migration !== undefined ? 'under way already' : '';
}

function millis(ms: number | null): string {
  return ms === null ? 'not known' : formatMillis(ms);
}
