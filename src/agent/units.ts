/** Sizes and durations as people write and read them. Powers of 1024 throughout. */

const FACTOR: Record<string, number> = { '': 1, K: 2 ** 10, M: 2 ** 20, G: 2 ** 30, T: 2 ** 40 };

/** `4096`, `256M`, `1.5G`, `256MiB` as bytes; undefined where it is none, or no whole number of bytes. */
export function parseSize(text: string): number | undefined {
  const match = /^(\d{1,16}(?:\.\d{1,6})?)\s?([KMGT]?)(?:i?B)?$/i.exec(text.trim());
  if (match === null) return undefined;
  const bytes = Number(match[1]) * FACTOR[match[2]!.toUpperCase()]!;
  return Number.isSafeInteger(bytes) ? bytes : undefined;
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
