/** Sizes and durations as people write and read them. Powers of 1024 throughout. */

const FACTOR: Record<string, number> = { '': 1, K: 2 ** 10, M: 2 ** 20, G: 2 ** 30, T: 2 ** 40 };

/** `4096`, `256M`, `1.5G`, `256MiB` as bytes; undefined where it is none, or no whole number of bytes. */
export function parseSize(text: string): number | undefined {
  const match = /^(\d{1,16}(?:\.\d{1,6})?)\s?([KMGT]?)(?:i?B)?$/i.exec(text.trim());
  if (match === null) return undefined;
  const bytes = Number(match[1]) * FACTOR[match[2]!.toUpperCase()]!;
  return Number.isSafeInteger(bytes) ? bytes : undefined;
}

const DURATION: Record<string, number> = { ms: 1, s: 1000, m: 60_000, h: 3_600_000, d: 24 * 3_600_000 };

/** `500ms`, `90s`, `2h`, `1.5d` as whole milliseconds; undefined where it is none. A number needs its unit, but 0. */
export function parseDuration(text: string): number | undefined {
  const match = /^(\d{1,12}(?:\.\d{1,3})?)\s?(ms|s|m|h|d)$/.exec(text.trim());
  if (match === null) return text.trim() === '0' ? 0 : undefined;
  return Math.round(Number(match[1]) * DURATION[match[2]!]!);
}

/** Milliseconds in the two largest units that are of use, e.g. `45 s`, `2 h`, `1 h 59 min`, `29 d 3 h`. */
export function formatDuration(ms: number): string {
  const seconds = Math.round(ms / 1000);
  if (seconds < 60) return `${seconds} s`;
  const minutes = Math.round(seconds / 60);
  if (minutes < 60) return `${minutes} min`;
  const hours = Math.floor(minutes / 60);
  if (hours < 24) return minutes % 60 === 0 ? `${hours} h` : `${hours} h ${minutes % 60} min`;
  return hours % 24 === 0 ? `${hours / 24} d` : `${Math.floor(hours / 24)} d ${hours % 24} h`;
}

/** Bytes in the largest unit that leaves a number below 1024, e.g. `256 MiB`, `1.4 GiB`. */
export function formatSize(bytes: number): string {
  let value = bytes;
  let unit = 'B';
  for (const next of ['KiB', 'MiB', 'GiB', 'TiB']) {
    if (value < 1024) break;
    value /= 1024;
    unit = next;
  }
  return `${Number.isInteger(value) || value >= 100 ? value.toFixed(0) : value.toFixed(1)} ${unit}`;
}

/** Milliseconds, e.g. `3.2 ms`, `840 ms`, `12.5 s`. */
export function formatMillis(ms: number): string {
  if (ms >= 10_000) return `${(ms / 1000).toFixed(1)} s`;
  return `${ms >= 100 ? ms.toFixed(0) : ms.toFixed(1)} ms`;
}

/** Microseconds, e.g. `4.1 µs`, `1.3 ms`. */
export function formatMicros(us: number): string {
  if (us >= 1000) return formatMillis(us / 1000);
  return `${us >= 100 ? us.toFixed(0) : us.toFixed(1)} µs`;
}
